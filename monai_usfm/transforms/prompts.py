# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Clicks and boxes that say which structure is meant: as channels beside the image, and simulated for training.

MONAI's ``Interaction`` of DeepEdit calls ``prepare_batch`` anew for each simulated click, which here would augment the
image again, and its transforms work on one item at a time. So the clicks are simulated behind the augmentation.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.transforms import MapTransform
from scipy import ndimage

from monai_usfm.transforms.dictionary import TORCH
from monai_usfm.transforms.field_of_view import largest_part
from monai_usfm.transforms.landmarks import draw_heatmaps

__all__ = ["PROMPTS", "PromptSimulation", "Promptsd", "draw_prompts", "next_click"]

PROMPTS = ("foreground", "background", "roi")  # MONAI Label's names; each is a channel behind the gray image
SIGMA = 0.02  # of a click, as a share of the longer side


def draw_prompts(
    size: Sequence[int],
    foreground: Sequence[Sequence[float]] = (),
    background: Sequence[Sequence[float]] = (),
    roi: Sequence[float] | None = None,
) -> torch.Tensor:
    """The channels ``(3, H, W)`` of clicks, Gaussians with maximum 1, and of a box, 1 inside.

    Args:
        size: ``(H, W)``.
        foreground: row and column of clicks inside of the structure, from the center of the first pixel.
        background: of clicks outside.
        roi: first row, first column, last row and last column of the box, edges included.
    """
    out = torch.zeros(3, *size)
    for channel, points in enumerate((foreground, background)):
        if len(points):
            places = torch.as_tensor(points, dtype=torch.float32)
            out[channel] = draw_heatmaps(places, size, SIGMA * max(size)).amax(0)
    if roi is not None:
        top, left, bottom, right = (round(float(edge)) for edge in roi)
        out[2, max(0, top) : bottom + 1, max(0, left) : right + 1] = 1
    return out


def next_click(target: np.ndarray, found: np.ndarray, anywhere: float | None = None) -> tuple[list[int], bool] | None:
    """Where a user would click next: in the middle of the largest connected region that is wrong.

    Args:
        target: ``(H, W)`` bool, what is wanted.
        found: ``(H, W)`` bool, what is there.
        anywhere: a number in [0, 1) that chooses among the pixels which are at least half as far from the region's edge
            as its middle; None chooses the middle.

    Returns:
        Row and column, and whether it lies in the target, so that it is a click of the foreground; None where nothing
        is wrong.
    """
    if not (target != found).any():
        return None
    region = largest_part(target != found)
    depth = ndimage.distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]
    places = np.argwhere(depth >= (1.0 if anywhere is None else 0.5) * depth.max())
    row, column = places[int((anywhere or 0.0) * len(places))].tolist()
    return [row, column], bool(target[row, column])


