# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""A table of image quality before and after enhancement, with a Gaussian blur beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from ignite.engine import Engine
from monai.handlers import from_engine
from monai.metrics import PSNRMetric, SSIMMetric
from monai.networks.layers import Pool
from monai.utils import convert_to_tensor
from scipy.optimize import bisect

from monai_usfm.handlers.records import stacked
from monai_usfm.handlers.report import EvaluationReport, moments
from monai_usfm.metrics import (
    CNRMetric,
    EnhancementQualityMetric,
    GeneralizedCNRMetric,
    LocalNCCMetric,
    SpeckleSNRMetric,
)
from monai_usfm.transforms.noise_recovery import gaussian_blur

__all__ = [
    "EnhancementReport",
    "best_blur",
    "enhancement_panels",
    "first_channels",
    "matched_blur",
    "near_signal",
    "score_enhancement",
    "surrounding_region",
]

METHODS = ("input", "enhanced", "matched_blur", "best_blur")
BLURS = METHODS[2:]
SCORES = ("psnr", "ssim", "lncc", "cnr", "gcnr", "speckle_snr", "quality")
BETTER_WHEN_HIGHER = ("psnr", "ssim", "lncc", "quality")  # the others rise with blur, and decide nothing alone
_WIDEST_BLUR = 16.0  # samples
_BLURS_TRIED = tuple(0.3 * 1.25**step for step in range(13))  # 0.3 to 4.4 samples


