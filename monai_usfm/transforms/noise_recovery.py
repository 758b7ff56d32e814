# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Pairs of a degraded and a clean batch for enhancement without any recorded pair: noise addition and recovery."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import scipy.special
import torch
from monai.networks.layers.convutils import gaussian_1d
from monai.networks.layers.simplelayers import separable_filtering

from monai_usfm.physics.display import require_log_compressed
from monai_usfm.physics.speckle import add_speckle, speckle_intensity
from monai_usfm.transforms.batch import BatchAugmentation, item_on_device, unit_range

__all__ = ["NoiseRecovery", "gaussian_blur"]

_LEAST_SIGMA = 0.05  # samples; a narrower Gaussian is the identity to float precision


def gaussian_blur(image: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian filter of a batch ``(B, C, *S)`` with a standard deviation of ``sigma`` samples; borders are repeated.

    Unlike :class:`monai.networks.layers.GaussianFilter` it does not fade to black at the border.
    """
    if sigma < _LEAST_SIGMA:
        return image.clone()
    kernel = gaussian_1d(torch.tensor(float(sigma), device=image.device), truncated=4.0, normalize=True)
    return separable_filtering(image, [kernel.to(image.dtype)] * (image.dim() - 2), mode="replicate")


class NoiseRecovery:
    """Adds blur and correlated speckle to a batch: the input of a network whose target is the batch before.

    Used as ``prepare_batch`` of a MONAI engine, it returns ``(degraded, clean)``. A network that undoes added speckle
    also takes off some of the speckle that was there, because the two look alike; this is the premise of Noisier2Noise
    (Moran et al. 2020, https://arxiv.org/abs/1910.11908).

    Per image are drawn: a Gaussian blur, then fully developed speckle
    (:func:`~monai_usfm.transforms.speckle_intensity`) with a number of looks, one point-spread width per axis and a
    strength, added in decibels. The speckle is centered: its mean in decibels, ``4.343 * (psi(L) - ln L)``, is taken
    off, so that what is learned is the texture and not a change of brightness. Black pixels stay exactly black, since
    no echo can speckle: so does all that lies outside the field of view. Channels share one draw. Draws come from
    PyTorch's global generators, which :class:`~monai_usfm.handlers.EpochSeed` seeds.

    Args:
        augmentation: makes the clean batch; None takes it as it is (uint8 is scaled from 0..255).
        strength: range of the factor on the decibels of the speckle; 1 is one more fully developed speckle.
        looks: range of the whole number of looks, both ends included.
        psf_sigma: range of the width of the point-spread function in samples.
        blur_sigma: range of the width of the blur in samples.
        dynamic_range_db: decibels between black and white.

    Raises:
        ValueError: for ranges that are empty or out of bounds.
    """

    def __init__(
        self,
        augmentation: BatchAugmentation | None = None,
        strength: Sequence[float] = (0.3, 1.0),
        looks: Sequence[int] = (1, 3),
        psf_sigma: Sequence[float] = (0.4, 1.6),
        blur_sigma: Sequence[float] = (0.0, 1.0),
        dynamic_range_db: float = 60.0,
    ) -> None:
        ranges = {"strength": strength, "looks": looks, "psf_sigma": psf_sigma, "blur_sigma": blur_sigma}
        for name, (low, high) in ranges.items():
            limit = 1 if name == "looks" else 0
            if not limit <= low <= high:
                raise ValueError(
                    f"{name} must be a range (low, high) with {limit} <= low <= high, got ({low}, {high})."
                )
        if any(n != int(n) for n in looks):
            raise ValueError(f"looks must be whole numbers, got {tuple(looks)}.")
        require_log_compressed(dynamic_range_db)
        self.augmentation = augmentation
        self.strength, self.looks = tuple(strength), (int(looks[0]), int(looks[1]))
        self.psf_sigma, self.blur_sigma = tuple(psf_sigma), tuple(blur_sigma)
        self.dynamic_range_db = float(dynamic_range_db)

    def __call__(
        self, batch: Mapping[str, Any], device: Any = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``prepare_batch`` of MONAI's engines: ``(degraded, clean)`` on ``device``, both ``(B, C, *S)``."""
        if self.augmentation is not None:
            clean, _ = self.augmentation(batch, device, non_blocking, **kwargs)
        else:
            clean = unit_range(item_on_device(batch, "image", device, non_blocking, **kwargs))
        return self.degrade(clean), clean

    def degrade(self, clean: torch.Tensor) -> torch.Tensor:
        """``(B, C, *S)`` in [0, 1] -> degraded batch of that shape in [0, 1]; a new tensor."""
        return torch.cat([self._degrade_one(image) for image in clean.split(1)])

    def _degrade_one(self, clean: torch.Tensor) -> torch.Tensor:
        shape = (1, 1, *clean.shape[2:])
        dims = len(shape) - 2
        looks = int(torch.randint(self.looks[0], self.looks[1] + 1, ()))
        strength, blur, *psf = torch.rand(2 + dims).tolist()  # on the CPU: the device need not be waited for
        sigmas = [_between(self.psf_sigma, share) for share in psf]
        speckle = speckle_intensity(shape, looks, sigmas, device=clean.device, dtype=clean.dtype)
        speckle = speckle * (looks / math.exp(scipy.special.psi(looks)))
        blurred = gaussian_blur(clean, _between(self.blur_sigma, blur))
        noisy = add_speckle(blurred, speckle, self.dynamic_range_db, _between(self.strength, strength))
        return torch.where(clean > 0, noisy, torch.zeros_like(noisy))


def _between(limits: Sequence[float], share: float) -> float:
    return limits[0] + (limits[1] - limits[0]) * share
