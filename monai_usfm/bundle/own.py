# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""A bundle of one's own: a copy of one of ours with other weights, for programs that read its folder alone."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from monai_usfm.cards import card_path, read_card
from monai_usfm.files import write_text_atomically

__all__ = ["hub_layout", "own_bundle"]


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
        for start in (source / "models").glob("foundation.*"):  # what its training starts from
            shutil.copyfile(start, part / "models" / start.name)
        file = part / "configs" / "metadata.json"
        metadata = json.loads(file.read_text(encoding="utf-8"))
        _describe(metadata, card)
        write_text_atomically(file, json.dumps(metadata, indent=4) + "\n")
        os.replace(part, target)
    return target


def hub_layout(folder: str | os.PathLike) -> None:
    """Make a bundle's folder what a repository of the Hugging Face Hub is.

    ``docs/README.md`` becomes the model card at the root: with its YAML header, links to images that hold from there,
    and without links out of the folder. ``monai.bundle.push_to_hf_hub`` uploads the folder as it is then. The weights
    are there as ``model.safetensors`` too.
    """
    from safetensors.torch import save_file

    root = Path(folder)
    weights, card = root / "models" / "model.pt", read_card(root / "models" / "model.pt")
    save_file(torch.load(weights, map_location="cpu", weights_only=True), str(weights.with_suffix(".safetensors")))
    text = (root / "docs" / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"\[([^]]*)\]\(\.\./[^)]*\)", r"\1", text)
    text = re.sub(r"\]\((?!https?:|#)", "](docs/", text)
    tags = "".join(f"- {tag}\n" for tag in ("monai", "medical", "ultrasound", card["task"]))
    header = f"---\nlibrary_name: monai\nlicense: apache-2.0\ntags:\n{tags}---\n"
    write_text_atomically(root / "README.md", header + text)
    (root / "docs" / "README.md").unlink()


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
