# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import DataLoader, Dataset, MetaTensor
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_dilation, gaussian_filter

from monai_usfm.transforms import RemoveAnnotations, RemoveAnnotationsd

SHAPE = (260, 240)


def speckle(seed=0, shape=SHAPE, level=0.45):
    """Log-compressed speckle (50 dB), finer in depth than across, with a lesion and a layer."""
    rng = np.random.default_rng(seed)
    field = [gaussian_filter(rng.standard_normal(shape), (1, 2)) for _ in range(2)]
    envelope = np.hypot(*field) / np.std(field)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    echo = np.where(((rows - 120) / 30) ** 2 + ((columns - 110) / 40) ** 2 < 1, 0.15, 1.0)
    echo = np.where(abs(rows - 60 - 0.1 * columns) < 3, 2.5, echo)
    return np.clip(level + 20 / 50 * np.log10(envelope * echo + 1e-6), 0, 1).astype(np.float32)


def small(seed=0):
    return speckle(seed, (90, 96))


def draw(gray, paint, value):
    """Copy of ``gray`` with antialiased strokes of ``value`` painted by ``paint(ImageDraw)``; and their mask."""
    canvas = Image.new("L", (gray.shape[1], gray.shape[0]))
    paint(ImageDraw.Draw(canvas))
    alpha = np.asarray(canvas, np.float32) / 255
    return (gray * (1 - alpha) + value * alpha).astype(np.float32), alpha > 0.3


def text(x, y, words, size=13):
    return lambda d: d.text((x, y), words, fill=255, font=ImageFont.load_default(size))


def cross(x, y, arm=5, diagonal=False):
    if diagonal:
        return lambda d: (
            d.line((x - arm, y - arm, x + arm, y + arm), 255),
            d.line((x - arm, y + arm, x + arm, y - arm), 255),
        )
    return lambda d: (d.line((x - arm, y, x + arm, y), 255), d.line((x, y - arm, x, y + arm), 255))


ANNOTATIONS = {
    "text": text(60, 215, "MAMA DIREITA 12"),
    "small text": text(20, 20, "RAIO 34", size=10),
    "caliper": cross(75, 118),
    "diagonal caliper": cross(150, 130, arm=4, diagonal=True),
}
KIND = {"small text": "text", "diagonal caliper": "caliper"}


def recall_and_precision(found, planted):
    """Share of planted pixels that were found, and share of found pixels on or within two pixels of a planted one."""
    near = binary_dilation(planted, np.ones((3, 3)), iterations=2)
    return (found & planted).sum() / planted.sum(), (found & near).sum() / max(found.sum(), 1)


@pytest.mark.parametrize("name", list(ANNOTATIONS))
@pytest.mark.parametrize("value", [1.0, 0.85])
def test_a_planted_annotation_is_found_and_named(name, value):
    image, planted = draw(speckle(), ANNOTATIONS[name], value)
    mask, report = RemoveAnnotations().detect(image[None])
    recall, precision = recall_and_precision(mask[0].numpy(), planted)
    assert recall > 0.9 and precision > 0.85
    assert KIND.get(name, name) in report.kinds


def test_planted_annotations_are_found_with_high_recall_and_precision_over_many_images():
    scores = []
    for seed in range(2):
        rng = np.random.default_rng(seed)
        image, planted = speckle(seed), np.zeros(SHAPE, bool)
        for paint in (
            text(rng.integers(5, 100), rng.integers(190, 240), "ESQUERDA 3H"),
            cross(rng.integers(60, 90), rng.integers(90, 150)),
            cross(rng.integers(120, 160), rng.integers(90, 150), arm=4),
        ):
            image, mask = draw(image, paint, 0.95)
            planted |= mask
        scores.append(recall_and_precision(RemoveAnnotations().detect(image[None])[0][0].numpy(), planted))
    recall, precision = np.mean(scores, axis=0)
    assert recall > 0.95 and precision > 0.9


