# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Speckle as transforms; the physics is in :mod:`monai_usfm.physics.speckle`."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, MutableMapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar

import torch
from monai.config import NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import RandomizableTransform
from monai.utils import convert_to_dst_type

from monai_usfm.physics.beam import BeamGeometry
from monai_usfm.physics.speckle import (
    add_speckle,
    beam_speckle_intensity,
    box_mean,
    check_looks,
    check_strength,
    per_axis,
    respeckle,
    speckle_field,
    speckle_intensity,
    whole_looks,
    working_dtype,
)
from monai_usfm.transforms.dictionary import TORCH, DictionaryForm, dictionary_form
from monai_usfm.transforms.effect import Range, as_geometry, as_tensor, check_range

__all__ = [
    "RandSpeckleNoise",
    "RandSpeckleNoised",
    "SpeckleNoise",
    "SpeckleNoised",
    "add_speckle",
    "beam_speckle_intensity",
    "respeckle",
    "speckle_field",
    "speckle_intensity",
]


class RandSpeckleNoise(RandomizableTransform):
    """Randomly give an ultrasound image fully developed speckle.

    A B-mode image already carries speckle. ``mode="add"`` puts the new one on top, as one more independent source
    (see :func:`add_speckle`): with ``strength=1`` an image with fully developed speckle then spreads by 7.9 instead of
    5.6 dB. ``mode="respeckle"`` first takes the old speckle out (see :func:`respeckle`).

    Samples that are 0 carry no echo and stay 0 (in ``"respeckle"``: where the surroundings are 0 as well), and
    samples outside the field of view are returned as they were.

    Args:
        prob: chance that an image is changed at all.
        looks: range ``(low, high)`` of the number of independent looks that the speckle is averaged over (compounding),
            both ends included: whole numbers, or with ``psf_sigma=None`` any number, uniformly. 1 is fully developed,
            5.57 dB; 4 gives 2.31 dB. One number stands for itself.
        dynamic_range_db: decibels between black and white of the log-compressed image in [0, 1]; ``None`` for a linear
            envelope, which is multiplied instead.
        psf_sigma: standard deviation of the scanner's point-spread function, one number or one per spatial axis, in
            the unit that ``psf_unit`` names; speckle is ``2.36 * psf_sigma`` wide (full width at half maximum, in
            intensity). ``None``: no correlation, which is fastest and looks like no scanner.
        mode: ``"add"`` or ``"respeckle"``.
        strength: range of the factor on the decibels of the new speckle, uniformly, or one number.
        psf_unit: ``"samples"``, or ``"mm"``: then ``psf_sigma`` is in millimeters, so that speckle has one size in the
            patient at every resolution and on anisotropic grids.

    Raises:
        ValueError: for a parameter out of range; when called, for an image that is empty, not finite, or, with a
            ``dynamic_range_db``, not scaled to [0, 1]; with ``psf_unit="mm"``, for an image of unknown spacing.
    """

    backend = TORCH

    def __init__(
        self,
        prob: float = 0.1,
        looks: float | Range = (1.0, 4.0),
        dynamic_range_db: float | None = 60.0,
        psf_sigma: float | Sequence[float] | None = 1.0,
        mode: str = "add",
        strength: float | Range = (0.5, 1.0),
        psf_unit: str = "samples",
    ) -> None:
        RandomizableTransform.__init__(self, prob)
        self.looks_range, self.strength_range = check_range("looks", looks), check_range("strength", strength)
        for end in (0, 1):
            check_strength(dynamic_range_db, self.strength_range[end])
            check_looks(self.looks_range[end]) if psf_sigma is None else whole_looks(self.looks_range[end])
        if psf_unit not in ("samples", "mm"):
            raise ValueError(f'psf_unit must be "samples" or "mm", got {psf_unit!r}.')
        if mode not in ("add", "respeckle"):
            raise ValueError(f'mode must be "add" or "respeckle", got {mode!r}.')
        if psf_sigma is not None:
            per_axis(psf_sigma, 1, 3)
        self.dynamic_range_db, self.psf_sigma, self.psf_unit = dynamic_range_db, psf_sigma, psf_unit
        self.mode = mode
        self.looks, self.strength, self.seed = self.looks_range[0], self.strength_range[0], 0

    def randomize(self, data: Any = None) -> None:
        """Draw whether to act, ``looks``, ``strength`` and the seed of the speckle field."""
        super().randomize(None)
        if self._do_transform:
            low, high = self.looks_range
            self.looks = (
                self.R.uniform(low, high) if self.psf_sigma is None else int(self.R.randint(int(low), int(high) + 1))
            )
            self.strength = self.R.uniform(*self.strength_range)
            self.seed = int(self.R.randint(2**31 - 1))

    def __call__(
        self,
        img: NdarrayOrTensor,
        fov: NdarrayOrTensor | None = None,
        geometry: BeamGeometry | Mapping[str, Any] | None = None,
        randomize: bool = True,
        spacing: Sequence[float] | None = None,
    ) -> NdarrayOrTensor:
        """Apply to ``img`` (C, *S).

        Args:
            img: channel-first image; every channel gets the same speckle, as gray images stored as RGB need.
            fov: mask ``(1, *S)`` of the field of view; with a ``geometry`` alone, the area that its beams reach.
            geometry: beams of this image; the speckle is then made along them, see :func:`beam_speckle_intensity`.
            randomize: draw a new field, or repeat the last one.
            spacing: mm per sample along each axis of ``S``, for ``psf_unit="mm"``; by default that of the affine of a
                ``MetaTensor``, unless its ``meta["spacing_known"]`` (see :class:`~monai_usfm.data.LoadUltrasound`) is
                false.
        """
        if randomize:
            self.randomize()
        if not self._do_transform:
            image = as_tensor(img)
            _check_image(image.as_subclass(torch.Tensor), self.dynamic_range_db)
            return image
        return _speckle(self, img, fov, geometry, spacing)


