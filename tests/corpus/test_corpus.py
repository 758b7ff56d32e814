# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Hundreds of odd files and settings through all bundles: each ends in the right result or in one clear sentence.

``pytest -m slow -s tests/corpus`` prints the table of docs/RELIABILITY.md. ``MONAI_USFM_CORPUS=FILE.csv`` keeps every
run's outcome. The runs are those of ``monai.bundle run``, in one process; a sample is run by the command itself.
"""

from __future__ import annotations

import csv
import logging
import os
import shutil
import signal
import sys
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ComponentLocator
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
import odd_files
import odd_settings

from monai_usfm import build_network, save_network
from monai_usfm.bundle import describe
from monai_usfm.workflow import run_bundle

pytestmark = pytest.mark.slow

TASKS = ("pretraining", "segmentation", "classification", "enhancement")
RUNS = ("train", "evaluate", "predict")
SECONDS = 180  # a run that takes longer hangs
TINY = {"plan#num_layers": 4, "plan#hidden_size": 48, "plan#mlp_dim": 96, "plan#num_heads": 3}
QUICK = {
    "pretrained": None, "spatial_size": [32, 32], "max_epochs": 1, "batch_size": 2, "num_workers": 0, "amp": "fp32",
    "device": "cpu", **TINY,
}  # fmt: skip
RECORDS: list[dict[str, str]] = []


class Log(logging.Handler):
    """Everything that was said in a run."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextmanager
def listening() -> Iterator[Log]:
    log = Log()
    named = [logging.getLogger(), *(logging.getLogger(name) for name in list(logging.root.manager.loggerDict))]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for logger in named:
            if logger is logging.root or not logger.propagate:
                logger.addHandler(log)
        try:
            yield log
        finally:
            for logger in named:
                logger.removeHandler(log)
            log.lines += [str(warning.message) for warning in caught]


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TimeoutError(f"no end after {seconds} s")

    old = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)


VOLUMES = {"spatial_dims": 3, "spatial_size": [8, 32, 32], "patch_size": [4, 16, 16]}


def arguments(
    task: str, run: str, data: Path, output: Path, weights: dict[str, Path], trained: dict[str, Path]
) -> dict:
    """Options of a run on the plain folder, which tells whether it holds volumes."""
    volumes = {**VOLUMES, "crops_per_volume": 1} if task == "segmentation" else VOLUMES
    volumes = volumes if (data / "image.nii.gz").is_file() else {}
    options: dict[str, Any] = {"dataset_dir": str(data), "output_dir": str(output), "device": "cpu", "amp": "fp32"}
    if run == "train":
        options |= {**QUICK, **volumes}
    elif run == "evaluate" and task == "pretraining":
        options |= {
            **QUICK,
            **volumes,
            "ckpt_dir": str(trained[task] / "checkpoints"),
            "datalist": str(data / "validate.json"),
        }
        del options["pretrained"]
    else:
        options |= {"checkpoint": str(weights[task]), "datalist": str(data / "test.json")}
    if task != "classification" and run != "predict":
        options["figure_interval"] = 0
    if run == "predict" and task != "pretraining":
        options["preview"] = False
    return options


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], dict[str, Path]]:
    """Task -> weights with their card; task -> folder of a training of one step."""
    return begun(tmp_path_factory.mktemp("start"), odd_files.plain_folder, {"spatial_size": [32, 32]})


@pytest.fixture(scope="session")
def start_volumes(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], dict[str, Path]]:
    return begun(tmp_path_factory.mktemp("start3"), odd_files.volume_folder, VOLUMES)


def begun(root: Path, make: Any, shape: dict[str, Any]) -> tuple[dict[str, Path], dict[str, Path]]:
    items = make(root / "data")
    odd_files.write_lists(root / "data", items[:1], items)
    weights, trained = {}, {}
    for task in TASKS:
        weights[task], trained[task] = root / f"{task}.pt", root / task
        torch.manual_seed(0)
        network = build_network(task, None, **shape, **{k.removeprefix("plan#"): v for k, v in TINY.items()})
        if task == "segmentation":
            halve_its_masks(network, shape["spatial_size"])
        save_network(weights[task], network.eval())
    for task in ("pretraining", "segmentation"):
        run_bundle(task, "train", **arguments(task, "train", root / "data", trained[task], {}, {}))
    weights["pretraining"] = trained["pretraining"] / "model.pt"
    return weights, trained


