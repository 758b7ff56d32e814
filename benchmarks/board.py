# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""The boards of docs/results/foundation.md and volumes.md: ``python benchmarks/board.py DATA OUTPUT``.

Writes the lists of the tasks, with the validation and test images that were scored, and ``images.json`` and
``folds.json`` (volumes by cross-validation with one to four labels: each of 24 is scored once) for
``monai-usfm transfer-board OUTPUT/images.json OUTPUT/images``. To save time, whole patients are left out of the
validation and test lists of the breast tasks, in the order of a hash of their names.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

from monai_usfm.data import join_table, load_datalist

START = Path(__file__).resolve().parents[1] / "bundles" / "usfm_pretraining" / "models" / "model.pt"
SPLITS = ("training", "validation", "test")
# task: folder, column that names what must stay together, validation and test images at least (None: all)
TASKS: dict[str, tuple[str, str | None, int | None, int | None]] = {
    "breast": ("busbra", "patient_id", 64, 128),
    "head": ("fetal_head_hc18", "subject_id", None, None),
    "muscle": ("muscle_aponeurosis", "cluster", None, None),
    "classes": ("busbra", "patient_id", 128, None),
    "prostate": ("prostate_trus_3d", None, None, None),
}
FOLDS = 6  # of four volumes
COMMON: dict[str, Any] = {"steps": 100, "max_epochs": 4, "warmup_epochs": 1, "num_workers": 0}
IMAGES = {**COMMON, "batch_size": 16, "spatial_size": [128, 128]}
VOLUMES = {**COMMON, "batch_size": 2, "spatial_size": [48, 64, 48], "spatial_dims": 3}


def listed(data: Path, task: str, target: Path) -> dict[str, list[dict[str, Any]]]:
    """The lists of a task, shortened."""
    folder, column, *shown = TASKS[task]
    source = data / folder / "dataset.json"
    if column:
        source = join_table(str(source), str(data / folder / "labels.csv"), [f"patient={column}"], output=str(target))
    lists: dict[str, list[dict[str, Any]]] = {}
    for split, number in zip(SPLITS, (None, *shown), strict=True):
        items = load_datalist(source, data / folder, split)
        for item in items:
            if task == "classes":
                del item["label"]
        if number is not None:
            by_patient: dict[str, list[dict[str, Any]]] = {}
            for item in items:
                by_patient.setdefault(item["patient"], []).append(item)
            items = []
            for patient in sorted(by_patient, key=lambda name: hashlib.sha256(name.encode()).hexdigest()):
                if len(items) < number:
                    items += by_patient[patient]
        lists[split] = items
    return lists


def unet(dims: int, weights: Path | None = None) -> dict[str, Any]:
    """Options of a start: MONAI's UNet, from scratch or with weights of its own."""
    channels = [16, 32, 64, 128, 256][: 7 - dims]
    definition = f"monai.networks.nets.UNet({dims}, 1, 2, {channels}, {[2] * (len(channels) - 1)}, num_res_units=2)"
    if weights:  # an entry of its own: a name in an expression may end it
        loaded = "torch.load(@unet_weights, weights_only=True)"
        definition = f"monai.networks.copy_model_state(n := {definition}, {loaded}) and n"
    start = {"network_def": f"${definition}", "layer_decay": 1.0}
    return {**start, "unet_weights": str(weights.resolve())} if weights else start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--dinov2", type=Path, help="dinov2_vits14.pt, as a further start")
    parser.add_argument("--unet", type=Path, help="weights of the 2D UNet from simulated images, as a further start")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    lists = {task: listed(options.data.absolute(), task, options.output / f"{task}.json") for task in TASKS}
    prostates = lists.pop("prostate")
    parts = [(prostates["training"] + prostates["test"])[k::FOLDS] for k in range(FOLDS)]
    for k, part in enumerate(parts):
        fold = {"training": part, "validation": prostates["validation"], "test": parts[(k + 1) % FOLDS]}
        lists[f"prostate{k}"] = fold
    for task, splits in lists.items():
        (options.output / f"{task}.json").write_text(json.dumps(splits, indent=1))
    densenet = {"_target_": "DenseNet121", "spatial_dims": 2, "in_channels": 1, "out_channels": 2}
    foundation, scratch = {"pretrained": str(START)}, {"layer_decay": 1.0}
    starts: dict[str, Any] = {"foundation": foundation, "scratch": scratch, "unet": unet(2)}
    if options.unet:
        starts["unet_simulated"] = unet(2, options.unet)
    if options.dinov2:
        starts["dinov2"] = {"pretrained": str(options.dinov2.resolve()), "patch_size": [16, 16], "in_channels": 1}
    starts["densenet121"] = {"network_def": densenet, "layer_decay": 1.0}
    tasks: dict[str, Any] = {name: {"datalist": f"{name}.json"} for name in ("breast", "head", "muscle")}
    tasks["classes"] = {"bundle": "classification", "datalist": "classes.json"}
    board = {"options": IMAGES, "tasks": tasks, "starts": starts, "fractions": [0.05, 0.1, 0.2, 1.0]}
    board |= {"seeds": [0, 1, 2], "reference": "foundation"}
    (options.output / "images.json").write_text(json.dumps(board, indent=1))
    starts = {"foundation": foundation, "scratch": scratch, "unet": unet(3)}
    tasks = {f"prostate{k}": {"datalist": f"prostate{k}.json"} for k in range(FOLDS)}
    board |= {
        "options": VOLUMES,
        "tasks": tasks,
        "starts": starts,
        "fractions": [0.25, 0.5, 0.75, 1.0],
        "seeds": [0, 1],
    }
    (options.output / "folds.json").write_text(json.dumps(board, indent=1))


if __name__ == "__main__":
    main()