class SpeckleNoise(RandSpeckleNoise):
    """:class:`RandSpeckleNoise` that always acts, with fixed parameters; only the random field differs per call.

    Args:
        looks: see :class:`RandSpeckleNoise`; one number.
        dynamic_range_db: see :class:`RandSpeckleNoise`.
        psf_sigma: see :class:`RandSpeckleNoise`.
        mode: see :class:`RandSpeckleNoise`.
        strength: see :class:`RandSpeckleNoise`; one number.
        psf_unit: see :class:`RandSpeckleNoise`.
    """

    def __init__(
        self,
        looks: float = 1.0,
        dynamic_range_db: float | None = 60.0,
        psf_sigma: float | Sequence[float] | None = 1.0,
        mode: str = "add",
        strength: float = 1.0,
        psf_unit: str = "samples",
    ) -> None:
        super().__init__(1.0, looks, dynamic_range_db, psf_sigma, mode, strength, psf_unit)


class _SpeckleForm(DictionaryForm):
    items = ("fov", "geometry", "spacing")
    options: ClassVar = {
        "keep_clean": (False, "store the image before the speckle as ``{key}_clean``, also where nothing is changed.")
    }
    keep_clean: bool

    def store(self, d: MutableMapping[Hashable, Any], key: Hashable, result: Any) -> None:
        if self.keep_clean:
            d[f"{key}_clean"] = as_tensor(d[key])
        d[key] = result


SpeckleNoised = dictionary_form(SpeckleNoise, _SpeckleForm)
RandSpeckleNoised = dictionary_form(RandSpeckleNoise, _SpeckleForm)


def _speckle(
    how: RandSpeckleNoise,
    img: NdarrayOrTensor,
    fov: NdarrayOrTensor | None,
    geometry: BeamGeometry | Mapping[str, Any] | None,
    spacing: Sequence[float] | None,
) -> NdarrayOrTensor:
    """Apply the parameters and the seed that ``how`` holds."""
    image = as_tensor(img)
    plain = image.as_subclass(torch.Tensor)
    low = _check_image(plain, how.dynamic_range_db)
    dtype = plain.dtype if plain.dtype.is_floating_point else torch.float32
    work, spatial, device = plain.to(working_dtype(plain.dtype)), tuple(plain.shape[1:]), plain.device
    beams = as_geometry(geometry)
    inside = _inside(fov, beams, spatial, device)
    display, black = how.dynamic_range_db, low <= 0
    generator = torch.Generator(device).manual_seed(how.seed)
    in_mm = how.psf_unit == "mm" and how.psf_sigma is not None
    speckle = _draw(how, spatial, beams, _spacing_of(image, spacing) if in_mm else None, generator, device)
    if how.mode == "add":
        out = add_speckle(work, speckle, display, how.strength)
        return _finish(out, work, inside, black and display is not None, image, dtype)
    if inside is None:
        inside = _close(work > 0, len(spatial))
    speckle = speckle if how.strength == 1 else speckle.pow(how.strength)
    out = respeckle(work[None], speckle[None], display, spatial_dims=len(spatial), fov=inside[None])[0]
    return _restore(torch.where(inside, out, work), image, dtype)


def _spacing_of(image: torch.Tensor, spacing: Sequence[float] | None) -> tuple[float, ...]:
    """mm per sample along each spatial axis of ``image`` (C, *S)."""
    dims = image.ndim - 1
    if spacing is not None:
        step = tuple(float(value) for value in spacing)
    elif isinstance(image, MetaTensor) and image.meta.get("spacing_known", True):
        step = tuple(float(value) for value in image.pixdim[:dims])
    else:
        raise ValueError(
            'psf_unit="mm" needs the spacing of the image, which is unknown: give `spacing` (mm per sample along each '
            'axis), load the image with its spacing into a MetaTensor, or use psf_unit="samples".'
        )
    if len(step) != dims or not all(math.isfinite(value) and value > 0 for value in step):
        raise ValueError(f"spacing must hold {dims} positive mm, one per spatial axis, got {step}.")
    return step


