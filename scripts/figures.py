# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Draw the figures of the documentation.

    python scripts/figures.py transforms            docs/figures: acquisition, artifacts, beam, annotations
    python scripts/figures.py synthetic             docs/figures/synthetic_*; --beside FOLDER: real images next to ours
    python scripts/figures.py bundles DATA          the example of each bundle, by its inference.json

DATA holds ``busbra/`` and ``fetal_head_hc18/``, each with a ``dataset.json``. Images are taken at equal distances from
the test lists, none is chosen by its result.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import random
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cyclopts
import numpy as np
import torch
from monai.bundle import run
from PIL import Image, ImageDraw, ImageFont, ImageOps
from scipy.ndimage import binary_erosion

from monai_usfm.files import atomic_write
from monai_usfm.handlers import save_panels, segmentation_panels
from monai_usfm.physics.speckle import speckle_intensity
from monai_usfm.simulation import ORGANS, SyntheticUltrasound
from monai_usfm.transforms import (
    FitBeam,
    RemoveAnnotations,
    ToBeamSpace,
    acoustic_shadow,
    add_haze,
    apply_gain,
    attenuate,
    recompress,
    reverberate,
    time_gain,
)

REPOSITORY = Path(__file__).resolve().parents[1]
FIGURES, BUNDLES = REPOSITORY / "docs" / "figures", REPOSITORY / "bundles"
CONTOUR = (255, 210, 0)
SIZE = (150, 180)  # rows and columns of one image of a bundle
MAX_BYTES = 150_000
SOURCES = {
    "busbra": "BUS-BRA, doi:10.1002/mp.16812",
    "fetal_head_hc18": "HC18, doi:10.1371/journal.pone.0200412, CC BY 4.0",
}

Items = list[dict]
Panels = dict[str, torch.Tensor]
app = cyclopts.App(help=__doc__)


