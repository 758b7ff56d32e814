# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""The card of a weight file: JSON beside the weights, checked against them by their SHA-256."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import monai_usfm
from monai_usfm.files import write_text_atomically

__all__ = [
    "NO_CLASSES",
    "TASKS",
    "card_path",
    "card_text",
    "check_card",
    "find_card",
    "full_scale_of",
    "read_card",
    "require_classes",
    "sha256_of",
    "write_card",
]

VERSION = 1
TASKS = ("encoder", "features", "pretraining", "segmentation", "classification", "enhancement")
NO_CLASSES = ("landmarks", "values", "prompts")
"""Fields of a card by which the outputs are no classes, or classes of what is asked for."""


def card_path(path: str | os.PathLike) -> Path:
    """Where the card of a weight file lies: the same name ending in ``.json``."""
    return Path(path).expanduser().with_suffix(".json")


def find_card(path: str | os.PathLike) -> dict[str, Any] | None:
    """The card beside a weight file, checked against it, or within one (safetensors); None where there is none.

    Raises:
        ValueError: for a card that cannot be read, or that was written for other weights.
    """
    place = card_path(path)
    if not place.is_file():
        return _card_within(Path(path).expanduser())
    try:
        card = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{place} is no readable card ({error}): write it again, or remove it.") from error
    if not isinstance(card, dict) or "card_version" not in card:
        return None  # some other file that happens to have this name
    if card["card_version"] > VERSION:
        raise ValueError(
            f"{place} is a card of version {card['card_version']}, this package reads up to {VERSION}: "
            "update monai_usfm."
        )
    check_card(card, place)
    weights = Path(path).expanduser()
    if weights != place and weights.is_file() and card.get("sha256") not in (None, sha256_of(weights)):
        if (held := _card_within(weights)) is not None:  # beside it lies that of the weights it was exported from
            return held
        raise ValueError(
            f"the card {place} does not belong to {weights}: it was written for other weights (another SHA-256). Copy "
            "the card that goes with them, or remove it and say by options what the network is."
        )
    return card


def _card_within(weights: Path) -> dict[str, Any] | None:
    """The card that ``monai-usfm export`` puts into the header of a safetensors file."""
    if weights.suffix != ".safetensors" or not weights.is_file():
        return None
    try:
        with weights.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        card = json.loads(header["__metadata__"]["card"])
    except (KeyError, TypeError, ValueError, MemoryError, OverflowError):
        return None  # written by others, or damaged: who reads the weights says so
    check_card(card, weights)
    return {key: value for key, value in card.items() if key != "sha256"}  # that of the file it was exported from


def read_card(path: str | os.PathLike) -> dict[str, Any]:
    """The card of a weight file.

    Args:
        path: the weights, or the card itself.

    Raises:
        FileNotFoundError: where there is none.
        ValueError: see :func:`find_card`.
    """
    card = find_card(path)
    if card is None:
        raise FileNotFoundError(f"{path} has no card: {card_path(path)} is missing, or no card of this package.")
    return card


def full_scale_of(card: Mapping[str, Any] | None) -> float | None:
    """The value of white of the images that a network was trained on; None where their files told it."""
    return ((card or {}).get("preprocessing") or {}).get("full_scale")


def require_classes(
    card: Mapping[str, Any], path: str | os.PathLike, *tasks: str, spatial_dims: int | None = None
) -> None:
    """Refuse a network that does not tell classes, only of what is clicked, or of images of other dimensions.

    Args:
        card: its card.
        path: its file, for the message.
        tasks: the tasks that are taken; default: segmentation and classification.
        spatial_dims: 2 for a network of images, 3 of volumes; None takes both.

    Raises:
        ValueError: naming the file.
    """
    tasks = tasks or ("segmentation", "classification")
    other = next((name for name in NO_CLASSES if card.get(name)), None)
    axes = card["network"].get("spatial_dims", 2)
    if card["task"] not in tasks or other or spatial_dims not in (None, axes):
        shown = {2: " of images", 3: " of volumes"}
        kind = card["task"] + (f" by {other}" if other else "") + ("" if spatial_dims is None else shown[axes])
        raise ValueError(
            f"{path} is for {kind}; here a {' or '.join(tasks)}{shown.get(spatial_dims or 0, '')} is needed that tells "
            "classes unasked."
        )


def write_card(path: str | os.PathLike, card: Mapping[str, Any]) -> Path:
    """Write the card of weights that exist, with their SHA-256; an old card is replaced as a whole.

    Args:
        path: the weight file.
        card: ``task`` and ``network`` (see :func:`describe_network`), and any of ``class_names``, ``label_values``,
            ``temperature``, ``presence_threshold``, ``preprocessing``, ``data``, ``license``, ``scores``, ``start``.

    Raises:
        ValueError: for a card that contradicts itself, or that would take the place of that of other weights.
        FileNotFoundError: where the weights are missing.
    """
    weights = Path(path).expanduser()
    if not weights.is_file():
        raise FileNotFoundError(f"no weights at {weights} for a card to describe.")
    place, exported = card_path(weights), weights.with_suffix(".pt")
    if weights.suffix == ".safetensors" and place.is_file() and exported.is_file():
        raise ValueError(f"{place} is the card of {exported}: rename {weights} first, for a card of its own.")
    return write_text_atomically(place, card_text(card, sha256_of(weights), place))


def card_text(card: Mapping[str, Any], sha256: str, place: Path) -> str:
    """The content of a card file for weights with this hash, checked."""
    full = {"card_version": VERSION, **card, "package": f"monai_usfm {monai_usfm.__version__}", "sha256": sha256}
    full = {name: value for name, value in full.items() if value is not None}
    check_card(full, place)
    return json.dumps(full, indent=1, ensure_ascii=False) + "\n"


def check_card(card: Mapping[str, Any], place: Path) -> None:
    """Raise ValueError unless the fields agree with each other."""
    problem = ""
    network = card.get("network")
    if card.get("task") not in TASKS:
        problem = f"its task is {card.get('task')!r}, expected one of {', '.join(TASKS)}"
    elif not isinstance(network, Mapping):
        problem = "it has no 'network', the options that build it"
    else:
        classes = network.get("num_classes")
        for name in ("class_names", "label_values"):
            # A single output, decided by a sigmoid, tells two classes apart.
            if card.get(name) is not None and classes is not None and len(card[name]) not in {classes, max(classes, 2)}:
                problem = f"it has {len(card[name])} {name} and {classes} classes"
    temperature = card.get("temperature", 1.0)
    if not isinstance(temperature, int | float) or not 0 < temperature < float("inf"):
        problem = f"its temperature is {temperature!r}, expected a positive number"
    presence = card.get("presence_threshold", 0.0)
    if not isinstance(presence, int | float) or not abs(presence) < float("inf"):
        problem = f"its presence_threshold is {presence!r}, expected a number"
    if problem:
        raise ValueError(f"the card {place} is unusable: {problem}.")


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
