# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""What the scanner's post-processing does to the look of an image: wavelet denoising, CLAHE, salt and pepper.

Each effect is a function with explicit parameters, a random array transform that draws them and its dictionary form,
bound to the field of view as in :mod:`monai_usfm.transforms.effect`. Gamma, brightness, contrast and Gaussian noise are
MONAI's: ``RandAdjustContrast``, ``RandScaleIntensity``, ``RandScaleIntensityFixedMean``, ``RandGaussianNoise``.
Wavelets need PyWavelets, CLAHE needs scikit-image; both work on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.utils import optional_import

from monai_usfm.physics.beam import BeamGeometry
from monai_usfm.transforms.dictionary import NUMPY, dictionary_form
from monai_usfm.transforms.effect import RandEffect, RandEffectForm, Range, blend, check_range, checked, needs

pywt, _has_pywt = optional_import("pywt")
exposure, _has_skimage = optional_import("skimage", name="exposure")

__all__ = [
    "RandCLAHE",
    "RandCLAHEd",
    "RandSaltAndPepper",
    "RandSaltAndPepperd",
    "RandWaveletDenoise",
    "RandWaveletDenoised",
    "birge_massart_keep",
    "clahe",
    "salt_and_pepper",
    "wavelet_denoise",
]


def birge_massart_keep(levels: int, coarsest: int, alpha: float = 3.0) -> list[int]:
    """Number of wavelet coefficients to keep at each level, finest first, by the rule of Birgé and Massart.

    ``n_i = m / (levels + 2 - i) ** alpha`` at level ``i`` (1 the finest), rounded; everything coarser is kept, and
    ``m`` is the number of coarsest approximation coefficients. ``alpha`` is about 3 for denoising and 1.5 for
    compression. Birgé and Massart 1997, From model selection to adaptive estimation,
    https://doi.org/10.1007/978-1-4612-1880-7_4; the same rule as MATLAB's ``wdcbm``. The threshold of a level is its
    largest coefficient that is not kept: ``n_i`` is a count, and never a threshold itself.
    """
    if levels < 1 or coarsest < 1 or not alpha > 0:
        raise ValueError(f"levels, coarsest and alpha must be positive, got {levels}, {coarsest}, {alpha}.")
    return [math.floor(coarsest / (levels + 2 - i) ** alpha + 0.5) for i in range(1, levels + 1)]


def wavelet_denoise(
    img: torch.Tensor,
    wavelet: str = "db5",
    levels: int = 2,
    alpha: float = 3.0,
    fov: torch.Tensor | None = None,
    geometry: BeamGeometry | None = None,
) -> torch.Tensor:
    """Soft-threshold the wavelet coefficients of an image, with the thresholds of :func:`birge_massart_keep`.

    Speckle is additive in a log-compressed image, which is what the method asks for. Axes too short for the wavelet are
    left out, and levels that the others do not allow.

    Args:
        img: ``(C, *S)`` in [0, 1]; channels are treated alone, S as a whole.
        wavelet: name of a discrete PyWavelets wavelet.
        levels: number of (finest) levels that are thresholded.
        alpha: sparsity; larger is smoother.
        fov: field of view ``(1, *S)``; pixels outside are left as they are.
        geometry: beams of the image, used for the field of view if ``fov`` is not given.

    Returns:
        A new tensor like ``img``.
    """
    image = checked(img)
    basis = pywt.Wavelet(wavelet)
    allowed = {axis: pywt.dwt_max_level(image.shape[axis], basis.dec_len) for axis in range(1, image.ndim)}
    axes = [axis for axis, most in allowed.items() if most > 0]
    depth = min([levels, *(allowed[axis] for axis in axes)]) if axes else 0
    if depth < 1:
        return blend(img, image, image, fov, geometry)
    out = np.empty(image.shape, dtype=np.float64)
    for channel, pixels in enumerate(image.detach().double().cpu().numpy()):
        kept, *details = pywt.wavedecn(pixels, basis, mode="symmetric", level=depth, axes=[a - 1 for a in axes])
        counts = birge_massart_keep(depth, int(np.prod([kept.shape[a - 1] for a in axes])), alpha)
        # details come coarsest first, counts finest first; other axes hold that many signals side by side
        others = kept.size // int(np.prod([kept.shape[a - 1] for a in axes]))
        for bands, count in zip(details, reversed(counts), strict=True):
            threshold = _largest_dropped(np.concatenate([b.ravel() for b in bands.values()]), count * others)
            for name, band in bands.items():
                bands[name] = pywt.threshold(band, threshold, mode="soft")
        full = pywt.waverecn([kept, *details], basis, mode="symmetric", axes=[a - 1 for a in axes])
        out[channel] = full[tuple(slice(n) for n in pixels.shape)]  # odd sizes come back one longer
    return blend(img, image, torch.as_tensor(out, dtype=image.dtype, device=image.device), fov, geometry)


