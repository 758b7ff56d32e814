# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Estimation of beams, and resampling between image and beam space."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from monai.config import NdarrayOrTensor
from monai.data import MetaTensor, get_track_meta
from monai.transforms import InvertibleTransform, Transform
from monai.utils import TraceKeys, convert_to_dst_type, convert_to_tensor
from torch.nn.functional import grid_sample

from monai_usfm.physics.beam import BeamGeometry
from monai_usfm.physics.beam_fit import NotAConeError, fit_beam
from monai_usfm.transforms.dictionary import NUMPY, TORCH, InvertibleForm, dictionary_form
from monai_usfm.transforms.field_of_view import FieldOfView, StoredForm

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


class FitBeam(Transform):
    """Estimate the :class:`BeamGeometry` of a sector image from the outline of its field of view.

    Straight lateral edges are found by consensus over pairs of outline points: points beyond a candidate edge count
    against it, points inside it do not, because shadows and anechoic tissue dent an outline and only text extends it.
    The edges meet in the apex; the arcs are found about it in the same way. Where the image cuts edges off, or where
    they explain the outline badly, the apex is the common center of the arcs (circles by consensus), and the edges that
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
        threshold: gray level that separates tissue from the screen, see :class:`FieldOfView`.

    Raises:
        ValueError: for an unknown ``fallback`` or a ``min_confidence`` outside [0, 1].
        NotAConeError: (a ValueError) if no cone is found and ``fallback="error"``.
    """

    backend = NUMPY

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
        return fit_beam(mask, spacing, self.fallback, self.min_confidence)


class _FitBeamForm(StoredForm):
    options: ClassVar = {"postfix": ("beam", "appended to the key, after an underscore.")}


FitBeamd = dictionary_form(FitBeam, _FitBeamForm)


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

    backend = TORCH

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

    backend = TORCH

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


class _BeamForm(InvertibleForm):
    items = required = ("beam",)
    each: ClassVar = {"mode": "bilinear"}

    def check_each(self, choices: Iterable[Any]) -> None:
        for mode in choices:
            _check_mode(mode)


ToBeamSpaced = dictionary_form(ToBeamSpace, _BeamForm)
FromBeamSpaced = dictionary_form(FromBeamSpace, _BeamForm)


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
