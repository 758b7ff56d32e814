# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""The controls of the scanner and the loss in tissue: gain, time-gain compensation, attenuation, dynamic range.

Each effect is a function with explicit parameters, a random array transform that draws them and its dictionary form.
What they share (decibels, beams, field of view) is described in :mod:`monai_usfm.transforms.effect`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from monai_usfm.physics.beam import BeamGeometry, beam_coordinates
from monai_usfm.physics.display import check_dynamic_range, require_log_compressed
from monai_usfm.transforms.dictionary import dictionary_form
from monai_usfm.transforms.effect import RandEffect, RandEffectForm, Range, blend, check_image

__all__ = [
    "RandDepthAttenuation",
    "RandDepthAttenuationd",
    "RandDynamicRange",
    "RandDynamicRanged",
    "RandGain",
    "RandGaind",
    "RandTimeGain",
    "RandTimeGaind",
    "apply_gain",
    "attenuate",
    "recompress",
    "time_gain",
]


def apply_gain(
    img: torch.Tensor,
    gain_db: float | torch.Tensor,
    dynamic_range_db: float | None = 60.0,
    fov: torch.Tensor | None = None,
    geometry: BeamGeometry | None = None,
) -> torch.Tensor:
    """Amplify the echoes by ``gain_db`` decibels: one number, or a tensor that broadcasts to ``(C, *S)``.

    Log-compressed: ``v + gain_db / dynamic_range_db``. Linear: ``v * 10 ** (gain_db / 20)``. Clamped to [0, 1]. What
    was black is taken to lie exactly at the lower end of the display range.

    Args:
        img: ``(C, *S)`` in [0, 1].
        gain_db: amplification in dB, negative for a loss.
        dynamic_range_db: display range in dB of a log-compressed image, ``None`` for a linear one.
        fov: field of view ``(1, *S)``; pixels outside are left as they are.
        geometry: beams of the image, used for the field of view if ``fov`` is not given.

    Returns:
        A new tensor like ``img``.

    Raises:
        ValueError: for NaN, values outside [0, 1], a wrong number of axes, or a display range that is not positive.
    """
    image = check_image(img)
    check_dynamic_range(dynamic_range_db)
    if dynamic_range_db is None:
        out = image * 10 ** (torch.as_tensor(gain_db, dtype=image.dtype, device=image.device) / 20)
    else:
        out = image + torch.as_tensor(gain_db, dtype=image.dtype, device=image.device) / dynamic_range_db
    return blend(img, image, out, fov, geometry)


def attenuate(
    img: torch.Tensor,
    loss_db: float,
    dynamic_range_db: float | None = 60.0,
    fov: torch.Tensor | None = None,
    geometry: BeamGeometry | None = None,
) -> torch.Tensor:
    """Lose ``loss_db`` decibels along each beam, linearly from 0 at the probe face to all of it at full depth.

    Tissue of ``a`` dB/cm/MHz takes ``2 * a * frequency * depth`` (there and back; 0.5 to 0.7 dB/cm/MHz in soft tissue);
    a scanner makes up for it by TGC, so a realistic ``loss_db`` is the part left over. Other arguments as in
    :func:`apply_gain`.
    """
    depth = beam_coordinates(img, geometry)[-2]
    return apply_gain(img, -float(loss_db) * depth.clamp(0, 1), dynamic_range_db, fov, geometry)


def time_gain(
    img: torch.Tensor,
    gains_db: Sequence[float],
    dynamic_range_db: float | None = 60.0,
    fov: torch.Tensor | None = None,
    geometry: BeamGeometry | None = None,
) -> torch.Tensor:
    """Time-gain compensation: gains of equally spaced depths, linear in dB between them, like the sliders of a scanner.

    ``time_gain(attenuate(x, 12), (0, 12))`` gives ``x`` back wherever nothing was clamped. The first gain acts at the
    probe face, the last at full depth. Other arguments: :func:`apply_gain`.
    """
    gains = [float(g) for g in gains_db]
    if not gains or not all(math.isfinite(g) for g in gains):
        raise ValueError(f"gains_db must be one or more finite numbers, got {gains_db}.")
    depth = beam_coordinates(img, geometry)[-2].clamp(0, 1) * (len(gains) - 1)
    table = depth.new_tensor(gains + gains[-1:])
    below = depth.floor().long()
    share = depth - below
    return apply_gain(img, torch.lerp(table[below], table[below + 1], share), dynamic_range_db, fov, geometry)


