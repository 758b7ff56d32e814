# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""What another depth setting or another probe would have shown: an image resampled from one beam geometry to another.

All changes are one function, :func:`change_geometry`: each pixel of the new sector takes the gray level that the old
one has at the same place along the same beam. Labels follow with ``mode="nearest"``, and both directions are
invertible. Without a :class:`BeamGeometry` the image is taken for a linear probe that fills it.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from monai.config import NdarrayOrTensor
from monai.data import MetaTensor, get_track_meta, to_affine_nd
from monai.transforms import InvertibleTransform, RandomizableTransform
from monai.utils import TraceKeys, convert_to_dst_type, convert_to_tensor

from monai_usfm.physics.beam import BeamGeometry, beams_of, sample_pixels
from monai_usfm.transforms.dictionary import TORCH, InvertibleForm, dictionary_form
from monai_usfm.transforms.effect import Range, as_geometry, check_range

__all__ = [
    "RandConvexityChange",
    "RandConvexityChanged",
    "RandDepthZoom",
    "RandDepthZoomd",
    "RandProbeTypeChange",
    "RandProbeTypeChanged",
    "change_geometry",
    "curved_geometry",
    "straight_geometry",
    "zoomed_geometry",
]

_WIDEST = math.radians(75)  # half opening angle of the widest sector that is made here


def change_geometry(
    img: torch.Tensor, source: BeamGeometry, target: BeamGeometry, mode: str = "bilinear"
) -> torch.Tensor:
    """Resample an image with the beams of ``source`` to the beams of ``target``, on the same pixel grid.

    Args:
        img: ``(C, *S)``, image or label. A 2D geometry serves every slice of a volume.
        source: beams of ``img``.
        target: beams of the result; the same number of dimensions.
        mode: ``"bilinear"``, or ``"nearest"`` for labels.

    Returns:
        A new tensor of the shape and type of ``img``; 0 outside the beams of ``target`` and where ``img`` ends.

    Raises:
        ValueError: for NaN, an unknown mode, or geometries that do not fit the image or each other.
    """
    if mode not in ("bilinear", "nearest"):
        raise ValueError(f"mode must be 'bilinear' or 'nearest', got {mode!r}.")
    if source.spatial_dims != target.spatial_dims:
        raise ValueError(f"cannot resample from a {source.kind} to a {target.kind} geometry: 2D and 3D differ.")
    values = _values(img)
    beams_of(img, source)
    image = img.as_subclass(torch.Tensor)
    size = image.shape[-source.spatial_dims :]
    axes = [torch.arange(n, device=image.device, dtype=torch.float64) for n in size]
    beam = target.pixel_to_beam(torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1))
    pixel = source.beam_to_pixel(beam)
    inside = ((beam >= -1e-6) & (beam <= 1 + 1e-6)).all(-1)
    if mode == "nearest":
        out = sample_pixels(values, pixel, mode)
    else:  # a mean of the neighbors that lie in the old beams: the black around them must not darken the edge
        known = source.mask(size, image.device).to(values.dtype)
        share = sample_pixels(known, pixel, mode)[0]
        out = sample_pixels(values * known, pixel, mode) / share.clamp(min=1e-3)
    out = torch.where(inside, out, 0)
    return convert_to_dst_type(out, img, dtype=img.dtype)[0]


def _values(img: torch.Tensor) -> torch.Tensor:
    """The values of an image or label (C, *S) as floating numbers, or one error that says what is wrong with it."""
    if img.ndim not in (3, 4) or 0 in img.shape:
        raise ValueError(f"an image must be (C, H, W) or (C, D, H, W) and not empty, got shape {tuple(img.shape)}.")
    image = img.as_subclass(torch.Tensor)
    values = image if image.dtype in (torch.float32, torch.float64) else image.float()
    if not bool(torch.isfinite(values).all()):
        raise ValueError("the image contains NaN or infinity; clean it first, e.g. with torch.nan_to_num.")
    return values


# ---------------------------------------------------------------------- other probes and settings


