# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Verbs that hand trained weights on: as a bundle, to MONAI Label."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from monai_usfm.bundle import own_bundle
from monai_usfm.cards import read_card
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
    card = read_card(checkpoint)
    task = "pretraining" if card["task"] in ("features", "encoder") else card["task"]
    target = own_bundle(find_bundle(task, bundle_root), output, checkpoint)
    name = json.loads((target / "configs" / "metadata.json").read_text(encoding="utf-8"))["name"]
    print(f"{target}: {name}, {card['network'].get('spatial_dims', 2)}D")
    return target


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
