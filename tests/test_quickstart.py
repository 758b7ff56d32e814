# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""The quickstart: its scripts parse, its image choice is right, its report tells what was measured."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


def load(name):
    sys.path.insert(0, str(SCRIPTS))
    try:
        spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(SCRIPTS))
    return module


@pytest.fixture(scope="module")
def report():
    return load("quickstart_report")


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def finished_run(folder, pretrained, scratch, simulated=True):
    """What scripts/quickstart.sh leaves behind, with the Dice values of the two runs as given."""
    folder.mkdir(parents=True)
    plan = {"simulated_pretraining": simulated, "simulated_segmentation": simulated, "num_classes": 2}
    plan["notes"] = ["A note with <angle> brackets."]
    (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    (folder / "timings.csv").write_text("Preparing, at length,12\nPretraining,30\n", encoding="utf-8")
    write_rows(
        folder / "pretraining/metrics.csv", [{"epoch": i, "train_loss": 1 / i, "val_loss": ""} for i in (1, 2, 3)]
    )
    settings = {"training_items": 31}
    (folder / "pretraining/run.json").write_text(
        json.dumps({"options": settings, "versions": {"torch": "9.8.7"}, "platform": "some machine"}), encoding="utf-8"
    )
    Image.fromarray(np.zeros((20, 40), np.uint8)).save(
        _made(folder / "pretraining/pictures/reconstruction_epoch_0003.png")
    )
    disc = np.hypot(*np.mgrid[-20:20, -25:25]) < 10
    Image.fromarray(np.full(disc.shape, 100, np.uint8)).save(_made(folder / "cases/images/case_1.png"))
    Image.fromarray(disc.astype(np.uint8)).save(_made(folder / "cases/labels/case_1.png"))
    for name, dice in {"pretrained": pretrained, "scratch": scratch}.items():
        run = folder / f"segmentation_{name}"
        write_rows(run / "metrics.csv", [{"epoch": i, "train_loss": 1 / i, "val_mean_dice": i / 4} for i in (1, 2, 3)])
        write_rows(run / "evaluation/cases.csv", [{"image": i, "class": 1, "dice": d} for i, d in enumerate(dice)])
        (run / "run.json").write_text(json.dumps({"options": {"training_items": 7}}), encoding="utf-8")
        empty = name == "scratch"
        Image.fromarray((disc & ~np.bool_(empty)).astype(np.uint8)).save(_made(run / "predictions/case_1_seg.png"))
    return folder


def _made(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture(scope="module")
def finished(report, tmp_path_factory):
    folder = finished_run(tmp_path_factory.mktemp("quick start") / "out", [0.8, 0.7, 0.9, 0.6], [0.5, 0.5, 0.4, 0.5])
    assert report.main([str(folder)]) == 0
    return folder


@pytest.mark.parametrize("name", ["quickstart.sh", "environment.sh", "test.sh", "../.ci/run"])
def test_shell_scripts_parse(name):
    subprocess.run(["bash", "-n", SCRIPTS / name], check=True)


def test_ci_runs_the_test_script_and_may_be_executed():
    run = SCRIPTS.parent / ".ci" / "run"
    assert os.access(run, os.X_OK)
    assert run.read_text(encoding="utf-8").count("scripts/test.sh") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dat", "x"], "unknown argument: --dat"),
        (["--data"], "--data needs a folder"),
        (["--data", "no such folder"], "there is no folder"),
        (["--output", "used"], "not from a former quickstart"),
    ],
)
def test_wrong_arguments_stop_before_anything_is_installed(tmp_path, arguments, message):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.txt").write_text("mine", encoding="utf-8")
    done = subprocess.run(
        ["bash", SCRIPTS / "quickstart.sh", *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=30
    )
    assert done.returncode != 0
    assert message in done.stderr
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["thesis.txt", "used"]


def test_an_environment_with_a_matching_stamp_is_used_without_installing(tmp_path):
    root, venv = tmp_path / "a copy", tmp_path / "some venv"
    (root / "scripts").mkdir(parents=True)
    shutil.copy(SCRIPTS / "environment.sh", root / "scripts")
    for name in ("requirements.txt", "constraints.txt", "pyproject.toml"):
        shutil.copy(SCRIPTS.parent / name, root)
    (venv / "bin").mkdir(parents=True)
    (venv / "pyvenv.cfg").touch()
    python = venv / "bin" / "python"
    python.write_text(
        f'#!/bin/sh\n[ "$1" = -m ] && {{ echo "$*" >>"{tmp_path}/calls"; exit; }}\nexec "{sys.executable}" -S "$@"\n'
    )
    python.chmod(0o755)
    command = 'source "$1/scripts/environment.sh"; prepare_environment "$2" test; echo "$PYTHON"'

    def prepare():
        done = subprocess.run(
            ["bash", "-euc", command, "-", root, venv], capture_output=True, text=True, check=True, timeout=60
        )
        calls = tmp_path / "calls"
        found = calls.read_text(encoding="utf-8").splitlines() if calls.exists() else []
        calls.unlink(missing_ok=True)
        return done.stdout.splitlines()[-1], found

    pin = re.search(r"^torch==\S+", (root / "requirements.txt").read_text(encoding="utf-8"), re.MULTILINE).group()
    used, first = prepare()
    assert used == str(python)
    assert first == [
        f"-m pip install {pin}",
        f"-m pip install -c {root}/constraints.txt -e {root}",
        f"-m pip install -c {root}/constraints.txt -e {root}[test]",
    ]
    assert prepare()[1] == []
    with open(root / "requirements.txt", "a", encoding="utf-8") as stream:
        stream.write("# changed\n")
    assert prepare()[1] == first


def test_a_failed_step_names_its_log_and_shows_its_end(tmp_path):
    command = (
        'source "$1/environment.sh"; run_logged "$2/the step.log" "Doing it" bash -c "echo because; exit 3"; echo on'
    )
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command, "-", SCRIPTS, tmp_path], capture_output=True, text=True, timeout=30
    )
    assert done.returncode != 0
    assert f"Read {tmp_path}/the step.log" in done.stderr
    assert "because" in done.stderr
    assert "on\n" not in done.stdout.replace("Doing", "")


