# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""The synthetic world: statistics of its speckle, effects of its tissue, consistency of its items, files."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch
from monai.data import DataLoader
from PIL import Image

from monai_usfm.data import LoadUltrasound, SyntheticUltrasound, load_datalist, write_synthetic_dataset
from monai_usfm.simulation.echoes import (
    Device,
    backscatter,
    beam_widths,
    detect,
    scatterers,
    shadow_db,
    specular_strength,
)
from monai_usfm.simulation.organs import ORGANS
from monai_usfm.simulation.organs.lesions import PATTERNS, draw_radius
from monai_usfm.simulation.organs.lesions import lesion as paint_lesion
from monai_usfm.simulation.phantoms import STRUCTURES
from monai_usfm.simulation.view import MovingScatterers, View
from monai_usfm.transforms.beam import BeamGeometry

QUIET = Device(frequency=5.0, noise=-90.0, clutter=-120.0, haze=-120.0, aperture=1000.0, f_number=4.0)
LINEAR = BeamGeometry("linear", (0.0, 64.0), (0.0, 40.0), width=(-20.0, 20.0), spacing=(0.3, 0.3))
SHAPE = (400, 200)


def uniform_intensity(
    device: Device, shape: tuple[int, ...] = SHAPE, seed: int = 0, specular: float = 0.0
) -> np.ndarray:
    rng = np.random.default_rng(seed)
    flat = torch.zeros(shape)
    field = scatterers(shape, rng)
    return backscatter(flat, flat + specular, flat, field, LINEAR, device, rng, 0.3).numpy()


def small(num_samples: int = 12, **arguments) -> SyntheticUltrasound:
    arguments.setdefault("image_size", (96, 96))
    return SyntheticUltrasound(num_samples, **arguments)


# ------------------------------------------------------------------------------------------------ physics of the echoes


def test_uniform_tissue_shows_fully_developed_speckle():
    intensity = np.concatenate([uniform_intensity(QUIET, seed=s)[20:-20, 10:-10].ravel() for s in range(4)])
    envelope, level = np.sqrt(intensity), 10 * np.log10(intensity)
    assert intensity.mean() == pytest.approx(1.0, rel=0.03)
    assert envelope.mean() / envelope.std() == pytest.approx(1.913, rel=0.02)  # Rayleigh
    assert level.std() == pytest.approx(5.57, rel=0.02)  # log-Rayleigh
    assert ((level - level.mean()) ** 3).mean() / level.std() ** 3 == pytest.approx(-1.14, abs=0.12)


def test_four_looks_are_nearly_independent():
    level = 10 * np.log10(uniform_intensity(replace(QUIET, looks=4)))
    assert 2.31 * 0.97 < level.std() < 2.31 * 1.25  # Gamma(4) has 2.31 dB; correlated looks have more, one look 5.57


def test_volumes_have_the_same_speckle_statistics():
    level = 10 * np.log10(uniform_intensity(QUIET, (40, 80, 60)))
    assert level.std() == pytest.approx(5.57, rel=0.03)


def test_speckle_is_as_wide_as_the_point_spread_function_says():
    shape = (256, 512)
    intensity = np.concatenate([uniform_intensity(QUIET, shape, s)[112:144] for s in range(6)])  # rows about the focus
    depth = torch.linspace(0, 40.0, shape[0])
    _, lateral, _ = beam_widths(LINEAR, shape, QUIET, None, depth)
    sigma = float(lateral[112:144].mean())
    centered = intensity - intensity.mean()
    covariance = np.fft.ifft((np.abs(np.fft.fft(centered, axis=1)) ** 2).mean(0)).real
    half = np.interp(0.5, (covariance / covariance[0])[:60][::-1], np.arange(60)[::-1])
    assert 2 * half == pytest.approx(2.355 * sigma, rel=0.08)  # REFERENCE: autocovariance of intensity, Gaussian pulse


def test_speckle_widens_away_from_the_focus():
    _, lateral, _ = beam_widths(LINEAR, SHAPE, QUIET, None, torch.linspace(0, 40.0, SHAPE[0]))
    assert lateral[200] < lateral[399] * 0.95 and lateral[200] < lateral[0] * 0.95


def test_an_interface_is_less_random_than_speckle():
    level = 10 * np.log10(uniform_intensity(QUIET, specular=3.0)[50:-50, 20:-20])
    assert level.std() < 4.0  # Rice


