# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""PNG, JPEG, BMP, TIFF, GIF and WebP by Pillow: the image a viewer shows, or the label map that was meant."""

from __future__ import annotations

import re
from typing import Any

import av
import numpy as np
from monai.config import PathLike
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin

from monai_usfm.data.decoded import Decoded, FramePicker, checked_frame
from monai_usfm.data.formats import UnreadableImageError, check_size
from monai_usfm.files import UNTURN, orientation

EIGHT_BIT_MODES = {"L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV"}
_PAGED = {"TIFF", "GIF", "PNG", "WEBP"}
"""Formats whose pages are frames. Further images of a JPEG (MPO) are gain maps, depth or previews."""
_TILE_WIDTH = 322
MM_PER = {"inch": 25.4, "m": 1e3, "cm": 10.0, "mm": 1.0, "micron": 1e-3, "um": 1e-3, "µm": 1e-3, "μm": 1e-3, "nm": 1e-6}
"""Millimeters of the units that ImageJ, OME and NRRD name, with both signs for micro."""
_SWAPPED = ("I;16BS", "I;32BS", "I;32B", "F;32BF", "F;64BF")
"""Kinds of values that libtiff hands over in the order of the machine, while Pillow takes them for big-endian."""

# What Pillow unpacks but misses in its table of kinds of TIFF: floats of 64 bits, which NumPy writes, and whole numbers
# of 32 bits with the upper byte first.
TiffImagePlugin.OPEN_INFO.setdefault((b"II", 1, (3,), 1, (64,), ()), ("F", "F;64F"))
TiffImagePlugin.OPEN_INFO.setdefault((b"MM", 1, (3,), 1, (64,), ()), ("F", "F;64BF"))
TiffImagePlugin.OPEN_INFO.setdefault((b"MM", 1, (1,), 1, (32,), ()), ("I", "I;32B"))


def decode_image(path: str, pick: FramePicker | None, label: bool) -> Decoded:
    """Read an image file. Gray is made at decoding, where it is cheapest.

    A JPEG with further images inside gives its primary one. EXIF orientation is applied in every container. Colors of
    16 bits, which Pillow cuts to 8, are decoded by PyAV and stay colors.

    Args:
        path, pick: the file, and the frame to take of several pages; ``None`` for all.
        label: keep stored numbers: a gray palette gives its gray values, a colored one its indices, and a mask that is
            stored in the opacity channel alone is taken from there.
    """
    # from a stream: of a named TIFF turned by a quarter Pillow would map the pixels with height and width swapped
    with open(path, "rb") as stream, Image.open(stream) as img:
        pages_of_file = _whole_pages(path, img)
        count = len(pages_of_file)
        check_size(path, *img.size, count)
        # 8-bit pages need no common scale, so one page can be read alone
        alone = count == 1 or (pick is not None and img.mode in EIGHT_BIT_MODES)
        wanted = range(count)
        if alone:
            index = checked_frame(path, pick, count) if pick is not None else 0
            wanted = range(index, index + 1)
        wide = _is_wide_color(img)  # to be asked before EXIF is, for which Pillow decodes a PNG
        eight = img.mode in EIGHT_BIT_MODES and not wide
        mode, bits, spacing = img.mode, _significant_bits(img), _spacing_mm(img)
        if img.format == "WEBP" and count > 1:
            img.load()  # which is when Pillow tells the time of its frames
        frame_time = float(img.info.get("duration") or 0) / 1000 if count > 1 else 0.0
        # pages of which nobody says how far apart they lie are no volume to measure
        cine = count > 1 and (img.format != "TIFF" or (spacing is not None and spacing[2] == 0))
        turn = img.getexif().get(ExifTags.Base.Orientation, 1)
        turn = turn if isinstance(turn, int) and 1 <= turn <= 8 else 1
        tiled = _TILE_WIDTH in getattr(img, "tag_v2", {})  # FFmpeg takes tiles for rows
        if wide and (tiled or pages_of_file != [0] or turn > 1 or (label and mode == "RGBA")):
            raise UnreadableImageError(
                path,
                "colors of 16 bits in tiles or several pages, with EXIF orientation, or with opacity in a label; store "
                "it as gray values, or in 8 bits.",
            )
        pages = []
        for index in wanted:
            if pages_of_file[index] != img.tell():
                img.seek(pages_of_file[index])
                check_size(path, *img.size)
            if _is_swapped(img):
                raise UnreadableImageError(
                    path, "a compressed big-endian TIFF, which cannot be decoded; save it without compression."
                )
            pages.append(_wide_color(path) if wide else _label_values(path, img) if label else _image_values(img))
    if len({page.shape for page in pages}) > 1:  # Pillow gives the palette's indices of the first page of a GIF alone
        raise UnreadableImageError(
            path, "a colored animation where label maps are expected; store one class index per pixel, as TIFF or PNG."
        )
    values = np.stack(pages, axis=2) if len(pages) > 1 else pages[0][:, :, None]
    if values.ndim == 3:
        values = values[..., None]
    values = values.transpose(1, 0, 2, 3)  # (x, y, page, channel)
    if count == 1 or alone:
        values = values[:, :, 0]
    if turn >= 5 and spacing is not None:
        spacing = (spacing[1], spacing[0], spacing[2])
    return Decoded(
        values,
        affine=np.eye(4) if spacing is None else np.diag([*spacing[:2], spacing[2] or 1.0, 1.0]),
        spacing_known=spacing is not None,
        num_frames=count,
        frame=wanted[0] if alone else None,
        full_scale=1.0 if mode == "1" else 255.0 if eight else float(2**bits - 1) if bits else 0.0,
        cine=cine,
        frame_time=frame_time,
        turn=turn,
    )


