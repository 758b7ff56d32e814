# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks measure: ways to find a circumference, and phantoms, each against a case made by hand."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from monai.bundle import ConfigParser

from monai_usfm.data import write_synthetic_dataset

ROOT = Path(__file__).parents[1]


def script(name):
    if str(ROOT / "benchmarks") not in sys.path:
        sys.path.append(str(ROOT / "benchmarks"))  # where a script finds its neighbors
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_three_ways_measure_the_circumference(tmp_path, monkeypatch):
    source = write_synthetic_dataset(tmp_path / "data", 4, 2, 2, image_size=(64, 64), organs=("fetal_head",))
    lists = json.loads(source.read_text())
    items = [item for split in ("training", "validation", "test") for item in lists[split]]
    lines = [f"{item['image']},{number},0.5,{60 + number}" for number, item in enumerate(items)]
    (source.parent / "labels.csv").write_text(
        "\n".join(["image,subject_id,pixel_size_mm,head_circumference_mm", *lines])
    )
    source.rename(source.with_name("dataset.json"))
    options = ["--steps", "2", "--batch_size", "2", "--spatial_size", "32", "32"]
    start = ["--pretrained", str(ROOT / "bundles/usfm_pretraining/models/model.pt")]
    monkeypatch.setattr(sys, "argv", ["x", str(source.parent), str(tmp_path / "out"), *options, *start])
    module = script("circumference")
    module.main()
    table = pd.read_csv(tmp_path / "out" / "circumference.csv")
    assert table["method"].tolist() == list(module.METHODS) and (table["images"] == 2).all()
    known = {item["image"]: {"size": 0.5, "length": 0.0} for item in items}
    rows = [f"i.png,{name},{x},{y}" for name, x, y in zip(module.POINTS, (0, 20, 10, 10), (5, 5, 0, 10), strict=True)]
    (tmp_path / "cases.csv").write_text("\n".join(["image,name,x,y", *rows]))
    known["i.png"] = {"size": 0.5, "length": 0.0}
    found = module.measured("landmarks", tmp_path, known)["i.png"]
    assert found == pytest.approx(24.2, abs=0.1)  # an ellipse of semi-axes 5 and 2.5 mm


def test_a_wire_is_as_wide_as_it_was_made_and_a_blur_is_found(monkeypatch):
    module = script("phantoms")
    rows, columns = np.ogrid[:120, :160]
    speckle = 0.3 + 0.05 * np.random.default_rng(0).standard_normal((120, 160))
    inside = (rows - 40) ** 2 + (columns - 40) ** 2 <= 20**2
    wire = 0.6 * np.exp(-((rows - 90) ** 2) / (2 * 2.0**2) - (columns - 80) ** 2 / (2 * 4.0**2))
    image = np.where(inside, speckle - 0.2, speckle)
    image[76:105, 58:103] = (0.1 + wire)[76:105, 58:103]
    monkeypatch.setattr(module, "REGIONS", {"x": ((40, 40, 15), (40, 100, 15), (90, 80))})
    contrast, separable, _, along_rows, along_columns = module.measured(image, "x")
    assert contrast == pytest.approx(0.2 / (0.05 * 2**0.5), rel=0.1) and separable > 0.9
    assert (along_rows, along_columns) == pytest.approx((2.355 * 2, 2.355 * 4), rel=0.02)
    wanted = module.measured(module.gaussian_filter(image, 1.5), "x")[2]
    assert module.like_blur(image, "x", wanted)[0] == "blur, sigma 1.50"


def test_what_is_restored_is_scored_where_it_was_hidden_and_everywhere():
    clean = np.zeros((4, 4))
    hidden = np.zeros((4, 4), bool)
    hidden[:2] = True
    image = np.where(hidden, 0.1, 0.01)
    assert script("restoration").psnr(image, clean, hidden) == pytest.approx((20.0, -10 * np.log10(0.00505)))