def test_shadow_has_the_closed_form_depth():
    attenuation = torch.full((100, 9), 0.5)
    attenuation[20:40, 3:6] = 2.5
    loss = shadow_db(attenuation, 0.5, QUIET)
    assert loss[99, 4].item() == pytest.approx(2 * 5.0 * 2.0 * 1.0, rel=1e-3)  # 2 f (a - 0.5) d, 1 cm thick
    assert loss[:, 0].abs().max() < 1e-4 and loss[:20].abs().max() < 1e-4


def test_tissue_behind_fluid_is_enhanced_and_behind_an_absorber_shadowed():
    attenuation = torch.full(SHAPE, 0.5)
    attenuation[100:200, :60], attenuation[100:200, 140:] = 0.02, 2.0
    rng, flat = np.random.default_rng(0), torch.zeros(SHAPE)
    loss = shadow_db(attenuation, 0.1, QUIET)
    level = detect(backscatter(flat, flat, loss, scatterers(SHAPE, rng), LINEAR, QUIET, rng), QUIET)
    behind = level[220:380].mean(0)
    assert behind[10:50].mean() > behind[80:120].mean() + 2
    assert behind[150:190].mean() < behind[80:120].mean() - 8


def test_receiver_noise_grows_with_depth():
    device = replace(QUIET, noise=0.0)
    rng, flat = np.random.default_rng(0), torch.zeros(SHAPE)
    intensity = backscatter(flat - 100, flat, flat, scatterers(SHAPE, rng), LINEAR, device, rng)
    upper, lower = 10 * torch.log10(intensity[150:160].mean()), 10 * torch.log10(intensity[350:360].mean())
    assert (lower - upper).item() == pytest.approx(20 * 0.5, abs=1.5)  # 20 mm at 2 x 5 MHz x 0.5 dB/cm/MHz


def test_interfaces_shine_only_when_they_face_the_beam():
    rows, columns = np.mgrid[:64, :64].astype(np.float32)
    down = [np.ones((1, 1), np.float32), None]
    facing = specular_strength(1 / (1 + np.exp(rows - 32)), down, (1, 1))
    oblique = specular_strength(1 / (1 + np.exp((rows - 32) * 0.5 + (columns - 32) * 0.866)), down, (1, 1))
    along = specular_strength(1 / (1 + np.exp(columns - 32)), down, (1, 1))
    assert along.max() < 1e-6 < oblique.max() < 0.2 * facing.max()


@pytest.mark.parametrize("step", [0.5, 2.0])
def test_the_angle_of_incidence_is_that_in_millimeters_whatever_the_distance_of_slices(step):
    slices, rows, _ = np.mgrid[:33, :64, :2].astype(np.float32)
    plane = 1 / (1 + np.exp((rows - 32 + (slices - 16) * step) / 8))  # at 45 degrees to the beams
    down = [None, np.ones((1, 1, 1), np.float32), None]
    shining = specular_strength(plane, down, (step, 1, 1))
    assert shining.max() == pytest.approx(1 / 32 * 0.5**1.5, rel=0.02)


@pytest.mark.parametrize("width", [64, 65])
def test_interpolated_lines_lie_where_they_were_sent(width):
    level = torch.linspace(0, 10, width).expand(4, -1)
    found = detect(10 ** (level / 10), replace(QUIET, line_step=2))
    torch.testing.assert_close(found[:, ::2], level[:, ::2], atol=1e-4, rtol=0)


# ----------------------------------------------------------------------------------------------------------- the items


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[k], other[k]) if torch.is_tensor(one[k]) else one[k] == other[k] for k in one
    )


@pytest.mark.parametrize(
    "arguments",
    [
        {"quality": "pair", "annotations": True},
        {"spatial_dims": 3, "image_size": (16, 32, 32)},
        {"spatial_dims": 3, "cine": True, "image_size": (3, 48, 48)},
    ],
)
def test_an_item_depends_on_seed_and_index_alone(arguments):
    first, second = small(8, **arguments), small(20, **arguments)
    backwards = [second[i] for i in (5, 3, 1)]
    assert all(same(first[i], item) for i, item in zip((5, 3, 1), backwards, strict=True))
    assert not torch.equal(small(8, seed=1, **arguments)[3]["image"], first[3]["image"])


def test_global_random_state_is_left_alone():
    torch_state, numpy_state = torch.random.get_rng_state(), np.random.get_state()
    small(2)[1]
    assert torch.equal(torch_state, torch.random.get_rng_state())
    assert np.array_equal(numpy_state[1], np.random.get_state()[1])