def test_a_caliper_that_resampling_spread_over_two_rows_is_found():
    clean = speckle(level=0.25)
    image, planted = draw(clean, cross(100, 200), 1.0)
    image = np.where(planted | np.roll(planted, 1, axis=0), (image + np.roll(image, 1, axis=0)) / 2, image)
    _, report = RemoveAnnotations().detect(image[None])
    assert report.kinds == ("caliper",)


def test_a_bright_blob_is_no_caliper():
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    blob = np.exp(-((rows - 190) ** 2 + (columns - 100) ** 2) / (2 * 2.5**2))
    image = np.maximum(speckle(level=0.2), blob).astype(np.float32)
    assert RemoveAnnotations().detect(image[None])[1].count == 0


def test_filling_brings_the_tissue_back():
    clean = speckle()
    image, planted = draw(clean, ANNOTATIONS["text"], 1.0)
    out = RemoveAnnotations()(image[None])[0].numpy()
    assert abs(out - clean)[planted].mean() < 0.35 * abs(image - clean)[planted].mean()
    rim = binary_dilation(planted, np.ones((3, 3)), iterations=4)
    np.testing.assert_array_equal(out[~rim], image[~rim])


@pytest.mark.parametrize("seed", range(3))
def test_unannotated_speckle_is_returned_unchanged(seed):
    image = speckle(seed)
    assert torch.equal(RemoveAnnotations()(image[None]), torch.as_tensor(image[None]))


def test_color_on_a_gray_image_is_found_but_doppler_is_left_alone():
    gray = np.repeat(speckle()[None], 3, axis=0)
    arrow, doppler = gray.copy(), gray.copy()
    arrow[:2, 100:110, 100:104], arrow[2, 100:110, 100:104] = 0.9, 0.1
    _, report = RemoveAnnotations().detect(arrow)
    assert report.kinds == ("color",) and report.boxes == ((0, 99, 99, 111, 105),)
    doppler[0, 60:160, 60:160] = 1.0
    assert RemoveAnnotations().detect(doppler)[1].count == 0


def test_report_counts_boxes_and_area():
    image, _ = draw(small(), cross(45, 40), 1.0)
    remove = RemoveAnnotations()
    out = remove(image[None])
    mask, report = remove.detect(image[None])
    assert remove.report == report and report.count == len(report.boxes) == 1
    assert report.area_fraction == pytest.approx(mask.float().mean().item())
    frame, top, left, bottom, right = report.boxes[0]
    assert frame == 0 and top <= 35 and bottom >= 46 and left <= 40 and right >= 51
    assert torch.equal(out[~mask], torch.as_tensor(image[None])[~mask])


def test_a_cine_is_searched_frame_by_frame():
    annotated, _ = draw(small(), cross(45, 40), 1.0)
    remove = RemoveAnnotations()
    out = remove(np.stack([small(1), annotated, small(2)])[None])
    assert [box[0] for box in remove.report.boxes] == [1]
    assert torch.equal(out[:, 1], remove(annotated[None]))
    np.testing.assert_array_equal(out[0, 0], small(1))


def test_real_images_without_annotations_change_by_less_than_a_thousandth(shared_data):
    files = sorted((shared_data / "liver_sweep_2d" / "images").glob("*.png"))[::27]
    files += sorted((shared_data / "cine_2dt" / "frames").glob("ocular*.png"))[::12]
    files += sorted((shared_data / "unlabelled").rglob("*.png"))[::18]
    images = [np.array(Image.open(f).convert("L")) for f in files]
    heads = sorted((shared_data / "fetal_head_hc18" / "images").glob("*.png"))[::180]
    # beside the gray bar and the black box
    images += [np.array(Image.open(f).convert("L"))[:200, 30:300] for f in heads]
    fractions = [RemoveAnnotations().detect(i[None])[1].area_fraction for i in images]
    assert max(fractions) < 1e-3