def halve_its_masks(network: torch.nn.Module, size: list[int]) -> None:
    """Shift the bias of the classes so that a random network finds foreground in a part of the plain image."""
    plain = odd_files.GRAY if len(size) == 2 else odd_files.STACK
    gray = torch.from_numpy(plain[None, None] / np.float32(255))
    with torch.no_grad():
        logits = network.eval()(torch.nn.functional.interpolate(gray, size))
        last = [
            m for m in network.modules() if isinstance(getattr(m, "bias", None), torch.Tensor) and len(m.bias) == 2
        ][-1]
        last.bias[1] -= (logits[:, 1] - logits[:, 0]).quantile(0.7)


def results(task: str, run: str, output: Path, number: int) -> list[np.ndarray]:
    """Numbers or pixels that a run gave for each of the first images, in their order; of training one for all."""
    if run == "train":
        assert (output / "model.pt").is_file(), "no weights were written"
        rows = list(csv.DictReader((output / "metrics.csv").open()))
        return [np.array([float(rows[-1]["train_loss"])])] * number
    if run == "evaluate" and task == "pretraining":
        last = (output / "evaluation" / "metrics.csv").read_text().replace(",", " ").split()[-1]
        return [np.array([float(last)])] * number
    if run == "evaluate":
        file, name = {"classification": ("images.csv", "p_1"), "segmentation": ("cases.csv", "dice")}.get(
            task, ("cases.csv", "psnr")
        )
        rows = list(csv.DictReader((output / "evaluation" / file).open()))
        rows = [row for row in rows if row.get("method", "enhanced") == "enhanced"]
        return [np.array([float(row[name])]) for row in rows[:number]]
    if task == "pretraining":
        with np.load(output / "embeddings.npz") as found:
            return list(found["embeddings"][:number])
    if task == "classification":
        rows = list(csv.DictReader((output / "images.csv").open()))
        return [np.array([float(row["p_0"]), float(row["p_1"])]) for row in rows[:number]]
    found = []
    for index in range(number):
        files = [p for p in (output / f"c{index}").rglob("*") if p.name.endswith((".png", ".nii.gz"))]
        assert len(files) == 1, f"results {[p.name for p in files]} of c{index}"
        png = files[0].name.endswith(".png")
        found.append(np.asarray(Image.open(files[0])) if png else np.asarray(nib.load(files[0]).dataobj))
    return found


def agrees(task: str, run: str, found: np.ndarray, plain: np.ndarray, exact: bool) -> None:
    """Raises AssertionError where a run on the odd file gave other values than on the plain one."""
    assert np.isfinite(found).all(), "NaN in the result"
    if run == "predict" and task in ("segmentation", "enhancement"):
        assert found.shape == plain.shape, f"shape {found.shape}, not {plain.shape}"
        off = (found != plain).mean() if task == "segmentation" else np.abs(found.astype(int) - plain).mean()
        limit = (0.002 if exact else 0.05) if task == "segmentation" else (0.6 if exact else 6)
        assert off <= limit, f"differs from the plain file's result by {off:.3g}"
        return
    assert found.shape == plain.shape, f"{found} for {plain}"
    scale = max(1e-3, float(np.abs(plain).max()))
    off = float(np.abs(found - plain).max()) / scale
    assert off <= (0.004 if exact else 0.08), f"{found.ravel()[:3]} for {plain.ravel()[:3]}"


def note(kind: str, case: str, task: str, run: str, outcome: str, detail: str = "") -> None:
    RECORDS.append({"kind": kind, "case": case, "bundle": task, "run": run, "outcome": outcome, "detail": detail[:500]})
    if file := os.environ.get("MONAI_USFM_CORPUS"):  # at once: a run may be killed
        with open(file, "a", newline="") as stream:
            csv.writer(stream).writerow(RECORDS[-1].values())


def outcome_of(
    task: str, run: str, options: dict[str, Any], words: str, check: Callable[[], str | None]
) -> tuple[str, str]:
    """``(outcome, detail)`` of one run.

    Args:
        words: what the last line of an error must name; empty where a result is expected.
        check: looks at a result; returns how it is known to be right.
    """
    with listening() as log:
        try:
            with limited(SECONDS):
                run_bundle(task, run, **options)
        except TimeoutError as error:
            return "neither", str(error)
        except (Exception, SystemExit) as error:
            line = describe(error)
            clear = bool(words) and words.lower() in line.lower() and len(line) <= 620 and "Failed to" not in line
            return ("one clear error" if clear else "neither"), line
    if words:  # left out and named
        said = [line for line in log.lines if words.lower() in line.lower() and "left out" in line]
        return ("left out by name", said[0]) if said else ("neither", f"a result, where an error was due ({words})")
    try:
        return check() or "defined result", ""
    except Exception as error:
        return "neither", f"{type(error).__name__}: {error}"