def test_html_report_needs_no_other_file(finished):
    page = (finished / "report.html").read_text(encoding="utf-8")
    sources = re.findall(r'src="([^"]{30})', page)
    assert len(sources) == 4
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "href" not in page


class Elements(HTMLParser):
    """The tree of a page: what each element is in, and which tags are closed out of order or never."""

    VOID = frozenset({"meta", "img", "br", "link"})

    def __init__(self):
        super().__init__()
        self.open, self.inside, self.faults = [], set(), []

    def handle_starttag(self, tag, attrs):
        self.inside.add((self.open[-1] if self.open else None, tag))
        names = [name for name, _ in attrs]
        self.faults += [f"attribute of {tag}" for name in set(names) if names.count(name) > 1]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}>")


def test_html_report_is_valid(finished):
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    elements = Elements()
    elements.feed(page)
    elements.close()
    assert elements.faults == [] and elements.open == []
    allowed = {"html": {"head", "body"}, "head": {"meta", "title", "style"}, "figure": {"img", "figcaption"}}
    allowed |= {"body": {"h1", "h2", "p", "table", "figure"}, "table": {"tr"}, "tr": {"th", "td"}, None: {"html"}}
    assert all(tag in allowed.get(parent, ()) for parent, tag in elements.inside)
    assert re.findall(r"<img (?!alt=)", page) == []


@pytest.mark.parametrize(
    ("simulated", "words"),
    [(True, "the same 7 labelled simulated images in"), (False, "the same 7 of your labelled images in")],
)
def test_report_counts_images_in_english(report, tmp_path, simulated, words):
    folder = finished_run(tmp_path / "out", [0.8, 0.7], [0.5, 0.5], simulated)
    assert report.main([str(folder)]) == 0
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert words in text
    assert ("on 31 simulated images without labels" if simulated else "on 31 of your images without labels") in text


def test_report_states_the_means_that_were_measured(finished):
    text = (finished / "report.md").read_text(encoding="utf-8")
    assert "0.750 with pretraining" in text
    assert "0.475 from scratch" in text
    assert "difference +0.275" in text


def test_report_escapes_what_is_not_its_own(finished):
    assert "&lt;angle&gt;" in (finished / "report.html").read_text(encoding="utf-8")


def test_report_sums_the_times_although_messages_hold_commas(finished):
    text = (finished / "report.md").read_text(encoding="utf-8")
    assert "| Preparing, at length | 12 |" in text
    assert "| all before the report | 42 |" in text


def test_report_names_the_versions_of_the_run(finished):
    assert "| torch | 9.8.7 |" in (finished / "report.md").read_text(encoding="utf-8")