def test_annotations_planted_on_real_breast_images_are_found(shared_data):
    scores = []
    for name in ("bus_0110-r", "bus_0868-l"):
        clean = np.asarray(Image.open(shared_data / "busbra" / "images" / f"{name}.png").convert("L"), np.float32) / 255
        before = RemoveAnnotations().detect(clean[None])[0][0].numpy()
        image, planted = draw(clean, text(60, 150, "PLANTADO 45"), 1.0)
        image, mask = draw(image, cross(100, 110), 1.0)
        found = RemoveAnnotations().detect(image[None])[0][0].numpy() & ~before
        scores.append(recall_and_precision(found, (planted | mask) & ~before))
    recall, precision = np.mean(scores, axis=0)
    assert recall > 0.8 and precision > 0.8


def test_real_portuguese_text_and_calipers_are_found(shared_data):
    _, report = RemoveAnnotations().detect(np.array(Image.open(shared_data / "busbra/images/bus_0056-l.png"))[None])
    assert sorted(report.kinds) == ["caliper"] * 4 + ["text"] * 2


def test_types_devices_and_meta_data_are_kept_and_the_input_is_not_edited():
    image, _ = draw(small(), cross(45, 40), 1.0)
    for dtype in (torch.uint8, torch.float32, torch.float64):
        tensor = MetaTensor(
            (torch.as_tensor(image[None]) * 255).to(dtype), affine=torch.diag(torch.tensor([2.0, 3, 1, 1]))
        )
        before = tensor.clone()
        out = RemoveAnnotations()(tensor)
        assert isinstance(out, MetaTensor) and out.dtype == dtype and torch.equal(out.affine, tensor.affine)
        assert torch.equal(tensor, before) and not torch.equal(out, tensor)


def test_alpha_is_neither_searched_nor_filled():
    image, _ = draw(small(), cross(45, 40), 1.0)
    rgba = np.stack([image, image, image, np.linspace(0, 1, image.size).reshape(image.shape).astype(np.float32)])
    out = RemoveAnnotations()(rgba)
    np.testing.assert_array_equal(out[3], rgba[3])
    assert torch.equal(out[0], RemoveAnnotations()(image[None])[0])


def test_dictionary_form_equals_the_array_form_and_its_report_collates():
    annotated, _ = draw(small(), cross(45, 40), 1.0)
    data = Dataset([{"image": torch.as_tensor(i[None])} for i in (annotated, small())], RemoveAnnotationsd("image"))
    assert torch.equal(data[0]["image"], RemoveAnnotations()(annotated[None]))
    assert json.loads(json.dumps(data[0]["image_annotations"]))["kinds"] == "caliper"
    batch = next(iter(DataLoader(data, batch_size=2)))
    assert batch["image_annotations"]["count"].tolist() == [1, 0]


@settings(max_examples=20, deadline=None)
@given(
    shape=st.tuples(st.sampled_from([1, 3, 4]), st.integers(1, 40), st.integers(1, 40)),
    dtype=st.sampled_from([torch.uint8, torch.int16, torch.float16, torch.float32, torch.float64]),
    scale=st.sampled_from([0.0, 1.0, 255.0, -3.0]),
    nan=st.booleans(),
)
def test_any_image_keeps_its_shape_and_type(shape, dtype, scale, nan):
    image = (torch.rand(shape, generator=torch.Generator().manual_seed(0)) * scale).to(dtype)
    if nan and dtype.is_floating_point:
        image[:, 0, 0] = float("nan")
    out = RemoveAnnotations()(image)
    assert out.shape == image.shape and out.dtype == dtype
    assert out.isnan().sum() <= image.isnan().sum()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RemoveAnnotations(contrast=0), "contrast"),
        (lambda: RemoveAnnotations()(torch.zeros(2, 20, 20)), "channels"),
        (lambda: RemoveAnnotations()(torch.zeros(20, 20)), "the image must be"),
    ],
)
def test_wrong_use_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()
