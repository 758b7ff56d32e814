# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""A bundle of one's own: a copy of one of ours with other weights, for programs that read its folder alone."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from monai_usfm.cards import card_path, read_card
from monai_usfm.files import write_text_atomically

__all__ = ["own_bundle"]


def own_bundle(bundle: str | os.PathLike, folder: str | os.PathLike, checkpoint: str | os.PathLike) -> Path:
    """Copy a bundle with other weights, of images or volumes, as MONAI Label and MONAI Deploy need it.

    The weights and their card become ``models/model.pt`` and ``model.json``; the metadata, from which MONAI Label takes
    the number of axes and the names of the classes, is that of the card.

    Args:
        bundle: folder of the bundle.
        folder: new folder; MONAI Label takes the task from its name, such as ``liver_segmentation``.
        checkpoint: weights with their card.

    Returns:
        ``folder``.

    Raises:
        FileExistsError: when the folder is there already.
        FileNotFoundError: for weights without a card.
    """
    source, target, card = Path(bundle), Path(folder), read_card(checkpoint)
    if target.exists():
        raise FileExistsError(f"{target} is there already: name a new folder.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:  # the copy is there whole or not at all
        part = Path(temporary) / "bundle"
        shutil.copytree(source, part, ignore=shutil.ignore_patterns("models", "output", "eval"))
        (part / "models").mkdir()
        shutil.copyfile(checkpoint, part / "models" / "model.pt")
        shutil.copyfile(card_path(checkpoint), part / "models" / "model.json")
        file = part / "configs" / "metadata.json"
        metadata = json.loads(file.read_text(encoding="utf-8"))
        _describe(metadata, card)
        write_text_atomically(file, json.dumps(metadata, indent=4) + "\n")
        os.replace(part, target)
    return target


def _describe(metadata: dict[str, Any], card: dict[str, Any]) -> None:
    """Make the metadata that of the network on the card; scores of the old weights are left out."""
    formats, size = metadata["network_data_format"], list(card["network"]["spatial_size"])
    for group in formats.values():
        for entry in group.values():
            if entry["type"] == "image":
                entry["spatial_shape"] = ["*"] * len(size) if "*" in entry["spatial_shape"] else size
    classes = card["network"].get("num_classes")
    if classes:
        plain = [str(i) for i in range(classes)]
        unnamed = ["background", *(f"structure {i}" for i in plain[1:])] if card["task"] == "segmentation" else plain
        names = card.get("class_names") or unnamed
        for group in ("outputs", "post_processed_outputs"):
            for entry in formats.get(group, {}).values():
                entry["channel_def"] = {str(index): str(name) for index, name in enumerate(names)}
                if entry["type"] == "probabilities":
                    entry["spatial_shape"] = [1, classes]
        formats["outputs"]["pred"]["num_channels"] = classes
        named = ", ".join(f"{index} {name}" for index, name in enumerate(names))
        metadata.update({key: named for key in ("label_classes", "pred_classes") if key in metadata})
    metadata["eval_metrics"] = dict(card.get("scores") or {})