@pytest.fixture(scope="session")
def plain(start, tmp_path_factory) -> Callable[[str, str, int], list[np.ndarray]]:
    return plain_results(start, tmp_path_factory.mktemp("plain"), odd_files.plain_folder)


@pytest.fixture(scope="session")
def plain_volumes(start_volumes, tmp_path_factory) -> Callable[[str, str, int], list[np.ndarray]]:
    return plain_results(start_volumes, tmp_path_factory.mktemp("plain3"), odd_files.volume_folder)


def plain_results(start: Any, root: Path, make: Any) -> Callable[[str, str, int], list[np.ndarray]]:
    """Results of a run on the plain file, named as often as there are odd ones in a list."""
    known: dict[tuple[str, str, int], list[np.ndarray]] = {}

    def of(task: str, run: str, number: int) -> list[np.ndarray]:
        if (task, run, number) not in known:
            data, output = root / f"data{number}", root / f"{task}-{run}-{number}"
            items = make(data)
            first = [beside(data, items[0], index) for index in range(number)]
            odd_files.write_lists(data, first, items)
            options = arguments(task, run, data, output, *start)
            if make is odd_files.volume_folder and run == "predict" and task in ("segmentation", "enhancement"):
                options["output_ext"] = ".nii.gz"
            run_bundle(task, run, **options)
            known[task, run, number] = results(task, run, output, number)
        return known[task, run, number]

    return of


def beside(data: Path, item: dict[str, Any], index: int, case: odd_files.Case | None = None) -> dict[str, Any]:
    """The item of a copy of the plain pair in a folder of its own, with what a case puts there."""
    below = data / f"c{index}"
    below.mkdir(exist_ok=True)
    for key in ("image", "label"):
        shutil.copy(data / item[key], below / item[key])
    item = {**item, **(case.make(below) if case else {})}
    for key in ("image", "label"):
        if isinstance(item[key], str):
            item[key] = f"c{index}/{item[key]}"
        elif isinstance(item[key], list):
            item[key] = [f"c{index}/{name}" for name in item[key]]
    return {key: value for key, value in item.items() if value is not None}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", list(dict.fromkeys(case.kind for case in odd_files.all_cases())))
def test_odd_files(kind, task, request, tmp_path):
    names = ("start_volumes", "plain_volumes") if kind == "volumes" else ("start", "plain")
    start, plain = (request.getfixturevalue(name) for name in names)
    cases = [case for case in odd_files.all_cases() if case.kind == kind and task in (case.tasks or TASKS)]
    for expect in dict.fromkeys(case.expect for case in cases):
        alike = [case for case in cases if case.expect == expect]
        size = 1 if expect == "error" else 24  # an error ends a run, so each has its own
        for number, begin in enumerate(range(0, len(alike), size)):
            run_cases(alike[begin : begin + size], (task,), RUNS, tmp_path / f"{expect}{number}", start, plain)
    wrong(kind, task)


def run_cases(
    cases: list[odd_files.Case], tasks: tuple[str, ...], runs: tuple[str, ...], data: Path, start: Any, plain: Any
) -> None:
    """Cases of one expectation in one list through all runs; where a run fails, each of them alone."""
    items = (odd_files.volume_folder if cases[0].kind == "volumes" else odd_files.plain_folder)(data)
    first = [beside(data, items[0], index, case) for index, case in enumerate(cases)]
    odd_files.write_lists(data, first, items)
    words, lists = "case" if cases[0].expect == "error" else "", list(data.glob("*.json"))
    for task in tasks:
        for run in runs:
            if cases[0].tasks and run == "predict":
                continue
            output = data / f"out-{task}-{run}"
            options = arguments(task, run, data, output, *start)
            if cases[0].kind in ("NIfTI", "volumes") and run == "predict" and task in ("segmentation", "enhancement"):
                options["output_ext"] = ".nii.gz"

            def check(task=task, run=run, output=output) -> str | None:
                found = results(task, run, output, len(cases))
                for index, case in enumerate(cases):
                    try:
                        compare(case, task, run, found[index], plain(task, run, len(cases))[index])
                    except Exception as error:
                        raise AssertionError(f"{case.name}: {error}") from error
                return None if cases[0].expect == "defined" else "as expected"

            outcome, detail = outcome_of(task, run, options, words, check)
            if outcome == "neither" and len(cases) > 1:
                for index, case in enumerate(cases):
                    alone = data / f"alone-{task}-{run}-{index}"
                    run_cases([case], (task,), (run,), alone, start, plain)
                continue
            for case in cases:
                note(case.kind, case.name, task, run, outcome, detail)
            shutil.rmtree(output, ignore_errors=True)
        if (
            words and not cases[0].tasks and len(runs) > 1
        ):  # inference of the folder: the others are not lost, the file is named
            for file in lists:
                file.unlink()
            output = data / f"out-{task}-folder"
            options = {**arguments(task, "predict", data, output, *start), "datalist": None}

            def others(task=task, output=output) -> str:
                pattern = {"segmentation": "*_seg.*", "enhancement": "*_enhanced.*"}.get(task, "*.csv")
                count = len(list(output.rglob(pattern)))
                assert count >= (8 if "*_" in pattern else 1), f"{count} results of the other files"
                return "as expected"

            note(
                cases[0].kind, cases[0].name, task, "predict folder", *outcome_of(task, "predict", options, "", others)
            )
            odd_files.write_lists(data, first, items)
    shutil.rmtree(data)


