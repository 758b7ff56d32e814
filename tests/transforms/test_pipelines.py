# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""The ready-made pipelines: contract, labels, JSON, and what they draw."""

from __future__ import annotations

import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset
from monai.transforms import Compose

from monai_usfm.transforms import BeamGeometry, distilled_pipeline, semantics_preserving_pipeline

SIZE = (96, 112)
CONVEX = BeamGeometry("convex", apex=(-25.0, 55.5), radii=(35.0, 115.0), angles=(-0.45, 0.45))
PIPELINES = {"semantics": semantics_preserving_pipeline, "distilled": distilled_pipeline}


def item(size: tuple[int, ...] = SIZE, seed: int = 0) -> dict:
    """A dark disc (the label) in brighter tissue inside a sector; black outside."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(*[torch.arange(n) for n in size[-2:]], indexing="ij")
    label = ((rows - 50) ** 2 + (columns - 55) ** 2 < 15**2).expand(*size)[None].float()
    tissue = 0.55 + 0.1 * torch.rand((1, *size), generator=generator) - 0.4 * label
    fov = CONVEX.mask(size[-2:]).reshape(1, *(1,) * (len(size) - 2), *size[-2:]).expand(1, *size)
    return {"image": torch.where(fov, tissue, 0), "label": label, "fov": fov, "beam": CONVEX}


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("size", [SIZE, (6, *SIZE)])
def test_pipeline_keeps_range_size_and_black_surroundings(name, known, size):
    extra = {"fov_key": "fov", "geometry_key": "beam"} if known else {}
    pipeline = PIPELINES[name](["image"], size, ["label"], **extra).set_random_state(3)
    for seed in range(6):
        data = item(size, seed)
        before = data["image"].clone()
        out = pipeline(data)
        assert torch.equal(data["image"], before) and data["beam"] is CONVEX
        assert out["image"].shape == out["label"].shape == (1, *size)
        assert bool(torch.isfinite(out["image"]).all())
        assert float(out["image"].min()) >= 0 and float(out["image"].max()) <= 1
        assert set(out["label"].unique().tolist()) <= {0.0, 1.0}
        assert set(out) == ({"image", "label", "fov"} if known else {"image", "label", "fov", "beam"})
        if known and bool((out["fov"] == 0).any()):
            assert float(out["image"][out["fov"] == 0].max()) == 0


@pytest.mark.parametrize("name", PIPELINES)
def test_labels_follow_every_change_of_geometry(name):
    # without noise the disc is darker than all tissue around it: its mean inside the moved label must stay lower
    pipeline = PIPELINES[name](["image"], SIZE, ["label"], fov_key="fov", geometry_key="beam").set_random_state(0)
    for seed in range(12):
        out = pipeline(item(seed=seed))
        label, fov = out["label"] > 0, out["fov"] > 0
        core = -torch.nn.functional.max_pool2d(-label.float().as_tensor(), 5, 1, 2) > 0
        ring = torch.nn.functional.max_pool2d(label.float().as_tensor(), 9, 1, 4) > 0
        ring = ring & ~(torch.nn.functional.max_pool2d(label.float().as_tensor(), 5, 1, 2) > 0) & fov.as_tensor()
        if core.sum() < 20 or ring.sum() < 20:
            continue
        assert float(out["image"][core].mean()) < 0.7 * float(out["image"][ring].mean())


@pytest.mark.parametrize("name", PIPELINES)
def test_pipelines_repeat_bitwise_from_a_seed_and_differ_without(name):
    build = PIPELINES[name]
    runs = [build("image", SIZE, geometry_key="beam").set_random_state(s)(item())["image"] for s in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize("name", ["semantics_preserving_pipeline", "distilled_pipeline"])
def test_pipelines_are_built_from_json(name):
    config = {"augment": {"_target_": f"monai_usfm.transforms.{name}", "keys": ["image"], "spatial_size": list(SIZE)}}
    parser = ConfigParser(config)
    pipeline = parser.get_parsed_content("augment")
    assert isinstance(pipeline, Compose)
    assert pipeline({"image": item()["image"]})["image"].shape == (1, *SIZE)


def test_results_can_be_batched_by_a_data_loader():
    pipeline = semantics_preserving_pipeline("image", SIZE, "label", geometry_key="beam")
    data = Dataset([item(seed=s) for s in range(4)], Compose([pipeline]))
    batch = next(iter(DataLoader(data, batch_size=4)))
    assert batch["image"].shape == (4, 1, *SIZE)


def test_semantics_preserving_pipeline_never_crops():
    names = [type(t).__name__ for t in semantics_preserving_pipeline("image", SIZE, geometry_key="beam").transforms]
    assert not any("Crop" in n for n in names)
    assert {"RandProbeTypeChanged", "RandConvexityChanged", "RandDepthZoomd", "RandSpeckleNoised"} <= set(names)
    assert "RandProbeTypeChanged" not in [
        type(t).__name__ for t in semantics_preserving_pipeline("image", SIZE).transforms
    ]
