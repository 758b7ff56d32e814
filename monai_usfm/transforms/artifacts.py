# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""What the body adds to the image along the beams: shadows, enhancement, reverberation, haze.

Each effect is a function with explicit parameters, a random array transform that draws them and its dictionary form.
What they share (decibels, beams, field of view) is described in :mod:`monai_usfm.transforms.effect`.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from monai_usfm.physics.beam import BeamGeometry, beam_coordinates, beams_of, cached_coordinates, sample_pixels
from monai_usfm.physics.display import check_dynamic_range, from_power, to_power
from monai_usfm.physics.speckle import speckle_intensity
from monai_usfm.transforms.acquisition import apply_gain
from monai_usfm.transforms.dictionary import dictionary_form
from monai_usfm.transforms.effect import RandEffect, RandEffectForm, Range, blend, check_image

__all__ = [
    "RandAcousticShadow",
    "RandAcousticShadowd",
    "RandHaze",
    "RandHazed",
    "RandReverberation",
    "RandReverberationd",
    "acoustic_shadow",
    "add_haze",
    "reverberate",
]


def acoustic_shadow(
    img: torch.Tensor,
    loss_db: float,
    start: float,
    center: float,
    width: float,
    elevation: Range | None = None,
    dynamic_range_db: float | None = 60.0,
    fov: torch.Tensor | None = None,
    geometry: BeamGeometry | None = None,
) -> torch.Tensor:
    """Weaken the echoes behind an absorber by ``loss_db``; a negative loss is the enhancement behind a cyst.

    The shadow runs along the beams from ``start`` to the end. Its flanks are soft (the beam is wider than a line) and
    it sets in over 8 % of the depth. No bright cap is painted: that would plant a finding. After the Gaussian shadows
    of Smistad et al. 2018, https://doi.org/10.1117/1.JMI.5.4.044004, bounded by a start depth and given in dB.

    Args:
        loss_db: loss in the middle of the shadow, dB.
        start: depth at which it begins, as a fraction of the beam; nothing above it changes.
        center, width: position and full width at half loss, as fractions of the lateral range of beams.
        elevation: the same pair ``(center, width)`` along the first axis of a volume; ``None`` shadows every slice.

    Other arguments: :func:`apply_gain`.
    """
    if not width > 0 or (elevation is not None and not elevation[1] > 0):
        raise ValueError(f"a shadow needs a positive width, got width={width}, elevation={elevation}.")
    *first, depth, lateral = beam_coordinates(img, geometry)
    profile = _smoothstep((depth - start) / 0.08) * _plateau(lateral, center, width)
    if elevation is not None:
        if not first:
            raise ValueError(f"elevation={elevation} needs a volume (C, D, H, W), got shape {tuple(img.shape)}.")
        profile = profile * _plateau(first[0], *elevation)
    return apply_gain(img, -float(loss_db) * profile, dynamic_range_db, fov, geometry)


def reverberate(
    img: torch.Tensor,
    spacing: float,
    loss_db: float,
    echoes: int = 3,
    dynamic_range_db: float | None = 60.0,
    fov: torch.Tensor | None = None,
    geometry: BeamGeometry | None = None,
) -> torch.Tensor:
    """Repeat what lies above a strong interface: sound that bounces between it and the probe arrives again, later.

    The layer from the face to ``spacing`` (and a little beyond, so that the interface itself is in it) is added again
    at ``spacing``, ``2 * spacing``, ..., each time ``loss_db`` weaker, as the horizontal A-lines of the lung. Echo
    powers add. Tirindelli et al. 2021, https://arxiv.org/abs/2105.02188, build reverberations into bone images
    likewise.

    Args:
        spacing: depth of the interface as a fraction of the beam, above 0 and at most 1.
        loss_db: loss of one round trip, dB.
        echoes: number of repetitions.

    Other arguments: :func:`apply_gain`.
    """
    if not 0 < spacing <= 1:
        raise ValueError(f"spacing must be in (0, 1], a fraction of the depth, got {spacing}.")
    image = check_image(img)
    check_dynamic_range(dynamic_range_db)
    beams = beams_of(image, geometry)
    coordinates = cached_coordinates(beams, tuple(image.shape[-beams.spatial_dims :]), image.device)
    depth = coordinates[..., -2]
    power = to_power(image, dynamic_range_db)
    total = power
    for echo in range(1, echoes + 1):
        earlier = depth - echo * spacing
        if not bool((earlier >= 0).any()):
            break
        source = coordinates.clone()
        source[..., -2] = earlier
        ghost = sample_pixels(power, beams.beam_to_pixel(source.double()), "bilinear")
        window = (earlier >= 0) * (1 - _smoothstep((earlier - spacing) / (0.15 * spacing)))
        total = total + ghost * window.to(ghost.dtype) * 10 ** (-echo * loss_db / 10)
    return blend(img, image, from_power(total, dynamic_range_db), fov, geometry)


