# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Pseudo-labels: what a network sees in images without labels, where it is sure, as a further training set."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from monai.utils import convert_to_tensor
from PIL import Image

from monai_usfm.cards import full_scale_of, load_network, require_classes
from monai_usfm.data import LoadUltrasoundd, load_datalist
from monai_usfm.data.splits import with_full_scale
from monai_usfm.files import write_text_atomically
from monai_usfm.inferers import autocast, autocast_dtype

__all__ = ["agreeing_mask", "pseudo_label"]

logger = logging.getLogger(__name__)
LARGER = 1.25  # size of the third view


@torch.no_grad()
def agreeing_mask(network: nn.Module, image: torch.Tensor, size: Sequence[int]) -> tuple[torch.Tensor, float]:
    """Mask of the mean of three views, and how well the views agree with it.

    The views are the image at ``size``, mirrored along its last axis, and a quarter larger.

    Args:
        network: a 2D segmentation, ``(1, C, *S) -> (1, K, *S)`` logits.
        image: ``(C, H, W)`` in [0, 1].
        size: pixels (H, W) of the first view, a multiple of the patch size.

    Returns:
        Class indices ``(H, W)`` on the grid of the image, and the lowest Dice of a view, all structures together; 0
        where none is seen.
    """
    patch = getattr(network, "patch_size", (1, 1))
    larger = [round(LARGER * n / p) * p for n, p in zip(size, patch, strict=True)]
    views = []
    for shape, mirrored in ((size, False), (size, True), (larger, False)):
        x = F.interpolate(image[None], list(shape), mode="bilinear", align_corners=False, antialias=True)
        output = network(x.flip(-1) if mirrored else x)
        logits = output[0] if isinstance(output, list | tuple) else output
        probabilities = logits.float().softmax(1)
        probabilities = probabilities.flip(-1) if mirrored else probabilities
        views.append(F.interpolate(probabilities, list(image.shape[1:]), mode="bilinear", align_corners=False)[0])
    mask = torch.stack(views).mean(0).argmax(0)
    scores = []
    for view in views:
        seen = view.argmax(0)
        both = ((seen == mask) & (mask > 0)).sum()
        scores.append((2 * both / ((seen > 0).sum() + (mask > 0).sum()).clamp(min=1)).item())
    return mask, min(scores)


def pseudo_label(
    checkpoint: str,
    datalist: str,
    output: str,
    *,
    dataset_dir: str | None = None,
    split: str = "training",
    organs: Sequence[str] | None = None,
    agreement: float = 0.8,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
) -> Path:
    """Segment images without labels and keep the masks on which views of the image agree, as a training set.

    Give it to ``foundation.json`` as a further labeled part, or to the segmentation bundle. Self-training in the sense
    of Xie et al. 2020, https://arxiv.org/abs/1911.04252: the student sees the images augmented, the teacher did not.

    Args:
        checkpoint: weights of a 2D segmentation with their card.
        datalist: JSON file with the images.
        output: folder of the masks (PNG) and of their ``datalist.json``.
        dataset_dir: folder the paths of the datalist start from; default: that of the file.
        split: the list of the datalist. Take no split that will be scored.
        organs: only items with these values of ``organ``: those of which the network knows the structures.
        agreement: lowest Dice between a view and the mean of the views.
        device: where the network runs.

    Returns:
        The datalist of the images that were kept, with their items' other entries.

    Raises:
        ValueError: for a network of volumes, or when no image is kept.
    """
    network = load_network(checkpoint, "segmentation").to(device)
    whole: Any = cast(Any, network).card
    require_classes(whole, checkpoint, "segmentation")
    card = whole["network"]
    # As in the files that the network was trained on, so that the two can stand in one list.
    values = np.array(whole.get("label_values") or range(card["num_classes"]))
    values = values.astype(np.uint8 if values.min() >= 0 and values.max() < 256 else np.int32)
    if card["spatial_dims"] != 2:
        raise ValueError(f"{checkpoint} segments volumes; pseudo-labels are made of images.")
    items = load_datalist(datalist, dataset_dir, split)
    items = [item for item in items if organs is None or item.get("organ") in organs]
    items = with_full_scale(items, full_scale_of(whole))
    read: Any = LoadUltrasoundd("image")
    folder = Path(output).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    kept = []
    for number, item in enumerate(items):
        image = convert_to_tensor(read(item)["image"]).to(device)
        with autocast(device, autocast_dtype("auto", device)):
            mask, found = agreeing_mask(network, image.expand(card["in_channels"], -1, -1), card["spatial_size"])
        if found < agreement:
            continue
        file = folder / f"{number:06d}.png"
        # The arrays of this package have rows first, as image files have.
        Image.fromarray(values[mask.cpu().numpy()]).save(file)
        kept.append({**item, "image": str(item["image"]), "label": str(file)})
    logger.info("%d of %d images kept.", len(kept), len(items))
    if not kept:
        raise ValueError(f"none of {len(items)} images of {datalist} is kept: lower agreement, or name other organs.")
    write_text_atomically(folder / "datalist.json", json.dumps({"training": kept}, indent=1))
    return folder / "datalist.json"