@pytest.mark.parametrize("organ", list(ORGANS))
def test_items_are_consistent(organ):
    target = {name: {known.target} for name, known in ORGANS.items() if known.target in ("lesion", "left ventricle")}
    world = small(6, organs=organ)
    for item in world:
        image, label, fov = item["image"], item["label"].bool(), item["fov"]
        assert image.shape == label.shape == item["clean"].shape == (1, 96, 96) and image.dtype == torch.float32
        assert image.min() >= 0 and 0.3 < image.max() <= 1
        assert image[~fov].abs().sum() == 0 and not (label & ~fov).any()
        assert torch.equal(fov, item["geometry"].mask((96, 96)))
        assert 0.001 < label.float().mean() < 0.65
        if organ in target:
            names = {STRUCTURES[code] for code in item["structures"][label].unique().tolist()}
            outside = {STRUCTURES[code] for code in item["structures"][~label].unique().tolist()}
            assert names == target[organ] and not names & outside


def phantoms(organ: str, count: int, altered: bool = False, healthy: bool = False) -> list:
    made = []
    for seed in range(count):
        view = View(organ, (64, 64), False, np.random.default_rng(seed))
        phantom = view.empty_phantom(np.random.default_rng(seed + 1000))
        phantom.healthy = healthy
        ORGANS[organ].paint(phantom, altered)
        made.append(phantom)
    return made


@pytest.mark.parametrize("altered", [False, True])
def test_breasts_have_the_documented_number_and_echogenicity_of_lesions(altered):
    drawn = [phantom.lesions for phantom in phantoms("breast", 200, altered)]
    counts = np.bincount([len(lesions) for lesions in drawn], minlength=4)[:4] / len(drawn)
    assert counts[0] == 0 and abs(counts[1] - 0.78) < 0.12 and 0.1 < counts[2] + counts[3] < 0.3
    patterns = [lesion["pattern"] for lesions in drawn for lesion in lesions]
    for pattern, share in PATTERNS[altered].items():
        assert patterns.count(pattern) / len(patterns) == pytest.approx(share, abs=0.07)


def test_lesions_reach_from_half_a_percent_to_40_percent_of_the_view():
    view = View("breast", (64, 64), False, np.random.default_rng(0))
    phantom = view.empty_phantom(np.random.default_rng(1))
    shares = np.array([np.pi * draw_radius(phantom) ** 2 / phantom.area for _ in range(4000)])
    assert shares.min() == pytest.approx(0.005) and shares.max() == pytest.approx(0.4)
    assert np.median(shares) == pytest.approx(0.05, rel=0.1)
    assert np.log(shares).std() == pytest.approx(1.0, abs=0.1)


def test_dark_lesions_are_darker_and_bright_ones_brighter_than_what_they_replace():
    for pattern, sign in (("anechoic", -1), ("hypoechoic", -1), ("hyperechoic", 1)):
        for seed in range(4):
            view = View("breast", (96, 96), False, np.random.default_rng(seed))
            phantom = view.empty_phantom(np.random.default_rng(seed))
            inside = paint_lesion(phantom, (0.0, 0.4 * phantom.depth), 4.0, bool(seed % 2), pattern=pattern)
            assert sign * (np.median(phantom.echo[inside]) - np.median(phantom.echo[~inside])) > 2


def test_a_healthy_item_has_no_lesion_and_a_class_of_its_own():
    for item in small(6, organs=("breast", "thyroid", "liver"), healthy=1.0):
        assert item["class"] == 2 and not item["label"].any()
        assert not (item["structures"] == STRUCTURES.index("lesion")).any()
    shares = [item["class"] == 2 for item in small(60, organs="breast", image_size=(16, 16), healthy=0.5)]
    assert 0.3 < np.mean(shares) < 0.7


def test_each_lesion_is_an_instance():
    for phantom in phantoms("breast", 12):
        numbers = set(phantom.instances[phantom.target > 0].tolist())
        assert 0 not in numbers and 1 <= len(numbers) <= len(phantom.lesions)


def test_muscle_shows_two_aponeuroses_or_more():
    for phantom in phantoms("muscle", 12):
        assert len(np.unique(phantom.instances[phantom.target > 0])) >= 2
        assert 0.01 < phantom.target.mean() < 0.15