def _draw(
    how: RandSpeckleNoise,
    spatial: tuple[int, ...],
    beams: BeamGeometry | None,
    spacing: tuple[float, ...] | None,
    generator: torch.Generator,
    device: torch.device,
) -> torch.Tensor:
    """Speckle intensity ``(1, *spatial)``."""
    shape, sigma = (1, *spatial), how.psf_sigma
    if beams is not None and sigma is None:
        raise ValueError("speckle along beams is correlated: give psf_sigma, or leave out the geometry.")
    if sigma is None:
        return speckle_intensity(shape, how.looks, generator=generator, device=device)
    dims = len(spatial) if beams is None else beams.spatial_dims
    sigmas = per_axis(sigma, dims, dims)
    if len(sigmas) != dims:
        raise ValueError(f"psf_sigma {sigma} must hold one value for each of the axes of {spatial[-dims:]}.")
    if spacing is not None:
        sigmas = tuple(mm / step for mm, step in zip(sigmas, spacing[-dims:], strict=True))
    if beams is not None:
        return beam_speckle_intensity(shape, beams, how.looks, sigmas, generator=generator, device=device)
    return speckle_intensity(shape, how.looks, sigmas, generator=generator, device=device)


def _inside(
    fov: NdarrayOrTensor | None, beams: BeamGeometry | None, spatial: tuple[int, ...], device: torch.device
) -> torch.Tensor | None:
    """Field of view ``(1, *spatial)`` as booleans; that of the beams if there is no other."""
    if fov is not None:
        mask = torch.as_tensor(fov, device=device).as_subclass(torch.Tensor) > 0
        if mask.ndim != len(spatial) + 1 or tuple(mask.shape[1:]) != spatial:
            raise ValueError(f"fov {tuple(mask.shape)} does not fit the image: it must be (1, {str(spatial)[1:-1]}).")
        return mask
    if beams is None:
        return None
    if beams.spatial_dims > len(spatial):
        raise ValueError(
            f"a {beams.kind} geometry of {beams.spatial_dims} axes does not fit an image of shape {spatial}."
        )
    return _reached(beams, spatial[len(spatial) - beams.spatial_dims :], device).expand(1, *spatial)


@lru_cache(maxsize=2)
def _reached(geometry: BeamGeometry, spatial: tuple[int, ...], device: torch.device) -> torch.Tensor:
    return geometry.mask(spatial, device)


def _finish(
    out: torch.Tensor,
    work: torch.Tensor,
    fov: torch.Tensor | None,
    black: bool,
    image: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    if black:  # Any positive value is at least 2**-24 in what images come from, so this bound is 1 or more there.
        out = torch.minimum(out, work * 2.0**24, out=out).clamp_(min=0)
    if fov is not None:
        out = torch.where(fov, out, work)
    return _restore(out, image, dtype)


def _restore(out: torch.Tensor, image: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    out = out.to(dtype)
    return convert_to_dst_type(out, image, dtype=dtype)[0] if isinstance(image, MetaTensor) else out


def _close(mask: torch.Tensor, dims: int, width: int = 9) -> torch.Tensor:
    """Morphological closing: fills the dark specks of speckle, and leaves the black surroundings."""
    widths, least = (width,) * dims, 0.5 * float(width) ** -dims  # half the share of a single sample
    grown = box_mean(mask.any(0, keepdim=True).float(), widths) > least
    return box_mean(grown.float(), widths) > 1 - least


def _check_image(image: torch.Tensor, dynamic_range_db: float | None) -> float:
    """The smallest value of an image that speckle can be put on."""
    if image.ndim < 2 or image.ndim > 4 or image.numel() == 0:
        raise ValueError(
            f"the image must be (C, *S) with 1 to 3 spatial axes and no empty one, got {tuple(image.shape)}."
        )
    if dynamic_range_db is not None and not image.dtype.is_floating_point:
        raise ValueError(f"a log-compressed image must be floating in [0, 1], got {image.dtype}; scale it first.")
    low, high = (float(value) for value in torch.aminmax(image))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("the image holds NaN or infinite values; clean it first, for instance with torch.nan_to_num.")
    if dynamic_range_db is not None and (low < -0.5 or high > 1.5):  # some overshoot of an interpolation is fine
        raise ValueError(f"a log-compressed image must be scaled to [0, 1], got [{low:g}, {high:g}].")
    return low