class Promptsd(MapTransform):
    """The clicks and the box of an item as the channels behind the gray image, see :func:`draw_prompts`.

    The item holds ``foreground`` and ``background``, lists of ``[x, y]``, and ``roi``, ``[x0, y0, x1, y1]``, in pixels
    of the upright image; of volumes and cines ``[x, y, z]`` and ``[x0, y0, x1, y1, z0, z1]``, ``z`` the slice or frame.
    MONAI Label sends them so.

    Args:
        keys: images ``(4, *S)``, channel first, upright, perhaps resized; the channels behind the first are replaced.
        allow_missing_keys: do not raise where the item has no image.

    Raises:
        ValueError: for an item without any click or box, or with one that is no list of numbers or not in the image.
    """

    backend = TORCH

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            if not isinstance(d[key], MetaTensor):
                raise ValueError(f"the item {key!r} must be a MetaTensor that knows its file, see LoadUltrasoundd.")
            image, shape = d[key].clone(), [int(n) for n in d[key].meta["spatial_shape"]][: d[key].dim() - 1]
            file, roi = image.meta["filename_or_obj"], d.get("roi") or []
            corners: Any = [roi]
            if isinstance(roi, Sequence):
                corners = [[*roi[0:2], *roi[4:5]], [*roi[2:4], *roi[5:6]]] if roi else []
            given = {"foreground": d.get("foreground"), "background": d.get("background"), "roi": corners}
            points = {name: _points(file, name, listed or [], shape) for name, listed in given.items()}
            frame = int(image.meta.get("frame", 0))
            for name, listed in given.items() if image.dim() == 3 else ():
                if any(len(point) > 2 and round(point[2]) != frame for point in listed or []):
                    raise ValueError(
                        f"{file}: {name} {listed} is not on frame or slice {frame}, the one that is read; give "
                        "the option frames."
                    )
            if not any(map(len, points.values())):
                raise ValueError(
                    f"{file}: nothing says which structure is meant; give foreground or background, lists of points "
                    "[x, y], or roi, a box [x0, y0, x1, y1]."
                )
            size = list(image.shape[-2:])
            new, old = (torch.tensor(n) for n in ([*size, *image.shape[1:-2]], [shape[1], shape[0], *shape[2:]]))
            for listed in points.values():  # of the file -> of the image as it is resized
                listed[:] = (listed + 0.5) * new / old - 0.5
            image[1:] = 0
            if image.dim() == 3:
                image[1:] = _drawn(size, points)
            for z in range(image.shape[1]) if image.dim() == 4 else ():
                here = {name: listed[listed[:, 2].round() == z] for name, listed in points.items()}
                edges = points["roi"][:, 2:].round()
                here["roi"] = points["roi"] if len(edges) and edges.min() <= z <= edges.max() else here["roi"][:0]
                if any(map(len, here.values())):
                    image[1:, z] = _drawn(size, here)
            d[key] = image
        return d


def _drawn(size: list[int], points: Mapping[str, torch.Tensor]) -> torch.Tensor:
    corners = points["roi"][:, :2]
    roi = [*corners.amin(0).tolist(), *corners.amax(0).tolist()] if len(corners) else None
    foreground, background = (points[name][:, :2].tolist() for name in PROMPTS[:2])
    return draw_prompts(size, foreground, background, roi=roi)


def _points(file: str, name: str, given: Any, shape: list[int]) -> torch.Tensor:
    """Points ``[x, y]`` or ``[x, y, z]`` of a file as rows ``(y, x)`` or ``(y, x, z)``."""
    try:
        found = [[float(value) for value in point][: len(shape)] for point in given]
        good = all(
            len(p) == len(shape) and all(-0.5 <= v <= n - 0.5 for v, n in zip(p, shape, strict=True)) for p in found
        )
    except (TypeError, ValueError):
        good = False
    if not good:
        raise ValueError(
            f"{file}: {name} is {given!r}, expected {'x, y, z'[: 3 * len(shape) - 2]} within "
            f"{' x '.join(map(str, shape))} {'voxels' if len(shape) == 3 else 'pixels'}."
        )
    return torch.tensor(found).reshape(-1, len(shape))[:, [1, 0, *range(2, len(shape))]]


