# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Verbs that hand trained weights on: as a bundle, to MONAI Label."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from monai_usfm.cards import card_path, read_card
from monai_usfm.workflow import find_bundle

__all__ = ["pack", "serve_label"]


def pack(checkpoint: str, output: str, *, bundle_root: str | None = None) -> Path:
    """Copy a bundle with trained weights and their card into a new folder.

    The folder is complete: ``monai.bundle run``, MONAI Label and MONAI Deploy take it as it is, for images or volumes,
    because the card says what the network is.

    Args:
        checkpoint: weights with a card.
        output: new folder; MONAI Label takes the name of the model from its name.
        bundle_root: folder of the bundle; default: that of the task on the card.

    Returns:
        The folder.

    Raises:
        FileExistsError: if the folder is there already.
    """
    card, target = read_card(checkpoint), Path(output)
    if target.exists():
        raise FileExistsError(f"{target} is there already: name a new folder.")
    task = "pretraining" if card["task"] in ("features", "encoder") else card["task"]
    source = find_bundle(task, bundle_root)
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
        file.write_text(json.dumps(metadata, indent=4) + "\n", encoding="utf-8")
        os.replace(part, target)
    print(f"{target}: {metadata['name']}, {card['network'].get('spatial_dims', 2)}D")
    return target


def _describe(metadata: dict[str, Any], card: dict[str, Any]) -> None:
    """Make the metadata those of the packed network: its size and classes; scores of other weights are left out."""
    formats, network = metadata["network_data_format"], card["network"]
    size = list(network["spatial_size"])
    for group in formats.values():
        for entry in group.values():
            if entry["type"] == "image":
                entry["spatial_shape"] = ["*"] * len(size) if "*" in map(str, entry["spatial_shape"]) else size
    names = card.get("class_names") or [str(i) for i in range(network.get("num_classes", 0))]
    if names and "pred" in formats.get("outputs", {}):
        for group in ("outputs", "post_processed_outputs"):
            for entry in formats.get(group, {}).values():
                entry["channel_def"] = {str(index): name for index, name in enumerate(names)}
                if entry["type"] == "probabilities":
                    entry["spatial_shape"] = [1, len(names)]
        formats["outputs"]["pred"]["num_channels"] = len(names)
        named = ", ".join(f"{index} {name}" for index, name in enumerate(names))
        metadata.update({key: named for key in ("label_classes", "pred_classes") if key in metadata})
    metadata["eval_metrics"] = dict(card.get("scores") or {})


def serve_label(
    bundles: Sequence[str], *, studies: str, app: str = "monailabel_app", host: str = "127.0.0.1", port: int = 8000
) -> int:
    """Start MONAI Label with packed bundles.

    Needs ``pip install monailabel`` (docs/INTEGRATIONS.md says which versions). Its app ``monaibundle`` is put
    into ``app`` and the bundles into the app's folder ``model``.

    Args:
        bundles: folders of :func:`pack`, or bundles of the package.
        studies: folder of the images.
        app: folder of the app; made where there is none.
        host: address to listen on.
        port: port to listen on.

    Returns:
        The exit status of the server.

    Raises:
        ModuleNotFoundError: without MONAI Label.
    """
    if find_spec("monailabel") is None:
        raise ModuleNotFoundError("MONAI Label is not installed: pip install monailabel, see docs/INTEGRATIONS.md.")
    folders = [find_bundle(bundle) for bundle in bundles]
    label = [sys.executable, "-m", "monailabel.main"]
    home = Path(app) / "monaibundle"
    if not home.is_dir():
        subprocess.run([*label, "apps", "--download", "--name", "monaibundle", "--output", app], check=True)
    for folder in folders:
        if not (home / "model" / folder.name).exists():
            shutil.copytree(folder, home / "model" / folder.name, ignore=shutil.ignore_patterns("output", "eval"))
    models = ",".join(folder.name for folder in folders)
    command = [*label, "start_server", "--app", str(home), "--studies", studies, "--host", host, "--port", str(port)]
    settings = {"models": models, "zoo_source": "ngc", "sam2": "false"}
    return subprocess.run([*command, *(x for pair in settings.items() for x in ("--conf", *pair))]).returncode
