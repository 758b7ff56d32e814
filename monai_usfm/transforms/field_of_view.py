# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Field of view: the pixels that the beams reached, told apart from the empty screen around them."""

from __future__ import annotations

from collections.abc import Hashable, MutableMapping
from typing import Any, ClassVar

import numpy as np
import torch
from monai.config import NdarrayOrTensor
from monai.data import get_track_meta
from monai.transforms import Transform
from monai.utils import convert_to_dst_type, convert_to_tensor
from scipy import ndimage

from monai_usfm.transforms.dictionary import NUMPY, DictionaryForm, dictionary_form

__all__ = ["FieldOfView", "FieldOfViewd"]


class FieldOfView(Transform):
    """Mask of the insonified part of an image: ``(C, *S) -> (1, *S)``, bool, 2D or 3D.

    The screen around a scan is dark and flat, tissue is not. The image is thresholded just above its darkest blocks;
    what remains is closed (speckle zeros), opened (text, rulers, gray bars), reduced to its largest connected part
    (other windows, logos), and its holes (cysts, vessels) are filled. The sizes of closing and opening grow with the
    image, so that the result does not depend on its resolution.

    Channels are scaled separately and joined by their maximum, so that a constant alpha channel counts for nothing. An
    image without dark surroundings, a constant one included, is all field of view. Non-finite values lie outside.

    The boundary follows what is brighter than the screen: shadows and anechoic regions that touch the border of the
    sector are left out where they are wider than the closing. Where a cone fits,
    ``FitBeam()(image).mask(shape)`` follows the geometry instead and includes them. To crop to it, use MONAI's
    ``CropForegroundd(keys, source_key="image", select_fn=FieldOfView(), allow_smaller=True)``.

    Args:
        threshold: gray level above which a pixel is tissue, as a fraction of the image range; estimated if ``None``.

    Raises:
        ValueError: if ``threshold`` is not in [0, 1), or the image is not ``(C, H, W)`` or ``(C, D, H, W)``.
    """

    backend = NUMPY

    def __init__(self, threshold: float | None = None) -> None:
        if threshold is not None and not 0 <= threshold < 1:
            raise ValueError(f"threshold is a fraction of the image range in [0, 1), got {threshold}.")
        self.threshold = threshold

    def __call__(self, img: NdarrayOrTensor) -> torch.Tensor:
        image = convert_to_tensor(img, track_meta=get_track_meta())
        if image.ndim not in (3, 4) or image.numel() == 0:
            raise ValueError(f"the image must be (C, H, W) or (C, D, H, W) and not empty, got {tuple(image.shape)}.")
        mask = field_of_view(_gray(image), self.threshold)
        return convert_to_dst_type(mask[None], dst=image[:1], dtype=torch.bool)[0]


class StoredForm(DictionaryForm):
    """Base of dictionary forms that leave the key alone and store what was found beside it."""

    note = "What was found in ``key`` is stored under ``{key}_{postfix}``."
    postfix: str

    def store(self, d: MutableMapping[Hashable, Any], key: Hashable, result: Any) -> None:
        d[f"{key}_{self.postfix}"] = result


class _FieldOfViewForm(StoredForm):
    options: ClassVar = {"postfix": ("fov", "appended to the key, after an underscore.")}


FieldOfViewd = dictionary_form(FieldOfView, _FieldOfViewForm)


def _gray(image: torch.Tensor) -> np.ndarray:
    """``(C, *S) -> (*S,)`` float32 in [0, 1]: the brightest of the rescaled channels; NaN where not finite."""
    values = image.as_subclass(torch.Tensor).detach().to(torch.float32).cpu().numpy()
    finite, axes = np.isfinite(values), tuple(range(1, values.ndim))
    low = values.min(axes, where=finite, initial=np.inf, keepdims=True)
    span = values.max(axes, where=finite, initial=-np.inf, keepdims=True) - low
    with np.errstate(invalid="ignore", over="ignore"):
        scaled = (values - low) / np.where(span > 0, span, 1)
    gray = np.where(finite, scaled, -np.inf).max(axis=0)
    gray[np.isinf(gray)] = np.nan
    return gray


