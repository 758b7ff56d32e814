# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Joint pretraining of encoder and decoder: labels of many data sets, a teacher's tokens, texture, restored pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.nn as nn
from monai.losses import DiceCELoss

from monai_usfm.losses.reconstruction import SpatialFrequencyLoss
from monai_usfm.networks.heads.pyramid import ImageCorrection, PyramidHead, upsampling
from monai_usfm.networks.nets.distillation import FrozenTeacher, TokenDistillation
from monai_usfm.networks.nets.masked import Corruption
from monai_usfm.networks.nets.segmentation import UltrasoundSegmenter
from monai_usfm.networks.nets.texture import PatchTexture
from monai_usfm.networks.nets.vit import UltrasoundViT

__all__ = ["FoundationModel"]


class FoundationModel(nn.Module):
    """One encoder and one pyramid decoder, pretrained on labeled and unlabeled images at once.

    - Labeled images: segmentation, with an output layer for each data set on the shared decoder.
    - Unlabeled images: USFM's restoration of speckle-filled patches (half) and of missing frequencies, by encoder and
      decoder to the pixels.
    - All images: distillation of a frozen teacher's tokens into the encoder, and the texture of each patch.

    One pass through encoder and decoder serves all parts. A part whose weight is 0, or which has no images in a batch,
    costs nothing. Supervised multi-task pretraining of a shared decoder: Schaefer et al. 2024 (UMedPT),
    https://arxiv.org/abs/2311.09847; distillation: :class:`TokenDistillation`; texture: :class:`PatchTexture`;
    restoration: :class:`Corruption`.

    Args:
        network: the network that is pretrained and exported, with the head ``"pyramid"``. Its own output layer serves
            the first data set of ``num_classes``.
        num_classes: data set -> classes, background included; an image names its data set by the place in this order.
        teacher: encoder, or several, that all images are distilled from; None leaves distillation out.
        segmentation_weight, distillation_weight, restoration_weight, texture_weight: of the parts of the loss.
        restored_share: share of the unlabeled images that the network sees corrupted.
        teacher_scale: see :class:`FrozenTeacher`.
        frozen_blocks: blocks of the encoder that are not trained, from the embedding up, with all that stands before
            them: keeps what natural images taught a large encoder. The number of all blocks freezes the encoder.

    Raises:
        ValueError: for another head, no data set, or a first data set of other classes than the network.
    """

    partial = True  # the images of a part differ in number from batch to batch, and may be none

    def __init__(
        self,
        network: UltrasoundSegmenter,
        num_classes: Mapping[str, int],
        teacher: UltrasoundViT | Sequence[UltrasoundViT] | None = None,
        segmentation_weight: float = 1.0,
        distillation_weight: float = 1.0,
        restoration_weight: float = 0.2,
        restored_share: float = 0.5,
        teacher_scale: float = 1.0,
        frozen_blocks: int = 0,
        texture_weight: float = 0.0,
    ) -> None:
        super().__init__()
        if not isinstance(network.head, PyramidHead):
            raise ValueError('joint pretraining needs a network with head "pyramid".')
        if not num_classes or next(iter(num_classes.values())) != network.num_classes:
            raise ValueError(
                f"the first data set must have the {network.num_classes} classes of the network, got {num_classes}."
            )
        self.network = network
        self.datasets = list(num_classes)
        decoder, dims = network.head.decoder, network.encoder.spatial_dims
        self.outputs = nn.ModuleDict(
            {
                name: upsampling(dims, decoder.out_channels, number, decoder.strides[-1])
                for name, number in list(num_classes.items())[1:]
            }
        )
        for parameter in self.outputs.parameters():  # random ones are confident and wrong on features of a start
            nn.init.zeros_(parameter)
        # Dice by image: over the batch, a head of a fetus would outweigh every small lesion.
        self.segmentation_loss = DiceCELoss(to_onehot_y=True, softmax=True)
        self.weights = {
            "segmentation": segmentation_weight,
            "distillation": distillation_weight if teacher is not None else 0.0,
            "restoration": restoration_weight,
            "texture": texture_weight,
        }
        self.restored_share = restored_share
        if self.weights["restoration"] > 0:
            self.corruption = Corruption(network.patch_size, 0.5)
            network.to_image = ImageCorrection(decoder, network.encoder.in_channels)
            self.restoration_loss = SpatialFrequencyLoss()
        tokens = teacher is not None or texture_weight > 0
        if tokens:  # those of the last block, which the segmenter itself need not use
            network.encoder.blocks[max(network.indices) + 1 :].requires_grad_(True)
        for name, parameter in network.encoder.named_parameters() if frozen_blocks else ():
            block = name.split(".")[1] if name.startswith("blocks.") else "-1"
            if int(block) < frozen_blocks:
                parameter.requires_grad_(False)
        if tokens:
            network.encoder.norm.requires_grad_(True)
        if texture_weight > 0:
            self.patch_texture = PatchTexture(network.patch_size)
            self.texture = TokenDistillation(network.encoder.hidden_size, self.patch_texture.hidden_size)
        if teacher is not None:
            self.teacher = FrozenTeacher(teacher, teacher_scale)
            self.distillation = TokenDistillation(network.encoder.hidden_size, self.teacher.hidden_size)

    @property
    def encoder(self) -> UltrasoundViT:
        return self.network.encoder

    def forward(
        self, image: torch.Tensor, label: torch.Tensor | None = None, dataset: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """One step.

        Args:
            image: ``(B, C, *S)`` in [0, 1], ``S`` a multiple of the patch size.
            label: class indices ``(B, 1, *S)``; not looked at for unlabeled images.
            dataset: ``(B,)``, which data set's classes the label has, -1 for unlabeled images; None is -1 for all.

        Returns:
            ``loss``, and of the parts that the batch has ``segmentation``, ``distillation``, ``texture``,
            ``restoration`` (scalars), ``restored`` and ``corrupted`` (images of the restored part).
        """
        if dataset is None:
            dataset = torch.full((len(image),), -1, device=image.device)
        free = torch.nonzero(dataset < 0).flatten()
        seen, restored = image, free[:0]
        if self.weights["restoration"] > 0 and len(free):
            restored = free[torch.rand(len(free), device=image.device) < self.restored_share]
            if len(restored):
                corrupted, _, score = self.corruption(image[restored])
                seen = image.index_copy(0, restored, corrupted.to(image.dtype))
        encoder, grid = self.encoder, self.encoder.token_grid(image)
        tokens, maps = encoder.run(encoder.patch_embed(seen), grid, None, self.network.indices, encoder.num_layers - 1)
        parts: dict[str, torch.Tensor] = {}
        extra: dict[str, torch.Tensor] = {}
        if self.weights["distillation"] > 0 or self.weights["texture"] > 0:
            normed = encoder.norm(tokens)
            if self.weights["distillation"] > 0:
                parts["distillation"] = self.distillation(normed, self.teacher(image, grid))["loss"]
            if self.weights["texture"] > 0:
                parts["texture"] = self.texture(normed, self.patch_texture(image))["loss"]
        head = cast(PyramidHead, self.network.head)
        decoded = self.weights["segmentation"] > 0 or self.weights["restoration"] > 0
        features = head.dropout(head.decoder(seen, maps)) if decoded else tokens
        if label is not None and self.weights["segmentation"] > 0:
            losses = []
            for number, name in enumerate(self.datasets):
                rows = torch.nonzero(dataset == number).flatten()
                if len(rows):
                    to_pixels = self.outputs[name] if number else head.to_pixels
                    logits = to_pixels(features[rows]).float()
                    losses.append(len(rows) * self.segmentation_loss(logits, label[rows]))
            if losses:
                parts["segmentation"] = torch.stack(losses).sum() / (dataset >= 0).sum()
        if len(restored):
            with torch.autocast(image.device.type, enabled=False):
                clean = image[restored].float()
                found = self.network.to_image(features[restored].float(), corrupted)  # type: ignore[misc]
                parts["restoration"] = self.restoration_loss(found, clean, score)
            extra = {"restored": found.detach().clamp(0, 1), "corrupted": corrupted}
        # A batch without any part has a gradient too.
        loss = sum((self.weights[name] * value for name, value in parts.items()), 0.0 * features.float().sum())
        return {"loss": loss, **{name: value.detach() for name, value in parts.items()}, **extra}

    @torch.no_grad()
    def panels(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Images: the input, and what the first data set's output segments, as probability of any class."""
        logits = self.network(image)
        logits = logits[0] if isinstance(logits, Sequence) else logits
        return {"input": image.float(), "segmented": 1 - logits.float().softmax(1)[:, :1]}
