# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Image quality of ultrasound: contrast, speckle and structure.

MONAI's ``IgniteMetricHandler`` hands a metric two tensors, so what a metric needs besides the image travels in ``y``:
region masks (channel 0 the region of interest, channel 1 the background), a reference image, or both. No single number
here is a safe optimum: smoothing raises CNR, gCNR and speckle SNR. :class:`EnhancementQualityMetric` is the combination
that smoothing cannot win. SSIM and PSNR are in :mod:`monai.metrics`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from monai.metrics.regression import RegressionMetric
from monai.networks.layers import Pool
from monai.utils import convert_to_tensor

from monai_usfm.physics.display import check_dynamic_range

__all__ = [
    "CNRMetric",
    "EnhancementQualityMetric",
    "GeneralizedCNRMetric",
    "LocalNCCMetric",
    "SpeckleSNRMetric",
]


def to_envelope(image: torch.Tensor, dynamic_range_db: float | None) -> torch.Tensor:
    """Echo amplitude (1 = white) of a log-compressed image in [0, 1]; ``None`` means it is an amplitude already.

    A gray level ``v`` shows ``(v - 1) * dynamic_range_db`` dB below white, so black is ``-dynamic_range_db`` dB.
    """
    if dynamic_range_db is None:
        return image
    return 10.0 ** ((image - 1.0) * (dynamic_range_db / 20.0))


