# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""The verb that fits a trained segmentation to the images of another scanner, without labels of them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from monai_usfm.cards import read_card, require_classes
from monai_usfm.data import list_images, load_splits
from monai_usfm.evaluation.pseudo_labels import pseudo_label
from monai_usfm.files import write_text_atomically
from monai_usfm.settings import parse_options
from monai_usfm.workflow import run_bundle

from .bundles import DEFAULT, Bundle, Options, train

__all__ = ["adapt"]


def adapt(
    folder: str,
    *options: Options,
    checkpoint: str,
    labeled: str | None = None,
    agreement: float = 0.8,
    bundle: Bundle = DEFAULT,
) -> None:
    """Fit a trained segmentation to the images of your scanner, without labels of them.

    Self-training: what the network sees in them, where it is sure (``pseudo-label``), and as many labeled images train
    it on for a few epochs, by the segmentation bundle, all of whose options are taken. Xie et al. 2020,
    https://arxiv.org/abs/1911.04252. Score the result on labels of your own before you use it::

        monai-usfm adapt IMAGES --checkpoint runs/breast/model.pt --labeled DATA/dataset.json --output_dir runs/adapted

    Args:
        folder: your images, at any depth.
        checkpoint: weights of a 2D segmentation with their card.
        labeled: datalist that it was trained on; without it the network learns from its own masks alone.
        agreement: lowest Dice between views of an image, below which it is left out.

    Raises:
        ValueError: for another network, or when it is sure of no image.
    """
    if bundle.list_options:
        return train(*options, task="segmentation", bundle=bundle)
    card, given = read_card(checkpoint), parse_options(options)
    require_classes(card, checkpoint, "segmentation")
    output = Path(given.setdefault("output_dir", "output/adapted"))
    images = [{**item, "image": str(Path(item["image"]).resolve())} for item in list_images(folder)]
    write_text_atomically(output / "images.json", json.dumps({"training": images}))
    where = {"device": given["device"]} if "device" in given else {}
    found = pseudo_label(checkpoint, f"{output}/images.json", f"{output}/pseudo", agreement=agreement, **where)
    lists = json.loads(found.read_text(encoding="utf-8"))
    kept = len(lists["training"])
    if labeled:
        own = load_splits(None, labeled, synthetic_dir="", required=("image", "label"))
        random.Random(given.get("seed", 0)).shuffle(own["training"])
        lists = {"training": lists["training"] + own["training"][:kept], "validation": own["validation"]}
    listed = output / "datalist.json"
    write_text_atomically(listed, json.dumps(lists, indent=1))
    defaults: dict[str, Any] = {"max_epochs": 6, "warmup_epochs": 0.5, "learning_rate": 0.0003}
    defaults |= {"spatial_size": card["network"]["spatial_size"], "pretrained": checkpoint, "datalist": str(listed)}
    defaults |= {name: card[name] for name in ("class_names", "label_values") if card.get(name)}
    places: dict[str, Any] = {"overlays": bundle.overlays, "bundle_root": bundle.bundle_root}
    run_bundle("segmentation", "train", **places, **{**defaults, **given})
    print(f"{output}/model.pt: {checkpoint}, fitted to {kept} of {len(images)} images without labels.")
