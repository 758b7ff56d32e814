# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Band-stop filtering as transforms: rings of the spectrum are removed; see :mod:`monai_usfm.physics.spectrum`."""

from __future__ import annotations

from typing import Any

import torch
from monai.config import NdarrayOrTensor
from monai.data import get_track_meta
from monai.transforms import RandomizableTransform, ThreadUnsafe, Transform
from monai.utils import convert_to_dst_type, convert_to_tensor

from monai_usfm.physics.spectrum import (
    Rings,
    apply_band_stop,
    check_center,
    check_ratio,
    check_rings,
    draw_rings,
    ring_candidates,
    ring_mask,
)
from monai_usfm.transforms.dictionary import TORCH, dictionary_form
from monai_usfm.transforms.effect import check_image

__all__ = ["FourierBandStop", "FourierBandStopd", "RandFourierBandStop", "RandFourierBandStopd"]


class FourierBandStop(ThreadUnsafe, Transform):
    """Remove rings of the spectrum of an image, the same ones every time.

    The mean of the image is kept, so are the sign and the scale. An image in [0, 1] may leave that range a little;
    transforms that ask for it, such as ``RandGain``, then need ``clip=True``. After a call, ``keep`` (1, *half) holds
    the factors that the half spectrum was multiplied by.

    Args:
        rings: ``(low, high)`` radii in fractions of the Nyquist frequency: ``low < r <= high`` is removed. Divide what
            :func:`usfm_rings` returns by half the image size.
        center_radius: ``r <= center_radius`` is kept whatever the rings say.
        clip: clamp the result to [0, 1], which brings back a little of the removed frequencies.

    Raises:
        ValueError: for a ring that is not ``0 <= low <= high``; when called, for an image that is empty, not finite or
            not ``(C, *S)`` with 1 to 3 spatial axes.
    """

    backend = TORCH

    def __init__(self, rings: Rings, center_radius: float = 0.0, clip: bool = False) -> None:
        check_center(center_radius)
        self.rings, self.center_radius, self.clip = check_rings(rings), center_radius, clip
        self.keep: torch.Tensor | None = None

    def __call__(self, img: NdarrayOrTensor) -> NdarrayOrTensor:
        """Apply to ``img`` (C, *S); integers become float32."""
        image: torch.Tensor = convert_to_tensor(img, track_meta=get_track_meta())
        plain = image.as_subclass(torch.Tensor)
        check_image(plain, None, fewest=1)
        shape, device = plain.shape[1:], plain.device
        self.keep = ring_mask(shape, self.rings, center_radius=self.center_radius, device=device)[None]
        if not self.rings:
            return image if plain.is_floating_point() else image.to(torch.float32)
        out = apply_band_stop(plain, self.keep[0])
        out = out.clamp(0, 1) if self.clip else out
        return convert_to_dst_type(out, image, dtype=out.dtype)[0]


class RandFourierBandStop(RandomizableTransform, FourierBandStop):
    """Randomly remove rings of the spectrum of an image: the frequency half of USFM's pretraining corruption.

    Of the candidate rings, ``floor(ratio * number)`` and at least one are removed, every subset being equally likely
    (:func:`draw_rings`). After a call, ``rings`` holds the removed ones and ``keep`` (1, *half) the factors that the
    half spectrum was multiplied by, all 1 when the image was left alone; a loss may use it.

    Args:
        prob: chance that an image is changed at all.
        num_rings: number of candidates, of equal width between ``center_radius`` and 1, the Nyquist frequency.
        stop_ratio: share of the candidates to remove, in (0, 1]; a pair ``(low, high)`` draws it uniformly.
        center_radius: radius of the disc that is always kept, in fractions of the Nyquist frequency.
        rings: candidates in place of the equal ones, disjoint ``(low, high)`` pairs.
        clip: clamp the result to [0, 1], which brings back a little of the removed frequencies.

    Raises:
        ValueError: for values out of range or rings that overlap; when called, as :class:`FourierBandStop`.
    """

    def __init__(
        self,
        prob: float = 0.1,
        num_rings: int = 8,
        stop_ratio: float | tuple[float, float] = 0.5,
        center_radius: float = 0.1,
        rings: Rings | None = None,
        clip: bool = False,
    ) -> None:
        RandomizableTransform.__init__(self, prob)
        FourierBandStop.__init__(self, (), center_radius, clip)
        check_ratio(stop_ratio)
        self.candidates = ring_candidates(rings, num_rings, center_radius)
        self.stop_ratio = stop_ratio

    def randomize(self, data: Any = None) -> None:
        """Draw whether to act, and which rings to remove."""
        super().randomize(None)
        self.rings = draw_rings(self.R, self.candidates, self.stop_ratio) if self._do_transform else []

    def __call__(self, img: NdarrayOrTensor, randomize: bool = True) -> NdarrayOrTensor:
        """Apply to ``img`` (C, *S); integers become float32. ``randomize=False`` repeats the last draw."""
        if randomize:
            self.randomize()
        return FourierBandStop.__call__(self, img)


FourierBandStopd = dictionary_form(FourierBandStop)
RandFourierBandStopd = dictionary_form(RandFourierBandStop)
