# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Loss of SegViT's attention-to-mask head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch.nn.modules.loss import _Loss

__all__ = ["ATMLoss"]

FOCAL_WEIGHT, NO_OBJECT_WEIGHT, ALPHA, GAMMA = 20.0, 0.1, 0.25, 2.0  # as configured by USFM


class ATMLoss(_Loss):
    """Classification and mask losses of :class:`monai_usfm.networks.heads.ATMHead`, with a fixed assignment.

    Query ``c`` stands for class ``c``. In an image where class ``c`` is present, query ``c`` should say "class c" and
    its mask should cover the pixels of that class; the queries of absent classes should say "no object", and their
    masks are free. Per stage the loss is::

        cross-entropy + 20 * focal + dice

    with the "no object" entries of the cross-entropy weighted by 0.1, the sigmoid focal loss (alpha 0.25, gamma 2)
    averaged over pixels, and ``1 - (2 <m, t> + 1) / (<m, 1> + <t, 1> + 1)`` for dice; focal and dice are summed over
    masks and divided by their number in the batch (at least 1). Stages add up. Zhang et al. 2022,
    https://arxiv.org/abs/2210.05844.

    Pixels labeled ``ignore_index`` enter no term (in the published code they count as background of every mask).

    Args:
        ignore_index: label of pixels to leave out.
    """

    def __init__(self, ignore_index: int = 255) -> None:
        super().__init__()
        self.ignore_index = ignore_index

    def forward(self, input: Sequence[torch.Tensor], target: torch.Tensor) -> torch.Tensor:
        """Scalar loss.

        Args:
            input: what the network returns in training: the prediction (not used), then class logits ``(B, K, K + 1)``
                and mask logits ``(B, K, *S)`` of each stage.
            target: class indices ``(B, 1, *S)``.

        Raises:
            ValueError: if ``input`` is not such a list, sizes differ, or a label is no class.
        """
        if isinstance(input, torch.Tensor) or len(input) < 3 or len(input) % 2 == 0:
            raise ValueError(
                'ATMLoss takes the list that UltrasoundSegmenter(head="segvit") returns in training mode, got '
                f"{type(input).__name__}: use DiceCELoss for other heads, and to validate in evaluation mode."
            )
        masks = input[2]
        if target.shape != (masks.shape[0], 1, *masks.shape[2:]):
            raise ValueError(
                f"target must be class indices of shape {(masks.shape[0], 1, *masks.shape[2:])}, "
                f"got {tuple(target.shape)}."
            )
        count = masks.shape[1]
        labels = target[:, 0].long()
        valid = labels != self.ignore_index
        kinds = torch.arange(count, device=labels.device).reshape(1, -1, *[1] * (labels.dim() - 1))
        truth = (labels.unsqueeze(1) == kinds).flatten(2)
        if not torch.equal(truth.any(1), valid.flatten(1)):
            found = sorted(set(labels[valid].unique().tolist()) - set(range(count)))
            raise ValueError(f"labels {found} are neither one of the {count} classes nor {self.ignore_index}.")
        present = truth.any(2)
        wanted = torch.where(present, kinds.reshape(1, -1), count)
        weight = input[1].new_ones(count + 1)
        weight[count] = NO_OBJECT_WEIGHT
        total = masks.new_zeros(())
        for classes, masks in zip(input[1::2], input[2::2], strict=True):
            total = total + F.cross_entropy(classes.transpose(1, 2), wanted, weight)
            total = total + self._mask_loss(masks.flatten(2), truth, present, valid.flatten(1))
        return total

    def _mask_loss(
        self, masks: torch.Tensor, truth: torch.Tensor, present: torch.Tensor, valid: torch.Tensor
    ) -> torch.Tensor:
        """Weighted focal and dice loss of mask logits ``(B, K, N)`` over the masks that are ``present`` (B, K)."""
        image = present.nonzero()[:, 0]
        logits, truth, valid = masks[present].float(), truth[present].float(), valid[image].float()
        entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
        p = logits.sigmoid()
        miss = p * (1 - truth) + (1 - p) * truth
        balance = ALPHA * truth + (1 - ALPHA) * (1 - truth)
        focal = (balance * entropy * miss**GAMMA * valid).sum(1) / valid.sum(1)
        p = p * valid
        dice = 1 - (2 * (p * truth).sum(1) + 1) / (p.sum(1) + truth.sum(1) + 1)
        return (FOCAL_WEIGHT * focal + dice).sum() / max(len(logits), 1)