def zoomed_geometry(geometry: BeamGeometry, factor: float) -> tuple[BeamGeometry, BeamGeometry]:
    """Beams before and after the depth setting changes to ``factor`` times the old depth, on the same screen.

    The probe stays where it is, the scale of the image changes by ``1 / factor`` in all directions: its curvature and
    opening keep their size in mm, so the face looks larger at a small depth. A larger depth shows the old sector
    smaller: what lay below it was not seen.

    Returns:
        ``(source, target)`` for :func:`change_geometry`; the spacing of ``target`` is ``factor`` times the old one.
    """
    if not (math.isfinite(factor) and factor > 0):
        raise ValueError(f"factor must be a positive ratio of depths, got {factor}.")
    face = _face(geometry)
    near, far = geometry.radii
    source = replace(geometry, radii=(near, near + (far - near) * min(factor, 1.0)))
    apex = tuple(f + (a - f) / factor for a, f in zip(geometry.apex, face, strict=True))
    return source, replace(source, apex=apex, spacing=tuple(s * factor for s in geometry.spacing))


def straight_geometry(geometry: BeamGeometry, width_fraction: float) -> BeamGeometry:
    """Parallel beams as deep as the box around ``geometry`` and ``width_fraction`` of it wide."""
    if not 0 < width_fraction <= 1:
        raise ValueError(f"width_fraction must be in (0, 1], got {width_fraction}.")
    (top, bottom), (left, right) = _box(_planar(geometry))
    rows, columns = geometry.spacing
    half = (right - left) * abs(columns) * width_fraction / 2
    return BeamGeometry(
        kind="linear",
        apex=(top if rows > 0 else bottom, (left + right) / 2),
        radii=(0.0, (bottom - top) * abs(rows)),
        width=(-half, half),
        spacing=geometry.spacing,
    )


def curved_geometry(geometry: BeamGeometry, top_fraction: float) -> BeamGeometry:
    """A sector whose face is ``top_fraction`` as wide as its far arc, scaled into the box around ``geometry``.

    Beam length and chord of the far arc are kept, so that a fraction of 0 is a phased array and one near 1 almost a
    linear probe; the opening is limited to 150 degrees.
    """
    if not 0 <= top_fraction < 1:
        raise ValueError(f"top_fraction must be in [0, 1), got {top_fraction}.")
    near, far = _planar(geometry).radii
    if geometry.kind == "linear":
        half_chord, middle = (geometry.width[1] - geometry.width[0]) / 2, 0.0  # type: ignore[index]
    else:
        half_chord = far * math.sin(min((geometry.angles[1] - geometry.angles[0]) / 2, _WIDEST))
        middle = (geometry.angles[0] + geometry.angles[1]) / 2
    radius = (far - near) / (1 - top_fraction)
    half = min(math.asin(min(half_chord / radius, 1.0)), _WIDEST)
    sector = BeamGeometry(
        kind="phased" if top_fraction < 0.1 else "convex",
        apex=geometry.apex,
        radii=(radius * top_fraction, radius),
        angles=(middle - half, middle + half),
        spacing=geometry.spacing,
    )
    (top, bottom), (left, right) = _box(geometry)
    (new_top, new_bottom), (new_left, new_right) = _box(sector)
    scale = min((bottom - top) / (new_bottom - new_top), (right - left) / (new_right - new_left))
    row, column = sector.apex
    return replace(
        sector,
        apex=(top + (row - new_top) * scale, (left + right) / 2 + (column - (new_left + new_right) / 2) * scale),
        spacing=tuple(s / scale for s in sector.spacing),
    )


def _planar(geometry: BeamGeometry) -> BeamGeometry:
    if geometry.spatial_dims != 2:
        raise ValueError("probe type and convexity change need a 2D geometry (it may serve a volume slice by slice).")
    return geometry


def _face(geometry: BeamGeometry) -> tuple[float, ...]:
    """Pixel position of the middle of the probe face."""
    beam = torch.full((geometry.spatial_dims,), 0.5, dtype=torch.float64)
    beam[-2] = 0
    return tuple(geometry.beam_to_pixel(beam).tolist())


def _box(geometry: BeamGeometry) -> tuple[tuple[float, float], tuple[float, float]]:
    """Rows and columns that the beams span, in pixels."""
    edge = torch.linspace(0, 1, 129, dtype=torch.float64)
    zero, one = torch.zeros_like(edge), torch.ones_like(edge)
    sides = [(zero, edge), (one, edge), (edge, zero), (edge, one)]
    outline = geometry.beam_to_pixel(torch.cat([torch.stack(side, dim=-1) for side in sides]))
    (top, left), (bottom, right) = outline.amin(0).tolist(), outline.amax(0).tolist()
    return (top, bottom), (left, right)


