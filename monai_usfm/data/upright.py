# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""The one road for pixels: what any reader gives becomes an upright gray image in [0, 1]; array and dictionary form."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import DtypeLike, KeysCollection
from monai.data import MetaTensor
from monai.data.meta_obj import get_track_meta
from monai.data.utils import affine_to_spacing, to_affine_nd
from monai.transforms import InvertibleTransform, MapTransform
from monai.utils import TraceKeys, ensure_tuple_rep, get_equivalent_dtype
from monai.utils.misc import ImageMetaKey

from monai_usfm.data.decoded import FramePicker, checked_frame, frame_picker
from monai_usfm.data.formats import UnreadableImageError
from monai_usfm.data.grids import is_sheared
from monai_usfm.data.image_files import EIGHT_BIT_MODES
from monai_usfm.transforms.dictionary import TORCH, WarnsOnce
from monai_usfm.transforms.labels import color_values

__all__ = ["UprightGray", "UprightGrayd"]

_USUAL_SCALES = (255.0, 4095.0, 65535.0, 2.0**32 - 1)


BANDS = 3  # red, green and blue


class UprightGray(WarnsOnce, InvertibleTransform):
    """Turn a channel-first image with MONAI's axes into an upright gray one with values in [0, 1].

    The input is what ``LoadImage`` with any reader and ``EnsureChannelFirst`` give, or the image that MONAI Deploy or
    MONAI Label holds in memory: ``(C, x, y[, z])``. With :class:`~monai_usfm.data.UltrasoundReader` the header's facts
    come along as metadata; with other readers they are taken from the metadata those leave, as far as they go.

    **Axes.** Axes of size 1 go before anything else is decided. What is left is a still (2 axes) or a volume or cine
    (3). The result has rows first: ``(C, H, W)`` or ``(C, D, H, W)``, where ``D`` is the slice, page or time axis. The
    affine's columns are reversed with them, so a voxel keeps its place in the world.

    **Frames.** With ``spatial_dims=2`` a volume or cine gives one frame; three equal slices are the red, green and blue
    of a gray still, as SimpleITK writes those of an array. With ``spatial_dims=3`` a still is an error.

    **Channels.** Colored files give one channel, ITU-R BT.601 luma.

    **Values.** ``scale="auto"`` divides by the value of white: of the data type (8 bits: 255; boolean: 1), else of the
    header, else of ``full_scale``. Where none of them tells (16-bit integers, floats) it is guessed for each file: 1
    for floats up to 1, else the smallest of 8, 12, 16 and 32 bits that holds the values, where one value in a thousand
    may be up to twice as large and is clipped. The first such guess is named in a warning. A data set should not be
    guessed file by file: :func:`~monai_usfm.data.dataset_full_scale` decides for all. Negative or larger values are
    stretched from minimum to maximum, with a warning. ``scale="minmax"`` always stretches, without a warning.
    ``scale=None`` keeps the stored numbers, for label maps, and gives each color a number of its own
    (:func:`~monai_usfm.transforms.labels.color_values`).

    The inverse, as called by MONAI's ``Invertd``, takes an image or prediction ``(K, H, W)`` or ``(K, D, H, W)`` back
    to the axes, the shape (axes of size 1 too) and the affine that came in. The channels and values stay as they are.
    The one frame of a volume comes back as ``(K, x, y)`` with that frame's affine.

    Args:
        spatial_dims: 2 or 3.
        frame: ``"middle"`` or an index (negative ones count from the end).
        dtype: of the result; ``torch.uint8`` gives 0 to 255 instead of 0 to 1.
        scale: ``"auto"``, ``"minmax"`` or ``None``.
        full_scale: value of white, for files whose type and header do not tell.

    Raises:
        ValueError: on an unknown option.
        UnreadableImageError: on calling, naming the file, when it has NaN or infinite values, a number of channels
            other than 1, 3 and 4, no such frame, or too few or too many axes.
    """

    backend = TORCH

    def __init__(
        self,
        spatial_dims: int = 2,
        frame: str | int = "middle",
        dtype: DtypeLike | torch.dtype = torch.float32,
        scale: str | None = "auto",
        full_scale: float | None = None,
    ) -> None:
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims!r}.")
        if scale not in ("auto", "minmax", None):
            raise ValueError(f'scale must be "auto", "minmax" or None, got {scale!r}.')
        if full_scale is not None and not _positive(full_scale):
            raise ValueError(f"full_scale must be a positive number or None, got {full_scale!r}.")
        frame_picker(frame)  # refuses what is neither "middle" nor an index
        self.spatial_dims, self.frame = spatial_dims, frame
        self.dtype: torch.dtype = get_equivalent_dtype(dtype, torch.Tensor)
        self.scale, self.full_scale = scale, full_scale

    def __call__(
        self,
        img: torch.Tensor,
        frame: str | int | None = None,
        spacing: float | Sequence[float] | None = None,
        full_scale: float | None = None,
    ) -> torch.Tensor:
        """``(C, x, y[, z]) -> (1, *S)``.

        Args:
            img: the image; its metadata are used where it is a ``MetaTensor``.
            frame: index or ``"middle"``, in place of the one given at construction.
            spacing: mm per sample, in the order of ``S``, for files that do not store it; one number serves all axes.
            full_scale: value of white, in place of the one given at construction.
        """
        meta = dict(img.meta) if isinstance(img, MetaTensor) else {}
        operations = list(img.applied_operations) if isinstance(img, MetaTensor) else []
        values = img.detach().cpu().numpy() if isinstance(img, torch.Tensor) else np.asarray(img)
        pick = frame_picker(self.frame if frame is None else frame, str(meta.get(ImageMetaKey.FILENAME_OR_OBJ, "")))
        out = self.apply(values, meta, pick, spacing, full_scale)
        if isinstance(out, MetaTensor):
            out.applied_operations = operations + out.applied_operations
        return out.to(img.device) if isinstance(img, torch.Tensor) else out

    def apply(
        self,
        values: np.ndarray,
        meta: Mapping[str, Any],
        pick: FramePicker,
        spacing: float | Sequence[float] | None = None,
        full_scale: float | None = None,
    ) -> torch.Tensor:
        """As :meth:`__call__`, from an array, the metadata of its reader, and a frame chosen by ``pick``."""
        name = str(meta.get(ImageMetaKey.FILENAME_OR_OBJ, "the image"))
        if full_scale is not None and not _positive(full_scale):
            raise UnreadableImageError(
                name, f"full_scale must be a positive number, got {full_scale!r}; correct the item."
            )
        values = _frames_from_channels(values, meta)
        shape = values.shape[1:]
        kept = _kept_axes(name, shape)
        values = values.squeeze(tuple(1 + axis for axis in range(len(shape)) if axis not in kept))
        # of a single frame the reader tells how many there are; others may have been cut off since
        count = shape[kept[2]] if len(kept) == 3 else int(meta.get("num_frames") or 1)
        if self.spatial_dims == 2 and len(kept) == 3 and not meta.get("cine") and _are_bands_of_gray(values):
            count = 1
        white = _header_full_scale(values.dtype, meta)
        values = self._scaled(name, self._channels(name, values, white, meta), white, full_scale)
        frame = int(meta.get("frame", -1))
        if self.spatial_dims == 3 and len(kept) == 2:
            raise UnreadableImageError(
                name,
                "a still image, but spatial_dims=3 needs a volume or cine, as do --frames, stream and propagate; give "
                "one, or leave these out.",
            )
        if self.spatial_dims == 2:
            if len(kept) == 3:
                frame = checked_frame(name, pick, count)
                values = values[..., frame]
            elif frame < 0:
                frame = checked_frame(name, pick, 1)
        else:
            frame = -1
        upright = np.ascontiguousarray(values.transpose(0, *range(self.spatial_dims, 0, -1)))
        out = self._cast(name, torch.from_numpy(upright))
        if not get_track_meta():
            return out
        given = self.full_scale if full_scale is None else full_scale
        return self._with_meta(out, name, meta, shape, kept, frame, count, spacing, white or float(given or 0))

    def inverse(self, data: torch.Tensor) -> torch.Tensor:
        """``(K, *S) -> (K, x, y[, z])`` in the file's own shape, see the class."""
        if not isinstance(data, MetaTensor):
            raise ValueError("only a MetaTensor knows what was applied; turn metadata tracking on.")
        record = self.pop_transform(data)[TraceKeys.EXTRA_INFO]
        img: Any = data.permute(0, *range(data.ndim - 1, 0, -1))
        for axis in record["dropped"]:  # ascending, so that each lands where it was
            img = img.unsqueeze(1 + axis)
        img.affine = torch.as_tensor(record["affine"])
        img.meta["original_affine"] = np.asarray(record["affine"])
        img.meta["spatial_shape"] = np.asarray(img.shape[1:])
        img.meta["file_shape"] = np.asarray(record["file_shape"])
        return img

    def _channels(self, name: str, values: np.ndarray, white: float, meta: Mapping[str, Any]) -> np.ndarray:
        """``(c, *axes) -> (1, *axes)``."""
        channels = len(values)
        if channels == 2 and str(meta.get("mode")) in ("LA", "La"):  # Pillow's gray with opacity
            channels, values = 1, values[:1]
        if channels not in (1, 3, 4):
            raise UnreadableImageError(
                name,
                f"has {channels} channels; expected 1 (gray), 3 (RGB) or 4 (RGBA). "
                "Are frames or slices stored as channels? Store them as a third axis.",
            )
        if channels == 1:
            return values
        values = values[:3]
        if self.scale is None and (np.ptp(values, axis=0) != 0).any():
            if (values != np.rint(values)).any() or values.min() < 0 or values.max() > 255:
                raise UnreadableImageError(
                    name, "a colored image where a label map is expected; store one class index per pixel."
                )
            return color_values(values)[None]
        if white == 255 and values.dtype.kind == "f" and (values == np.rint(values)).all():
            values = values.astype(np.uint8)  # MONAI's readers hand 8 bits over as floats
        return np.moveaxis(gray_from_rgb(np.moveaxis(values, 0, -1)), -1, 0)

    def _scaled(self, name: str, values: np.ndarray, white: float, full_scale: float | None) -> np.ndarray:
        """8-bit values as they are (divided last, on the tensor), others as floats in [0, 1]; see the class."""
        if values.dtype.kind not in "buif":
            raise UnreadableImageError(name, f"holds values of type {values.dtype}; store real numbers.")
        if bad := values.size - int(np.isfinite(values).sum()):
            raise UnreadableImageError(
                name, f"has {bad} NaN or infinite of {values.size} values; replace them or leave the file out."
            )
        if self.scale is None:
            return values
        if self.scale == "auto":
            if values.dtype == np.uint8 and white == 255:
                return values
            low, high = float(values.min()), float(values.max())
            given = self.full_scale if full_scale is None else full_scale
            if not white and given:
                white = float(given)
                if full_scale is not None and _of_another_kind(values, white, low, high):
                    white = guess_full_scale(values)
                    self._warn(
                        "another kind",
                        f"{name}: {values.dtype} values from {low:g} to {high:g} are of another kind than the images "
                        f"of its list, or those that the network was trained on, where white is {given:g}: read with "
                        f"white at {white:g}, and so are further files like it.",
                    )
                else:
                    high = min(high, white)  # the whole data set decided, so single larger values are clipped
            if not white:
                white = self._guess(name, values, high)
            if low >= -1e-6 * white and (high <= white * (1 + 1e-6) or _few_above(values, white, high)):
                return np.clip(values.astype(np.float32) / np.float32(white), 0, 1)
            self._warn(
                "stretched",
                f"{name}: {values.dtype} values from {low:g} to {high:g} are neither in [0, 1] nor in [0, 255]; "
                "stretched to [0, 1] by minimum and maximum, and so are further files like it. "
                'Use scale="minmax" to ask for this.',
            )
        wide = values.astype(np.float64)
        low, high = wide.min(), wide.max()
        return ((wide - low) / max(high - low, np.finfo(np.float64).tiny)).astype(np.float32)

    def _guess(self, name: str, values: np.ndarray, high: float) -> float:
        """The value of white of one file of a wide type; see :func:`guess_full_scale`."""
        white = guess_full_scale(values)
        if white > 1 and values.min() >= 0 and high <= 2 * white and not (values.dtype.kind == "f" and white == 255):
            self._warn(
                "guessed",
                f"{name}: {values.dtype} values up to {high:g}, and no header tells the value of white: taken as "
                f"{white:g}, and guessed for each further file like it. Set full_scale for the whole data set.",
            )
        return white

    def _cast(self, name: str, img: torch.Tensor) -> torch.Tensor:
        """Last step to the dtype asked for; 8-bit images arrive here as uint8."""
        if self.scale is not None and self.dtype.is_floating_point and img.dtype == torch.uint8:
            return img.to(self.dtype).div_(255)
        if self.scale is not None and not self.dtype.is_floating_point and img.is_floating_point():
            img = img.mul(255).round_()
        if self.scale is None and not self.dtype.is_floating_point and img.dtype != self.dtype:
            exact = img.double()
            whole = exact.round()
            img = torch.where((exact - whole).abs() <= 1e-3, whole, exact)  # as scaled NIfTI leaves them
            if not torch.equal(img.to(self.dtype).double(), img):
                low, high = (float(v) for v in img.aminmax())
                raise UnreadableImageError(name, f"its values, {low:g} to {high:g}, do not fit into {self.dtype}.")
        return img.to(self.dtype)

    def _with_meta(
        self,
        img: torch.Tensor,
        name: str,
        meta: Mapping[str, Any],
        shape: tuple[int, ...],
        kept: tuple[int, ...],
        frame: int,
        count: int,
        spacing: float | Sequence[float] | None,
        white: float,
    ) -> MetaTensor:
        """Attach affine and metadata: the same keys and types for every format, so that mixed batches collate."""
        affine = _affine_of(meta)
        size_in = affine_to_spacing(affine)
        cine = bool(meta.get("cine", len(kept) == 3 and kept[2] > 2))  # the fourth axis is time
        if self.spatial_dims == 2 and frame > 0 and not cine:
            affine[:3, 3] += affine[:3, kept[2] if len(kept) == 3 else 2] * frame
        spare = [axis for axis in range(3) if axis not in kept]  # a fourth axis, time, takes the place of such a one
        columns = [axis if axis < 3 else spare[0] for axis in reversed(kept[: self.spatial_dims])]
        order = [*columns, *(axis for axis in range(3) if axis not in columns), 3]
        wanted = self._spacing(name, spacing)
        for column, mm in zip(order, wanted, strict=False):
            affine[:3, column] *= mm / affine_to_spacing(affine)[column]
        # other readers than ours say so by an affine that is no identity
        known = bool(meta.get("spacing_known", not np.allclose(size_in, 1)) or wanted)
        if known and is_sheared(affine[:3, order[: self.spatial_dims]]):
            known = False  # lengths along the axes do not tell distances and volumes
            self._warn(
                "sheared",
                f"{name}: the axes of its affine are not at right angles, so it is measured in pixels, and so are "
                "further files like it; resample it to a grid with right angles.",
            )
        out = MetaTensor(
            img,
            affine=torch.from_numpy(affine[:, order].copy()),
            meta={
                ImageMetaKey.FILENAME_OR_OBJ: name,
                "original_affine": affine,
                "spatial_shape": np.asarray(img.shape[:0:-1]),
                "original_channel_dim": "no_channel",
                "space": "RAS",
                "spacing": affine_to_spacing(affine[:, order])[: self.spatial_dims].astype(np.float32),
                "spacing_known": known,
                "frame": frame,
                "num_frames": count,
                "frame_time": float(meta.get("frame_time", 0.0)),
                "cine": cine,
                "turn": int(meta.get("turn", 1)),
                "place": str(meta.get("place", "")),
                "spacing_box": np.asarray(meta.get("spacing_box", (0, img.shape[-2], 0, img.shape[-1]))),
                "full_scale": float(white),
            },
        )
        picked = self.spatial_dims == 2 and len(kept) == 3  # a frame of the file's third axis
        dropped = [] if picked else [axis for axis in range(len(shape)) if axis not in kept]
        if picked:  # the result has the axes of the frame alone, first
            affine = affine[:, [*columns[::-1], *order[2:]]]
        self.push_transform(
            out,
            extra_info={
                "dropped": dropped,
                "affine": affine.tolist(),
                "file_shape": [int(n) for n in meta.get("file_shape", shape)],
            },
        )
        return out

    def _spacing(self, name: str, spacing: float | Sequence[float] | None) -> list[float]:
        if spacing is None:
            return []
        try:
            wanted = [float(mm) for mm in ensure_tuple_rep(spacing, self.spatial_dims)]
        except (TypeError, ValueError):
            wanted = []
        if not wanted or not all(map(_positive, wanted)):
            raise UnreadableImageError(
                name, f"spacing must be positive mm per axis of {self.spatial_dims}, got {spacing}."
            )
        return wanted


