# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Images that show nothing: crops without a structure for training, and masks that may be empty."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable, Resize, SpatialCrop
from monai.utils import convert_to_dst_type, ensure_tuple_rep

from monai_usfm.transforms.dictionary import TORCH

__all__ = ["PresenceThresholdd", "RandBackgroundCropd", "presence_score"]

SMALLEST = 0.3  # share of its axis that a part without a structure must have
SHARE = 0.005  # of the pixels: about the smallest lesion; a single pixel is too easily sure


def presence_score(logits: torch.Tensor) -> torch.Tensor:
    """How sure a segmentation is that an image shows any structure: ``(B, K, *S) -> (B,)``.

    The log-odds of foreground against background, as a mean over the 0.5 % of the pixels where they are highest. On
    lesions and lesion-free crops of BUS-BRA's validation images it separates better than the largest or the mean
    probability, the area or the sum.
    """
    odds = (logits[:, 1:].float().logsumexp(1) - logits[:, 0].float()).flatten(1)
    return odds.topk(max(1, round(SHARE * odds.shape[1])), dim=1).values.mean(1)


class PresenceThresholdd(MapTransform):
    """Logits ``(K, *S)`` become background everywhere if :func:`presence_score` is below a threshold.

    Args:
        keys: logits of a segmentation.
        threshold: ``presence_threshold`` of the card; None leaves all as it is.
        frames: the first axis of ``S`` counts frames, each of which is scored by itself.
        allow_missing_keys: see :class:`monai.transforms.MapTransform`.
    """

    backend = TORCH

    def __init__(
        self,
        keys: KeysCollection,
        threshold: float | None = None,
        frames: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.threshold, self.frames = threshold, frames

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        if self.threshold is None:
            return d
        for key in self.key_iterator(d):
            logits = d[key]
            judged = logits.movedim(1, 0) if self.frames else logits[None]
            empty = presence_score(torch.as_tensor(judged)) < self.threshold
            empty = empty.view(-1, *[1] * (logits.dim() - 2)) if self.frames else empty
            background = torch.cat([logits[:1], logits[:1].expand_as(logits[1:]) - 50.0])  # e^-50: no doubt is left
            d[key] = torch.where(empty, background, logits)
        return d


class RandBackgroundCropd(Randomizable, MapTransform):
    """With some probability, the part of an image above, below or beside all structures, at the size of the image.

    So a network learns from labeled data sets, where every image shows a lesion, that an image may show none. Of the
    up to four (in 3D six) parts one is drawn; where none has three tenths of its axis, the image stays.

    Args:
        keys: image and label, ``(C, *S)`` of one size.
        prob: of a crop.
        label_key: class indices, 0 is background.
        mode: of the resampling, one for all or one for each key; None is bilinear, of the label nearest.
        allow_missing_keys: see :class:`monai.transforms.MapTransform`.
    """

    backend = TORCH

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 0.1,
        label_key: str = "label",
        mode: Sequence[str] | str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.prob, self.label_key = prob, label_key
        modes = mode or ["nearest" if key == label_key else "bilinear" for key in self.keys]
        self.mode = ensure_tuple_rep(modes, len(self.keys))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        if self.R.random_sample() >= self.prob:
            return d
        label = d[self.label_key]
        places = torch.as_tensor(label[0]).nonzero()
        size = label.shape[1:]
        parts: list[tuple[int, slice]] = []
        for axis, length in enumerate(size if len(places) else ()):
            low, high = int(places[:, axis].min()), int(places[:, axis].max()) + 1
            parts += [(axis, slice(0, low))] if low >= SMALLEST * length else []
            parts += [(axis, slice(high, length))] if length - high >= SMALLEST * length else []
        if not parts:
            return d
        axis, part = parts[self.R.randint(len(parts))]
        window = [part if i == axis else slice(0, length) for i, length in enumerate(size)]
        for key, mode in self.key_iterator(d, self.mode):
            resized = Resize(size, mode=mode)(SpatialCrop(roi_slices=window)(d[key]))
            # Images out of a store are plain tensors, and a batch of both kinds cannot be collated.
            d[key] = convert_to_dst_type(resized, d[key])[0]
        return d