# ---------------------------------------------------------------------- random, array and dictionary forms


class RandGeometryChange(RandomizableTransform, InvertibleTransform):
    """Base of the random array transforms here: ``_draw()`` gives ``params``, ``_change`` the two geometries.

    After a call ``geometry`` holds the beams of the result: the new ones, or the old ones if nothing was changed.
    """

    backend = TORCH

    def __init__(self, prob: float) -> None:
        RandomizableTransform.__init__(self, prob)
        self.params: dict[str, float] = {}
        self.geometry: BeamGeometry | None = None

    def _draw(self) -> dict[str, float]:
        raise NotImplementedError(f"{type(self).__name__} must implement _draw.")

    def _change(self, geometry: BeamGeometry) -> tuple[BeamGeometry, BeamGeometry]:
        raise NotImplementedError(f"{type(self).__name__} must implement _change.")

    def randomize(self, data: Any = None) -> None:
        """Draw whether to act, and with which parameters."""
        super().randomize(None)
        if self._do_transform:
            self.params = self._draw()

    def __call__(
        self,
        img: NdarrayOrTensor,
        geometry: BeamGeometry | Mapping[str, Any] | None = None,
        mode: str = "bilinear",
        randomize: bool = True,
    ) -> torch.Tensor:
        """Apply to ``img`` (C, *S) with the beams ``geometry``; ``mode="nearest"`` for labels."""
        image: torch.Tensor = convert_to_tensor(img, track_meta=get_track_meta())
        _values(image)  # also where the draw leaves it alone
        if randomize:
            self.randomize()
        self.geometry = geometry = as_geometry(geometry)
        if not self._do_transform:
            out, info, affine = convert_to_tensor(image, track_meta=get_track_meta()), {}, None
        else:
            source, target = self._change(beams_of(image, geometry))
            out, self.geometry = change_geometry(image, source, target, mode), target
            affine = _affine(source, target, image.ndim - 1)
            info = {"source": source.to_dict(), "target": target.to_dict(), "mode": mode, "affine": affine.tolist()}
        if get_track_meta():
            self.push_transform(out, affine=affine, extra_info=info)
        return out

    def inverse(self, data: torch.Tensor) -> torch.Tensor:
        """Bring an image or label back to the beams it had; what fell outside the new ones comes back as 0."""
        transform = self.pop_transform(data)
        if not transform[TraceKeys.DO_TRANSFORM]:
            return data
        info = transform[TraceKeys.EXTRA_INFO]
        source, target = BeamGeometry.from_dict(info["source"]), BeamGeometry.from_dict(info["target"])
        out = change_geometry(data, target, source, info["mode"])
        if isinstance(out, MetaTensor):
            undo = torch.linalg.inv(torch.as_tensor(info["affine"], dtype=torch.float64))
            out.affine = out.affine.to(torch.float64) @ to_affine_nd(out.affine.shape[-1] - 1, undo)
        return out