class PromptSimulation:
    """``prepare_batch`` of MONAI's engines that plays the user: chooses a structure, draws a box, clicks where it errs.

    Of each label map one value is the structure. Each click answers the network's prediction with those before it, see
    :func:`next_click`. For training, structure and number of clicks are random, clicks and boxes inexact, and an image
    gets a box, clicks or both. Draws come from PyTorch's global generator. Sofiiuk et al. 2022,
    https://arxiv.org/abs/2102.06583.

    Args:
        prepare_batch: gives image ``(B, 4, H, W)`` and label ``(B, 1, *any size)``; the channels behind the first are
            replaced by the prompts.
        network: takes them and gives logits ``(B, 2, H, W)``.
        clicks: of each image; if random the largest number.
        box: draw a box too.
        random: see above; otherwise the structure is the largest one, and all images get ``clicks``.
        inferer: called with images and network; None calls the network.

    Raises:
        ValueError: on calling, for volumes, or labels that are no maps.
    """

    def __init__(
        self,
        prepare_batch: Callable[..., tuple],
        network: torch.nn.Module,
        clicks: int = 3,
        box: bool = False,
        random: bool = False,
        inferer: Callable[..., Any] | None = None,
    ) -> None:
        if clicks < 0 or (clicks == 0 and not box):
            raise ValueError(f"a user clicks at least once, or draws a box; got clicks={clicks}, box={box}.")
        self.prepare_batch, self.network, self.clicks = prepare_batch, network, int(clicks)
        self.box, self.random = box, random
        self.inferer = inferer or (lambda images, net: net(images))

    def __call__(self, batch: Any, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Images with prompts, and the chosen structure: 1 inside, else 0, in the shape of the label."""
        image, label = self.prepare_batch(batch, *args, **kwargs)[:2]
        if image.dim() != 4 or image.shape[1] != 1 + len(PROMPTS) or label.dim() != 4:
            raise ValueError(
                f"clicks and boxes are for 2D images and masks, {1 + len(PROMPTS)} channels of the network; got images "
                f"{tuple(image.shape)} and labels {tuple(label.shape)}."
            )
        label = torch.stack([(one == _structure(one, self.random)) & (one > 0) for one in label]).to(label.dtype)
        small = F.interpolate(label.as_subclass(torch.Tensor).float(), image.shape[2:])[:, 0].cpu().numpy() > 0.5
        image, training = image.clone(), self.network.training
        self.network.eval()
        try:
            self._interact(image, small, *self._plan(small))
        finally:
            self.network.train(training)
        return image, label

    def _plan(self, target: np.ndarray) -> tuple[list[Any], list[bool], int]:
        """For each image its box, or None, and whether it is clicked from the start; and the number of clicks."""
        if not self.random:
            return [_box(one, False) if self.box else None for one in target], [True] * len(target), self.clicks
        clicks = int(torch.randint(1, self.clicks + 1, ()))
        kinds = torch.randint(3, (len(target),)).tolist()  # a box that is clicked in later, clicks, both at once
        boxes = [_box(one, True) if kind != 1 else None for one, kind in zip(target, kinds, strict=True)]
        return boxes, [kind != 0 for kind in kinds], clicks

    @torch.no_grad()
    def _interact(self, image: torch.Tensor, target: np.ndarray, boxes: list, clicked: list[bool], clicks: int) -> None:
        """Fill the channels behind the first: the box, then click after click where the network errs."""
        points: list[tuple[list, list]] = [([], []) for _ in boxes]
        found = np.zeros_like(target)
        for number in range(clicks + 1):
            drawn = [draw_prompts(image.shape[2:], *at, roi=box) for at, box in zip(points, boxes, strict=True)]
            image[:, 1:] = torch.stack(drawn).to(image)
            if number == clicks:
                return
            prompted = [number > 0 or box is not None for box in boxes]
            if any(prompted):
                logits = self.inferer(image.as_subclass(torch.Tensor), self.network)
                found = (logits[:, 1] > logits[:, 0]).cpu().numpy() & np.reshape(prompted, (-1, 1, 1))
            for i in (i for i in range(len(boxes)) if clicked[i] or number):
                click = next_click(target[i], found[i], float(torch.rand(())) if self.random else None)
                if click is not None:
                    points[i][not click[1]].append(click[0])


def _structure(label: torch.Tensor, random: bool) -> Any:
    """The value of one structure of a label map: the largest, if random any that is no speck; 0 where there is none."""
    values, counts = label.as_subclass(torch.Tensor).unique(return_counts=True)
    values, counts = values[values > 0], counts[values > 0]
    if not len(values):
        return 0
    if not random:
        return values[counts.argmax()]
    seen = values[counts >= min(int(counts.max()), label.numel() // 500)]
    return seen[int(torch.randint(len(seen), ()))]


def _box(mask: np.ndarray, random: bool) -> list[float] | None:
    """The bounding box of a mask, in training with edges off by up to a tenth of its sides."""
    found = ndimage.find_objects(mask.astype(np.uint8))
    if not found:
        return None
    edges = np.asarray([[axis.start for axis in found[0]], [axis.stop - 1 for axis in found[0]]], dtype=float)
    if random:
        edges += (torch.rand(2, 2).numpy() - 0.5) * 0.2 * (edges[1] - edges[0])
    return edges.ravel().tolist()
