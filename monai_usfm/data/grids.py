# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Whether the images of one item, such as image and label, lie on one grid."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing

from monai_usfm.data.formats import UnreadableImageError

__all__ = ["check_one_grid"]


def check_one_grid(path: str, img: torch.Tensor, other_path: str, other: torch.Tensor) -> None:
    """Refuse images of one item that differ in size, or of which both files say where they lie, and say otherwise."""
    if img.shape[1:] != other.shape[1:]:
        raise UnreadableImageError(
            path,
            f"has size {tuple(img.shape[1:])}, but {other_path} {tuple(other.shape[1:])}: they must lie on one grid; "
            "correct the datalist or resample one of them.",
        )
    # Files without a place of their own have the identity, which MetaImage and NIfTI read differently.
    suffixes = [(".nii", ".nii.gz"), (".mha", ".mhd", ".nrrd", ".nhdr")]
    alike = any(path.lower().endswith(kind) and other_path.lower().endswith(kind) for kind in suffixes)
    if not alike or not isinstance(img, MetaTensor) or not isinstance(other, MetaTensor):
        return
    here, there = (np.asarray(x.meta["original_affine"], dtype=np.float64) for x in (img, other))
    size = [int(n) for n in img.meta["spatial_shape"]]
    ends = [(0, n - 1) for n in size] + [(0,)] * (3 - len(size))
    corners = np.array([[*at, 1] for at in itertools.product(*ends)], dtype=np.float64)
    apart = np.abs((corners @ (here - there).T)[:, :3]).max()
    if apart > 0.5 * affine_to_spacing(there).min():
        raise UnreadableImageError(
            path,
            f"lies up to {apart:.3g} mm from the grid of {other_path}, by the affine of the two files; "
            "resample it to that grid, or correct its header.",
        )
