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
from itertools import product
from typing import Any

import numpy as np
import scipy.fft
import scipy.special
import torch
import torch.nn.functional as F

from monai_usfm.physics.beam import BeamGeometry
from monai_usfm.physics.display import check_dynamic_range

__all__ = [
    "add_speckle",
    "beam_speckle_intensity",
    "respeckle",
    "speckle_field",
    "speckle_intensity",
]

_FLOOR = 2.0**-25  # half a step of a float32 uniform draw: keeps the logarithm finite, -75 dB
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
        device: where the result is to live.
        dtype: floating type of the result.

    Returns:
        Tensor of shape ``shape``, everywhere positive.

    Raises:
        ValueError: for ``looks`` or ``psf_sigma`` out of range, or a ``psf_sigma`` that does not fit ``shape``.
    """
    shape = tuple(int(size) for size in shape)
    if psf_sigma is None:
        return _independent_intensity(shape, check_looks(looks), generator, device, dtype)
    sigmas = per_axis(psf_sigma, spatial_dims, len(shape))
    return _mean_intensity(
        _spectral_draw((whole_looks(looks), *shape), sigmas, False, generator, device, working_dtype(dtype)), dtype
    )


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

    White noise is drawn directly in the frequency domain, where it is white too, and only where the PSF lets it pass,
    so that one inverse transform does. The field is periodic on a slightly larger grid, from which ``shape`` is cut: it
    is stationary up to its borders, and opposite borders do not see each other. Arguments as in
    :func:`speckle_intensity`; ``dtype`` is the real type.

    Returns:
        Complex tensor of shape ``shape``.
    """
    shape = tuple(int(size) for size in shape)
    return _spectral_draw(shape, per_axis(psf_sigma, spatial_dims, len(shape)), True, generator, device, dtype)


