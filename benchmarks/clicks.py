# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Dice after clicks, by a network and by a distance map: ``python benchmarks/clicks.py MODEL DATALIST``.

The same simulated user clicks in the middle of the largest error of either. The distance map is geodesic (Criminisi et
al. 2008, https://doi.org/10.1007/978-3-540-88682-2_9): a step between neighboring pixels costs the root of 1 plus the
squared difference of their smoothed gray values times ``--weight``. A pixel is foreground if it is closer to a
foreground click than to a background click or, times ``--frame``, to the frame of the image. A box stands for a click
in its middle and one everywhere outside.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra

from monai_usfm import load_network
from monai_usfm.evaluation.images import load_images, read_items
from monai_usfm.transforms import draw_prompts, next_click

Segment = Callable[[list, list, list | None], np.ndarray]


def by_network(network: torch.nn.Module, image: np.ndarray) -> Segment:
    """Masks by the network."""
    gray = torch.as_tensor(image)[None]

    def segment(inside: list, outside: list, box: list | None) -> np.ndarray:
        with torch.inference_mode():
            logits = network(torch.cat([gray, draw_prompts(image.shape, inside, outside, box)])[None])[0]
        return (logits[1] > logits[0]).numpy()

    return segment


def by_distance(image: np.ndarray, weight: float, frame: float) -> Segment:
    """Masks by the geodesic distance."""
    smooth, place = ndimage.gaussian_filter(image, 1.5), np.arange(image.size).reshape(image.shape)
    pairs = [(place[:-1].ravel(), place[1:].ravel()), (place[:, :-1].ravel(), place[:, 1:].ravel())]
    first, second = (np.concatenate(side) for side in zip(*pairs, strict=True))
    cost = np.sqrt(1 + (weight * (smooth.flat[first] - smooth.flat[second])) ** 2)
    graph = coo_array((cost, (first, second)), shape=(image.size, image.size)).tocsr()

    def distance(seeds: np.ndarray) -> np.ndarray:
        found = dijkstra(graph, directed=False, indices=place[seeds], min_only=True)
        return found.reshape(image.shape)

    def seeds(points: list) -> np.ndarray:
        out = np.zeros(image.shape, bool)
        out[tuple(np.asarray(points, int).reshape(-1, 2).T)] = True
        return out

    def segment(inside: list, outside: list, box: list | None) -> np.ndarray:
        edge = np.ones(image.shape, bool)
        top, left, bottom, right = box or (1, 1, image.shape[0] - 2, image.shape[1] - 2)
        edge[round(top) : round(bottom) + 1, round(left) : round(right) + 1] = False
        middle = [(top + bottom) / 2, (left + right) / 2]  # of the box, which is clicked unasked
        away = (1 if box else frame) * distance(edge)
        if outside:
            away = np.minimum(away, distance(seeds(outside)))
        return distance(seeds([*inside, *([middle] if box else [])])) < away

    return segment


def clicked(segment: Segment, target: np.ndarray, clicks: int, box: list | None) -> list[float]:
    """Dice after 0 to ``clicks`` clicks; without a box the first is 0."""
    inside: list = []
    outside: list = []
    scores = []
    for number in range(clicks + 1):
        found = segment(inside, outside, box) if number or box else np.zeros_like(target)
        scores.append(2 * float((found & target).sum()) / float(found.sum() + target.sum()))
        click = next_click(target, found)
        if click is not None:
            (inside if click[1] else outside).append(click[0])
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint")
    parser.add_argument("datalist")
    parser.add_argument("--split", default="test")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--clicks", type=int, default=5)
    parser.add_argument("--weight", type=float, default=200.0)
    parser.add_argument("--frame", type=float, default=1.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    network = load_network(arguments.checkpoint, "segmentation")
    items = read_items(arguments.datalist, arguments.split, limit=arguments.limit)
    loaded = load_images(items, network.card["network"]["spatial_size"], num_classes=2)
    shown = [(i, m) for i, m in zip(loaded.images[:, 0].numpy(), loaded.labels.numpy() > 0, strict=True) if m.any()]
    print(f"{len(shown)} images of {arguments.split}\n")
    print(f"| method | start | Dice after 0 to {arguments.clicks} clicks |\n| --- | --- | --- |")
    for name in ("network", "distance"):
        for start in ("click", "box"):
            scores = []
            for image, target in shown:
                rows, columns = np.nonzero(target)
                box = [rows.min(), columns.min(), rows.max(), columns.max()] if start == "box" else None
                options = (arguments.weight, arguments.frame)
                segment = by_network(network, image) if name == "network" else by_distance(image, *options)
                scores.append(clicked(segment, target, arguments.clicks, box))
            print(f"| {name} | {start} | {' '.join(f'{v:.3f}' for v in np.mean(scores, 0))} |", flush=True)


if __name__ == "__main__":
    main()
