# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Read an ultrasound file of any common format into one upright, scaled tensor: array and dictionary form."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection, PathLike
from monai.data import ImageReader, ITKReader, MetaTensor, NibabelReader, PILReader
from monai.data.meta_obj import get_track_meta
from monai.data.utils import affine_to_spacing, to_affine_nd
from monai.transforms import MapTransform, Randomizable, Transform
from monai.utils import ensure_tuple, ensure_tuple_rep, optional_import
from monai.utils.misc import ImageMetaKey
from PIL import Image, ImageOps

__all__ = [
    "SUPPORTED_SUFFIXES",
    "LoadUltrasound",
    "LoadUltrasoundD",
    "LoadUltrasoundDict",
    "LoadUltrasoundd",
    "UltrasoundReader",
    "UnreadableImageError",
    "file_format",
    "grey_from_rgb",
]

itk, _ = optional_import("itk")  # as MONAI does: importing it takes long, and most lists need none of it

_FORMATS: dict[str, tuple[str, ...]] = {
    "picture": (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"),
    "nifti": (".nii", ".nii.gz"),
    "itk": (".mha", ".mhd", ".nrrd", ".nhdr"),
    "dicom": (".dcm", ".dicom", ".ima"),
}
SUPPORTED_SUFFIXES: tuple[str, ...] = tuple(suffix for suffixes in _FORMATS.values() for suffix in suffixes)
"""Lower-case file endings that :class:`LoadUltrasound` reads; DICOM files are also recognised without an ending."""

_EIGHT_BIT_MODES = {"L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV"}

FramePicker = Callable[[int], int]
"""Number of frames in the file -> index of the frame to take."""


class UnreadableImageError(RuntimeError):
    """A file that cannot be used, with the reason and what to do about it.

    Args:
        path: the file.
        reason: what is wrong and how to put it right.
    """

    def __init__(self, path: PathLike, reason: str) -> None:
        super().__init__(str(path), reason)  # both arguments, so that the error survives pickling between processes
        self.path = str(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass
class _Decoded:
    """What a format's reader hands over: ``values`` is upright, ``(frames, H, W, channels)``."""

    values: np.ndarray
    num_frames: int  # in the file; `values` holds either all of them or the one that was picked
    affine: np.ndarray  # 4x4, voxel (x, y, frame) -> mm
    spacing_known: bool
    frame: int | None = None  # index of the frame in `values` when it is the only one read
    bits: int | None = None  # significant bits of integer values, where the header tells


class LoadUltrasound(Transform):
    """Load one ultrasound file as a channel-first, upright tensor with values in [0, 1] and spacing in mm.

    PNG, JPEG, BMP and TIFF (also several pages) are read with MONAI's ``PILReader``, NIfTI with ``NibabelReader``,
    MHA/MHD and NRRD with ``ITKReader`` and DICOM with :class:`~monai_usfm.data.dicom.UltrasoundDicomReader`.

    **Axes.** MONAI's readers return ``(x, y[, z])``. Here the spatial axes are reversed for every format, so that
    rows come first and the picture is upright: ``(C, H, W)`` or ``(C, D, H, W)``, where ``D`` is the slice, page or
    time axis. The affine's columns are reversed with them, so a voxel keeps its place in the world; ``meta`` holds
    the file's own ``original_affine`` and ``spatial_shape``, so ``SaveImage(resample=True)`` writes NIfTI on its grid.

    **Values.** ``scale="auto"`` maps to [0, 1] by these rules, decided once per file (not per frame):

    - unsigned 8-bit: ``/ 255``; boolean: 0 or 1;
    - DICOM: ``/ (2 ** BitsStored - 1)``;
    - other integers without negative values: ``/ (2 ** n - 1)`` with the smallest ``n`` of 8, 12, 16, 32 that holds the
      largest value of the file, because 8- and 12-bit pictures are often stored in 16 or 32 bits;
    - floats in [0, 1] are kept; floats in [0, 255] are divided by 255;
    - anything else (negative or larger values) is stretched from its minimum and maximum to [0, 1], and the first
      such file is named in a warning.

    ``scale="minmax"`` always stretches, without a warning. ``scale=None`` keeps the stored numbers; use it for label
    maps (colour tables of PNG files are then not applied: the stored class index is returned). A label map may be
    several files, masks of one image, given as a list: they are joined, the largest value of each pixel.

    **Channels.** ``grey=True`` gives one channel: ITU-R BT.601 luma of colour files, exactly the grey value where
    R = G = B. ``grey=False`` gives three. Opacity channels are dropped.

    **Frames.** With ``spatial_dims=2`` a volume, cine or multi-page file gives one frame of its first axis; stills
    ignore ``frame``. With ``spatial_dims=3`` all frames are returned and a still is an error. An instance made with
    ``frame="random"`` is also a MONAI :class:`~monai.transforms.Randomizable`; the others are not, so that MONAI's
    caching datasets can cache what they load.

    With metadata tracking off (:func:`monai.data.set_track_meta`) a plain tensor is returned and no metadata is built.

    Args:
        spatial_dims: 2 or 3.
        frame: ``"middle"``, ``"random"`` or an index (negative ones count from the end).
        grey: one channel when true, else three.
        dtype: of the result; ``torch.uint8`` gives 0 to 255 instead of 0 to 1.
        scale: ``"auto"``, ``"minmax"`` or ``None``, see above.

    Raises:
        ValueError: on an unknown option.
        UnreadableImageError: on calling, naming the file, when it is missing, empty, truncated or of another type, has
            NaN or infinite values, a number of channels other than 1, 3 and 4, no such frame, or too few dimensions.
    """

    def __new__(cls, spatial_dims: int = 2, frame: str | int = "middle", *args: Any, **kwargs: Any) -> LoadUltrasound:
        return super().__new__(_LoadRandomFrame if cls is LoadUltrasound and frame == "random" else cls)

    def __init__(
        self,
        spatial_dims: int = 2,
        frame: str | int = "middle",
        grey: bool = True,
        dtype: torch.dtype = torch.float32,
        scale: str | None = "auto",
    ) -> None:
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims!r}.")
        if scale not in ("auto", "minmax", None):
            raise ValueError(f'scale must be "auto", "minmax" or None, got {scale!r}.')
        if frame != "random":
            _frame_picker(frame)  # refuses what is neither "middle" nor an index
        self.spatial_dims = spatial_dims
        self.frame = frame
        self.grey = grey
        self.dtype = dtype
        self.scale = scale
        self._warned = False

    def __call__(
        self,
        filename: PathLike | Sequence[PathLike],
        frame: str | int | None = None,
        spacing: float | Sequence[float] | None = None,
    ) -> torch.Tensor:
        """``path -> (C, *S)``.

        Args:
            filename: the file; with ``scale=None`` also a list of masks.
            frame: index or ``"middle"``, in place of the one given at construction.
            spacing: mm per sample, in the order of ``S``, for formats that do not store it; one number serves all axes.
        """
        return self.load(filename, _frame_picker(self.frame if frame is None else frame), spacing)

    def load(
        self,
        filename: PathLike | Sequence[PathLike],
        pick: FramePicker,
        spacing: float | Sequence[float] | None = None,
    ) -> torch.Tensor:
        """As :meth:`__call__`, with the frame chosen by ``pick`` (number of frames -> index)."""
        if isinstance(filename, list | tuple):
            return self._joined(filename, pick, spacing)
        path = str(Path(filename).expanduser())  # type: ignore[arg-type]  # no sequence any more
        decoded = self._decode(path, pick if self.spatial_dims == 2 else None)
        values = self._scaled(path, self._channels(path, decoded.values), decoded.bits)
        frame = decoded.frame
        if self.spatial_dims == 2:
            if frame is None:
                frame = _checked_frame(path, pick, decoded.num_frames)
                values = values[frame : frame + 1]
            img = torch.from_numpy(np.ascontiguousarray(values[0].transpose(2, 0, 1)))
        else:
            if decoded.num_frames == 1:
                raise UnreadableImageError(
                    path,
                    "a still image, but spatial_dims=3 needs a volume or cine; use spatial_dims=2 or leave it out.",
                )
            img = torch.from_numpy(np.ascontiguousarray(values.transpose(3, 0, 1, 2)))
        img = self._cast(img)
        return self._with_meta(img, path, decoded, frame, spacing) if get_track_meta() else img

    def _joined(
        self, files: Sequence[PathLike], pick: FramePicker, spacing: float | Sequence[float] | None
    ) -> torch.Tensor:
        """The masks of one image, a file for each structure, as one label map: the largest value of each pixel."""
        if self.scale is not None or not files:
            raise UnreadableImageError(
                str(files), "an image is one file; only a label map (scale=None) may be several masks."
            )
        label = self.load(files[0], pick, spacing)
        for file in files[1:]:
            other = self.load(file, pick, spacing)
            _check_one_grid(str(file), other, str(files[0]), label)
            label = torch.maximum(label, other)
        return label

    def _decode(self, path: str, pick: FramePicker | None) -> _Decoded:
        """Find the reader by the file's type and turn whatever its library raises into one kind of error."""
        kind = file_format(path)
        try:
            if kind == "picture":
                decoded = _decode_picture(path, pick, grey=self.grey, indices=self.scale is None)
            else:
                decoded = {"nifti": _decode_nifti, "itk": _decode_itk, "dicom": _decode_dicom}[kind](path, pick)
        except (UnreadableImageError, MemoryError):
            raise
        except Exception as error:  # every library has its own exceptions for damaged files
            message = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else "no further message"
            raise UnreadableImageError(
                path,
                f"cannot be decoded ({type(error).__name__}: {message}); "
                "the file is truncated, damaged or not of the type its name says: replace it or leave it out.",
            ) from error
        if decoded.values.size == 0:
            raise UnreadableImageError(path, f"an empty image of shape {decoded.values.shape[:3]}; leave it out.")
        return decoded

    def _channels(self, path: str, values: np.ndarray) -> np.ndarray:
        """``(T, H, W, c) -> (T, H, W, 1 or 3)``."""
        channels = values.shape[-1]
        if channels not in (1, 3, 4):
            raise UnreadableImageError(
                path,
                f"has {channels} channels; expected 1 (grey), 3 (RGB) or 4 (RGBA). "
                "Are frames or slices stored as channels? Store them as a third axis.",
            )
        values = values[..., :3]
        if not self.grey:
            return values if channels > 1 else np.repeat(values, 3, axis=-1)
        if channels == 1:
            return values
        if self.scale is None and (np.ptp(values, axis=-1) != 0).any():
            raise UnreadableImageError(
                path, "a coloured picture where a label map is expected; store one class index per pixel."
            )
        return grey_from_rgb(values)

    def _scaled(self, path: str, values: np.ndarray, bits: int | None) -> np.ndarray:
        """8-bit values as they are (divided last, on the tensor), others as floats in [0, 1]; see the class."""
        if values.dtype.kind not in "buif":
            raise UnreadableImageError(path, f"holds values of type {values.dtype}; store real numbers.")
        if values.dtype.kind == "f":
            bad = values.size - int(np.isfinite(values).sum())
            if bad:
                raise UnreadableImageError(
                    path, f"has {bad} NaN or infinite of {values.size} values; replace them or leave the file out."
                )
        if self.scale is None:
            return values
        if self.scale == "auto":
            if values.dtype == np.uint8 and bits in (None, 8):
                return values
            low, high = float(values.min()), float(values.max())
            if values.dtype.kind == "b":
                full_scale = 1.0
            elif values.dtype.kind == "f":
                full_scale = 1.0 if high <= 1 + 1e-6 else 255.0
            else:
                full_scale = 2.0 ** (bits or next((n for n in (8, 12, 16, 32) if high < 2**n), 64)) - 1
            if low >= -1e-6 * full_scale and high <= full_scale * (1 + 1e-6):
                return np.clip(values.astype(np.float32) / np.float32(full_scale), 0, 1)
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"{path}: {values.dtype} values from {low:g} to {high:g} are neither in [0, 1] nor in [0, 255]; "
                    "stretched to [0, 1] by minimum and maximum, and so are further files like it. "
                    'Use scale="minmax" to ask for this.',
                    stacklevel=4,
                )
        wide = values.astype(np.float64)
        low, high = wide.min(), wide.max()
        return ((wide - low) / max(high - low, np.finfo(np.float64).tiny)).astype(np.float32)

    def _cast(self, img: torch.Tensor) -> torch.Tensor:
        """Last step to the dtype asked for; 8-bit pictures arrive here as uint8."""
        if self.scale is None or img.dtype == self.dtype:
            return img.to(self.dtype)
        if img.dtype == torch.uint8:
            return img.to(self.dtype).div_(255) if self.dtype.is_floating_point else img.to(self.dtype)
        return img.to(self.dtype) if self.dtype.is_floating_point else img.mul(255).round_().to(self.dtype)

    def _with_meta(
        self,
        img: torch.Tensor,
        path: str,
        decoded: _Decoded,
        frame: int | None,
        spacing: float | Sequence[float] | None,
    ) -> MetaTensor:
        """Attach affine and metadata: the same keys and types for every format, so that mixed batches collate."""
        affine = decoded.affine.astype(np.float64)
        if self.spatial_dims == 2:
            affine = affine.copy()
            affine[:3, 3] += affine[:3, 2] * (frame or 0)
            order = [1, 0, 2, 3]
        else:
            order = [2, 1, 0, 3]
        if spacing is not None:
            try:
                wanted = [float(mm) for mm in ensure_tuple_rep(spacing, self.spatial_dims)]
            except (TypeError, ValueError):
                wanted = []
            if not wanted or not all(np.isfinite(mm) and mm > 0 for mm in wanted):
                raise UnreadableImageError(
                    path, f"spacing must be positive mm per axis of {self.spatial_dims}, got {spacing}."
                )
            for column, mm in zip(order, wanted, strict=False):
                affine[:3, column] *= mm / affine_to_spacing(affine)[column]
        meta = {
            ImageMetaKey.FILENAME_OR_OBJ: path,
            "original_affine": affine,
            "spatial_shape": np.asarray(img.shape[:0:-1]),
            "original_channel_dim": "no_channel",
            "space": "RAS",
            "spacing": affine_to_spacing(affine[:, order], r=self.spatial_dims).astype(np.float32),
            "spacing_known": bool(decoded.spacing_known or spacing is not None),
            "frame": -1 if self.spatial_dims == 3 else int(frame or 0),
            "num_frames": decoded.num_frames,
        }
        return MetaTensor(img, affine=torch.from_numpy(affine[:, order].copy()), meta=meta)


