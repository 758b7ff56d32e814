# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""The verbs for cines on a disc that moves."""

from __future__ import annotations

import csv
import shutil
from typing import ClassVar

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from monai_usfm import build_network, save_network
from monai_usfm.cli import main
from monai_usfm.cli.cine import FrameSegmenter

# the axes run against those of the space, and the origin is elsewhere
AFFINE = np.array([[-0.4, 0, 0, 50], [0, -0.5, 0, 60], [0, 0, 1, 7], [0, 0, 0, 1.0]])


def same_grid(folder, name):
    """The array (T, H, W) of a result that lies where the cine lies, frame by frame."""
    saved, cine = nib.load(folder / name), nib.load(folder / "c.nii.gz")
    assert np.allclose(saved.affine, cine.affine)
    assert saved.shape == cine.shape
    assert np.allclose(saved.header.get_zooms(), cine.header.get_zooms())
    return np.asarray(saved.dataobj)[:, :, 0].transpose(2, 1, 0)


@pytest.fixture
def cine(tmp_path):
    """Six frames of a disc that moves two pixels to the right in each; the mask of the first frame."""
    noise = np.random.default_rng(0).normal(90, 12, (48, 64))
    y, x = np.indices((48, 64))
    discs = np.stack([(y - 24) ** 2 + (x - 20 - 2 * t) ** 2 < 81 for t in range(6)])
    frames = np.stack([np.roll(noise, 2 * t, axis=1) for t in range(6)]) + 100 * discs
    array = frames.clip(0, 255).astype(np.uint8).transpose(2, 1, 0)[:, :, None]
    image = nib.Nifti1Image(array, AFFINE)
    image.header.set_zooms((0.4, 0.5, 1, 0.04))
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, tmp_path / "c.nii.gz")
    Image.fromarray(255 * discs[0].astype(np.uint8)).save(tmp_path / "mask.png")
    return tmp_path, discs


def test_a_label_goes_to_every_frame_of_the_file(cine):
    folder, discs = cine
    assert main(["propagate", str(folder / "c.nii.gz"), str(folder / "mask.png"), "--output", str(folder / "out")]) == 0
    shutil.copy(folder / "c.nii.gz", folder / "c.1.nii.gz")
    assert main(["propagate", str(folder / "c.1.nii.gz"), str(folder / "mask.png"), "--output", str(folder)]) == 0
    assert (folder / "c.1_label.nii.gz").is_file()
    shutil.copy(folder / "out" / "c_label.nii.gz", folder / "c_label.nii.gz")
    labels = same_grid(folder, "c_label.nii.gz") > 0
    dice = [2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in zip(labels, discs, strict=True)]
    assert min(dice) > 0.9
    drawn = (folder / "c_label.nii.gz").read_bytes()
    assert main(["propagate", str(folder / "c.nii.gz"), str(folder / "c_label.nii.gz"), "--output", str(folder)]) == 1
    assert (folder / "c_label.nii.gz").read_bytes() == drawn


@pytest.mark.parametrize(("value", "drawn", "fault"), [(300, 2, None), (300, 0, "frame 2"), (0.5, 2, "class indices")])
def test_a_label_of_the_whole_cine_gives_that_of_its_frame(cine, capsys, value, drawn, fault):
    folder, discs = cine
    array = np.zeros((64, 48, 1, 6), np.float32)
    array[:, :, 0, drawn] = value * discs[drawn].T
    nib.save(nib.Nifti1Image(array, AFFINE), folder / "all.nii.gz")
    call = ["propagate", str(folder / "c.nii.gz"), str(folder / "all.nii.gz"), "--frame", "2", "--output", str(folder)]
    assert main(call) == bool(fault)
    if fault:
        assert fault in capsys.readouterr().err
        assert not (folder / "c_label.nii.gz").exists()
    else:
        labels = same_grid(folder, "c_label.nii.gz")
        assert np.array_equal(labels[2], 300 * discs[2])
        assert set(np.unique(labels)) == {0, 300}
    nib.save(nib.Nifti1Image(array[..., :4], AFFINE), folder / "all.nii.gz")
    assert main(call) == 1
    assert "has 4 frames" in capsys.readouterr().err


def test_a_stream_has_a_mask_and_a_latency_for_every_frame(cine, capsys):
    folder, _ = cine
    tiny = {"network_size": "custom", "hidden_size": 24, "mlp_dim": 48, "num_layers": 4, "num_heads": 3}
    network = build_network("segmentation", spatial_size=[32, 32], **tiny)
    weights = str(save_network(folder / "m.pt", network))
    into = ["stream", weights, str(folder / "c.nii.gz"), "--device", "cpu", "--output"]
    assert main([*into, str(folder)]) == 1  # results among the images would be taken for masks of theirs
    assert "holds images" in capsys.readouterr().err
    assert main([*into, str(folder / "s")]) == 0
    assert same_grid(folder, "s/c_seg.nii.gz").any()
    with open(folder / "s" / "latency.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 6
    assert "frames per second" in capsys.readouterr().out
    into[1] = str(save_network(folder / "strict.pt", network, presence_threshold=1000.0))
    assert main([*into, str(folder / "s")]) == 0
    assert not same_grid(folder, "s/c_seg.nii.gz").any()
    segment = FrameSegmenter(network)
    assert segment(np.zeros((20, 24))).shape == (20, 24)
    for frame in (np.full((20, 24), 200, np.uint8), np.full((20, 24), np.nan), np.zeros((0, 24)), np.zeros(24)):
        with pytest.raises(ValueError, match=r"images? (must be|holds NaN)"):
            segment(frame)
    weights = str(save_network(folder / "points.pt", network, landmarks=["a", "b"]))
    assert main(["stream", weights, str(folder / "c.nii.gz"), "--output", str(folder / "points")]) == 1
    assert "points.pt is for segmentation by landmarks" in capsys.readouterr().err
    assert not (folder / "points").exists()
    (folder / "cut.nii.gz").write_bytes((folder / "c.nii.gz").read_bytes()[:200])
    assert (
        main(["stream", weights.replace("points", "strict"), str(folder / "cut.nii.gz"), "--output", str(folder / "x")])
        == 1
    )
    told = capsys.readouterr().err
    assert "cut.nii.gz: " in told and "Traceback" not in told


def test_smoothing_weighs_former_frames_and_nothing_else():
    class Echo(torch.nn.Module):
        card: ClassVar = {"task": "segmentation", "network": {"spatial_size": [4, 4], "in_channels": 1}}

        def forward(self, x):
            return torch.cat([torch.zeros_like(x), torch.where(x > 0.5, 10.0, -10.0)], 1)

    dark, bright = np.zeros((4, 4), dtype=np.float32), np.ones((4, 4), dtype=np.float32)
    plain, smooth = FrameSegmenter(Echo()), FrameSegmenter(Echo(), smoothing=0.6)
    assert [plain(f).max() for f in (dark, bright)] == [0, 1]
    assert [smooth(f).max() for f in (dark, bright, bright)] == [0, 0, 1]  # 0.4, then 0.64
    with pytest.raises(ValueError, match="--smoothing"):
        FrameSegmenter(Echo(), smoothing=1.0)
