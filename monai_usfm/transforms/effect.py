# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""How an ultrasound effect is applied: along the beams, inside the field of view, drawn once for all keys.

Grey levels are decibels: an image in [0, 1] that was log-compressed with ``dynamic_range_db`` shows
``(v - 1) * dynamic_range_db`` dB below white; with ``dynamic_range_db=None`` it is a linear echo amplitude. Results are
clamped to [0, 1], so what reaches white or black stays there, as on the display.

Effects follow the beams of a :class:`BeamGeometry`. Without one, beams are the image columns from the first row to the
last, i.e. a linear probe. They act inside the field of view only (:func:`acting_region`); the rest of the picture is
returned as it was. In volumes (C, D, H, W) a 2D geometry serves every slice.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor, get_track_meta
from monai.transforms import MapTransform, RandGaussianNoise, Randomizable, RandomizableTransform
from monai.utils import convert_to_dst_type, convert_to_tensor

from monai_usfm.transforms.beam import BeamGeometry

__all__ = ["RandEffect", "RandEffectd"]

Range = tuple[float, float]


def acting_region(
    img: torch.Tensor, fov: torch.Tensor | None = None, geometry: BeamGeometry | None = None
) -> torch.Tensor:
    """Where an effect acts: bool ``(1, *S)``.

    That is ``fov`` if given; else the beams of ``geometry``; else the pixels that have, along every axis, something
    brighter than black on both sides (or are bright themselves). The last is cheap and exact for clean sectors; where
    text or compression noise surrounds the scan, give the mask of :class:`~monai_usfm.transforms.FieldOfView`.

    Args:
        img: image ``(C, *S)``.
        fov: known field of view, ``(1, *S)``, positive inside.
        geometry: beams of the image.

    Raises:
        ValueError: if ``fov`` has another spatial size.
    """
    shape = img.shape[1:]
    if fov is not None:
        mask = torch.as_tensor(fov, device=img.device).as_subclass(torch.Tensor) > 0
        if mask.shape != (1, *shape):
            raise ValueError(f"the field of view must be (1, *{tuple(shape)}), got {tuple(mask.shape)}.")
        return mask
    if geometry is not None:
        return geometry.mask(shape[-geometry.spatial_dims :], img.device).expand(1, *shape)
    bright = (img.as_subclass(torch.Tensor) > 0).any(dim=0, keepdim=True)
    inside = torch.ones_like(bright)
    for axis in range(1, bright.ndim):
        before = bright.cumsum(axis) > 0
        after = bright.flip(axis).cumsum(axis).flip(axis) > 0
        inside &= before & after
    return inside


def beams_of(img: torch.Tensor, geometry: BeamGeometry | None) -> BeamGeometry:
    """``geometry``, checked against the image ``(C, *S)``, or its columns as the beams of a linear probe."""
    if geometry is None:
        height, width = (max(n - 1, 1) for n in img.shape[-2:])
        return BeamGeometry("linear", apex=(0, 0), radii=(0, height), width=(0, width))
    if geometry.spatial_dims > img.ndim - 1:
        raise ValueError(f"a {geometry.kind} geometry needs a volume (C, D, H, W), got shape {tuple(img.shape)}.")
    return geometry


def beam_coordinates(img: torch.Tensor, geometry: BeamGeometry | None) -> list[torch.Tensor]:
    """Coordinates along (elevation,) depth and lateral of every pixel, 0 to 1 inside the beams, broadcastable to S.

    The first axis of a volume that a 2D geometry serves counts as elevation.
    """
    beams = beams_of(img, geometry)
    plane = list(beam_grid(beams, tuple(img.shape[-beams.spatial_dims :]), img.device).unbind(-1))
    if len(plane) == img.ndim - 1:
        return plane
    return [torch.linspace(0, 1, img.shape[1], device=img.device).reshape(-1, 1, 1), *plane]


