# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Scripts as a user runs them, on data made here; those with a test file of their own are not here."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from monai_usfm import build_network, load_network, save_network
from monai_usfm.simulation import SyntheticUltrasound, write_synthetic_dataset
from tests.tables import rows

ROOT = Path(__file__).parents[1]


@pytest.fixture
def script(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int | str | None]:
    """Runs a script in this process; what it exits with."""

    def call(name: str, *arguments: object) -> int | str | None:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        try:
            runpy.run_path(str(repository / "scripts" / f"{name}.py"), run_name="__main__")
        except SystemExit as end:
            return end.code
        return 0

    return call


# ablate_pretraining


@pytest.mark.slow
def test_ablation_trains_each_arm_within_its_time_and_probes_it(script, tmp_path):
    rng = np.random.default_rng(0)
    lists: dict[str, list[dict]] = {}
    for split, count in (("training", 24), ("validation", 12)):
        for number in range(count):
            image, mask = rng.integers(0, 60, (32, 32), dtype=np.uint8), np.zeros((32, 32), np.uint8)
            mask[8:24, 8:24] = 255 * (number % 2)
            for name, pixels in ((f"{split}_{number}.png", image | mask), (f"{split}_{number}_mask.png", mask)):
                Image.fromarray(pixels).save(tmp_path / name)
            item = {"image": f"{split}_{number}.png", "label": f"{split}_{number}_mask.png", "class": number % 2}
            lists.setdefault(split, []).append({**item, "patient": f"{split}{number}"})
    datalist = tmp_path / "dataset.json"
    datalist.write_text(json.dumps(lists))
    arguments = ["--datalist", datalist, "--labeled", datalist, "--spatial_size", 32, 32, "--seconds", 0.5]
    assert script("ablate_pretraining", *arguments, "--arms", "reference", "mae", "--output_dir", tmp_path / "out") == 0
    table = {row["arm"]: row for row in rows(tmp_path / "out" / "ablation.csv")}
    assert set(table) == {"reference", "mae", "random"}
    assert all(float(row["linear mean"]) > 0.9 and float(row["dense mean"]) > 0.5 for row in table.values())
    assert rows(tmp_path / "out" / "reference_0" / "metrics.csv")[-1]["epoch"] == "10"


# figures


@pytest.mark.slow
def test_the_recipe_of_the_start_runs_from_the_first_image_to_the_file(script, tmp_path):
    unlabeled = write_synthetic_dataset(tmp_path / "unlabeled", 12, 2, 0, image_size=(96, 96), organs=("breast",))
    teacher = build_network("encoder", network_size="small", spatial_size=[128, 128])
    save_network(tmp_path / "dinov2.pt", teacher)
    sizes = ("--simulated", 34, "--agreement", 0, "--epoch_length", 16, "--batch_size", 8, "--max_epochs", 1)
    out = tmp_path / "it's @out"  # no part of an expression
    arguments = (unlabeled, tmp_path / "dinov2.pt", out, *sizes)
    assert script("train_foundation", *arguments) == 0
    made = {name: load_network(out / name / "model.pt") for name in ("joint", "mean", "foundation")}
    start, joint, mean, final = (
        network.state_dict()
        for network in (load_network(ROOT / "bundles/usfm_pretraining/models/model.pt"), *made.values())
    )
    for name in ("encoder.blocks.0.mlp.fc1.weight", "head.to_pixels.bias"):
        assert torch.equal(mean[name], torch.lerp(start[name], joint[name], 0.5).half().float())  # as files hold them
        assert torch.equal(final[name], mean[name])
    assert script("train_foundation", *arguments) == 0  # all is there: in seconds


def test_figures_of_transforms_begin_with_the_simulated_image(script, repository, tmp_path):
    assert script("figures", "transforms", tmp_path) == 0
    scene = 255 * SyntheticUltrasound(1, image_size=(256, 256), organs="liver", seed=5)[0]["image"][0].numpy()
    for name, columns, lines in (("acquisition", 3, 2), ("artifacts", 3, 2), ("beam", 2, 2), ("annotations", 3, 1)):
        shown = np.asarray(Image.open(tmp_path / f"{name}.png").convert("L"), np.float32)
        assert shown.shape == (lines * 278 - 4, columns * 260 - 4)
        if name in ("acquisition", "artifacts"):
            # the palette has 96 grays, and Pillow looks its colors up in cells of several
            assert abs(shown[18:274, :256] - scene).max() <= 2 * 255 / 95
            others = [shown[18:274, left : left + 256] for left in (260, 520)]
            assert all(abs(other - scene).mean() > 0.05 for other in others)


SLOW_FIGURE = pytest.param("segmentation", marks=pytest.mark.slow)


@pytest.mark.parametrize("figure", ["pretraining", SLOW_FIGURE, "simulated", "classification", "enhancement"])
def test_figures_of_bundles_hold_test_images_at_equal_distances(script, repository, copy_bundle, tmp_path, figure):
    bundle, stem = ("segmentation", "simulated") if figure == "simulated" else (figure, "example")
    root = copy_bundle(f"usfm_{bundle}").parent
    if figure == "simulated":
        weights = Path("usfm_pretraining", "models", "model.pt")
        (root / weights).parent.mkdir(parents=True)
        for file in (weights, weights.with_suffix(".json")):
            shutil.copy(repository / "bundles" / file, root / file)
    (example := root / f"usfm_{bundle}" / "docs" / f"{stem}.png").unlink()
    grays = {}
    for number, name in enumerate(("busbra", "fetal_head_hc18")):
        (tmp_path / name).mkdir()
        items = []
        for i in range(8):
            gray = grays[name, i] = 40 + 20 * i + 7 * number
            Image.fromarray(np.full((160, 190), gray, np.uint8)).save(tmp_path / name / f"{name}_{i}.png")
            Image.fromarray(np.zeros((160, 190), np.uint8)).save(tmp_path / name / f"{name}_{i}_mask.png")
            items.append({"image": f"{name}_{i}.png", "label": f"{name}_{i}_mask.png", "class": i % 2})
        (tmp_path / name / "dataset.json").write_text(json.dumps({"test": items}))
    torch.manual_seed(0)
    assert script("figures", "bundles", tmp_path, "--figures", figure, "--root", root, "--count", 2) == 0
    assert example.stat().st_size <= 150_000
    shown = set(np.unique(np.asarray(Image.open(example).convert("L"))).tolist())
    # of two, the images at a quarter and three quarters; of those of class 0 (0, 2, 4, 6) and class 1 in turn
    second = "fetal_head_hc18" if figure in ("pretraining", "simulated", "enhancement") else "busbra"
    wanted = {grays["busbra", 2], grays[second, 7]}
    assert all(min(abs(gray - value) for value in shown) <= 3 for gray in wanted)