def test_irregular_lesions_shadow_and_regular_ones_do_not():
    world = small(64, organs="breast", seed=5)
    change = {0: [], 1: []}
    for item in world:
        image, label = item["image"][0], item["label"][0]
        rows, columns = torch.nonzero(label.any(1)).flatten(), torch.nonzero(label.any(0)).flatten()
        behind = slice(int(rows[-1]) + 3, int(rows[-1]) + 12)
        inside = slice(int(columns[0]) + len(columns) // 4, int(columns[-1]) - len(columns) // 4 + 1)
        beside = [c for c in range(96) if c < columns[0] - 4 or c > columns[-1] + 4]
        alone = len(item["instances"][item["label"] > 0].unique()) == 1
        if alone and beside and behind.stop <= 90:
            change[item["class"]].append(float(image[behind, inside].mean() - image[behind, beside].mean()))
    assert min(map(len, change.values())) > 10
    assert np.mean(change[1]) < -0.03 < 0.0 < np.mean(change[0])


def test_clean_target_has_no_speckle():
    for item in small(4, organs="liver"):
        liver = item["structures"] == STRUCTURES.index("liver")
        pairs = liver[0, :, 1:] & liver[0, :, :-1]
        steps = {key: (item[key][0, :, 1:] - item[key][0, :, :-1])[pairs] for key in ("image", "clean")}
        assert steps["clean"].abs().median() < 0.35 * steps["image"].abs().median()


def test_organs_and_classes_are_balanced():
    items = list(small(4 * len(ORGANS), image_size=(32, 32)))
    counts = {(o, c): sum(i["organ"] == o and i["class"] == c for i in items) for o in ORGANS for c in (0, 1)}
    assert set(counts.values()) == {2}


def test_linear_and_sector_geometries_occur():
    kinds = {item["geometry"].kind for item in small(6, image_size=(32, 32))}
    assert kinds == {"linear", "convex", "phased"}


def test_pair_shares_anatomy_and_the_twin_is_worse():
    pair, high, low = (small(6, quality=q, image_size=(160, 160))[2] for q in ("pair", "high", "low"))
    assert torch.equal(pair["image"], high["image"]) and torch.equal(pair["label"], low["label"])
    assert torch.equal(pair["structures"], high["structures"])
    assert 0.2 < np.corrcoef(pair["low"].flatten(), pair["image"].flatten())[0, 1] < 0.98
    truth = [
        {k: np.corrcoef(i[k][i["fov"]], i["clean"][i["fov"]])[0, 1] for k in ("image", "low")}
        for i in small(12, quality="pair", image_size=(160, 160))
    ]
    assert np.mean([t["image"] - t["low"] for t in truth]) > 0.04


def test_a_degraded_machine_has_a_wider_pulse():
    depth = torch.linspace(0, 40.0, SHAPE[0])
    good, bad = (beam_widths(LINEAR, SHAPE, device, None, depth) for device in (QUIET, QUIET.degraded()))
    assert bad[0] > 1.5 * good[0] and (bad[1] > 1.5 * good[1]).all()


def test_annotations_change_only_their_own_pixels():
    plain, annotated = small(3)[1], small(3, annotations=True)[1]
    mask = annotated["annotations"]
    assert 20 < mask.sum() < 0.1 * mask.numel()
    assert torch.equal(annotated["image"][~mask], plain["image"][~mask])
    assert annotated["image"][mask].min() > 0.75


# -------------------------------------------------------------------------------------------------- volumes and cines


def test_volumes_have_the_size_and_geometry_asked_for():
    items = list(small(12, spatial_dims=3, image_size=(20, 32, 24)))
    assert all(i["image"].shape == i["label"].shape == i["fov"].shape == (1, 20, 32, 24) for i in items)
    assert all(i["label"].any() and len(i["spacing"]) == 3 for i in items)
    assert "sector3d" in {i["geometry"].kind for i in items}
    assert all(i["image"][~i["fov"]].abs().sum() == 0 for i in items)


def test_near_frames_are_more_alike_than_distant_ones():
    for item in small(6, spatial_dims=3, cine=True, image_size=(12, 64, 64), seed=2):
        frames = item["image"][0].flatten(1)
        matrix = np.corrcoef(frames)
        assert 1 - np.diag(matrix, 1).mean() < 0.7 * (1 - matrix[0].min())
        assert np.diag(matrix, 1).mean() > 0.6


def test_the_left_ventricle_beats():
    item = small(2, organs="heart", spatial_dims=3, cine=True, image_size=(12, 96, 96))[0]
    area = item["label"][0].sum((1, 2)).float()
    assert area.min() < 0.85 * area.max()


def test_speckle_rides_with_the_tissue():
    view = View("breast", (96, 96), False, np.random.default_rng(0))
    field = MovingScatterers(view, QUIET, np.random.default_rng(1))
    step = (view.geometry.radii[1] - view.geometry.radii[0]) / (view.beam_shape[0] - 1)

    class OneSampleDown:
        def shift(self, x, z, phase):
            return torch.zeros_like(x), torch.full_like(z, phase * step)

    rest, moved = field.at(OneSampleDown(), 0.0), field.at(OneSampleDown(), 1.0)
    torch.testing.assert_close(moved[2:-2].abs(), rest[1:-3].abs(), atol=1e-3, rtol=1e-3)
    turn = torch.angle(moved[2:-2] * rest[1:-3].conj())[rest[1:-3].abs() > 0.1]
    expected = math.remainder(-4 * math.pi * step / QUIET.wavelength, 2 * math.pi)
    assert (turn - expected).abs().median() < 0.02  # two-way phase of the path


# ------------------------------------------------------------------------------------------------------ use and errors


def test_transform_is_applied_and_items_collate():
    world = small(4, image_size=(32, 32), transform=lambda item: {**item, "image": 1 - item["image"]})
    torch.testing.assert_close(world[1]["image"], 1 - small(4, image_size=(32, 32))[1]["image"])
    batch = next(iter(DataLoader(world, batch_size=4)))
    assert batch["image"].shape == (4, 1, 32, 32) and len(batch["organ"]) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"organs": ("spleen",)}, "spleen"),
        ({"organs": ()}, "choose from"),
        ({"spatial_dims": 4}, "2 or 3"),
        ({"image_size": (64, 64, 64)}, "2 entries"),
        ({"image_size": (8, 64)}, "at least 16"),
        ({"quality": "best"}, "best"),
        ({"cine": True, "image_size": (64, 64)}, "spatial_dims=3"),
        ({"spatial_dims": 3, "image_size": (32, 32, 32), "annotations": True}, "annotations"),
        ({"seed": -1}, "negative"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        small(1, **arguments)


# ------------------------------------------------------------------------------------------------------------- on disk


def test_written_images_equal_the_simulated_ones(tmp_path):
    options = {"image_size": (48, 64), "quality": "pair", "annotations": True}
    path = write_synthetic_dataset(tmp_path, 3, 2, 1, num_workers=2, **options)
    world = SyntheticUltrasound(6, **options)
    items = [i for split in ("training", "validation", "test") for i in load_datalist(path, None, split)]
    for item, made in zip(items, world, strict=True):
        for key in ("image", "clean", "low"):
            loaded = LoadUltrasound()(item[key])
            np.testing.assert_allclose(loaded.numpy(), made[key].numpy(), atol=0.5 / 255 + 1e-6)
        for key in ("label", "structures", "instances", "annotations"):
            assert np.array_equal(np.asarray(Image.open(item[key])), made[key][0].numpy())
        assert item["class"] == made["class"] and item["organ"] == made["organ"]


@pytest.mark.parametrize("cine", [False, True])
def test_written_volumes_come_back_upright_with_their_spacing(tmp_path, cine):
    options = {"spatial_dims": 3, "image_size": (10, 24, 32), "cine": cine}
    path = write_synthetic_dataset(tmp_path, 2, 0, 0, **options)
    for item, made in zip(load_datalist(path, None, "training"), SyntheticUltrasound(2, **options), strict=True):
        stored = nibabel.load(item["image"])
        assert stored.shape == (32, 24, 10)  # x, y, z
        np.testing.assert_allclose(stored.header.get_zooms(), made["spacing"].flip(0).numpy(), rtol=1e-5)
        loaded = LoadUltrasound(spatial_dims=3)(item["image"])
        np.testing.assert_allclose(np.asarray(loaded), made["image"].numpy(), atol=0.5 / 255 + 1e-6)


def test_datalist_says_that_it_is_synthetic_and_splits_are_disjoint(tmp_path):
    content = json.loads(write_synthetic_dataset(tmp_path, 4, 2, 2, image_size=(32, 32)).read_text())
    assert content["synthetic"] is True and "synthetic" in content["description"].lower()
    patients = [i["patient"] for s in ("training", "validation", "test") for i in content[s]]
    assert len(set(patients)) == 8


def test_a_complete_folder_is_reused_and_a_broken_or_other_one_rewritten(tmp_path):
    write = lambda **changes: write_synthetic_dataset(tmp_path, 2, 1, 1, **{"image_size": (32, 32), **changes})  # noqa: E731
    image = tmp_path / json.loads(write().read_text())["training"][0]["image"]
    first, written = image.read_bytes(), image.stat().st_mtime_ns
    write()
    assert image.stat().st_mtime_ns == written
    image.unlink()
    write()
    assert image.read_bytes() == first
    write(seed=1)
    assert image.read_bytes() != first
    assert not list(tmp_path.rglob(".*"))  # no temporary file is left


def test_a_datalist_of_real_data_is_never_overwritten(tmp_path):
    (tmp_path / "datalist.json").write_text('{"training": []}')
    with pytest.raises(ValueError, match="not a synthetic"):
        write_synthetic_dataset(tmp_path, 1, 0, 0)
