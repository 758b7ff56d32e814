# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""How an ultrasound effect is applied: along the beams, inside the field of view, drawn once for all keys.

Gray levels are decibels, see :mod:`monai_usfm.physics.display`. Results are clamped to [0, 1], so what reaches white or
black stays there, as on the display.

Effects follow the beams of a :class:`BeamGeometry`. Without one, beams are the image columns from the first row to the
last, i.e. a linear probe. They act inside the field of view only (:func:`acting_region`); the rest of the image is
returned as it was. In volumes (C, D, H, W) a 2D geometry serves every slice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from monai.config import NdarrayOrTensor
from monai.data import get_track_meta
from monai.transforms import RandomizableTransform
from monai.utils import convert_to_dst_type, convert_to_tensor

from monai_usfm.physics.beam import BeamGeometry
from monai_usfm.physics.display import check_dynamic_range
from monai_usfm.transforms.dictionary import TORCH, DictionaryForm

Range = tuple[float, float]


def acting_region(
    img: torch.Tensor, fov: torch.Tensor | None = None, geometry: BeamGeometry | None = None
) -> torch.Tensor:
    """Where an effect on an image ``(C, *S)`` acts: bool ``(1, *S)``.

    That is ``fov`` if given; else the beams of ``geometry``; else the pixels that have, along every axis, something
    brighter than black on both sides (or are bright themselves). The last is cheap and exact for clean sectors; where
    text or compression noise surrounds the scan, give the mask of :class:`~monai_usfm.transforms.FieldOfView`.

    """
    shape = img.shape[1:]
    if fov is not None:
        return given_region(fov, img)
    if geometry is not None:
        return geometry.mask(shape[-geometry.spatial_dims :], img.device).expand(1, *shape)
    bright = (img.as_subclass(torch.Tensor) > 0).any(dim=0, keepdim=True)
    inside = torch.ones_like(bright)
    for axis in range(1, bright.ndim):
        before = bright.cumsum(axis) > 0
        after = bright.flip(axis).cumsum(axis).flip(axis) > 0
        inside &= before & after
    return inside


def given_region(fov: NdarrayOrTensor, img: torch.Tensor) -> torch.Tensor:
    """A known field of view as booleans ``(1, *S)``, or a ValueError if it does not fit ``img`` (C, *S)."""
    mask = torch.as_tensor(fov, device=img.device).as_subclass(torch.Tensor) > 0
    if mask.shape != (1, *img.shape[1:]):
        raise ValueError(f"the field of view must be (1, *{tuple(img.shape[1:])}), got {tuple(mask.shape)}.")
    return mask


def check_image(img: torch.Tensor, margin: float | None = 1e-3, fewest: int = 2) -> torch.Tensor:
    """``img`` as a plain floating tensor, or one error that says what is wrong with it.

    Args:
        img: ``(C, *S)``, with ``fewest`` to 3 spatial axes.
        margin: how far values may lie outside [0, 1]; None for any finite ones.
    """
    if not fewest < img.ndim <= 4 or img.numel() == 0:
        raise ValueError(
            f"the image must be (C, *S) with {fewest} to 3 axes, none empty, got shape {tuple(img.shape)}."
        )
    plain = img.as_subclass(torch.Tensor)
    image = plain if plain.dtype in (torch.float32, torch.float64) else plain.float()
    low, high = (float(v) for v in torch.aminmax(image))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("the image holds NaN or infinite values; clean it first, for instance with torch.nan_to_num.")
    if margin is not None and not (low >= -margin and high <= 1 + margin):
        raise ValueError(
            f"the image must be in [0, 1], got values from {low:g} to {high:g}; scale it first, e.g. with "
            "ScaleIntensityRange, or clip what a filter before it overshoots, e.g. by RandFourierBandStop(clip=True)."
        )
    return image


