# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Active learning: which unlabeled images to label next, by uncertainty, by coverage of the embeddings, or by both."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from monai.utils import ensure_tuple
from scipy.spatial.distance import cdist

from monai_usfm.cards import full_scale_of, load_network, require_classes
from monai_usfm.data import UnreadableImageError, list_images, load_datalist, read_datalist
from monai_usfm.data.datalist import SPLITS
from monai_usfm.data.splits import with_full_scale
from monai_usfm.evaluation.images import extract_features, load_images
from monai_usfm.files import keep_apart, write_csv
from monai_usfm.inferers import mean_entropy

__all__ = ["choose", "select"]

logger = logging.getLogger(__name__)
SHORTLIST = 5  # with "mix", the coreset is drawn from so many times the most uncertain images


def choose(
    features: np.ndarray,
    number: int,
    strategy: str = "mix",
    uncertainty: np.ndarray | None = None,
    labeled: np.ndarray | None = None,
) -> list[int]:
    """Indices of the images to label next, the most useful first.

    - ``uncertainty``: those with the largest.
    - ``coreset``: each is the one farthest from all that are labeled or chosen before it, which covers the embeddings
      (greedy k-center; Sener and Savarese 2018, https://arxiv.org/abs/1708.00489). Without labeled images the first is
      the one nearest to the mean.
    - ``mix``: the coreset of the ``5 * number`` most uncertain.

    Args:
        features: embeddings of the unlabeled images ``(M, E)``.
        number: how many to choose.
        strategy: see above.
        uncertainty: of each unlabeled image ``(M,)``; not needed for ``coreset``.
        labeled: embeddings of the images that have a label ``(L, E)``.

    Raises:
        ValueError: for another strategy, or one that needs an uncertainty without it.
    """
    if strategy not in ("uncertainty", "coreset", "mix"):
        raise ValueError(f"strategy must be uncertainty, coreset or mix, got {strategy!r}.")
    number = min(int(number), len(features))
    pool = np.arange(len(features))
    if strategy != "coreset":
        if uncertainty is None:
            raise ValueError(f"strategy {strategy!r} needs the uncertainty of each image.")
        pool = np.argsort(-np.asarray(uncertainty), kind="stable")[: number * (SHORTLIST if strategy == "mix" else 1)]
        if strategy == "uncertainty":
            return [int(index) for index in pool]
    if labeled is not None and len(labeled):
        distance = cdist(features[pool], labeled).min(1)
    else:
        distance = -np.linalg.norm(features[pool] - features.mean(0), axis=1)
    chosen: list[int] = []
    for step in range(number):
        best = int(distance.argmax())
        chosen.append(int(pool[best]))
        beside = np.linalg.norm(features[pool] - features[pool[best]], axis=1)
        distance = beside if step == 0 and (labeled is None or not len(labeled)) else np.minimum(distance, beside)
        distance[np.isin(pool, chosen)] = -np.inf
    return chosen


def select(
    checkpoint: str,
    images: str,
    *,
    number: int = 20,
    strategy: Literal["uncertainty", "coreset", "mix"] = "coreset",
    labeled: str | None = None,
    dataset_dir: str | None = None,
    output: str = "selection.csv",
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
) -> list[str]:
    """Choose the images of a folder that are worth labeling next (active learning).

    The network tells how uncertain it is (entropy of its classes, of a segmentation the mean over the pixels), its
    encoder where an image lies among the others. In a simulation on BUS-BRA no strategy gained over
    random choice, and the coreset lost least (docs/active_learning.md). Images that ``labeled`` lists in any split
    are left out.

    Args:
        checkpoint: a segmentation or classification network trained on the labels so far.
        images: folder of the unlabeled images.
        number: how many to choose.
        strategy: ``uncertainty``; ``coreset``, images unlike those that are labeled or chosen; or ``mix``, the latter
            among the most uncertain.
        labeled: datalist of the images that have a label.
        dataset_dir: folder its paths start from; default: that of the datalist.
        output: table of the chosen images, the most useful first.
        device: where to run.

    Returns:
        The chosen files.

    Raises:
        ValueError: for a network of another task, or no image that is not labeled.
    """
    if number < 1:
        raise ValueError(f"--number must be at least 1; got {number}.")
    keep_apart(output, checkpoint, labeled)
    network: Any = load_network(checkpoint)
    card = network.card
    require_classes(card, checkpoint)
    listed = read_datalist(labeled) if labeled else {}
    known: list[str] = []
    masks: list[str] = []  # of any name, which lie beside the images
    for split in SPLITS:
        for item in load_datalist(str(labeled), dataset_dir, split, check_files=False) if listed.get(split) else ():
            known.append(str(item["image"]))
            masks += [str(name) for name in ensure_tuple(item.get("label") or ())]
    taken = {Path(name).resolve() for name in (*known, *masks)}
    files = [str(item["image"]) for item in list_images(images) if Path(str(item["image"])).resolve() not in taken]
    if not files:
        raise ValueError(f"{images}: every image is in {labeled} already.")
    features, uncertainty, files = embed(network, files, device)
    if not files:
        raise ValueError(f"{images}: none of the images that are not labeled can be read.")
    there = [name for name in known if Path(name).exists()]
    labeled_features = embed(network, there, device)[0] if there and strategy != "uncertainty" else None
    chosen = choose(features, number, strategy, uncertainty, labeled_features)
    rows = [
        {"rank": rank, "image": files[index], "uncertainty": f"{uncertainty[index]:.5f}"}
        for rank, index in enumerate(chosen, start=1)
    ]
    write_csv(Path(output), rows)
    print(f"{len(rows)} of {len(files)} images chosen by {strategy}: {output}")
    return [files[index] for index in chosen]


@torch.no_grad()
def embed(network: Any, files: Sequence[str], device: str = "cpu") -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Embeddings ``(M, E)`` of unit length, the mean token of the encoder, and the entropy of the calibrated classes
    ``(M,)``, a share of its maximum.

    Also the ``M`` files; those that cannot be read are named in a warning.
    """
    options = network.card["network"]
    whole = with_full_scale([{"image": name, "patient": None} for name in files], full_scale_of(network.card))
    network.to(device).eval()
    features, entropies, readable = [], [], []
    for start in range(0, len(files), 32):
        loaded = []
        for item in whole[start : start + 32]:
            try:
                loaded.append(load_images([item], options["spatial_size"]).images)
            except UnreadableImageError as error:
                logger.warning("left out: %s", error)
            else:
                readable.append(str(item["image"]))
        if not loaded:
            continue
        batch = torch.cat(loaded).repeat_interleave(options["in_channels"], 1)
        features.append(extract_features(network.encoder, batch, device=device))
        entropies.append(mean_entropy(network.card, network(batch.to(device)).float()).cpu())
    if not readable:
        return np.zeros((0, 1)), np.zeros(0), readable
    vectors = torch.nn.functional.normalize(torch.cat(features), dim=1)
    return vectors.numpy(), torch.cat(entropies).numpy(), readable
