# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""``scripts/ablate_pretraining.py``: equal time, finished runs are kept, differences are held against the noise."""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.bundle import ConfigParser
from PIL import Image
from scipy import stats

from monai_usfm.bundle import check_names

SCRIPT = Path(__file__).parents[1] / "scripts" / "ablate_pretraining.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ablate_pretraining", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its data classes look themselves up there
    spec.loader.exec_module(module)
    return module


ablation = load()


@settings(max_examples=25, deadline=None)
@given(st.floats(1, 1000), st.floats(0.01, 2))
def test_the_epochs_end_when_the_time_is_over_but_for_half_a_step_each(seconds, per_step):
    steps = ablation.epoch_steps(seconds, per_step)
    spent = steps * ablation.EPOCHS * per_step
    assert steps == 1 or abs(spent - seconds) <= ablation.EPOCHS * per_step / 2 + 1e-9


@pytest.mark.parametrize("name", ablation.ARMS)
def test_an_arm_changes_keys_that_the_bundle_has(name):
    arm = ablation.ARMS[name]
    parser = ConfigParser()
    parser.read_config(ablation.BUNDLE / "configs" / "train.json")
    for key in arm.changes:
        assert key in parser or key.rpartition("#")[0] in parser
    parser.update(arm.changes)
    check_names(parser.config)


def test_an_arm_differs_from_the_reference_and_from_the_others():
    described = [json.dumps({**arm.describe(), "group": "", "value": ""}) for arm in ablation.ARMS.values()]
    assert len(set(described)) == len(described)
    assert ablation.ARMS[ablation.REFERENCE].changes == {}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    items = []
    for number in range(8):
        Image.fromarray(rng.integers(0, 256, (60, 70), dtype=np.uint8)).save(tmp_path / f"{number}.png")
        items.append({"image": f"{number}.png", "organ": "breast" if number % 2 else "liver"})
    (tmp_path / "list.json").write_text(json.dumps({"training": items}))
    return tmp_path


def arguments(folder: Path, **changes) -> argparse.Namespace:
    found = {
        "dataset_dir": folder,
        "datalist": folder / "list.json",
        "output": folder / "out",
        "size": (32, 32),
        "batch_size": 2,
        "learning_rate": 1e-3,
        "seconds": 1.0,
        "device": "cpu",
        "network": "mini",
    }
    return argparse.Namespace(**{**found, **changes})