def blend(
    img: torch.Tensor, image: torch.Tensor, out: torch.Tensor, fov: torch.Tensor | None, geometry: BeamGeometry | None
) -> torch.Tensor:
    """``out`` clamped to [0, 1] inside the field of view, ``image`` outside, with the type and metadata of ``img``."""
    inside = acting_region(image, fov, geometry)
    result = torch.where(inside, out.clamp(0, 1).to(image.dtype), image)
    dtype = img.dtype if img.is_floating_point() else result.dtype
    return convert_to_dst_type(result, img, dtype=dtype)[0]


def check_range(
    name: str, values: float | Sequence[float], above: float | None = None, symmetric: bool = False
) -> Range:
    """``values`` as ``(low, high)`` with low above ``above``, or a ValueError that calls them ``name``.

    A number stands for itself or, where ``symmetric``, for the range about 0 up to it, as in MONAI's
    ``RandShiftIntensity``.
    """
    if isinstance(values, (int, float)):
        values = (-abs(values), abs(values)) if symmetric else (values, values)
    pair = tuple(float(v) for v in values)
    if len(pair) != 2 or not pair[0] <= pair[1] or (above is not None and not pair[0] > above):
        limit = "" if above is None else f", low above {above:g}"
        raise ValueError(f"{name} must be a number or a range (low, high) with low <= high{limit}, got {values}.")
    return pair


class RandEffect(RandomizableTransform):
    """Base of the random array transforms here: draws parameters, and hands them to the function ``effect``.

    The last drawn parameters stay in ``params``, so that ``randomize=False`` repeats them.

    Args:
        prob: chance that an image is changed.
        dynamic_range_db: display range of a log-compressed image, ``None`` for a linear one.
        ranges: parameter of ``effect`` -> a number, or ``(low, high)`` between which it is drawn uniformly.
    """

    backend = TORCH
    effect: Callable[..., torch.Tensor]  # called with the image, the parameters, dynamic_range_db, fov and geometry
    positive: tuple[str, ...] = ()  # parameters that are above 0
    symmetric: tuple[str, ...] = ()  # those of which a number stands for the range about 0 up to it

    def __init__(self, prob: float, dynamic_range_db: float | None, **ranges: float | Range) -> None:
        super().__init__(prob)
        check_dynamic_range(dynamic_range_db)
        self.dynamic_range_db = dynamic_range_db
        self.ranges = {
            name: check_range(name, values, 0.0 if name in self.positive else None, name in self.symmetric)
            for name, values in ranges.items()
        }
        self.params: dict[str, Any] = {}

    def draw(self, img: torch.Tensor) -> dict[str, Any]:
        """Parameters for ``img`` (C, *S)."""
        return {name: self.R.uniform(*ends) for name, ends in self.ranges.items()}

    def randomize(self, data: torch.Tensor) -> None:
        """Draw whether to act on ``data`` (C, *S), and with which parameters."""
        super().randomize(None)
        if self._do_transform:
            self.params = self.draw(data)

    def __call__(
        self,
        img: NdarrayOrTensor,
        fov: torch.Tensor | None = None,
        geometry: BeamGeometry | Mapping[str, Any] | None = None,
        randomize: bool = True,
    ) -> torch.Tensor:
        """Apply to ``img`` (C, *S) in [0, 1], inside ``fov`` (1, *S) and along the beams of ``geometry``."""
        image: torch.Tensor = convert_to_tensor(img, track_meta=get_track_meta())
        check_image(image)  # also where the draw leaves it alone: a wrong range must not pass nine times out of ten
        if randomize:
            self.randomize(image)
        if not self._do_transform:
            return image
        if isinstance(geometry, Mapping):  # of BeamGeometry.to_dict
            geometry = BeamGeometry.from_dict(dict(geometry))
        if not isinstance(geometry, BeamGeometry | None):
            raise TypeError(f"geometry must be a BeamGeometry or what its to_dict gives, got {geometry!r}.")
        return self.effect(image, **self.params, dynamic_range_db=self.dynamic_range_db, fov=fov, geometry=geometry)


class RandEffectForm(DictionaryForm):
    """Base of the dictionary forms: field of view and beams are items, stored by ``FieldOfViewd`` and ``FitBeamd``."""

    items = ("fov", "geometry")
