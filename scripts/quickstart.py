#!/usr/bin/env python
# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""What monai_usfm does, shown on 112 real breast images, or on your own, in under 10 minutes on two CPU cores.

Segments test images with the shipped network, compares fine-tuning from the shipped start with training from scratch on
few labels, adapts the shipped start to the images without labels, and writes report.html. Images are found as by
`monai-usfm datalist`: masks beside them, in images/ and masks/ or as NAME_mask; a dataset.json with splits is taken.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SEGMENTATION = ROOT / "bundles" / "usfm_segmentation" / "models"
FOUNDATION = ROOT / "bundles" / "usfm_pretraining" / "models" / "model.pt"  # the start of every training
MINIMUM = {"training": 16, "validation": 2, "test": 5}  # labeled images without which a score would say nothing
RESULTS = ("shipped", "start", "scratch", "adapted", "reconstructions", "simulated", "logs")
SCORED = 60  # test images that are reconstructed; more tell nothing new


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    output = options.output
    if options.check:
        return 0
    for name in RESULTS:
        shutil.rmtree(output / name, ignore_errors=True)
    output.mkdir(parents=True, exist_ok=True)
    plan: dict[str, Any] = {
        "seconds": {},
        "start": None if options.start == FOUNDATION else str(options.start),
        "finished": False,
    }
    save(output, plan)
    with step(output, plan, "Preparing the images"):
        plan |= choose_images(options, output)
    run_steps(plan, output, options)
    import quickstart_report

    plan["finished"] = True
    save(output, plan)
    for line in quickstart_report.write(output, plan):
        print(line)
    print(f"Report: {output / 'report.html'}")
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The arguments, checked."""
    parser = argparse.ArgumentParser("quickstart.sh", allow_abbrev=False, description=__doc__.split("\n\n")[1])
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--data", type=Path, help="folder of your own images; default: examples/breast")
    source.add_argument("--synthetic", action="store_true", help="simulated images instead of real ones")
    parser.add_argument(
        "--output", type=Path, default=Path("quickstart"), help="folder to write; a former one is replaced"
    )
    parser.add_argument("--start", type=Path, default=FOUNDATION, help="weights to fine-tune from")
    parser.add_argument("--quick", action="store_true", help="a few steps only: everything runs, nothing is learnt")
    parser.add_argument("--check", action="store_true", help=argparse.SUPPRESS)  # of the arguments alone
    options = parser.parse_args(arguments)
    options.output = options.output.absolute()
    if options.data and not options.data.is_dir():
        parser.error(f"--data: there is no folder {options.data}")
    if not options.start.is_file():
        parser.error(f"--start: there is no file {options.start}")
    output, options.start = options.output, options.start.absolute()
    if output.exists() and not output.is_dir():
        parser.error(f"{output} is no folder; give another one with --output")
    if output.exists() and any(output.iterdir()) and not (output / "quickstart.json").is_file():
        parser.error(f"{output} is not empty and not from a former quickstart; give another folder with --output")
    return options


def run_steps(plan: dict[str, Any], output: Path, options: argparse.Namespace) -> None:
    """The three parts; without enough labels the second is left out."""
    from monai_usfm.workflow import run_bundle

    data = {"dataset_dir": plan["dataset_dir"], "datalist": plan["datalist"]}
    labeled = {**data, "datalist": plan.get("labeled_list", plan["datalist"])}
    size = [128, 128]
    classes = {"num_classes": plan["num_classes"], "label_values": plan["label_values"]}
    shipped = {**data, "checkpoint": str(SEGMENTATION / "model.pt"), "output_dir": str(output / "shipped")}
    with step(output, plan, "Segmenting the test images with the shipped network"):
        run_bundle("segmentation", "predict", **shipped)
    if plan["labeled"] and plan["num_classes"] == 2:
        with step(output, plan, "Scoring them"):
            run_bundle("segmentation", "evaluate", **{**shipped, **labeled}, label_values=plan["label_values"])
    epochs = 2 if options.quick else 20
    for name, start in (
        ("start", {"pretrained": str(options.start)}),
        ("scratch", {"pretrained": None, "layer_decay": 1.0}),
    ):
        if not plan["labeled"]:
            break
        folder = {"output_dir": str(output / name)}
        weights = str(output / name / "model.pt")
        words = {"start": "from the shipped start", "scratch": "from scratch"}[name]
        training = {"max_epochs": epochs, "batch_size": 8, "val_interval": 5, "figure_interval": epochs}
        with step(output, plan, f"Fine-tuning on {plan['labels']} labels {words}"):
            network = {**labeled, **classes, **folder, "spatial_size": size}
            run_bundle("segmentation", "train", **network, **start, **training, export_path=weights)
            drop_checkpoints(output / name)
        with step(output, plan, f"Scoring and segmenting the test images ({words})"):
            run_bundle("segmentation", "evaluate", **network, checkpoint=weights)
            run_bundle("segmentation", "predict", **data, **folder, checkpoint=weights, preview=False)
    adapt(plan, output, options, data)


def drop_checkpoints(folder: Path) -> None:
    """Remove what only a resumed training would read: 180 MB."""
    for name in ("checkpoints", "cache"):
        shutil.rmtree(folder / name, ignore_errors=True)


def adapt(plan: dict[str, Any], output: Path, options: argparse.Namespace, data: dict[str, str]) -> None:
    """Self-supervised adaptation, and test images that are corrupted and restored before and after it."""
    from quickstart_report import save_reconstructions

    from monai_usfm import build_network
    from monai_usfm.data import load_datalist
    from monai_usfm.workflow import run_bundle

    items = load_datalist(plan["datalist"], plan["dataset_dir"], "test")
    items = items[:: max(1, len(items) // SCORED)]
    epochs = 1 if options.quick else 10
    training = {"pretrained": str(FOUNDATION), "objective": "pyramid", "max_epochs": epochs, "warmup_epochs": 1}
    training |= {"batch_size": 8, "learning_rate": 3e-4, "augmentation#scale": [0.5, 1.0], "figure_interval": 0}
    training["epoch_length"] = plan["adapted"]
    folder = {"output_dir": str(output / "adapted"), "export_path": str(output / "adapted" / "model.pt")}
    with step(output, plan, f"Adapting the shipped start to {plan['adapted']} images, without labels"):
        run_bundle("pretraining", "train", **data, **folder, **training, val_interval=epochs, num_workers=0)
        drop_checkpoints(output / "adapted")
    with step(output, plan, "Restoring corrupted test images"):
        weights = {"shipped": str(FOUNDATION), "adapted": folder["export_path"]}
        networks = {name: build_network("pretraining", file, objective="pyramid") for name, file in weights.items()}
        save_reconstructions(networks, items, output)


def has_splits(datalist: Path) -> bool:
    """Whether it is a list with the three splits, as ``monai-usfm datalist`` writes it."""
    try:
        content = json.loads(datalist.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    lists = [content.get(name) for name in ("training", "validation", "test")] if isinstance(content, dict) else [None]
    return all(isinstance(items, list) and items and all(isinstance(i, dict) for i in items) for items in lists)


def choose_images(options: argparse.Namespace, output: Path) -> dict[str, Any]:
    """Where the images are, what is known of their labels, and what the report must say about them."""
    if options.synthetic:
        from monai_usfm.data import write_synthetic_dataset

        counts = (24, 4, 6) if options.quick else (64, 12, 40)
        datalist = write_synthetic_dataset(output / "simulated", *counts, image_size=(128, 128), seed=0)
        words = "simulated images"
        notes = ["All images are simulated: the scores say nothing about patients."]
    elif options.data and has_splits(options.data / "dataset.json"):
        datalist, words = options.data / "dataset.json", "of your images"
        notes = ["The splits are those of dataset.json in the folder."]
    elif options.data:
        from monai_usfm.data import UnknownPatientsError, make_datalist

        options_of_list = {
            "output": str(output / "dataset.json"),
            "dataset_dir": str(options.data),
            "split": "0.6/0.1/0.3",
        }
        words, notes = "of your images", ["Patients are read from file names: check the splits in dataset.json."]
        try:
            datalist = make_datalist([str(options.data)], **options_of_list)
            known = bool(json.loads(datalist.read_text(encoding="utf-8")).get("test"))
        except UnknownPatientsError:
            known = False
        if not known:
            datalist = make_datalist([str(options.data)], patient_pattern="(.*)", **options_of_list)
            notes = ["No patients in the file names: each image counts as one, so one patient may be in two splits."]
    else:
        datalist, words = ROOT / "examples" / "breast" / "dataset.json", "unseen breast images (BUS-BRA)"
        notes = []
    folder = options.data.absolute() if options.data else datalist.parent
    content = json.loads(datalist.read_text(encoding="utf-8"))
    labels = {name: [i for i in content.get(name, []) if i.get("label")] for name in MINIMUM}
    lacking = {name: len(found) for name, found in labels.items() if len(found) < MINIMUM[name]}
    plan = {"dataset_dir": str(folder), "datalist": str(datalist), "images": words, "notes": notes}
    plan |= {"own": bool(options.data), "labeled": not lacking, "num_classes": 2, "label_values": None}
    plan |= {"training": len(content["training"]), "labels": len(labels["training"]), "test": len(content["test"])}
    plan["adapted"] = min(64, plan["training"]) if options.quick else plan["training"]  # one pass of thousands is long
    if lacking:
        found = ", ".join(f"{count} of {MINIMUM[name]} {name} images" for name, count in lacking.items())
        notes.append(f"Few labels were not compared: labels were found for {found} that it needs.")
    elif options.data:
        values = label_values(folder, [item for found in labels.values() for item in found])
        plan |= {"num_classes": len(values), "label_values": values, "labeled_list": str(output / "labeled.json")}
        Path(plan["labeled_list"]).write_text(json.dumps(labels), encoding="utf-8")  # others cannot be scored
    return plan


def label_values(folder: Path, items: list[dict[str, Any]]) -> list[int]:
    """Values of the classes over all label files, background first."""
    import torch

    from monai_usfm.data import LoadUltrasound
    from monai_usfm.transforms import LabelIndices, is_jpeg_label

    read, found, mask = LoadUltrasound(scale=None), {0.0}, LabelIndices(2)
    for item in items:
        files = [item["label"]] if isinstance(item["label"], str) else item["label"]
        label = read([folder / file for file in files])
        values = set(torch.as_tensor(label).unique().tolist())
        if is_jpeg_label(label) or len(values) > 16:  # spread by compression, or by resizing
            try:
                values = {255.0 * value for value in mask(label).unique().tolist()}
            except ValueError as error:
                raise SystemExit(f"{error}") from None
        found |= values
        if len(found) > 16:
            raise SystemExit(f"{files[0]}: labels with over 16 values are no class indices; see docs of `datalist`.")
    return sorted(int(value) for value in found)


@contextmanager
def step(output: Path, plan: dict[str, Any], message: str) -> Iterator[None]:
    """Run one step with its output in a log of its own; note its seconds; on failure show the log's end and stop."""
    log = output / "logs" / f"{len(plan['seconds']) + 1}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"{message} ...", end="", flush=True)
    started, computed, sys_out = time.perf_counter(), time.process_time(), [os.dup(1), os.dup(2)]
    with open(log, "w") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
        try:
            yield
            failed = None
        except BaseException as error:
            failed = error
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, saved in zip((1, 2), sys_out, strict=True):
                os.dup2(saved, number)
                os.close(saved)
    seconds = time.perf_counter() - started
    print(f" {seconds:.0f} s", flush=True)
    if failed is not None:
        print("".join(log.read_text(encoding="utf-8", errors="replace").splitlines(True)[-15:]), file=sys.stderr)
        print(f"Read {log}\nerror: {message}: {failed or type(failed).__name__}", file=sys.stderr)
        raise SystemExit(1 if not isinstance(failed, KeyboardInterrupt) else 130)
    plan["seconds"][message] = [round(seconds, 1), round(time.process_time() - computed, 1)]
    save(output, plan)


def save(output: Path, plan: dict[str, Any]) -> None:
    (output / "quickstart.json").write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