def save_mask(file: PathLike, mask: np.ndarray, turn: int = 1) -> None:
    """Write class values ``(rows, columns)``, upright, as PNG with the EXIF orientation of their image: the two lie on
    one grid then, whoever reads them."""
    stored, exif = Image.fromarray(mask), dict[str, Any]()
    if turn in UNTURN:
        stored, exif = stored.transpose(UNTURN[turn]), {"exif": orientation(turn)}
    stored.save(file, **exif)


def _whole_pages(path: str, img: Any) -> list[int]:
    """Numbers of the pages that are frames: without the reduced copies and masks that TIFF may hold as pages."""
    count = getattr(img, "n_frames", 1) if img.format in _PAGED else 1
    if count == 1 or img.format != "TIFF":
        return list(range(count))
    whole, sizes = [], set()
    for index in range(count):
        img.seek(index)
        if not int(img.tag_v2.get(254, 0)) & 0b101:  # NewSubfileType: bit 0 a reduced copy, bit 2 a mask
            whole.append(index)
            sizes.add(img.size)
    if len(sizes) != 1:
        raise UnreadableImageError(path, "its pages differ in size, or all are previews; split them into files.")
    img.seek(0)
    return whole


def _image_values(img: Image.Image) -> np.ndarray:
    """One page as ``(H, W)``, luma of colored ones; 8-bit modes as uint8, others as stored."""
    if img.format == "JPEG" and img.mode == "RGB":
        img.draft("L", None)  # the decoder hands over its luma channel
    # WhiteIsZero of TIFF, which Pillow heeds in 8 bits alone
    inverted = img.mode.startswith("I;16") and getattr(img, "tag_v2", {}).get(262) == 0
    img = ImageOps.exif_transpose(img)
    if img.mode in EIGHT_BIT_MODES - {"L"}:
        img = img.convert("L")
    values = np.array(img)  # a copy: the view that asarray gives is read-only
    return 65535 - values if inverted else values


def _label_values(path: str, img: Image.Image) -> np.ndarray:
    """One page of a label map, ``(H, W)``, see :func:`decode_image`."""
    values = _stored_label(path, ImageOps.exif_transpose(img))
    # Pillow makes colors of the pages of a GIF after the first, whatever its palette
    gray = img.format == "GIF" and values.ndim == 3 and bool((np.ptp(values, axis=-1) == 0).all())
    return values[..., 0] if gray else values


