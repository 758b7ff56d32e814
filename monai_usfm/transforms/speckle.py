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
from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
import scipy.fft
import scipy.special
import torch
import torch.nn.functional as F
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor, get_track_meta
from monai.transforms import MapTransform, Randomizable, RandomizableTransform, Transform
from monai.utils import convert_to_dst_type, convert_to_tensor

from monai_usfm.transforms.beam import BeamGeometry

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

_FLOOR = 2.0**-25  # half a step of a float32 uniform draw: keeps the logarithm finite, -75 dB
_LEAST_LOOKS = 0.5  # below, quantiles are too steep for a table
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
        return _independent_intensity(shape, _check_looks(looks), generator, device, dtype)
    sigmas = _per_axis(psf_sigma, spatial_dims, len(shape))
    return _mean_intensity(
        _spectral_draw((_whole(looks), *shape), sigmas, False, generator, device, _working(dtype)), dtype
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
    return _spectral_draw(shape, _per_axis(psf_sigma, spatial_dims, len(shape)), True, generator, device, dtype)


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
    sigmas = _per_axis(psf_sigma, dims, len(shape))
    if len(sigmas) != dims:
        raise ValueError(f"psf_sigma must hold {dims} values for a {geometry.kind} geometry, got {psf_sigma}.")
    steps = [abs(step) for step in geometry.spacing]  # a beam sample is as long as the shortest of them
    sigmas = tuple(sigma * step / min(steps) for sigma, step in zip(sigmas, steps, strict=True))
    beams, work, lead, looks = geometry.natural_beam_shape(), _working(dtype), shape[: len(shape) - dims], _whole(looks)
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
        variance *= 1 - 2 * share * (1 - share) * (1 - _neighbour_correlation(size, sigma))
    return coordinate.mul(2).sub(1).flip(-1)[None].to(dtype), variance


def _spectral_draw(
    shape: tuple[int, ...],
    sigmas: tuple[float, ...],
    centred: bool,
    generator: torch.Generator | None,
    device: torch.device | str | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Field of :func:`speckle_field`; unless ``centred``, times a phase ramp, which an intensity does not show."""
    dims = len(sigmas)
    lead, spatial = shape[: len(shape) - dims], shape[len(shape) - dims :]
    bands = [_psf_band(_periodic_size(size, sigma), sigma) for size, sigma in zip(spatial, sigmas, strict=True)]
    noise = _normal((*lead, *(len(band) for _, band in bands), 2), generator, device, dtype)
    field = torch.view_as_complex(noise)
    for axis, (first, band) in enumerate(bands):
        dim, periodic = len(lead) + axis, _periodic_size(spatial[axis], sigmas[axis])
        weight = torch.from_numpy(band).to(device=field.device, dtype=dtype)
        field = field * weight.reshape(-1, *(1,) * (dims - 1 - axis))
        if periodic > 1:  # frequencies first, first + 1, ... are filed as 0, 1, ...: the ramp
            field = torch.fft.ifft(field, n=periodic, dim=dim, norm="forward")
        field = field.narrow(dim, 0, spatial[axis])
        if centred and first:
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
    return 4 * scipy.fft.next_fast_len(math.ceil((size + 3 * sigma) / 4))  # multiples of 4 vectorise


@lru_cache(maxsize=256)
def _psf_band(size: int, sigma: float) -> tuple[int, np.ndarray]:
    """Lowest frequency index that a Gaussian PSF lets pass, and the amplitudes from there on, of unit power."""
    index = np.arange(-(size // 2), (size + 1) // 2)
    amplitude = np.exp(-2 * (np.pi * sigma * index / size) ** 2)
    index, amplitude = index[amplitude >= _NEGLECT], amplitude[amplitude >= _NEGLECT]
    return int(index[0]), amplitude / np.sqrt((amplitude**2).sum())


def _neighbour_correlation(size: int, sigma: float) -> float:
    """Correlation of the complex field between two neighbours on an axis of ``size`` samples."""
    periodic = _periodic_size(size, sigma)
    first, amplitude = _psf_band(periodic, sigma)
    return float((amplitude**2 * np.cos(2 * np.pi * (first + np.arange(len(amplitude))) / periodic)).sum())


# ---------------------------------------------------------------------------------------------------------------------
# Cheap draws. On a CPU the generator is what costs: one 64-bit word serves four samples, each of which looks up one of
# 65 536 equally likely quantiles. The tails end at the 1 / 131 072 quantile. The words come from NumPy's SFC64, seeded
# by one draw, at half the cost of PyTorch's Mersenne twister. A GPU draws faster than it can look up.


def _on_cpu(device: torch.device | str | None) -> bool:
    return torch.device(device or "cpu").type == "cpu"


def _tabled(how: SpeckleNoise | RandSpeckleNoise, device: torch.device) -> bool:
    return _on_cpu(device) and how.looks >= _LEAST_LOOKS


def _independent_intensity(
    shape: tuple[int, ...],
    looks: float,
    generator: torch.Generator | None,
    device: torch.device | str | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    work = _working(dtype)
    if _on_cpu(device) and looks >= _LEAST_LOOKS:
        return _lookup(_gamma_table(looks), shape, _words(generator)).to(dtype)
    if looks == 1:
        intensity = torch.rand(shape, generator=generator, device=device, dtype=work).neg_().log1p_().neg_()
    else:
        concentration = torch.full(shape, looks, device=device, dtype=work)
        intensity = torch._standard_gamma(concentration, generator=generator).div_(looks)
    return intensity.clamp_(min=_FLOOR).to(dtype)


def _normal(
    shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device | str | None, dtype: torch.dtype
) -> torch.Tensor:
    """Gaussian noise of variance 1/2, the share of each quadrature."""
    if _on_cpu(device):
        return _lookup(_normal_table(), shape, _words(generator)).to(dtype)
    return torch.randn(shape, generator=generator, device=device, dtype=dtype).mul_(math.sqrt(0.5))


def _words(generator: torch.Generator | None) -> np.random.SFC64:
    """Source of random bits that a single draw of ``generator`` determines."""
    return np.random.SFC64(int(torch.empty((), dtype=torch.int64).random_(generator=generator)))


def _lookup(
    table: torch.Tensor,
    shape: tuple[int, ...],
    words: np.random.SFC64,
    image: torch.Tensor | None = None,
    scale: float = 1.0,
) -> torch.Tensor:
    """Random entries of ``table``; with an ``image`` of that shape, ``scale`` times them added to it, in [0, 1]."""
    out = torch.empty(math.prod(shape))
    pixels = None if image is None else image.reshape(-1)
    for start in range(0, len(out), _CHUNK):  # what is in between stays in the cache
        part = out[start : start + _CHUNK]
        word = torch.from_numpy(words.random_raw((len(part) + 3) // 4).view(np.int64))
        torch.index_select(table, 0, word.view(torch.uint16)[: len(part)].long(), out=part)
        if pixels is not None:
            torch.add(pixels[start : start + _CHUNK], part, alpha=scale, out=part).clamp_(0, 1)
    return out.view(shape)


_CHUNK = 65536
_PROBABILITY = (np.arange(65536) + 0.5) / 65536


@lru_cache(maxsize=1)
def _normal_table() -> torch.Tensor:
    quantile = scipy.special.ndtri(_PROBABILITY)
    return torch.from_numpy(quantile * math.sqrt(0.5 / (quantile**2).mean())).float()


def _gamma_level_table(looks: float) -> torch.Tensor:
    """Quantiles of unit-mean Gamma(``looks``) in decibels.

    Exact for whole numbers and quarters of an octave, ``2 ** (k / 4)``; between these interpolated, because the exact
    function takes 25 ms. The mean intensity then stays within 1.2e-3 of 1, mean and deviation within 0.02 dB.
    """
    node = 4 * math.log2(looks)
    if looks == int(looks) or node == int(node):
        return _gamma_node(looks)
    low, high = 2 ** (math.floor(node) / 4), 2 ** (math.floor(node) / 4 + 0.25)
    share = (looks**-0.5 - low**-0.5) / (high**-0.5 - low**-0.5)  # decibels spread with looks ** -0.5
    return torch.lerp(_gamma_node(low), _gamma_node(high), share)


@lru_cache(maxsize=64)
def _gamma_node(looks: float) -> torch.Tensor:
    intensity = np.maximum(scipy.special.gammaincinv(looks, _PROBABILITY) / looks, _FLOOR)
    return torch.from_numpy(10 * np.log10(intensity)).float()


@lru_cache(maxsize=4)
def _gamma_table(looks: float) -> torch.Tensor:
    return torch.pow(10.0, _gamma_level_table(looks) / 10)


def _working(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32


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
    own 3 x 3 neighbourhood. The scale ``t`` is the median of ``d ** 2`` over the image, hence what the speckle alone
    causes whatever its looks and correlation: in flat tissue all windows count, at an edge those on the sample's side.
    Logarithmic compression makes ``d`` independent of the grey level; with ``relative`` means are compared by their
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
        shares = at_corners(_box(weight, widths))
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
        return _box(values, widths)
    return _box(values * weight, widths) / _box(weight, widths).clamp_(min=1e-6)


def _box(values: torch.Tensor, widths: Sequence[int]) -> torch.Tensor:
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


def _check_display(dynamic_range_db: float | None, strength: float) -> None:
    if dynamic_range_db is not None and not (math.isfinite(dynamic_range_db) and dynamic_range_db > 0):
        raise ValueError(f"dynamic_range_db must be positive, or None for a linear envelope, got {dynamic_range_db}.")
    if not (math.isfinite(strength) and strength >= 0):
        raise ValueError(f"strength must not be negative, got {strength}.")


def _check_looks(looks: float) -> float:
    if not (math.isfinite(looks) and looks > 0):
        raise ValueError(f"looks must be a positive number, got {looks}.")
    return float(looks)


def _whole(looks: float) -> int:
    if _check_looks(looks) != int(looks):
        raise ValueError(f"looks must be a whole number for correlated speckle (psf_sigma given), got {looks}.")
    return int(looks)


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


# ---------------------------------------------------------------------------------------------------------------------


class SpeckleNoise(Randomizable, Transform):
    """Give an ultrasound image fully developed speckle with fixed parameters; only the random field differs per call.

    A B-mode image already carries speckle. ``mode="add"`` puts the new one on top, as one more independent source
    (see :func:`add_speckle`): with ``strength=1`` an image with fully developed speckle then spreads by 7.9 instead of
    5.6 dB. ``mode="respeckle"`` first takes the old speckle out (see :func:`respeckle`).

    Samples that are 0 carry no echo and stay 0 (in ``"respeckle"``: where the surroundings are 0 as well), and
    samples outside the field of view are returned as they were.

    Args:
        looks: number of independent looks that the speckle is averaged over (compounding): 1 is fully developed,
            5.57 dB; 4 gives 2.31 dB. A whole number unless ``psf_sigma`` is ``None``.
        dynamic_range_db: decibels between black and white of the log-compressed image in [0, 1]; ``None`` for a linear
            envelope, which is multiplied instead.
        psf_sigma: standard deviation of the scanner's point-spread function, one number or one per spatial axis, in
            the unit that ``psf_unit`` names; speckle is ``2.36 * psf_sigma`` wide (full width at half maximum, in
            intensity). ``None``: no correlation, which is fastest and looks like no scanner.
        mode: ``"add"`` or ``"respeckle"``.
        strength: factor on the decibels of the new speckle.
        psf_unit: ``"samples"``, or ``"mm"``: then ``psf_sigma`` is in millimetres, so that speckle has one size in the
            patient at every resolution and on anisotropic grids.

    Raises:
        ValueError: for a parameter out of range; when called, for an image that is empty, not finite, or, with a
            ``dynamic_range_db``, not scaled to [0, 1]; with ``psf_unit="mm"``, for an image of unknown spacing.
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
        _check_display(dynamic_range_db, strength)
        if psf_unit not in ("samples", "mm"):
            raise ValueError(f'psf_unit must be "samples" or "mm", got {psf_unit!r}.')
        if mode not in ("add", "respeckle"):
            raise ValueError(f'mode must be "add" or "respeckle", got {mode!r}.')
        self.looks = _check_looks(looks) if psf_sigma is None else _whole(looks)
        if psf_sigma is not None:
            _per_axis(psf_sigma, 1, 3)
        self.dynamic_range_db, self.psf_sigma, self.psf_unit = dynamic_range_db, psf_sigma, psf_unit
        self.mode, self.strength, self.seed = mode, strength, 0

    def randomize(self, data: Any = None) -> None:
        """Draw the seed of the speckle field."""
        self.seed = _draw_seed(self.R)

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
            img: channel-first image; every channel gets the same speckle, as grey images stored as RGB need.
            fov: mask ``(1, *S)`` of the field of view; with a ``geometry`` alone, the area that its beams reach.
            geometry: beams of this image; the speckle is then made along them, see :func:`beam_speckle_intensity`.
            randomize: draw a new field, or repeat the last one.
            spacing: mm per sample along each axis of ``S``, for ``psf_unit="mm"``; by default that of the affine of a
                ``MetaTensor``, unless its ``meta["spacing_known"]`` (see :class:`~monai_usfm.data.LoadUltrasound`) is
                false.
        """
        if randomize:
            self.randomize()
        return _speckle(self, img, fov, geometry, spacing)


class RandSpeckleNoise(RandomizableTransform):
    """Randomly give an ultrasound image fully developed speckle; see :class:`SpeckleNoise`.

    Args:
        prob: chance that an image is changed at all.
        looks: range ``(low, high)`` that the number of looks is drawn from, both ends included: whole numbers, or with
            ``psf_sigma=None`` any number, uniformly.
        dynamic_range_db: see :class:`SpeckleNoise`.
        psf_sigma: see :class:`SpeckleNoise`.
        mode: see :class:`SpeckleNoise`.
        strength: range of the factor on the decibels of the new speckle, uniformly.
        psf_unit: see :class:`SpeckleNoise`.

    Raises:
        ValueError: as :class:`SpeckleNoise`, and for a range that is not ``low <= high``.
    """

    def __init__(
        self,
        prob: float = 0.1,
        looks: tuple[float, float] = (1.0, 4.0),
        dynamic_range_db: float | None = 60.0,
        psf_sigma: float | Sequence[float] | None = 1.0,
        mode: str = "add",
        strength: tuple[float, float] = (0.5, 1.0),
        psf_unit: str = "samples",
    ) -> None:
        RandomizableTransform.__init__(self, prob)
        for name, (low, high) in {"looks": looks, "strength": strength}.items():
            if not low <= high:
                raise ValueError(f"{name} must be a range (low, high) with low <= high, got ({low}, {high}).")
            for value in (low, high):
                ends = {"looks": looks[0], "strength": strength[0], name: value}
                SpeckleNoise(ends["looks"], dynamic_range_db, psf_sigma, mode, ends["strength"], psf_unit)
        self.looks_range, self.strength_range = looks, strength
        self.dynamic_range_db, self.psf_sigma, self.psf_unit = dynamic_range_db, psf_sigma, psf_unit
        self.mode = mode
        self.looks, self.strength, self.seed = looks[0], strength[0], 0

    def randomize(self, data: Any = None) -> None:
        """Draw whether to act, ``looks``, ``strength`` and the seed of the speckle field."""
        super().randomize(None)
        if self._do_transform:
            low, high = self.looks_range
            self.looks = (
                self.R.uniform(low, high) if self.psf_sigma is None else int(self.R.randint(int(low), int(high) + 1))
            )
            self.strength = self.R.uniform(*self.strength_range)
            self.seed = _draw_seed(self.R)

    def __call__(
        self,
        img: NdarrayOrTensor,
        fov: NdarrayOrTensor | None = None,
        geometry: BeamGeometry | Mapping[str, Any] | None = None,
        randomize: bool = True,
        spacing: Sequence[float] | None = None,
    ) -> NdarrayOrTensor:
        """Apply to ``img`` (C, *S); the other arguments are those of :class:`SpeckleNoise`."""
        if randomize:
            self.randomize()
        if not self._do_transform:
            return _as_tensor(img)
        return _speckle(self, img, fov, geometry, spacing)


class _SpeckleDictionary(Randomizable, MapTransform):
    """What the two dictionary forms share: one draw serves every key."""

    speckle: SpeckleNoise | RandSpeckleNoise

    def _set(
        self,
        fov_key: Hashable | None,
        geometry_key: Hashable | None,
        spacing_key: Hashable | None,
        keep_clean: bool,
    ) -> None:
        self.fov_key, self.geometry_key, self.spacing_key = fov_key, geometry_key, spacing_key
        self.keep_clean = keep_clean

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> Any:
        super().set_random_state(seed, state)
        self.speckle.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        self.speckle.randomize()
        fov = None if self.fov_key is None else d[self.fov_key]
        geometry = None if self.geometry_key is None else d[self.geometry_key]
        spacing = None if self.spacing_key is None else d[self.spacing_key]
        for key in self.key_iterator(d):
            if self.keep_clean:
                d[f"{key}_clean"] = _as_tensor(d[key])
            d[key] = self.speckle(d[key], fov=fov, geometry=geometry, randomize=False, spacing=spacing)
        return d


class SpeckleNoised(_SpeckleDictionary):
    """Dictionary form of :class:`SpeckleNoise`. One draw serves every key.

    Args:
        keys: images.
        looks: see :class:`SpeckleNoise`, as the next five.
        dynamic_range_db: decibels between black and white.
        psf_sigma: width of the point-spread function.
        mode: ``"add"`` or ``"respeckle"``.
        strength: factor on the decibels of the new speckle.
        psf_unit: ``"samples"`` or ``"mm"``, the unit of ``psf_sigma``.
        fov_key: entry with the mask ``(1, *S)`` of the field of view.
        geometry_key: entry with the :class:`BeamGeometry` of the images, or its ``to_dict()``.
        spacing_key: entry with the mm per sample along each axis, for images without metadata.
        keep_clean: store the image before the speckle as ``{key}_clean``, the target of noise recovery.
        allow_missing_keys: do not raise when a key is absent.
    """

    def __init__(
        self,
        keys: KeysCollection,
        looks: float = 1.0,
        dynamic_range_db: float | None = 60.0,
        psf_sigma: float | Sequence[float] | None = 1.0,
        mode: str = "add",
        strength: float = 1.0,
        psf_unit: str = "samples",
        fov_key: Hashable | None = None,
        geometry_key: Hashable | None = None,
        spacing_key: Hashable | None = None,
        keep_clean: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.speckle = SpeckleNoise(looks, dynamic_range_db, psf_sigma, mode, strength, psf_unit)
        self._set(fov_key, geometry_key, spacing_key, keep_clean)


class RandSpeckleNoised(_SpeckleDictionary):
    """Dictionary form of :class:`RandSpeckleNoise`. One draw serves every key.

    Args:
        keys: images.
        prob: see :class:`RandSpeckleNoise`, as the next six.
        looks: range of the number of looks.
        dynamic_range_db: decibels between black and white.
        psf_sigma: width of the point-spread function.
        mode: ``"add"`` or ``"respeckle"``.
        strength: range of the factor on the decibels of the new speckle.
        psf_unit: ``"samples"`` or ``"mm"``, the unit of ``psf_sigma``.
        fov_key: entry with the mask ``(1, *S)`` of the field of view.
        geometry_key: entry with the :class:`BeamGeometry` of the images, or its ``to_dict()``.
        spacing_key: entry with the mm per sample along each axis, for images without metadata.
        keep_clean: store the image before the speckle as ``{key}_clean``, the target of noise recovery; also when
            the draw leaves the image alone.
        allow_missing_keys: do not raise when a key is absent.
    """

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 0.1,
        looks: tuple[float, float] = (1.0, 4.0),
        dynamic_range_db: float | None = 60.0,
        psf_sigma: float | Sequence[float] | None = 1.0,
        mode: str = "add",
        strength: tuple[float, float] = (0.5, 1.0),
        psf_unit: str = "samples",
        fov_key: Hashable | None = None,
        geometry_key: Hashable | None = None,
        spacing_key: Hashable | None = None,
        keep_clean: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.speckle = RandSpeckleNoise(prob, looks, dynamic_range_db, psf_sigma, mode, strength, psf_unit)
        self._set(fov_key, geometry_key, spacing_key, keep_clean)


def _speckle(
    how: SpeckleNoise | RandSpeckleNoise,
    img: NdarrayOrTensor,
    fov: NdarrayOrTensor | None,
    geometry: BeamGeometry | Mapping[str, Any] | None,
    spacing: Sequence[float] | None,
) -> NdarrayOrTensor:
    """Apply the parameters and the seed that ``how`` holds."""
    image = _as_tensor(img)
    plain = image.as_subclass(torch.Tensor)
    low = _check_image(plain, how.dynamic_range_db)
    dtype = plain.dtype if plain.dtype.is_floating_point else torch.float32
    work, spatial, device = plain.to(_working(plain.dtype)), tuple(plain.shape[1:]), plain.device
    beams = BeamGeometry.from_dict(dict(geometry)) if isinstance(geometry, Mapping) else geometry
    inside = _inside(fov, beams, spatial, device)
    display, black = how.dynamic_range_db, low <= 0
    if how.mode == "add" and display is not None and how.psf_sigma is None and beams is None and _tabled(how, device):
        table, scale = _gamma_level_table(how.looks), how.strength / display  # no logarithm to take
        words, shape = np.random.SFC64(how.seed), (1, *spatial)
        if work.shape == shape and work.dtype == table.dtype and not work.requires_grad:
            out = _lookup(table, shape, words, work, scale)
        else:
            out = torch.add(work, _lookup(table, shape, words), alpha=scale).clamp_(0, 1)
        return _finish(out, work, inside, black, image, dtype)

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
    how: SpeckleNoise | RandSpeckleNoise,
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
    sigmas = _per_axis(sigma, dims, dims)
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


def _as_tensor(img: NdarrayOrTensor) -> torch.Tensor:
    """A tensor as it is, with or without metadata; anything else as MONAI converts it."""
    return img if isinstance(img, torch.Tensor) else convert_to_tensor(img, track_meta=get_track_meta())


def _restore(out: torch.Tensor, image: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    out = out.to(dtype)
    return convert_to_dst_type(out, image, dtype=dtype)[0] if isinstance(image, MetaTensor) else out


def _close(mask: torch.Tensor, dims: int, width: int = 9) -> torch.Tensor:
    """Morphological closing: fills the dark specks of speckle, and leaves the black surroundings."""
    widths, least = (width,) * dims, 0.5 * float(width) ** -dims  # half the share of a single sample
    grown = _box(mask.any(0, keepdim=True).float(), widths) > least
    return _box(grown.float(), widths) > 1 - least


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


def _draw_seed(state: np.random.RandomState) -> int:
    return int(state.randint(2**31 - 1))
