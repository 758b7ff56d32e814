# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Speckle: the interference pattern of many unresolved scatterers, with the statistics of a real scanner.

A complex echo is a sum of many phasors, hence circular Gaussian; its intensity ``|.|^2`` is exponential, its envelope
Rayleigh, and after averaging ``L`` independent looks the intensity is Gamma with shape ``L`` (Goodman 1976,
https://doi.org/10.1364/JOSA.66.001145; Wagner et al. 1983, https://doi.org/10.1109/T-SU.1983.31404). Logarithmic
compression turns the multiplication by speckle into an addition that does not depend on the grey level, with a long
dark tail. Neighbouring samples are correlated by the point-spread function (PSF) of the scanner.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import scipy.fft
import torch
import torch.nn.functional as F

__all__ = ["add_speckle", "respeckle", "speckle_field", "speckle_intensity"]

_FLOOR = 2.0**-25  # half a step of a float32 uniform draw: keeps the logarithm finite, -75 dB


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
        device: where the result is to live.
        dtype: floating type of the result.

    Returns:
        Tensor of shape ``shape``, everywhere positive.

    Raises:
        ValueError: for ``looks`` or ``psf_sigma`` out of range, or a ``psf_sigma`` that does not fit ``shape``.
    """
    shape = tuple(int(size) for size in shape)
    if not (math.isfinite(looks) and looks > 0):
        raise ValueError(f"looks must be a positive number, got {looks}.")
    work = dtype if dtype in (torch.float32, torch.float64) else torch.float32
    if psf_sigma is None:
        if looks == 1:
            intensity = torch.rand(shape, generator=generator, device=device, dtype=work).neg_().log1p_().neg_()
        else:
            concentration = torch.full(shape, float(looks), device=device, dtype=work)
            intensity = torch._standard_gamma(concentration, generator=generator).div_(looks)
        return intensity.clamp_(min=_FLOOR).to(dtype)
    if looks != int(looks):
        raise ValueError(f"looks must be a whole number for correlated speckle (psf_sigma given), got {looks}.")
    field = speckle_field(
        (int(looks), *shape),
        _per_axis(psf_sigma, spatial_dims, len(shape)),
        generator=generator,
        device=device,
        dtype=work,
    )
    return torch.view_as_real(field).square_().sum(-1).mean(0).clamp_(min=_FLOOR).to(dtype)


def speckle_field(
    shape: Sequence[int],
    psf_sigma: float | Sequence[float],
    *,
    spatial_dims: int | None = None,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Complex echo of fully developed speckle: circular Gaussian, ``E|z|^2 = 1``, correlated by a Gaussian PSF.

    White noise is drawn directly in the frequency domain, where it is white too, so that one inverse transform does.
    The field is periodic on a slightly larger grid, from which ``shape`` is cut: it is stationary up to its borders,
    and opposite borders do not see each other. Arguments as in :func:`speckle_intensity`; ``dtype`` is the real type.

    Returns:
        Complex tensor of shape ``shape``.
    """
    shape = tuple(int(size) for size in shape)
    sigmas = _per_axis(psf_sigma, spatial_dims, len(shape))
    dims = len(sigmas)
    sizes = [
        size if size <= 1 or sigma == 0 else scipy.fft.next_fast_len(size + math.ceil(3 * sigma))
        for size, sigma in zip(shape[len(shape) - dims :], sigmas, strict=True)
    ]
    lead = shape[: len(shape) - dims]
    noise = torch.randn((*lead, *sizes, 2), generator=generator, device=device, dtype=dtype)
    spectrum = torch.view_as_complex(noise)
    for axis, (size, sigma) in enumerate(zip(sizes, sigmas, strict=True)):
        frequency = torch.fft.fftfreq(size, device=device, dtype=torch.float64)
        transfer = torch.exp(-2 * (math.pi * sigma * frequency) ** 2)
        transfer /= transfer.square().mean().sqrt()  # unit power whatever the size
        spectrum *= transfer.to(dtype).reshape(-1, *(1,) * (dims - 1 - axis))
    field = torch.fft.ifftn(spectrum, dim=tuple(range(-dims, 0)), norm="ortho") * math.sqrt(0.5)
    for axis, size in enumerate(shape[len(shape) - dims :]):
        field = field.narrow(len(lead) + axis, 0, size)
    return field


def add_speckle(
    image: torch.Tensor, intensity: torch.Tensor, dynamic_range_db: float | None = 60.0, strength: float = 1.0
) -> torch.Tensor:
    """Put speckle on an image that may already have some.

    On a log-compressed image the speckle is added: ``image + strength * 10 * log10(intensity) / dynamic_range_db``,
    clamped to [0, 1]. On a linear envelope (``dynamic_range_db=None``) it multiplies:
    ``image * intensity ** (strength / 2)``, not clamped. In both, the standard deviation in decibels is ``strength``
    times that of the speckle: 5.57 dB for one look, which is 24 of 255 grey levels at 60 dB. The mean in decibels drops
    by ``strength * 2.51`` dB at one look, as it does in nature.

    Args:
        image: any shape; log-compressed in [0, 1], or a linear envelope.
        intensity: unit-mean speckle, broadcastable to ``image``.
        dynamic_range_db: decibels between black and white; ``None`` for a linear envelope.
        strength: factor on the decibels of the speckle; 0 changes nothing.

    Returns:
        New tensor of the shape of ``image``.
    """
    _check_display(dynamic_range_db, strength)
    if dynamic_range_db is None:
        return image * intensity.sqrt() if strength == 1 else image * intensity.pow(strength / 2)
    return torch.add(image, intensity.log10(), alpha=10 * strength / dynamic_range_db).clamp_(0, 1)


def respeckle(
    image: torch.Tensor,
    intensity: torch.Tensor,
    dynamic_range_db: float | None = 60.0,
    window: int | Sequence[int] = 7,
    *,
    spatial_dims: int | None = None,
    fov: torch.Tensor | None = None,
) -> torch.Tensor:
    """Replace the speckle of an image: estimate its echogenicity and give it new speckle.

    The echogenicity is the mean intensity that the tissue sends back. It is the local mean of the image under a
    triangular window (two box filters), taken in decibels for a log-compressed image, plus what a mean of decibels
    lies below the decibels of the mean: 2.51 dB for fully developed speckle, ``4.343 * (ln L - psi(L))`` for ``L``
    looks. The number of looks that the image already has is read from the median over the image of its local variance
    in decibels, ``4.343 ** 2 * psi'(L)``, so that an image without speckle is not brightened. For a linear envelope the
    mean is taken of its square, and no correction is due.

    Args:
        image: batch ``(B, C, *S)``, log-compressed in [0, 1], or a linear envelope.
        intensity: unit-mean speckle, broadcastable to ``image``.
        dynamic_range_db: decibels between black and white; ``None`` for a linear envelope.
        window: odd width of the box filters in samples, for all axes or per axis; wider than the old speckle, narrower
            than the anatomy that is to survive.
        spatial_dims: number of spatial axes, where ``image`` is not a batch.
        fov: 1 inside the field of view, broadcastable to ``image``; only those samples enter the means.

    Returns:
        New tensor of the shape of ``image``; clamped to [0, 1] if log-compressed.

    Raises:
        ValueError: for an even or too small window.
    """
    _check_display(dynamic_range_db, 1.0)
    dims = image.ndim - 2 if spatial_dims is None else spatial_dims
    widths = (window,) * dims if isinstance(window, int) else tuple(window)
    if not 1 <= dims <= min(3, image.ndim) or len(widths) != dims:
        raise ValueError(
            f"window {window} does not fit an image of shape {tuple(image.shape)} with {dims} spatial axes."
        )
    if any(width != int(width) or width < 1 or width % 2 == 0 for width in widths):
        raise ValueError(f"window must be odd and positive, got {window}.")
    echo = image.square() if dynamic_range_db is None else image * dynamic_range_db
    mean = _local_mean(echo, widths, fov)
    if dynamic_range_db is None:
        return (mean * intensity).clamp_(min=0).sqrt()
    variance = _local_mean((echo - mean).square(), widths, fov)
    mean += _log_bias_db(variance, fov, dims)
    return mean.add_(intensity.log10(), alpha=10.0).div_(dynamic_range_db).clamp_(0, 1)


_POOLS = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _local_mean(image: torch.Tensor, widths: Sequence[int], fov: torch.Tensor | None) -> torch.Tensor:
    """Mean under a triangular window over the samples inside the image, and inside ``fov``."""
    if fov is None:
        return _box_twice(image, widths)
    weight = fov.to(image.dtype)
    covered = _box_twice(weight.expand(torch.broadcast_shapes(weight.shape, (1,) * image.ndim)), widths)
    return _box_twice(image * weight, widths) / covered.clamp_(min=1e-6)


def _box_twice(image: torch.Tensor, widths: Sequence[int]) -> torch.Tensor:
    dims = len(widths)
    flat = image.reshape(-1, 1, *image.shape[image.ndim - dims :])
    for axis, width in enumerate(widths):  # one axis after the other: cost grows with the width, not its power
        kernel = [1] * dims
        kernel[axis] = min(width, 2 * flat.shape[2 + axis] - 1)  # a wider one sees nothing more
        padding = [size // 2 for size in kernel]
        for _ in range(2):
            flat = _POOLS[dims](flat, kernel, 1, padding, count_include_pad=False)
    return flat.reshape(image.shape)


def _log_bias_db(variance: torch.Tensor, fov: torch.Tensor | None, dims: int) -> torch.Tensor:
    """``10 * log10(mean) - mean(10 * log10)`` of Gamma speckle whose variance in dB^2 is the median of ``variance``."""
    axes = tuple(range(-dims, 0))
    if fov is not None:
        variance = variance.masked_fill(fov.expand_as(variance) <= 0, torch.nan)
    median = variance.flatten(-dims).nanmedian(-1).values.nan_to_num(0.0)
    looks = torch.logspace(0, 4, 257, dtype=torch.float64, device=variance.device)  # from full to no speckle
    scale = 10 / math.log(10)
    known = scale**2 * torch.special.polygamma(1, looks)  # falls with the number of looks
    bias = scale * (looks.log() - torch.special.digamma(looks))
    right = torch.bucketize(-median.double(), -known).clamp(1, len(looks) - 1)
    left = right - 1
    share = ((known[left] - median) / (known[left] - known[right])).clamp(0, 1)
    return torch.lerp(bias[left], bias[right], share).to(variance.dtype).reshape(median.shape + (1,) * len(axes))


def _check_display(dynamic_range_db: float | None, strength: float) -> None:
    if dynamic_range_db is not None and not (math.isfinite(dynamic_range_db) and dynamic_range_db > 0):
        raise ValueError(f"dynamic_range_db must be positive, or None for a linear envelope, got {dynamic_range_db}.")
    if not (math.isfinite(strength) and strength >= 0):
        raise ValueError(f"strength must not be negative, got {strength}.")


def _per_axis(psf_sigma: float | Sequence[float], spatial_dims: int | None, ndim: int) -> tuple[float, ...]:
    if isinstance(psf_sigma, (int, float)):
        sigmas = (float(psf_sigma),) * (ndim - 2 if spatial_dims is None else spatial_dims)
    else:
        sigmas = tuple(float(sigma) for sigma in psf_sigma)
    if not 1 <= len(sigmas) <= ndim or not all(math.isfinite(sigma) and sigma >= 0 for sigma in sigmas):
        raise ValueError(
            f"psf_sigma must be one non-negative number per spatial axis for shape of {ndim} axes, got {psf_sigma}."
        )
    return sigmas
