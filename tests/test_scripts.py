# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Scripts as a user runs them, on data made here; those with a test file of their own are not here."""

from __future__ import annotations

import csv
import json
import re
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter


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


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


# score_regions


def test_a_blur_is_found_to_be_a_blur_and_contrast_is_that_of_the_pixels(script, tmp_path, capsys):
    y, x = np.mgrid[:80, :90]
    values = 0.5 + 0.09 * np.random.default_rng(0).normal(size=y.shape)
    values[(y - 25) ** 2 + (x - 30) ** 2 < 200] -= 0.3
    values = values.clip(0, 1)
    for name, shown in (("image", values), ("blurred", gaussian_filter(values, 1.5, mode="nearest"))):
        Image.fromarray((65535 * shown).astype(np.uint16)).save(tmp_path / f"{name}.png")
    files = ["--image", tmp_path / "image.png", "--enhanced", tmp_path / "blurred.png"]
    assert script("score_regions", *files, "--cyst", "25,30,8", "--background", "55,60,12") == 0
    _, _, before, after, blur = (cells(line) for line in capsys.readouterr().out.strip().splitlines())
    # MONAI integrates the Gaussian over a pixel, which adds 1/12 to its variance
    assert float(re.search(r"sigma (\S+)", blur[0])[1]) == pytest.approx((1.5**2 - 1 / 12) ** 0.5, abs=0.01)
    assert [float(v) for v in blur[1:]] == pytest.approx([float(v) for v in after[1:]], rel=0.02)
    inside, outside = values[(y - 25) ** 2 + (x - 30) ** 2 <= 64], values[(y - 55) ** 2 + (x - 60) ** 2 <= 144]
    wanted = abs(inside.mean() - outside.mean()) / np.hypot(inside.std(), outside.std())
    assert float(before[1]) == pytest.approx(wanted, abs=0.002)
    assert float(after[1]) > 2 * float(before[1])


def test_regions_outside_the_image_and_other_sizes_are_refused(script, tmp_path, capsys):
    for name, size in (("a", (40, 40)), ("b", (40, 41))):
        Image.fromarray(np.full(size, 90, np.uint8)).save(tmp_path / f"{name}.png")
    files = ["--image", tmp_path / "a.png", "--enhanced"]
    regions = ["--background", "10,10,5", "--cyst"]
    assert "30,38,5 is not inside the image of 40 x 40" in script(
        "score_regions", *files, tmp_path / "a.png", *regions, "30,38,5"
    )
    assert script("score_regions", *files, tmp_path / "b.png", *regions, "20,20,5") == 2
    assert "is (40, 40)" in capsys.readouterr().err
    assert script("score_regions", *files, tmp_path / "a.png", *regions, "20,20") == 2
    assert "'20,20' is not ROW,COLUMN,RADIUS" in capsys.readouterr().err


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
    trained = json.loads((tmp_path / "out" / "reference_0" / "metrics.json").read_text())
    assert trained[-1]["epoch"] == 10


# figures


def test_figure_of_beams_shows_phantoms_inside_their_sector_only(script, repository, tmp_path):
    assert script("figure_beam", tmp_path) == 0
    for name in ("beam", "annotations"):
        assert np.asarray(Image.open(tmp_path / f"{name}.png").convert("L")).std() > 20
    module = runpy.run_path(str(repository / "scripts" / "figure_beam.py"))
    image = module["phantom"](module["GEOMETRIES"]["convex"], seed=1)[0].numpy()
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    radius, angle = np.hypot(y + 60, x - 170), np.arctan2(x - 170, y + 60)
    away = (radius < 73) | (radius > 312) | (abs(angle) > 0.57)
    assert image[away].max() == 0
    assert image[(radius > 80) & (radius < 300) & (abs(angle) < 0.5)].mean() > 0.3


def test_figures_of_transforms_begin_with_the_scene_itself(script, repository, tmp_path):
    assert script("figure_transforms", tmp_path) == 0
    module = runpy.run_path(str(repository / "scripts" / "figure_transforms.py"))
    scale = module["SCALE"]
    geometry = module["BeamGeometry"]("convex", (-78 * scale, 159.5 * scale), (92 * scale, 362 * scale), (-0.47, 0.47))
    scene = 255 * module["simulate"](geometry)[0][0].numpy()
    height, width = module["SIZE"]
    for name, columns, lines in (
        ("acquisition", 3, 2),
        ("artifacts", 3, 2),
        ("postprocessing", 4, 2),
        ("pipelines", 4, 2),
    ):
        shown = np.asarray(Image.open(tmp_path / f"{name}.png").convert("L"), np.float32)
        assert shown.shape == (lines * (height + 18), columns * width)
        tiles = shown.reshape(lines, height + 18, columns, width).swapaxes(1, 2)[:, :, 18:]
        if name != "pipelines":
            assert abs(tiles[0, 0] - scene).max() <= 255 / 60 + 1
            assert all(abs(tile - scene).mean() > 0.05 for tile in tiles.reshape(-1, height, width)[1:])
    assert (tmp_path / "probe.png").is_file()


SLOW_FIGURE = pytest.param("segmentation", marks=pytest.mark.slow)


@pytest.mark.parametrize("figure", ["pretraining", SLOW_FIGURE, "simulated", "classification", "enhancement"])
def test_figures_of_bundles_hold_test_images_at_equal_distances(script, repository, copy_bundle, tmp_path, figure):
    bundle, stem = ("segmentation", "simulated") if figure == "simulated" else (figure, "example")
    root = copy_bundle(f"usfm_{bundle}").parent
    if figure in ("simulated", "pretraining"):
        weights = Path(f"usfm_{bundle}", "models", "foundation.pt" if figure == "simulated" else "mae.pt")
        shutil.copy(repository / "bundles" / weights, root / weights)
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
    assert script("figure_bundles", tmp_path, "--figures", figure, "--root", root, "--count", 2) == 0
    assert example.stat().st_size <= 150_000
    shown = set(np.unique(np.asarray(Image.open(example).convert("L"))).tolist())
    # of two, the images at a quarter and three quarters; of those of class 0 (0, 2, 4, 6) and class 1 in turn
    second = "fetal_head_hc18" if figure in ("pretraining", "simulated", "enhancement") else "busbra"
    wanted = {grays["busbra", 2], grays[second, 7]}
    assert all(min(abs(gray - value) for value in shown) <= 3 for gray in wanted)
