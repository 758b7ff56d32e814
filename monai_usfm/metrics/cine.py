# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Cines: how steady a segmentation is from frame to frame, and one frame's label carried to all others."""

from __future__ import annotations

import numpy as np
from monai.utils import OptionalImportError, optional_import
from scipy import ndimage

__all__ = ["flicker", "motion", "propagate_label", "warped_dice"]

cv2, _has_cv2 = optional_import("cv2")


def flicker(labels: np.ndarray, num_classes: int = 2) -> list[float]:
    """How much the area of each foreground class jumps between frames, as a share of its mean area.

    The mean over the frames of ``|A[t - 1] - 2 A[t] + A[t + 1]| / 2``: 0 where the area is steady or changes evenly, as
    in a heartbeat of many frames.

    Args:
        labels: class indices ``(T, H, W)``.
        num_classes: classes, background included.

    Returns:
        One number for each class after the background; NaN for one that never shows, or of fewer than three frames.
    """
    areas = [[np.count_nonzero(frame == number) for frame in labels] for number in range(1, num_classes)]
    jumps = [np.abs(np.diff(np.asarray(area, dtype=float), 2)) / 2 for area in areas]
    return [
        float(jump.mean() / np.mean(area)) if len(jump) and np.any(area) else float("nan")
        for jump, area in zip(jumps, areas, strict=True)
    ]


def motion(first: np.ndarray, second: np.ndarray, start: np.ndarray | None = None) -> np.ndarray:
    """Where each pixel of ``first`` lies in ``second``: dense inverse search by OpenCV, whose preset is "medium".

    Kroeger et al. 2016, https://doi.org/10.1007/978-3-319-46493-0_29.

    Args:
        first: ``(H, W)`` in [0, 1].
        second: ``(H, W)``.
        start: displacements ``(H, W, 2)`` to begin with.

    Returns:
        Displacements ``(H, W, 2)`` along (x, y) in pixels.

    Raises:
        OptionalImportError: where OpenCV is not installed.
    """
    if not _has_cv2:
        raise OptionalImportError("motion between frames needs OpenCV: pip install opencv-python-headless.")
    search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    gray = [(255 * np.clip(frame, 0, 1)).astype(np.uint8) for frame in (first, second)]
    return search.calc(*gray, None if start is None else start.astype(np.float32).copy())


def warped_dice(labels: np.ndarray, frames: np.ndarray, num_classes: int = 2) -> list[float]:
    """Dice of each foreground class in a frame with that of the next, brought back along the motion; mean over time.

    1 where a segmentation moves as the image does. Lai et al. 2018, https://arxiv.org/abs/1808.00449: so for colors.

    Args:
        labels: class indices ``(T, H, W)``.
        frames: the cine ``(T, H, W)`` in [0, 1].
        num_classes: classes, background included.

    Returns:
        One number for each class after the background; NaN for one that shows in no pair of frames.
    """
    scores: list[list[float]] = [[] for _ in range(1, num_classes)]
    for t in range(len(labels) - 1):
        back = _pulled(labels[t + 1], motion(frames[t], frames[t + 1]))
        for number, found in enumerate(scores, start=1):
            here, there = labels[t] == number, back == number
            total = np.count_nonzero(here) + np.count_nonzero(there)
            if total:
                found.append(2 * np.count_nonzero(here & there) / total)
    return [float(np.mean(found)) if found else float("nan") for found in scores]


def propagate_label(frames: np.ndarray, label: np.ndarray, frame: int = 0) -> np.ndarray:
    """Carry the label of one frame through a cine, forwards and backwards, by optical flow.

    Of each frame the displacement to the labeled one is the sum along the frames between, which then begins a direct
    search between both: a small motion alone would be lost in a long cine, and sums alone would drift. The label is
    sampled once, so that its edge does not blur.

    Args:
        frames: the cine ``(T, H, W)`` in [0, 1].
        label: class indices ``(H, W)`` of the labeled frame.
        frame: its index.

    Returns:
        Class indices ``(T, H, W)``.

    Raises:
        ValueError: for a label of another size or a frame that is not there. OptionalImportError: without OpenCV.
    """
    if label.shape != frames.shape[1:] or not 0 <= frame < len(frames):
        raise ValueError(
            f"the label {label.shape} of frame {frame} does not fit a cine of {len(frames)} frames {frames.shape[1:]}."
        )
    result = np.zeros(frames.shape, dtype=label.dtype)
    result[frame] = label
    for steps in (range(frame + 1, len(frames)), range(frame - 1, -1, -1)):
        total, last = np.zeros((*label.shape, 2), dtype=np.float32), frame
        for t in steps:
            step = motion(frames[t], frames[last])
            there = np.stack([_pulled(total[..., axis], step, order=1) for axis in (0, 1)], axis=-1)
            total, last = motion(frames[t], frames[frame], step + there), t
            result[t] = _pulled(label, total)
    return result


def _pulled(plane: np.ndarray, flow: np.ndarray, order: int = 0) -> np.ndarray:
    """Each pixel takes the value of ``plane`` where the flow says it lies."""
    y, x = np.indices(plane.shape, dtype=np.float32)
    return ndimage.map_coordinates(plane, [y + flow[..., 1], x + flow[..., 0]], order=order, mode="nearest")
