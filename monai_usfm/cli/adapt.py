# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""The verb that fits a trained segmentation to the images of another scanner, without labels of them."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import torch

from monai_usfm.cards import full_scale_of, load_network, read_card, require_classes, save_network, write_card
from monai_usfm.cards.load import OUTDATED
from monai_usfm.data import list_images, load_splits
from monai_usfm.data.folders import mark_results
from monai_usfm.data.splits import with_full_scale
from monai_usfm.evaluation.pseudo_labels import pseudo_label
from monai_usfm.files import write_text_atomically
from monai_usfm.options import warn_without_effect
from monai_usfm.settings import parse_options
from monai_usfm.workflow import load_bundle, run_loaded

from .bundles import DEFAULT, Bundle, Options, Task, train

__all__ = ["adapt"]

Items = list[dict[str, Any]]


def adapt(
    folder: str,
    *options: Options,
    checkpoint: str,
    method: Literal["self_training", "pretraining", "style"] = "self_training",
    labeled: str | None = None,
    agreement: float = 0.8,
    share: float = 0.5,
    bundle: Bundle = DEFAULT,
) -> None:
    """Fit a trained segmentation to the images of your scanner, without labels of them.

    - ``self_training``: what the network sees in them, where it is sure (``pseudo-label``), and as many labeled images
      train it on for a few epochs, by the segmentation bundle. Xie et al. 2020, https://arxiv.org/abs/1911.04252.
    - ``pretraining``: the encoder's self-supervision goes on in them, by the pretraining bundle, and the head is moved
      over. The encoder becomes a mean of its weights before and after, since a head reads features badly that it has
      never seen. Wortsman et al. 2022, https://arxiv.org/abs/2109.01903.
    - ``style``: device-invariant training. Labeled images take on gray values and spectrum of yours, by the overlay
      ``foundation`` of the pretraining bundle. Xu et al. 2021, https://arxiv.org/abs/2105.11120.

    All options of the bundle that a method runs are taken, for example ``--pretrained shipped`` to go on from the start
    and not from the trained encoder. Score the result on labels of your own before you use it::

        monai-usfm adapt IMAGES --checkpoint runs/breast/model.pt --labeled DATA/dataset.json --output_dir runs/adapted

    Args:
        folder: your images, at any depth.
        checkpoint: weights of a 2D segmentation with their card.
        method: see above.
        labeled: datalist that it was trained on. ``style`` needs it; ``self_training`` without it learns from the
            network's own masks alone.
        agreement: of self-training, lowest Dice between views of an image, below which it is left out.
        share: of pretraining, weight of the encoder after it, in (0, 1].

    Raises:
        ValueError: for another network, options that it sets itself, a share out of range, ``style`` without labeled
            images, ``pretraining`` with them, or when self-training is sure of no image.
    """
    task: Task = "segmentation" if method == "self_training" else "pretraining"
    overlays = ("foundation", *bundle.overlays) if method == "style" else bundle.overlays
    if bundle.list_options:
        return train(*options, task=task, bundle=replace(bundle, overlays=overlays))
    card, given = read_card(checkpoint), parse_options(options)
    require_classes(card, checkpoint, "segmentation", spatial_dims=2)
    own_lists = [f"--{name}" for name in ("dataset_dir", "datalist", "export_path") if name in given]
    if own_lists:
        raise ValueError(f"{', '.join(own_lists)}: adapt makes its lists itself and writes model.pt into --output_dir.")
    if not 0 < share <= 1:
        raise ValueError(f"--share must be in (0, 1]; got {share}.")
    if method == "style" and not labeled:
        raise ValueError("--method style shows labeled images in another style: give them as --labeled LIST.")
    if method == "pretraining" and labeled:
        raise ValueError("--method pretraining uses no labels: leave out --labeled, or take self_training or style.")
    output = Path(given.setdefault("output_dir", "output/adapted"))
    mark_results(output, folder)
    images = [{"image": str(Path(item["image"]).resolve())} for item in list_images(folder)]
    new = _write_list(output / "images.json", {"training": with_full_scale(images, full_scale_of(card))})
    own = load_splits(None, labeled, synthetic_dir="", required=("image", "label")) if labeled else None
    names = {name: card[name] for name in ("class_names", "label_values") if card.get(name)}

    def run(**defaults: Any) -> None:
        places: dict[str, Any] = {"overlays": overlays, "bundle_root": bundle.bundle_root}
        defaults |= {"spatial_size": card["network"]["spatial_size"], "pretrained": checkpoint, "num_workers": 0}
        flow = load_bundle(task, "train", **places, **{**defaults, **given})
        warn_without_effect(cast(Any, flow.parser.config), given)
        run_loaded(flow)

    used = len(images)
    if method == "self_training":
        where = {name: given[name] for name in ("device", "num_workers") if name in given}
        found = pseudo_label(checkpoint, new, f"{output}/pseudo", agreement=agreement, **where)
        lists = json.loads(found.read_text(encoding="utf-8"))
        used = len(lists["training"])
        if own:
            random.Random(given.get("seed", 0)).shuffle(own["training"])
            lists = {"training": lists["training"] + own["training"][:used], "validation": own["validation"]}
        listed = _write_list(output / "datalist.json", lists)
        run(datalist=listed, max_epochs=6, warmup_epochs=0.5, learning_rate=0.0003, **names)
    elif method == "pretraining":
        settings = {"max_epochs": 20, "warmup_epochs": 1, "batch_size": 16, "learning_rate": 0.0001}
        run(datalist=new, export_path=f"{output}/encoder.pt", **settings)
        _move_head(checkpoint, output, share)
    else:
        values = {"label_values": card["label_values"]} if card.get("label_values") else {}
        listed = _write_list(output / "datalist.json", own or {})
        parts = {
            "labeled": {"datalist": listed, "num_classes": card["network"]["num_classes"], **values},
            "new": {"datalist": new},
        }
        settings = {"epoch_length": 1600, "max_epochs": 2, "warmup_epochs": 0.2, "learning_rate": 0.0003}
        run(parts=parts, shares={"labeled": 0.75, "new": 0.25}, restoration_weight=0.0, **settings)
        write_card(output / "model.pt", {**read_card(output / "model.pt"), **names})
    left = [name for name in ("temperature", "presence_threshold") if card.get(name) is not None]
    anew = f" Calibrate it anew: {' and '.join(left)} of {checkpoint} are not its own." if left else ""
    print(f"{output}/model.pt: {checkpoint}, fitted to {used} of {len(images)} images without labels.{anew}")


def _write_list(path: Path, lists: Mapping[str, Items]) -> str:
    write_text_atomically(path, json.dumps(lists, indent=1))
    return str(path)


def _move_head(checkpoint: str, output: Path, share: float) -> None:
    """The trained network with a mean of its encoder and the one that was pretrained further; its card names both."""
    network: Any = load_network(checkpoint)
    size = network.card["network"]["spatial_size"]  # --spatial_size may have trained the encoder on another
    after = load_network(output / "encoder.pt", "encoder", spatial_size=size).state_dict()
    mixed = {
        name: torch.lerp(value, after[name], share) if value.is_floating_point() else value
        for name, value in network.encoder.state_dict().items()
    }
    network.encoder.load_state_dict(mixed)
    outdated: dict[str, Any] = dict.fromkeys(OUTDATED)
    save_network(output / "model.pt", network, adapted={"method": "pretraining", "share": share}, **outdated)