@pytest.mark.parametrize("name", ["reference", "monai", "augmentation_ultrasound"])
def test_an_arm_trains_by_the_bundle_to_the_end_of_its_schedule(images, name):
    args = arguments(images)
    flow, details = ablation.train(ablation.ARMS[name], 0, args, images / "run")
    with (images / "run" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == ablation.EPOCHS
    rates = [float(row["learning_rate"]) for row in rows]
    assert max(rates) > 5e-4 and rates[-1] < 1e-4
    assert details["samples"] == int(rows[-1]["iteration"]) * args.batch_size
    assert 0 < details["seconds"] < 60
    exported = torch.load(images / "run" / "model.pt", weights_only=True)
    network = flow.parser.get_parsed_content("network_def")
    trained = {name: value for name, value in network.state_dict().items() if name in exported}
    halves = {name: value.half() if value.is_floating_point() else value for name, value in trained.items()}
    assert trained and all(torch.equal(value, exported[name]) for name, value in halves.items())


def test_simulated_images_join_the_real_ones(images):
    joined = ablation.joined_list(images / "list.json", images / "simulated", 3, (32, 32))
    content = json.loads(joined.read_text())["training"]
    assert len(content) == 8 + 3
    assert all(Path(images, item["image"]).is_file() and item["organ"] for item in content)


def test_the_tokens_of_monais_network_are_those_of_its_patches():
    torch.manual_seed(0)
    encoder, decoder = ablation.ENCODERS["mini"], ablation.DECODERS["mini"]
    network = ablation.MonaiMAE((32, 48), **{**encoder, "num_layers": 1}, **decoder).eval()
    image = torch.rand(2, 1, 32, 48)
    changed = image.clone()
    changed[:, :, 16:, 32:] = 0  # the last patch
    with torch.no_grad():
        before, after = (network.net.patch_embedding(x) for x in (image, changed))
        tokens = network.forward_features(image)
    assert tokens.shape == (2, 1 + 6, encoder["hidden_size"])
    assert (before != after).any(-1).all(0).nonzero().flatten().tolist() == [5]


def run(arm: str, seed: int, **scores: float) -> dict:
    return {"arm": arm, "seed": seed, "scores": scores}


@pytest.mark.parametrize("shift", [0.0, 0.02, 0.05, 0.2])
def test_beyond_the_noise_is_what_students_test_says(shift):
    rng = np.random.default_rng(3)
    reference, arm = 0.5 + 0.02 * rng.standard_normal(3), 0.5 + shift + 0.02 * rng.standard_normal(2)
    runs = [run("reference", i, dice=value) for i, value in enumerate(reference)]
    runs += [run("sparse", i, dice=value) for i, value in enumerate(arm)]
    row = next(row for row in ablation.summarise(runs) if row["arm"] == "sparse")
    expected = stats.ttest_ind(arm, reference)
    assert row["beyond_noise"] == (expected.pvalue < 0.05)
    assert row["difference"] == pytest.approx(arm.mean() - reference.mean())


def test_a_single_run_is_held_against_the_noise_of_the_repeated_ones():
    repeated = [run("reference", i, dice=v) for i, v in enumerate((0.50, 0.52, 0.54))]
    repeated += [run("sparse", i, dice=v) for i, v in enumerate((0.60, 0.61))]
    deviation, freedom = ablation.pooled_noise([*repeated, run("fill_mean", 0, dice=0.9)], "dice")
    assert freedom == 3
    assert deviation**2 == pytest.approx((0.02**2 + 0.02**2 + 0.005**2 + 0.005**2) / 3)
    # 3.182 is the quantile of Student's t with three degrees of freedom
    edge = 0.52 + 3.1824463 * deviation * (1 + 1 / 3) ** 0.5
    for value, beyond in ((edge - 1e-4, False), (edge + 1e-4, True)):
        rows = ablation.summarise([*repeated, run("fill_mean", 0, dice=value)])
        assert next(row for row in rows if row["arm"] == "fill_mean")["beyond_noise"] is beyond


def test_without_repetition_nothing_is_called_a_difference():
    rows = ablation.summarise([run("reference", 0, dice=0.5), run("sparse", 0, dice=0.9)])
    assert not any(row.get("beyond_noise") for row in rows)


@pytest.mark.parametrize(
    ("differences", "expected"),
    [((1, 1, 0), "better"), ((-1, -1, 0), "worse"), ((1, -1, 0), "mixed"), ((1, 0, 0), "noise"), ((0, 0, 0), "noise")],
)
def test_a_verdict_needs_two_judges_and_no_contrary_one(differences, expected):
    assert ablation.verdict([{"difference": d, "beyond_noise": d != 0} for d in differences]) == expected


def test_finished_runs_are_kept_and_other_settings_refused(images, monkeypatch, capsys):
    done: list[tuple[str, int]] = []

    def run_arm(arm, seed, *_):
        done.append((arm.value, seed))
        details = {"steps": 1, "samples": 2, "seconds": 1.0}
        return {"scores": {"dice": 0.5 + 0.01 * seed}, "details": details}

    monkeypatch.setattr(ablation, "run_arm", run_arm)
    monkeypatch.setattr(ablation, "load_judges", lambda args: None)
    command = ["ablate_pretraining.py", "--dataset_dir", str(images), "--datalist", str(images / "list.json")]
    command += ["--labelled", str(images / "list.json"), "--output", str(images / "out"), "--seeds", "2"]

    def call(*more: str) -> None:
        monkeypatch.setattr(sys, "argv", [*command, *more])
        ablation.main()

    call("--arms", "reference", "rings_4")
    assert done == [("train.json as it is", 0), ("train.json as it is", 1), ("4 rings", 0), ("4 rings", 1)]
    table = (images / "out" / "ablation.md").read_text()
    assert "| band-stop | 4 rings | 2 |" in table and "| reference | train.json as it is | 2 |" in table
    call("--arms", "reference", "fill_mean")
    assert done[4:] == [("mean", 0), ("mean", 1)]
    assert (images / "out" / "ablation.png").is_file()
    with pytest.raises(SystemExit):
        call("--arms", "reference", "--seconds", "7")
    assert "made with other settings" in capsys.readouterr().err
