# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Beam geometry: where the scan lines of an ultrasound image lie, and values at places between its pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch.utils.data._utils.collate import default_collate_fn_map

__all__ = ["BeamGeometry", "beam_coordinates", "beams_of", "sample_pixels"]

_KINDS = ("linear", "convex", "phased", "sector3d")


@dataclass(frozen=True)
class BeamGeometry:
    """Where the beams of one image lie, in the image's own pixel grid.

    Positions are indices of pixel centers in axis order: (row, column) in 2D, (slice, row, column) in 3D. Rows run
    along depth, columns along the lateral direction, slices along elevation. Beam space keeps that order: (axial,
    lateral) or (elevation, axial, lateral), each coordinate running from 0 to 1 over the insonified range.

    With ``z, x, y`` the depth, lateral and elevational distance from ``apex`` in units of ``spacing``:

    - ``"convex"``, ``"phased"``: ``z = r cos(t)``, ``x = r sin(t)``; ``apex`` is the point where the beams meet.
    - ``"linear"``: ``z = r cos(s)``, ``x = u + r sin(s)``; ``apex`` is the origin of the probe face and ``s`` the
      steering angle, zero for a rectangle.
    - ``"sector3d"``: ``z = r cos(t) cos(p)``, ``x = r sin(t)``, ``y = r cos(t) sin(p)``: a planar sector tilted about
      the lateral axis through its apex, as matrix arrays and swept probes acquire it.

    A 2D geometry also serves a cine or stack ``(T, H, W)`` whose frames share it; only what resamples needs to know.

    Args:
        kind: ``"linear"``, ``"convex"``, ``"phased"`` or ``"sector3d"``.
        apex: position in pixels, may lie outside the image.
        radii: nearest and farthest sample ``(r0, r1)`` along a beam, in units of ``spacing``.
        angles: first and last beam ``(t0, t1)`` in radians from the vertical, positive to the right; for ``"sector3d"``
            the pair ``((p0, p1), (t0, t1))`` of elevation and lateral ranges; for ``"linear"`` ``(s, s)``.
        width: first and last beam origin ``(u0, u1)`` of a ``"linear"`` probe in units of ``spacing``, else ``None``.
        spacing: size of a pixel step along each axis; ones by default, so that radii are in pixels; with millimeters,
            radii are in millimeters. Unequal values describe anisotropic grids. A negative row spacing means that depth
            runs upwards, as in a vertically flipped image.
        confidence: how far the image supports the geometry, 0 to 1; 1 where the geometry is known.

    Raises:
        ValueError: if a field does not fit the kind or a range is empty or not finite.
    """

    kind: str
    apex: tuple[float, ...]
    radii: tuple[float, float]
    angles: tuple[Any, Any] = (0.0, 0.0)
    width: tuple[float, float] | None = None
    spacing: tuple[float, ...] = ()
    confidence: float = 1.0

    ndim: ClassVar[int] = 0  # with `item`, makes MONAI's decollate_batch hand a geometry on as it is, like a scalar

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(f"unknown beam geometry {self.kind!r}; choose one of {_KINDS}.")
        dims = self.spatial_dims
        set_field = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731  the dataclass is frozen
        set_field("apex", _floats("apex", self.apex, dims))
        set_field("radii", _floats("radii", self.radii, 2))
        set_field("spacing", _floats("spacing", self.spacing or (1.0,) * dims, dims))
        if dims == 3:
            if len(self.angles) != 2:
                raise ValueError(f"a sector3d needs angles ((p0, p1), (t0, t1)), got {self.angles}.")
            set_field("angles", tuple(_floats("angles", pair, 2) for pair in self.angles))
        else:
            set_field("angles", _floats("angles", self.angles, 2))

        if not self.radii[0] < self.radii[1] or (self.radii[0] < 0 and self.kind != "linear"):
            raise ValueError(f"radii must be r0 < r1, from 0 on where beams meet, got {self.radii}.")
        if any(step == 0 for step in self.spacing):
            raise ValueError(f"spacing must not be zero, got {self.spacing}.")
        if self.kind == "linear":
            if self.width is None:
                raise ValueError("a linear geometry needs width=(u0, u1), the first and last beam origin.")
            set_field("width", _floats("width", self.width, 2))
            if not self.width[0] < self.width[1]:
                raise ValueError(f"width must be u0 < u1, got {self.width}.")
            if self.angles[0] != self.angles[1] or abs(self.angles[0]) >= math.pi / 2:
                raise ValueError(f"linear beams share one steering angle below pi/2: angles=(s, s), got {self.angles}.")
        else:
            if self.width is not None:
                raise ValueError(f"only a linear geometry has a width, {self.kind} got {self.width}.")
            limit = math.pi if dims == 2 else math.pi / 2
            for first, last in self.angles if dims == 3 else (self.angles,):
                if not -limit <= first < last <= limit:
                    raise ValueError(f"angles must be ascending within +-{limit:.4g} rad, got {self.angles}.")

    @property
    def spatial_dims(self) -> int:
        """Number of image axes that the geometry spans: 3 for ``"sector3d"``, else 2."""
        return 3 if self.kind == "sector3d" else 2

    # ------------------------------------------------------------------ coordinates

    def beam_to_cartesian(self, beam_shape: Sequence[int], device: torch.device | str | None = None) -> torch.Tensor:
        """Pixel position of every beam sample: ``(*beam_shape, spatial_dims)``, last axis in axis order.

        The first and last sample of each beam axis lie on the ends of its range; an axis of one sample lies mid-range.
        """
        self._check_shape(beam_shape)
        axes = [torch.linspace(0 if n > 1 else 0.5, 1, n, device=device, dtype=torch.float64) for n in beam_shape]
        beam = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
        return self.beam_to_pixel(beam).to(torch.float32)

    def cartesian_to_beam(self, spatial_shape: Sequence[int], device: torch.device | str | None = None) -> torch.Tensor:
        """Beam coordinate of every pixel: ``(*spatial_shape, spatial_dims)``, in [0, 1] inside the beams.

        The last axis is (axial, lateral) or (elevation, axial, lateral). Values outside [0, 1] mark pixels that no beam
        reached and extrapolate smoothly.
        """
        self._check_shape(spatial_shape)
        axes = [torch.arange(n, device=device, dtype=torch.float64) for n in spatial_shape]
        pixel = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
        return self.pixel_to_beam(pixel).to(torch.float32)

    def beam_to_pixel(self, beam: torch.Tensor) -> torch.Tensor:
        """Map beam coordinates in [0, 1] to pixel positions, both ``(..., spatial_dims)`` in axis order."""
        radius = _stretch(beam[..., -2], self.radii)
        if self.kind == "linear":
            steer = self.angles[0]
            lateral = _stretch(beam[..., -1], self.width or ())
            offset = [radius * math.cos(steer), lateral + radius * math.sin(steer)]
        elif self.kind == "sector3d":
            tilt, angle = _stretch(beam[..., 0], self.angles[0]), _stretch(beam[..., 2], self.angles[1])
            plane = radius * angle.cos()  # depth within the tilted scan plane
            offset = [plane * tilt.sin(), plane * tilt.cos(), radius * angle.sin()]
        else:
            angle = _stretch(beam[..., 1], self.angles)
            offset = [radius * angle.cos(), radius * angle.sin()]
        return torch.stack(offset, dim=-1) / beam.new_tensor(self.spacing) + beam.new_tensor(self.apex)

    def pixel_to_beam(self, pixel: torch.Tensor) -> torch.Tensor:
        """Map pixel positions to beam coordinates, both ``(..., spatial_dims)`` in axis order."""
        # adding zero turns -0.0 into 0.0, whose angle from the vertical is 0 and not pi
        offset = (pixel - pixel.new_tensor(self.apex)) * pixel.new_tensor(self.spacing) + 0.0
        depth, lateral = offset[..., -2], offset[..., -1]
        if self.kind == "linear":
            steer = self.angles[0]
            origin = lateral - depth * math.tan(steer)
            beam = [_shrink(depth / math.cos(steer), self.radii), _shrink(origin, self.width or ())]
        elif self.kind == "sector3d":
            radius = torch.linalg.vector_norm(offset, dim=-1)
            tilt = torch.atan2(offset[..., 0], depth)
            angle = torch.atan2(lateral, torch.hypot(offset[..., 0], depth))
            beam = [_shrink(tilt, self.angles[0]), _shrink(radius, self.radii), _shrink(angle, self.angles[1])]
        else:
            beam = [_shrink(torch.hypot(depth, lateral), self.radii), _shrink(torch.atan2(lateral, depth), self.angles)]
        return torch.stack(beam, dim=-1)

    def beam_grid(
        self, spatial_shape: Sequence[int], beam_shape: Sequence[int], device: torch.device | str | None = None
    ) -> torch.Tensor:
        """Grid ``(1, *beam_shape, spatial_dims)``: ``grid_sample(image, grid, align_corners=True)`` gives beams."""
        self._check_shape(spatial_shape)
        pixel = self.beam_to_cartesian(beam_shape, device)
        last = pixel.new_tensor([max(n - 1, 1) for n in spatial_shape])
        return (pixel / last * 2 - 1).flip(-1)[None]

    def image_grid(self, spatial_shape: Sequence[int], device: torch.device | str | None = None) -> torch.Tensor:
        """Grid ``(1, *spatial_shape, spatial_dims)``: ``grid_sample(beams, grid, align_corners=True)`` gives pixels."""
        return (self.cartesian_to_beam(spatial_shape, device) * 2 - 1).flip(-1)[None]

    def mask(self, spatial_shape: Sequence[int], device: torch.device | str | None = None) -> torch.Tensor:
        """Field of view ``(1, *spatial_shape)``: True where a beam reaches the pixel center."""
        beam = self.cartesian_to_beam(spatial_shape, device)
        tolerance = 1e-5  # float32 rounding on the boundary
        return ((beam >= -tolerance) & (beam <= 1 + tolerance)).all(dim=-1)[None]

    def natural_beam_shape(self) -> tuple[int, ...]:
        """Smallest beam grid that samples no coarser than the pixels: axially everywhere, laterally at full depth."""
        step = min(abs(s) for s in self.spacing)
        extents = [self.radii[1] - self.radii[0]]
        if self.kind == "linear":
            extents.append(self.width[1] - self.width[0])  # type: ignore[index]
        elif self.kind == "sector3d":
            (tilt0, tilt1), (angle0, angle1) = self.angles
            extents = [self.radii[1] * (tilt1 - tilt0), extents[0], self.radii[1] * (angle1 - angle0)]
        else:
            extents.append(self.radii[1] * (self.angles[1] - self.angles[0]))
        return tuple(math.ceil(extent / step - 1e-6) + 1 for extent in extents)

    # ------------------------------------------------------------------ storage

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary of strings, numbers and lists, fit for JSON and for collation; see :meth:`from_dict`."""

        def plain(value: Any) -> Any:
            return [plain(v) for v in value] if isinstance(value, tuple) else value

        return {name: plain(value) for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> BeamGeometry:
        """Inverse of :meth:`to_dict`."""
        return cls(**values)

    def item(self) -> BeamGeometry:
        """The geometry itself; see ``ndim``."""
        return self

    def _check_shape(self, shape: Sequence[int]) -> None:
        if len(shape) != self.spatial_dims or min(shape) < 1:
            raise ValueError(f"a {self.kind} geometry needs {self.spatial_dims} positive sizes, got {tuple(shape)}.")


def _floats(name: str, values: Sequence[float], count: int) -> tuple[float, ...]:
    """``values`` as ``count`` finite Python floats, or a ValueError that names them."""
    numbers = tuple(float(v) for v in values)
    if len(numbers) != count or not all(math.isfinite(v) for v in numbers):
        raise ValueError(f"{name} must be {count} finite numbers, got {numbers}.")
    return numbers


def _stretch(unit: torch.Tensor, limits: Sequence[float]) -> torch.Tensor:
    return limits[0] + unit * (limits[1] - limits[0])


def _shrink(value: torch.Tensor, limits: Sequence[float]) -> torch.Tensor:
    return (value - limits[0]) / (limits[1] - limits[0])


# as MONAI does for MetaTensor: a DataLoader gives the geometries of a batch as a list
default_collate_fn_map.update({BeamGeometry: lambda batch, *, collate_fn_map=None: list(batch)})


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
    plane = list(cached_coordinates(beams, tuple(img.shape[-beams.spatial_dims :]), img.device).unbind(-1))
    if len(plane) == img.ndim - 1:
        return plane
    return [torch.linspace(0, 1, img.shape[1], device=img.device).reshape(-1, 1, 1), *plane]


@lru_cache(maxsize=4)
def cached_coordinates(beams: BeamGeometry, spatial_shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
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
