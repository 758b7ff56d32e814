# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Whether the images of one item, such as image and label, lie on one grid; and bringing them there."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from scipy import ndimage

from monai_usfm.data.formats import UnreadableImageError


def on_one_grid(img: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether both have one size and lie at one place, as far as both say where."""
    return img.shape[1:] == other.shape[1:] and _apart(img, other) is None


def check_one_grid(path: str, img: torch.Tensor, other_path: str, other: torch.Tensor) -> None:
    """Refuse images of one item that do not lie on one grid: ``img`` is the label, ``other`` the image.

    Refused are two sizes; a label of several frames for an image of another number of them; two places, where both
    files have geometry, whatever their types (half a sample apart or more, in RAS); and different turns by EXIF, unless
    the size shows that both are upright.

    A file that lies where its format puts it by default (axes of the space, origin 0) is compared with another such one
    by the size of its samples alone: NIfTI then means right-anterior-superior, MetaImage and NRRD left-posterior.
    """
    turns = [int(x.meta.get("turn", 1)) if isinstance(x, MetaTensor) else 1 for x in (img, other)]
    same_size = img.shape[1:] == other.shape[1:]
    # a quarter turn of an image that is no square shows in its size: then both were drawn upright
    upright = same_size and (turns[0] >= 5) != (turns[1] >= 5) and len(set(img.shape[1:])) > 1
    if turns[0] != turns[1] and not upright:
        raise UnreadableImageError(
            path,
            f"has EXIF orientation {turns[0]}, but {other_path} {turns[1]}: one of them would be turned against the "
            "other. Store both without EXIF orientation, as they are to be seen.",
        )
    if not same_size:
        raise UnreadableImageError(
            path,
            f"has size {tuple(img.shape[1:])}, but {other_path} {tuple(other.shape[1:])}: they must lie on one grid; "
            "correct the datalist or resample one of them.",
        )
    frames = [int(x.meta.get("num_frames", 1)) if isinstance(x, MetaTensor) else 1 for x in (img, other)]
    if frames[0] not in (1, frames[1]):
        raise UnreadableImageError(
            path,
            f"has {frames[0]} frames, but {other_path} {frames[1]}, so none can be told to belong to another; masks of "
            "one class each are to be stored as one map of class numbers.",
        )
    apart = _apart(img, other)
    if apart is not None:
        raise UnreadableImageError(
            path,
            f"lies up to {apart:.3g} mm from the grid of {other_path}, by the affine of the two files; "
            "resample it to that grid (in Python LoadUltrasoundd(..., resample=True) does), or correct its header.",
        )


def _apart(img: torch.Tensor, other: torch.Tensor) -> float | None:
    """Largest distance of equal corners in mm, where both say where they lie and it is half a sample or more."""
    if not isinstance(img, MetaTensor) or not isinstance(other, MetaTensor):
        return None
    places = [str(x.meta.get("place", "")) for x in (img, other)]
    if "" in places:
        return None
    here, there = (np.asarray(x.affine, dtype=np.float64) for x in (img, other))
    if set(places) == {"ras", "lps"}:
        if not (img.meta["spacing_known"] and other.meta["spacing_known"]):
            return None
        here, there = (np.diag([*affine_to_spacing(matrix), 1.0]) for matrix in (here, there))
    apart = float(np.abs((_corners(img.shape[1:]) @ (here - there).T)[:, :3]).max())
    return apart if apart > 0.5 * affine_to_spacing(there).min() else None


def _corners(size: Sequence[int]) -> np.ndarray:
    """Indices (x, y, z, 1) of the corner samples; z is 0 in a plane."""
    ends = [(0, n - 1) for n in size] + [(0,)] * (3 - len(size))
    return np.array([[*at, 1] for at in itertools.product(*ends)], dtype=np.float64)


def is_sheared(axes: np.ndarray) -> bool:
    """Whether columns ``(3, n)`` of an affine are further from right angles than a degree, as rounding leaves none."""
    unit = axes / np.linalg.norm(axes, axis=0)
    return bool(np.abs(unit.T @ unit - np.eye(unit.shape[1])).max() > 0.0175)


def resampled(path: str, img: torch.Tensor, other_path: str, other: torch.Tensor, label: bool) -> torch.Tensor:
    """The image on the grid of the other one, by the affines of both; 0 where it has no values.

    Both are upright, ``(C, *S)``. A ``label`` is taken by nearest neighbor, an image linearly. Refused are images
    without geometry, and planes that lie beside each other.
    """
    if not isinstance(img, MetaTensor) or not isinstance(other, MetaTensor):
        raise UnreadableImageError(path, "cannot be resampled without metadata; turn their tracking on.")
    if not img.meta.get("place") or not other.meta.get("place"):
        raise UnreadableImageError(
            path,
            f"has size {tuple(img.shape[1:])}, but {other_path} {tuple(other.shape[1:])}, and not both say where they "
            "lie, so neither can be resampled; correct the datalist.",
        )
    dims = other.ndim - 1
    step = np.linalg.inv(np.asarray(img.affine, np.float64)) @ np.asarray(other.affine, np.float64)
    if dims == 2 and np.abs((_corners(other.shape[1:]) @ step.T)[:, 2]).max() > 0.5:
        raise UnreadableImageError(path, f"lies in another plane than {other_path}; correct the datalist.")
    matrix, offset = step[:dims, :dims], step[:dims, 3]
    channels = [
        ndimage.affine_transform(
            channel, matrix, offset, tuple(other.shape[1:]), order=0 if label else 1, mode="grid-constant"
        )
        for channel in img.detach().cpu().numpy()
    ]
    out = MetaTensor(torch.from_numpy(np.stack(channels)), meta={**img.meta}, affine=other.affine.clone())
    out.meta |= {key: other.meta[key] for key in ("original_affine", "spatial_shape", "spacing", "place", "num_frames")}
    return out