def _largest_dropped(values: np.ndarray, keep: int) -> float:
    """Largest magnitude that is not among the ``keep`` largest; 0 if all are kept."""
    if keep >= values.size:
        return 0.0
    return float(np.partition(np.abs(values), values.size - keep - 1)[values.size - keep - 1])


def clahe(
    img: torch.Tensor,
    clip_limit: float = 2.0,
    tiles: int | Sequence[int] = 6,
    fov: torch.Tensor | None = None,
    geometry: BeamGeometry | None = None,
) -> torch.Tensor:
    """Contrast-limited adaptive histogram equalization by scikit-image, in 2D and 3D.

    Pizer et al. 1987, https://doi.org/10.1016/S0734-189X(87)80186-X.

    Args:
        img: ``(C, *S)`` in [0, 1].
        clip_limit: limit of a histogram bin as a multiple of the even one, as in OpenCV; 1 or less changes little.
        tiles: number of tiles along each axis of S.
        fov: field of view ``(1, *S)``; pixels outside are left as they are.
        geometry: beams of the image, used for the field of view if ``fov`` is not given.

    Returns:
        A new tensor like ``img``.
    """
    image = checked(img)
    if not clip_limit > 0:
        raise ValueError(f"clip_limit must be positive, got {clip_limit}.")
    shape = image.shape[1:]
    counts = (tiles,) * len(shape) if isinstance(tiles, int) else tuple(tiles)
    if len(counts) != len(shape) or min(counts) < 1:
        raise ValueError(f"tiles must be one positive number or one for each of {len(shape)} axes, got {tiles}.")
    kernel = [max(1, math.ceil(n / t)) for n, t in zip(shape, counts, strict=True)]
    bins = 256
    out = np.empty(image.shape, dtype=np.float64)
    for channel, pixels in enumerate(image.detach().double().clamp(0, 1).cpu().numpy()):
        low, high = pixels.min(), pixels.max()
        if low == high:  # nothing to equalize
            out[channel] = pixels
            continue
        # the axis of one keeps scikit-image from taking a volume with 3 or 4 columns for a color image
        equalized = exposure.equalize_adapthist(pixels[..., None], (*kernel, 1), clip_limit / bins, bins)
        out[channel] = equalized[..., 0]
    return blend(img, image, torch.as_tensor(out, dtype=image.dtype, device=image.device), fov, geometry)


def salt_and_pepper(
    img: torch.Tensor,
    uniform: torch.Tensor,
    salt: float = 0.003,
    pepper: float = 0.003,
    fov: torch.Tensor | None = None,
    geometry: BeamGeometry | None = None,
) -> torch.Tensor:
    """Set a fraction ``salt`` of the pixels to white and ``pepper`` of them to black.

    Args:
        img: ``(C, *S)`` in [0, 1].
        uniform: one draw from [0, 1) for each pixel, ``(1, *S)``: below ``salt`` is white, from ``1 - pepper`` black.
        salt, pepper: fractions of the pixels, together at most 1.
        fov: field of view ``(1, *S)``; pixels outside are left as they are.
        geometry: beams of the image, used for the field of view if ``fov`` is not given.

    Returns:
        A new tensor like ``img``.
    """
    if not (salt >= 0 and pepper >= 0 and salt + pepper <= 1):
        raise ValueError(f"salt and pepper must be fractions that sum to at most 1, got {salt} and {pepper}.")
    image = checked(img)
    draw = uniform.to(image.device)
    out = torch.where(draw < salt, 1.0, torch.where(draw >= 1 - pepper, 0.0, image))
    return blend(img, image, out, fov, geometry)


# ---------------------------------------------------------------------- random, array and dictionary forms


