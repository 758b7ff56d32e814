# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Encoder and segmentation head: a class for every pixel or voxel."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn as nn

from monai_usfm.networks.blocks.precision import in_float32
from monai_usfm.networks.heads.atm import ATMHead
from monai_usfm.networks.heads.pyramid import PyramidHead
from monai_usfm.networks.heads.upernet import UPerNetHead
from monai_usfm.networks.nets.task import TaskNetwork, crop_to, defaults_of, even_blocks, module_path, pad_to_patches
from monai_usfm.networks.nets.vit import UltrasoundViT

__all__ = ["UltrasoundSegmenter"]

HEADS: dict[str, Any] = {"pyramid": PyramidHead, "segvit": ATMHead, "upernet": UPerNetHead}
MAPS = {"pyramid": 4, "segvit": 3, "upernet": 4}


class UltrasoundSegmenter(TaskNetwork):
    """Segmentation of images and volumes: ``(B, C, *S) -> (B, num_classes, *S)`` for any size ``S``.

    In evaluation the output is one tensor: logits, or log-probabilities from ``"segvit"``; arg max and softmax mean the
    same for both. In training the heads with outputs for the loss alone return a list, as MONAI's ``SegResNetDS`` does,
    whose first entry is the prediction that evaluation would return:

    - ``"pyramid"``, ``"upernet"``: one tensor, for ``DiceCELoss`` and its like;
    - ``"upernet"`` with ``auxiliary=True``: ``[logits, auxiliary logits]``, for
      ``monai.losses.DeepSupervisionLoss(DiceCELoss(...), weights=[1.0, 0.4])``;
    - ``"segvit"``: ``[log-probabilities, class logits, mask logits, ...]``, for :class:`monai_usfm.losses.ATMLoss`.

    A ``SupervisedTrainer`` takes either loss as ``loss_function``; a training metric should look at ``pred[0]``.

    Args:
        num_classes: output channels, background included; 1 for a single class decided by a sigmoid.
        head: ``"pyramid"`` (light, full resolution; the choice for volumes), ``"upernet"`` or ``"segvit"`` (USFM's);
            or a module of your own: called with the image ``(B, C, *S)`` and a list of maps ``(B, E, *grid)`` by depth,
            it returns a list whose first entry is the prediction ``(B, num_classes, *S)``.
        indices: encoder blocks whose outputs the head takes, by depth. None takes, of 12 blocks, 2, 5, 8, 11
            (pyramid, own modules), 3, 5, 7, 11 (UPerNet) or 5, 7, 11 (SegViT), and those at the same relative depth of
            others.
        head_options: further keywords of :class:`PyramidHead`, :class:`UPerNetHead` or :class:`ATMHead`, such as
            ``width`` and ``dropout``.

    Raises:
        ValueError: for fewer than one class, an unknown head, options for a head that is built already, or blocks that
            the encoder does not have.
    """

    def __init__(
        self,
        encoder: UltrasoundViT,
        num_classes: int,
        head: str | nn.Module = "pyramid",
        indices: Sequence[int] | None = None,
        **head_options: Any,
    ) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}.")
        name = head if isinstance(head, str) else module_path(head)
        if isinstance(head, str) and head not in HEADS:
            raise ValueError(f"head must be one of {', '.join(HEADS)}, or a module, got {head!r}.")
        if head_options and name not in HEADS:
            raise ValueError(f"the head is a module already: {', '.join(head_options)} cannot be given too.")
        maps = MAPS.get(name, 4)
        chosen = _default_blocks(encoder.num_layers, name) if indices is None else [int(i) for i in indices]
        if not chosen or (name in ("upernet", "segvit") and len(chosen) != maps):
            raise ValueError(f"head {head!r} takes {maps} maps, got {len(chosen)} block indices: {chosen}.")
        super().__init__(encoder, chosen)
        self.indices = chosen
        self.num_classes = num_classes
        self.head_name = name
        self.head_options = head_options
        # joint pretraining adds an output that restores pixels
        self.to_image: nn.Module | None = None
        size, patch = encoder.hidden_size, encoder.patch_size
        if isinstance(head, nn.Module):
            self.head = head
        elif head == "pyramid":
            self.head = PyramidHead(size, num_classes, encoder.in_channels, patch, len(chosen), **head_options)
        else:
            self.head = HEADS[head](size, num_classes, patch, **head_options)

    def options(self) -> dict[str, Any]:
        """What beside the encoder builds this network, defaults included."""
        chosen = {"num_classes": self.num_classes, "head": self.head_name, "indices": self.indices}
        return chosen | (defaults_of(type(self.head)) if self.head_name in HEADS else {}) | self.head_options

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """``(B, C, *S) -> (B, num_classes, *S)``; a list in training where the head has more to say, see above."""
        image = pad_to_patches(x, self.patch_size)
        maps = self.encoder.forward_intermediates(image, self.indices)
        # the pyramid knows its own precision
        outputs = self.head(image, maps) if self.head_name == "pyramid" else self._exact_outputs(image, maps)
        cropped: list[torch.Tensor] = []
        for output in outputs:
            # Class logits of SegViT have no spatial axes.
            cropped.append(crop_to(output, list(x.shape[2:])) if output.dim() == x.dim() else output)
        if len(cropped) > 1:
            return cropped
        return cropped[0]

    @in_float32
    def _exact_outputs(self, image: torch.Tensor, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        return self.head(image, maps)


def _default_blocks(num_layers: int, head: str) -> list[int]:
    """Blocks of the published configurations, at the same relative depth in networks of another depth."""
    if head not in ("segvit", "upernet") or num_layers < 5:
        return even_blocks(num_layers, MAPS.get(head, 4))
    middle = [num_layers // 2 - 1, 2 * num_layers // 3 - 1, num_layers - 1]
    return middle if head == "segvit" else [num_layers // 3 - 1, *middle]