def beam_speckle_intensity(
    shape: Sequence[int],
    geometry: BeamGeometry,
    looks: float = 1.0,
    psf_sigma: float | Sequence[float] = 1.0,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Speckle of a sector probe: drawn along the beams and scan-converted as a scanner does it.

    Both quadratures of the complex echo are drawn on a grid of beams, interpolated (bi- or trilinearly) to the pixels,
    and squared there. So speckle bends into arcs about the apex, its lateral size grows in proportion to depth, and the
    first-order statistics stay those of :func:`speckle_intensity`, because the loss of variance by interpolation is
    known exactly and undone.

    Args:
        shape: shape of the result; its trailing ``geometry.spatial_dims`` axes are those of ``geometry``, which refers
            to the pixels of exactly this shape. Leading axes are independent draws.
        geometry: where the beams lie.
        looks: number of looks, a whole number.
        psf_sigma: as in :func:`speckle_intensity`, in pixels along (elevation,) axial, lateral axis; laterally and in
            elevation at the far end of the beams, and less in proportion to the distance from the apex.
        generator: source of the draw, on ``device``; the global one if ``None``.
        device: where the result is to live.
        dtype: floating type of the result.

    Returns:
        Tensor of shape ``shape``. Pixels that no beam reaches are filled by mirroring; mask them.
    """
    shape = tuple(int(size) for size in shape)
    dims = geometry.spatial_dims
    sigmas = per_axis(psf_sigma, dims, len(shape))
    if len(sigmas) != dims:
        raise ValueError(f"psf_sigma must hold {dims} values for a {geometry.kind} geometry, got {psf_sigma}.")
    steps = [abs(step) for step in geometry.spacing]  # a beam sample is as long as the shortest of them
    sigmas = tuple(sigma * step / min(steps) for sigma, step in zip(sigmas, steps, strict=True))
    beams, work, lead, looks = (
        geometry.natural_beam_shape(),
        working_dtype(dtype),
        shape[: len(shape) - dims],
        whole_looks(looks),
    )
    field = _spectral_draw((looks, *lead, *beams), sigmas, True, generator, device, work)

    spatial = shape[len(shape) - dims :]
    grid, variance = _scan_conversion(geometry, spatial, sigmas, torch.device(device or "cpu"), work)
    quadratures = torch.view_as_real(field).movedim(-1, 0).reshape(1, -1, *beams)
    quadratures = F.grid_sample(quadratures, grid, mode="bilinear", padding_mode="reflection", align_corners=True)
    real, imag = quadratures.reshape(2, looks, *lead, *spatial).unbind(0)
    intensity = torch.addcmul(real.square(), imag, imag).mean(0)
    return (intensity / variance).clamp_(min=_FLOOR).to(dtype)


@lru_cache(maxsize=2)
def _scan_conversion(
    geometry: BeamGeometry,
    spatial: tuple[int, ...],
    sigmas: tuple[float, ...],
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sampling grid from beams to pixels, and the variance that linear interpolation leaves of a unit field there."""
    coordinate = geometry.cartesian_to_beam(spatial, device)
    variance = torch.ones(spatial, device=device, dtype=dtype)
    for axis, (size, sigma) in enumerate(zip(geometry.natural_beam_shape(), sigmas, strict=True)):
        position = coordinate[..., axis] * (size - 1)
        share = position - position.floor()  # mirroring at the border keeps the pair of weights
        variance *= 1 - 2 * share * (1 - share) * (1 - _neighbor_correlation(size, sigma))
    return coordinate.mul(2).sub(1).flip(-1)[None].to(dtype), variance


def _spectral_draw(
    shape: tuple[int, ...],
    sigmas: tuple[float, ...],
    centered: bool,
    generator: torch.Generator | None,
    device: torch.device | str | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Field of :func:`speckle_field`; unless ``centered``, times a phase ramp, which an intensity does not show."""
    dims = len(sigmas)
    lead, spatial = shape[: len(shape) - dims], shape[len(shape) - dims :]
    bands = [_psf_band(_periodic_size(size, sigma), sigma) for size, sigma in zip(spatial, sigmas, strict=True)]
    size = (*lead, *(len(band) for _, band in bands), 2)
    noise = torch.randn(size, generator=generator, device=device, dtype=dtype).mul_(math.sqrt(0.5))
    field = torch.view_as_complex(noise)
    for axis, (first, band) in enumerate(bands):
        dim, periodic = len(lead) + axis, _periodic_size(spatial[axis], sigmas[axis])
        weight = torch.from_numpy(band).to(device=field.device, dtype=dtype)
        field = field * weight.reshape(-1, *(1,) * (dims - 1 - axis))
        if periodic > 1:  # frequencies first, first + 1, ... are filed as 0, 1, ...: the ramp
            field = torch.fft.ifft(field, n=periodic, dim=dim, norm="forward")
        field = field.narrow(dim, 0, spatial[axis])
        if centered and first:
            ramp = (
                2 * math.pi * first / periodic * torch.arange(spatial[axis], device=field.device, dtype=torch.float64)
            )
            phase = torch.polar(torch.ones_like(ramp), ramp).to(field.dtype)
            field = field * phase.reshape(-1, *(1,) * (dims - 1 - axis))
    return field


def _mean_intensity(field: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    real, imag = torch.view_as_real(field).unbind(-1)
    intensity = torch.addcmul(real.square(), imag, imag)
    intensity = intensity[0] if len(intensity) == 1 else intensity.mean(0)
    return intensity.clamp_(min=_FLOOR).to(dtype)


def _periodic_size(size: int, sigma: float) -> int:
    """Length of the periodic axis that ``size`` samples are cut from: 3 sigma longer, and quick to transform."""
    if size <= 1 or sigma == 0:
        return size
    return 4 * scipy.fft.next_fast_len(math.ceil((size + 3 * sigma) / 4))  # multiples of 4 vectorize


@lru_cache(maxsize=256)
def _psf_band(size: int, sigma: float) -> tuple[int, np.ndarray]:
    """Lowest frequency index that a Gaussian PSF lets pass, and the amplitudes from there on, of unit power."""
    index = np.arange(-(size // 2), (size + 1) // 2)
    amplitude = np.exp(-2 * (np.pi * sigma * index / size) ** 2)
    index, amplitude = index[amplitude >= _NEGLECT], amplitude[amplitude >= _NEGLECT]
    return int(index[0]), amplitude / np.sqrt((amplitude**2).sum())


def _neighbor_correlation(size: int, sigma: float) -> float:
    """Correlation of the complex field between two neighbors on an axis of ``size`` samples."""
    periodic = _periodic_size(size, sigma)
    first, amplitude = _psf_band(periodic, sigma)
    return float((amplitude**2 * np.cos(2 * np.pi * (first + np.arange(len(amplitude))) / periodic)).sum())


def _independent_intensity(
    shape: tuple[int, ...],
    looks: float,
    generator: torch.Generator | None,
    device: torch.device | str | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    work = working_dtype(dtype)
    if looks == 1:
        intensity = torch.rand(shape, generator=generator, device=device, dtype=work).neg_().log1p_().neg_()
    else:
        concentration = torch.full(shape, looks, device=device, dtype=work)
        intensity = torch._standard_gamma(concentration, generator=generator).div_(looks)
    return intensity.clamp_(min=_FLOOR).to(dtype)


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32


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

    Returns:
        New tensor of the shape of ``image``.
    """
    check_strength(dynamic_range_db, strength)
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

    The echogenicity is the mean intensity that the tissue sends back, estimated without smearing edges (see
    :func:`_echogenicity`) in decibels for a log-compressed image, plus what a mean of decibels lies below the decibels
    of the mean: 2.51 dB for fully developed speckle, ``4.343 * (ln L - psi(L))`` for ``L`` looks. The number of looks
    that the image already has is read from the median over the image of its local variance in decibels,
    ``4.343 ** 2 * psi'(L)``, so that an image without speckle is not brightened. For a linear envelope the mean is
    taken of its square, and no correction is due.

    Args:
        image: batch ``(B, C, *S)``, log-compressed in [0, 1], or a linear envelope.
        intensity: unit-mean speckle, broadcastable to ``image``.
        dynamic_range_db: decibels between black and white; ``None`` for a linear envelope.
        window: odd width in samples of the windows whose means are taken, for all axes or per axis; wider than the old
            speckle, narrower than the anatomy that is to survive.
        spatial_dims: number of spatial axes, where ``image`` is not a batch.
        fov: 1 inside the field of view, broadcastable to ``image``; only those samples enter the means.

    Returns:
        New tensor of the shape of ``image``; clamped to [0, 1] if log-compressed.

    Raises:
        ValueError: for an even or too small window.
    """
    check_strength(dynamic_range_db, 1.0)
    dims = image.ndim - 2 if spatial_dims is None else spatial_dims
    widths = (window,) * dims if isinstance(window, int) else tuple(window)
    if not 1 <= dims <= min(3, image.ndim) or len(widths) != dims:
        raise ValueError(
            f"window {window} does not fit an image of shape {tuple(image.shape)} with {dims} spatial axes."
        )
    if any(width != int(width) or width < 1 or width % 2 == 0 for width in widths):
        raise ValueError(f"window must be odd and positive, got {window}.")
    echo = image.square() if dynamic_range_db is None else image * dynamic_range_db
    mean, variance = _echogenicity(echo, widths, fov, relative=dynamic_range_db is None)
    if dynamic_range_db is None:
        return (mean * intensity).clamp_(min=0).sqrt()
    mean += _log_bias_db(variance)
    return mean.add_(intensity.log10(), alpha=10.0).div_(dynamic_range_db).clamp_(0, 1)


def _echogenicity(
    echo: torch.Tensor, widths: Sequence[int], fov: torch.Tensor | None, relative: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Local mean of ``echo`` (..., *S) that does not reach across edges, and the median of its local variance.

    Each sample is a corner of ``2 ** dims`` windows, as in the filter of Kuwahara et al. 1976
    (https://doi.org/10.1007/978-1-4684-0769-3_13). That filter keeps the window of least variance, which is biased
    because variance and mean of speckle go together. Here the means of all windows are averaged, each with the weight
    ``(1 + d ** 2 / 5t) ** -4`` of its difference ``d`` from the mean of the sample's
    own 3 x 3 neighborhood. The scale ``t`` is the median of ``d ** 2`` over the image, hence what the speckle alone
    causes whatever its looks and correlation: in flat tissue all windows count, at an edge those on the sample's side.
    Logarithmic compression makes ``d`` independent of the gray level; with ``relative`` means are compared by their
    logarithms, to the same effect.
    """
    dims = len(widths)
    spatial = tuple(echo.shape[echo.ndim - dims :])
    axes = tuple(range(-dims, 0))
    weight = None if fov is None else fov.to(echo.dtype)
    reach = [width // 2 for width in widths]
    pad = [r for r in reversed(reach) for _ in "<>"]

    def at_corners(values: torch.Tensor) -> list[torch.Tensor]:
        """The values half a window away in every diagonal direction; the border stands for what lies beyond."""
        lead = values.shape[: values.ndim - dims]
        padded = F.pad(values.reshape(1, -1, *spatial), pad, mode="replicate").reshape(
            *lead, *(n + 2 * r for n, r in zip(spatial, reach, strict=True))
        )
        views = []
        for side in product((0, 2), repeat=dims):
            view = padded
            for axis, s, r, n in zip(axes, side, reach, spatial, strict=True):
                view = view.narrow(axis, s * r, n)
            views.append(view)
        return views

    def level(values: torch.Tensor) -> torch.Tensor:
        return values.clamp(min=torch.finfo(values.dtype).tiny).log_() if relative else values

    window = _local_mean(echo, widths, weight)
    means = at_corners(window)
    levels = at_corners(level(window)) if relative else means
    shares: Sequence[torch.Tensor | None] = [None] * len(means)
    if weight is not None:
        shares = at_corners(box_mean(weight, widths))
    own = level(_local_mean(echo, (3,) * dims, weight))

    flat = torch.zeros_like(own)  # the mean of all windows
    covered = flat if weight is None else torch.zeros_like(weight)
    for mean, share in zip(means, shares, strict=True):
        flat += mean if share is None else mean * share
        covered = covered if share is None else covered + share
    flat /= len(means) if weight is None else covered.clamp(min=1e-6)

    # statistics vary no faster than half a window
    sparse: tuple[Any, ...] = (..., *(slice(None, None, r + 1) for r in reach))
    chosen = None if fov is None else fov.expand(echo.shape[: echo.ndim - dims] + spatial)[sparse] > 0

    def median(values: torch.Tensor) -> torch.Tensor:
        kept = values if chosen is None else values.masked_fill(~chosen, torch.nan)
        return kept.flatten(-dims).nanmedian(-1).values.nan_to_num(0.0).reshape(kept.shape[:-dims] + (1,) * dims)

    scatter = median(sum((one[sparse] - own[sparse]).square_() for one in levels) / len(levels))  # type: ignore[arg-type]
    variance = median(_local_mean((echo - flat).square_(), widths, weight)[sparse])
    scale = 5 * scatter.clamp(min=1e-3)  # a noiseless image has none
    total, out = torch.zeros_like(own), torch.zeros_like(own)
    for mean, one, share in zip(means, levels, shares, strict=True):
        agreement = (one - own).square_().div_(scale).add_(1).reciprocal_().square_().square_()
        agreement = agreement if share is None else agreement.mul_(share)
        total += agreement
        out.addcmul_(agreement, mean)
    return torch.where(total > 0, out / total.clamp_(min=torch.finfo(out.dtype).tiny), flat), variance


def _local_mean(values: torch.Tensor, widths: Sequence[int], weight: torch.Tensor | None) -> torch.Tensor:
    """Mean under a box window over the samples inside the image, and where ``weight`` is 1."""
    if weight is None:
        return box_mean(values, widths)
    return box_mean(values * weight, widths) / box_mean(weight, widths).clamp_(min=1e-6)


def box_mean(values: torch.Tensor, widths: Sequence[int]) -> torch.Tensor:
    # One matrix product per axis: several times as fast as pooling, and right at the borders by its row sums.
    for axis, width in zip(range(-len(widths), 0), widths, strict=True):
        matrix = torch.from_numpy(_box_matrix(values.shape[axis], width)).to(values)
        if axis == -1:
            values = values @ matrix.T
        elif axis == -2:
            values = matrix @ values
        else:
            values = torch.tensordot(matrix, values, dims=([1], [values.ndim + axis])).movedim(0, axis)
    return values


@lru_cache(maxsize=16)
def _box_matrix(size: int, width: int) -> np.ndarray:
    """``(size, size)``: row ``i`` averages the ``width`` samples around sample ``i``."""
    near = np.abs(np.subtract.outer(np.arange(size), np.arange(size))) <= width // 2
    return (near / near.sum(1, keepdims=True)).astype(np.float32)


def _log_bias_db(variance: torch.Tensor) -> torch.Tensor:
    """``10 * log10(mean) - mean(10 * log10)`` of Gamma speckle of this variance in dB^2."""
    known, bias = (torch.from_numpy(values).to(variance) for values in _log_moments())
    right = torch.bucketize(variance, known).clamp(1, len(known) - 1)
    share = ((variance - known[right - 1]) / (known[right] - known[right - 1])).clamp(0, 1)
    return torch.lerp(bias[right - 1], bias[right], share)


@lru_cache(maxsize=1)
def _log_moments() -> tuple[np.ndarray, np.ndarray]:
    """Variance in dB^2, ascending, of Gamma speckle of 10 000 looks to 1, and how far its mean lies below."""
    looks, scale = np.logspace(4, 0, 257), 10 / math.log(10)
    return scale**2 * scipy.special.polygamma(1, looks), scale * (np.log(looks) - scipy.special.digamma(looks))


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
