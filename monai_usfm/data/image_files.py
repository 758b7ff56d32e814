# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""PNG, JPEG, BMP, TIFF, GIF and WebP by Pillow: the image a viewer shows, or the label map that was meant."""

from __future__ import annotations

from typing import Any

import numpy as np
from monai.config import PathLike
from PIL import ExifTags, Image, ImageOps

from monai_usfm.data.decoded import Decoded, FramePicker, checked_frame
from monai_usfm.data.formats import UnreadableImageError, check_size
from monai_usfm.files import UNTURN, orientation

EIGHT_BIT_MODES = {"L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV"}
_PAGED = {"TIFF", "GIF", "PNG", "WEBP"}
"""Formats whose pages are frames. Further images of a JPEG (MPO) are gain maps, depth or previews."""


def decode_image(path: str, pick: FramePicker | None, label: bool) -> Decoded:
    """Read an image file. Gray is made at decoding, where it is cheapest.

    A JPEG with further images inside gives its primary one. EXIF orientation is applied in every container.

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
        mode, bits, spacing = img.mode, _significant_bits(img), _spacing_mm(img)
        frame_time = float(img.info.get("duration") or 0) / 1000 if count > 1 else 0.0
        animated = count > 1 and img.format != "TIFF"
        turn = img.getexif().get(ExifTags.Base.Orientation, 1)
        turn = turn if isinstance(turn, int) and 1 <= turn <= 8 else 1
        pages = []
        for index in wanted:
            if pages_of_file[index] != img.tell():
                img.seek(pages_of_file[index])
                check_size(path, *img.size)
            pages.append(_label_values(path, img) if label else _image_values(img))
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
        spacing = spacing[::-1]
    return Decoded(
        values,
        affine=np.eye(4) if spacing is None else np.diag([*spacing, 1.0, 1.0]),
        spacing_known=spacing is not None,
        num_frames=count,
        frame=wanted[0] if alone else None,
        full_scale=1.0 if mode == "1" else 255.0 if mode in EIGHT_BIT_MODES else float(2**bits - 1) if bits else 0.0,
        cine=animated,
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
    values = _array(img)
    return 65535 - values if inverted else values


def _label_values(path: str, img: Image.Image) -> np.ndarray:
    """One page of a label map, ``(H, W)``, see :func:`decode_image`."""
    values = _stored_label(path, ImageOps.exif_transpose(img))
    # Pillow makes colors of the pages of a GIF after the first, whatever its palette
    gray = img.format == "GIF" and values.ndim == 3 and bool((np.ptp(values, axis=-1) == 0).all())
    return values[..., 0] if gray else values


def _stored_label(path: str, img: Image.Image) -> np.ndarray:
    if img.mode == "P":
        indices = _array(img)
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
    values = _array(img)
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


def _array(img: Image.Image) -> np.ndarray:
    values = np.array(img)  # a copy: the view that asarray gives is read-only
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _significant_bits(img: Any) -> int | None:
    """Bits that a 16-bit TIFF says it uses by MaxSampleValue, which most writers leave out, else ``None``."""
    largest = img.tag_v2.get(281) if img.format == "TIFF" else None
    largest = largest[0] if isinstance(largest, tuple) else largest
    return int(largest).bit_length() if largest and 255 < largest < 65535 else None


def _spacing_mm(img: Any) -> tuple[float, float] | None:
    """Millimeters per pixel along x and y; ``None`` unless the file states a physical size.

    PNG's pHYs chunk in pixels a meter does. The dots an inch of JPEG, TIFF and BMP are print resolution, which cameras
    and paint programs make up, so they are not taken for a size.
    """
    dpi = img.info.get("dpi") if img.format == "PNG" else None
    if dpi is None or not all(np.isfinite(d) and d > 0 for d in dpi):
        return None
    if any(_print_resolution(float(d)) for d in dpi):
        return None
    return 25.4 / float(dpi[0]), 25.4 / float(dpi[1])


def _print_resolution(dpi: float) -> bool:
    """Whole numbers of dots an inch, rounded to dots a meter as PNG stores them, are what programs write by default;
    not those that are whole hundredths of a millimeter, such as 254."""
    hundredths = 2540 / dpi
    whole_mm = abs(hundredths - round(hundredths)) < 1e-3 and round(hundredths) > 0
    usual = any(abs(dpi - often) < 0.5 for often in (72, 96, 150, 300, 600))
    return usual or (abs(dpi - round(dpi)) < 0.013 and not whole_mm)
