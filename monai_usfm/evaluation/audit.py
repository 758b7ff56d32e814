# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Audits of trained weights on a datalist: the tables and figures behind ``monai-usfm audit``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from monai.transforms import Resize

from monai_usfm.cards import load_network
from monai_usfm.data import LoadUltrasound
from monai_usfm.evaluation.images import load_images, read_items
from monai_usfm.evaluation.report import conditions_of_run, file_digest, markdown_table
from monai_usfm.evaluation.robustness import audit_class_robustness, audit_robustness
from monai_usfm.evaluation.shortcuts import audit_shortcuts
from monai_usfm.files import write_csv, write_text_atomically
from monai_usfm.transforms import LabelIndices

__all__ = ["audit"]


def audit(
    checkpoint: str,
    datalist: str,
    *,
    kind: Literal["robustness", "shortcuts"] = "robustness",
    split: str = "test",
    dataset_dir: str | None = None,
    label_values: Sequence[int] | None = None,
    patient_table: str | None = None,
    patient_column: str = "patient_id",
    patient_pattern: str | None = None,
    limit: int | None = None,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
    output_dir: str = "audit",
) -> Path:
    """Say how trained weights answer to images that another scanner, or another operator, would have made.

    ``robustness`` changes margins, scale, gain, texture and burned-in annotations one at a time and scores the
    segmentation or classification again. ``shortcuts`` counts how often a classifier changes its mind when calipers,
    text or the edge of the field of view come or go. Writes ``KIND.csv``, ``KIND.md`` and a figure of the images that
    suffered most. 2D networks only; the temperature is left out.

    Args:
        checkpoint: weights with a card.
        datalist: JSON file with ``label`` (segmentation) or ``class`` (classification).
        kind: what is audited.
        split: split of the datalist.
        dataset_dir: folder its paths start from; default: that of the file.
        label_values: file values of the classes; default: those on the card, else 0, 1, ...
        patient_table: CSV file with a column ``image`` and one of patients.
        patient_column: the column of patients.
        patient_pattern: regular expression of the path, whose first group is the patient.
        limit: use only so many images, evenly chosen.
        device: where the network runs.
        output_dir: folder of the results.

    Returns:
        The table.

    Raises:
        ValueError: for weights of another task, or items without what the audit needs.
    """
    network = load_network(checkpoint).to(device)
    card: dict[str, Any] = network.card  # type: ignore[assignment]
    tasks = ("segmentation", "classification") if kind == "robustness" else ("classification",)
    if card["task"] not in tasks or card["network"].get("spatial_dims", 2) != 2:
        raise ValueError(f"{checkpoint} is for {card['task']}; the audit of {kind} takes 2D {' or '.join(tasks)}.")
    items = read_items(datalist, split, dataset_dir, patient_table, patient_column, patient_pattern, limit)
    wanted = "class" if card["task"] == "classification" else "label"
    lacking = [str(item["image"]) for item in items if item.get(wanted) is None]
    if lacking:
        raise ValueError(f"{datalist}: {len(lacking)} items lack '{wanted}', for example {lacking[0]}.")
    values = label_values if label_values is not None else card.get("label_values")
    make = _robustness if kind == "robustness" else _shortcuts
    rows, text = make(network, items, values, torch.device(device), Path(output_dir))
    run = {"model": f"sha256:{file_digest(checkpoint)}", "split": split, **conditions_of_run(device)}
    table = write_csv(Path(output_dir) / f"{kind}.csv", [{**row, **run} for row in rows])
    write_text_atomically(Path(output_dir) / f"{kind}.md", text)
    print(text)
    return table


def _predictor(network: Any, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    """Image ``(1, H, W)`` -> class indices ``(H, W)`` or probabilities ``(K,)``, at the size of the training."""
    options = network.card["network"]
    shrink = Resize(options["spatial_size"], mode="bilinear", anti_aliasing=True)

    @torch.no_grad()
    def predict(image: torch.Tensor) -> torch.Tensor:
        batch = torch.as_tensor(shrink(image)).as_subclass(torch.Tensor)[None]
        logits = network(batch.repeat(1, options.get("in_channels", 1), 1, 1).to(device))
        if logits.dim() == 2:
            return logits[0].softmax(0).cpu()
        return F.interpolate(logits.softmax(1), size=image.shape[1:], mode="bilinear").argmax(1)[0].cpu()

    return predict


def _robustness(
    network: Any, items: Sequence[dict[str, Any]], values: Any, device: torch.device, folder: Path
) -> tuple[list[dict[str, Any]], str]:
    predict, num_classes = _predictor(network, device), network.card["network"]["num_classes"]
    read, read_label = LoadUltrasound(2), LoadUltrasound(2, scale=None)
    images = [_plain(read(item["image"], item.get("frame"))) for item in items]
    patients = [item["patient"] for item in items]
    if network.card["task"] == "classification":
        lesions = None
        if all(item.get("label") for item in items):
            lesions = [_plain(read_label(item["label"], item.get("frame")))[0] for item in items]
        classes = [int(item["class"]) for item in items]
        found = audit_class_robustness(predict, images, classes, patients, lesions)
        heads = ["change", "images", "macro-F1", "loss", "AUC", "flipped"]
        lines = [(r.change, r.images, r.macro_f1, _loss(r), r.auc, f"{100 * r.flips:.1f} %") for r in found]
        return [asdict(row) for row in found], markdown_table(heads, lines)
    to_indices = LabelIndices(num_classes, values)
    labels = [_plain(to_indices(read_label(item["label"], item.get("frame"))))[0].long() for item in items]
    result = audit_robustness(predict, images, labels, patients, num_classes)
    result.save_figure(folder / "robustness.png")
    heads = ["change", "images", "Dice", "loss", "Dice below 0.5"]
    of_label = [(r.change, r.images, r.dice, _loss(r), f"{100 * r.failed:.1f} %") for r in result.rows]
    return [asdict(row) for row in result.rows], markdown_table(heads, of_label)


def _plain(image: Any) -> torch.Tensor:
    return torch.as_tensor(image).as_subclass(torch.Tensor)


def _loss(row: Any) -> str:
    return f"{row.loss:.3f} [{row.loss_low:.3f}, {row.loss_high:.3f}]"


def _shortcuts(
    network: Any, items: Sequence[dict[str, Any]], values: Any, device: torch.device, folder: Path
) -> tuple[list[dict[str, Any]], str]:
    options = network.card["network"]
    images = load_images(items, options["spatial_size"])
    channels = options.get("in_channels", 1)
    with torch.no_grad():
        result = audit_shortcuts(
            lambda x: network(x.repeat(1, channels, 1, 1).to(device)), images.images, images.classes, images.patients
        )
    result.save_figure(folder / "shortcuts.png")
    heads = ["alteration", "images", "predictions flipped", "mean change of p", "macro-F1 before", "after"]
    lines = [
        (
            r.alteration,
            r.images,
            f"{100 * r.flips:.1f} % [{100 * r.flips_low:.1f}, {100 * r.flips_high:.1f}]",
            r.mean_change,
            r.macro_f1_before,
            r.macro_f1_after,
        )
        for r in result.rows
    ]
    return result.table(), markdown_table(heads, lines)
