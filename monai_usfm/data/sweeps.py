# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Freehand sweeps: tracked frames and their poses become a volume with spacing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from monai_usfm.data.loading import LoadUltrasound
from monai_usfm.data.tables import Table
from monai_usfm.files import atomic_write, keep_apart

MATRIX = [f"m{row}{column}" for row in range(3) for column in range(4)]
COLUMNS = ["pixel_size_x_mm", "pixel_size_y_mm", *MATRIX]


def compound(
    frames: Sequence[np.ndarray],
    matrices: Sequence[np.ndarray],
    pixel_size: tuple[float, float],
    spacing: float = 1.0,
    max_gap: float = 5.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Put tracked frames into a volume.

    The axes of the volume are those of the middle frame: x lateral, y depth, z across the sweep. Every pixel is shared
    out to the eight voxels around it by trilinear weights; a voxel is the weighted mean of what it got. Voxels between
    frames that got nothing are filled by normalized convolution with a Gaussian (Knutsson and Westin 1993,
    https://doi.org/10.1109/CVPR.1993.341081), as far as a closing by ``max_gap`` joins their surroundings. The rest
    is 0.

    Args:
        frames: gray values ``(H, W)`` of equal size; 0 is taken for outside of the image region.
        matrices: for each frame ``(3, 4)``, image to tracker in mm. Image coordinates are in mm from the center of the
            image, x to the right, y down, z = 0.
        pixel_size: mm of a pixel along (x, y).
        spacing: mm of a voxel.
        max_gap: mm of the widest gap that is filled.

    Returns:
        The volume ``(X, Y, Z)``, the mask of voxels that were seen or filled, and the affine ``(4, 4)`` from voxels to
        the tracker.

    Raises:
        ValueError: for no frames, frames and matrices that do not go together, or lengths out of range.
    """
    if not (spacing > 0 and max_gap >= 0):
        raise ValueError(f"spacing must be above 0 mm and max_gap not below; got {spacing:g} and {max_gap:g}.")
    if not len(frames) or len(frames) != len(matrices):
        raise ValueError(f"need a matrix for each frame, got {len(frames)} frames and {len(matrices)} matrices.")
    poses = [np.vstack([np.asarray(m, dtype=float).reshape(3, 4), [0, 0, 0, 1]]) for m in matrices]
    back = np.linalg.inv(poses[len(poses) // 2])
    height, width = frames[0].shape
    y, x = np.indices((height, width))
    plane = np.stack([(x - (width - 1) / 2) * pixel_size[0], (y - (height - 1) / 2) * pixel_size[1]])
    flat = np.vstack([plane.reshape(2, -1), np.zeros(x.size), np.ones(x.size)])
    places = [(back @ pose @ flat)[:3] / spacing for pose in poses]
    origin = np.floor(np.min([place.min(1) for place in places], axis=0))
    shape = tuple(int(n) for n in np.ceil(np.max([place.max(1) for place in places], axis=0)) - origin + 2)
    sums, weights = np.zeros(np.prod(shape)), np.zeros(np.prod(shape))
    for frame, place in zip(frames, places, strict=True):
        values = np.asarray(frame, dtype=float).ravel()
        seen = values > 0
        low = np.floor(place[:, seen]).astype(int)
        part = place[:, seen] - low
        low = low - origin[:, None].astype(int)
        shares, indices = [], []
        for corner in np.ndindex(2, 2, 2):
            shares.append(np.prod([part[a] if corner[a] else 1 - part[a] for a in range(3)], axis=0))
            indices.append(np.ravel_multi_index([low[a] + corner[a] for a in range(3)], shape))
        share, index = np.concatenate(shares), np.concatenate(indices)  # one count of a frame: it runs over all voxels
        sums += np.bincount(index, share * np.tile(values[seen], 8), minlength=len(sums))
        weights += np.bincount(index, share, minlength=len(sums))
    total, weight = sums.reshape(shape), weights.reshape(shape)
    hit = weight > 1e-3
    reach = max_gap / spacing
    near = ndimage.distance_transform_edt(~hit) <= reach / 2
    inside = ndimage.distance_transform_edt(np.pad(near, 1))[1:-1, 1:-1, 1:-1] > reach / 2  # closing by a ball
    smooth = [
        ndimage.gaussian_filter(part, reach / 4)
        for part in (np.where(hit, total / np.maximum(weight, 1e-3), 0), hit * 1.0)
    ]
    filled = smooth[0] / np.maximum(smooth[1], 1e-6)
    volume = np.where(hit, total / np.maximum(weight, 1e-3), np.where(inside & (smooth[1] > 1e-4), filled, 0))
    affine = poses[len(poses) // 2] @ np.block(
        [[spacing * np.eye(3), spacing * origin[:, None]], [np.zeros((1, 3)), np.ones((1, 1))]]
    )
    return volume, hit | inside, affine


def compound_sweep(poses: str, output: str, *, spacing: float = 1.0, max_gap: float = 5.0) -> Path:
    """Make a volume (NIfTI) from the frames of a freehand sweep and the table of their poses.

    The table is CSV with a row for each frame: ``image`` (a file, from the folder of the table), ``pixel_size_x_mm``,
    ``pixel_size_y_mm``, and ``m00`` to ``m23``, the rows of the matrix from the image to the tracker in mm. Image
    coordinates have their origin in the center of the image, x to the right, y down. Beside the volume lies
    ``NAME_fov.nii.gz``, the voxels that were seen or filled.

    Args:
        poses: the table.
        output: the volume, ``.nii.gz``.
        spacing: mm of a voxel.
        max_gap: mm of the widest gap between frames that is filled.

    Returns:
        The volume.

    Raises:
        ValueError: for a table without these columns, without rows, with an entry that is no number, or with frames of
            several sizes or pixel sizes; and for an output of another format.
    """
    if not output.endswith((".nii", ".nii.gz")):
        raise ValueError(f"{output}: a volume is written as NIfTI; give a name that ends in .nii.gz.")
    keep_apart(output, poses)
    rows = Table(poses, COLUMNS).rows.values()
    numbers = np.array([[_number(poses, row, name) for name in COLUMNS] for row in rows])
    if not len(numbers):
        raise ValueError(f"{poses}: no frame stands in it.")
    sizes = np.unique(numbers[:, :2], axis=0)
    if len(sizes) > 1:
        raise ValueError(f"{poses}: the frames have {len(sizes)} pixel sizes; resample them to one.")
    load = LoadUltrasound(2)
    files = [Path(poses).parent / row["image"].replace("\\", "/") for row in rows]  # also as Windows writes them
    frames = [np.asarray(load(file)[0]) for file in files]
    shapes = sorted({frame.shape for frame in frames})
    if len(shapes) > 1:
        raise ValueError(
            f"{poses}: its images have {len(shapes)} sizes, {shapes[0]} and {shapes[1]} pixels (rows first)."
        )
    matrices = list(numbers[:, 2:].reshape(-1, 3, 4))
    volume, fov, affine = compound(frames, matrices, (sizes[0, 0], sizes[0, 1]), spacing, max_gap)
    target = Path(output)
    stem = target.name.removesuffix(".gz").removesuffix(".nii")
    for array, place in (((255 * volume).round(), target), (fov, target.with_name(f"{stem}_fov.nii.gz"))):
        with atomic_write(place) as part:
            nib.save(nib.Nifti1Image(array.astype(np.uint8), affine), part)
    print(f"{target}: {' x '.join(map(str, volume.shape))} voxels of {spacing:g} mm from {len(frames)} frames.")
    return target


def _number(table: str, row: Mapping[str, str], name: str) -> float:
    try:
        value = float(row[name])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{table}: {name} of {row['image']} is {row[name]!r}, no number.")
    return value
