# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Speckle: the interference pattern of many unresolved scatterers, with the statistics of a real scanner.

A complex echo is a sum of many phasors, hence circular Gaussian; its intensity ``|.|^2`` is exponential, its envelope
Rayleigh, and after averaging ``L`` independent looks the intensity is Gamma with shape ``L`` (Goodman 1976,
https://doi.org/10.1364/JOSA.66.001145; Wagner et al. 1983, https://doi.org/10.1109/T-SU.1983.31404). Logarithmic
compression turns the multiplication by speckle into an addition that does not depend on the gray level, with a long
dark tail. Neighboring samples are correlated by the point-spread function (PSF) of the scanner.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import scipy.fft
import torch

from monai_usfm.physics.display import check_dynamic_range

__all__ = ["add_speckle", "respeckle", "speckle_intensity"]

_FLOOR = 2.0**-25  # half a step of a float32 uniform draw: keeps the logarithm finite, -75 dB
_MEDIAN_DB = 10 * math.log10(math.log(2))  # of fully developed speckle, relative to its mean: -1.59 dB
_NEGLECT = 1e-3  # amplitudes of the PSF's spectrum below this are not drawn: a millionth of the power


def speckle_intensity(
    shape: Sequence[int],
    looks: float = 1.0,
    psf_sigma: float | Sequence[float] | None = None,
    *,
    spatial_dims: int | None = None,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Intensity of fully developed speckle with unit mean (in expectation, not per draw) and variance ``1 / looks``.

    Args:
        shape: shape of the result, leading axes included. Leading axes are independent draws.
        looks: number of independent looks that are averaged: Gamma(``looks``) statistics. Any positive number where
            ``psf_sigma`` is ``None``; a whole number otherwise.
        psf_sigma: standard deviation of the Gaussian PSF of the complex echo, in samples: one value for each of the
            trailing spatial axes, or a single one for all of them. The autocovariance of the intensity then has
            a full width at half maximum of ``2.36 * psf_sigma`` (envelope 2.28, decibels 1.84). ``None`` draws
            independent samples.
        spatial_dims: number of trailing axes that a single ``psf_sigma`` counts for; ``None`` takes ``shape`` for that
            of a batch, ``(B, C, *S)``.
        generator: source of the draw, on ``device``; the global one if ``None``.
        device, dtype: of the result, which is everywhere positive.

    Raises:
        ValueError: for ``looks`` or ``psf_sigma`` out of range, or a ``psf_sigma`` that does not fit ``shape``.
    """
    shape, work = tuple(int(size) for size in shape), dtype if dtype == torch.float64 else torch.float32
    if psf_sigma is not None:
        sigmas = per_axis(psf_sigma, spatial_dims, len(shape))
        intensity = _correlated_intensity((whole_looks(looks), *shape), sigmas, generator, device, work)
    elif check_looks(looks) == 1:
        intensity = torch.rand(shape, generator=generator, device=device, dtype=work).neg_().log1p_().neg_()
    else:
        concentration = torch.full(shape, float(looks), device=device, dtype=work)
        intensity = torch._standard_gamma(concentration, generator=generator).div_(looks)
    return intensity.clamp_(min=_FLOOR).to(dtype)


def _correlated_intensity(
    shape: tuple[int, ...],
    sigmas: tuple[float, ...],
    generator: torch.Generator | None,
    device: torch.device | str | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Mean over the first axis (looks) of the intensity of a circular Gaussian field filtered by a Gaussian PSF.

    White noise is drawn in the frequency domain, where it is white too, and only where the PSF lets it pass. The field
    is periodic on a slightly larger grid, from which ``shape`` is cut: it is stationary up to its borders, and opposite
    borders do not see each other. Frequencies are filed from 0 on, a phase ramp that an intensity does not show.
    """
    dims = len(sigmas)
    lead, spatial = shape[: len(shape) - dims], shape[len(shape) - dims :]
    bands = [_psf_band(_periodic_size(size, sigma), sigma) for size, sigma in zip(spatial, sigmas, strict=True)]
    size = (*lead, *(len(band) for band in bands), 2)
    field = torch.view_as_complex(torch.randn(size, generator=generator, device=device, dtype=dtype).mul_(0.5**0.5))
    for axis, band in enumerate(bands):
        dim, periodic = len(lead) + axis, _periodic_size(spatial[axis], sigmas[axis])
        weight = torch.from_numpy(band).to(device=field.device, dtype=dtype)
        field = field * weight.reshape(-1, *(1,) * (dims - 1 - axis))
        if periodic > 1:
            field = torch.fft.ifft(field, n=periodic, dim=dim, norm="forward")
        field = field.narrow(dim, 0, spatial[axis])
    real, imag = torch.view_as_real(field).unbind(-1)
    return torch.addcmul(real.square(), imag, imag).mean(0)


def _periodic_size(size: int, sigma: float) -> int:
    """Length of the periodic axis that ``size`` samples are cut from: 3 sigma longer, and quick to transform."""
    if size <= 1 or sigma == 0:
        return size
    return 4 * scipy.fft.next_fast_len(math.ceil((size + 3 * sigma) / 4))  # multiples of 4 vectorize


@lru_cache(maxsize=256)
def _psf_band(size: int, sigma: float) -> np.ndarray:
    """Amplitudes, of unit power, of the frequencies that a Gaussian PSF lets pass, in ascending order."""
    index = np.arange(-(size // 2), (size + 1) // 2)
    amplitude = np.exp(-2 * (np.pi * sigma * index / size) ** 2)
    amplitude = amplitude[amplitude >= _NEGLECT]
    return amplitude / np.sqrt((amplitude**2).sum())


def add_speckle(
    image: torch.Tensor, intensity: torch.Tensor, dynamic_range_db: float | None = 60.0, strength: float = 1.0
) -> torch.Tensor:
    """Put speckle on an image that may already have some.

    On a log-compressed image the speckle is added: ``image + strength * 10 * log10(intensity) / dynamic_range_db``,
    clamped to [0, 1]. On a linear envelope (``dynamic_range_db=None``) it multiplies:
    ``image * intensity ** (strength / 2)``, not clamped. In both, the standard deviation in decibels is ``strength``
    times that of the speckle: 5.57 dB for one look, which is 24 of 255 gray levels at 60 dB. The mean in decibels drops
    by ``strength * 2.51`` dB at one look, as it does in nature.

    Args:
        image: any shape; log-compressed in [0, 1], or a linear envelope.
        intensity: unit-mean speckle, broadcastable to ``image``.
        dynamic_range_db: decibels between black and white; ``None`` for a linear envelope.
        strength: factor on the decibels of the speckle; 0 changes nothing.
    """
    check_strength(dynamic_range_db, strength)
    if dynamic_range_db is None:
        return image * intensity.sqrt() if strength == 1 else image * intensity.pow(strength / 2)
    return torch.add(image, intensity.log10(), alpha=10 * strength / dynamic_range_db).clamp_(0, 1)


def respeckle(
    image: torch.Tensor,
    intensity: torch.Tensor,
    dynamic_range_db: float | None = 60.0,
    window: int = 7,
    *,
    spatial_dims: int | None = None,
) -> torch.Tensor:
    """Replace the speckle of an image, which is taken to be fully developed: estimate its echogenicity, and add new.

    A median along each axis in turn keeps edges. The median of an exponential intensity is ``ln 2`` times its mean, so
    the estimate is raised by 1.59 dB. Where the median is black, no echo is seen, and the result is black.

    Args:
        image: batch ``(B, C, *S)``, otherwise as for :func:`add_speckle`, which adds the new speckle.
        intensity, dynamic_range_db: see :func:`add_speckle`.
        window: odd width of the median in samples; wider than the old speckle, narrower than the anatomy that is to
            survive.
        spatial_dims: number of spatial axes, where ``image`` is not a batch.

    Raises:
        ValueError: for an even window.
    """
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window must be odd and positive, got {window}.")
    level, steps = image, torch.arange(-(window // 2), window // 2 + 1, device=image.device)
    for axis in range(-(image.ndim - 2 if spatial_dims is None else spatial_dims), 0):
        size = level.shape[axis]
        near = (torch.arange(size, device=image.device)[:, None] + steps).clamp(0, size - 1)
        level = level.movedim(axis, -1)[..., near].median(-1).values.movedim(-1, axis)
    tissue = level / math.log(2) ** 0.5 if dynamic_range_db is None else level - _MEDIAN_DB / dynamic_range_db
    return torch.where(level > 0, add_speckle(tissue, intensity, dynamic_range_db), 0)


def check_strength(dynamic_range_db: float | None, strength: float) -> None:
    check_dynamic_range(dynamic_range_db)
    if not (math.isfinite(strength) and strength >= 0):
        raise ValueError(f"strength must not be negative, got {strength}.")


def check_looks(looks: float) -> float:
    if not (math.isfinite(looks) and looks > 0):
        raise ValueError(f"looks must be a positive number, got {looks}.")
    return float(looks)


def whole_looks(looks: float) -> int:
    if check_looks(looks) != int(looks):
        raise ValueError(f"looks must be a whole number for correlated speckle (psf_sigma given), got {looks}.")
    return int(looks)


def per_axis(psf_sigma: float | Sequence[float], spatial_dims: int | None, ndim: int) -> tuple[float, ...]:
    if isinstance(psf_sigma, (int, float)):
        sigmas = (float(psf_sigma),) * (ndim - 2 if spatial_dims is None else spatial_dims)
    else:
        sigmas = tuple(float(sigma) for sigma in psf_sigma)
    if not 1 <= len(sigmas) <= ndim or not all(math.isfinite(sigma) and sigma >= 0 for sigma in sigmas):
        raise ValueError(
            f"psf_sigma must be one non-negative number per spatial axis for shape of {ndim} axes, got {psf_sigma}."
        )
    return sigmas