class RandGeometryForm(InvertibleForm):
    """Base of the dictionary forms: one draw serves all keys, each in its own ``mode``; the geometry item follows."""

    items = ("geometry",)
    each: ClassVar = {"mode": "bilinear"}
    geometry_key: str | None

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Apply one draw to every key; ``geometry_key``, if given, then holds the new beams."""
        d = super().__call__(data)
        if self.geometry_key is not None and any(key in d for key in self.keys):
            d[self.geometry_key] = self.transform.geometry  # type: ignore[attr-defined]
        return d


def _affine(source: BeamGeometry, target: BeamGeometry, dims: int) -> torch.Tensor:
    """Old pixel position as a homogeneous map of the new one where that is a zoom, else the identity."""
    affine = torch.eye(dims + 1, dtype=torch.float64)
    if target == replace(source, apex=target.apex, spacing=target.spacing):  # the same probe at another scale
        first = dims - source.spatial_dims
        for i, (old, new) in enumerate(zip(source.spacing, target.spacing, strict=True)):
            affine[first + i, first + i] = new / old
            affine[first + i, -1] = source.apex[i] - target.apex[i] * new / old
    return affine


class RandDepthZoom(RandGeometryChange):
    """Change the depth setting: an isotropic zoom about the probe face with the sector of the new depth.

    Anatomy keeps its shape and beams stay straight; the affine of a ``MetaTensor`` follows. Beam-true zoom as
    augmentation: Singla et al. 2022, https://openreview.net/forum?id=wgXiQkBryK. See :func:`zoomed_geometry`.

    Args:
        prob: chance that an image is changed.
        factor: range of new depth over old depth; below 1 zooms in.
    """

    def __init__(self, prob: float = 0.1, factor: float | Range = (0.7, 1.1)) -> None:
        super().__init__(prob)
        self.factor = check_range("factor", factor, above=0)

    def _draw(self) -> dict[str, float]:
        return {"factor": self.R.uniform(*self.factor)}

    def _change(self, geometry: BeamGeometry) -> tuple[BeamGeometry, BeamGeometry]:
        return zoomed_geometry(geometry, **self.params)


RandDepthZoomd = dictionary_form(RandDepthZoom, RandGeometryForm)


class RandProbeTypeChange(RandGeometryChange):
    """Show the beams of a curved or phased probe as those of a linear one, and those of a linear one as curved.

    VanBerlo et al. 2025, https://arxiv.org/abs/2504.07904. Anatomy is bent: not for tasks that measure shape. 3D
    sectors stay as they are. See :func:`straight_geometry` and :func:`curved_geometry`.

    Args:
        prob: chance that an image is changed.
        width_fraction: range of the width of a new linear image, as a fraction of the old one.
        radius_factor: range of the far radius of a new sector over its beam length, above 1.
    """

    def __init__(
        self, prob: float = 0.1, width_fraction: float | Range = (0.5, 1.0), radius_factor: float | Range = (1.01, 2.0)
    ) -> None:
        super().__init__(prob)
        self.width_fraction = check_range("width_fraction", width_fraction, above=0)
        self.radius_factor = check_range("radius_factor", radius_factor, above=1)
        if self.width_fraction[1] > 1:
            raise ValueError(f"width_fraction must not exceed 1, got {width_fraction}.")

    def _draw(self) -> dict[str, float]:
        return {
            "width_fraction": self.R.uniform(*self.width_fraction),
            "radius_factor": self.R.uniform(*self.radius_factor),
        }

    def _change(self, geometry: BeamGeometry) -> tuple[BeamGeometry, BeamGeometry]:
        if geometry.spatial_dims == 3:
            return geometry, geometry
        if geometry.kind == "linear":
            return geometry, curved_geometry(geometry, 1 - 1 / self.params["radius_factor"])
        return geometry, straight_geometry(geometry, self.params["width_fraction"])


RandProbeTypeChanged = dictionary_form(RandProbeTypeChange, RandGeometryForm)


class RandConvexityChange(RandGeometryChange):
    """Change how curved the probe is: the width of its face over the width of its far arc.

    Linear probes and 3D sectors stay as they are.

    VanBerlo et al. 2025, https://arxiv.org/abs/2504.07904. See :func:`curved_geometry`.

    Args:
        prob: chance that an image is changed.
        top_fraction: range of the ratio of the widths, 0 (a point) to below 1.
    """

    def __init__(self, prob: float = 0.1, top_fraction: float | Range = (0.0, 0.75)) -> None:
        super().__init__(prob)
        self.top_fraction = check_range("top_fraction", top_fraction)
        if not 0 <= self.top_fraction[0] <= self.top_fraction[1] < 1:
            raise ValueError(f"top_fraction must be a range within [0, 1), got {top_fraction}.")

    def _draw(self) -> dict[str, float]:
        return {"top_fraction": self.R.uniform(*self.top_fraction)}

    def _change(self, geometry: BeamGeometry) -> tuple[BeamGeometry, BeamGeometry]:
        if geometry.kind in ("linear", "sector3d"):
            return geometry, geometry
        return geometry, curved_geometry(geometry, **self.params)


RandConvexityChanged = dictionary_form(RandConvexityChange, RandGeometryForm)
