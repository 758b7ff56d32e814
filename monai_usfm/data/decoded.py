# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""What the decoder of every format hands over: stored values and what the header says about them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from monai_usfm.data.formats import UnreadableImageError

FramePicker = Callable[[int], int]  # number of frames in the file -> index of the frame to take


@dataclass
class Decoded:
    """An image with MONAI's axes."""

    values: np.ndarray  # (x, y[, z or frame], channels), as stored; axes of size 1 are the file's own
    affine: np.ndarray = field(default_factory=lambda: np.eye(4))  # voxel (x, y, z) -> mm in RAS
    spacing_known: bool = False  # whether the file says how large a pixel is
    num_frames: int = 1  # or slices in the file; values holds all of them or the one that was picked
    frame: int | None = None  # in values, when it is the only one decoded
    full_scale: float = 0.0  # the value of white by data type or header; 0 where neither tells
    cine: bool = False  # whether the last axis is time, so that frames lie at one place
    frame_time: float = 0.0  # seconds from frame to frame; 0 where unknown
    turn: int = 1  # EXIF orientation that was applied, 1 for none
    # where the file says it lies: "" for nowhere, "ras" or "lps" for what writers of NIfTI or of MetaImage and NRRD put
    # down without knowing it (axes along those of the space, origin 0), else "world"
    place: str = ""
    file_shape: tuple[int, ...] = ()  # as stored, where values lacks some of its axes of size 1
    more: dict[str, Any] = field(default_factory=dict)  # further metadata of a format, for pipelines that look at it


def frame_picker(frame: str | int | float, path: str = "") -> FramePicker:
    """``"middle"`` or an index -> function from the number of frames to an index; ``path`` is for the error."""
    if frame == "middle":
        return lambda count: count // 2
    if isinstance(frame, float) and frame.is_integer():  # tables and JSON give 2.0 for 2
        frame = int(frame)
    if isinstance(frame, (int, np.integer)) and not isinstance(frame, bool):
        return lambda count: int(frame) + count if frame < 0 else int(frame)
    wrong = f'frame must be "middle" or an index, got {frame!r}'
    raise UnreadableImageError(path, f"{wrong}; correct the item.") if path else ValueError(f"{wrong}.")


def checked_frame(path: str, pick: FramePicker, count: int) -> int:
    """The index of the picked frame; a still has frame 0 whatever is asked for."""
    index = 0 if count == 1 else pick(count)
    if not 0 <= index < count:
        raise UnreadableImageError(path, f"has {count} frames, so there is no frame {index}; correct the item's frame.")
    return index