def _stored_label(path: str, img: Image.Image) -> np.ndarray:
    if img.mode == "P":
        indices = np.array(img)
        used = np.unique(indices)
        table = np.asarray(img.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
        colors = np.zeros((256, 3), np.uint8)
        colors[: len(table)] = table
        is_gray = (np.ptp(colors[used], axis=1) == 0).all()
        if is_gray and len(np.unique(colors[used, 0])) == len(used):
            return colors[indices, 0]
        if any(index and not colors[index].any() for index in used):
            raise UnreadableImageError(
                path, "its palette has black elsewhere than at index 0; store one class per pixel."
            )
        return indices
    if img.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        img = img.convert("RGB")
    if img.mode == "PA":
        img = img.convert("RGBA")
    values = np.array(img)
    if img.mode not in ("LA", "La", "RGBA", "RGBa"):
        return values
    color, alpha = values[..., :-1], values[..., -1]
    if np.ptp(alpha) == 0:
        return color
    if (color == color[:1, :1]).all():  # one color all over: the mask is the opacity
        return alpha
    if len(np.unique(alpha)) == 2 and (color[alpha == 0] == 0).all():  # transparent where black: both say the same
        return color
    raise UnreadableImageError(
        path, "both its colors and its opacity vary, so it is unclear which is the label; store one class per pixel."
    )


def _is_swapped(img: Any) -> bool:
    """Whether Pillow would take the bytes of each value in the wrong order, as of compressed TIFF."""
    return any(tile[0] == "libtiff" and tile[3][0] in _SWAPPED for tile in img.tile)


def _is_wide_color(img: Any) -> bool:
    """Whether colors have 16 bits, of which Pillow would keep the upper 8: of values up to 255, nothing."""
    bits = img.tag_v2.get(258, 8) if img.format == "TIFF" else 8
    deep = max(bits if isinstance(bits, tuple) else (bits,)) > 8
    return img.mode in EIGHT_BIT_MODES and (deep or any(";16" in str(tile[3]) for tile in img.tile))


def _wide_color(path: str) -> np.ndarray:
    """``(H, W, 3)`` of 16 bits."""
    with open(path, "rb") as stream, av.open(stream, "r") as container:  # of a name FFmpeg would take % for a pattern
        return next(container.decode(container.streams.video[0])).to_ndarray(format="rgb48le")


def _significant_bits(img: Any) -> int | None:
    """Bits that a 16-bit TIFF says it uses by MaxSampleValue, which most writers leave out, else ``None``."""
    largest = img.tag_v2.get(281) if img.format == "TIFF" else None
    largest = largest[0] if isinstance(largest, tuple) else largest
    return int(largest).bit_length() if largest and 255 < largest < 65535 else None


def _spacing_mm(img: Any) -> tuple[float, float, float] | None:
    """Millimeters per pixel along x and y, and from page to page (0 where unknown); ``None`` unless the file states a
    physical size.

    PNG's pHYs chunk in pixels a meter does, and so do the descriptions that ImageJ and OME write into TIFF. The dots an
    inch of JPEG, TIFF and BMP are print resolution, which cameras and paint programs make up, so they are not taken for
    a size.
    """
    if img.format == "TIFF":
        found = _described_mm(img.tag_v2)
        return found if found is not None and all(np.isfinite(mm) and mm > 0 for mm in found[:2]) else None
    dpi = img.info.get("dpi") if img.format == "PNG" else None
    if dpi is None or not all(np.isfinite(d) and d > 0 for d in dpi):
        return None
    if any(_print_resolution(float(d)) for d in dpi):
        return None
    return 25.4 / float(dpi[0]), 25.4 / float(dpi[1]), 0.0


def _described_mm(tags: Any) -> tuple[float, float, float] | None:
    """The size that the description of a TIFF states: ImageJ's as pixels of a unit in the tags of resolution, OME's as
    attributes in XML."""
    text = str(tags.get(270, ""))
    try:
        if text.startswith("ImageJ="):
            stated = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
            mm = MM_PER[stated["unit"].replace(r"\u00B5", "µ")]
            across = 0.0 if "zunit" in stated else abs(float(stated.get("spacing", 0)))
            return (mm / float(tags[282]), mm / float(tags[283]), mm * across) if "yunit" not in stated else None
        stated = dict(re.findall(r'\b(PhysicalSize\w+)="([^"]*)"', text.split("<Pixels", 1)[1].split(">", 1)[0]))
        x, y, z = (
            float(stated.get(f"PhysicalSize{axis}", 0)) * MM_PER[stated.get(f"PhysicalSize{axis}Unit", "µm")]
            for axis in "XYZ"
        )
        return x, y, z
    except (KeyError, IndexError, ValueError, TypeError, ZeroDivisionError):  # says nothing that is a length
        return None


def _print_resolution(dpi: float) -> bool:
    """Whole numbers of dots an inch, rounded to dots a meter as PNG stores them, are what programs write by default;
    not those that are whole hundredths of a millimeter, such as 254."""
    hundredths = 2540 / dpi
    whole_mm = abs(hundredths - round(hundredths)) < 1e-3 and round(hundredths) > 0
    usual = any(abs(dpi - often) < 0.5 for often in (72, 96, 150, 300, 600))
    return usual or (abs(dpi - round(dpi)) < 0.013 and not whole_mm)