def test_every_score_and_picture_of_a_simulated_run_is_called_simulated(finished):
    text = (finished / "report.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if "Dice" in line or line.startswith("![")]
    lines = [line for line in lines if "mean" in line.lower() or line.startswith("![")]
    assert len(lines) >= 6
    assert all("simulated images" in line for line in lines)


def test_predictions_of_the_two_runs_are_told_apart_in_the_picture(finished):
    picture = np.asarray(Image.open(finished / "report_pictures" / "cases.png").convert("RGB")).astype(int)
    coloured = np.abs(picture[..., 0] - picture[..., 1]) > 20
    columns = [coloured[16:, 4 + 204 * i : 204 * (i + 1)].sum() for i in range(4)]
    assert columns[0] == 0 and columns[3] == 0
    assert columns[1] == columns[2] > 1000


def test_effect_is_the_paired_mean_difference_with_its_normal_interval(report):
    pairs = np.random.default_rng(1).normal([0.7, 0.6], [0.1, 0.1], (400, 2))
    effect = report.paired_effect(pairs)
    difference = pairs[:, 0] - pairs[:, 1]
    half = 1.96 * difference.std(ddof=1) / 20
    assert effect["difference"] == pytest.approx(difference.mean())
    assert effect["low"] == pytest.approx(difference.mean() - half, abs=0.1 * half)
    assert effect["high"] == pytest.approx(difference.mean() + half, abs=0.1 * half)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.01, 0.1, "In this run pretraining helped."),
        (-0.01, 0.1, "No gain"),
        (-0.1, -0.01, "In this run pretraining did harm."),
    ],
)
def test_verdict_claims_no_more_than_the_interval(report, low, high, verdict):
    effect = {"pretrained": 0.6, "scratch": 0.5, "difference": (low + high) / 2, "low": low, "high": high}
    assert report.describe(effect, "simulated images").startswith(verdict)


def test_networks_that_learnt_nothing_are_not_compared(report):
    effect = {"pretrained": 0.03, "scratch": 0.02, "difference": 0.01, "low": 0.005, "high": 0.015}
    assert report.describe(effect, "simulated images").startswith("Neither")


def test_scores_are_paired_by_image_whatever_their_order(report, tmp_path):
    write_rows(
        tmp_path / "cases.csv", [{"image": n, "class": 1, "dice": d} for n, d in (("b", 0.2), ("a", 0.4), ("b", 0.6))]
    )
    assert report.dice_of_images(tmp_path / "cases.csv") == pytest.approx({"a": 0.4, "b": 0.4})


def test_an_unfinished_run_is_refused_by_the_name_of_the_missing_file(report, tmp_path):
    finished_run(tmp_path / "out", [0.5], [0.5])
    (tmp_path / "out" / "timings.csv").unlink()
    with pytest.raises(SystemExit, match=r"timings\.csv missing"):
        report.main([str(tmp_path / "out")])


# ------------------------------------------------------------------ choice of the images


@pytest.fixture(scope="module")
def data():
    return load("quickstart_data")


def write_user_images(folder, number, label=None):
    generator = np.random.default_rng(0)
    for i in range(number):
        pixels = generator.integers(0, 255, (40, 50), np.uint8)
        Image.fromarray(pixels).save(_made(folder / "images" / f"p{i:03d}.png"))
        if label is not None:
            mask = np.where(np.hypot(*np.mgrid[-20:20, -25:25]) < 8 + i % 5, label, 0).astype(np.uint8)
            Image.fromarray(mask).save(_made(folder / "masks" / f"p{i:03d}.png"))
    return folder


def plan_for(data, folder, output):
    data.main(["--data", str(folder), "--output", str(output), "--images", "3,2,2"])
    return json.loads((output / "plan.json").read_text(encoding="utf-8"))


def test_labelled_images_of_the_user_serve_both_trainings(data, tmp_path):
    plan = plan_for(data, write_user_images(tmp_path / "mine", 40, label=7), tmp_path / "out put")
    assert not plan["simulated_pretraining"] and not plan["simulated_segmentation"]
    assert plan["label_values"] == [0, 7] and plan["num_classes"] == 2
    image = np.asarray(Image.open(tmp_path / "out put" / "cases" / "images" / "case_1.png"))
    label = np.asarray(Image.open(tmp_path / "out put" / "cases" / "labels" / "case_1.png"))
    assert image.shape == label.shape == (40, 50)
    assert set(np.unique(label)) == {0, 1}
    originals = {
        hashlib.sha256(np.asarray(Image.open(path)).tobytes()).digest() for path in (tmp_path / "mine/images").iterdir()
    }
    assert hashlib.sha256(image.tobytes()).digest() in originals


def test_without_labels_only_the_pretraining_is_on_the_images_of_the_user(data, tmp_path):
    plan = plan_for(data, write_user_images(tmp_path / "mine", 12), tmp_path / "out")
    assert not plan["simulated_pretraining"] and plan["simulated_segmentation"]
    assert plan["pretraining_dir"] == str(tmp_path / "mine")
    assert any("SIMULATED" in note for note in plan["notes"])


def test_the_shell_reads_the_plan_although_paths_have_spaces_and_quotes(data, tmp_path):
    output = tmp_path / "it's mine"
    data.main(["--output", str(output), "--images", "3,2,2", "--num-cases", "1"])
    command = 'source "$1/plan.sh"; printf %s "$plan_segmentation_list"'
    done = subprocess.run(["bash", "-euc", command, "-", output], capture_output=True, text=True, check=True)
    assert Path(done.stdout) == output / "simulated" / "datalist.json"