class UprightGrayd(MapTransform, InvertibleTransform):
    """Dictionary form of :class:`UprightGray`.

    An item may fix what its files cannot tell: ``item["frame"]`` (an index or ``"middle"``), ``item["spacing"]``
    (mm, in the order of the result's axes) and ``item["full_scale"]`` (value of white).

    Args:
        keys: images, channel first, with MONAI's axes.
        spatial_dims, frame: see :class:`UprightGray`.
        full_scale: value of white of items that do not tell it, such as those of MONAI Label.
        dtype, scale: see :class:`UprightGray`; one, or one per key: ``("auto", None)`` for image and label.
        allow_missing_keys: do not raise when an item lacks a key.
    """

    backend = TORCH

    def __init__(
        self,
        keys: KeysCollection,
        spatial_dims: int = 2,
        frame: str | int = "middle",
        dtype: DtypeLike | torch.dtype | Sequence[DtypeLike | torch.dtype] = torch.float32,
        scale: str | Sequence[str | None] | None = "auto",
        full_scale: float | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.steps = [
            UprightGray(spatial_dims, frame, one_dtype, one_scale, full_scale)
            for one_dtype, one_scale in zip(
                ensure_tuple_rep(dtype, len(self.keys)), ensure_tuple_rep(scale, len(self.keys)), strict=True
            )
        ]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key, step in self.key_iterator(d, self.steps):
            d[key] = step(d[key], d.get("frame"), d.get("spacing"), d.get("full_scale", step.full_scale))
        return d

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key, step in self.key_iterator(d, self.steps):
            d[key] = step.inverse(d[key])
        return d


def _positive(value: Any) -> bool:
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    return bool(number and 0 < value < float("inf"))


def _are_bands_of_gray(values: np.ndarray) -> bool:
    return values.shape[-1] == BANDS and bool((values == values[..., :1]).all())


def gray_from_rgb(values: np.ndarray) -> np.ndarray:
    """ITU-R BT.601 luma, ``(..., 3) -> (..., 1)``, exactly the gray value where R = G = B.

    8-bit values give rounded 8-bit values, by the fixed-point weights of Pillow's ``convert("L")``; others give floats.
    """
    bands = values[..., 0:1], values[..., 1:2], values[..., 2:3]
    if values.dtype == np.uint8:
        luma = np.full(bands[0].shape, 0x8000, np.uint32)
        for band, share in zip(bands, (19595, 38470, 7471), strict=True):  # one by one: a cine is large
            luma += np.multiply(band, share, dtype=np.uint32)
        return (luma >> 16).astype(np.uint8)
    red, green, blue = (band.astype(np.float64) for band in bands)
    return (green + 0.299 * (red - green) + 0.114 * (blue - green)).astype(
        np.float64 if values.dtype == np.float64 else np.float32
    )


def guess_full_scale(values: np.ndarray) -> float:
    """The value of white of an image of which neither type nor header tells: 1, 255, 4095, 65535 or 2**32 - 1.

    The smallest that holds the values. One value in a thousand may lie above it, up to twice: a single pixel of 256 in
    an image of 8 bits makes it no image of 12.
    """
    high = float(values.max())
    if values.dtype.kind == "b" or (values.dtype.kind == "f" and high <= 1 + 1e-6):
        return 1.0
    for white in _USUAL_SCALES:
        if high <= white or _few_above(values, white, high):
            return white
    return _USUAL_SCALES[-1]


def _of_another_kind(values: np.ndarray, white: float, low: float, high: float) -> bool:
    """Whether these are no values of a data set whose white is ``white``: shares of 1 among whole numbers, whole
    numbers among shares, or a part of the image far above white."""
    if values.dtype.kind == "f" and low >= 0 and high <= 1 and white >= 255:
        return bool((values != np.rint(values)).any())
    return high > 2 * white and bool(white <= 1 or np.mean(values > 2 * white) > 0.01)


def _few_above(values: np.ndarray, white: float, high: float) -> bool:
    return bool(high <= 2 * white and np.count_nonzero(values > white) <= 1e-3 * values.size)


def _kept_axes(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes that are more than one sample wide, at least two of them; trailing axes of size 1 go first."""
    kept = list(range(len(shape)))
    for axis in sorted(range(len(shape)), key=lambda axis: (axis < 2, -axis)):
        if len(kept) > 2 and shape[axis] == 1:
            kept.remove(axis)
    if len(kept) not in (2, 3):
        raise UnreadableImageError(
            name,
            f"has {len(kept)} axes, of shape {tuple(shape)}; expected 2 or 3 (rows, columns, frames or slices). "
            "Store each volume of a sequence in its own file.",
        )
    return tuple(kept)


def _frames_from_channels(values: np.ndarray, meta: Mapping[str, Any]) -> np.ndarray:
    """NIfTI's fourth axis is time, which MONAI's reader takes for channels: ``(t, x, y, 1) -> (1, x, y, t)``."""
    if "file_shape" in meta or "dim" not in meta or "qform_code" not in meta or len(values) == 1:
        return values
    dims = [int(n) for n in np.asarray(meta["dim"]).ravel()]
    if dims[0] != 4 or dims[4] != len(values):
        return values
    return np.moveaxis(values, 0, -1)[None]


def _header_full_scale(dtype: np.dtype, meta: Mapping[str, Any]) -> float:
    """The value of white by data type or header, 0 where neither tells."""
    if "full_scale" in meta:  # UltrasoundReader
        return float(meta["full_scale"])
    if dtype == np.uint8:
        return 255.0
    if dtype.kind == "b":
        return 1.0
    if str(meta.get("mode")) in EIGHT_BIT_MODES:  # PILReader
        return 255.0
    if "datatype" in meta and "scl_slope" in meta:  # NibabelReader
        slope, shift = float(meta["scl_slope"]), float(meta.get("scl_inter", 0.0))
        plain = not np.isfinite(slope) or slope == 0 or (slope == 1 and shift == 0)
        return 255.0 if int(meta["datatype"]) in (2, 128, 2304) and plain else 0.0
    if str(meta.get("type")) in ("uchar", "unsigned char", "uint8", "uint8_t"):  # NrrdReader
        return 255.0
    stored = meta.get("00280101")  # PydicomReader
    if isinstance(stored, Mapping) and stored.get("Value"):
        return float(2 ** int(stored["Value"][0]) - 1)
    return 0.0


def _affine_of(meta: Mapping[str, Any]) -> np.ndarray:
    """4x4 matrix of the image that came in; the identity where it has none."""
    affine = meta.get("affine", meta.get("original_affine"))
    if affine is None:
        return np.eye(4)
    matrix = np.asarray(affine, dtype=np.float64)
    return np.array(matrix if matrix.shape == (4, 4) else to_affine_nd(3, matrix))
