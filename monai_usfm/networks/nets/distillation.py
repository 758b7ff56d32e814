# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Pretraining by distillation: a student learns to predict the tokens of a frozen, larger encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from monai.networks.layers.factories import Pool
from monai.utils import ensure_tuple

from monai_usfm.networks.nets.vit import UltrasoundViT

__all__ = ["DistillationModel", "FrozenTeacher", "TokenDistillation"]

CLASS_WEIGHT = 0.5  # of the class token's error beside that of the patches


class FrozenTeacher(nn.Module):
    """Tokens of a frozen encoder on the token grid of a student, whatever patch size, channels and axes the two have.

    Of several encoders the tokens are concatenated: the student learns from all at once. Ranzinger et al. 2024
    (AM-RADIO), https://arxiv.org/abs/2312.06709.

    Images are resized until the teacher's grid equals the student's: 192 pixels at patch size 16 become 168 at 14. Gray
    images are repeated to the teacher's channels. A 2D teacher sees the middle slice of every patch of a volume.

    The teacher is no part of the state dict: checkpoints do not store what never changes.

    Args:
        encoders: the teacher or teachers, weights loaded; they take images in [0, 1], so the normalization of
            natural-image weights must be folded into them (:func:`~monai_usfm.networks.load_pretrained`).
        scale: how many times as fine as the student's the grid of the teacher is; its tokens are averaged: small
            images for the student, larger ones for the teacher, which needs them.

    Raises:
        ValueError: for a scale below 1, or no encoder.
    """

    def __init__(self, encoders: UltrasoundViT | Sequence[UltrasoundViT], scale: float = 1.0) -> None:
        super().__init__()
        if scale < 1:
            raise ValueError(f"scale must be at least 1, got {scale}.")
        self.scale = scale
        # In a tuple: not registered, so not saved.
        self._encoders = tuple(encoder.requires_grad_(False).eval() for encoder in ensure_tuple(encoders))
        if not self._encoders:
            raise ValueError("there is no teacher to learn from: give --teacher FILE.")
        self.hidden_size = sum(encoder.hidden_size for encoder in self._encoders)

    def _apply(self, fn: Callable, *args: Any, **kwargs: Any) -> FrozenTeacher:
        for encoder in self._encoders:
            encoder._apply(fn, *args, **kwargs)
        return super()._apply(fn, *args, **kwargs)

    @torch.no_grad()
    def forward(self, image: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
        """``(B, C, *S)`` in [0, 1] and the student's token grid -> ``(B, 1 + prod(grid), E)``, class token first."""
        return torch.cat([self._tokens(encoder, image, grid) for encoder in self._encoders], dim=2)

    def _tokens(self, encoder: UltrasoundViT, image: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
        batch, volume = len(image), image.dim() - 2 > encoder.spatial_dims
        if volume:
            step = image.shape[2] // grid[0]
            image = image[:, :, step // 2 :: step][:, :, : grid[0]].transpose(1, 2).flatten(0, 1)
        wanted = tuple(grid)[-encoder.spatial_dims :]
        finer = tuple(round(self.scale * n) for n in wanted)
        size = [n * patch for n, patch in zip(finer, encoder.patch_size, strict=True)]
        mode = "bilinear" if encoder.spatial_dims == 2 else "trilinear"
        smaller = encoder.spatial_dims == 2 and size[0] < image.shape[2]
        image = F.interpolate(image.float(), size, mode=mode, align_corners=False, antialias=smaller)
        if image.shape[1] != encoder.in_channels:
            image = image.mean(1, keepdim=True).expand(-1, encoder.in_channels, *size)
        tokens = encoder(image)
        if finer != wanted:
            maps = Pool[Pool.ADAPTIVEAVG, encoder.spatial_dims](wanted)(
                tokens[:, 1:].float().transpose(1, 2).unflatten(2, finer)
            )
            tokens = torch.cat([tokens[:, :1].float(), maps.flatten(2).transpose(1, 2)], dim=1)
        if volume:  # slices of one volume: their class tokens are averaged, their patches follow each other
            tokens = tokens.unflatten(0, (batch, -1))
            tokens = torch.cat([tokens[:, :, 0].mean(1, keepdim=True), tokens[:, :, 1:].flatten(1, 2)], dim=1)
        return tokens.float()


class TokenDistillation(nn.Module):
    """Squared error between a linear map of the student's tokens and the teacher's, each channel at unit variance.

    Channels of a large vision transformer differ in scale by orders of magnitude, and a few would rule the loss. The
    statistics are running means over all that training has seen, so that small batches do. Patch tokens and the class
    token have a map and statistics each. Heinrich et al. 2024 (PHI-S), https://arxiv.org/abs/2410.01680.

    Args:
        student_size, teacher_size: their token widths.
    """

    def __init__(self, student_size: int, teacher_size: int) -> None:
        super().__init__()
        self.to_patches = nn.Linear(student_size, teacher_size)
        self.to_class = nn.Linear(student_size, teacher_size)
        self.patch_statistics = nn.BatchNorm1d(teacher_size, affine=False, momentum=None)
        self.class_statistics = nn.BatchNorm1d(teacher_size, affine=False, momentum=None)

    def targets(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Standardized class tokens ``(B, E)`` and patch tokens ``(B, N, E)``; in training the statistics grow."""
        with torch.no_grad(), torch.autocast(tokens.device.type, enabled=False):
            result = []
            for x, norm in ((tokens[:, 0], self.class_statistics), (tokens[:, 1:], self.patch_statistics)):
                flat = x.float().flatten(0, -2)
                if self.training and len(flat) > 1:
                    norm(flat)
                result.append(F.batch_norm(flat, norm.running_mean, norm.running_var).view_as(x))
        return result[0], result[1]

    def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> dict[str, torch.Tensor]:
        """``(B, 1 + N, Es)`` and ``(B, 1 + N, Et)`` -> scalars ``loss``, ``patch_loss``, ``class_loss``."""
        class_target, patch_target = self.targets(teacher)
        class_loss = (self.to_class(student[:, 0]).float() - class_target).square().mean()
        patch_loss = (self.to_patches(student[:, 1:]).float() - patch_target).square().mean()
        return {"loss": patch_loss + CLASS_WEIGHT * class_loss, "patch_loss": patch_loss, "class_loss": class_loss}


class DistillationModel(nn.Module):
    """A student that learns the tokens of a frozen teacher on unlabeled images, in 2D and 3D.

    The targets are the teacher's patch tokens and class token after its final norm (or those of an intermediate block,
    if it was built with fewer blocks). With ``mask_ratio`` the student sees part of the patches replaced by a learned
    token, the teacher all. Ren et al. 2023 (TinyMIM), https://arxiv.org/abs/2301.01296.

    Args:
        encoder, teacher: the student and its teacher or teachers.
        mask_ratio: share of patches hidden from the student.
        teacher_scale: see :class:`FrozenTeacher`.

    Raises:
        ValueError: for a ``mask_ratio`` outside [0, 1).
    """

    def __init__(
        self,
        encoder: UltrasoundViT,
        teacher: UltrasoundViT | Sequence[UltrasoundViT],
        mask_ratio: float = 0.0,
        teacher_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 <= mask_ratio < 1:
            raise ValueError(f"mask_ratio must be in [0, 1), got {mask_ratio}.")
        self.encoder = encoder
        self.teacher = FrozenTeacher(teacher, teacher_scale)
        self.mask_ratio = mask_ratio
        self.mask_token = nn.Parameter(torch.zeros(1, 1, encoder.hidden_size)) if mask_ratio else None
        self.distillation = TokenDistillation(encoder.hidden_size, self.teacher.hidden_size)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """``(B, C, *S)`` in [0, 1] -> ``loss``, ``patch_loss``, ``class_loss`` (scalars)."""
        grid = self.encoder.token_grid(image)
        tokens = self.encoder.patch_embed(image)
        if self.mask_token is not None:
            hidden = torch.rand(tokens.shape[:2], device=tokens.device).unsqueeze(-1) < self.mask_ratio
            tokens = torch.where(hidden, self.mask_token.to(tokens.dtype), tokens)
        return self.distillation(self.encoder.encode(tokens, grid), self.teacher(image, grid))

    @torch.no_grad()
    def panels(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Images: the input, and how alike the student's and the teacher's patch are (0 opposed, 1 equal)."""
        grid = self.encoder.token_grid(image)
        _, target = self.distillation.targets(self.teacher(image, grid))
        found = self.distillation.to_patches(self.encoder(image)[:, 1:])
        alike = (1 + F.cosine_similarity(found.float(), target, dim=-1)).reshape(len(image), 1, *grid) / 2
        return {"input": image.float(), "agreement": F.interpolate(alike, image.shape[2:])}
