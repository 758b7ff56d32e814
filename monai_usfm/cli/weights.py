# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Verbs that hand trained weights on: as a bundle, to MONAI Label."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from monai_usfm.bundle.training import start_file
from monai_usfm.cards import average_networks, card_path, find_card, read_card, save_network, sha256_of
from monai_usfm.cli.export import write_safetensors
from monai_usfm.files import write_text_atomically
from monai_usfm.workflow import find_bundle

__all__ = ["average", "hub_layout", "own_bundle", "pack", "serve_label"]

ENDINGS = ("nii.gz", "nii", "nrrd", "mha", "png", "jpg", "jpeg", "bmp", "tif", "tiff", "dcm")  # that Label lists


def average(output: str, checkpoints: Sequence[str]) -> Path:
    """Write the mean of the weights of several trainings from one start, which is often better than each of them.

    For example of two seeds: ``monai-usfm average mean.pt runs/0/model.pt runs/1/model.pt``. Choose by the validation
    split what to average. Wortsman et al. 2022 (model soups), https://arxiv.org/abs/2203.05482.

    Args:
        output: new weight file; its card lies beside it.
        checkpoints: weights with their cards, two or more of the same network.

    Returns:
        ``output``.

    Raises:
        FileExistsError: if it is there already.
        ValueError: for networks that differ, or one that is given twice.
    """
    if len({os.path.realpath(file) for file in checkpoints}) < len(checkpoints):
        raise ValueError(f"{', '.join(map(str, checkpoints))}: a file stands there twice; name each training once.")
    if Path(output).exists():
        raise FileExistsError(f"{output} is there already: name a new file.")
    saved = save_network(output, average_networks(checkpoints))
    print(f"{saved}: the mean of {len(checkpoints)} trainings. Score it, and calibrate it anew.")
    return saved


def pack(checkpoint: str, output: str, *, bundle_root: str | None = None, hub: bool = False) -> Path:
    """Copy a bundle with trained weights and their card into a new folder or a zip file.

    It is complete: ``monai.bundle run``, MONAI Label and MONAI Deploy take it as it is, for images or volumes, because
    the card says what the network is. Beside a zip file, which is a release, lies the wheel of this package where it is
    a checkout.

    Args:
        checkpoint: weights with a card.
        output: new folder, or file that ends in ``.zip``; MONAI Label takes the name of the model from its name.
        bundle_root: folder of the bundle; default: that of the task on the card.
        hub: lay it out for the Hugging Face Hub: a README with a YAML header at the root, weights as safetensors too.

    Returns:
        The folder or file.

    Raises:
        FileExistsError: if it is there already.
        ValueError: for a safetensors file.
    """
    if Path(checkpoint).suffix == ".safetensors":
        raise ValueError(f"{checkpoint}: a bundle holds a .pt file; pack the one that this was exported from.")
    card, target = read_card(checkpoint), Path(output)
    task = "pretraining" if card["task"] in ("features", "encoder") else card["task"]
    if target.exists():
        raise FileExistsError(f"{target} is there already: name a new folder or file.")
    with tempfile.TemporaryDirectory() as scratch:
        zipped = target.suffix == ".zip"
        place = Path(scratch, target.stem) if zipped else target
        folder = own_bundle(find_bundle(task, bundle_root), place, checkpoint)
        if hub:
            hub_layout(folder)
        name = json.loads((folder / "configs" / "metadata.json").read_text(encoding="utf-8"))["name"]
        if zipped:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.make_archive(str(target.with_suffix("")), "zip", scratch, folder.name)
            _write_wheel(target.parent)
    print(f"{target}: {name}, {card['network'].get('spatial_dims', 2)}D")
    return target