def add_haze(
    img: torch.Tensor,
    level_db: float,
    center: float,
    extent: float,
    texture: torch.Tensor | None = None,
    dynamic_range_db: float | None = 60.0,
    fov: torch.Tensor | None = None,
    geometry: BeamGeometry | None = None,
) -> torch.Tensor:
    """Add the fog of multipath and off-axis clutter: a noise band around one depth, which fills dark structures most.

    Echo powers add: tissue brighter than the haze hardly changes. The band is Gaussian in depth (in power), as in
    Østvik et al. 2021, https://doi.org/10.1109/TMI.2021.3054566.

    Args:
        level_db: mean haze power in the middle of the band, dB relative to white, usually negative.
        center, extent: middle and standard deviation of the band, as fractions of the depth.
        texture: power of the haze, mean about 1, one value per pixel ``(1, *S)`` on the beam grid (see
            :func:`speckle_intensity`); ``None`` for an even veil.

    Other arguments: :func:`apply_gain`.
    """
    if not extent > 0:
        raise ValueError(f"extent must be positive, a fraction of the depth, got {extent}.")
    image = check_image(img)
    check_dynamic_range(dynamic_range_db)
    depth = beam_coordinates(image, geometry)[-2]
    haze = 10 ** (level_db / 10) * torch.exp(-0.5 * ((depth - center) / extent) ** 2)
    if texture is not None:
        texture = texture.to(image)
        if geometry is not None:  # from the beam grid to the image, where speckle bends into arcs
            dims = geometry.spatial_dims
            beam = cached_coordinates(geometry, tuple(image.shape[-dims:]), image.device)
            texture = sample_pixels(texture, beam * beam.new_tensor([n - 1 for n in image.shape[-dims:]]), "bilinear")
        haze = haze * texture
    return blend(img, image, from_power(to_power(image, dynamic_range_db) + haze, dynamic_range_db), fov, geometry)


def _add_speckled_haze(img: torch.Tensor, seed: int, **given: Any) -> torch.Tensor:
    """:func:`add_haze` with a texture of the image's own size."""
    generator = torch.Generator(img.device).manual_seed(seed)
    sigma = (1.0,) * (img.ndim - 3) + (1.0, 2.5)  # clutter is smeared across beams
    texture = speckle_intensity((1, *img.shape[1:]), psf_sigma=sigma, generator=generator, device=img.device)
    return add_haze(img, texture=texture, **given)


def _smoothstep(x: torch.Tensor) -> torch.Tensor:
    """0 below 0, 1 above 1, a smooth rise between."""
    x = x.clamp(0, 1)
    return x * x * (3 - 2 * x)


def _plateau(position: torch.Tensor, center: float, width: float) -> torch.Tensor:
    """1 in the middle, 1/2 at ``center +- width / 2``, with flanks as soft as a beam is wide."""
    flank = width / 4
    rise = torch.erf((position - center + width / 2) / flank) - torch.erf((position - center - width / 2) / flank)
    return rise / (2 * math.erf(2))


class RandAcousticShadow(RandEffect):
    """Cast one acoustic shadow at a random place; see :func:`acoustic_shadow`.

    In a volume the absorber has a random place and extent along the first axis too. Negative losses, such as
    ``loss_db=(-9.0, -3.0)``, make the posterior enhancement behind fluid.

    Args:
        loss_db: range of the loss, dB.
        start: range of the depth where the shadow begins, as fractions of the beam.
        width: range of the full width at half loss, as fractions of the lateral range.
        prob, dynamic_range_db: see :class:`~monai_usfm.transforms.effect.RandEffect`.
    """

    effect, positive = staticmethod(acoustic_shadow), ("width",)

    def __init__(
        self,
        prob: float = 0.1,
        loss_db: float | Range = (6.0, 20.0),
        start: float | Range = (0.0, 0.6),
        width: float | Range = (0.05, 0.25),
        dynamic_range_db: float | None = 60.0,
    ) -> None:
        super().__init__(prob, dynamic_range_db, loss_db=loss_db, start=start, center=(0.0, 1.0), width=width)

    def draw(self, img: torch.Tensor) -> dict[str, Any]:
        params = super().draw(img)
        if img.ndim == 4:
            params["elevation"] = (self.R.uniform(), 2 * self.R.uniform(*self.ranges["width"]))
        return params


class RandReverberation(RandEffect):
    """Add reverberations of a random spacing; see :func:`reverberate`.

    Args:
        spacing: range of the depth of the interface, as fractions of the beam.
        loss_db: range of the loss per round trip, dB.
        echoes: number of repetitions.
        prob, dynamic_range_db: see :class:`~monai_usfm.transforms.effect.RandEffect`.
    """

    effect, positive = staticmethod(reverberate), ("spacing",)

    def __init__(
        self,
        prob: float = 0.1,
        spacing: float | Range = (0.1, 0.3),
        loss_db: float | Range = (6.0, 15.0),
        echoes: int = 3,
        dynamic_range_db: float | None = 60.0,
    ) -> None:
        super().__init__(prob, dynamic_range_db, spacing=spacing, loss_db=loss_db)
        self.echoes = echoes

    def draw(self, img: torch.Tensor) -> dict[str, Any]:
        return super().draw(img) | {"echoes": self.echoes}


class RandHaze(RandEffect):
    """Add a speckled band of haze at a random depth; see :func:`add_haze`.

    Args:
        level_db: range of the mean haze power, dB relative to white.
        center: range of the depth of the band, as fractions of the beam.
        extent: range of its standard deviation, as fractions of the beam.
        prob, dynamic_range_db: see :class:`~monai_usfm.transforms.effect.RandEffect`.
    """

    effect, positive = staticmethod(_add_speckled_haze), ("extent",)

    def __init__(
        self,
        prob: float = 0.1,
        level_db: float | Range = (-52.0, -40.0),
        center: float | Range = (0.1, 0.6),
        extent: float | Range = (0.05, 0.25),
        dynamic_range_db: float | None = 60.0,
    ) -> None:
        super().__init__(prob, dynamic_range_db, level_db=level_db, center=center, extent=extent)

    def draw(self, img: torch.Tensor) -> dict[str, Any]:
        seed = int(self.R.randint(2**31))
        return super().draw(img) | {"seed": seed}


RandAcousticShadowd = dictionary_form(RandAcousticShadow, RandEffectForm)
RandReverberationd = dictionary_form(RandReverberation, RandEffectForm)
RandHazed = dictionary_form(RandHaze, RandEffectForm)