def compare(case: odd_files.Case, task: str, run: str, found: np.ndarray, plain: np.ndarray) -> None:
    if case.expect == "defined":
        assert np.isfinite(found).all() or run == "evaluate", "NaN in the result"
        return
    if case.kind == "NIfTI" and found.ndim > 1:
        assert not case.shape or found.shape == case.shape, f"shape {found.shape}, not {case.shape}"
        found = found.squeeze().T
    if case.kind == "volumes" and run == "predict" and found.ndim > 2:
        found, plain = found.squeeze(), plain.squeeze()
    agrees(task, run, found, plain, case.expect == "same")


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", list(dict.fromkeys(s.kind for s in odd_settings.all_settings())))
def test_odd_settings(kind, task, start, tmp_path):
    weights, trained = start
    for number, setting in enumerate(s for s in odd_settings.all_settings() if s.kind == kind and task in s.tasks):
        for run in setting.runs:
            folder = tmp_path / f"{number}-{task}-{run}"
            data, output = folder / "data", folder / "out"
            items = odd_files.plain_folder(data)
            odd_files.write_lists(data, items[:1], items)
            world = odd_settings.World(folder, data, items, weights, trained)
            options = arguments(task, run, data, output, weights, trained)
            options |= setting.prepare(world) or {}

            def check(setting=setting, world=world, options=options) -> str | None:
                if setting.check is None:
                    return None
                setting.check(world, Path(options["output_dir"]))
                return "as expected"

            note(kind, setting.name, task, run, *outcome_of(task, run, options, setting.expect, check))
            shutil.rmtree(folder, ignore_errors=True)
    wrong(kind, task)


def wrong(kind: str, task: str) -> None:
    bad = [r for r in RECORDS if (r["kind"], r["bundle"]) == (kind, task) and r["outcome"] == "neither"]
    for record in bad:
        print(f"NEITHER {record['case']} | {record['bundle']} {record['run']} | {record['detail'][:300]}")
    assert not bad, f"{len(bad)} runs ended in neither a defined result nor a clear error"


@pytest.fixture(scope="module", autouse=True)
def quick():
    """No figures, which take most of a tiny training; MONAI's search for classes once instead of in each run."""
    found, search = {}, ComponentLocator.get_component_module_name

    def once(self: Any, name: str) -> Any:
        if name not in found:
            found[name] = search(self, name)
        return found[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("monai_usfm.handlers.records.draw_metrics", lambda *_, **__: None)
        patch.setattr(ComponentLocator, "get_component_module_name", once)
        yield


@pytest.fixture(scope="module", autouse=True)
def table():
    """Prints the table of outcomes at the end."""
    began = time.time()
    yield
    outcomes = ("as expected", "defined result", "one clear error", "left out by name", "neither")
    rows: dict[str, Counter] = defaultdict(Counter)
    for record in RECORDS:
        rows[record["kind"]][record["outcome"]] += 1
        rows["all"][record["outcome"]] += 1
    cases = Counter(kind for kind, _ in {(r["kind"], r["case"]) for r in RECORDS})
    cases["all"] = sum(cases.values())
    print(f"\n| kind | cases | runs | {' | '.join(outcomes)} |\n|---|" + "---|" * (len(outcomes) + 2))
    for kind in [*(k for k in rows if k != "all"), *(["all"] if rows else [])]:
        counts = [rows[kind][outcome] for outcome in outcomes]
        print(f"| {kind} | {cases[kind]} | {sum(counts)} | {' | '.join(map(str, counts))} |")
    print(f"{time.time() - began:.0f} s")
