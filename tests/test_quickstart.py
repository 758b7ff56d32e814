# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""The quickstart: its scripts parse, its choice of images is right, its report tells what was measured."""

from __future__ import annotations

import argparse
import csv
import html
import importlib.util
import itertools
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

from monai_usfm.data import load_splits, make_datalist

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
EXAMPLE = SCRIPTS.parent / "examples" / "breast"


def load(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def report():
    return load("quickstart_report")


@pytest.fixture(scope="module")
def quickstart():
    return load("quickstart")


def made(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def write_rows(path, rows):
    with open(made(path), "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def finished_run(folder, start, scratch, **changes):
    """What quickstart.py has before the report, with the Dice values of the two runs as given."""
    content = json.loads((EXAMPLE / "dataset.json").read_text(encoding="utf-8"))
    content["test"] = content["test"][: len(start)]
    datalist = made(folder / "dataset.json")
    datalist.write_text(json.dumps(content), encoding="utf-8")
    plan = {"dataset_dir": str(EXAMPLE), "datalist": str(datalist), "images": "breast images of BUS-BRA", "own": False}
    plan |= {"notes": ["A note with <angle> brackets."], "labeled": True, "num_classes": 2, "label_values": None}
    plan |= {
        "training": 60,
        "adapted": 60,
        "labels": 60,
        "test": len(start),
        "start": "start.pt",
        "seconds": {"One": [12, 9], "Two": [30, 20]},
    }
    images = [str(EXAMPLE / item["image"]) for item in content["test"]]
    for name, dice in {"shipped": start, "start": start, "scratch": scratch}.items():
        rows = [{"image": image, "class": 1, "dice": value} for image, value in zip(images, dice, strict=True)]
        write_rows(folder / name / "evaluation/cases.csv", rows)
        write_rows(folder / name / "metrics.csv", [{"epoch": i, "val_mean_dice": i / 4} for i in (1, 2, 3)])
        for image, item in zip(images, content["test"], strict=True):
            stem = Path(image).stem
            shutil.copy(EXAMPLE / item["label"], made(folder / name / f"{stem}_seg.png"))
            Image.open(image).convert("L").save(made(folder / name / "previews" / f"{stem}.jpg"))
    psnr = {"seen": 17.0, "shipped": 20.0, "adapted": 21.5}
    psnr |= {f"{name} {width}": 18.0 + width / 10 for name in ("Gaussian", "median") for width in (1, 2, 3, 5)}
    rows = [{"image": i, "method": name, "psnr": value} for i in images for name, value in psnr.items()]
    write_rows(folder / "reconstructions.csv", rows)
    for number, panel in itertools.product(range(4), ("original", "seen", "shipped", "adapted")):
        shown = Image.fromarray(np.full((192, 192), 60 * number, np.uint8))
        shown.save(made(folder / "reconstructions" / f"{number}_{panel}.png"))
    made(folder / "adapted/run.json").write_text(json.dumps({"versions": {"torch": "9.8.7"}}), encoding="utf-8")
    return plan | changes


@pytest.fixture(scope="module")
def finished(report, tmp_path_factory):
    folder = tmp_path_factory.mktemp("quick start")
    plan = finished_run(folder, [0.8, 0.7, 0.9, 0.6, 0.8], [0.5, 0.5, 0.4, 0.5, 0.5])
    return (folder / "report.html").read_text(encoding="utf-8") if report.write(folder, plan) else None


@pytest.mark.parametrize(
    "name",
    ["quickstart.sh", "environment.sh", "test.sh", "try_monai_label.sh", "train_released_weights.sh", "../.ci/run"],
)
def test_shell_scripts_parse(name):
    subprocess.run(["bash", "-n", SCRIPTS / name], check=True)


def test_ci_runs_the_test_script_and_may_be_executed():
    run = SCRIPTS.parent / ".ci" / "run"
    assert os.access(run, os.X_OK)
    assert run.read_text(encoding="utf-8").count("scripts/test.sh") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dat", "x"], "unrecognized arguments: --dat x"),
        (["--venv"], "--venv needs a folder"),
        (["--data", "no such folder"], "there is no folder no such folder"),
        (["--output", "used"], "not from a former quickstart"),
        (["--output", "used/file"], "is no folder; give another one with --output"),
        (["--start", "no.pt"], "--start: there is no file no.pt"),
    ],
)
def test_wrong_arguments_stop_before_anything_is_installed(tmp_path, arguments, message):
    made(tmp_path / "used" / "file").touch()
    command = ["bash", SCRIPTS / "quickstart.sh", "--venv", "v", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert message in done.stderr
    assert not list((tmp_path / "v").iterdir())


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


def test_a_failed_installation_names_its_log_and_shows_its_end(tmp_path):
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


def test_monai_label_is_tried_in_a_folder_of_any_name_and_an_interrupted_installation_goes_on(tmp_path):
    made(tmp_path / "bin" / "python3").write_text(  # makes an "environment" whose Python tells what it was called for
        '#!/bin/bash\nmkdir -p "$3/bin" && cp "$(dirname "$0")/python" "$3/bin/python"\n'
    )
    told = tmp_path / "told"
    made(tmp_path / "bin" / "python").write_text(
        f'#!/bin/bash\necho "$PWD: $*" >>"{told}"; echo "{tmp_path}"; [[ "$*" != *"$BREAK"* ]]\n'
    )
    for file in (tmp_path / "bin").iterdir():
        file.chmod(0o755)
    command = ["bash", SCRIPTS / "try_monai_label.sh", "my env"]
    root = SCRIPTS.resolve().parent
    for breaks, ends in ((f"-e {root}", f"-e {root}"), ("nothing", "pytest -ra tests/test_monai_label.py")):
        path = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "BREAK": breaks}
        done = subprocess.run(command, cwd=tmp_path, env=path, capture_output=True, text=True, timeout=60)
        lines = told.read_text().splitlines()
        assert (done.returncode == 0) == (breaks == "nothing") and lines[-1].endswith(ends)
    assert lines[-1].startswith(f"{root}: ") and sum(f"-e {root}" in line for line in lines) == 2


def test_html_report_needs_no_other_file(finished):
    sources = re.findall(r'src="([^"]{30})', finished)
    assert len(sources) == 5 + 4 * 3 + 1 + 4 * 4  # previews, cases, curve, reconstructions
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert " href=" not in finished


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
    assert finished.startswith("<!DOCTYPE html>")
    elements = Elements()
    elements.feed(finished)
    elements.close()
    assert elements.faults == [] and elements.open == []
    assert re.findall(r"<img (?!alt=)", finished) == []


SHOWN = """onload = async () => {
  const page = document.documentElement
  const broken = [...document.images].filter(i => !i.naturalWidth).length
  const found = (await axe.run()).violations.filter(v => ['serious', 'critical'].includes(v.impact)).map(v => v.id)
  parent.postMessage(JSON.stringify([page.scrollWidth, innerWidth, broken, found]), '*')
}"""


@pytest.mark.parametrize("width", [390, 1280])
def test_html_report_fits_a_browser_and_axe_finds_nothing_serious(finished, tmp_path, width):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium: apt-get install chromium")
    axe = pytest.importorskip("axe_core_python", reason="pip install axe-core-python")
    script = (Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    # In a frame, because a window of the browser is at least 500 pixels wide.
    page = finished.replace("</body>", f"<script>{script}</script><script>{SHOWN}</script></body>")
    (tmp_path / "report.html").write_text(page, encoding="utf-8")
    page = tmp_path / "frame.html"
    frame = f'<iframe src="report.html" width="{width}" height="900" style="border:0"></iframe>'
    page.write_text(f"<title></title><script>onmessage=e=>document.title=e.data</script>{frame}")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1400,900"]
    command = [browser, *options, "--virtual-time-budget=20000", "--dump-dom", page.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=200).stdout
    assert json.loads(re.search(r"<title>(\[.*?\])</title>", shown).group(1)) == [width, width, 0, []]


def test_report_leads_with_what_was_measured(finished):
    lead = finished[: finished.index("<h2>")]
    assert "Dice 0.760" in lead and "of the shipped network" in lead
    assert "Dice +0.280" in lead and "0.760 from the shipped start, 0.480 from scratch" in lead
    assert "+4.5 dB" in lead and "test images 17.0 dB; by the better filter 18.5" in lead
    assert "shipped start 20.0, by the one adapted without labels 21.5: the adaptation helped" in lead


def test_report_escapes_what_is_not_its_own(finished):
    assert "&lt;angle&gt;" in finished and "<angle>" not in finished


def test_report_sums_the_times_and_names_the_versions(finished):
    assert "<td>all</td><td>42</td><td>29</td>" in finished
    assert "<td>torch</td><td>9.8.7</td>" in finished


def test_report_ends_with_commands_for_own_images(finished):
    for verb in ("datalist", "train", "predict"):
        assert finished.index("What was not shown") < finished.index(f"monai-usfm {verb}")
    assert f"source {sys.prefix}/bin/activate" in finished and "--pretrained start.pt" in finished


def test_commands_of_the_report_hold_where_folders_have_blanks(report, tmp_path, monkeypatch):
    plan = finished_run(tmp_path, [0.8] * 5, [0.5] * 5) | {"start": "my start.pt"}
    monkeypatch.setattr(sys, "prefix", "/a b")
    text = html.unescape("".join(report.ending(tmp_path, plan)))
    assert "source '/a b/bin/activate'" in text and "--pretrained 'my start.pt'" in text


@pytest.mark.parametrize(("name", "stem"), [("1.2.840", "1.2.840"), ("a.b.nii.gz", "a.b"), ("A.PNG", "A")])
def test_the_mask_of_an_image_is_found_by_its_name(report, name, stem):
    assert report.stem({"image": f"folder/{name}"}) == stem


def test_without_labels_nothing_is_compared(report, tmp_path):
    plan = finished_run(tmp_path, [0.8] * 5, [0.5] * 5, labeled=False)
    shutil.rmtree(tmp_path / "shipped" / "evaluation")
    assert len(report.write(tmp_path, plan)) == 1
    assert "Few labels:" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_test_images_of_one_patient_give_no_interval(report, tmp_path):
    plan = finished_run(tmp_path, [0.8] * 5, [0.5] * 5)
    content = json.loads((tmp_path / "dataset.json").read_text(encoding="utf-8"))
    for item in content["test"]:
        item["patient"] = "p1"
    (tmp_path / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    told = " ".join(report.write(tmp_path, plan))
    assert told.count("unknown (one patient)") == 3 and "nan" not in told
    assert "All test images are of one patient" in told and "says nothing of other patients" in told


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(0.01, 0.1, "helped"), (-0.01, 0.1, "No gain"), (-0.1, -0.01, "did harm")],
)
def test_verdict_claims_no_more_than_the_interval(report, low, high, words):
    assert words in report.verdict(np.array([0.6, 0.5]), low, high)


def test_networks_that_learnt_nothing_are_not_compared(report):
    assert report.verdict(np.array([0.03, 0.02]), 0.005, 0.015).startswith("Neither")


def test_scores_are_paired_by_image_whatever_their_order(report, tmp_path):
    rows = [{"image": n, "class": 1, "dice": d} for n, d in (("b", 0.2), ("a", 0.4), ("b", 0.6))]
    write_rows(tmp_path / "cases.csv", rows)
    assert report.mean_of_images(tmp_path / "cases.csv", "dice") == pytest.approx({"a": 0.4, "b": 0.4})


# ------------------------------------------------------------------ choice of the images


def choose(quickstart, output, *arguments):
    output.mkdir(parents=True, exist_ok=True)
    return quickstart.choose_images(quickstart.parse([*arguments, "--output", str(output)]), output)


def write_user_images(folder, number, label=None):
    generator = np.random.default_rng(0)
    for i in range(number):
        pixels = generator.integers(0, 255, (40, 50), np.uint8)
        Image.fromarray(pixels).save(made(folder / "images" / f"p{i:03d}.png"))
        if label is not None:
            mask = np.where(np.hypot(*np.mgrid[-20:20, -25:25]) < 8 + i % 5, label, 0).astype(np.uint8)
            Image.fromarray(mask).save(made(folder / "masks" / f"p{i:03d}.png"))
    return folder


def test_the_example_has_labels_of_patients_that_are_apart(quickstart, tmp_path):
    plan = choose(quickstart, tmp_path)
    assert plan["labeled"] and (plan["labels"], plan["test"]) == (60, 40)
    content = json.loads(Path(plan["datalist"]).read_text(encoding="utf-8"))
    patients = [{item["patient"] for item in content[name]} for name in ("training", "validation", "test")]
    assert sum(map(len, patients)) == len(set.union(*patients))


def test_labels_of_the_user_are_used_with_their_values(quickstart, tmp_path):
    folder = write_user_images(tmp_path / "mine", 40, label=7)
    plan = choose(quickstart, tmp_path / "out put", "--data", str(folder))
    assert plan["labeled"] and plan["own"]
    assert plan["label_values"] == [0, 7] and plan["num_classes"] == 2


def test_masks_that_were_resized_have_two_classes_and_a_picture_is_no_mask(quickstart, tmp_path):
    mask = Image.fromarray(np.uint8(255) * (np.hypot(*np.mgrid[-20:20, -25:25]) < 9)).resize((100, 80))
    mask.save(tmp_path / "a.png")
    Image.fromarray(np.arange(8000, dtype=np.uint16).astype(np.uint8).reshape(80, 100)).save(tmp_path / "b.png")
    with pytest.warns(UserWarning, match="as resizing leaves them"):
        assert quickstart.label_values(tmp_path, [{"label": "a.png"}]) == [0, 255]
    with pytest.raises(SystemExit, match=r"b\.png: value\(s\) .* stand for no class"):
        quickstart.label_values(tmp_path, [{"label": "b.png"}])


def test_of_images_without_a_label_nothing_is_scored(quickstart, tmp_path):
    folder = write_user_images(write_user_images(tmp_path / "mine", 60), 40, label=7)
    plan = choose(quickstart, tmp_path / "out", "--data", str(folder))
    everything, labeled = (json.loads(Path(plan[name]).read_text()) for name in ("datalist", "labeled_list"))
    assert plan["labeled"] and sum(len(everything[split]) for split in labeled) == 60
    found = load_splits(folder, plan["labeled_list"], synthetic_dir="", required=("image", "label"))
    assert len(found["training"]) == plan["labels"] < plan["training"]
    assert sum(map(len, labeled.values())) == 40


def test_splits_of_the_user_are_kept(quickstart, tmp_path):
    folder = write_user_images(tmp_path / "mine", 40, label=7)
    make_datalist([str(folder)], split="0.5/0.2/0.3")
    written = (folder / "dataset.json").read_bytes()
    plan = choose(quickstart, tmp_path / "out", "--data", str(folder))
    assert Path(plan["datalist"]) == folder / "dataset.json" and plan["labeled"]
    assert (plan["training"], plan["test"]) == (20, 12) and (folder / "dataset.json").read_bytes() == written


def test_without_labels_of_the_user_the_report_is_told(quickstart, tmp_path):
    plan = choose(quickstart, tmp_path / "out", "--data", str(write_user_images(tmp_path / "mine", 20)))
    assert not plan["labeled"]
    assert any("Few labels were not compared" in note for note in plan["notes"])


def test_simulated_images_are_called_so(quickstart, tmp_path):
    plan = choose(quickstart, tmp_path, "--synthetic", "--quick")
    assert plan["images"] == "simulated images" and plan["labeled"]


def test_images_that_name_no_patient_count_as_one_each(quickstart, tmp_path):
    (tmp_path / "mine").mkdir()
    rng = np.random.default_rng(0)
    for n in range(20):
        Image.fromarray(rng.integers(0, 255, (40, 40), np.uint8)).save(tmp_path / "mine" / f"img_{n:05d}.png")
    (tmp_path / "out").mkdir()
    options = argparse.Namespace(data=tmp_path / "mine", synthetic=False, quick=True)
    plan = quickstart.choose_images(options, tmp_path / "out")
    assert "each image counts as one" in plan["notes"][0]
    content = json.loads(Path(plan["datalist"]).read_text())
    assert sum(len(content[name]) for name in ("training", "validation", "test")) == 20 and content["test"]


def test_a_failed_step_names_its_log_and_shows_its_end(quickstart, tmp_path):
    code = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[1]); import quickstart as q; o = pathlib.Path(sys.argv[2])\n"
    )
    code += "with q.step(o, {'seconds': {}}, 'Doing it'):\n    print('because'); raise ValueError('it broke')"
    command = [sys.executable, "-c", code, SCRIPTS, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"Read {tmp_path / 'logs' / '1.log'}" in done.stderr
    assert done.stderr.splitlines()[-1] == "error: Doing it: it broke"
    assert "it broke" in done.stderr and "because" in done.stderr and "because" not in done.stdout


# ------------------------------------------------------------------ whole runs


@pytest.mark.slow
@pytest.mark.parametrize("source", ["example", "data", "synthetic"])
def test_a_whole_run_ends_in_a_report(tmp_path, source):
    arguments = {"example": [], "synthetic": ["--synthetic"], "data": ["--data", tmp_path / "mine"]}[source]
    if source == "data":
        write_user_images(tmp_path / "mine", 30, label=255)
    command = [sys.executable, SCRIPTS / "quickstart.py", "--quick", "--output", tmp_path / "out", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-2000:]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    for heading in ("Segmentation of images", "Few labels:", "No labels:", "What was not shown", "Next: your own data"):
        assert heading in page
    assert json.loads((tmp_path / "out" / "quickstart.json").read_text())["finished"]
    assert not list((tmp_path / "out").glob("*/checkpoints"))