def own_bundle(bundle: str | os.PathLike, folder: str | os.PathLike, checkpoint: str | os.PathLike) -> Path:
    """Copy a bundle with other weights, of images or volumes, as MONAI Label and MONAI Deploy need it.

    The weights and their card become ``models/model.pt`` and ``model.json``, the start of the bundle
    ``foundation.pt``; the metadata, from which MONAI Label takes axes and classes, is that of the card. Weights that
    the bundle did not come with have pages of their own, which say what their card says: other people's images, scores
    and licenses would be claimed for them otherwise.

    Args:
        bundle: folder of the bundle.
        folder: new folder, which is returned; MONAI Label takes the task from its name, such as ``liver_segmentation``.
        checkpoint: weights with their card.
    """
    source, target, card = Path(bundle), Path(folder), read_card(checkpoint)
    if source.resolve() in target.resolve().parents:
        raise ValueError(f"{target} lies in the bundle that is copied, {source}: name a folder outside of it.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:  # the copy is there whole or not at all
        part = Path(temporary) / "bundle"
        shutil.copytree(source, part, ignore=shutil.ignore_patterns("models", "output", "eval"))
        (part / "models").mkdir()
        shutil.copyfile(checkpoint, part / "models" / "model.pt")
        shutil.copyfile(card_path(checkpoint), part / "models" / "model.json")
        start = start_file(source)  # what its training starts from
        if start.is_file():
            shutil.copyfile(start, part / "models" / "foundation.pt")
            shutil.copyfile(card_path(start), part / "models" / "foundation.json")
        file = part / "configs" / "metadata.json"
        metadata = json.loads(file.read_text(encoding="utf-8"))
        _describe(metadata, card)
        known = [find_card(other) or {} for other in (source / "models").glob("*.json")]
        if card.get("sha256") not in [other.get("sha256") for other in known]:
            _own_pages(part / "docs", metadata, card, start.parents[1] / "docs" / "data_license.txt")
        write_text_atomically(file, json.dumps(metadata, indent=4) + "\n")
        os.replace(part, target)
    return target


def hub_layout(folder: str | os.PathLike) -> None:
    """Make a bundle's folder what a repository of the Hugging Face Hub is.

    ``docs/README.md`` becomes the model card at the root: with its YAML header, links to images that hold from there,
    and without links out of the folder. ``monai.bundle.push_to_hf_hub`` uploads the folder as it is then. The weights
    are there as ``model.safetensors`` too.
    """
    root = Path(folder)
    weights, card = root / "models" / "model.pt", read_card(root / "models" / "model.pt")
    state = torch.load(weights, map_location="cpu", weights_only=True)
    write_safetensors(weights.with_suffix(".safetensors"), state, json.dumps(card))
    text = (root / "docs" / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"\[([^]]*)\]\(\.\./[^)]*\)", r"\1", text)
    text = re.sub(r"\]\((?!https?:|#)", "](docs/", text)
    tags = "".join(f"- {tag}\n" for tag in ("monai", "medical", "ultrasound", card["task"]))
    free = str(card.get("license", "")).startswith("Apache-2.0")
    header = f"---\nlibrary_name: monai\nlicense: {'apache-2.0' if free else 'other'}\ntags:\n{tags}---\n"
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
        stands = f"As it stands: {', '.join(map(str, names))} in {len(size)}D."
        metadata["description"] = re.sub(r"As it stands: [^.]*\.", lambda _: stands, metadata["description"])
    metadata["eval_metrics"] = dict(card.get("scores") or {})


UNTOLD = "not told by the card of the weights"
OWN_PAGE = """# {name}

{description}

## Weights

`models/model.pt`, with their card `models/model.json`: {dims}D, {size} pixels, written by {package}.

- Classes: {classes}
- Images they learned from: {data}
- How: {recipe}
- Scores: {scores}
- License: {license}; see `docs/data_license.txt`

`models/foundation.pt` is what training starts from.

## Use

```bash
pip install WHEEL    # of monai_usfm, which is on no package index
monai-usfm predict --checkpoint models/model.pt --dataset_dir FOLDER --output_dir OUT
python -m monai.bundle run --config_file configs/inference.json --bundle_root . --dataset_dir FOLDER --output_dir OUT
```

## Limitations

Research only, not for clinical use. Images of other scanners and patients than those of training may fare worse.
"""


def _own_pages(docs: Path, metadata: dict[str, Any], card: dict[str, Any], of_start: Path) -> None:
    """Pages and metadata of weights that somebody else trained; ``of_start`` are the licenses behind their start."""
    told = {key: str(card.get(key) or UNTOLD) for key in ("data", "recipe", "license", "package")}
    classes = metadata.get("pred_classes", "none")
    metadata["description"] = f"{metadata['task']}: {classes}. Weights of their own, by the Python package monai_usfm."
    metadata["data_source"] = told["data"]
    metadata |= {"version": "0.1.0", "changelog": {"0.1.0": "packed with weights of their own"}}
    network, scores = card["network"], card.get("scores") or {}
    shutil.rmtree(docs)
    page = OWN_PAGE.format(
        name=metadata["name"],
        description=metadata["description"],
        dims=network.get("spatial_dims", 2),
        size=" x ".join(map(str, network["spatial_size"])),
        classes=classes,
        scores=", ".join(f"{key} {value}" for key, value in scores.items()) or "none told",
        **told,
    )
    write_text_atomically(docs / "README.md", page)
    lines = [f"models/model.pt: images: {told['data']}. License: {told['license']}."]
    start = card.get("start")
    while isinstance(start, dict):
        data, license = (str(start.get(key) or UNTOLD) for key in ("data", "license"))
        lines.append(f"It started from {start.get('file', 'other weights')}: images: {data}. License: {license}.")
        start = start.get("start")
    if of_start.is_file():
        lines.append(
            f"Behind models/foundation.pt, from which training starts:\n\n{of_start.read_text(encoding='utf-8')}"
        )
    write_text_atomically(docs / "data_license.txt", "\n\n".join(lines))


def _write_wheel(folder: Path) -> None:
    """The wheel of this package, from a checkout; an installed package has its source elsewhere."""
    root = Path(__file__).parents[2]
    if (root / "pyproject.toml").is_file():
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(root)]
        subprocess.run(command, check=True)