def recompress(
    img: torch.Tensor,
    dynamic_range_db: float,
    target_db: float,
    fov: torch.Tensor | None = None,
    geometry: BeamGeometry | None = None,
) -> torch.Tensor:
    """Show an image compressed to ``dynamic_range_db`` at a display range of ``target_db``; white stays white.

    ``v -> 1 + (v - 1) * dynamic_range_db / target_db``, clamped at black: a smaller range is harder and blacker, a
    larger one grayer. What lay below the old range is not known and becomes a flat gray. Other arguments as in
    :func:`apply_gain`.
    """
    image = check_image(img)
    for value in (dynamic_range_db, target_db):
        require_log_compressed(value)
    out = 1 + (image - 1) * (dynamic_range_db / target_db)
    return blend(img, image, out, fov, geometry)


class RandGain(RandEffect):
    """Turn the overall gain by a random number of decibels; see :func:`apply_gain`.

    Args:
        gain_db: range of the gain, dB; one number ``g`` stands for ``(-g, g)``.
        prob, dynamic_range_db: see :class:`~monai_usfm.transforms.effect.RandEffect`.
    """

    effect, symmetric = staticmethod(apply_gain), ("gain_db",)

    def __init__(
        self, prob: float = 0.1, gain_db: float | Range = (-10.0, 10.0), dynamic_range_db: float | None = 60.0
    ) -> None:
        super().__init__(prob, dynamic_range_db, gain_db=gain_db)


class RandDepthAttenuation(RandEffect):
    """Let the image darken with depth by a random amount; see :func:`attenuate`.

    Brightness loss along the radial direction as augmentation: Østvik et al. 2021,
    https://doi.org/10.1109/TMI.2021.3054566.

    Args:
        loss_db: range of the two-way loss from the face to full depth, dB. Negative values brighten.
        prob, dynamic_range_db: see :class:`~monai_usfm.transforms.effect.RandEffect`.
    """

    effect = staticmethod(attenuate)

    def __init__(
        self, prob: float = 0.1, loss_db: float | Range = (3.0, 15.0), dynamic_range_db: float | None = 60.0
    ) -> None:
        super().__init__(prob, dynamic_range_db, loss_db=loss_db)


class RandTimeGain(RandEffect):
    """Set the TGC sliders at random; see :func:`time_gain`.

    Singla et al. 2022, https://openreview.net/forum?id=wgXiQkBryK, use TGC as augmentation for kidney segmentation.

    Args:
        gain_db: range from which each slider is drawn, dB; one number ``g`` stands for ``(-g, g)``.
        sliders: number of sliders from face to full depth, at least 2; scanners have 6 to 10.
        prob, dynamic_range_db: see :class:`~monai_usfm.transforms.effect.RandEffect`.
    """

    effect, symmetric = staticmethod(time_gain), ("gain_db",)

    def __init__(
        self,
        prob: float = 0.1,
        gain_db: float | Range = (-6.0, 6.0),
        sliders: int = 8,
        dynamic_range_db: float | None = 60.0,
    ) -> None:
        super().__init__(prob, dynamic_range_db, gain_db=gain_db)
        if sliders < 2:
            raise ValueError(f"sliders must be at least 2, got {sliders}; for one gain use RandGain.")
        self.sliders = sliders

    def draw(self, img: torch.Tensor) -> dict[str, Any]:
        return {"gains_db": self.R.uniform(*self.ranges["gain_db"], size=self.sliders).tolist()}


class RandDynamicRange(RandEffect):
    """Show the image at a random dynamic range; see :func:`recompress`. Log-compressed images only.

    Args:
        prob: chance that an image is changed.
        target_db: range of the new display range, dB.
        dynamic_range_db: display range of the image as it is, dB.
    """

    effect, positive = staticmethod(recompress), ("target_db",)

    def __init__(
        self, prob: float = 0.1, target_db: float | Range = (45.0, 75.0), dynamic_range_db: float = 60.0
    ) -> None:
        require_log_compressed(dynamic_range_db)
        super().__init__(prob, dynamic_range_db, target_db=target_db)


RandGaind = dictionary_form(RandGain, RandEffectForm)
RandDepthAttenuationd = dictionary_form(RandDepthAttenuation, RandEffectForm)
RandTimeGaind = dictionary_form(RandTimeGain, RandEffectForm)
RandDynamicRanged = dictionary_form(RandDynamicRange, RandEffectForm)
