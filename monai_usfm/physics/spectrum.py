# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Band-stop filtering: rings of the spectrum are removed, the rest of the image is kept.

This is the frequency corruption of the spatial-frequency dual masking of USFM (Jiao et al. 2024,
https://doi.org/10.1016/j.media.2024.103202), for 1D, 2D and 3D images. Three choices differ from the public code: the
transform is a half-spectrum one, the result is the real signal with its sign (not its absolute value), and radii are
fractions of the Nyquist frequency, so that a ring means the same at every image size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch

__all__ = [
    "apply_band_stop",
    "draw_rings",
    "equal_rings",
    "frequency_radius",
    "random_ring_masks",
    "ring_mask",
    "usfm_rings",
]

Rings = Sequence[tuple[float, float]]

# Radii are computed in float64; a sample that lies on the edge of a ring in exact arithmetic must fall on the same
# side whatever the rounding. The gap between two different radii of one grid is above 1e-8 up to 8192 samples per axis.
_EDGE = 1e-10
_COUNT_MARGIN = 1e-5  # ratio * count may fall short of a whole number by rounding, as 0.29 * 100 does


def frequency_radius(spatial_shape: Sequence[int], *, device: torch.device | str | None = None) -> torch.Tensor:
    """Distance of every sample of the half spectrum of ``torch.fft.rfftn`` (un-shifted) from the zero frequency.

    Each axis counts in fractions of its own Nyquist frequency: ``r = sqrt(sum((f_i / 0.5) ** 2))`` with ``f_i`` in
    cycles per sample. The corner of a 2D spectrum is at ``sqrt(2)``. On a square image of ``S`` samples, ``r * S / 2``
    is the distance in pixels of the centered spectrum.

    Returns:
        float64 tensor of shape ``(*S[:-1], S[-1] // 2 + 1)`` for ``S`` samples per axis, 0 at the zero frequency.

    Raises:
        ValueError: for an empty shape or an axis without samples.
    """
    shape = tuple(int(size) for size in spatial_shape)
    if not shape or min(shape) < 1:
        raise ValueError(f"spatial_shape must hold at least one size, all of them positive, got {shape}.")
    return _radius(shape, torch.device(device or "cpu"))


@lru_cache(maxsize=4)
def _radius(shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    square = np.zeros(())
    for axis, size in enumerate(shape):
        frequency = np.fft.rfftfreq(size) if axis == len(shape) - 1 else np.fft.fftfreq(size)
        square = square[..., None] + (2 * frequency) ** 2
    return torch.from_numpy(np.sqrt(square)).to(device)


def ring_mask(
    spatial_shape: Sequence[int], rings: Rings, *, center_radius: float = 0.0, device: torch.device | str | None = None
) -> torch.Tensor:
    """What a set of rings leaves of the half spectrum: 0 where ``low < r <= high`` for a ring, 1 elsewhere.

    Args:
        spatial_shape: samples per axis, ``S``.
        rings: ``(low, high)`` radii as of :func:`frequency_radius`; rings may touch or overlap, and with
            ``low == high`` one is empty, as the first of the official layout can be.
        center_radius: samples with ``r <= center_radius`` are kept whatever the rings say, and so is the mean.
        device: of the result, float32 of shape ``(*S[:-1], S[-1] // 2 + 1)``.

    Raises:
        ValueError: for a ring that is not ``0 <= low <= high``, or a negative ``center_radius``.
    """
    rings = check_rings(rings)
    check_center(center_radius)
    radius = frequency_radius(spatial_shape, device=device)
    stop = torch.zeros_like(radius, dtype=torch.bool)
    for low, high in rings:
        stop |= (radius > low + _EDGE) & (radius <= high + _EDGE)
    stop &= radius > center_radius + _EDGE  # at least 0: keeps the zero frequency
    return (~stop).to(torch.float32)


def apply_band_stop(image: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Multiply the spectrum of ``image`` by ``keep`` and transform back.

    Args:
        image: ``(..., *S)``; 1D, 2D or 3D. A volume needs a leading axis, ``(C, D, H, W)``: without one it cannot be
            told from a batch of lines ``(B, C, L)``, and is taken for that.
        keep: factors for the half spectrum: either ``(*half)`` with ``half = (*S[:-1], S[-1] // 2 + 1)``, one for all
            leading axes of the image, or, with as many axes as a batch ``(B, C, *S)``, ``(B or 1, C or 1, *half)``.

    Returns:
        Real tensor of the shape of ``image`` with its sign kept, in its dtype if that is a floating one and else in
        float32. Where ``keep`` is all 1 it is the image up to rounding.

    Raises:
        ValueError: when ``keep`` does not fit the image.
    """
    dims = keep.ndim if keep.ndim < image.ndim or image.ndim <= 2 else keep.ndim - 2
    shape = tuple(image.shape[image.ndim - dims :]) if 0 < dims <= image.ndim else ()
    half = (*shape[:-1], shape[-1] // 2 + 1) if shape else ()
    if not shape or 0 in shape or tuple(keep.shape[keep.ndim - dims :]) != half:
        raise ValueError(
            f"keep {tuple(keep.shape)} does not fit image {tuple(image.shape)}: it must be (*half) or (B, C, *half), "
            "half being the image's spatial shape with its last size S replaced by S // 2 + 1."
        )
    dtype = image.dtype if image.dtype.is_floating_point else torch.float32
    work = image.to(torch.promote_types(dtype, torch.float32))  # no FFT in half precision on the CPU
    axes = tuple(range(-dims, 0))
    spectrum = torch.fft.rfftn(work.contiguous(), dim=axes) * keep.to(work.dtype)  # MKL of torch 2.8 takes no views
    return torch.fft.irfftn(spectrum, s=shape, dim=axes).to(dtype)


def equal_rings(num_rings: int, center_radius: float = 0.1) -> list[tuple[float, float]]:
    """``num_rings`` touching rings of equal width from ``center_radius`` to 1, the Nyquist frequency.

    Raises:
        ValueError: unless ``num_rings >= 1`` and ``0 <= center_radius < 1``.
    """
    if int(num_rings) != num_rings or num_rings < 1:
        raise ValueError(f"num_rings must be a positive integer, got {num_rings}.")
    if not 0 <= center_radius < 1:
        raise ValueError(f"center_radius must be in [0, 1) to leave room for rings, got {center_radius}.")
    edges = np.linspace(center_radius, 1.0, int(num_rings) + 1).tolist()
    return list(pairwise(edges))


def usfm_rings(
    image_size: int, base_bandwidth: float, increase_factor: float, max_increase: float, center_protect: float
) -> list[tuple[float, float]]:
    """Rings of the official USFM code, in pixels of the centered spectrum of a square image; none includes its ``low``.

    The radii are ``center_protect, base_bandwidth`` and then ``r + min(int(r * increase_factor), max_increase)`` as
    long as they fit in ``int(image_size / 2)``. Divide by ``image_size / 2`` for the fractions of Nyquist that the
    transforms take. The five parameters of the weights that were released are not published; 224, 45, 0.7, 36, 15
    give the rings drawn in the official figure.

    Args:
        image_size: pixels per side.
        base_bandwidth: outer radius of the first ring (``BaseBW``).
        increase_factor, max_increase: growth from ring to ring, as a factor and at most in pixels.
        center_protect: radius of the disc that is always kept (``CenterProtect``).

    Raises:
        ValueError: for values for which the official code never ends, amplifies part of the spectrum, removes the mean
            of the image, or builds no ring.
    """
    values = (image_size, base_bandwidth, increase_factor, max_increase, center_protect)
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"all ring parameters must be finite, got {values}.")
    limit = int(image_size / 2)
    if center_protect < 0:
        raise ValueError(f"center_protect must not be negative (the mean would be removed), got {center_protect}.")
    if center_protect > base_bandwidth:
        raise ValueError(
            f"center_protect {center_protect} exceeds base_bandwidth {base_bandwidth}: the official code then "
            "amplifies the frequencies between them. Lower center_protect."
        )
    if base_bandwidth > limit:
        raise ValueError(f"base_bandwidth {base_bandwidth} exceeds half of image_size {image_size}: there is no ring.")
    if min(int(base_bandwidth * increase_factor), max_increase) <= 0:
        raise ValueError(
            f"the radius never grows: int(base_bandwidth * increase_factor) = {int(base_bandwidth * increase_factor)} "
            f"and max_increase = {max_increase} must both be positive (the official code hangs)."
        )
    radii = [center_protect, base_bandwidth]
    while (radius := radii[-1] + min(int(radii[-1] * increase_factor), max_increase)) <= limit:
        radii.append(radius)
    return list(pairwise(radii))


def draw_rings(
    random_state: np.random.RandomState, rings: Rings, stop_ratio: float | tuple[float, float] = 0.5
) -> list[tuple[float, float]]:
    """Choose the rings to stop: ``floor(ratio * len(rings))`` of them, at least one, every subset equally likely.

    ``stop_ratio`` is in (0, 1]; a pair ``(low, high)`` draws it uniformly. The chosen rings keep their order.
    """
    low, high = check_ratio(stop_ratio)
    ratio = low if low == high else random_state.uniform(low, high)
    count = min(len(rings), max(1, math.floor(ratio * len(rings) + _COUNT_MARGIN)))
    chosen = random_state.permutation(len(rings))[:count]
    return [rings[index] for index in sorted(chosen)]


def random_ring_masks(
    batch: int,
    spatial_shape: Sequence[int],
    *,
    num_rings: int = 8,
    stop_ratio: float | tuple[float, float] = 0.5,
    center_radius: float = 0.1,
    rings: Rings | None = None,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """One random set of rings per image of a batch, drawn and built on the device: what :func:`draw_rings` followed by
    :func:`ring_mask` does for one image.

    Args:
        batch: number of images, ``B``.
        spatial_shape: samples per axis, ``S``.
        num_rings, center_radius: see :func:`equal_rings`.
        stop_ratio: share of the rings that is removed, in (0, 1]; a pair draws it uniformly per image.
        rings: candidates to draw from instead of equal ones; they must not overlap.
        generator: source of the draw, on ``device``; the global one if ``None``.
        device: of the result, float32 ``(B, 1, *S[:-1], S[-1] // 2 + 1)``, for :func:`apply_band_stop`.
    """
    low, high = check_ratio(stop_ratio)
    candidates = ring_candidates(rings, num_rings, center_radius)
    count = len(candidates)
    rank = torch.rand(batch, count, generator=generator, device=device).argsort(1).argsort(1)
    ratio = low + (high - low) * torch.rand(batch, 1, generator=generator, device=device)
    stopped = (ratio * count + _COUNT_MARGIN).floor().clamp(1, count)
    kept = [ring_mask(spatial_shape, [ring], center_radius=center_radius, device=device) for ring in candidates]
    stop = 1 - torch.stack(kept)
    return (1 - (rank < stopped).float() @ stop.flatten(1)).view(batch, 1, *stop.shape[1:])


def ring_candidates(rings: Rings | None, num_rings: int, center_radius: float) -> tuple[tuple[float, float], ...]:
    check_center(center_radius)
    candidates = tuple(check_rings(equal_rings(num_rings, center_radius) if rings is None else rings))
    if not candidates:
        raise ValueError("rings must hold at least one (low, high) pair.")
    for before, after in pairwise(sorted(candidates)):
        if after[0] < before[1] - _EDGE:
            raise ValueError(f"rings to draw from must not overlap, got {before} and {after}.")
    return candidates


def check_rings(rings: Rings) -> list[tuple[float, float]]:
    pairs = [(float(low), float(high)) for low, high in rings]
    for low, high in pairs:
        if not 0 <= low <= high:
            raise ValueError(f"a ring must be (low, high) with 0 <= low <= high, got ({low}, {high}).")
    return pairs


def check_center(center_radius: float) -> None:
    if not center_radius >= 0:
        raise ValueError(f"center_radius must not be negative, got {center_radius}.")


def check_ratio(stop_ratio: float | tuple[float, float]) -> tuple[float, float]:
    low, high = (stop_ratio, stop_ratio) if isinstance(stop_ratio, (int, float)) else stop_ratio
    if not 0 < low <= high <= 1:
        raise ValueError(f"stop_ratio must be in (0, 1], or a pair (low, high) in it, got {stop_ratio}.")
    return float(low), float(high)
