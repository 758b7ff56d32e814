# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Text that is burned into pixels, found by optical character recognition (RapidOCR, an optional extra)."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np

_MARGIN = 2  # pixels around a box, for what smoothing left of its letters
_SMALLEST = 480  # pixels of the shorter side below which an image is enlarged: letters of 6 pixels are not found else


class TextBox(NamedTuple):
    """A line of text: rows ``top`` to ``bottom`` and columns ``left`` to ``right``, half-open, and what it says."""

    top: int
    bottom: int
    left: int
    right: int
    text: str
    score: float


def require_ocr() -> None:
    """Refuse, before any file is read, what cannot be done without RapidOCR."""
    if find_spec("rapidocr_onnxruntime") is None:
        raise ValueError('reading text in pixels needs RapidOCR: pip install "rapidocr-onnxruntime<2".')


@lru_cache(maxsize=1)
def _engine() -> Any:
    require_ocr()
    from rapidocr_onnxruntime import RapidOCR  # takes a second, and its sessions another

    return RapidOCR()


def find_text(image: np.ndarray) -> list[TextBox]:
    """Lines of text in an image ``(H, W, 1 or 3)``, by the weights that come with RapidOCR; nothing is downloaded."""
    engine = _engine()
    values = image.astype(np.float32)
    low, high = float(values.min()), float(values.max())
    if high <= low:
        return []
    scale = max(1, -(-_SMALLEST // min(image.shape[:2])))
    shown = np.repeat(np.repeat(((values - low) * (255 / (high - low))).astype(np.uint8), scale, 0), scale, 1)
    found, _ = engine(np.ascontiguousarray(np.broadcast_to(shown, (*shown.shape[:2], 3))[..., ::-1]), use_cls=False)
    boxes = []
    for corners, text, score in found or []:
        (left, top), (right, bottom) = np.min(corners, 0) / scale, np.max(corners, 0) / scale
        rows = max(0, int(top) - _MARGIN), min(image.shape[0], int(bottom) + 1 + _MARGIN)
        columns = max(0, int(left) - _MARGIN), min(image.shape[1], int(right) + 1 + _MARGIN)
        boxes.append(TextBox(*rows, *columns, text, float(score)))
    return boxes
