#!/usr/bin/env python
# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""How much worse does a segmentation or classification bundle get on pictures that another scanner would have made?

    python scripts/audit_robustness.py bundles/usfm_segmentation --datalist data/busbra/dataset.json \\
        --patient_table data/busbra/labels.csv --output results/robustness

Margins, scale, gain, texture and marks are changed one at a time; the scores are those on the changed pictures. Writes
robustness.csv and robustness.md, for segmentation also robustness.png, which shows for each change the image that lost
most. 2D images only; items with `label` and, for classification, `class`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from monai.bundle import ConfigParser
from monai.transforms import Resize

from monai_usfm.data import LoadUltrasound, load_datalist
from monai_usfm.evaluation import (
    ClassRobustnessRow,
    add_patient_options,
    add_patients,
    audit_class_robustness,
    audit_robustness,
    patients_of,
)
from monai_usfm.evaluation.report import conditions_of_run, file_digest, markdown_table
from monai_usfm.files import write_csv, write_text_atomically
from monai_usfm.settings import parse_settings
from monai_usfm.transforms import LabelIndices


def predictor(config: ConfigParser, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    """Image ``(1, H, W)`` -> class indices ``(H, W)`` or probabilities ``(K,)`` without temperature, by the bundle."""
    network, plan = config.get_parsed_content("network_def").to(device), config.get_parsed_content("plan")
    shrink = Resize(plan["spatial_size"], mode="bilinear", anti_aliasing=True)
    inferer, channels = config.get_parsed_content("inferer"), plan["in_channels"]

    @torch.no_grad()
    def predict(image: torch.Tensor) -> torch.Tensor:
        batch = torch.as_tensor(shrink(image)).as_subclass(torch.Tensor)[None].repeat(1, channels, 1, 1)
        logits = inferer(batch.to(device), network)
        if logits.dim() == 2:
            return logits[0].softmax(0).cpu()
        return F.interpolate(logits.softmax(1), size=image.shape[1:], mode="bilinear").argmax(1)[0].cpu()

    return predict


def report(rows: Sequence[Any]) -> str:
    """Markdown table of an audit."""
    heads, lines = ["change", "images"], []
    of_classes = isinstance(rows[0], ClassRobustnessRow)
    heads += ["macro-F1", "loss", "AUC", "flipped"] if of_classes else ["Dice", "loss", "Dice below 0.5"]
    for row in rows:
        loss = f"{row.loss:.3f} [{row.loss_low:.3f}, {row.loss_high:.3f}]"
        if of_classes:
            scores = [row.macro_f1, loss, row.auc, f"{100 * row.flips:.1f} %"]
        else:
            scores = [row.dice, loss, f"{100 * row.failed:.1f} %"]
        lines.append([row.change, row.images, *scores])
    return markdown_table(heads, lines)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="folder of the segmentation or classification bundle")
    parser.add_argument("--datalist", type=Path, required=True, help="with image and label or class")
    parser.add_argument("--dataset_dir", type=Path, help="folder its paths start from; default: that of the file")
    parser.add_argument("--section", default="test")
    add_patient_options(parser)
    parser.add_argument("--label_values", type=int, nargs="+", help="file values of the classes; default: 0, 1, ...")
    parser.add_argument("--checkpoint", type=Path, help="weights; default models/model.pt in the bundle")
    parser.add_argument("--set", nargs="*", default=[], metavar="ID=VALUE", help="further settings of inference.json")
    parser.add_argument("--limit", type=int, help="use only so many images, evenly chosen")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse(arguments)
    config = ConfigParser(ConfigParser.load_config_file(args.bundle / "configs" / "inference.json"))
    config["bundle_root"] = str(args.bundle)
    if args.checkpoint is not None:
        config["checkpoint"] = str(args.checkpoint)
    for name, value in parse_settings(args.set).items():
        config[name] = value
    checkpoint = Path(config.get_parsed_content("checkpoint"))
    if not checkpoint.is_file():
        raise SystemExit(f"no weights at {checkpoint}: train the bundle first or give --checkpoint.")
    if config.get_parsed_content("plan")["spatial_dims"] != 2:
        raise SystemExit("the audit changes pictures, so it takes 2D networks alone.")
    folder = args.dataset_dir or args.datalist.parent
    items = load_datalist(args.datalist, folder, args.section)
    if args.limit:
        items = items[:: -(-len(items) // args.limit)]
    items = add_patients(items, folder, **patients_of(args))
    predict, num_classes = (
        predictor(config, torch.device(args.device)),
        config.get_parsed_content("plan")["num_classes"],
    )
    read, read_label = LoadUltrasound(2), LoadUltrasound(2, scale=None)
    images = [read(item["image"], item.get("frame")).as_tensor() for item in items]
    patients = [item["patient"] for item in items]
    of_classes = predict(images[0]).dim() == 1
    wanted = "class" if of_classes else "label"
    lacking = [str(item["image"]) for item in items if item.get(wanted) is None]
    if lacking:
        raise SystemExit(f"{args.datalist}: {len(lacking)} items lack '{wanted}', for example {lacking[0]}.")
    if of_classes:
        lesions = None
        if all(item.get("label") for item in items):
            lesions = [read_label(item["label"], item.get("frame"))[0].as_tensor() for item in items]
        rows: Sequence[Any] = audit_class_robustness(
            predict, images, [int(item["class"]) for item in items], patients, lesions
        )
    else:
        to_indices = LabelIndices(num_classes, args.label_values)
        labels = [to_indices(read_label(item["label"], item.get("frame")))[0].as_tensor().long() for item in items]
        audit = audit_robustness(predict, images, labels, patients, num_classes)
        audit.save_picture(args.output / "robustness.png")
        rows = audit.rows
    run = {"model": f"sha256:{file_digest(checkpoint)}", "section": args.section, **conditions_of_run(args.device)}
    write_csv(args.output / "robustness.csv", [{**asdict(row), **run} for row in rows])
    text = report(rows)
    write_text_atomically(args.output / "robustness.md", text)
    print(text)


if __name__ == "__main__":
    main()
