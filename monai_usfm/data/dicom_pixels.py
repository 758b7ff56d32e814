# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Pixels of a DICOM image as a viewer shows them, by DICOM PS3.3 C.7.6.3, C.11 and PS3.4 N.2.

Decoding by pydicom 3, or by pydicom 2.4, which MONAI Label needs.
"""

from __future__ import annotations

import numpy as np
import pydicom
from monai.utils import optional_import
from pydicom.dataset import Dataset

from monai_usfm.data.dicom_geometry import dataset_name, functional_group
from monai_usfm.data.formats import UnreadableImageError

PYDICOM3 = int(pydicom.__version__.split(".")[0]) >= 3
_module = "pydicom.pixels" if PYDICOM3 else "pydicom.pixel_data_handlers.util"
apply_color_lut, _ = optional_import(_module, name="apply_color_lut")
apply_modality_lut, _ = optional_import(_module, name="apply_modality_lut")
apply_voi_lut, _ = optional_import(_module, name="apply_voi_lut")
convert_color_space, _ = optional_import(_module, name="convert_color_space")
pixel_array, _ = optional_import("pydicom.pixels", name="pixel_array")

_STARTS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP")  # JPEG and JPEG-LS; JPEG 2000; its file form


def count_frames(dataset: Dataset) -> int:
    """Frames by Number of Frames, or, where that is missing, by the pixel data themselves."""
    stated = int(dataset.get("NumberOfFrames") or 0)
    if stated:
        return stated
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_compressed or syntax.is_deflated:
        pixels = int(dataset.Rows) * int(dataset.Columns)
        bits = int(dataset.get("SamplesPerPixel", 1)) * int(dataset.BitsAllocated)
        if dataset.PhotometricInterpretation == "YBR_FULL_422":
            bits = bits * 2 // 3
        return max(1, len(dataset.PixelData) * 8 // (pixels * bits))
    parts = _fragments(dataset.PixelData)
    if "RLE" in syntax.name:
        return max(1, len(parts))
    return max(1, sum(part.startswith(_STARTS) for part in parts))


def _fragments(data: bytes) -> list[bytes]:
    """Items of encapsulated pixel data after the offset table, PS3.5 A.4."""
    parts, at = [], 0
    while data[at : at + 4] == b"\xfe\xff\x00\xe0":
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        parts.append(data[at + 8 : at + 8 + length])
        at += 8 + length
    return parts[1:]


def stored_values(dataset: Dataset, index: int | None = None) -> np.ndarray:
    """Decoded values ``(frames, H, W, 1 or 3)``, of one frame if ``index`` is given; color as RGB, palettes applied."""
    if int(dataset.get("HighBit", dataset.BitsStored - 1)) != int(dataset.BitsStored) - 1:
        raise UnreadableImageError(
            dataset_name(dataset), f"High Bit {dataset.HighBit} is not Bits Stored - 1, as DICOM asks; correct it."
        )
    _correct_photometric_interpretation(dataset)
    if PYDICOM3:
        values = pixel_array(dataset, index=index) if index is not None else pixel_array(dataset)
        values = values[None] if index is not None or count_frames(dataset) == 1 else values
    else:
        values = dataset.pixel_array
        values = values[None] if count_frames(dataset) == 1 else values
        values = values[slice(None) if index is None else slice(index, index + 1)]
        if str(dataset.PhotometricInterpretation).startswith("YBR_FULL"):
            values = convert_color_space(values, "YBR_FULL", "RGB", per_frame=True)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        table = apply_color_lut(np.arange(2 ** int(dataset.BitsStored), dtype=np.uint16), dataset)
        # 16-bit tables hold 8-bit colors in their upper byte; read from a big-endian file, in the lower one
        return (table >> 8 if table.max() > 255 else table).astype(np.uint8)[values]
    return values if values.ndim == 4 else values[..., None]


def display_values(dataset: Dataset, values: np.ndarray) -> tuple[np.ndarray, float]:
    """``(values, value of white)`` of gray values after rescale, window and presentation.

    Applied are, as far as the file has them, modality LUT or rescale, VOI LUT or (first) window, the inversion of
    MONOCHROME1 and of Presentation LUT Shape INVERSE. Values that none of these changes stay integers; others are
    floats in [0, 1]. White is 0, "unknown", where no window is given and a file of 16 bits or more claims to use all of
    them, which exporters write around values of any range. Color stays as it is.
    """
    if values.shape[-1] == 3:
        return values, 255.0 if values.dtype.itemsize == 1 else float(2 ** int(dataset.BitsStored) - 1)
    inverse = is_inverse(dataset)
    lut = _lut_attributes(dataset)
    low, high = stored_range(dataset)
    rescale = float(lut.get("RescaleSlope") or 1), float(lut.get("RescaleIntercept") or 0)
    plain = not lut.get("ModalityLUTSequence") and rescale == (1.0, 0.0)
    windowed = bool(lut.get("VOILUTSequence")) or (
        lut.get("WindowCenter") not in (None, "") and _first(lut.get("WindowWidth") or 0) > 0
    )
    vague = int(dataset.BitsStored) == int(dataset.BitsAllocated) >= 16
    if plain and not windowed and (low == 0 or vague):
        white = 0.0 if vague else float(high)
        if not inverse:
            return values, white
        if low < 0:  # with no white to count from: turned round within its type
            return ~values, white
        white = white or (255.0 if values.max() <= 255 else 4095.0 if values.max() <= 4095 else 65535.0)
        return (white - values).astype(values.dtype), white
    shown = apply_modality_lut(values, lut).astype(np.float64)
    ends = apply_modality_lut(np.array([low, high], values.dtype), lut).astype(np.float64)
    if lut.get("ModalityLUTSequence"):
        bits = int(lut["ModalityLUTSequence"][0].LUTDescriptor[2])
        bottom, top = 0.0, float(2**bits - 1)
    else:  # a negative slope turns the scale round: PS3.3 C.11.1
        bottom, top = float(ends.min()), float(ends.max())
    if windowed:  # pydicom gives entries of the table, or what a window shows over the range of stored values
        for keyword in ("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"):
            lut.pop(keyword, None)
        bottom, top = float(low), float(high)
        if lut.get("VOILUTSequence"):
            shown, bottom = shown.astype(np.int64), 0.0
            top = float(2 ** int(lut["VOILUTSequence"][0].LUTDescriptor[2]) - 1)
        shown = np.asarray(apply_voi_lut(shown, lut, prefer_lut=True), np.float64)
    shown = np.clip((shown - bottom) / max(top - bottom, 1e-12), 0, 1)
    return (1 - shown if inverse else shown).astype(np.float32), 1.0


def _lut_attributes(dataset: Dataset) -> Dataset:
    """The attributes of rescale and window, which enhanced images keep in their functional groups."""
    lut = Dataset()
    lut.file_meta = dataset.file_meta
    if not PYDICOM3:
        lut.is_little_endian = dataset.is_little_endian
    names = ("PixelValueTransformationSequence", "FrameVOILUTSequence")
    for source in (*filter(None, (functional_group(dataset, 0, name) for name in names)), dataset):
        for keyword in (
            "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence",
            "WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence",
        ):  # fmt: skip
            if keyword in source and keyword not in lut:
                lut.add(source[keyword])
    for keyword in ("PixelRepresentation", "BitsStored", "BitsAllocated", "PhotometricInterpretation"):
        if keyword in dataset:
            lut.add(dataset[keyword])
    return lut


def is_inverse(dataset: Dataset) -> bool:
    """Whether the largest stored value is black."""
    inverse = str(dataset.get("PresentationLUTShape", "")).upper() == "INVERSE"
    return inverse or dataset.PhotometricInterpretation == "MONOCHROME1"


def stored_range(dataset: Dataset) -> tuple[int, int]:
    """The least and the largest value that the bits of the file can hold."""
    bits = int(dataset.BitsStored)
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if dataset.get("PixelRepresentation") else (0, 2**bits - 1)


def _first(value: object) -> float:
    return float(value[0] if isinstance(value, (list, tuple, pydicom.multival.MultiValue)) else value)  # type: ignore[arg-type, index]


def _correct_photometric_interpretation(dataset: Dataset) -> None:
    """Of an 8-bit JPEG the codestream decides over the header, which many exporters write as RGB whatever it holds.

    A stream with a JFIF or Adobe mark is left to the decoder. Without one, components named R, G, B are RGB; subsampled
    ones are YCbCr; else, where the header says RGB, what makes the image less colorful: ultrasound is mostly gray.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    if int(dataset.get("SamplesPerPixel", 1)) != 3 or "JPEG Baseline" not in syntax.name:
        return
    parts = [part for part in _fragments(dataset.PixelData) if part.startswith(b"\xff\xd8")]
    frame = _start_of_frame(parts[0]) if parts else None
    if frame is None:
        return
    names, sampling, marked = frame
    if marked:
        return
    if names == [ord(c) for c in "RGB"]:
        dataset.PhotometricInterpretation = "RGB"
    elif dataset.PhotometricInterpretation == "RGB" and (len(set(sampling)) > 1 or _gray_as_ybr(dataset)):
        dataset.PhotometricInterpretation = "YBR_FULL_422"


