# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Speckle as transforms; the physics is in :mod:`monai_usfm.physics.speckle`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.config import NdarrayOrTensor
from monai.data import get_track_meta
from monai.transforms import RandomizableTransform
from monai.utils import convert_to_dst_type, convert_to_tensor

from monai_usfm.physics.speckle import (
    add_speckle,
    check_looks,
    check_strength,
    per_axis,
    respeckle,
    speckle_intensity,
    whole_looks,
)
from monai_usfm.transforms.dictionary import TORCH, DictionaryForm, dictionary_form
from monai_usfm.transforms.effect import Range, check_image, check_range, given_region

__all__ = ["RandSpeckleNoise", "RandSpeckleNoised", "SpeckleNoise", "SpeckleNoised"]


class RandSpeckleNoise(RandomizableTransform):
    """Randomly give an ultrasound image fully developed speckle.

    A B-mode image already carries speckle. ``mode="add"`` puts the new one on top, as one more independent source
    (see :func:`add_speckle`): with ``strength=1`` an image with fully developed speckle then spreads by 7.9 instead of
    5.6 dB. ``mode="respeckle"`` first takes the old speckle out (see :func:`respeckle`).

    Samples that are 0 carry no echo and stay 0 (in ``"respeckle"``: where the surroundings are 0 as well), and
    samples outside the field of view are returned as they were. Speckle that bends with the beams of a sector: between
    ``ToBeamSpaced`` and its inverse.

    Args:
        prob: chance that an image is changed at all.
        looks: range ``(low, high)`` of the number of independent looks that the speckle is averaged over (compounding),
            both ends included: whole numbers, or with ``psf_sigma=None`` any number, uniformly. 1 is fully developed,
            5.57 dB; 4 gives 2.31 dB. One number stands for itself.
        dynamic_range_db: decibels between black and white of the log-compressed image in [0, 1]; ``None`` for a linear
            envelope, which is multiplied instead.
        psf_sigma: standard deviation of the scanner's point-spread function in samples, one number or one per spatial
            axis; speckle is ``2.36 * psf_sigma`` wide (full width at half maximum, in intensity). ``None``: no
            correlation, which is fastest and looks like no scanner.
        mode: ``"add"`` or ``"respeckle"``.
        strength: range of the factor on the decibels of the new speckle, uniformly, or one number.

    Raises:
        ValueError: for a parameter out of range; when called, for an image that is empty, not finite, or, with a
            ``dynamic_range_db``, not scaled to [0, 1].
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
    ) -> None:
        RandomizableTransform.__init__(self, prob)
        self.looks_range, self.strength_range = check_range("looks", looks), check_range("strength", strength)
        for end in (0, 1):
            check_strength(dynamic_range_db, self.strength_range[end])
            check_looks(self.looks_range[end]) if psf_sigma is None else whole_looks(self.looks_range[end])
        if mode not in ("add", "respeckle"):
            raise ValueError(f'mode must be "add" or "respeckle", got {mode!r}.')
        if psf_sigma is not None:
            per_axis(psf_sigma, 1, 3)
        self.dynamic_range_db, self.psf_sigma, self.mode = dynamic_range_db, psf_sigma, mode
        self.looks, self.strength, self.seed = self.looks_range[0], self.strength_range[0], 0

    def randomize(self, data: Any = None) -> None:
        """Draw whether to act, ``looks``, ``strength`` and the seed of the speckle field."""
        super().randomize(None)
        if self._do_transform:
            low, high = self.looks_range
            whole = self.psf_sigma is not None
            self.looks = int(self.R.randint(int(low), int(high) + 1)) if whole else self.R.uniform(low, high)
            self.strength = self.R.uniform(*self.strength_range)
            self.seed = int(self.R.randint(2**31 - 1))

    def __call__(
        self, img: NdarrayOrTensor, fov: NdarrayOrTensor | None = None, randomize: bool = True
    ) -> NdarrayOrTensor:
        """Apply to ``img`` (C, *S) inside ``fov`` (1, *S); channels share one field, as gray images stored as RGB need.

        ``randomize=False`` repeats the last field.
        """
        if randomize:
            self.randomize()
        image: torch.Tensor = convert_to_tensor(img, track_meta=get_track_meta())
        plain, display = image.as_subclass(torch.Tensor), self.dynamic_range_db
        # a log-compressed image may overshoot by interpolation, but integers are not scaled
        work = check_image(image, None if display is None else 0.5 if plain.is_floating_point() else 0.0, fewest=1)
        if not self._do_transform:
            return image
        dims = plain.ndim - 1
        if self.psf_sigma is not None and len(per_axis(self.psf_sigma, dims, dims)) != dims:
            raise ValueError(f"psf_sigma {self.psf_sigma} must hold one value for each of {dims} axes.")
        generator = torch.Generator(plain.device).manual_seed(self.seed)
        shape, looks, sigma = (1, *plain.shape[1:]), self.looks, self.psf_sigma
        speckle = speckle_intensity(shape, looks, sigma, spatial_dims=dims, generator=generator, device=plain.device)
        if self.mode == "add":
            out = add_speckle(work, speckle, display, self.strength)
            out = out if display is None else torch.where(work > 0, out, work.clamp(0, 1))
        else:
            out = respeckle(work, speckle.pow(self.strength), display, spatial_dims=dims)
        if fov is not None:
            out = torch.where(given_region(fov, plain), out, work)
        return convert_to_dst_type(out, image, dtype=plain.dtype if plain.is_floating_point() else out.dtype)[0]


class SpeckleNoise(RandSpeckleNoise):
    """:class:`RandSpeckleNoise` that always acts, with fixed parameters; only the random field differs per call.

    Args:
        looks, dynamic_range_db, psf_sigma, mode, strength: as in :class:`RandSpeckleNoise`, but one number each.
    """

    def __init__(
        self,
        looks: float = 1.0,
        dynamic_range_db: float | None = 60.0,
        psf_sigma: float | Sequence[float] | None = 1.0,
        mode: str = "add",
        strength: float = 1.0,
    ) -> None:
        super().__init__(1.0, looks, dynamic_range_db, psf_sigma, mode, strength)


class _SpeckleForm(DictionaryForm):
    items = ("fov",)


SpeckleNoised = dictionary_form(SpeckleNoise, _SpeckleForm)
RandSpeckleNoised = dictionary_form(RandSpeckleNoise, _SpeckleForm)