class _RegionMetric(RegressionMetric):
    """A number per item and channel from the gray levels inside binary masks; NaN where a mask is too small for one."""

    regions: tuple[str, ...] = ("region of interest", "background")

    def _check_shape(self, y_pred: torch.Tensor, y: torch.Tensor) -> None:
        if y_pred.ndim < 3 or y.shape[2:] != y_pred.shape[2:] or y.shape[0] != y_pred.shape[0]:
            raise ValueError(
                f"y_pred must be (B, C, *S) and y (B, {len(self.regions)}, *S), got {tuple(y_pred.shape)} and "
                f"{tuple(y.shape)}."
            )
        if y.shape[1] < len(self.regions):
            raise ValueError(f"y needs one mask channel for each of {self.regions}, got {y.shape[1]} channels.")

    def _compute_metric(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        image, masks = _finite(y_pred, "y_pred"), y > 0
        out = image.new_full(image.shape[:2], torch.nan)
        for item in range(image.shape[0]):
            for channel in range(image.shape[1]):
                values = [image[item, channel][masks[item, k]] for k in range(len(self.regions))]
                if min(v.numel() for v in values) >= 2:
                    out[item, channel] = self._from_values(*values)
        return out.float()

    def _from_values(self, *values: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError(f"{type(self).__name__} must implement _from_values.")


class CNRMetric(_RegionMetric):
    """Contrast-to-noise ratio ``|m1 - m2| / sqrt(s1^2 + s2^2)`` of a region against its background.

    ``m`` and ``s^2`` are mean and (population) variance of the gray levels. Two flat regions of different level give
    infinity, two equal flat ones 0. Patterson and Foster,
    Ultrasonic Imaging 5:195, 1983.

    Call with ``y_pred`` (B, C, *S) and ``y`` (B, 2, *S): masks of the region and of the background. Returns (B, C), NaN
    where a region has fewer than two pixels.

    Args:
        kwargs: ``reduction`` and ``get_not_nans`` of :class:`monai.metrics.RMSEMetric`.
    """

    def _from_values(self, *values: torch.Tensor) -> torch.Tensor:
        inside, outside = values
        difference = (inside.mean() - outside.mean()).abs()
        noise = (inside.var(unbiased=False) + outside.var(unbiased=False)).sqrt()
        return torch.where(difference > 0, difference / noise, torch.zeros_like(difference))


class GeneralizedCNRMetric(_RegionMetric):
    """Generalized CNR: ``1 - `` the common area of the two gray-level histograms; 0 = inseparable, 1 = separable.

    Unlike CNR it cannot be raised by a change of the gray scale. The bins here hold equal shares of both regions, each
    of which counts as one half whatever its size. Their edges are pixel values, not interpolated, which makes this
    exact: every strictly increasing map of the image leaves the value unchanged. Rodriguez-Molares et al. 2020,
    https://doi.org/10.1109/TUFFC.2019.2956855. Number and kind of bins as advised by Schlunk and Byram, IEEE TUFFC 70,
    2023: too many bins for the region size pretend a contrast that is not there.

    Call with ``y_pred`` (B, C, *S) and ``y`` (B, 2, *S): masks of the region and of the background. Returns (B, C), NaN
    where a region has fewer than two pixels.

    Args:
        num_bins: number of bins, an odd one is raised by one; ``None`` takes ``ceil(2 * N ** 0.4)`` with ``N`` the
            pixels of the smaller region.
        kwargs: ``reduction`` and ``get_not_nans`` of :class:`monai.metrics.RMSEMetric`.

    Raises:
        ValueError: if ``num_bins`` is below 2.
    """

    def __init__(self, num_bins: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if num_bins is not None and num_bins < 2:
            raise ValueError(f"num_bins must be at least 2, or None to choose it from the region size, got {num_bins}.")
        self.num_bins = num_bins

    def _from_values(self, *values: torch.Tensor) -> torch.Tensor:
        bins = self.num_bins or math.ceil(2 * min(v.numel() for v in values) ** 0.4)
        bins += bins % 2  # so that regions without a common gray level have an edge between them
        pooled, order = torch.cat(values).sort()
        share = torch.cat([torch.full_like(v, 1 / v.numel()) for v in values])[order].cumsum(0)
        steps = 2 * torch.arange(1, bins, device=share.device) / bins + 0.5 / pooled.numel()  # half a pixel: rounding
        edges = pooled[torch.searchsorted(share, steps.to(share)).clamp(max=pooled.numel() - 1)].contiguous()
        shares = [torch.bincount(torch.bucketize(v, edges, right=True), minlength=bins) / v.numel() for v in values]
        return 1.0 - torch.minimum(shares[0], shares[1]).sum()


class SpeckleSNRMetric(_RegionMetric):
    """Mean over standard deviation of the echo amplitude in a homogeneous region: 1.91 for fully developed speckle.

    Compounding ``L`` looks raises it towards ``1.91 * sqrt(L)``, and so does every blur: read it as the distance from
    the texture you want, not as "higher is better". Wagner et al. 1983, https://doi.org/10.1109/T-SU.1983.31404.

    Call with ``y_pred`` (B, C, *S) and ``y`` (B, 1 or more, *S), whose first channel masks the region. Returns (B, C),
    NaN where the region has fewer than two pixels; a flat region gives infinity.

    Args:
        dynamic_range_db: display range that maps gray levels in [0, 1] to amplitude; ``None`` if they are amplitudes.
        kwargs: ``reduction`` and ``get_not_nans`` of :class:`monai.metrics.RMSEMetric`.

    Raises:
        ValueError: if ``dynamic_range_db`` is not positive.
    """

    regions = ("region of interest",)

    def __init__(self, dynamic_range_db: float | None = 60.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_dynamic_range(dynamic_range_db)
        self.dynamic_range_db = dynamic_range_db

    def _from_values(self, *values: torch.Tensor) -> torch.Tensor:
        envelope = to_envelope(values[0], self.dynamic_range_db)
        if envelope.amin() == envelope.amax():  # the rounding of the mean would pass for a tiny deviation
            return envelope.new_tensor(torch.inf)
        return envelope.mean() / envelope.std(unbiased=False)


class LocalNCCMetric(RegressionMetric):
    """Local normalized cross-correlation: Pearson's r of two images in every window that fits, averaged; in [-1, 1].

    Windows slide by one pixel and never reach over the border. Where both images are constant (black margins) there is
    nothing to correlate and the window does not count; where one of them is, r is 0: structure was lost or made up.
    Unlike :class:`monai.losses.LocalNormalizedCrossCorrelationLoss` the sign is kept (r, not r squared) and nothing is
    padded.

    Call with ``y_pred`` and ``y``, both (B, C, *S). Returns (B, C), NaN where every window is constant in both.

    Args:
        window: side of the cubic window, pixels.
        kwargs: ``reduction`` and ``get_not_nans`` of :class:`monai.metrics.RMSEMetric`.

    Raises:
        ValueError: if the window is below 2, or larger than an image.
    """

    def __init__(self, window: int = 9, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if window < 2:
            raise ValueError(f"window must be at least 2 pixels, got {window}.")
        self.window = window

    def _compute_metric(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        dims = y.ndim - 2
        if dims not in (1, 2, 3) or min(y.shape[2:]) < self.window:
            raise ValueError(f"images (B, C, *S) must be at least window={self.window} wide, got {tuple(y.shape)}.")
        mean = Pool[Pool.AVG, dims](self.window, 1)
        # float64 and a shared offset keep E[ab] - E[a]E[b] exact enough to recognize a constant window
        a, b = _finite(y_pred, "y_pred"), _finite(y, "y")
        spatial = tuple(range(2, y.ndim))
        flat = 1e-12 * torch.maximum(
            *(x.amax(spatial, keepdim=True) - x.amin(spatial, keepdim=True) for x in (a, b))
        ).square().clamp(min=1e-30)
        a, b = a - a.mean(spatial, keepdim=True), b - b.mean(spatial, keepdim=True)
        mean_a, mean_b = mean(a), mean(b)
        var_a, var_b = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2
        moves_a, moves_b = var_a > flat, var_b > flat
        r = (mean(a * b) - mean_a * mean_b) / (var_a * var_b).clamp(min=1e-60).sqrt()
        r = torch.where(moves_a & moves_b, r.clamp(-1, 1), torch.zeros_like(r))
        counted = (moves_a | moves_b).sum(spatial)
        return (r.sum(spatial) / counted).float()  # 0 / 0 = NaN: nothing to compare


class EnhancementQualityMetric(RegressionMetric):
    """Contrast, speckle and structure of an enhanced image against a reference, as one number in [0, 1].

    The geometric mean of three terms, each 1 for the reference itself:

    - contrast: ``min(gCNR / gCNR of the reference, 1)``; more contrast than the reference earns nothing;
    - speckle: ``min(q, 1 / q)`` with ``q`` the ratio of speckle SNRs in the background; smoothing drives ``q`` up,
      added noise drives it down;
    - structure: local NCC with the reference, negative values counted as 0.

    A blur buys contrast with speckle and structure, and their product falls; gCNR or speckle SNR alone lets it win.

    Call with ``y_pred`` (B, 1, *S) and ``y`` (B, 3, *S): reference image, mask of the region of interest, mask of the
    background (homogeneous tissue). Build ``y`` with MONAI's ``ConcatItemsd``. Returns (B, 1).

    Args:
        window: side of the window of :class:`LocalNCCMetric`, pixels.
        dynamic_range_db: as in :class:`SpeckleSNRMetric`.
        kwargs: ``reduction`` and ``get_not_nans`` of :class:`monai.metrics.RMSEMetric`.

    Raises:
        ValueError: if the shapes are not as above.
    """

    def __init__(self, window: int = 9, dynamic_range_db: float | None = 60.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.contrast = GeneralizedCNRMetric()
        self.speckle = SpeckleSNRMetric(dynamic_range_db)
        self.structure = LocalNCCMetric(window)

    def _check_shape(self, y_pred: torch.Tensor, y: torch.Tensor) -> None:
        if y_pred.ndim < 3 or y_pred.shape[1] != 1 or y.shape != (y_pred.shape[0], 3, *y_pred.shape[2:]):
            raise ValueError(
                "y_pred must be (B, 1, *S) and y (B, 3, *S) with reference, region and background, got "
                f"{tuple(y_pred.shape)} and {tuple(y.shape)}."
            )

    def _compute_metric(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        reference, regions, background = y[:, :1], y[:, 1:], y[:, 2:]
        # the parts are used as functions: they must not collect a buffer of their own
        contrast, contrast_reference = (self.contrast._compute_metric(x, regions) for x in (y_pred, reference))
        speckle, speckle_reference = (self.speckle._compute_metric(x, background) for x in (y_pred, reference))
        ratio = torch.where(speckle == speckle_reference, 1.0, speckle / speckle_reference)  # also of two flat ones
        terms = (
            torch.where(contrast == contrast_reference, 1.0, contrast / contrast_reference).clamp(max=1),  # also both 0
            torch.minimum(ratio, 1 / ratio),
            self.structure._compute_metric(y_pred, reference).clamp(min=0),
        )
        return torch.stack(terms).prod(dim=0) ** (1 / len(terms))


def _finite(image: torch.Tensor, name: str) -> torch.Tensor:
    """``image`` as float64 (speckle statistics and local variances lose digits in single precision)."""
    if not bool(torch.isfinite(image).all()):
        raise ValueError(f"{name} contains NaN or infinity; clean it first, e.g. with torch.nan_to_num.")
    return convert_to_tensor(image).double()
