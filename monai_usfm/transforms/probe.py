# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""What another depth setting would have shown: an image resampled from one beam geometry to another.

:func:`change_geometry` gives each pixel of the new beams the gray level that the old ones have at the same place along
the same beam, for any two geometries. Labels follow with ``mode="nearest"``, and the transform is invertible.
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

__all__ = ["RandDepthZoom", "RandDepthZoomd", "change_geometry", "zoomed_geometry"]


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
    middle = torch.full((geometry.spatial_dims,), 0.5, dtype=torch.float64)
    middle[-2] = 0
    face = geometry.beam_to_pixel(middle).tolist()
    near, far = geometry.radii
    source = replace(geometry, radii=(near, near + (far - near) * min(factor, 1.0)))
    apex = tuple(f + (a - f) / factor for a, f in zip(geometry.apex, face, strict=True))
    return source, replace(source, apex=apex, spacing=tuple(s * factor for s in geometry.spacing))


class RandDepthZoom(RandomizableTransform, InvertibleTransform):
    """Change the depth setting: an isotropic zoom about the probe face with the sector of the new depth.

    Anatomy keeps its shape and beams stay straight; the affine of a ``MetaTensor`` follows. Beam-true zoom as
    augmentation: Singla et al. 2022, https://openreview.net/forum?id=wgXiQkBryK. See :func:`zoomed_geometry`.

    Args:
        prob: chance that an image is changed.
        factor: range of new depth over old depth; below 1 zooms in.

    Attributes:
        geometry: beams of the last result: the new ones, or the old ones if nothing was changed.
    """

    backend = TORCH

    def __init__(self, prob: float = 0.1, factor: float | Range = (0.7, 1.1)) -> None:
        RandomizableTransform.__init__(self, prob)
        self.factor_range = check_range("factor", factor, above=0)
        self.factor = 1.0
        self.geometry: BeamGeometry | None = None

    def randomize(self, data: Any = None) -> None:
        """Draw whether to act, and ``factor``."""
        super().randomize(None)
        if self._do_transform:
            self.factor = self.R.uniform(*self.factor_range)

    def __call__(
        self,
        img: NdarrayOrTensor,
        geometry: BeamGeometry | Mapping[str, Any] | None = None,
        mode: str = "bilinear",
        randomize: bool = True,
    ) -> torch.Tensor:
        """Apply to ``img`` (C, *S) with the beams ``geometry``, by default its columns; "nearest" for labels."""
        image: torch.Tensor = convert_to_tensor(img, track_meta=get_track_meta())
        _values(image)  # also where the draw leaves it alone
        if randomize:
            self.randomize()
        out, info, affine = image, dict[str, Any](), None
        self.geometry = as_geometry(geometry)
        if self._do_transform:
            source, target = zoomed_geometry(beams_of(image, self.geometry), self.factor)
            out, self.geometry = change_geometry(image, source, target, mode), target
            affine = _affine(source, target, image.ndim - 1)
            info = {"source": source.to_dict(), "target": target.to_dict(), "mode": mode, "affine": affine.tolist()}
        if get_track_meta():
            out = convert_to_tensor(out, track_meta=True)
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


class _ZoomForm(InvertibleForm):
    """One draw serves all keys, each in its own ``mode``; the geometry item follows."""

    items = ("geometry",)
    each: ClassVar = {"mode": "bilinear"}
    geometry_key: str | None

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Apply one draw to every key; ``geometry_key``, if given, then holds the new beams."""
        d = super().__call__(data)
        if self.geometry_key is not None and any(key in d for key in self.keys):
            d[self.geometry_key] = self.transform.geometry  # type: ignore[attr-defined]
        return d


RandDepthZoomd = dictionary_form(RandDepthZoom, _ZoomForm)


def _affine(source: BeamGeometry, target: BeamGeometry, dims: int) -> torch.Tensor:
    """Old pixel position as a homogeneous map of the new one."""
    affine = torch.eye(dims + 1, dtype=torch.float64)
    for i, (old, new) in enumerate(zip(source.spacing, target.spacing, strict=True), dims - source.spatial_dims):
        affine[i, i] = new / old
    for i, (old, new) in enumerate(zip(source.apex, target.apex, strict=True), dims - source.spatial_dims):
        affine[i, -1] = old - new * affine[i, i]
    return affine