class RandWaveletDenoise(RandEffect):
    """Denoise with a random wavelet and sparsity; see :func:`wavelet_denoise`.

    VanBerlo et al. 2025, https://arxiv.org/abs/2504.07904, denoise with thresholds that are the counts of the
    Birgé-Massart rule and so grow with the image; here the rule is as published.

    Args:
        prob: chance that an image is changed.
        alpha: range of the sparsity.
        wavelets: names from which one is drawn.
        levels: number of levels that are thresholded.
    """

    backend = NUMPY

    def __init__(
        self,
        prob: float = 0.1,
        alpha: float | Range = (2.5, 3.5),
        wavelets: Sequence[str] = ("db2", "db5"),
        levels: int = 2,
    ) -> None:
        super().__init__(prob)
        needs(_has_pywt, "RandWaveletDenoise", "PyWavelets")
        if not wavelets or levels < 1:
            raise ValueError(f"wavelets and levels must not be empty or 0, got {tuple(wavelets)} and {levels}.")
        self.alpha, self.wavelets, self.levels = check_range("alpha", alpha, above=0), tuple(wavelets), levels

    def _draw(self, img: torch.Tensor) -> dict[str, Any]:
        return {"wavelet": self.wavelets[self.R.randint(len(self.wavelets))], "alpha": self.R.uniform(*self.alpha)}

    def _apply(self, img: torch.Tensor, fov: torch.Tensor | None, geometry: BeamGeometry | None) -> torch.Tensor:
        return wavelet_denoise(img, **self.params, levels=self.levels, fov=fov, geometry=geometry)


RandWaveletDenoised = dictionary_form(RandWaveletDenoise, RandEffectForm)


class RandCLAHE(RandEffect):
    """Equalize with a random clip limit; see :func:`clahe`.

    VanBerlo et al. 2025, https://arxiv.org/abs/2504.07904, draw limits of 5 to 10, which turn fully developed speckle
    almost black and white; the default here is what scanners show.

    Args:
        prob: chance that an image is changed.
        clip_limit: range of the limit, as multiples of an even histogram.
        tiles: number of tiles along each axis.
    """

    backend = NUMPY

    def __init__(
        self, prob: float = 0.1, clip_limit: float | Range = (1.5, 4.0), tiles: int | Sequence[int] = 6
    ) -> None:
        super().__init__(prob)
        needs(_has_skimage, "RandCLAHE", "scikit-image")
        self.clip_limit, self.tiles = check_range("clip_limit", clip_limit, above=0), tiles

    def _draw(self, img: torch.Tensor) -> dict[str, Any]:
        return {"clip_limit": self.R.uniform(*self.clip_limit)}

    def _apply(self, img: torch.Tensor, fov: torch.Tensor | None, geometry: BeamGeometry | None) -> torch.Tensor:
        return clahe(img, **self.params, tiles=self.tiles, fov=fov, geometry=geometry)


RandCLAHEd = dictionary_form(RandCLAHE, RandEffectForm)


class RandSaltAndPepper(RandEffect):
    """Turn a random fraction of the pixels white and another black; see :func:`salt_and_pepper`.

    Args:
        prob: chance that an image is changed.
        fraction: range from which the fractions of white and of black pixels are drawn, each alone; at most 0.5.
    """

    def __init__(self, prob: float = 0.1, fraction: float | Range = (0.001, 0.005)) -> None:
        super().__init__(prob)
        self.fraction = check_range("fraction", fraction)
        if not 0 <= self.fraction[0] <= self.fraction[1] <= 0.5:
            raise ValueError(f"fraction must be a range within [0, 0.5], got {fraction}.")

    def _draw(self, img: torch.Tensor) -> dict[str, Any]:
        salt, pepper = self.R.uniform(*self.fraction, size=2).tolist()
        return {"salt": salt, "pepper": pepper, "uniform": torch.from_numpy(self.R.random_sample((1, *img.shape[1:])))}

    def _apply(self, img: torch.Tensor, fov: torch.Tensor | None, geometry: BeamGeometry | None) -> torch.Tensor:
        return salt_and_pepper(img, **self.params, fov=fov, geometry=geometry)


RandSaltAndPepperd = dictionary_form(RandSaltAndPepper, RandEffectForm)
