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

from monai_usfm.physics.beam import BeamGeometry, sample_pixels
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
    """Estimate the :class:`BeamGeometry` of a sector image from the contour of its field of view.

    Straight lateral edges are found by consensus over pairs of contour points: points beyond a candidate edge count
    against it, points inside it do not, because shadows and anechoic tissue dent a contour and only text extends it.
    The edges meet in the apex; the arcs are found about it in the same way. Where the image cuts edges off, or where
    they explain the contour badly, the apex is the common center of the arcs (circles by consensus), and the edges that
    are visible are rays from it. All inliers then refine all parameters by least squares. An arc or edge that the image
    cuts off is placed at the outermost visible pixel. A crop that shows neither edges nor arcs is refused.

    - ``(C, H, W)`` gives ``"convex"``, or ``"phased"`` where the near arc is shorter than a tenth of the far radius.
    - ``(C, D, H, W)`` gives ``"sector3d"``; a cine, whose contour is the same in all frames, gives the geometry of its
      frames. Depth runs along rows, elevation along slices.

    Radii are in pixels, or in the unit of the voxel sizes where a ``MetaTensor`` carries them. ``confidence`` is the
    share of the lateral edges (of the arcs and the other edge, where one is cut off) that the contour supports, times
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
        self.fallback, self.min_confidence = fallback, min_confidence
        self.field_of_view = FieldOfView(threshold)

    def __call__(self, img: NdarrayOrTensor) -> BeamGeometry | None:
        fov = self.field_of_view(img)
        # MONAI 1.6.0 gives images the third spacing of their affine too
        steps = [float(s) for s in fov.pixdim] if isinstance(fov, MetaTensor) else [1.0, 1.0, 1.0]
        mask = fov[0].cpu().numpy().astype(bool)
        return fit_beam(mask, steps[: mask.ndim], self.fallback, self.min_confidence)


class _FitBeamForm(StoredForm):
    options: ClassVar = {"postfix": ("beam", "appended to the key, after an underscore.")}


FitBeamd = dictionary_form(FitBeam, _FitBeamForm)


# ---------------------------------------------------------------------- resampling


class _Resampling(InvertibleTransform):
    """What both directions share: the mode, the trace, and the way back, which is the other direction."""

    backend = TORCH
    to_beams: bool

    def __init__(self, size: Sequence[int] | None, mode: str) -> None:
        self.size = None if size is None else tuple(int(n) for n in size)
        self.mode = _check_mode(mode)

    def __call__(  # type: ignore[override]
        self, img: NdarrayOrTensor, beam: BeamGeometry, mode: str | None = None
    ) -> torch.Tensor:
        """``(C, *S)`` with its geometry, known or from :class:`FitBeam`; ``mode`` overrides that of construction."""
        image, mode = _check_image(img, beam), _check_mode(mode or self.mode)
        out = _resample(image, beam, self.size or beam.natural_beam_shape(), mode, self.to_beams)
        if not isinstance(image, MetaTensor) or not isinstance(out, MetaTensor):
            return out
        extra = {"beam": beam.to_dict(), "mode": mode, "affine": image.affine}
        out = self.push_transform(out, orig_size=tuple(image.shape[1:]), extra_info=extra)
        out.affine = torch.eye(len(image.affine), dtype=torch.float64)
        return out

    def inverse(self, data: torch.Tensor) -> torch.Tensor:
        """Back to the grid that the image had, with its affine."""
        info = self.pop_transform(data)
        extra = info[TraceKeys.EXTRA_INFO]
        beam, size = BeamGeometry.from_dict(extra["beam"]), [int(n) for n in info[TraceKeys.ORIG_SIZE]]
        out = _resample(data, beam, size[-beam.spatial_dims :], _check_mode(extra["mode"]), not self.to_beams)
        if isinstance(out, MetaTensor):
            out.affine = extra["affine"]
        return out


class ToBeamSpace(_Resampling):
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

    to_beams = True

    def __init__(self, beam_shape: Sequence[int] | None = None, mode: str = "bilinear") -> None:
        super().__init__(beam_shape, mode)


class FromBeamSpace(_Resampling):
    """Scan conversion: resample beams ``(C, *B)`` to an image ``(C, *spatial_shape)``, black outside the beams.

    The opposite of :class:`ToBeamSpace`, for data that starts in beam space, such as simulated or beamformed lines
    ``(C, axial, lateral)``, with elevation or frames before axial in 3D; to undo :class:`ToBeamSpace` use its inverse.

    Args:
        spatial_shape: size of the image, (H, W) or (D, H, W).
        mode: ``"bilinear"`` (trilinear in 3D) for images, ``"nearest"`` for labels.

    Raises:
        ValueError: for another mode, or if beams or ``spatial_shape`` do not fit the geometry.
    """

    to_beams = False

    def __init__(self, spatial_shape: Sequence[int], mode: str = "bilinear") -> None:
        super().__init__(spatial_shape, mode)


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


def _resample(image: torch.Tensor, beam: BeamGeometry, size: Sequence[int], mode: str, to_beams: bool) -> torch.Tensor:
    """Values at the beam samples or the pixels of a grid of that size; channels and frames are independent."""
    plain = image.as_tensor() if isinstance(image, MetaTensor) else image
    # float32 holds labels up to 2 ** 24 exactly
    values = plain if plain.dtype in (torch.float32, torch.float64) else plain.to(torch.float32)
    if to_beams:
        out = sample_pixels(values, beam.beam_to_cartesian(size, image.device), mode)
    else:
        position = beam.cartesian_to_beam(size, image.device)
        position = position * position.new_tensor([n - 1 for n in image.shape[-beam.spatial_dims :]])
        out = torch.where(beam.mask(size, image.device)[0], sample_pixels(values, position, mode), 0)
    if mode == "nearest" or plain.dtype.is_floating_point:
        out = out.to(plain.dtype)
    return convert_to_dst_type(out, dst=image, dtype=out.dtype)[0] if isinstance(image, MetaTensor) else out
