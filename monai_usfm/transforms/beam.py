# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Beam geometry: where the scan lines of an ultrasound image lie, and resampling between image and beam space."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor, get_track_meta
from monai.transforms import InvertibleTransform, MapTransform, Resample, Transform
from monai.utils import TraceKeys, convert_to_dst_type, convert_to_tensor, ensure_tuple_rep
from scipy import ndimage
from scipy.optimize import least_squares
from torch.nn.functional import grid_sample
from torch.utils.data._utils.collate import default_collate_fn_map

from monai_usfm.transforms.field_of_view import FieldOfView

__all__ = [
    "BeamGeometry",
    "FitBeam",
    "FitBeamd",
    "FromBeamSpace",
    "FromBeamSpaced",
    "NotAConeError",
    "ToBeamSpace",
    "ToBeamSpaced",
]

_KINDS = ("linear", "convex", "phased", "sector3d")
_CUT = math.radians(85.0)  # stands for a lateral edge that the image cuts off; beams are never that oblique
_MIN_OPENING = math.radians(3.0)  # below, edges count as parallel: a pixel of error per 20 pixels of depth


@dataclass(frozen=True)
class BeamGeometry:
    """Where the beams of one image lie, in the image's own pixel grid.

    Positions are indices of pixel centres in axis order: (row, column) in 2D, (slice, row, column) in 3D. Rows run
    along depth, columns along the lateral direction, slices along elevation. Beam space keeps that order: (axial,
    lateral) or (elevation, axial, lateral), each coordinate running from 0 to 1 over the insonified range.

    With ``z, x, y`` the depth, lateral and elevational distance from ``apex`` in units of ``spacing``:

    - ``"convex"``, ``"phased"``: ``z = r cos(t)``, ``x = r sin(t)``; ``apex`` is the point where the beams meet.
    - ``"linear"``: ``z = r cos(s)``, ``x = u + r sin(s)``; ``apex`` is the origin of the probe face and ``s`` the
      steering angle, zero for a rectangle.
    - ``"sector3d"``: ``z = r cos(t) cos(p)``, ``x = r sin(t)``, ``y = r cos(t) sin(p)``: a planar sector tilted about
      the lateral axis through its apex, as matrix arrays and swept probes acquire it.

    A 2D geometry also serves a cine or stack ``(T, H, W)`` whose frames share it; only :class:`ToBeamSpace` and
    :class:`FromBeamSpace` need to know.

    Args:
        kind: ``"linear"``, ``"convex"``, ``"phased"`` or ``"sector3d"``.
        apex: position in pixels, may lie outside the image.
        radii: nearest and farthest sample ``(r0, r1)`` along a beam, in units of ``spacing``.
        angles: first and last beam ``(t0, t1)`` in radians from the vertical, positive to the right; for ``"sector3d"``
            the pair ``((p0, p1), (t0, t1))`` of elevation and lateral ranges; for ``"linear"`` ``(s, s)``.
        width: first and last beam origin ``(u0, u1)`` of a ``"linear"`` probe in units of ``spacing``, else ``None``.
        spacing: size of a pixel step along each axis; ones by default, so that radii are in pixels; with millimetres,
            radii are in millimetres. Unequal values describe anisotropic grids. A negative row spacing means that depth
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

        if not 0 <= self.radii[0] < self.radii[1] and self.kind != "linear":
            raise ValueError(f"radii must be 0 <= r0 < r1, got {self.radii}.")
        if not self.radii[0] < self.radii[1]:
            raise ValueError(f"radii must be r0 < r1, got {self.radii}.")
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
        """Field of view ``(1, *spatial_shape)``: True where a beam reaches the pixel centre."""
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

    # ------------------------------------------------------------------ following the image

    def crop(self, start: Sequence[int]) -> BeamGeometry:
        """Geometry after cropping with ``start`` as the new first pixel; negative values describe padding."""
        offset = _floats("start", start, self.spatial_dims)
        return replace(self, apex=tuple(a - s for a, s in zip(self.apex, offset, strict=True)))

    def resize(self, from_shape: Sequence[int], to_shape: Sequence[int]) -> BeamGeometry:
        """Geometry after resampling with pixel edges aligned (``align_corners=False``, as torch and MONAI resize)."""
        self._check_shape(from_shape)
        self._check_shape(to_shape)
        zoom = [new / old for old, new in zip(from_shape, to_shape, strict=True)]
        return replace(
            self,
            apex=tuple((a + 0.5) * f - 0.5 for a, f in zip(self.apex, zoom, strict=True)),
            spacing=tuple(s / f for s, f in zip(self.spacing, zoom, strict=True)),
        )

    def flip(self, axis: int, spatial_shape: Sequence[int]) -> BeamGeometry:
        """Geometry after reversing one image axis: the lateral and elevation ranges mirror, depth changes its sign."""
        self._check_shape(spatial_shape)
        dims = self.spatial_dims
        if not -dims <= axis < dims:
            raise ValueError(f"axis {axis} is out of range for a geometry of {dims} dimensions.")
        axis %= dims
        apex = list(self.apex)
        apex[axis] = spatial_shape[axis] - 1 - apex[axis]
        if axis == dims - 2:
            spacing = list(self.spacing)
            spacing[axis] = -spacing[axis]
            return replace(self, apex=tuple(apex), spacing=tuple(spacing))
        if dims == 3:
            ranges = [self.angles[0], self.angles[1]]
            changed = 0 if axis == 0 else 1
            ranges[changed] = (-ranges[changed][1], -ranges[changed][0])
            return replace(self, apex=tuple(apex), angles=(ranges[0], ranges[1]))
        width = None if self.width is None else (-self.width[1], -self.width[0])
        return replace(self, apex=tuple(apex), angles=(-self.angles[1], -self.angles[0]), width=width)

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


# ---------------------------------------------------------------------- estimation


class NotAConeError(ValueError):
    """The image shows no sector whose beams could be estimated."""


class FitBeam(Transform):
    """Estimate the :class:`BeamGeometry` of a sector image from the outline of its field of view.

    Straight lateral edges are found by consensus over pairs of outline points: points beyond a candidate edge count
    against it, points inside it do not, because shadows and anechoic tissue dent an outline and only text extends it.
    The edges meet in the apex; the arcs are found about it in the same way. Where the image cuts edges off, or where
    they explain the outline badly, the apex is the common centre of the arcs (circles by consensus), and the edges that
    are visible are rays from it. All inliers then refine all parameters by least squares. An arc or edge that the image
    cuts off is placed at the outermost visible pixel. A crop that shows neither edges nor arcs is refused.

    - ``(C, H, W)`` gives ``"convex"``, or ``"phased"`` where the near arc is shorter than a tenth of the far radius.
    - ``(C, D, H, W)`` gives ``"sector3d"``; a cine, whose outline is the same in all frames, gives the geometry of its
      frames. Depth runs along rows, elevation along slices.

    Radii are in pixels, or in the unit of the voxel sizes where a ``MetaTensor`` carries them. ``confidence`` is the
    share of the lateral edges (of the arcs and the other edge, where one is cut off) that the outline supports, times
    the overlap (intersection over union) of fit and field of view, reduced towards 0 where one edge stands upright
    beside a leaning one.

    Args:
        fallback: what to return for an image without a cone: ``"error"`` raises, ``"linear"`` gives a rectangle or
            parallelogram about the field of view (confidence 0 where no edge supports it), ``None`` gives ``None``.
        min_confidence: fits below it count as no cone.
        threshold: grey level that separates tissue from the screen, see :class:`FieldOfView`.

    Raises:
        ValueError: for an unknown ``fallback`` or a ``min_confidence`` outside [0, 1].
        NotAConeError: (a ValueError) if no cone is found and ``fallback="error"``.
    """

    def __init__(
        self, fallback: str | None = "error", min_confidence: float = 0.35, threshold: float | None = None
    ) -> None:
        if fallback not in ("error", "linear", None):
            raise ValueError(f"fallback must be 'error', 'linear' or None, got {fallback!r}.")
        if not 0 <= min_confidence <= 1:
            raise ValueError(f"min_confidence must be in [0, 1], got {min_confidence}.")
        self.fallback = fallback
        self.min_confidence = min_confidence
        self.field_of_view = FieldOfView(threshold)

    def __call__(self, img: NdarrayOrTensor) -> BeamGeometry | None:
        fov = self.field_of_view(img)
        spacing = [float(s) for s in fov.pixdim] if isinstance(fov, MetaTensor) else [1.0] * (fov.ndim - 1)
        mask = fov[0].cpu().numpy().astype(bool)
        if mask.ndim == 3 and _is_cine(mask):
            mask, spacing = mask.mean(axis=0) > 0.5, spacing[1:]
        try:
            if mask.all() or not mask.any():
                raise NotAConeError("no cone in this image: nothing separates a field of view from its surroundings.")
            geometry = _fit_sector(mask, spacing) if mask.ndim == 2 else _fit_sector3d(mask, spacing)
            if geometry.confidence < self.min_confidence:
                raise NotAConeError(
                    f"no cone in this image: the best fit has confidence {geometry.confidence:.2f}, below "
                    f"min_confidence={self.min_confidence}; fallback='linear' or None accepts such images."
                )
        except NotAConeError:
            if self.fallback == "error":
                raise
            return _fit_linear(mask, spacing) if self.fallback == "linear" else None
        return geometry


class FitBeamd(MapTransform):
    """Dictionary form of :class:`FitBeam`; the geometry of ``key`` is stored under ``{key}_{postfix}``.

    Args:
        keys: images to look at.
        fallback: see :class:`FitBeam`.
        min_confidence: see :class:`FitBeam`.
        threshold: see :class:`FitBeam`.
        postfix: appended to the key, after an underscore.
        allow_missing_keys: do not raise when a key is missing.
    """

    def __init__(
        self,
        keys: KeysCollection,
        fallback: str | None = "error",
        min_confidence: float = 0.35,
        threshold: float | None = None,
        postfix: str = "beam",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.fit = FitBeam(fallback, min_confidence, threshold)
        self.postfix = postfix

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[f"{key}_{self.postfix}"] = self.fit(d[key])
        return d


def _is_cine(mask: np.ndarray) -> bool:
    """Whether the outline is the same in all slices, as in a cine and unlike in a volume that tapers."""
    areas = mask.sum(axis=(1, 2))
    return len(mask) == 1 or bool(areas.min() > 0.9 * areas.max() > 0)


@dataclass
class _Outline:
    """Outline points ``(depth, lateral)`` of a mask in units of spacing, one array per side, and which are evidence."""

    sides: dict[str, np.ndarray]
    seen: dict[str, np.ndarray]  # False where the image or a vertical cut, not the sector, ends the mask
    spacing: tuple[float, ...]

    @property
    def step(self) -> float:
        """Length of the smaller pixel side."""
        return min(self.spacing)

    @property
    def tolerance(self) -> float:
        """Greatest distance from a boundary of the points that support it."""
        return 1.5 * self.step

    @classmethod
    def of(cls, mask: np.ndarray, spacing: Sequence[float], cuts: bool = True) -> _Outline:
        height, width = mask.shape
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        first, last = mask.argmax(axis=1)[rows], width - 1 - mask[:, ::-1].argmax(axis=1)[rows]
        top, bottom = mask.argmax(axis=0)[columns], height - 1 - mask[::-1].argmax(axis=0)[columns]
        # the true edge lies between the last pixel inside and the first outside: half a pixel out
        points = {
            "left": (rows, first - 0.5),
            "right": (rows, last + 0.5),
            "top": (top - 0.5, columns),
            "bottom": (bottom + 0.5, columns),
        }
        seen = {"left": first > 0, "right": last < width - 1, "top": top > 0, "bottom": bottom < height - 1}
        if cuts:
            # exports crop sectors and paint boxes over them: a long vertical run of the outline is no lateral edge
            seen["left"] &= ~_vertical(first)
            seen["right"] &= ~_vertical(last)
        sides = {k: np.stack([z * spacing[0], x * spacing[1]], axis=1) for k, (z, x) in points.items()}
        return cls(sides, seen, tuple(spacing))


def _vertical(columns: np.ndarray) -> np.ndarray:
    """Which entries belong to a run that stays within one pixel over more than a seventh of all rows."""
    length = max(len(columns) // 7, 12)
    if len(columns) <= length:
        return np.zeros(len(columns), bool)
    spread = ndimage.maximum_filter1d(columns, length) - ndimage.minimum_filter1d(columns, length)
    return ndimage.maximum_filter1d((spread <= 1).astype(np.uint8), length).astype(bool)


def _consensus_line(points: np.ndarray, seen: np.ndarray, side: int, tolerance: float) -> tuple[float, float] | None:
    """Lateral edge ``x = p + q z`` supported by most points; ``side`` is -1 for the left edge, +1 for the right."""
    evidence = points[seen]
    if len(evidence) < 8:
        return None
    sample = evidence[np.linspace(0, len(evidence) - 1, min(len(evidence), 90)).round().astype(int)]
    i, j = np.triu_indices(len(sample), k=1)
    far = sample[j, 0] - sample[i, 0] > 0.08 * np.ptp(points[:, 0])
    i, j = i[far], j[far]
    if len(i) == 0:
        return None
    slope = (sample[j, 1] - sample[i, 1]) / (sample[j, 0] - sample[i, 0])
    slope, start = slope[abs(slope) < 6], (sample[i, 1] - slope * sample[i, 0])[abs(slope) < 6]
    if len(slope) == 0:
        return None

    def outward(slope: np.ndarray, start: np.ndarray) -> np.ndarray:
        """Distance of every point to every line, positive beyond the sector."""
        return side * (points[:, 1] - start[:, None] - slope[:, None] * points[:, 0]) / np.hypot(1, slope)[:, None]

    distance = outward(slope, start)
    score = ((abs(distance) < tolerance) & seen).sum(axis=1) - 2 * (distance > tolerance).sum(axis=1)
    best = int(score.argmax())
    line = slope[best], start[best]
    for _ in range(3):
        near = (abs(outward(*(np.array([v]) for v in line))[0]) < tolerance) & seen
        if near.sum() < 8:
            return None
        line = tuple(np.polyfit(points[near, 0], points[near, 1], 1))
    return float(line[1]), float(line[0])


def _consensus_radius(radii: np.ndarray, seen: np.ndarray, outward: int, tolerance: float) -> float | None:
    """Arc radius supported by most outline points; ``outward`` is -1 for the near arc, +1 for the far one."""
    evidence = radii[seen]
    if len(evidence) < 8:
        return None
    distance = outward * (radii - evidence[:, None])
    score = ((abs(distance) < tolerance) & seen).sum(axis=1) - 2 * (distance > tolerance).sum(axis=1)
    best = evidence[score.argmax()]
    near = (abs(radii - best) < tolerance) & seen
    # an arc has to be more than the corner where it would meet a lateral edge
    return float(np.median(radii[near])) if near.sum() >= max(8, 0.1 * len(radii)) else None


def _polar(points: np.ndarray, apex: Sequence[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    depth, lateral = points[:, 0] - apex[0], points[:, 1] - apex[1]
    return np.hypot(depth, lateral), np.arctan2(lateral, depth)


def _fit_sector(mask: np.ndarray, spacing: Sequence[float]) -> BeamGeometry:
    """Sector of a 2D mask from its lateral edges, or from its arcs where those explain the outline better."""
    outline = _Outline.of(mask, spacing)
    try:
        found = _complete_sector(mask, outline, _edge_start(outline))
    except NotAConeError:
        start = _arc_start(outline)
        if start is None:
            raise
        return _complete_sector(mask, outline, start)
    if found.confidence < 0.75 and (start := _arc_start(outline)) is not None:
        try:
            return max(found, _complete_sector(mask, outline, start), key=lambda g: g.confidence)
        except NotAConeError:
            return found
    return found


def _edge_start(outline: _Outline) -> np.ndarray:
    """(depth, lateral, a0, a1) from two straight edges; NotAConeError where they do not diverge with depth."""
    left = _consensus_line(outline.sides["left"], outline.seen["left"], -1, outline.tolerance)
    right = _consensus_line(outline.sides["right"], outline.seen["right"], 1, outline.tolerance)
    if left is None or right is None:
        raise NotAConeError("no cone in this image: its field of view has no two straight lateral edges, nor arcs.")
    (p0, q0), (p1, q1) = left, right
    a0, a1 = math.atan(q0), math.atan(q1)
    if a1 - a0 < _MIN_OPENING:
        raise NotAConeError(
            f"no cone in this image: its lateral edges open by {math.degrees(a1 - a0):.1f} degrees only; "
            "fallback='linear' accepts parallel beams."
        )
    depth = (p0 - p1) / (q1 - q0)
    return np.array([depth, p0 + q0 * depth, a0, a1])


def _arc_start(outline: _Outline) -> np.ndarray | None:
    """(depth, lateral, a0, a1) from concentric arcs, for sectors whose edges the image cuts off.

    Circles through triples of outline points compete for the points of both arcs (RANSAC, Fischler and Bolles 1981,
    https://doi.org/10.1145/358669.358692). Edges are then rays from the centre; one without support becomes ``+-_CUT``.
    """
    extent = max(np.ptp(np.concatenate(list(outline.sides.values())), axis=0))
    ceiling = outline.sides["top"][:, 0].min() + outline.tolerance
    centres = []
    rng = np.random.default_rng(0)
    for side in ("top", "bottom"):
        points = outline.sides[side][outline.seen[side]]
        if len(points) < max(20, 0.2 * len(outline.seen[side])):
            continue
        triples = np.sort(rng.integers(0, len(points), (400, 3)), axis=1)
        lateral = points[triples][..., 1]
        triples = triples[np.diff(lateral, axis=1).min(axis=1) > 0.08 * extent]
        centres.append(_circumcentres(points[triples]))
    centre = np.concatenate([*centres, np.empty((0, 2))])
    centre = centre[(centre[:, 0] <= ceiling) & (centre[:, 0] > ceiling - 4 * extent)]
    best, apex = 0.0, None
    for candidate in centre:
        score = 0.0
        for side, outward in (("top", -1), ("bottom", 1)):
            radius = np.hypot(*(outline.sides[side] - candidate).T)
            score += max(_consensus(radius, outline.seen[side], outward, outline.tolerance)[1], 0)
        if score > best:
            best, apex = score, candidate
    if apex is None or best < 0.25 * len(outline.seen["top"]):
        return None
    angles = []
    for side, outward in (("left", -1), ("right", 1)):
        radius, theta = _polar(outline.sides[side], apex)
        # in units of length at the middle of the edge, so that one tolerance serves
        arm = float(np.median(radius))
        angle, score = _consensus(theta * arm, outline.seen[side], outward, outline.tolerance)
        supported = score >= max(12, 0.15 * len(radius))
        angles.append(angle / arm if supported else outward * _CUT)
    return np.array([*apex, *angles])


def _circumcentres(triples: np.ndarray) -> np.ndarray:
    """Centres ``(N, 2)`` of the circles through ``(N, 3, 2)`` points; collinear ones are dropped."""
    a, b, c = triples[:, 0], triples[:, 1] - triples[:, 0], triples[:, 2] - triples[:, 0]
    cross = 2 * (b[:, 0] * c[:, 1] - b[:, 1] * c[:, 0])
    keep = abs(cross) > 1e-9
    a, b, c, cross = a[keep], b[keep], c[keep], cross[keep, None]
    bb, cc = (b**2).sum(axis=1, keepdims=True), (c**2).sum(axis=1, keepdims=True)
    offset = np.concatenate([c[:, 1:] * bb - b[:, 1:] * cc, b[:, :1] * cc - c[:, :1] * bb], axis=1) / cross
    return a + offset


def _consensus(values: np.ndarray, seen: np.ndarray, outward: int, tolerance: float) -> tuple[float, float]:
    """Value that most of ``values[seen]`` share, and its score: each value beyond it counts twice against it."""
    evidence = np.sort(values[seen])
    if len(evidence) == 0:
        return 0.0, -math.inf
    everything = np.sort(outward * values)
    inliers = np.searchsorted(evidence, evidence + tolerance) - np.searchsorted(evidence, evidence - tolerance)
    beyond = len(values) - np.searchsorted(everything, outward * evidence + tolerance)
    score = inliers - 2.0 * beyond
    best = int(score.argmax())
    return float(evidence[best]), float(score[best])


def _complete_sector(mask: np.ndarray, outline: _Outline, start: np.ndarray) -> BeamGeometry:
    """Refine ``start`` and close the sector; a boundary that the image cuts off goes to the outermost visible pixel."""
    spacing, values = outline.spacing, start
    cut = abs(start[2:]) >= _CUT
    for _ in range(3):
        values, arcs = _refine_sector(outline, values, outline.tolerance)
        values[2:][cut] = start[2:][cut]
    apex, angles = values[:2], values[2:]
    radius, angle = _polar(np.argwhere(mask) * spacing, apex)
    if cut.any():
        far = radius > 0.05 * radius.max()  # at the apex the angle means nothing
        half = 0.5 * outline.step / radius[far]
        angles = np.where(cut, [(angle[far] - half).min(), (angle[far] + half).max()], angles)
    a0, a1 = (float(a) for a in angles)
    if not -math.pi / 2 < a0 < a1 < math.pi / 2 or a1 - a0 < _MIN_OPENING:
        raise NotAConeError("no cone in this image: its beams do not meet above it.")
    between = (angle > a0) & (angle < a1)
    if not between.any():
        raise NotAConeError("no cone in this image: its beams do not meet above it.")
    half_step = 0.5 * outline.step
    r0 = arcs[0] if arcs[0] is not None else max(radius[between].min() - half_step, 0.0)
    r1 = arcs[1] if arcs[1] is not None else radius[between].max() + half_step
    if not 0 <= r0 < r1 - 4 * outline.step:
        raise NotAConeError("no cone in this image: it has no depth between its near and its far arc.")
    geometry = BeamGeometry(
        kind="phased" if r0 < 0.1 * r1 else "convex",
        apex=(apex[0] / spacing[0], apex[1] / spacing[1]),
        radii=(r0, r1),
        angles=(a0, a1),
        spacing=tuple(spacing),
    )
    return replace(geometry, confidence=_confidence(geometry, mask, outline, cut))


def _refine_sector(
    outline: _Outline, values: np.ndarray, tolerance: float
) -> tuple[np.ndarray, tuple[float | None, float | None]]:
    """One round of choosing inliers and least squares; returns (depth, lateral, a0, a1) and the visible arcs."""
    polar = {k: _polar(p, values[:2]) for k, p in outline.sides.items()}
    near: dict[str, np.ndarray] = {}
    arcs: list[float | None] = []
    for side, angle in (("left", values[2]), ("right", values[3])):
        radius, theta = polar[side]
        near[side] = outline.seen[side] & (abs(radius * np.sin(theta - angle)) < tolerance) & (abs(angle) < _CUT)
    for side, outward in (("top", -1), ("bottom", 1)):
        radius, theta = polar[side]
        between = (theta > values[2]) & (theta < values[3])
        arc = _consensus_radius(radius[between], outline.seen[side][between], outward, tolerance)
        near[side] = outline.seen[side] & between & (abs(radius - (arc or 0.0)) < tolerance)
        arcs.append(arc)

    def residuals(x: np.ndarray) -> np.ndarray:
        parts = []
        for side in ("left", "right"):
            radius, theta = _polar(outline.sides[side][near[side]], x[:2])
            parts.append(radius * np.sin(theta - x[2 if side == "left" else 3]))
        for i, side in enumerate(("top", "bottom")):
            if arcs[i] is not None:
                parts.append(_polar(outline.sides[side][near[side]], x[:2])[0] - x[4 + i])
        return np.concatenate(parts) / outline.step

    start = np.concatenate([values, [a if a is not None else 0.0 for a in arcs]])
    if len(residuals(start)) < 16:
        raise NotAConeError("no cone in this image: too few points of its outline agree.")
    found = least_squares(residuals, start, loss="soft_l1", x_scale="jac", max_nfev=60).x
    return found[:4], tuple(float(f) if a is not None else None for f, a in zip(found[4:], arcs, strict=True))  # type: ignore[return-value]


def _confidence(geometry: BeamGeometry, mask: np.ndarray, outline: _Outline, cut: np.ndarray) -> float:
    """Share of the evidence that the image should show and does, times the overlap of fit and mask.

    The evidence is the two lateral edges; where one is ``cut`` off, the other edge and the arcs.
    """
    model = geometry.mask(mask.shape)[0].numpy()
    overlap = (model & mask).sum() / max((model | mask).sum(), 1)
    apex = [a * s for a, s in zip(geometry.apex, geometry.spacing, strict=True)]
    expected = _Outline.of(model, geometry.spacing) if model.any() else outline

    def support(side: str) -> tuple[int, int]:
        """Points of one side on the fitted boundary: in the image, and in the model."""
        counts = []
        for source in (outline, expected):
            radius, theta = _polar(source.sides[side], apex)
            if side in ("left", "right"):
                distance = radius * np.sin(theta - geometry.angles[side == "right"])
            else:
                distance = radius - geometry.radii[side == "bottom"]
            counts.append(int((source.seen[side] & (abs(distance) < outline.tolerance)).sum()))
        return min(counts), counts[1]

    if cut.any():
        counts = [support(side) for side in ("top", "bottom", *np.array(["left", "right"])[~cut])]
        return float(overlap * sum(c[0] for c in counts) / max(sum(c[1] for c in counts), 1))
    (left, all_left), (right, all_right) = support("left"), support("right")
    # an edge that is upright while the other leans is more often the side of a box or of a crop than of a sector
    (a0, a1) = geometry.angles
    balance = min(2 * (1 - abs(a0 + a1) / (a1 - a0)), 1.0)
    return float(overlap * (left / max(all_left, 1) + right / max(all_right, 1)) / 2 * max(balance, 0.0))


def _fit_sector3d(mask: np.ndarray, spacing: Sequence[float]) -> BeamGeometry:
    """3D sector of a mask ``(D, H, W)``: the planes through the apex are planar sectors and are fitted in turn."""
    slice_ = round(ndimage.center_of_mass(mask)[0])
    for _ in range(2):  # the second time in the slice where the apex was found
        in_plane = _fit_sector(mask[slice_], spacing[1:])
        column = int(np.clip(round(in_plane.apex[1]), 0, mask.shape[2] - 1))
        across = _fit_sector(mask[:, :, column].T, (spacing[1], spacing[0]))
        slice_ = int(np.clip(round(across.apex[1]), 0, mask.shape[0] - 1))
    geometry = BeamGeometry(
        kind="sector3d",
        apex=(across.apex[1], (in_plane.apex[0] + across.apex[0]) / 2, in_plane.apex[1]),
        radii=tuple((a + b) / 2 for a, b in zip(in_plane.radii, across.radii, strict=True)),  # type: ignore[arg-type]
        angles=(across.angles, in_plane.angles),
        spacing=tuple(spacing),
    )
    model = geometry.mask(mask.shape)[0].numpy()
    overlap = float((model & mask).sum() / max((model | mask).sum(), 1))
    return replace(geometry, confidence=min(in_plane.confidence, across.confidence, overlap))


def _fit_linear(mask: np.ndarray, spacing: Sequence[float]) -> BeamGeometry:
    """Rectangle or parallelogram about a mask; of a volume, about the union of its slices."""
    if mask.ndim == 3:
        mask, spacing = np.asarray(mask.any(axis=0)), spacing[1:]
    if not mask.any():
        mask = np.ones_like(mask)
    outline = _Outline.of(mask, spacing, cuts=False)
    left = _consensus_line(outline.sides["left"], outline.seen["left"], -1, outline.tolerance)
    right = _consensus_line(outline.sides["right"], outline.seen["right"], 1, outline.tolerance)
    rows, columns = (np.flatnonzero(mask.any(axis=a)) for a in (1, 0))
    depth = np.array([rows[0] - 0.5, rows[-1] + 0.5]) * spacing[0]
    limits = (np.array([columns[0] - 0.5, columns[-1] + 0.5])) * spacing[1]
    steer, confidence = 0.0, 0.0
    if left is not None and right is not None:
        (p0, q0), (p1, q1) = left, right
        slope = (q0 + q1) / 2
        if abs(q1 - q0) < math.tan(_MIN_OPENING) and p1 + q1 * depth[0] > p0 + q0 * depth[0]:
            steer = math.atan(slope)
            limits = np.array([p0 + q0 * depth.mean(), p1 + q1 * depth.mean()]) + slope * (depth[0] - depth.mean())
            confidence = 1.0
    origin = limits.mean()
    geometry = BeamGeometry(
        kind="linear",
        apex=(depth[0] / spacing[0], origin / spacing[1]),
        radii=(0.0, float(depth[1] - depth[0]) / math.cos(steer)),
        angles=(steer, steer),
        width=(float(limits[0] - origin), float(limits[1] - origin)),
        spacing=tuple(spacing),
    )
    if confidence:
        model = geometry.mask(mask.shape)[0].numpy()
        confidence = float((model & mask).sum() / (model | mask).sum())
    return replace(geometry, confidence=confidence)


# ---------------------------------------------------------------------- resampling


class ToBeamSpace(InvertibleTransform):
    """Resample an image along its beams: ``(C, *S) -> (C, *beam_shape)``, axial before lateral (elevation first in 3D).

    Lines of constant depth become rows and beams become columns, so that filters, patches and speckle mean the same at
    every depth, and no network spends capacity on the black corners of a sector. A 2D geometry resamples every frame of
    a cine ``(C, T, H, W)``. The inverse returns to the image grid and is black outside the beams; it is what
    ``Compose.inverse`` and ``Invertd`` call, with the interpolation that they ask for.

    A beam grid has no affine: ``MetaTensor`` carries the identity while in beam space, and its own again afterwards.
    Integer images come back as float32 unless ``mode="nearest"``.

    Args:
        beam_shape: samples per beam axis; by default :meth:`BeamGeometry.natural_beam_shape`, which differs between
            geometries, so batches need a fixed one.
        mode: ``"bilinear"`` (trilinear in 3D) for images, ``"nearest"`` for labels.

    Raises:
        ValueError: for another mode, or if the image does not fit the geometry.
    """

    backend = Resample.backend

    def __init__(self, beam_shape: Sequence[int] | None = None, mode: str = "bilinear") -> None:
        self.beam_shape = None if beam_shape is None else tuple(int(n) for n in beam_shape)
        self.mode = _check_mode(mode)

    def __call__(  # type: ignore[override]
        self, img: NdarrayOrTensor, beam: BeamGeometry, mode: str | None = None
    ) -> torch.Tensor:
        """
        Args:
            img: image or label ``(C, *S)``.
            beam: its geometry, known or from :class:`FitBeam`.
            mode: overrides the mode given at construction.
        """
        image, mode = _check_image(img, beam), _check_mode(mode or self.mode)
        beam_shape = self.beam_shape or beam.natural_beam_shape()
        out = _to_beams(image, beam, beam_shape, mode)
        return _trace(self, out, image, beam, mode)

    def inverse(self, data: torch.Tensor) -> torch.Tensor:
        info = self.pop_transform(data)
        beam, mode, affine, size = _untrace(info)
        return _with_affine(_from_beams(data, beam, size[-beam.spatial_dims :], mode), affine)


class FromBeamSpace(InvertibleTransform):
    """Scan conversion: resample beams ``(C, *B)`` to an image ``(C, *spatial_shape)``, black outside the beams.

    The opposite of :class:`ToBeamSpace`, for data that starts in beam space, such as simulated or beamformed lines; to
    undo :class:`ToBeamSpace` use its inverse. Invertible in the same way.

    Args:
        spatial_shape: size of the image, (H, W) or (D, H, W).
        mode: ``"bilinear"`` (trilinear in 3D) for images, ``"nearest"`` for labels.

    Raises:
        ValueError: for another mode, or if beams or ``spatial_shape`` do not fit the geometry.
    """

    backend = Resample.backend

    def __init__(self, spatial_shape: Sequence[int], mode: str = "bilinear") -> None:
        self.spatial_shape = tuple(int(n) for n in spatial_shape)
        self.mode = _check_mode(mode)

    def __call__(  # type: ignore[override]
        self, img: NdarrayOrTensor, beam: BeamGeometry, mode: str | None = None
    ) -> torch.Tensor:
        """
        Args:
            img: beams ``(C, axial, lateral)``, with elevation or frames before axial in 3D.
            beam: where they lie in the image.
            mode: overrides the mode given at construction.
        """
        image, mode = _check_image(img, beam), _check_mode(mode or self.mode)
        out = _from_beams(image, beam, self.spatial_shape, mode)
        return _trace(self, out, image, beam, mode)

    def inverse(self, data: torch.Tensor) -> torch.Tensor:
        info = self.pop_transform(data)
        beam, mode, affine, size = _untrace(info)
        return _with_affine(_to_beams(data, beam, size[-beam.spatial_dims :], mode), affine)


class ToBeamSpaced(MapTransform, InvertibleTransform):
    """Dictionary form of :class:`ToBeamSpace`: one geometry resamples every key.

    Args:
        keys: images and labels that share a grid.
        beam_key: where the geometry is stored, for instance ``"image_beam"`` after ``FitBeamd("image")``.
        beam_shape: see :class:`ToBeamSpace`.
        mode: one mode for all keys, or one per key: ``"nearest"`` for labels.
        allow_missing_keys: do not raise when a key is missing.
    """

    backend = ToBeamSpace.backend

    def __init__(
        self,
        keys: KeysCollection,
        beam_key: str,
        beam_shape: Sequence[int] | None = None,
        mode: Sequence[str] | str = "bilinear",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.beam_key = beam_key
        self.mode = tuple(_check_mode(m) for m in ensure_tuple_rep(mode, len(self.keys)))
        self.convert = ToBeamSpace(beam_shape)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key, mode in self.key_iterator(d, self.mode):
            d[key] = self.convert(d[key], d[self.beam_key], mode)
        return d

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.convert.inverse(d[key])
        return d


class FromBeamSpaced(MapTransform, InvertibleTransform):
    """Dictionary form of :class:`FromBeamSpace`: one geometry scan-converts every key.

    Args:
        keys: beam images and labels that share a grid.
        beam_key: where the geometry is stored.
        spatial_shape: see :class:`FromBeamSpace`.
        mode: one mode for all keys, or one per key: ``"nearest"`` for labels.
        allow_missing_keys: do not raise when a key is missing.
    """

    backend = FromBeamSpace.backend

    def __init__(
        self,
        keys: KeysCollection,
        beam_key: str,
        spatial_shape: Sequence[int],
        mode: Sequence[str] | str = "bilinear",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.beam_key = beam_key
        self.mode = tuple(_check_mode(m) for m in ensure_tuple_rep(mode, len(self.keys)))
        self.convert = FromBeamSpace(spatial_shape)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key, mode in self.key_iterator(d, self.mode):
            d[key] = self.convert(d[key], d[self.beam_key], mode)
        return d

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.convert.inverse(d[key])
        return d


def _check_mode(mode: str) -> str:
    # strings, not enumerations: MONAI's Invertd rewrites the traced mode as a string
    if str(mode) not in ("bilinear", "nearest"):
        raise ValueError(f"mode must be 'bilinear' or 'nearest', got {mode!r}.")
    return str(mode)


def _check_image(img: NdarrayOrTensor, beam: BeamGeometry) -> torch.Tensor:
    if not isinstance(beam, BeamGeometry):
        raise ValueError(
            f"beam must be a BeamGeometry, got {beam!r}; FitBeam(fallback=None) gives None without a cone."
        )
    image = convert_to_tensor(img, track_meta=get_track_meta())
    dims = image.ndim - 1
    if dims not in (2, 3) or dims < beam.spatial_dims or image.numel() == 0:
        raise ValueError(f"a {beam.kind} geometry cannot resample an image of shape {tuple(image.shape)}.")
    return image


def _to_beams(image: torch.Tensor, beam: BeamGeometry, beam_shape: Sequence[int], mode: str) -> torch.Tensor:
    shape = image.shape[-beam.spatial_dims :]
    pixel = beam.beam_to_cartesian(beam_shape, image.device)
    last = pixel.new_tensor([n - 1 for n in shape])
    inside = ((pixel >= -0.5) & (pixel <= last + 0.5)).all(dim=-1)
    return _sample(image, beam.beam_grid(shape, beam_shape, image.device), inside, mode)


def _from_beams(beams: torch.Tensor, beam: BeamGeometry, spatial_shape: Sequence[int], mode: str) -> torch.Tensor:
    grid = beam.image_grid(spatial_shape, beams.device)
    return _sample(beams, grid, beam.mask(spatial_shape, beams.device)[0], mode)


def _sample(image: torch.Tensor, grid: torch.Tensor, inside: torch.Tensor, mode: str) -> torch.Tensor:
    """``grid_sample`` on the last axes, zero outside ``inside``; channels and frames are independent."""
    plain = image.as_tensor() if isinstance(image, MetaTensor) else image
    dims = grid.shape[-1]
    # float32 holds labels up to 2 ** 24 exactly
    values = plain if plain.dtype in (torch.float32, torch.float64) else plain.to(torch.float32)
    batch = values.reshape(1, -1, *values.shape[-dims:])
    # border padding and a mask, because zero padding would fade the outermost half sample
    out = grid_sample(batch, grid.to(values.dtype), mode=mode, padding_mode="border", align_corners=True)
    out = torch.where(inside, out, torch.zeros_like(out)).reshape(*plain.shape[:-dims], *out.shape[2:])
    if mode == "nearest" or plain.dtype.is_floating_point:
        out = out.to(plain.dtype)
    return convert_to_dst_type(out, dst=image, dtype=out.dtype)[0] if isinstance(image, MetaTensor) else out


def _trace(
    transform: InvertibleTransform, out: torch.Tensor, image: torch.Tensor, beam: BeamGeometry, mode: str
) -> torch.Tensor:
    if not isinstance(image, MetaTensor) or not isinstance(out, MetaTensor):
        return out
    extra = {"beam": beam.to_dict(), "mode": mode, "affine": image.affine}
    out = transform.push_transform(out, orig_size=tuple(image.shape[1:]), extra_info=extra)
    return _with_affine(out, torch.eye(len(image.affine), dtype=torch.float64))


def _untrace(info: dict[str, Any]) -> tuple[BeamGeometry, str, torch.Tensor, tuple[int, ...]]:
    extra = info[TraceKeys.EXTRA_INFO]
    size = tuple(int(n) for n in info[TraceKeys.ORIG_SIZE])
    return BeamGeometry.from_dict(extra["beam"]), _check_mode(extra["mode"]), extra["affine"], size


def _with_affine(image: torch.Tensor, affine: torch.Tensor) -> torch.Tensor:
    if isinstance(image, MetaTensor):
        image.affine = affine
    return image


# as MONAI does for MetaTensor: a DataLoader gives the geometries of a batch as a list
default_collate_fn_map.update({BeamGeometry: lambda batch, *, collate_fn_map=None: list(batch)})