class _LoadRandomFrame(Randomizable, LoadUltrasound):
    """What ``LoadUltrasound(frame="random")`` is: each call takes a frame drawn from ``self.R``."""

    def randomize(self, data: Any = None) -> None:
        self._fraction = self.R.random()

    def __call__(
        self,
        filename: PathLike | Sequence[PathLike],
        frame: str | int | None = None,
        spacing: float | Sequence[float] | None = None,
    ) -> torch.Tensor:
        self.randomize()
        return self.load(filename, _frame_picker(self._fraction if frame is None else frame), spacing)


class LoadUltrasoundd(MapTransform):
    """Dictionary form of :class:`LoadUltrasound`.

    An item may fix what its files cannot tell: ``item["frame"]`` (an index or ``"middle"``) and ``item["spacing"]``
    (mm, in the order of ``S``). With ``frame="random"`` one draw serves all keys, so image and label keep together.
    All keys must lie on one grid: of one size, and, of two NIfTI files or two MetaImage or NRRD files, at one place.

    Args:
        keys: items to load.
        spatial_dims: see :class:`LoadUltrasound`.
        frame: see :class:`LoadUltrasound`.
        grey: see :class:`LoadUltrasound`.
        dtype: see :class:`LoadUltrasound`; one, or one per key.
        scale: see :class:`LoadUltrasound`; one, or one per key: ``("auto", None)`` for image and label.
        allow_missing_keys: do not raise when an item lacks a key.
    """

    def __new__(
        cls, keys: KeysCollection = (), spatial_dims: int = 2, frame: str | int = "middle", *args: Any, **kwargs: Any
    ) -> LoadUltrasoundd:
        return super().__new__(_LoadRandomFramed if cls is LoadUltrasoundd and frame == "random" else cls)

    def __init__(
        self,
        keys: KeysCollection,
        spatial_dims: int = 2,
        frame: str | int = "middle",
        grey: bool = True,
        dtype: torch.dtype | Sequence[torch.dtype] = torch.float32,
        scale: str | Sequence[str | None] | None = "auto",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.frame = frame
        still = "middle" if frame == "random" else frame  # the draw for all keys is made here, not in the loaders
        self.loaders = [
            LoadUltrasound(spatial_dims, still, grey, one_dtype, one_scale)
            for one_dtype, one_scale in zip(
                ensure_tuple_rep(dtype, len(self.keys)), ensure_tuple_rep(scale, len(self.keys)), strict=True
            )
        ]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return self._load(data, self.frame)

    def _load(self, data: Mapping[Hashable, Any], frame: str | int | float) -> dict[Hashable, Any]:
        d = dict(data)
        pick = _frame_picker(frame if d.get("frame") is None else d["frame"])
        for key, loader in self.key_iterator(d, self.loaders):
            d[key] = loader.load(d[key], pick, d.get("spacing"))
        keys = [key for key in self.keys if key in d]
        for key in keys[1:]:
            _check_one_grid(str(data[key]), d[key], str(data[keys[0]]), d[keys[0]])
        return d


def _check_one_grid(path: str, img: torch.Tensor, other_path: str, other: torch.Tensor) -> None:
    """Refuse images of one item that differ in size, or of which both files say where they lie, and say otherwise."""
    if img.shape[1:] != other.shape[1:]:
        raise UnreadableImageError(
            path,
            f"has size {tuple(img.shape[1:])}, but {other_path} {tuple(other.shape[1:])}: they must lie on one grid; "
            "correct the datalist or resample one of them.",
        )
    # Files without a place of their own have the identity, which MetaImage and NIfTI read differently.
    kinds = [_FORMATS["nifti"], _FORMATS["itk"]]
    alike = any(path.lower().endswith(kind) and other_path.lower().endswith(kind) for kind in kinds)
    if not alike or not isinstance(img, MetaTensor) or not isinstance(other, MetaTensor):
        return
    here, there = (np.asarray(x.meta["original_affine"], dtype=np.float64) for x in (img, other))
    size = [int(n) for n in img.meta["spatial_shape"]]
    ends = [(0, n - 1) for n in size] + [(0,)] * (3 - len(size))
    corners = np.array([[*at, 1] for at in itertools.product(*ends)], dtype=np.float64)
    apart = np.abs((corners @ (here - there).T)[:, :3]).max()
    if apart > 0.5 * affine_to_spacing(there).min():
        raise UnreadableImageError(
            path,
            f"lies up to {apart:.3g} mm from the grid of {other_path}, by the affine of the two files; "
            "resample it to that grid, or correct its header.",
        )


class _LoadRandomFramed(Randomizable, LoadUltrasoundd):
    """What ``LoadUltrasoundd(frame="random")`` is."""

    def randomize(self, data: Any = None) -> None:
        self._fraction = self.R.random()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        self.randomize()
        return self._load(data, self._fraction)


LoadUltrasoundD = LoadUltrasoundDict = LoadUltrasoundd


class UltrasoundReader(ImageReader):
    """:class:`LoadUltrasound` as a reader of MONAI's ``LoadImage``: grey, in [0, 1], with MONAI's axes (x, y[, z]).

    For pipelines that may name nothing but MONAI's transforms, such as those of MONAI Label. A file of another type is
    left to the next reader; one that is damaged or refused is not, so that no reader takes half of it.

    Args:
        spatial_dims: 2 or 3, see :class:`LoadUltrasound`.

    Raises:
        UnreadableImageError: see :class:`LoadUltrasound`.
    """

    def __init__(self, spatial_dims: int = 2) -> None:
        super().__init__()
        self.loader = LoadUltrasound(spatial_dims)

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Whether this is one existing file of a supported type."""
        try:
            self.read(filename)
        except UnreadableImageError:
            return False
        return True

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> PathLike:
        """The name of the file, if it is of a supported type; :meth:`get_data` decodes it."""
        names = ensure_tuple(data)
        if len(names) != 1:
            raise UnreadableImageError(
                str(names), "one file holds one image; channels in files of their own are not read."
            )
        file_format(names[0])
        return names[0]

    def get_data(self, img: PathLike) -> tuple[np.ndarray, dict]:
        """``(array, metadata)`` of the file that :meth:`read` named."""
        image = self.loader(img)
        meta = dict(getattr(image, "meta", {}))
        if meta:
            meta["affine"] = meta["original_affine"]
        return torch.as_tensor(image)[0].numpy().T, meta


def file_format(path: PathLike) -> str:
    """``"picture"``, ``"nifti"``, ``"itk"`` or ``"dicom"``, by the file's ending or the DICOM mark inside it.

    Raises:
        UnreadableImageError: when the file is missing, a folder, empty, or of another type.
    """
    file = Path(path)
    if not file.is_file():
        reason = (
            "is a folder, not an image file." if file.is_dir() else "no such file; check dataset_dir and the datalist."
        )
        raise UnreadableImageError(path, reason)
    if file.stat().st_size == 0:
        raise UnreadableImageError(path, "an empty file (0 bytes); copy it again or leave it out.")
    name = file.name.lower()
    for kind, suffixes in _FORMATS.items():
        if name.endswith(suffixes):
            return kind
    if has_dicom_mark(file):
        return "dicom"
    raise UnreadableImageError(path, f"unsupported file type; supported are {', '.join(SUPPORTED_SUFFIXES)}.")


def has_dicom_mark(path: PathLike) -> bool:
    """Whether a file says inside that it is DICOM: exports often have no ending, or the last number of a UID as one."""
    with open(path, "rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def grey_from_rgb(values: np.ndarray) -> np.ndarray:
    """ITU-R BT.601 luma, ``(..., 3) -> (..., 1)``, exactly the grey value where R = G = B.

    8-bit values give rounded 8-bit values, by the fixed-point weights of Pillow's ``convert("L")``; others give floats.
    """
    red, green, blue = values[..., 0:1], values[..., 1:2], values[..., 2:3]
    if values.dtype == np.uint8:
        red, green, blue = (band.astype(np.uint32) for band in (red, green, blue))
        return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) // 65536).astype(np.uint8)
    red, green, blue = (band.astype(np.float64) for band in (red, green, blue))
    return (green + 0.299 * (red - green) + 0.114 * (blue - green)).astype(
        np.float64 if values.dtype == np.float64 else np.float32
    )


def _frame_picker(frame: str | int | float) -> FramePicker:
    """``"middle"``, an index, or a fraction in (0, 1) -> function from the number of frames to an index, unchecked."""
    if frame == "middle":
        return lambda count: count // 2
    if isinstance(frame, float) and frame.is_integer():  # tables and JSON give 2.0 for 2
        frame = int(frame)
    if isinstance(frame, float) and 0 < frame < 1:
        return lambda count: min(int(frame * count), count - 1)
    if isinstance(frame, (int, np.integer)) and not isinstance(frame, bool):
        return lambda count: int(frame) + count if frame < 0 else int(frame)
    raise ValueError(f'frame must be "middle", "random" or an index, got {frame!r}.')


def _checked_frame(path: str, pick: FramePicker, count: int) -> int:
    index = 0 if count == 1 else pick(count)
    if not 0 <= index < count:
        raise UnreadableImageError(path, f"has {count} frames, so there is no frame {index}; correct the item's frame.")
    return index


def _decode_picture(path: str, pick: FramePicker | None, grey: bool, indices: bool) -> _Decoded:
    """PNG, JPEG, BMP, TIFF. Grey is made at decoding, where it is cheapest."""
    with PILReader().read(path) as img:
        count = getattr(img, "n_frames", 1)
        # 8-bit pages need no common scale, so one page can be read alone
        alone = count == 1 or (pick is not None and img.mode in _EIGHT_BIT_MODES)
        wanted = range(count)
        if alone:
            index = _checked_frame(path, pick, count) if pick is not None else 0
            wanted = range(index, index + 1)
        pages = []
        for index in wanted:
            if count > 1:
                img.seek(index)
            pages.append(_page_values(img, grey, indices))
    if len({page.shape for page in pages}) > 1:
        raise UnreadableImageError(path, "its pages differ in size; split them into files.")
    values = pages[0][None] if len(pages) == 1 else np.stack(pages)
    return _Decoded(
        values=values if values.ndim == 4 else values[..., None],
        num_frames=count,
        affine=np.eye(4),
        spacing_known=False,
        frame=wanted[0] if alone else None,
    )


def _page_values(img: Image.Image, grey: bool, indices: bool) -> np.ndarray:
    """One page as ``(H, W)`` or ``(H, W, 3)``; 8-bit modes as uint8, others as stored."""
    if img.format == "JPEG" and grey and img.mode == "RGB":
        img.draft("L", None)  # the decoder hands over its luma channel
    if img.format in ("JPEG", "TIFF"):
        img = ImageOps.exif_transpose(img)  # upright as a viewer shows it
    if img.mode in _EIGHT_BIT_MODES and not (indices and img.mode == "P"):
        mode = "RGB" if not grey or (indices and img.mode not in ("L", "LA")) else "L"
        if img.mode != mode:
            img = img.convert(mode)
    values = np.array(img)  # a copy: the view that asarray gives is read-only
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _decode_nifti(path: str, pick: FramePicker | None) -> _Decoded:
    reader = NibabelReader()
    img = reader.read(path)
    affine = np.array(img.affine, dtype=np.float64)
    if isinstance(img, nib.Nifti1Pair):
        affine[:3] *= {"meter": 1e3, "micron": 1e-3}.get(img.header.get_xyzt_units()[0], 1.0)
    shape = tuple(img.shape) + (1,) * (3 - len(img.shape))
    # the fifth axis of NIfTI holds vector components
    if len(shape) > 5 or (len(shape) == 5 and shape[3] > 1) or (len(shape) == 4 and min(shape[2:]) > 1):
        raise UnreadableImageError(
            path,
            f"has shape {shape}, a sequence of volumes; store each volume (or a cine as x, y, 1, t) in its own file.",
        )
    frame_axis = 3 if len(shape) == 4 and shape[3] > 1 else 2
    count, frame = shape[frame_axis], None
    unscaled = (getattr(img.dataobj, "slope", 1), getattr(img.dataobj, "inter", 0)) == (1, 0)
    if pick is not None and count > 1 and img.get_data_dtype() == np.uint8 and unscaled:
        frame = _checked_frame(path, pick, count)
        img = img.slicer[(slice(None),) * frame_axis + (slice(frame, frame + 1),)]
    values = np.asarray(reader.get_data(img)[0])
    if values.dtype.names:  # RGB24 and RGBA32 are stored as records
        values = np.stack([values[name] for name in values.dtype.names], axis=-1)
    elif len(shape) < 5:
        values = values[..., None]
    values = values.reshape(*shape[:2], -1, values.shape[-1])
    if not np.isfinite(affine).all() or (affine_to_spacing(affine, suppress_zeros=False) == 0).any():
        affine, known = np.eye(4), False
    else:  # pixels of 1 mm in a file that names no unit: nobody said so
        unit = img.header.get_xyzt_units()[0] if isinstance(img, nib.Nifti1Pair) else "mm"
        known = unit != "unknown" or not np.allclose(affine_to_spacing(affine), 1)
    return _Decoded(values.transpose(2, 1, 0, 3), count, affine, known, frame)


def _decode_itk(path: str, pick: FramePicker | None) -> _Decoded:
    header = itk.ImageIOFactory.CreateImageIO(path, itk.CommonEnums.IOFileMode_ReadMode)
    if header is None:
        raise ValueError("no ITK reader takes this file")
    header.SetFileName(path)
    header.ReadImageInformation()
    channels, kind = header.GetNumberOfComponents(), header.GetComponentTypeAsString(header.GetComponentType())
    options = {}
    if channels > 1:  # ITK's Python build holds colour pixels of 8 bits, but no vectors of them
        if channels not in (3, 4) or kind != "unsigned_char":
            raise UnreadableImageError(
                path, f"has {channels} channels of {kind}; expected 1 of any type, or 3 (RGB) or 4 (RGBA) of 8 bits."
            )
        options["pixel_type"] = {3: itk.RGBPixel, 4: itk.RGBAPixel}[channels][itk.UC]
    reader = ITKReader()
    values, meta = reader.get_data(reader.read(path, **options))
    values = np.array(values)  # a copy: the array is a view of memory that ITK owns
    spatial = len(meta["spatial_shape"])
    if spatial not in (2, 3):
        raise UnreadableImageError(path, f"has {spatial} spatial axes; expected 2 or 3.")
    if values.ndim == spatial:
        values = values[..., None]
    if spatial == 2:
        values = values[:, :, None]
    return _Decoded(values.transpose(2, 1, 0, 3), values.shape[2], to_affine_nd(3, np.asarray(meta["affine"])), True)


def _decode_dicom(path: str, pick: FramePicker | None) -> _Decoded:
    from monai_usfm.data.dicom import UltrasoundDicomReader

    reader = UltrasoundDicomReader()
    dataset = reader.read_file(path)
    count = reader.num_frames(dataset)
    frame = None if pick is None else _checked_frame(path, pick, count)
    affine, known = reader.affine(dataset)
    return _Decoded(reader.frames(dataset, frame), count, affine, known, frame, reader.bits(dataset))