def tile(gray: Any, label: Any = None, title: str = "", side: int = 160) -> Image.Image:
    """A gray image ``(H, W)``, fitted into a square without distortion; the contour of ``label`` in yellow."""
    color = np.repeat((np.clip(np.asarray(gray), 0, 1) * 255).round().astype(np.uint8)[..., None], 3, axis=2)
    if label is not None:
        mask = np.asarray(label) > 0
        color[mask & ~binary_erosion(mask)] = CONTOUR
    image = ImageOps.contain(Image.fromarray(color), (side, side), Image.Resampling.BILINEAR)
    canvas = Image.new("RGB", (side, side + (18 if title else 0)))
    canvas.paste(image, ((side - image.width) // 2, canvas.height - side + (side - image.height) // 2))
    if title:
        ImageDraw.Draw(canvas).text((5, 3), title, fill=(235, 235, 235))
    return canvas


def sheet(rows: Sequence[Sequence[Image.Image]], path: Path, gap: int = 4) -> None:
    """Tiles in rows; few grays and one color keep the file small."""
    width, height = rows[0][0].width + gap, rows[0][0].height + gap
    page = Image.new("RGB", (width * max(map(len, rows)) - gap, height * len(rows) - gap), "white")
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            page.paste(image, (c * width, r * height))
    palette = Image.new("P", (1, 1))
    shades = [(round(255 * i / 95),) * 3 for i in range(96)]
    blends = [tuple(round(c * i / 8) for c in CONTOUR) for i in range(2, 9)]
    palette.putpalette([c for color in (*shades, *blends) for c in color])
    path.parent.mkdir(parents=True, exist_ok=True)
    page.quantize(palette=palette, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1024:.0f} KiB")


@app.command
def transforms(output: Path = FIGURES) -> None:
    """Acquisition, artifacts, fitted beams and removed annotations, on simulated images.

    Args:
        output: folder for the figures.
    """
    scene = SyntheticUltrasound(1, image_size=(256, 256), organs="liver", seed=5)[0]
    image, beams = scene["image"], scene["geometry"]
    known = {"fov": scene["fov"], "geometry": beams}
    texture = speckle_intensity((1, 256, 256), psf_sigma=(1.0, 2.5), generator=torch.Generator().manual_seed(1))
    effects: dict[str, dict[str, torch.Tensor]] = {
        "acquisition": {
            "original": image,
            "gain +8 dB": apply_gain(image, 8, **known),
            "attenuation 15 dB over depth": attenuate(image, 15, **known),
            "TGC sliders -6 .. 6 dB": time_gain(image, (0, 5, 6, 0, -5, -6, 2, 4), **known),
            "dynamic range 60 -> 50 dB": recompress(image, 60, 50, **known),
            "dynamic range 60 -> 80 dB": recompress(image, 60, 80, **known),
        },
        "artifacts": {
            "original": image,
            "acoustic shadow 22 dB": acoustic_shadow(image, 22, 0.16, 0.72, 0.13, **known),
            "posterior enhancement 5 dB": acoustic_shadow(image, -5, 0.5, 0.43, 0.2, **known),
            "reverberation, 3 echoes, -6 dB": reverberate(image, 0.16, 6.0, **known),
            "haze -42 dB": add_haze(image, -42, 0.4, 0.15, texture, **known),
        },
    }
    for name, shown in effects.items():
        tiles = [tile(out[0], title=title, side=256) for title, out in shown.items()]
        sheet([tiles[:3], tiles[3:]], output / f"{name}.png")

    rows = []
    for number, organ in enumerate(("liver", "heart")):
        image = SyntheticUltrasound(1, image_size=(256, 256), organs=organ, seed=5 + number)[0]["image"]
        fit, convert = FitBeam(fallback="linear")(image), ToBeamSpace()
        lines = convert(image, fit)
        fitted = tile(image[0], fit.mask((256, 256))[0], f"{fit.kind}: confidence {fit.confidence:.2f}", 256)
        rows.append([fitted, tile(lines[0], title="beam space: depth down, beams across", side=256)])
    sheet(rows, output / "beam.png")

    canvas = Image.new("L", (256, 256))
    pen = ImageDraw.Draw(canvas)
    pen.text((90, 205), "LIVER RIGHT 12", fill=235, font=ImageFont.load_default(14))
    for x, y in ((110, 118), (170, 124)):
        pen.line((x - 5, y, x + 5, y), 235)
        pen.line((x, y - 5, x, y + 5), 235)
    annotated = torch.maximum(scene["image"], torch.from_numpy(np.asarray(canvas, np.float32) / 255))
    remove = RemoveAnnotations()
    mask, report = remove.detect(annotated)
    kinds = ", ".join(f"{report.kinds.count(k)} {k}" for k in sorted(set(report.kinds)))
    shown = {"before": annotated, f"found: {kinds}": mask, "after": remove(annotated)}
    sheet([[tile(values[0], title=title, side=256) for title, values in shown.items()]], output / "annotations.png")


# ----------------------------------------------------------------------------------------------------------- synthetic


def plane(item: dict, key: str, *cut: int | slice) -> np.ndarray:
    return item[key][0][cut].float().numpy()


def organs(seed: int) -> list[list[Image.Image]]:
    items = list(SyntheticUltrasound(2 * len(ORGANS), seed=seed))
    first, second = items[: len(ORGANS)], items[len(ORGANS) :]
    return [
        [tile(plane(i, "image")) for i in first],
        [tile(plane(i, "image")) for i in second],
        [tile(plane(i, "image"), plane(i, "label")) for i in second],
        [tile(plane(i, "clean")) for i in second],
    ]


def qualities(seed: int) -> list[list[Image.Image]]:
    items = list(SyntheticUltrasound(len(ORGANS), seed=seed, quality="pair", annotations=True))
    return [[tile(plane(i, key)) for i in items] for key in ("image", "low")]


def cine(seed: int) -> list[list[Image.Image]]:
    rows = []
    for organ in ("heart", "liver"):
        item = SyntheticUltrasound(1, 3, (12, 176, 176), organ, seed, cine=True)[0]
        rows.append([tile(plane(item, "image", t), plane(item, "label", t)) for t in range(0, 12, 2)])
    return rows


def volumes(seed: int) -> list[list[Image.Image]]:
    """Three planes through the middle of the target: across the sweep, along it, and parallel to the probe."""
    rows: list[list[Image.Image]] = [[], [], []]
    for item in SyntheticUltrasound(len(ORGANS), 3, seed=seed):
        image, label = item["image"][0].numpy(), item["label"][0].numpy()
        z, y, x = (int(n) for n in torch.nonzero(item["label"][0]).float().mean(0).round())
        for row, cut in zip(rows, (np.s_[z], np.s_[:, :, x], np.s_[:, y]), strict=True):
            turned = (image[cut].T, label[cut].T) if row is rows[1] else (image[cut], label[cut])
            row.append(tile(*turned))
    return rows


def beside_real(folder: Path, seed: int) -> list[list[Image.Image]]:
    """Real images of ``folder`` (any PNG whose path does not name a mask) above simulated ones."""
    names = [p for p in sorted(folder.rglob("*.png")) if "mask" not in str(p.relative_to(folder)).lower()]
    if not names:
        raise SystemExit(f"{folder} holds no PNG images.")
    chosen = random.Random(seed).sample(names, min(12, len(names)))
    real = [tile(np.asarray(Image.open(name).convert("L"), np.float32) / 255) for name in chosen]
    made = [
        tile(plane(i, "low" if n % 2 else "image"))
        for n, i in enumerate(SyntheticUltrasound(12, seed=seed, quality="pair"))
    ]
    return [real[:6], real[6:], made[:6], made[6:]]


@app.command
def synthetic(output: Path = FIGURES, *, beside: Path | None = None, seed: int = 3) -> None:
    """Organs, qualities, cines and volumes of the simulation.

    Args:
        output: folder for the figures.
        beside: folder of real images to show above simulated ones.
        seed: of the simulation.
    """
    if beside:
        sheet(beside_real(beside, seed), output / "synthetic_beside_real.png")
    for draw in (organs, qualities, cine, volumes):
        sheet(draw(seed), output / f"synthetic_{draw.__name__}.png")


# ------------------------------------------------------------------------------------------------------------- bundles


def images_of(data: Path, names: Sequence[str], count: int) -> Items:
    """Test items at equal distances, the data sets and the classes in turn, with absolute paths."""
    items = []
    for number in range(count):
        folder = data / names[number % len(names)]
        found = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))["test"]
        classes = sorted({item.get("class", 0) for item in found})
        found = [item for item in found if item.get("class", 0) == classes[number % len(classes)]]
        item = found[(2 * number + 1) * len(found) // (2 * count)]
        items.append(item | {key: str(folder / item[key]) for key in ("image", "label")})
    return items


def read(path: str | Path, nearest: bool = False, crop: bool = False) -> torch.Tensor:
    """``(1, *SIZE)``: a figure in [0, 1] or class indices, resized or the middle of it."""
    with Image.open(path) as figure:
        how = Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR
        gray = figure.convert("L")
        left, top = (gray.width - SIZE[1]) // 2, (gray.height - SIZE[0]) // 2
        shown = gray.crop((left, top, left + SIZE[1], top + SIZE[0])) if crop else gray.resize(SIZE[::-1], how)
    values = torch.from_numpy(np.array(shown, dtype=np.float32))[None]
    return values if nearest else values / 255


def masks(items: Items, folder: Path) -> Panels:
    """Image, label and mask."""
    cases = [
        {
            "image": read(item["image"]),
            "label": (read(item["label"], nearest=True) > 0).float(),
            "pred": read(folder / f"{Path(item['image']).stem}_seg.png", nearest=True),
        }
        for item in items
    ]
    return segmentation_panels(cases, 2)


def draw_simulated(items: Items, infer: Callable[..., Path]) -> Panels:
    """Image, label and the mask of weights that have seen no label of a real image."""
    weights = "$@bundle_root + '/../usfm_pretraining/models/model.pt'"
    return masks(items, infer(checkpoint=weights))


def draw_segmentation(items: Items, infer: Callable[..., Path]) -> Panels:
    """Image, label, mask and uncertainty."""
    folder = infer(uncertainty=True)
    uncertainty = [read(folder / f"{Path(item['image']).stem}_uncertainty.png") for item in items]
    return masks(items, folder) | {"uncertainty": torch.stack(uncertainty)}


def draw_enhancement(items: Items, infer: Callable[..., Path]) -> Panels:
    """Before, after and the difference, in the middle of the images, pixel by pixel."""
    folder = infer()
    before = torch.stack([read(item["image"], crop=True) for item in items])
    after = torch.stack([read(folder / f"{Path(item['image']).stem}_enhanced.png", crop=True) for item in items])
    return {"before": before, "after": after, "change x4": 0.5 + 4 * (after - before)}


def draw_classification(items: Items, infer: Callable[..., Path]) -> Panels:
    """Images with the probabilities that the network gives them."""
    folder = infer()
    with open(folder / "images.csv", newline="", encoding="utf-8") as stream:
        found = {Path(row["image"]).name: float(row["p_malignant"]) for row in csv.DictReader(stream)}
    bars = []
    for item in items:
        canvas = Image.new("L", SIZE[::-1])
        draw = ImageDraw.Draw(canvas)
        probability = found[Path(item["image"]).name]
        for row, (name, share) in enumerate((("benign", 1 - probability), ("malignant", probability))):
            top = 20 + 45 * row
            draw.rectangle((8, top + 16, 8 + 160 * share, top + 30), fill=200)
            draw.text((8, top), f"{name} {share:.2f}", fill=255)
        draw.text((8, 120), f"label: {('benign', 'malignant')[item['class']]}", fill=255)
        bars.append(torch.from_numpy(np.array(canvas, dtype=np.float32))[None] / 255)
    return {"image": torch.stack([read(item["image"]) for item in items]), "probability": torch.stack(bars)}


def draw_pretraining(items: Items, infer: Callable[..., Path]) -> Panels:
    """Images, and the last patch features of the encoder: their first three principal components as colors."""
    block = 11
    folder = infer(feature_blocks=[block])
    files = {path.name.split("_", 1)[1].removesuffix("_maps.npz"): path for path in folder.glob("*_maps.npz")}
    maps = [torch.from_numpy(np.load(files[Path(i["image"]).stem])[f"block_{block}"]).float() for i in items]
    tokens = torch.cat([m.flatten(1).T for m in maps])
    _, _, directions = torch.linalg.svd(tokens - tokens.mean(0), full_matrices=False)
    shown = (tokens - tokens.mean(0)) @ directions[:3].T
    low, high = shown.quantile(0.02, dim=0), shown.quantile(0.98, dim=0)
    colors = ((shown - low) / (high - low)).clamp(0, 1).reshape(len(maps), *maps[0].shape[1:], 3)
    panels = {"image": torch.stack([read(item["image"]) for item in items])}
    panels["features"] = torch.nn.functional.interpolate(colors.movedim(-1, 1), SIZE)
    return panels


# Name -> bundle, file in its docs, what to draw, data sets in turn.
DRAWN: dict[str, tuple[str, str, Callable[[Items, Callable[..., Path]], Panels], tuple[str, ...]]] = {
    "pretraining": ("pretraining", "example", draw_pretraining, ("busbra", "fetal_head_hc18")),
    "segmentation": ("segmentation", "example", draw_segmentation, ("busbra",)),
    "simulated": ("segmentation", "simulated", draw_simulated, ("busbra", "fetal_head_hc18")),
    "classification": ("classification", "example", draw_classification, ("busbra",)),
    "enhancement": ("enhancement", "example", draw_enhancement, ("busbra", "fetal_head_hc18")),
}


def save_small(path: Path, panels: Panels) -> None:
    """The panels as a PNG with as many colors as :data:`MAX_BYTES` allow."""
    with tempfile.TemporaryDirectory() as folder:
        whole = Image.open(save_panels(Path(folder) / "panels.png", panels)).copy()
    for colors in (256, 128, 64, 32, 16, 8):
        buffer = io.BytesIO()
        whole.quantize(colors, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
        if buffer.tell() <= MAX_BYTES:
            break
    with atomic_write(path) as part:
        part.write_bytes(buffer.getvalue())


def draw_figure(figure: str, data: Path, root: Path, count: int) -> Path:
    """Make one figure."""
    bundle, stem, draw, names = DRAWN[figure]
    home = root / f"usfm_{bundle}"
    items = images_of(data, names, count)
    with tempfile.TemporaryDirectory() as folder:
        images, output = Path(folder) / "images", Path(folder) / "output"
        images.mkdir()
        for item in items:
            shutil.copy(item["image"], images)

        def infer(**options: object) -> Path:
            places = {"bundle_root": str(home), "dataset_dir": str(images), "output_dir": str(output)}
            run(config_file=str(home / "configs" / "inference.json"), **places, **options)
            return output

        path = home / "docs" / f"{stem}.png"
        save_small(path, draw(items, infer))
    print(f"{path}: {path.stat().st_size // 1000} kB; test images of {'; '.join(SOURCES[name] for name in names)}")
    return path


@app.command
def bundles(data: Path, *, figures: tuple[str, ...] = (), root: Path = BUNDLES, count: int = 3) -> None:
    """What the shipped weights do with images of the test splits.

    Args:
        data: folder of the data sets.
        figures: which to draw; all by default.
        root: folder of the bundles.
        count: images in each figure.
    """
    logging.getLogger("ignite").setLevel(logging.WARNING)
    for figure in figures or DRAWN:
        draw_figure(figure, data, root, count)


if __name__ == "__main__":
    app()