def test_two_evaluations_are_compared_image_by_image(tmp_path, monkeypatch, capsys):
    scores = {"a": [0.9, 0.8, 0.4], "b": [0.8, 0.8, 0.9]}
    for name, dice in scores.items():
        (tmp_path / name / "evaluation").mkdir(parents=True)
        table = pd.DataFrame({"image": ["1.png", "2.png", "3.png"], "patient": ["x", "x", "y"], "dice": dice})
        table["hd95"] = [1.0, np.nan if name == "a" else 2.0, 3.0]
        table = pd.concat([table, table]) if name == "a" else table[::-1]  # two classes of each
        table.to_csv(tmp_path / name / "evaluation" / "cases.csv", index=False)
    monkeypatch.setattr(sys, "argv", ["x", str(tmp_path / "a"), str(tmp_path / "b")])
    script("paired").main()
    text = capsys.readouterr().out
    assert "mean 0.7000 and 0.8333, median 0.8000 and 0.8000, below 0.5 in 1 and 0 of 3" in text
    assert "first minus second -0.1333 [-0.5000, 0.0500]" in text  # all of y, all of x
    assert "over 2 patients; larger in 1, smaller in 1" in text
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--metric", "hd95"])
    script("paired").main()
    text = capsys.readouterr().out
    assert "of 2, 1 left out\nfirst minus second +0.0000" in text and "nan" not in text
    monkeypatch.setattr(sys, "argv", [*sys.argv[:-1], "hd"])
    with pytest.raises(SystemExit):
        script("paired").main()
    assert "--metric hd: there is no such column" in capsys.readouterr().err


def test_parts_without_a_lesion_lie_beside_its_box():
    image, label = torch.arange(200.0).reshape(1, 10, 20), torch.zeros(10, 20)
    label[4:6, 8:10] = 1
    found = script("presence").free_parts(image, label)
    assert [tuple(part.shape[1:]) for part in found] == [(4, 20), (4, 20), (10, 8), (10, 10)]
    label[1:8, 2:18] = 1  # leaves less than 0.3 of a side everywhere
    assert script("presence").free_parts(image, label) == []


def test_a_table_of_transforms_tells_one_round_and_the_quartiles_of_several():
    module = script("transforms")
    assert module.table({"ours": [0.002], "peer": [0.004]}).splitlines()[-1] == "| peer | 4 | 2 |"
    found = module.table({"ours": [1.0] * 5, "peer": [1.0, 2.0, 3.0, 4.0, 5.0]}).splitlines()[-1]
    assert found == "| peer | 3e+03 | 3 (2 to 4) |"


def test_a_joint_step_has_the_parts_of_the_recipe():
    module = script("pretraining")
    torch.manual_seed(0)
    image, found = torch.rand(10, 1, 64, 64), {}
    for teachers in (2, 0):
        network = module.Joint("tiny", 32, teachers)
        network.net.register_forward_hook(lambda _, __, parts: found.update(parts))
        network(image).backward()
        parts = {
            "segmentation",
            *(("distillation", "texture") if teachers else ("restoration", "restored", "corrupted")),
        }
        assert found.keys() == {"loss", *parts} and bool(found["loss"].isfinite())
        frozen = network.net.encoder.patch_embed.proj.weight.grad is None
        assert frozen == (not teachers)
        found.clear()


def test_a_unet_starts_from_weights_in_any_folder(tmp_path):
    folder = tmp_path / 'it\'s "@home" 100%'
    folder.mkdir()
    made = script("board")
    plain = ConfigParser(made.unet(2)).get_parsed_content("network_def")
    torch.save(plain.state_dict(), folder / "unet.pt")
    parser = ConfigParser({"imports": ["$import torch", "$import monai"], **made.unet(2, folder / "unet.pt")})
    found = parser.get_parsed_content("network_def").state_dict()
    assert all(torch.equal(found[name], value) for name, value in plain.state_dict().items())
