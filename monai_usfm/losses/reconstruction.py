# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Losses between an image and its reconstruction."""

from __future__ import annotations

import torch
import torch.nn as nn

__all__ = ["FocalFrequencyLoss", "MaskedReconstructionLoss", "SpatialFrequencyLoss"]


class MaskedReconstructionLoss(nn.Module):
    """Mean reconstruction error over what was hidden.

    Takes patches ``(B, N, P)`` with a mask ``(B, N)``, as MAE does, or images ``(B, C, *S)`` with a mask
    ``(B, 1, *S)``, as SimMIM does. The error is averaged over the masked entries only, so it does not depend on the
    mask ratio; an empty mask gives zero. He et al. 2022, https://arxiv.org/abs/2111.06377; Xie et al. 2022,
    https://arxiv.org/abs/2111.09886.

    Args:
        norm: ``"l1"`` or ``"l2"`` (squared).
        normalize_patches: compare with each target patch standardized by its own mean and (unbiased) variance; patches
            only.

    Raises:
        ValueError: for an unknown norm, for shapes that do not fit, or images with ``normalize_patches``.
    """

    def __init__(self, norm: str = "l1", normalize_patches: bool = False) -> None:
        super().__init__()
        if norm not in ("l1", "l2"):
            raise ValueError(f'norm must be "l1" or "l2", got {norm!r}.')
        self.norm = norm
        self.normalize_patches = normalize_patches

    def forward(self, prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Scalar loss; ``mask`` is 1 where the error counts, None counts everything."""
        if prediction.shape != target.shape:
            raise ValueError(f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} differ in shape.")
        prediction, target = prediction.float(), target.float()
        if self.normalize_patches:
            if target.dim() != 3:
                raise ValueError(f"normalize_patches needs patches (B, N, P), got shape {tuple(target.shape)}.")
            mean = target.mean(dim=-1, keepdim=True)
            variance = target.var(dim=-1, keepdim=True)
            target = (target - mean) / (variance + 1e-6).sqrt()
        difference = prediction - target
        error = difference.abs() if self.norm == "l1" else difference.square()
        if mask is None:
            return error.mean()
        if mask.dim() == 2 and error.dim() == 3:
            error = error.mean(dim=-1)
        elif mask.dim() == error.dim() and mask.shape[1] == 1:
            error = error.mean(dim=1, keepdim=True)
        if mask.shape != error.shape:
            raise ValueError(f"mask {tuple(mask.shape)} does not fit a prediction of shape {tuple(prediction.shape)}.")
        mask = mask.to(error.dtype)
        return (error * mask).sum() / mask.sum().clamp(min=1.0)


class FocalFrequencyLoss(nn.Module):
    """Focal frequency loss: squared spectral error, weighted towards the frequencies that are hardest.

    With the orthonormal DFT ``F`` over the spatial axes, ``d = |F(prediction) - F(target)|`` and the weight
    ``w = d ** alpha / max(d ** alpha)`` per image and channel (no gradient through it), the loss is
    ``mean(w * d ** 2)``. Works in 2D and 3D. Jiang et al. 2021, https://arxiv.org/abs/2012.12821.

    Args:
        alpha: focusing exponent; 0 gives the plain squared spectral error (equal to the squared error, by Parseval).

    Raises:
        ValueError: for a negative ``alpha`` or different shapes.
    """

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__()
        if alpha < 0:
            raise ValueError(f"alpha must not be negative, got {alpha}.")
        self.alpha = alpha

    def forward(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Scalar loss of two images ``(B, C, *S)``."""
        if prediction.shape != target.shape:
            raise ValueError(f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} differ in shape.")
        axes = tuple(range(2, prediction.dim()))
        # The DFT is linear, so one transform of the difference does. Real input: half of the spectrum holds everything.
        spectrum = torch.fft.rfftn((prediction - target).float(), dim=axes, norm="ortho")
        power = spectrum.real.square() + spectrum.imag.square()
        with torch.no_grad():
            weight = power ** (self.alpha / 2)
            weight = weight / weight.amax(dim=axes, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)
            # Columns with a mirror image in the other half count twice.
            size = prediction.shape[-1]
            twice = torch.full((power.shape[-1],), 2.0, device=power.device)
            twice[0] = 1.0
            if size % 2 == 0:
                twice[-1] = 1.0
            weight = weight * twice
        return (weight * power).sum() / prediction.numel()


class SpatialFrequencyLoss(nn.Module):
    """Weighted sum of :class:`MaskedReconstructionLoss` on hidden pixels and :class:`FocalFrequencyLoss` on whole
    images.

    The dual objective of USFM (Jiao et al. 2024, https://arxiv.org/abs/2401.00153), whose exact terms and weights were
    not published; the defaults are those of A2MIM (Li et al. 2023, https://arxiv.org/abs/2205.13943).

    Args:
        spatial_weight: weight of the pixel term.
        frequency_weight: weight of the frequency term; 0 skips its computation.
        norm: ``"l1"`` or ``"l2"`` of the pixel term.
        alpha: focusing exponent of the frequency term.
    """

    def __init__(
        self, spatial_weight: float = 1.0, frequency_weight: float = 0.1, norm: str = "l1", alpha: float = 1.0
    ) -> None:
        super().__init__()
        self.spatial_weight = spatial_weight
        self.frequency_weight = frequency_weight
        self.spatial = MaskedReconstructionLoss(norm)
        self.frequency = FocalFrequencyLoss(alpha)

    def forward(self, prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Scalar loss of images ``(B, C, *S)`` with a pixel mask ``(B, 1, *S)`` (1 = hidden; None = everything)."""
        loss = self.spatial_weight * self.spatial(prediction, target, mask)
        if self.frequency_weight > 0:
            loss = loss + self.frequency_weight * self.frequency(prediction, target)
        return loss