def field_of_view(gray: np.ndarray, threshold: float | None = None) -> np.ndarray:
    """Field of view of a gray image ``(*S,)`` in [0, 1] as a bool array; the work of :class:`FieldOfView`."""
    outside = np.isnan(gray)
    tissue = gray > (_background_level(gray) if threshold is None else threshold)
    if not tissue.any() or (tissue | outside).all():  # no screen to be told apart, or nothing but screen
        return ~outside if not outside.all() else np.ones_like(tissue)

    # closing would join a word or a gray bar a few pixels off the sector; where the sector is one piece without it,
    # which speckle and shadows may prevent, nothing has to be joined
    mask, whole = _solid(largest_part(tissue)), _solid(tissue)
    if mask.sum() < 0.98 * whole.sum():
        mask = whole
    return mask & ~outside


def _solid(tissue: np.ndarray) -> np.ndarray:
    """Largest part of thresholded tissue, closed, without thin things around it, and its holes filled."""
    mask = _closing(tissue, 0.012)
    # the border counts as tissue: a field of view that the image cuts off is not thin there
    core = _filter(_filter(mask, 0.02, grow=False, border=1), 0.02, grow=True)
    if not core.any():
        core = mask  # a field of view of a few pixels
    core = largest_part(core)
    # growing the core back inside the mask returns the sharp corners that opening rounds off, but not the text beyond
    mask = mask & _filter(core, 0.02, grow=True)
    return ndimage.binary_fill_holes(_closing(ndimage.binary_fill_holes(mask), 0.04))


def _background_level(gray: np.ndarray) -> float:
    """Gray level just above the empty screen, from the darkest blocks of the image."""
    block = tuple(min(8, n) for n in gray.shape)
    cut = gray[tuple(slice(0, n // b * b) for n, b in zip(gray.shape, block, strict=True))]
    split = [v for n, b in zip(cut.shape, block, strict=True) for v in (n // b, b)]
    order = list(range(0, 2 * gray.ndim, 2)) + list(range(1, 2 * gray.ndim, 2))
    blocks = np.nan_to_num(cut.reshape(split).transpose(order).reshape(-1, int(np.prod(block))))
    means = blocks.mean(axis=1)
    darkest = blocks[means <= np.quantile(means, 0.02)]
    mean, spread = float(darkest.mean()), float(darkest.std())
    if mean > 0.06:  # no screen in sight: dark tissue at most
        return 0.0
    return mean + 3 * spread + 1.5 / 255


def _filter(mask: np.ndarray, fraction: float, grow: bool, border: int = 0) -> np.ndarray:
    """Dilation or erosion by a box of that share of each size; a box filter is fast, and ``border`` lies beyond."""
    size = [2 * min(round(fraction * n), (n - 1) // 2) + 1 for n in mask.shape]
    return (ndimage.maximum_filter if grow else ndimage.minimum_filter)(mask, size=size, mode="constant", cval=border)


def _closing(mask: np.ndarray, fraction: float) -> np.ndarray:
    # on a wider canvas, because a dilation cut off by the image border would never be eroded back
    pad = [round(fraction * n) for n in mask.shape]
    size = [2 * min(r, (n - 1) // 2) + 1 for r, n in zip(pad, mask.shape, strict=True)]
    wide = ndimage.maximum_filter(np.pad(mask, [(r, r) for r in pad]), size=size, mode="constant", cval=0)
    closed = ndimage.minimum_filter(wide, size=size, mode="constant", cval=0)
    return closed[tuple(slice(r, r + n) for r, n in zip(pad, mask.shape, strict=True))]


def largest_part(mask: np.ndarray) -> np.ndarray:
    """The largest of the parts of a mask whose pixels touch at their sides."""
    labels, _ = ndimage.label(mask)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels == sizes.argmax()
