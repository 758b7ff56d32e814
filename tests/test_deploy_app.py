# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""The application of MONAI Deploy: what it writes, read back by pydicom and highdicom."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from monai.bundle import run
from PIL import Image
from pydicom.data import get_testdata_file

from monai_usfm.cli import main

hd = pytest.importorskip("highdicom", reason="highdicom is not installed; examples/deploy_app/requirements.txt has it")
CINE, STILL = "examples_ybr_color.dcm", "examples_palette.dcm"
APP = Path(__file__).resolve().parents[1] / "examples" / "deploy_app"
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def modules():
    """``images`` and ``results`` of the application, which is a folder of scripts."""
    sys.path.insert(0, str(APP))
    import images
    import results

    yield images, results
    sys.path.remove(str(APP))
    for name in ("images", "results"):
        del sys.modules[name]


@pytest.fixture
def model(modules, repository):
    """The shipped network with a second structure to its name."""
    loaded = modules[0].load_model(repository / "bundles" / "usfm_segmentation")
    loaded.names = ["background", "lesion", "fetal head"]
    return loaded


def found_in(modules, name):
    """A result with two structures: the second one in the odd frames only, and larger from frame to frame."""
    source = pydicom.dcmread(get_testdata_file(name))
    count = int(source.get("NumberOfFrames", 1))
    labels = np.zeros((count, source.Rows, source.Columns), np.uint8)
    for frame in range(count):
        labels[frame, 20:40, 30 : 50 + frame] = 1
        if frame % 2 == 0:
            labels[frame, 100:110, 200:300] = 2
    frames = np.full(labels.shape, 0.5, np.float32)
    return modules[0].Result(source, frames, (0.2, 0.25), 0.03, labels), source


def written(modules, model, name, folder):
    result, source = found_in(modules, name)
    entry = modules[1].write_results(result, model, folder, {}, 1)
    return result, source, entry, {kind: folder / out["file"] for kind, out in entry["outputs"].items()}


@pytest.mark.parametrize("name", [CINE, STILL])
def test_segmentation_read_by_highdicom_is_that_of_each_frame_of_the_source(modules, model, tmp_path, name):
    result, source, _, files = written(modules, model, name, tmp_path)
    segmentation = hd.seg.segread(files["segmentation"])
    frames = range(1, len(result.labels) + 1)
    if name == CINE:
        read = segmentation.get_pixels_by_source_frame(
            source.SOPInstanceUID, list(frames), combine_segments=True, ignore_spatial_locations=True
        )
    else:
        read = segmentation.get_pixels_by_source_instance([source.SOPInstanceUID], combine_segments=True)
    np.testing.assert_array_equal(read, result.labels)
    assert [segmentation.get_segment_description(k).SegmentLabel for k in (1, 2)] == ["lesion", "fetal head"]


@pytest.mark.parametrize("name", [CINE, STILL])
def test_patient_study_and_source_of_all_outputs_are_those_of_the_image(modules, model, tmp_path, name):
    _, source, entry, files = written(modules, model, name, tmp_path)
    series = set()
    for file in files.values():
        made = pydicom.dcmread(file)
        for keyword in ("PatientID", "PatientName", "PatientBirthDate", "StudyInstanceUID", "StudyDate", "StudyID"):
            assert made[keyword].value == source.get(keyword, made[keyword].value)
        series.add(made.SeriesInstanceUID)
        assert made.SeriesInstanceUID != source.SeriesInstanceUID
        for reference in made.SourceImageSequence:
            assert reference.ReferencedSOPInstanceUID == source.SOPInstanceUID
            assert reference.ReferencedSOPClassUID == source.SOPClassUID
    assert len(series) == 2
    referenced = pydicom.dcmread(files["segmentation"]).ReferencedSeriesSequence[0]
    assert referenced.SeriesInstanceUID == source.SeriesInstanceUID == entry["series"]


def test_frames_of_a_segmentation_lie_in_order_and_refer_by_number(modules, model, tmp_path):
    *_, files = written(modules, model, CINE, tmp_path)
    segmentation = pydicom.dcmread(files["segmentation"])
    groups = segmentation.PerFrameFunctionalGroupsSequence
    assert segmentation.NumberOfFrames == len(groups) == 45  # 30 of the lesion, 15 of the head
    values = [tuple(group.FrameContentSequence[0].DimensionIndexValues) for group in groups]
    assert values == [(1, f) for f in range(1, 31)] + [(2, f) for f in range(1, 31, 2)]
    for (_, frame), group in zip(values, groups, strict=True):
        assert group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber == frame