def _start_of_frame(stream: bytes) -> tuple[list[int], list[int], bool] | None:
    """Names and sampling factors of the components, and whether a JFIF or Adobe mark stands before them."""
    at, marked = 2, False
    while at + 4 <= len(stream) and stream[at] == 0xFF:
        marker, length = stream[at + 1], int.from_bytes(stream[at + 2 : at + 4], "big")
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        body = stream[at + 4 : at + 2 + length]
        marked |= (marker == 0xE0 and body.startswith(b"JFIF")) or (marker == 0xEE and body.startswith(b"Adobe"))
        if 0xC0 <= marker <= 0xC3:
            components = [body[6 + 3 * n : 9 + 3 * n] for n in range(body[5])]
            return [c[0] for c in components], [c[1] for c in components], marked
        at += 2 + length
    return None


def _gray_as_ybr(dataset: Dataset) -> bool:
    """Whether the first frame, taken for RGB, is more colorful than taken for YCbCr."""
    if PYDICOM3:
        frame = pixel_array(dataset, index=0, raw=True)
    else:
        frame = dataset.pixel_array
        frame = frame[0] if frame.ndim == 4 else frame
    values = frame.astype(np.int16)
    as_rgb = np.abs(values[..., 1:] - values[..., :1]).mean()
    as_ybr = np.abs(values[..., 1:] - 128).mean()
    return bool(as_ybr < as_rgb)