def serve_label(
    bundles: Sequence[str], *, studies: str, app: str = "monailabel_app", host: str = "127.0.0.1", port: int = 8000
) -> int:
    """Start MONAI Label with packed bundles.

    Needs MONAI Label 0.8.5 (docs/INTEGRATIONS.md says how it is installed). Its app, of this package, and the bundles
    are copied into ``app``; a training there changes the copy. The server takes DICOM too.

    Args:
        bundles: folders that ``pack`` made, or bundles of the package.
        studies: folder of the images.
        app: folder of the app; made where there is none.
        host: address to listen on.
        port: port to listen on.

    Returns:
        The exit status of the server.

    Raises:
        ModuleNotFoundError: without MONAI Label.
        ValueError: for a bundle that MONAI Label cannot use.
    """
    if find_spec("monailabel") is None:
        raise ModuleNotFoundError("MONAI Label is not installed: see docs/INTEGRATIONS.md for how it is.")
    folders = [find_bundle(bundle) for bundle in bundles]
    for folder in folders:
        config = json.loads((folder / "configs" / "inference.json").read_text(encoding="utf-8"))
        if config["network_def"].get("task") == "features":
            raise ValueError(
                f"{folder} gives features, and MONAI Label shows masks, classes and images: serve a segmentation, "
                "classification or enhancement."
            )
    home = Path(app)
    home.mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(__file__).parents[1] / "label_app" / "main.py", home)
    for folder in folders:
        copy, weights = home / "model" / folder.name, Path("models", "model.pt")
        if not copy.exists():
            shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("output", "eval"))
        elif sha256_of(copy / weights) != sha256_of(folder / weights):
            print(f"{copy} has other weights than {folder}, by a training or an earlier call, and is served as it is;")
            print(f"remove it to serve {folder}.")
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(home), "--studies", studies]
    command += ["--host", host, "--port", str(port), "--conf", "models", ",".join(folder.name for folder in folders)]
    settings = {
        "MONAI_LABEL_DATASTORE_FILE_EXT": json.dumps([f"*.{ending}" for ending in ENDINGS]),
        "MONAI_LABEL_AUTO_UPDATE_SCORING": "false",  # not every image at the start, but when it is asked for
    }
    return subprocess.run(command, env={**settings, **os.environ}).returncode
