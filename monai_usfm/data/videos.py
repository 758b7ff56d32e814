# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""AVI, MP4 and other videos by PyAV: cines with their frame rate."""

from __future__ import annotations

import os

import av
import numpy as np

from monai_usfm.data.decoded import Decoded, FramePicker, checked_frame
from monai_usfm.data.formats import UnreadableImageError, check_size
from monai_usfm.data.upright import gray_from_rgb

_FULL_RANGE_GRAY = {"gray", "gray8", "pal8", "monow", "monob"}


def decode_video(path: str, pick: FramePicker | None) -> Decoded:
    """Read the first video stream; ``pick`` leaves the other frames out.

    A video that a phone marks as turned is turned. Gray is the luma of the decoded RGB frame, as for images, so that
    limited range (16 to 235) comes out in 0 to 255 as a player shows it.
    """
    with av.open(os.path.abspath(path)) as container:  # of "a:b.mp4" FFmpeg would take a for a protocol
        if not container.streams.video:
            raise UnreadableImageError(path, "has no video stream.")
        stream = container.streams.video[0]
        check_size(path, stream.width, stream.height, max(1, stream.frames))
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        frames, quarters = [], 0
        for frame in container.decode(stream):
            if frame.format.name in _FULL_RANGE_GRAY:
                frames.append(frame.to_ndarray(format="gray")[..., None])
            else:
                frames.append(gray_from_rgb(frame.to_ndarray(format="rgb24")))
            check_size(path, frame.width, frame.height, len(frames))
            quarters = round(getattr(frame, "rotation", 0) / 90) % 4  # how a phone was held, as EXIF tells of an image
    if not frames:
        raise UnreadableImageError(path, "has no frame that can be decoded.")
    count, index = len(frames), None
    if pick is not None:
        index = checked_frame(path, pick, count)
        frames = frames[index : index + 1]
    values = np.rot90(np.stack(frames), quarters, (1, 2))
    values = values.transpose(2, 1, 0, 3)  # (x, y, frame, channel)
    if index is not None or count == 1:
        values = values[:, :, 0]
    return Decoded(
        values,
        num_frames=count,
        frame=index,
        full_scale=255.0,
        cine=count > 1,
        frame_time=1 / rate if rate > 0 else 0.0,
        turn=(1, 8, 3, 6)[quarters],
    )
