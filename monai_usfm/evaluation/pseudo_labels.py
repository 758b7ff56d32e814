# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Pseudo-labels: what a network sees in images without labels, where it is sure, as a further training set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from monai.data import DataLoader
from monai.utils import convert_to_tensor

from monai_usfm.cards import full_scale_of, load_network, require_classes
from monai_usfm.data import InferenceDataset, LoadUltrasoundd, UnreadableImageError, load_datalist
from monai_usfm.data.folders import mark_results
from monai_usfm.data.image_files import save_mask
from monai_usfm.data.splits import with_full_scale
from monai_usfm.files import keep_apart, write_csv, write_text_atomically
from monai_usfm.inferers import autocast, autocast_dtype, each_calibrated, probabilities
from monai_usfm.transforms.labels import label_value

__all__ = ["agreeing_masks", "pseudo_label"]

LARGER = 1.25  # size of the third view
BATCH = 8  # images that the network sees at once


@torch.no_grad()
def agreeing_masks(
    network: nn.Module, images: Sequence[torch.Tensor], size: Sequence[int]
) -> list[tuple[torch.Tensor, float]]:
    """Of each image the mask of the mean of three views, and how well the views agree with it.

    The views are the image at ``size``, mirrored along its last axis, and a quarter larger; the images of a view are
    one batch. Each is calibrated as ``inference.json`` does it, by temperature and presence threshold of the card.

    Args:
        network: a 2D segmentation, ``(B, C, *S) -> (B, K, *S)`` logits; its ``card`` calibrates.
        images: each ``(C, H, W)`` in [0, 1], of any size.
        size: pixels (H, W) of the first view, a multiple of the patch size.

    Returns:
        For each image class indices ``(H, W)`` on its grid, and the lowest Dice of a view, all structures together; 0
        where none is seen.
    """
    patch = getattr(network, "patch_size", (1, 1))
    larger = [round(LARGER * n / p) * p for n, p in zip(size, patch, strict=True)]
    views, calibrated = [], probabilities(getattr(network, "card", {}))
    for shape, mirrored in ((size, False), (size, True), (larger, False)):
        resized = [F.interpolate(image[None], list(shape), mode="bilinear", antialias=True) for image in images]
        x = torch.cat(resized)
        output = network(x.flip(-1) if mirrored else x)
        logits = output[0] if isinstance(output, list | tuple) else output
        scores = each_calibrated(calibrated, logits.float())
        views.append(scores.flip(-1) if mirrored else scores)
    result = []
    for number, image in enumerate(images):
        seen = [F.interpolate(view[[number]], list(image.shape[1:]), mode="bilinear")[0] for view in views]
        mask = torch.stack(seen).mean(0).argmax(0)
        alike = []
        for view in seen:
            found = view.argmax(0)
            both = ((found == mask) & (mask > 0)).sum()
            alike.append(2 * both / ((found > 0).sum() + (mask > 0).sum()).clamp(min=1))
        result.append((mask, torch.stack(alike).min().item()))
    return result


def pseudo_label(
    checkpoint: str,
    datalist: str,
    output: str,
    *,
    dataset_dir: str | None = None,
    split: str = "training",
    organs: Sequence[str] | None = None,
    agreement: float = 0.8,
    num_workers: int = 0,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
) -> Path:
    """Segment images without labels and keep the masks on which views of the image agree, as a training set.

    Give it to ``foundation.json`` as a further labeled part, or to the segmentation bundle. Self-training in the sense
    of Xie et al. 2020, https://arxiv.org/abs/1911.04252: the student sees the images augmented, the teacher did not.

    Args:
        checkpoint: weights of a 2D segmentation with their card.
        datalist: JSON file with the images.
        output: folder of the masks (PNG), of their ``datalist.json`` and, where files cannot be read, ``failed.csv``.
        dataset_dir: folder the paths of the datalist start from; default: that of the file.
        split: the list of the datalist. Take no split that will be scored.
        organs: only items with these values of ``organ``: those of which the network knows the structures.
        agreement: lowest Dice between a view and the mean of the views.
        num_workers: processes that read the images.
        device: where the network runs.

    Returns:
        The datalist of the images that were kept, with their items' other entries.

    Raises:
        ValueError: for a network of volumes, an agreement out of range, or when no image is kept.
        UnreadableImageError: where none can be read.
    """
    if not 0 <= agreement <= 1:
        raise ValueError(f"agreement is a Dice, in [0, 1]; got {agreement}.")
    network = load_network(checkpoint, "segmentation").to(device)
    whole: Any = cast(Any, network).card
    require_classes(whole, checkpoint, "segmentation", spatial_dims=2)
    card = whole["network"]
    # As in the files that the network was trained on, so that the two can stand in one list.
    values = np.array([label_value(v) for v in whole.get("label_values") or range(card["num_classes"])])
    if values.min() < 0 or values.max() >= 2**16:
        raise ValueError(f"{checkpoint}: masks are PNG files of 0 to 65535; its label_values are {values.tolist()}.")
    values = values.astype(np.uint8 if values.max() < 256 else np.uint16)
    items = load_datalist(datalist, dataset_dir, split)
    items = [item for item in items if organs is None or item.get("organ") in organs]
    if not items:
        named = f" of {', '.join(organs)}" if organs else ""
        raise ValueError(f"{datalist} has no image{named} in {split!r}: name other organs or another split.")
    items = with_full_scale(items, full_scale_of(whole))
    folder = Path(output).resolve()
    target = keep_apart(folder / "datalist.json", datalist)
    if any(folder in Path(str(item["image"])).resolve().parents for item in items):
        raise ValueError(f"{output} holds images of {datalist}: no tool would find them among results; name another.")
    mark_results(folder)
    (folder / "failed.csv").unlink(missing_ok=True)
    kept = []
    readable = InferenceDataset(items, LoadUltrasoundd("image"))
    failed: list[UnreadableImageError] = []
    for start, whole_batch in zip(
        range(0, len(items), BATCH),
        DataLoader(readable, num_workers, batch_size=BATCH, collate_fn=list),  # type: ignore[arg-type]
        strict=True,
    ):
        failed += [i for i in whole_batch if isinstance(i, UnreadableImageError)]
        batch = {n: i for n, i in enumerate(whole_batch, start) if not isinstance(i, UnreadableImageError)}
        if not batch:
            continue
        images = [
            convert_to_tensor(item["image"]).to(device).expand(card["in_channels"], -1, -1) for item in batch.values()
        ]
        with autocast(device, autocast_dtype("auto", device)):
            found = agreeing_masks(network, images, card["spatial_size"])
        for (number, item), (mask, score) in zip(batch.items(), found, strict=True):
            if score < agreement:
                continue
            file = folder / f"{number:06d}.png"
            save_mask(file, values[mask.cpu().numpy()], int(item["image"].meta.get("turn", 1)))
            kept.append({**items[number], "image": str(items[number]["image"]), "label": str(file)})
    if failed:
        table = write_csv(folder / "failed.csv", [{"file": e.path, "reason": e.reason} for e in failed])
        print(f"{len(failed)} of {len(items)} images cannot be read and are left out: {table}")
    if len(failed) == len(items):
        raise failed[0]
    if not kept:
        raise ValueError(f"none of {len(items)} images of {datalist} is kept: lower agreement, or name other organs.")
    write_text_atomically(target, json.dumps({"training": kept}, indent=1))
    print(f"{len(kept)} of {len(items)} images kept: {target}")
    return target