def test_overlay_shows_the_frame_with_most_and_says_what_it_is(modules, model, tmp_path):
    _, source, _, files = written(modules, model, CINE, tmp_path)
    figure = pydicom.dcmread(files["overlay"])
    assert figure.SourceImageSequence[0].ReferencedFrameNumber == 29  # the largest lesion that has a head beside it
    assert (figure.BurnedInAnnotation, figure.Modality, figure.PhotometricInterpretation) == ("YES", "OT", "RGB")
    colors = figure.pixel_array.reshape(-1, 3)
    assert (colors.max(1).astype(int) - colors.min(1) > 40).mean() > 0.01
    assert figure.Rows / figure.Columns == pytest.approx(source.Rows * 0.2 / (source.Columns * 0.25), rel=0.01)


def test_nothing_found_writes_no_segmentation(modules, model, tmp_path):
    result, _ = found_in(modules, STILL)
    result.labels[:] = 0
    assert list(modules[1].write_results(result, model, tmp_path, {}, 1)["outputs"]) == ["overlay"]


def test_labels_are_those_of_the_bundle_and_measured_in_mm(modules, repository, tmp_path):
    root = repository / "bundles" / "usfm_segmentation"
    (tmp_path / "images").mkdir()
    shutil.copy(get_testdata_file(STILL), tmp_path / "images" / "a.dcm")
    settings = {"dataset_dir": str(tmp_path / "images"), "output_dir": str(tmp_path / "out"), "preview": False}
    settings["amp"] = "fp32"  # as the application computes; a bundle's encoder takes bfloat16 by default
    run(config_file=str(root / "configs" / "inference.json"), bundle_root=str(root), **settings)
    wanted = np.asarray(Image.open(tmp_path / "out" / "a_seg.png"))
    result = modules[0].analyze(tmp_path / "images" / "a.dcm", modules[0].load_model(root))
    assert 0 < wanted.sum() < wanted.size
    np.testing.assert_array_equal(result.labels[0], wanted)
    (row,) = result.measurements
    assert (row["unit"], row["frame"]) == ("mm", 1)
    region = result.source.SequenceOfUltrasoundRegions[0]
    pixel = abs(region.PhysicalDeltaX * region.PhysicalDeltaY) * 100
    assert row["area"] == pytest.approx(wanted.sum() * pixel, rel=1e-4)


def test_files_that_are_no_ultrasound_images_are_refused_by_name(modules, model):
    with pytest.raises(ValueError, match=r"CT_small.*CT Image Storage; only ultrasound stills and cines"):
        modules[0].analyze(get_testdata_file("CT_small.dcm"), model)


def test_a_damaged_image_is_one_that_the_application_leaves_out(modules, model, tmp_path):
    source = pydicom.dcmread(get_testdata_file(STILL))
    source.PixelData = source.PixelData[:1000]
    source.save_as(tmp_path / "cut.dcm")
    with pytest.raises(ValueError, match=r"cut\.dcm: cannot be decoded"):
        modules[0].analyze(tmp_path / "cut.dcm", model)
    with pytest.raises(ValueError, match="is for enhancement of images; here a segmentation or classification"):
        modules[0].load_model(APP.parents[1] / "bundles" / "usfm_enhancement")


@pytest.mark.parametrize("task", ["segmentation", "classification"])
def test_torchscript_gives_what_the_weights_give(modules, repository, tmp_path, task):
    root = repository / "bundles" / f"usfm_{task}"
    assert main(["export", str(root / "models" / "model.pt"), str(tmp_path / "model.ts")]) == 0
    results = [modules[0].analyze(get_testdata_file(STILL), modules[0].load_model(place)) for place in (root, tmp_path)]
    if task == "segmentation":
        np.testing.assert_array_equal(results[0].labels, results[1].labels)
        assert results[0].measurements == results[1].measurements
    else:
        assert results[0].probabilities == pytest.approx(results[1].probabilities, abs=1e-5)
        assert list(results[0].probabilities) == ["benign", "malignant"]


@pytest.mark.parametrize("kind", ["segmentation", "segmentation.ts", "classification"])
def test_application_runs_in_the_sdk(repository, tmp_path, kind):
    pytest.importorskip("monai.deploy", reason="the MONAI Deploy SDK is not installed")
    (tmp_path / "in").mkdir()
    for name in (CINE, STILL, "CT_small.dcm"):
        shutil.copy(get_testdata_file(name), tmp_path / "in" / name)
    model = repository / "bundles" / f"usfm_{kind.split('.')[0]}"
    if kind.endswith(".ts"):
        assert main(["export", str(model / "models" / "model.pt"), str(tmp_path / "model.ts")]) == 0
        model = tmp_path / "model.ts"
    command = [sys.executable, str(APP / "app.py"), "-i", tmp_path / "in", "-o", tmp_path / "out", "-m", model]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert sorted(image["file"] for image in report["images"]) == [STILL, CINE]  # the CT is not selected
    for image in report["images"]:
        if kind == "classification":
            assert sum(image["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        else:
            assert "overlay" in image["outputs"] and {"area", "unit"} <= image["measurements"][0].keys()
        for output in image["outputs"].values():
            assert pydicom.dcmread(tmp_path / "out" / output["file"]).SOPInstanceUID == output["instance"]
