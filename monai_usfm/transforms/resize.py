# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""MONAI's resizing with anti-aliasing as small matrix products; array and dictionary form."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from monai.data import MetaTensor
from monai.data.meta_obj import get_track_meta
from monai.networks.layers import gaussian_1d
from monai.transforms import Resize, Resized
from monai.transforms.inverse import TraceableTransform
from monai.transforms.utils import scale_affine
from monai.utils import TraceKeys, convert_to_tensor, fall_back_tuple

__all__ = ["SeparableResize", "SeparableResized", "resize_linear"]

LINEAR = ("linear", "bilinear", "trilinear")
ROWS = 32  # of the result in one product: few, so that its matrix has few zeros


def resize_linear(img: torch.Tensor, spatial_size: Sequence[int]) -> torch.Tensor:
    """``(..., *S) -> (..., *spatial_size)`` in float32, with the values of MONAI's ``Resize(anti_aliasing=True)``.

    That smooths what is to shrink by a Gaussian of ``(factor - 1) / 2`` pixels, zeros around, and interpolates
    linearly. Both are linear maps of each axis, so one banded matrix an axis does them at once.
    """
    out = img.float()
    for axis, target in enumerate(spatial_size, start=img.dim() - len(spatial_size)):
        source = out.shape[axis]
        if source == target:
            continue
        shape = [*out.shape[:axis], target, *out.shape[axis + 1 :]]
        last = axis == out.dim() - 1
        rows = out.reshape(-1, source) if last else out.reshape(-1, source, out.shape[axis + 1 :].numel())
        parts = []
        for first, end, matrix in _bands(source, target):
            matrix = matrix.to(out.device)
            parts.append(rows[:, first:end] @ matrix.T if last else matrix @ rows[:, first:end])
        out = torch.cat(parts, dim=1).reshape(shape)
    return out


@lru_cache(maxsize=128)
def _bands(source: int, target: int) -> list[tuple[int, int, torch.Tensor]]:
    """``(first, end, matrix)``: some rows of the result are the matrix times the samples from first to end."""
    factor = source / target
    place = ((torch.arange(target, dtype=torch.float64) + 0.5) * factor - 0.5).clamp(min=0)
    low = place.long().clamp(max=source - 1)
    share = (place - low)[:, None]
    smooth = torch.ones(1, dtype=torch.float64)
    if factor > 1:
        smooth = gaussian_1d(torch.tensor((factor - 1) / 2)).double()
    tail = len(smooth) // 2
    taps = torch.zeros(target, len(smooth) + 1, dtype=torch.float64)
    taps[:, :-1] += (1 - share) * smooth
    at_end = low == source - 1  # both samples are the last one
    taps[~at_end, 1:] += (share * smooth)[~at_end]
    taps[at_end, :-1] += (share * smooth)[at_end]
    columns = low[:, None] - tail + torch.arange(taps.shape[1])
    taps[(columns < 0) | (columns >= source)] = 0
    bands = []
    for start in range(0, target, ROWS):
        rows = columns[start : start + ROWS]
        first, end = max(0, int(rows.min())), min(source, int(rows.max()) + 1)
        matrix = torch.zeros(len(rows), end - first, dtype=torch.float64)
        matrix.scatter_add_(1, (rows - first).clamp(0, end - first - 1), taps[start : start + ROWS])
        bands.append((first, end, matrix.float()))
    return bands


class SeparableResize(Resize):
    """MONAI's ``Resize``, about ten times as fast where it smooths and interpolates linearly; the rest is MONAI's.

    A plain tensor stays one, and so has no inverse: metadata would cost time in every step after it.
    """

    def __call__(  # type: ignore[override]
        self,
        img: torch.Tensor,
        mode: str | None = None,
        align_corners: bool | None = None,
        anti_aliasing: bool | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        if not isinstance(img, torch.Tensor):
            img = convert_to_tensor(img, track_meta=get_track_meta())
        chosen, lazy = str(mode or self.mode), kwargs.get("lazy")
        smooths = self.anti_aliasing if anti_aliasing is None else anti_aliasing
        special = (align_corners, self.align_corners, kwargs.get("anti_aliasing_sigma"), self.anti_aliasing_sigma)
        size = self.spatial_size if isinstance(self.spatial_size, Sequence) else ()
        ours = smooths and chosen in LINEAR and not any(special) and len(size) == img.dim() - 1
        if not ours or (self.lazy if lazy is None else lazy) or getattr(img, "pending_operations", None):
            return super().__call__(img, mode, align_corners, anti_aliasing, **kwargs)
        before = tuple(img.shape[1:])
        size = tuple(int(n) for n in fall_back_tuple(size, before))
        out = resize_linear(img.as_subclass(torch.Tensor), size)
        if not (isinstance(img, MetaTensor) and get_track_meta()):
            return out
        meta = TraceableTransform.track_transform_meta(
            img,
            sp_size=size,
            affine=scale_affine(before, size),
            extra_info={"mode": chosen, "align_corners": TraceKeys.NONE, "dtype": "float32", "new_dim": 0},
            orig_size=before,
            transform_info=self.get_transform_info(),
        )
        return MetaTensor(out).copy_meta_from(meta)


class SeparableResized(Resized):
    """Dictionary form of :class:`SeparableResize`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.resizer = SeparableResize(self.resizer.spatial_size, self.resizer.size_mode, lazy=self.resizer.lazy)