@lru_cache(maxsize=4)
def beam_grid(beams: BeamGeometry, spatial_shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Beam coordinates of every pixel, ``(*S, 2 or 3)``; kept for the next images of this geometry, do not edit."""
    return beams.cartesian_to_beam(spatial_shape, device=device)


def sample_pixels(img: torch.Tensor, pixel: torch.Tensor, mode: str = "bilinear") -> torch.Tensor:
    """Values of ``img`` (C, *S) at fractional pixel positions ``(*T, 2 or 3)`` in axis order.

    Pixels are squares: the outer half of a border pixel has its value, and beyond it is 0. Positions in the plane
    sample every slice of a volume.
    """
    dims = pixel.shape[-1]
    size = img.shape[-dims:]
    count = pixel.new_tensor(size)
    grid = ((pixel + 0.5) / count * 2 - 1).flip(-1)[None].to(img.dtype)
    batch = img.reshape(1, -1, *size)  # slices, like channels, share the positions
    out = F.grid_sample(batch, grid, mode=mode, padding_mode="border", align_corners=False)
    out = out.reshape(*img.shape[: img.ndim - dims], *pixel.shape[:-1])
    return torch.where(((pixel >= -0.5) & (pixel <= count - 0.5)).all(-1), out, 0)


def checked(img: torch.Tensor) -> torch.Tensor:
    """``img`` as a plain floating tensor, or one error that says what is wrong with it."""
    if img.ndim not in (3, 4) or 0 in img.shape:
        raise ValueError(f"an image must be (C, H, W) or (C, D, H, W) and not empty, got shape {tuple(img.shape)}.")
    image = img.as_subclass(torch.Tensor)
    if not image.is_floating_point() or image.dtype in (torch.float16, torch.bfloat16):
        image = image.float()
    low, high = (float(v) for v in torch.aminmax(image))
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # also catches NaN
        found = "NaN" if low != low else f"values from {low:g} to {high:g}"
        raise ValueError(f"an image must be in [0, 1], got {found}; scale it first, e.g. with ScaleIntensityRange.")
    return image


def blend(
    img: torch.Tensor,
    image: torch.Tensor,
    out: torch.Tensor,
    fov: torch.Tensor | None,
    geometry: BeamGeometry | None,
) -> torch.Tensor:
    """``out`` clamped to [0, 1] inside the field of view, ``image`` outside, with the type and metadata of ``img``."""
    inside = acting_region(image, fov, geometry)
    result = torch.where(inside, out.clamp(0, 1).to(image.dtype), image)
    dtype = img.dtype if img.is_floating_point() else result.dtype
    return convert_to_dst_type(result, img, dtype=dtype)[0]


def to_power(image: torch.Tensor, dynamic_range_db: float | None) -> torch.Tensor:
    """Echo power, 1 for white and 0 for black: no echo above the floor is seen there, and two such stay black."""
    if dynamic_range_db is None:
        return image**2
    return 10 ** ((image - 1) * dynamic_range_db / 10) - 10 ** (-dynamic_range_db / 10)


def from_power(power: torch.Tensor, dynamic_range_db: float | None) -> torch.Tensor:
    """Inverse of :func:`to_power`."""
    if dynamic_range_db is None:
        return power.clamp(min=0).sqrt()
    return 1 + 10 * torch.log10(power.clamp(min=0) + 10 ** (-dynamic_range_db / 10)) / dynamic_range_db


def stored_geometry(data: Mapping[Hashable, Any], key: str | None) -> BeamGeometry | None:
    """The geometry under ``key``, also where it is kept as a plain dictionary; ``None`` if there is none."""
    found = data.get(key) if key is not None else None
    return BeamGeometry.from_dict(dict(found)) if isinstance(found, Mapping) else found


def depth_mm(img: torch.Tensor, geometry: BeamGeometry | None) -> float:
    """Length of the beams in mm, from the pixel spacing of a ``MetaTensor``."""
    if not isinstance(img, MetaTensor):
        raise ValueError("depth in mm needs a MetaTensor with pixel spacing; or give the effect in dB over the depth.")
    beams = beams_of(img, geometry)
    rows = (beams.radii[1] - beams.radii[0]) / abs(beams.spacing[-2])
    return rows * float(img.pixdim[img.ndim - 3])


def check_range(name: str, values: Sequence[float], above: float | None = None) -> Range:
    """``values`` as ``(low, high)``, or a ValueError that names them; ``above`` is a limit that low must exceed."""
    pair = tuple(float(v) for v in values)
    if len(pair) != 2 or not pair[0] <= pair[1] or (above is not None and not pair[0] > above):
        limit = "" if above is None else f", low above {above:g}"
        raise ValueError(f"{name} must be a range (low, high){limit}, got {tuple(values)}.")
    return pair


def check_dynamic_range(dynamic_range_db: float | None) -> None:
    """Refuse a display range that is not positive; ``None`` stands for linear images."""
    if dynamic_range_db is not None and not dynamic_range_db > 0:
        raise ValueError(f"dynamic_range_db must be positive, or None for linear images, got {dynamic_range_db}.")


class RandEffect(RandomizableTransform):
    """Base of the random array transforms here: :meth:`randomize` draws ``params``, then ``effect`` applies them.

    Subclasses give ``_draw(img)``, every draw from ``self.R``, and ``_apply(img, fov, geometry)``. The last drawn
    parameters stay in ``params``, so that ``randomize=False`` repeats them.
    """

    backend = RandGaussianNoise.backend

    def __init__(self, prob: float) -> None:
        super().__init__(prob)
        self.params: dict[str, Any] = {}

    def _draw(self, img: torch.Tensor) -> dict[str, Any]:
        raise NotImplementedError(f"{type(self).__name__} must implement _draw.")

    def _apply(self, img: torch.Tensor, fov: torch.Tensor | None, geometry: BeamGeometry | None) -> torch.Tensor:
        raise NotImplementedError(f"{type(self).__name__} must implement _apply.")

    def randomize(self, data: torch.Tensor) -> None:
        """Draw whether to act on ``data`` (C, *S), and with which parameters."""
        super().randomize(None)
        if self._do_transform:
            self.params = self._draw(data)

    def __call__(
        self,
        img: NdarrayOrTensor,
        fov: torch.Tensor | None = None,
        geometry: BeamGeometry | None = None,
        randomize: bool = True,
    ) -> torch.Tensor:
        """Apply to ``img`` (C, *S) in [0, 1], inside ``fov`` (1, *S) and along the beams of ``geometry``."""
        image: torch.Tensor = convert_to_tensor(img, track_meta=get_track_meta())
        if randomize:
            self.randomize(image)
        return self._apply(image, fov, geometry) if self._do_transform else image


class RandEffectd(Randomizable, MapTransform):
    """Base of the dictionary forms: owns one array transform; one draw serves all keys.

    ``fov_key`` and ``geometry_key`` name the field of view and the :class:`BeamGeometry` in the dictionary, as stored
    by ``FieldOfViewd`` and ``FitBeamd``; ``None``, or an item that is not there, leaves them to be found as the module
    says.
    """

    backend = RandGaussianNoise.backend

    def __init__(
        self,
        keys: KeysCollection,
        effect: RandEffect,
        fov_key: str | None = None,
        geometry_key: str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.effect, self.fov_key, self.geometry_key = effect, fov_key, geometry_key

    def set_random_state(self, seed: int | None = None, state: Any = None) -> RandEffectd:
        """Seed the owned array transform."""
        self.effect.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Apply one draw to every key, and leave the other items alone."""
        d = dict(data)
        fov = d.get(self.fov_key) if self.fov_key is not None else None
        geometry = stored_geometry(d, self.geometry_key)
        for i, key in enumerate(self.key_iterator(d)):
            d[key] = self.effect(d[key], fov, geometry, randomize=i == 0)
        return d
