# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Odd image and label files, made by code. Each holds the same image or mask, so what each must give is known."""

from __future__ import annotations

import io
import json
import os
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import itk
import nibabel as nib
import numpy as np
from PIL import Image, TiffImagePlugin
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGBaseline8Bit, RLELossless

from tests.dicom_files import region, ultrasound

SIZE = (40, 56)
ROWS, COLUMNS = np.mgrid[: SIZE[0], : SIZE[1]]
MASK = (((ROWS - 14) / 8) ** 2 + ((COLUMNS - 34) / 12) ** 2 < 1).astype(np.uint8)
"""An ellipse off the center: no turn, flip or exchange of axes gives it again."""


def speckled(seed: int, mask: np.ndarray = MASK) -> np.ndarray:
    """A smooth speckle with a bright structure, 8 bits, values from 0 to 255."""
    noise = np.random.default_rng(seed).normal(size=mask.shape)
    noise = noise + np.roll(noise, 1, 0) + np.roll(noise, 1, 1)
    values = 60 + 12 * noise + ROWS / 2 + 110 * mask
    values[:3] = 0
    values[0, 0] = 255
    return values.clip(0, 255).astype(np.uint8)


GRAY = speckled(0)
Make = Callable[[Path], dict[str, Any]]
COLOR = np.repeat(GRAY[..., None], 3, 2)


@dataclass
class Case:
    """An odd file.

    Attributes:
        kind: row of the table.
        name: what is odd.
        make: writes it into a folder; returns the keys of its item of the datalist that differ from the plain one's.
        expect: ``"same"`` as the plain file, ``"near"`` (a lossy format), ``"defined"`` (no value is known), ``"error"``.
        shape: of the mask in NIfTI, where the file has axes of its own.
        tasks: bundles that it is run through; empty for all.
    """

    kind: str
    name: str
    make: Make
    expect: str = "same"
    shape: tuple[int, ...] = ()
    tasks: tuple[str, ...] = ()


def alone(make: Make, rows: slice | int = slice(None), columns: slice | int = slice(None), tile: int = 1) -> Make:
    """With the part of the mask that belongs to a part of the image."""

    def both(folder: Path) -> dict[str, Any]:
        mask = np.tile(np.atleast_2d(MASK[rows, columns] * 255), (1, tile))
        Image.fromarray(mask).save(folder / "label.png")
        return make(folder)

    return both


def image(name: str, array: Any = GRAY, format: str | None = None, **save: Any) -> Make:
    def make(folder: Path) -> dict[str, Any]:
        img = array if isinstance(array, Image.Image) else Image.fromarray(array)
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "wb") as stream:  # a name that says another type
            img.save(stream, format or Image.registered_extensions()[target.suffix.lower()], **save)
        return {"image": name}

    return make


def written(name: str, data: Callable[[], bytes] | bytes) -> Make:
    def make(folder: Path) -> dict[str, Any]:
        (folder / name).write_bytes(data() if callable(data) else data)
        return {"image": name}

    return make


def encoded(array: np.ndarray, kind: str, **save: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind, **save)
    return stream.getvalue()


def palette(order: np.ndarray) -> Image.Image:
    """GRAY in palette mode, whose table is in the given order."""
    table, index = np.empty((256, 3), np.uint8), np.empty(256, np.uint8)
    table[order], index[np.arange(256)] = np.arange(256)[:, None], order
    img = Image.fromarray(index[GRAY], mode="P")
    img.putpalette(table.ravel().tolist())
    return img


