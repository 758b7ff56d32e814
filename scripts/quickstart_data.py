#!/usr/bin/env python
# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Choose the images of scripts/quickstart.sh: simulated ones, or the user's own with simulated ones where labels lack.

Writes into the output folder: plan.json (for the report), plan.sh (the same for the shell), the datalists, and cases/
(the test images shown in the report, as upright PNG of class indices and grey values).
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from monai_usfm.data import LoadUltrasound, UnknownPatientsError, load_datalist, make_datalist
from monai_usfm.simulation import write_synthetic_dataset
from monai_usfm.transforms import LabelIndices, is_jpeg_label

MINIMUM = {"training": 16, "validation": 2, "test": 5}  # labelled images without which a score would say nothing
MAXIMUM_CLASSES = 16
LABELLED = 48  # images that the segmentation is trained on: few, as pretraining is for those who have few
SIMULATED = "simulated images"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="folder of the user's own images")
    parser.add_argument("--images", default="192,16,48", help="simulated training, validation and test images")
    parser.add_argument("--num-cases", type=int, default=6, help="test images shown in the report")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    plan = plan_of_user(options) if options.data else plan_of_simulation(options)
    save_cases(plan, options.output / "cases", options.num_cases)
    (options.output / "plan.json").write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")
    lines = [f"plan_{name}={shlex.quote(str(value))}" for name, value in plan.items()]
    (options.output / "plan.sh").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(plan["summary"])
    return 0


def plan_of_simulation(options: argparse.Namespace) -> dict[str, Any]:
    """Everything on the synthetic world."""
    counts = [int(number) for number in options.images.split(",")]
    datalist = write_synthetic_dataset(options.output / "simulated", *counts, image_size=(128, 128), seed=0)
    part = min(1.0, LABELLED / counts[0])
    return {
        "simulated_pretraining": True,
        "simulated_segmentation": True,
        "pretraining_origin": SIMULATED,
        "pretraining_dir": str(datalist.parent),
        "pretraining_list": str(datalist),
        "segmentation_origin": SIMULATED,
        "segmentation_dir": str(datalist.parent),
        "segmentation_list": str(datalist),
        "num_classes": 2,
        "label_values": [0, 1],
        "label_fraction": part,
        "summary": f"{counts[0]} simulated images to learn from, {round(part * counts[0])} of them with labels; "
        f"{counts[2]} others for the test.",
        "notes": ["All images are simulated: the scores say nothing about patients."],
    }


def plan_of_user(options: argparse.Namespace) -> dict[str, Any]:
    """Pretraining on the user's images; segmentation on them too where enough of them have usable labels."""
    datalist = options.output / "pretraining.json"
    where = {"output": str(datalist), "dataset_dir": str(options.data), "split": "0.7/0.1/0.2"}
    try:
        make_datalist([str(options.data)], **where)
        patients = "Patients were taken from paths; check the split in pretraining.json before you quote a score."
    except UnknownPatientsError as error:
        print(f"Note: {error}")
        make_datalist([str(options.data)], **where, patient_pattern="(.*)")
        patients = "Patients are NOT known, so one may be in training and test: the scores may be too good."
    content = json.loads(datalist.read_text(encoding="utf-8"))
    numbers = {section: len(content[section]) for section in MINIMUM}
    pretraining = {
        "simulated_pretraining": False,
        "pretraining_origin": "your images",
        "pretraining_dir": str(options.data),
        "pretraining_list": str(datalist),
    }
    labelled = {
        section: [item for item in content[section] if item.get("label") and item.get("num_frames", 1) == 1]
        for section in MINIMUM
    }
    lacking = {name: len(labelled[name]) for name, number in MINIMUM.items() if len(labelled[name]) < number}
    if lacking:
        reason = ", ".join(
            f"{number} labelled {name} images (needed: {MINIMUM[name]})" for name, number in lacking.items()
        )
    else:
        values = label_values(options.data, [item for found in labelled.values() for item in found])
        reason = (
            "" if values else f"labels are missing, of another size, or have over {MAXIMUM_CLASSES} different values"
        )
    note = f"{sum(numbers.values())} of your images were read, {numbers['training']} of them are used for pretraining."
    if reason:
        plan = plan_of_simulation(options) | pretraining
        plan["notes"] = [
            note,
            f"The segmentation runs on SIMULATED images, since your folder cannot serve it: {reason}. So its scores "
            "say nothing about your images, and an encoder that knows yours may not help on simulated ones.",
        ]
        plan["summary"] = " ".join(plan["notes"])
        return plan
    part = min(1.0, LABELLED / len(labelled["training"]))
    own = options.output / "segmentation.json"
    own.write_text(json.dumps({"name": "labelled images", **labelled}, indent=1) + "\n", encoding="utf-8")
    note += f" About {round(part * len(labelled['training']))} with labels train the segmentation,"
    note += f" {len(labelled['test'])} test it."
    return {
        **pretraining,
        "simulated_segmentation": False,
        "segmentation_origin": "your images",
        "segmentation_dir": str(options.data),
        "segmentation_list": str(own),
        "num_classes": len(values),
        "label_values": values,
        "label_fraction": part,
        "summary": note,
        "notes": [
            note,
            patients,
        ],
    }


def label_values(folder: Path, items: list[dict[str, Any]]) -> list[int]:
    """Values of the classes over all label files, background first; empty when the labels cannot serve."""
    read, found = LoadUltrasound(scale=None), set[float]()
    for item in items:
        files = [item["label"]] if isinstance(item["label"], str) else item["label"]
        label, image = read([folder / file for file in files]), LoadUltrasound()(folder / item["image"])
        if label.shape[1:] != image.shape[1:]:
            return []
        if is_jpeg_label(label):  # its values are those of a mask, spread by compression
            found |= {0.0, 255.0}
        else:
            found |= set(torch.as_tensor(label).unique().tolist())
        if len(found) > MAXIMUM_CLASSES:
            return []
    whole = sorted({int(value) for value in found} | {0})
    return whole if len(whole) > 1 and all(value == int(value) for value in found) else []


def save_cases(plan: dict[str, Any], folder: Path, number: int) -> None:
    """Test images and labels as PNG with names of their own: the first ones of every organ, in the list's order."""
    items = load_datalist(plan["segmentation_list"], plan["segmentation_dir"], "test", required=("image", "label"))
    by_organ: dict[str, list[dict[str, Any]]] = {}
    for item in items:
        by_organ.setdefault(str(item.get("organ", "")), []).append(item)
    ranked = sorted((rank, place) for found in by_organ.values() for rank, place in enumerate(map(items.index, found)))
    indices = LabelIndices(plan["num_classes"], plan["label_values"])
    for count, (_, place) in enumerate(ranked[:number], start=1):
        image = LoadUltrasound()(items[place]["image"])[0]
        label = indices(LoadUltrasound(scale=None)(items[place]["label"]))[0]
        save(folder / "images" / f"case_{count}.png", (image * 255).round())
        save(folder / "labels" / f"case_{count}.png", label)


def save(path: Path, pixels: torch.Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(torch.as_tensor(pixels)).astype(np.uint8)).save(path)


if __name__ == "__main__":
    sys.exit(main())