def matched_blur(image: torch.Tensor, enhanced: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Gaussian blur of ``image`` that changes it as much as an enhancement did, in root mean square.

    Args:
        image: ``(B, C, *S)`` before enhancement.
        enhanced: after it, of the same shape.

    Returns:
        The blurred image and the standard deviation in samples, to within 0.02; 16 where no blur changes it enough.
    """
    wanted = (enhanced - image).square().mean()

    def excess(sigma: float) -> float:  # the change grows with the width
        return float((gaussian_blur(image, sigma) - image).square().mean() - wanted)

    sigma = _WIDEST_BLUR if excess(_WIDEST_BLUR) < 0 else float(bisect(excess, 0.0, _WIDEST_BLUR, xtol=0.01))
    return gaussian_blur(image, sigma), sigma


def best_blur(image: torch.Tensor, reference: torch.Tensor) -> tuple[torch.Tensor, float]:
    """The Gaussian blur of ``image`` that comes nearest to the reference, in root mean square: what smoothing can do.

    Args:
        image: ``(B, C, *S)`` before enhancement.
        reference: of the same shape.

    Returns:
        The blurred image and the standard deviation in samples, out of 13 between 0.3 and 4.4.
    """
    blurred = [(gaussian_blur(image, sigma), sigma) for sigma in _BLURS_TRIED]
    return min(blurred, key=lambda pair: (pair[0] - reference).square().mean().item())


def surrounding_region(region: torch.Tensor, image: torch.Tensor, gap: int = 2, width: int = 10) -> torch.Tensor:
    """Ring around a region, inside what the image shows: the background where none was marked.

    Args:
        region: mask ``(B, 1, *S)``.
        image: ``(B, C, *S)``; its black pixels do not count.
        gap: samples left out next to the region, where its border may be uncertain.
        width: of the ring, samples.

    Returns:
        Boolean mask ``(B, 1, *S)``.
    """
    pool, mask = Pool[Pool.MAX, region.dim() - 2], (region > 0).float()
    near, far = (pool(2 * reach + 1, 1, reach)(mask) > 0 for reach in (gap, gap + width))
    return far & ~near & (image[:, :1] > 0)


def score_enhancement(
    image: torch.Tensor,
    reference: torch.Tensor,
    region: torch.Tensor | None = None,
    background: torch.Tensor | None = None,
    window: int = 9,
    dynamic_range_db: float = 60.0,
) -> dict[str, float]:
    """Image quality of one image against its reference.

    Args:
        image: ``(1, *S)`` in [0, 1].
        reference: of the same shape.
        region: mask ``(1, *S)`` of a structure; contrast and speckle are not measured (NaN) without it.
        background: mask of homogeneous tissue; None takes a ring around the region.
        window: side of the window of the local cross-correlation; smaller where the image is.
        dynamic_range_db: decibels between black and white.

    Returns:
        ``psnr`` (dB; infinite for the reference itself), ``ssim``, ``lncc``, ``cnr``, ``gcnr``, ``speckle_snr`` (of the
        background) and ``quality`` (:class:`~monai_usfm.metrics.EnhancementQualityMetric`).
    """
    y_pred, y = image[None].float(), reference[None].float()
    odd = [n - 1 + n % 2 for n in image.shape[1:]]  # volumes may be thinner than the usual windows
    scores = {"psnr": PSNRMetric(max_val=1.0)(y_pred, y), **dict.fromkeys(SCORES[1:], math.nan)}
    if min(odd) > 1:  # in a line of pixels there is no structure to compare
        scores["ssim"] = SSIMMetric(image.dim() - 1, data_range=1.0, win_size=[min(11, n) for n in odd])(y_pred, y)
        scores["lncc"] = LocalNCCMetric(min(window, *odd))(y_pred, y)
    if region is not None and min(odd) > 1:
        inside = (region[None] > 0).to(y_pred)
        outside = surrounding_region(inside, y) if background is None else background[None] > 0
        masks = torch.cat([inside, outside.to(y_pred)], dim=1)
        scores["cnr"] = CNRMetric()(y_pred, masks)
        scores["gcnr"] = GeneralizedCNRMetric()(y_pred, masks)
        scores["speckle_snr"] = SpeckleSNRMetric(dynamic_range_db)(y_pred, masks[:, 1:])
        quality = EnhancementQualityMetric(min(window, *odd), dynamic_range_db)
        scores["quality"] = quality(y_pred, torch.cat([y, masks], dim=1))
    return {name: float(value) for name, value in scores.items()}


def enhancement_panels(output: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Before | after | change (gray = none, four times magnified) | target, for :func:`save_panels`.

    Args:
        output: decollated items with ``image``, ``pred`` and, where there is one, ``label``, all ``(C, *S)``; of items
            with different sizes only those like the first are shown.
    """
    keys = [key for key in ("image", "pred", "label") if key in output[0]]
    before, after, *target = (images[:, :1] for images in stacked(output, *keys))
    panels = {"before": before, "after": after, "change x4": 0.5 + 4 * (after - before)}
    return {**panels, "target": target[0]} if target else panels


def first_channels(output: Any) -> list[list[torch.Tensor]]:
    """``output_transform`` of metrics: first channel of predictions and targets; the others are copies of it."""
    return [[one[:1] for one in part] for part in from_engine(["pred", "label"])(output)]


def near_signal(image: torch.Tensor) -> torch.Tensor:
    """The field of view of ``(C, *S)``: what is not black, and gaps of up to 14 samples between its echoes.

    A morphological closing, so that nothing is added beyond the edge of the sector.
    """
    pool = Pool[Pool.MAX, image.dim() - 1](15, 1, 7)
    near = pool((convert_to_tensor(image)[:1] > 0).float()[None])
    return pool(1 - near)[0] == 0


class EnhancementReport(EvaluationReport):
    """Writes ``cases.csv`` (four rows per image) and ``summary.json`` after an evaluation.

    The rows are the input, the enhanced image, and the input after two Gaussian blurs: one that changes it as much as
    the enhancement did (:func:`matched_blur`), and the one that comes nearest to the target (:func:`best_blur`), which
    only an oracle can choose. CNR, gCNR and speckle SNR favor smoothing; ``blur_wins`` in the summary is the share of
    images for which one of the blurs beats the network, per score in which more is better, so that a network which only
    smooths is found out.

    Attach it to an evaluator that decollates and whose output has ``image``, ``label`` (the target) and ``pred``.
    Masks of a structure and of homogeneous background are read from ``roi`` and ``background`` of the batch, where its
    items have them; without a background, a ring around the structure is used.

    Args:
        output_dir: folder of the files.
        dynamic_range_db: decibels between black and white.
        window: side of the window of the local cross-correlation.
    """

    def __init__(self, output_dir: str, dynamic_range_db: float = 60.0, window: int = 9) -> None:
        super().__init__(output_dir)
        self.dynamic_range_db = dynamic_range_db
        self.window = window

    def collect(self, engine: Engine) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for source, item in zip(engine.state.batch, engine.state.output, strict=True):
            before, after, target = (convert_to_tensor(item[key])[:1].float() for key in ("image", "pred", "label"))
            roi, background = (
                convert_to_tensor(source[key]).to(before.device) if key in source else None
                for key in ("roi", "background")
            )
            blurs = matched_blur(before[None], after[None]), best_blur(before[None], target[None])
            case = self.case_of(source["image"], rows, len(METHODS))
            images = (before, after, *(blurred[0] for blurred, _ in blurs))
            sigmas = (0.0, 0.0, *(sigma for _, sigma in blurs))
            for method, image, sigma in zip(METHODS, images, sigmas, strict=True):
                scores = score_enhancement(image, target, roi, background, self.window, self.dynamic_range_db)
                rows.append({**case, "method": method, "blur_sigma": sigma, **scores})
        return rows

    def write(self, engine: Engine, rows: list[dict[str, Any]]) -> None:
        self.write_table("cases.csv", rows)
        tables = {method: pd.DataFrame(rows[k :: len(METHODS)]) for k, method in enumerate(METHODS)}
        summary: dict[str, Any] = {"cases": len(tables["input"])}
        for method, table in tables.items():
            columns = [*SCORES, *["blur_sigma"] * (method in BLURS)]
            summary[method] = {score: moments(table[score], "mean")["mean"] for score in columns}
        summary["blur_wins"] = {}
        for score in BETTER_WHEN_HIGHER:
            enhanced = tables["enhanced"][score]
            blur = np.maximum(*(tables[method][score] for method in BLURS))
            wins = (blur > enhanced)[blur.notna() & enhanced.notna()]
            summary["blur_wins"][score] = float(wins.mean()) if len(wins) else None
        self.write_summary(engine, summary)
        lost = [score for score, share in summary["blur_wins"].items() if share is not None and share > 0.5]
        if lost:
            engine.logger.warning(f"a Gaussian blur beats the network on most images in {', '.join(lost)}.")