def pages(name: str, kind: str, number: int = 3, **save: Any) -> Make:
    """GRAY is the middle frame."""

    def make(folder: Path) -> dict[str, Any]:
        frames = [Image.fromarray(GRAY if n == number // 2 else speckled(50 + n)) for n in range(number)]
        frames[0].save(folder / name, kind, save_all=True, append_images=frames[1:], **save)
        return {"image": name}

    return make


def turned(name: str, turn: int, **save: Any) -> Make:
    back = {
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: np.transpose,
        7: lambda a: np.rot90(a, 2).T,
        6: lambda a: np.rot90(a),
        8: lambda a: np.rot90(a, 3),
    }
    exif = Image.Exif()
    exif[0x0112] = turn

    def make(folder: Path) -> dict[str, Any]:
        Image.fromarray(back[turn](GRAY).copy()).save(folder / name, exif=exif, **save)
        if turn < 5:  # its label is turned as well, since a mask of stored pixels would be another one
            Image.fromarray(back[turn](MASK * 255).copy()).save(folder / "label.png", exif=exif)
        return {"image": name}

    return make


def tiff_with_preview(folder: Path) -> dict[str, Any]:
    reduced = TiffImagePlugin.ImageFileDirectory_v2()
    reduced[254] = 1
    preview = Image.fromarray(GRAY[::4, ::4].copy())
    preview.encoderinfo = {"tiffinfo": reduced}
    Image.fromarray(GRAY).save(folder / "case.tif", save_all=True, append_images=[preview])
    return {"image": "case.tif"}


def mpo(folder: Path) -> dict[str, Any]:
    small = Image.fromarray(np.full((12, 16), 200, np.uint8))
    Image.fromarray(GRAY).save(folder / "case.jpg", "MPO", save_all=True, append_images=[small], quality=98)
    return {"image": "case.jpg"}


def beside(name: str, content: str) -> Make:
    def make(folder: Path) -> dict[str, Any]:
        Image.fromarray(GRAY).save(folder / name)
        (folder / f"{name}.json").write_text(content)
        return {"image": name}

    return make


def linked(folder: Path, target: str | None = "there.png") -> dict[str, Any]:
    if target is not None:
        Image.fromarray(GRAY).save(folder / "there.png")
    os.symlink(target or "nowhere.png", folder / "case.png")
    return {"image": "case.png"}


def pipe(folder: Path) -> dict[str, Any]:
    os.mkfifo(folder / "case.png")
    return {"image": "case.png"}


def directory(folder: Path) -> dict[str, Any]:
    (folder / "case.png").mkdir()
    return {"image": "case.png"}


def wrong_sum() -> bytes:
    data = bytearray(encoded(GRAY, "PNG"))
    data[-30] ^= 0xFF
    return bytes(data)


def images() -> list[Case]:
    shuffled = np.random.default_rng(3).permutation(256).astype(np.uint8)
    kind = "PNG, JPEG, BMP, TIFF, GIF, WebP"
    alpha = np.full((*SIZE, 1), 255, np.uint8)
    same: dict[str, Make] = {
        "PNG gray": image("case.png"),
        "PNG RGB": image("case.png", COLOR),
        "PNG RGBA": image("case.png", np.concatenate([COLOR, alpha], 2)),
        "PNG gray with opacity": image("case.png", np.concatenate([GRAY[..., None], alpha], 2)),
        "PNG gray palette": image("case.png", palette(np.arange(256, dtype=np.uint8))),
        "PNG shuffled palette": image("case.png", palette(shuffled)),
        "PNG 16 bits": image("case.png", GRAY.astype(np.uint16) * 257),
        "PNG with pixel size": image("case.png", dpi=(25.4 / 0.03, 25.4 / 0.03)),
        "PNG with text": image("case.png", pnginfo=None),
        "PNG upper-case name": image("case.PNG"),
        "PNG without ending": image("case", format="PNG"),
        "JPEG named PNG": image("case.png", format="JPEG", quality=98),
        "PNG named JPEG": image("case.jpg", format="PNG"),
        "BMP gray": image("case.bmp"),
        "BMP RGB": image("case.bmp", COLOR),
        "TIFF": image("case.tif"),
        "TIFF LZW": image("case.tiff", compression="tiff_lzw"),
        "TIFF deflate": image("case.tiff", compression="tiff_adobe_deflate"),
        "TIFF 16 bits": image("case.tif", GRAY.astype(np.uint16) * 257),
        "TIFF 16 bits big-endian": image("case.tif", Image.fromarray(GRAY.astype(">u2") * 257)),
        "TIFF float in [0, 1]": image("case.tif", GRAY.astype(np.float32) / 255),
        "TIFF with a preview page": tiff_with_preview,
        "TIFF of three pages": pages("case.tif", "TIFF"),
        "GIF": image("case.gif"),
        "GIF animated": pages("case.gif", "GIF", duration=40, optimize=False),
        "WebP lossless": image("case.webp", COLOR, lossless=True),
        "WebP animated": pages("case.webp", "WEBP", lossless=True, duration=40, minimize_size=False),
        "PNG animated": pages("case.png", "PNG", duration=40),
        "EXIF 3 in PNG": turned("case.png", 3),
        "EXIF 6 in PNG": turned("case.png", 6),
        "EXIF 8 in WebP": turned("case.webp", 8, lossless=True),
        "EXIF 6 in TIFF": turned("case.tif", 6),
        "EXIF 2 in TIFF": turned("case.tif", 2),
        "sidecar with mm": beside("case.png", '{"spacing_mm": [0.1, 0.1]}'),
        "sidecar of another program": beside("case.png", '{"spacing_mm": "unknown", "full_scale": null}'),
        "sidecar that is no JSON": beside("case.png", "{"),
        "sidecar with a negative size": beside("case.png", '{"spacing_mm": [-1, 0]}'),
        "link": linked,
        "TIFF beyond 4 GB, no ending": image("case", format="TIFF", big_tiff=True),
        "PNG 16 bits, white in 4,095": image("case.png", (GRAY.astype(np.uint32) * 4095 // 255).astype(np.uint16)),
        "EXIF 5 in PNG": turned("case.png", 5),
        "EXIF 7 in TIFF": turned("case.tif", 7),
    }
    near: dict[str, Make] = {
        "JPEG": image("case.jpg", quality=98),
        "JPEG RGB": image("case.jpeg", COLOR, quality=98, subsampling=0),
        "JPEG CMYK": image("case.jpg", Image.fromarray(COLOR).convert("CMYK"), quality=98),
        "JPEG progressive": image("case.JPG", quality=98, progressive=True),
        "JPEG of a phone (MPO)": mpo,
        "EXIF 8 in JPEG": turned("case.jpg", 8, quality=98),
        "EXIF 4 in JPEG": turned("case.jpg", 4, quality=98),
        "WebP": image("case.webp", COLOR, quality=98),
        "PNG 12 bits in 16": image("case.png", GRAY.astype(np.uint16) * 16),
    }
    names = [
        "case one.png", "case#1.png", "case@plan.png", "case%20.png", "case$x.png", "-case.png", "case,a=b.png",
        "case'q\".png", "case.v1.2.png", "case;rm.png", "case{0}.png", "case_seg.png", "case/sub/us.png",
        unicodedata.normalize("NFD", "cáse-Ü.png"), "case-超音波.png", "case" + "x" * 180 + ".png", "case[1].png",
    ]  # fmt: skip
    flat: dict[str, Make] = {
        "one pixel": alone(image("case.png", GRAY[:1, :1].copy()), slice(1), slice(1)),
        "one row": alone(image("case.png", GRAY[20:21].copy()), slice(20, 21)),
        "one column": alone(image("case.png", GRAY[:, 20:21].copy()), columns=slice(20, 21)),
        "all black": image("case.png", np.zeros_like(GRAY)),
        "all white": image("case.png", np.full_like(GRAY, 255)),
        "1 bit": image("case.png", Image.fromarray(MASK * 255).convert("1")),
        "2,000 columns": alone(image("case.png", np.tile(GRAY, (1, 36))), tile=36),
    }
    damaged: dict[str, Make] = {
        "empty": written("case.png", b""),
        "PNG cut": written("case.png", lambda: encoded(GRAY, "PNG")[:700]),
        "PNG cut in its header": written("case.png", lambda: encoded(GRAY, "PNG")[:20]),
        "PNG with a wrong sum": written("case.png", wrong_sum),
        "JPEG cut": written("case.jpg", lambda: encoded(GRAY, "JPEG", quality=98)[:900]),
        "TIFF cut": written("case.tif", lambda: encoded(GRAY, "TIFF")[:900]),
        "BMP cut": written("case.bmp", lambda: encoded(GRAY, "BMP")[:1500]),
        "WebP cut": written("case.webp", lambda: encoded(GRAY, "WEBP", lossless=True)[:500]),
        "GIF cut": written("case.gif", lambda: encoded(GRAY, "GIF")[:1200]),
        "text named PNG": written("case.png", b"a line of text\n" * 20),
        "HTML named JPEG": written("case.jpg", b"<!DOCTYPE html><html><body>404</body></html>"),
        "random bytes": written("case.tif", np.random.default_rng(0).bytes(4000)),
        "zeros": written("case.jpg", bytes(4000)),
        "another type": written("case.docx", b"PK\x03\x04" + bytes(100)),
        "12,000 x 9,000": image("case.png", Image.new("1", (12_000, 9_000))),
        "a folder": directory,
        "a pipe": pipe,
        "a broken link": lambda folder: linked(folder, None),
        "missing": lambda folder: {"image": "case.png"},
        "NaN in TIFF": image("case.tif", np.where(MASK, np.nan, GRAY / 255).astype(np.float32)),
        "pages of two sizes": lambda folder: (
            Image.fromarray(GRAY).save(
                folder / "case.tif", save_all=True, append_images=[Image.fromarray(GRAY[:20].copy())]
            )
            or {"image": "case.tif"}
        ),
    }
    return [
        *[Case(kind, name, make, "near" if name == "JPEG named PNG" else "same") for name, make in same.items()],
        *[Case(kind, name, make, "near") for name, make in near.items()],
        *[Case("names of files", name[:40], image(name), "same") for name in names],
        *[Case("flat or tiny images", name, make, "defined") for name, make in flat.items()],
        *[Case("damaged and foreign files", name, make, "error") for name, make in damaged.items()],
    ]


# videos


def video(name: str, codec: str, frames: int = 5, options: dict[str, str] | None = None, scale: int = 4) -> Make:
    """GRAY, enlarged since codecs blur small images, is every frame."""
    large = np.repeat(np.repeat(GRAY, scale, 0), scale, 1)

    def make(folder: Path) -> dict[str, Any]:
        with av.open(str(folder / name), "w") as file:
            stream = file.add_stream(codec, rate=25, options=options or {})
            stream.width, stream.height = large.shape[1], large.shape[0]
            stream.pix_fmt = {"mjpeg": "yuvj420p", "ffv1": "gray"}.get(codec, "yuv420p")
            if codec not in ("ffv1", "libx264"):
                stream.bit_rate = 8_000_000
            for _ in range(frames):
                frame = av.VideoFrame.from_ndarray(np.repeat(large[..., None], 3, 2), format="rgb24")
                for packet in stream.encode(frame):
                    file.mux(packet)
            for packet in stream.encode():
                file.mux(packet)
        Image.fromarray(np.repeat(np.repeat(MASK * 255, scale, 0), scale, 1)).save(folder / "label.png")
        return {"image": name}

    return make


def cut_video(name: str) -> Make:
    def make(folder: Path) -> dict[str, Any]:
        video(name, "mpeg4")(folder)
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 3])
        return {"image": name}

    return make


def sound(folder: Path) -> dict[str, Any]:
    with av.open(str(folder / "case.mp4"), "w") as file:
        stream = file.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        for packet in [*stream.encode(frame), *stream.encode()]:
            file.mux(packet)
    return {"image": "case.mp4"}


def videos() -> list[Case]:
    kind = "AVI, MP4 and other videos"
    good = {
        "AVI, MJPEG": video("case.avi", "mjpeg"),
        "AVI, lossless": video("case.avi", "ffv1"),
        "AVI, MPEG-4": video("case.avi", "mpeg4"),
        "MP4, MPEG-4": video("case.mp4", "mpeg4"),
        "MP4, H.264": video("case.mp4", "libx264", options={"crf": "5"}),
        "MOV": video("case.mov", "mpeg4"),
        "MKV, lossless": video("case.mkv", "ffv1"),
        "MP4 of one frame": video("case.mp4", "mpeg4", frames=1),
    }
    bad = {
        "AVI without a frame": written("case.avi", b"RIFF" + bytes(200)),
        "MP4 cut": cut_video("case.mp4"),
        "MP4 of text": written("case.mp4", b"no video\n" * 30),
        "MP4 of sound alone": sound,
    }
    return [
        *[Case(kind, n, m, "defined") for n, m in good.items()],
        *[Case(kind, n, m, "error") for n, m in bad.items()],
    ]


# NIfTI


def nifti(name: str, array: np.ndarray, affine: np.ndarray | None = None, **header: Any) -> Make:
    def make(folder: Path) -> dict[str, Any]:
        placed = affine if affine is not None and np.linalg.det(affine) else np.diag([0.1, 0.1, 1, 1])
        img = nib.Nifti1Image(array, placed)
        if placed is not affine and affine is not None:  # nibabel sets no such matrix by itself
            for row, field in enumerate(("srow_x", "srow_y", "srow_z")):
                img.header[field] = affine[row]
            img = nib.Nifti1Image(array, None, img.header)
        for field, value in header.items():
            img.header[field] = value
        nib.save(img, folder / name)
        return {"image": name}

    return make


def rgb24() -> np.ndarray:
    record = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    return np.ascontiguousarray(COLOR.transpose(1, 0, 2)).view(record)[..., 0]


def scaled(folder: Path) -> dict[str, Any]:
    img = nib.Nifti1Image(GRAY.T.astype(np.int16), np.eye(4))
    img.header.set_slope_inter(1 / 255, 0)
    nib.save(img, folder / "case.nii")
    return {"image": "case.nii"}


def with_frames(array: np.ndarray, frames: int = 3) -> np.ndarray:
    """(X, Y, 1, T) with the image in the middle."""
    return np.stack([array if n == frames // 2 else speckled(80 + n).T for n in range(frames)], -1)[:, :, None]


def niftis() -> list[Case]:
    a, kind, x, y = GRAY.T, "NIfTI", SIZE[1], SIZE[0]
    oblique = np.diag([0.1, 0.1, 1, 1.0])
    oblique[:2, :2] = 0.1 * np.array([[0.8, -0.6], [0.6, 0.8]])
    volume = with_frames(a)[:, :, 0]
    same: dict[str, tuple[Make, tuple[int, ...]]] = {
        "(X, Y)": (nifti("case.nii.gz", a), (x, y)),
        "(X, Y, 1)": (nifti("case.nii.gz", a[..., None]), (x, y, 1)),
        "(1, X, Y)": (nifti("case.nii.gz", a[None]), (1, x, y)),
        "(X, 1, Y)": (nifti("case.nii.gz", a[:, None]), (x, 1, y)),
        "(1, 1, X, Y)": (nifti("case.nii.gz", a[None, None]), (1, 1, x, y)),
        "(X, Y, 1, 1)": (nifti("case.nii.gz", a[..., None, None]), (x, y, 1, 1)),
        "cine (X, Y, 1, T)": (nifti("case.nii.gz", with_frames(a)), ()),
        "cine (1, X, Y, T)": (nifti("case.nii.gz", with_frames(a)[:, :, 0][None]), ()),
        "volume (X, Y, Z)": (nifti("case.nii.gz", volume), ()),
        "upper-case name": (nifti("case.NII.GZ", a), (x, y)),
        "not compressed": (nifti("case.nii", a), (x, y)),
        "float of [0, 1]": (nifti("case.nii.gz", (a / 255).astype(np.float32)), (x, y)),
        "float64 of 0 to 255": (nifti("case.nii.gz", a.astype(np.float64)), (x, y)),
        "int16 of 0 to 255": (nifti("case.nii.gz", a.astype(np.int16)), (x, y)),
        "uint16 of 0 to 65,535": (nifti("case.nii.gz", a.astype(np.uint16) * 257), (x, y)),
        "int32 of 0 to 255": (nifti("case.nii.gz", a.astype(np.int32)), (x, y)),
        "slope and intercept": (scaled, (x, y)),
        "big-endian": (nifti("case.nii.gz", a.astype(">i2")), (x, y)),
        "RGB24": (nifti("case.nii.gz", rgb24()), (x, y)),
        "flipped affine": (nifti("case.nii.gz", a, np.diag([-0.1, -0.1, 1, 1])), (x, y)),
        "oblique affine": (nifti("case.nii.gz", a, oblique), (x, y)),
        "no unit": (nifti("case.nii.gz", a, np.eye(4), xyzt_units=0), (x, y)),
        "affine of zeros": (nifti("case.nii.gz", a, np.zeros((4, 4))), (x, y)),
        "pixels of 0 mm": (nifti("case.nii.gz", a, np.diag([0, 0, 1, 1.0])), (x, y)),
        "no code of the affine": (nifti("case.nii.gz", a, sform_code=0, qform_code=0), (x, y)),
        "description": (nifti("case.nii.gz", a, descrip=b"DOE^JANE"), (x, y)),
    }
    nan = np.where(a > 200, np.nan, a).astype(np.float32)
    bad: dict[str, Make] = {
        "NaN": nifti("case.nii.gz", nan),
        "infinite": nifti("case.nii.gz", np.where(a > 200, np.inf, a).astype(np.float32)),
        "complex": nifti("case.nii.gz", a.astype(np.complex64)),
        "two volumes": nifti("case.nii.gz", np.stack([volume, volume], -1)),
        "vectors (X, Y, 1, 1, 2)": nifti("case.nii.gz", np.repeat(a[..., None, None, None], 2, -1)),
        "no gzip in .nii.gz": written("case.nii.gz", b"no gzip" * 60),
        "cut": written("case.nii", lambda: _saved_nifti(a)[:1000]),
        "cut in its header": written("case.nii", lambda: _saved_nifti(a)[:200]),
        "header alone": written("case.nii", lambda: _saved_nifti(a)[:352]),
        "a header of 30,000 x 30,000": written("case.nii", _huge_header),
        "an axis of 0": nifti("case.nii.gz", np.zeros((0, 5), np.uint8)),
    }
    return [
        *[Case(kind, name, make, "same", shape) for name, (make, shape) in same.items()],
        *[Case(kind, name, make, "error") for name, make in bad.items()],
        Case(kind, "negative values", nifti("case.nii.gz", a.astype(np.int16) - 128), "near", (x, y)),
        Case(kind, "one value of 256", nifti("case.nii.gz", np.where(a == 255, 256, a).astype(np.int16)), "near", (x, y)),
    ]  # fmt: skip


def _saved_nifti(array: np.ndarray) -> bytes:
    return nib.Nifti1Image(array, np.eye(4)).to_bytes()


def _huge_header() -> bytes:
    header = nib.Nifti1Header()
    header.set_data_shape((30_000, 30_000, 100))
    header.set_data_dtype(np.uint8)
    return header.binaryblock + bytes(1000)


# MetaImage and NRRD


def nrrd(name: str, array: np.ndarray, data_file: str | None = None, **fields: Any) -> Make:
    """``array`` with the slowest axis first."""
    kind = {"uint8": "uchar", "uint16": "ushort", "float32": "float"}[array.dtype.name]
    lines = ["NRRD0005", f"type: {kind}", f"dimension: {array.ndim}", f"sizes: {' '.join(map(str, array.shape[::-1]))}"]
    lines += [f"{key.replace('_', ' ')}: {value}" for key, value in fields.items()]
    lines += ["endian: little", "encoding: raw"]

    def make(folder: Path) -> dict[str, Any]:
        if data_file:
            (folder / name).write_text("\n".join([*lines, f"data file: {data_file}", ""]))
            if data_file == "case.raw":
                (folder / "case.raw").write_bytes(array.tobytes())
        else:
            (folder / name).write_bytes("\n".join([*lines, "", ""]).encode() + array.tobytes())
        return {"image": name}

    return make


def metaimage(name: str, array: np.ndarray, direction: Any = None, **write: Any) -> Make:
    def make(folder: Path) -> dict[str, Any]:
        img = itk.image_from_array(np.ascontiguousarray(array), is_vector=array.ndim == 3 and array.shape[-1] == 3)
        if direction is not None:
            img.SetDirection(itk.matrix_from_array(np.asarray(direction, float)))
        itk.imwrite(img, str(folder / name), **write)
        return {"image": name}

    return make


def mhd(data: str, text: str = "", array: np.ndarray = GRAY) -> Make:
    def make(folder: Path) -> dict[str, Any]:
        head = f"ObjectType = Image\nNDims = 2\nDimSize = {SIZE[1]} {SIZE[0]}\nElementType = MET_UCHAR\n{text}"
        (folder / "case.mhd").write_text(f"{head}ElementDataFile = {data}\n")
        if data == "case.raw":
            (folder / data).write_bytes(array.tobytes())
        return {"image": "case.mhd"}

    return make


def mha4(cine: np.ndarray) -> Make:
    head = f"ObjectType = Image\nNDims = 4\nDimSize = {SIZE[1]} {SIZE[0]} 1 3\nElementType = MET_UCHAR\n"
    return written("case.mha", f"{head}ElementDataFile = LOCAL\n".encode() + cine.tobytes())


def others() -> list[Case]:
    kind = "MetaImage, NRRD"
    cine = np.stack([speckled(91), GRAY, speckled(92)])
    last = np.ascontiguousarray(np.moveaxis(cine, 0, -1))
    same: dict[str, Make] = {
        "MHA": metaimage("case.mha", GRAY),
        "MHA compressed": metaimage("case.mha", GRAY, compression=True),
        "MHA (X, Y, 1)": metaimage("case.mha", GRAY[None]),
        "MHA of 3 slices": metaimage("case.mha", cine),
        "MHA RGB": metaimage("case.mha", COLOR),
        "MHA flipped direction": metaimage("case.mha", GRAY, [[-1, 0], [0, -1]]),
        "MHA (X, Y, 1, T)": mha4(cine),
        "MHA float": metaimage("case.mha", GRAY.astype(np.float32) / 255),
        "MHD and raw": mhd("case.raw"),
        "NRRD": nrrd("case.nrrd", GRAY),
        "NRRD 16 bits": nrrd("case.nrrd", GRAY.astype(np.uint16) * 257),
        "NRRD float": nrrd("case.nrrd", (GRAY / 255).astype(np.float32)),
        "NRRD list first": nrrd("case.nrrd", last, kinds="list domain domain"),
        "NRRD time last": nrrd("case.nrrd", cine, kinds="domain domain time"),
        "NRRD of 3 frames, nothing said": nrrd("case.nrrd", last),
        "NRRD RGB": nrrd("case.nrrd", COLOR, kinds="RGB-color domain domain"),
        "NRRD with spacings": nrrd("case.nrrd", GRAY, spacings="0.1 0.1"),
        "NRRD in LPS": nrrd("case.nrrd", GRAY[None], space="left-posterior-superior",
                            space_directions="(0.1,0,0) (0,0.1,0) (0,0,1)", space_origin="(0,0,0)"),
        "NHDR and raw": nrrd("case.nhdr", GRAY, "case.raw"),
    }  # fmt: skip
    bad: dict[str, Make] = {
        "MHD naming /etc/passwd": mhd("/etc/passwd"),
        "MHD naming ../x.raw": mhd("../x.raw"),
        "MHD without its raw file": mhd("gone.raw"),
        "MHD naming a device": mhd("/dev/zero"),
        "MHD with too little data": lambda folder: (
            mhd("case.raw")(folder) and (folder / "case.raw").write_bytes(b"12") and {"image": "case.mhd"}
        ),
        "NHDR naming /etc/passwd": nrrd("case.nhdr", GRAY, "/etc/passwd"),
        "NHDR without its raw file": nrrd("case.nhdr", GRAY, "gone.raw"),
        "NRRD cut": written("case.nrrd", b"NRRD0004\ntype: uchar\ndimension: 2\nsizes: 40 50\nencoding: raw\n\n123"),
        "NRRD of text": written("case.nrrd", b"no header at all"),
        "MHA of text": written("case.mha", b"no header at all"),
        "NRRD in HSV": nrrd("case.nrrd", COLOR, kinds="HSV-color domain domain"),
        "MHA of channels that differ": metaimage("case.mha", np.stack([speckled(n) for n in range(3)], -1)),
        "NRRD of two lists": nrrd("case.nrrd", last, kinds="list list domain"),
    }  # fmt: skip
    return [*[Case(kind, n, m) for n, m in same.items()], *[Case(kind, n, m, "error") for n, m in bad.items()]]


# DICOM


def dicom(pixels: np.ndarray = GRAY, name: str = "case.dcm", without: str = "", **attributes: Any) -> Make:
    def make(folder: Path) -> dict[str, Any]:
        ds = ultrasound(pixels, **attributes)
        if without:
            delattr(ds, without)
        ds.save_as(folder / name)
        return {"image": name}

    return make


def compressed(
    syntax: Any, pixels: np.ndarray, frames: list[bytes] | None, without: str = "", **attributes: Any
) -> Make:
    def make(folder: Path) -> dict[str, Any]:
        ds = ultrasound(pixels, **attributes)
        if syntax == DeflatedExplicitVRLittleEndian:
            ds.file_meta.TransferSyntaxUID = syntax
        elif frames is None:
            ds.compress(syntax)
        else:
            ds.file_meta.TransferSyntaxUID = syntax
            ds.PixelData = encapsulate(frames)
            ds["PixelData"].is_undefined_length = True
        if without:
            delattr(ds, without)
        ds.save_as(folder / "case.dcm")
        return {"image": "case.dcm"}

    return make


def unmarked(jpeg: bytes) -> bytes:
    """Without the JFIF segment, as scanners write it."""
    return jpeg[:2] + jpeg[4 + int.from_bytes(jpeg[4:6], "big") :]


def no_preamble(folder: Path) -> dict[str, Any]:
    dicom()(folder)
    (folder / "case.dcm").write_bytes((folder / "case.dcm").read_bytes()[132:])
    return {"image": "case.dcm"}


def cut_dicom(folder: Path) -> dict[str, Any]:
    dicom()(folder)
    (folder / "case.dcm").write_bytes((folder / "case.dcm").read_bytes()[:-900])
    return {"image": "case.dcm"}


def dicoms() -> list[Case]:
    kind = "DICOM"
    cine = np.stack([speckled(91), GRAY, speckled(92)])
    jpeg = encoded(COLOR, "JPEG", quality=98)
    order = np.arange(255, -1, -1, dtype=np.uint16)
    tables = {
        f"{name}PaletteColorLookupTable{part}": value
        for name in ("Red", "Green", "Blue")
        for part, value in (("Descriptor", [256, 0, 16]), ("Data", (order * 257).astype("<u2").tobytes()))
    }
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [256, 0, 8], order.astype("<u2").tobytes()
    half = (0, 0, SIZE[1] // 2 - 1, SIZE[0] - 1), (SIZE[1] // 2, 0, SIZE[1] - 1, SIZE[0] - 1)
    same: dict[str, Make] = {
        "plain": dicom(),
        "no ending": dicom(name="case"),
        "UID as name": dicom(name="case.1.2.840.10008"),
        "three frames": dicom(cine),
        "three frames, not counted": dicom(cine, without="NumberOfFrames"),
        "frame times": dicom(cine, FrameTimeVector=[0, 40, 40], FrameIncrementPointer=0x00181065),
        "MONOCHROME1": dicom(255 - GRAY, PhotometricInterpretation="MONOCHROME1"),
        "presentation INVERSE": dicom(255 - GRAY, PresentationLUTShape="INVERSE"),
        "8 of 16 bits with window": dicom(GRAY.astype(np.uint16), WindowCenter=128, WindowWidth=256),
        "8 of 16 bits, nothing said": dicom(GRAY.astype(np.uint16)),
        "12 of 16 bits stored": dicom((GRAY.astype(np.uint16) * 257) >> 4, BitsStored=12, HighBit=11),
        "8 of 32 bits, nothing said": dicom(GRAY.astype(np.uint32)),
        "signed, nothing said": dicom(GRAY.astype(np.int16), PixelRepresentation=1),
        "a window of width 0": dicom(WindowCenter=128, WindowWidth=0),
        "negative slope": dicom(255 - GRAY, RescaleSlope=-1, RescaleIntercept=255),
        "table of values": dicom(255 - GRAY, VOILUTSequence=Sequence([table])),
        "RGB": dicom(COLOR),
        "RGB by planes": dicom(COLOR, PlanarConfiguration=1, PixelData=COLOR.transpose(2, 0, 1).tobytes()),
        "palette": dicom(255 - GRAY, PhotometricInterpretation="PALETTE COLOR", **tables),
        "RLE": compressed(RLELossless, GRAY, None),
        "deflated": compressed(DeflatedExplicitVRLittleEndian, GRAY, None),
        "JPEG, RGB in the header, YCbCr inside": compressed(JPEGBaseline8Bit, COLOR, [unmarked(jpeg)]),
        "JPEG, YBR_FULL_422": compressed(JPEGBaseline8Bit, COLOR, [jpeg], PhotometricInterpretation="YBR_FULL_422"),
        "JPEG, frames not counted": compressed(
            JPEGBaseline8Bit, cine, [encoded(f, "JPEG", quality=98) for f in cine], "NumberOfFrames"
        ),
        "two regions of one scale": dicom(
            SequenceOfUltrasoundRegions=Sequence([region(b, (0.01, 0.01)) for b in half])
        ),
        "two regions of two scales": dicom(
            SequenceOfUltrasoundRegions=Sequence([region(half[0], (0.01, 0.01)), region(half[1], (0.03, 0.03))])
        ),
        "a region beyond the image": dicom(
            SequenceOfUltrasoundRegions=Sequence([region((0, 0, 900, 900), (0.01, 0.01))])
        ),
        "pixel spacing": dicom(PixelSpacing=[0.1, 0.2]),
        "pixel spacing of 0": dicom(PixelSpacing=[0, 0]),
    }
    bad: dict[str, Make] = {
        "no pixels": dicom(without="PixelData"),
        "no rows": dicom(without="Rows"),
        "bits shifted": dicom(GRAY.astype(np.uint16) << 6, BitsStored=10, HighBit=15),
        "cut": cut_dicom,
        "more frames stated than there are": dicom(cine, NumberOfFrames=30),
        "damaged JPEG": compressed(JPEGBaseline8Bit, COLOR, [jpeg[:300] + bytes(300)]),
        "text named DICOM": written("case.dcm", b"no DICOM\n" * 40),
        "a size of 0": dicom(np.zeros((1, 1), np.uint8), Rows=0, Columns=0, PixelData=b""),
    }
    report = ultrasound(GRAY, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11", Modality="SR")
    del report.PixelData

    def structured(folder: Path) -> dict[str, Any]:
        report.save_as(folder / "case.dcm")
        return {"image": "case.dcm"}

    lossy = {"JPEG, RGB in the header, YCbCr inside", "JPEG, YBR_FULL_422", "JPEG, frames not counted"}
    return [
        *[Case(kind, n, m, "near" if n in lossy else "same") for n, m in same.items()],
        Case(kind, "no preamble", no_preamble, "error"),
        *[Case(kind, n, m, "error") for n, m in bad.items()],
        Case(kind, "a structured report", structured, "error"),
    ]


# labels, with the plain image


def label(name: str, array: Any, **save: Any) -> Make:
    def make(folder: Path) -> dict[str, Any]:
        image(name, array, **save)(folder)
        return {"label": name}

    return make


def as_label(make: Make) -> Make:
    """An image file in the place of the label."""
    return lambda folder: {"label": make(folder)["image"]}


def label_palette(colors: list[int], array: np.ndarray) -> Image.Image:
    img = Image.fromarray(array, mode="P")
    img.putpalette(colors)
    return img


def label_pages(name: str, number: int) -> Make:
    """MASK is the middle page."""

    def make(folder: Path) -> dict[str, Any]:
        frames = [Image.fromarray(np.roll(MASK, n - number // 2, 0) * 255) for n in range(number)]
        frames[0].save(folder / name, save_all=True, append_images=frames[1:])
        return {"image": name}

    return make


def masks(folder: Path, second: np.ndarray | None = None) -> dict[str, Any]:
    left = MASK * (COLUMNS < 34)
    for name, array in (("case_a.png", left), ("case_b.png", MASK - left if second is None else second)):
        Image.fromarray((array * 255).astype(np.uint8)).save(folder / name)
    return {"label": ["case_a.png", "case_b.png"]}


def turned_label(folder: Path) -> dict[str, Any]:
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(MASK * 255).save(folder / "case.png", exif=exif)
    return {"label": "case.png"}


def pair(image_make: Make, label_make: Make) -> Make:
    return lambda folder: {**image_make(folder), **label_make(folder)}


def labels() -> list[Case]:
    full, white = MASK * 255, np.full((*SIZE, 3), 255, np.uint8)
    near_one = np.where(MASK, np.float32(0.99999994), np.float32(1e-7)).T
    black = np.zeros((*SIZE, 3), np.uint8)
    back = np.diag([-0.1, 0.1, 1, 1.0])
    back[0, 3] = 0.1 * (SIZE[1] - 1)
    placed = np.diag([0.1, 0.1, 1, 1.0])
    placed[:3, 3] = 5, 7, 3
    image_nii = nifti("image.nii", GRAY.T)
    same: dict[str, Make] = {
        "0 and 255": label("case.png", full),
        "0 and 1": label("case.png", MASK),
        "1 bit": label("case.png", Image.fromarray(full).convert("1")),
        "palette, white first": label("case.png", label_palette([255] * 3 + [0] * 3, 1 - MASK), bits=1),
        "palette, black first": label("case.png", label_palette([0] * 3 + [255] * 3, MASK), bits=1),
        "GIF cine beside a GIF cine": pair(
            pages("image.gif", "GIF", duration=40), as_label(label_pages("case.gif", 3))
        ),
        "palette of colors": label("case.png", label_palette([0, 0, 0, 255, 0, 0], MASK)),
        "RGB": label("case.png", np.repeat(full[..., None], 3, 2)),
        "white, mask in the opacity": label("case.png", np.dstack([white, full])),
        "black, mask in the opacity": label("case.png", np.dstack([black, full])),
        "gray with opacity": label("case.png", np.dstack([full, np.full_like(full, 255)])),
        "TIFF": label("case.tif", MASK),
        "BMP": label("case.bmp", full),
        "GIF": label("case.gif", full),
        "WebP": label("case.webp", np.repeat(full[..., None], 3, 2), lossless=True),
        "16 bits": label("case.png", MASK.astype(np.uint16)),
        "NIfTI beside PNG": as_label(nifti("case.nii.gz", MASK.T)),
        "NIfTI 0.99999994": as_label(nifti("case.nii.gz", near_one)),
        "NIfTI float64": as_label(nifti("case.nii.gz", MASK.T.astype(np.float64))),
        "NIfTI (1, X, Y)": as_label(nifti("case.nii.gz", MASK.T[None])),
        "NIfTI with a slope": as_label(nifti("case.nii.gz", MASK.T.astype(np.int16), scl_slope=1, scl_inter=0)),
        "MHA": as_label(metaimage("case.mha", MASK)),
        "NRRD": as_label(nrrd("case.nrrd", MASK)),
        "DICOM": as_label(dicom(MASK)),
        "two masks of one image": masks,
        "NIfTI and NIfTI": pair(image_nii, as_label(nifti("case.nii", MASK.T))),
        "NIfTI and MHD at the default place": pair(
            image_nii, as_label(mhd("case.raw", "ElementSpacing = 0.1 0.1\n", MASK))
        ),
    }
    near = {"JPEG 0 and 255": label("case.jpg", full, quality=95), "JPEG 0 and 1": label("case.jpg", MASK, quality=95)}
    bad: dict[str, Make] = {
        "JPEG 0 and 20": label("case.jpg", MASK * 20, quality=95),
        "0 and 128": label("case.png", MASK * 128),
        "0 and 254": label("case.png", MASK * 254),
        "three classes": label("case.png", MASK * (1 + (COLUMNS > 34)).astype(np.uint8)),
        "probabilities": as_label(nifti("case.nii.gz", (MASK.T * 0.7).astype(np.float32))),
        "NaN": as_label(nifti("case.nii.gz", np.where(MASK.T, np.nan, 0).astype(np.float32))),
        "-1 for ignored": as_label(nifti("case.nii.gz", MASK.T.astype(np.int16) - 1)),
        "the image itself": label("case.png", GRAY),
        "black is not the first of the colors": label("case.png", label_palette([255, 0, 0, 0, 0, 0], 1 - MASK)),
        "five pages for one image": as_label(label_pages("case.tif", 5)),
        "colors and opacity differ": label("case.png", np.dstack([np.repeat(full[..., None], 3, 2), GRAY])),
        "another size": label("case.png", full[:30].copy()),
        "rows and columns exchanged": label("case.png", full.T.copy()),
        "turned by EXIF, the image not": turned_label,
        "missing": lambda folder: {"label": "case.png"},
        "empty file": as_label(written("case.png", b"")),
        "cut": as_label(written("case.png", lambda: encoded(full, "PNG")[:70])),
        "masks of two sizes": lambda folder: masks(folder, MASK[:20]),
        "NIfTI flipped against NIfTI": pair(image_nii, as_label(nifti("case.nii", MASK.T[::-1].copy(), back))),
        "NRRD at another place": pair(
            nifti("image.nii", GRAY.T, placed),
            as_label(nrrd("case.nrrd", MASK[None], space="right-anterior-superior",
                          space_directions="(0.1,0,0) (0,0.1,0) (0,0,1)", space_origin="(9,9,9)")),
        ),
    }  # fmt: skip
    tasks = ("segmentation",)
    return [
        *[Case("labels", n, m, "same", tasks=tasks) for n, m in same.items()],
        *[Case("labels", n, m, "near", tasks=tasks) for n, m in near.items()],
        *[Case("labels", n, m, "error", tasks=tasks) for n, m in bad.items()],
        Case("labels", "empty mask", label("case.png", MASK * 0), "defined", tasks=tasks),
        Case("labels", "full mask", label("case.png", np.full_like(MASK, 255)), "defined", tasks=tasks),
    ]


# volumes, through networks of three dimensions

STACK = np.stack([speckled(30 + n, np.roll(MASK, n, 1)) for n in range(6)])
MASKS = np.stack([np.roll(MASK, n, 1) for n in range(6)])


def stacked(name: str, kind: str, **save: Any) -> Make:
    def make(folder: Path) -> dict[str, Any]:
        frames = [Image.fromarray(page) for page in STACK]
        frames[0].save(folder / name, kind, save_all=True, append_images=frames[1:], **save)
        return {"image": name}

    return make


def volumes() -> list[Case]:
    a, m, kind = STACK.T, MASKS.T, "volumes"
    plain = np.diag([0.1, 0.1, 1, 1.0])
    back = plain.copy()
    back[:3, 0], back[0, 3] = -plain[:3, 0], 0.1 * (SIZE[1] - 1)
    same: dict[str, Make] = {
        "NIfTI": nifti("case.nii", a),
        "NIfTI (X, Y, 1, T)": nifti("case.nii.gz", a[:, :, None]),
        "NIfTI (1, X, Y, T)": nifti("case.nii.gz", a[None]),
        "NIfTI int16": nifti("case.nii.gz", a.astype(np.int16)),
        "NIfTI float": nifti("case.nii.gz", (a / 255).astype(np.float32)),
        "MHA": metaimage("case.mha", STACK),
        "NRRD": nrrd("case.nrrd", STACK),
        "NRRD, frames first": nrrd("case.nrrd", np.ascontiguousarray(np.moveaxis(STACK, 0, -1)), kinds="list domain domain"),
        "TIFF pages": stacked("case.tif", "TIFF"),
        "GIF": stacked("case.gif", "GIF", duration=40, optimize=False),
        "PNG animated": stacked("case.png", "PNG", duration=40),
        "DICOM cine": dicom(STACK),
    }  # fmt: skip
    bad: dict[str, Make] = {
        "a still": image("case.png"),
        "NIfTI of one slice": nifti("case.nii.gz", a[..., :1]),
        "NaN": nifti("case.nii.gz", np.where(a > 200, np.nan, a).astype(np.float32)),
        "cut": written("case.nii", lambda: _saved_nifti(a)[:3000]),
        "a sequence of volumes": nifti("case.nii.gz", np.stack([a, a], -1)),
    }
    labeled: dict[str, Make] = {
        "label of five slices": as_label(nifti("case.nii.gz", m[..., :5].copy())),
        "label stored backwards": as_label(nifti("case.nii.gz", m[::-1].copy(), back)),
        "label of one slice": as_label(nifti("case.nii.gz", m[..., :1].copy())),
    }
    return [
        *[Case(kind, n, make) for n, make in same.items()],
        *[Case(kind, n, make, "error") for n, make in bad.items()],
        *[Case(kind, n, make, "error", tasks=("segmentation",)) for n, make in labeled.items()],
    ]


def volume_folder(folder: Path) -> list[dict[str, Any]]:
    """As :func:`plain_folder`, of volumes; the labels do not say where they lie."""
    folder.mkdir(parents=True, exist_ok=True)
    items = []
    for number in range(4):
        names = ("image.nii.gz", "label.tif") if number == 0 else (f"plain{number}.nii.gz", f"plain{number}_label.tif")
        moved = np.roll(STACK, 2 * number, 1)
        nib.save(nib.Nifti1Image(moved.T, np.diag([0.1, 0.1, 1, 1])), folder / names[0])
        pages = [Image.fromarray(page) for page in np.roll(MASKS, 2 * number, 1)]
        pages[0].save(folder / names[1], save_all=True, append_images=pages[1:])
        items.append({"image": names[0], "label": names[1], "class": number % 2, "patient": f"p{number}"})
    return items


def plain_folder(folder: Path) -> list[dict[str, Any]]:
    """The plain pair, ``image.png`` and ``label.png``, and three more; their items."""
    folder.mkdir(parents=True, exist_ok=True)
    items = []
    for number in range(4):
        mask = np.roll(MASK, (2 * number, -3 * number), (0, 1))
        names = ("image.png", "label.png") if number == 0 else (f"plain{number}.png", f"plain{number}_label.png")
        Image.fromarray(speckled(number, mask)).save(folder / names[0])
        Image.fromarray(mask * 255).save(folder / names[1])
        items.append({"image": names[0], "label": names[1], "class": number % 2, "patient": f"p{number}"})
    return items


def write_lists(folder: Path, first: list[dict[str, Any]], items: list[dict[str, Any]]) -> None:
    """``dataset.json`` to train on, ``test.json`` and ``validate.json`` (for pretraining) with ``first`` in their split."""
    (folder / "again").mkdir(exist_ok=True)  # two of one name: so results repeat the folders
    third = items[3]["image"]
    (folder / "again" / third).write_bytes((folder / third).read_bytes())
    lists = {
        "dataset": {"training": [*first, items[1]], "validation": [items[2]]},
        "test": {"test": [*first, items[3], {**items[3], "image": f"again/{third}"}]},
        "validate": {"training": [items[1]], "validation": [*first, items[2]]},
    }
    for name, content in lists.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def all_cases() -> list[Case]:
    return [*images(), *videos(), *niftis(), *others(), *dicoms(), *labels(), *volumes()]
