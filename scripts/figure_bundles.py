#!/usr/bin/env python
# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Make the figures in the docs of each bundle: what its weights do with images of the test splits, by inference.json.

    python scripts/figure_bundles.py DATA

DATA holds ``busbra/`` and ``fetal_head_hc18/``, each with a ``dataset.json``. Images are taken at equal distances from
the test lists, none is chosen by its result.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from monai.bundle import run
from PIL import Image, ImageDraw

from monai_usfm.files import atomic_write
from monai_usfm.handlers import save_panels, segmentation_panels

BUNDLES = Path(__file__).resolve().parents[1] / "bundles"
SIZE = (150, 180)  # rows and columns of one figure
MAX_BYTES = 150_000
SOURCES = {
    "busbra": "BUS-BRA, doi:10.1002/mp.16812",
    "fetal_head_hc18": "HC18, doi:10.1371/journal.pone.0200412, CC BY 4.0",
}

Infer = Callable[..., Path]
Items = list[dict]
Panels = dict[str, torch.Tensor]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the data sets")
    parser.add_argument("--figures", nargs="*", choices=FIGURES, default=list(FIGURES), help="default: all")
    parser.add_argument("--root", type=Path, default=BUNDLES, help="folder of the bundles")
    parser.add_argument("--count", type=int, default=3, help="images in each figure")
    return parser.parse_args(arguments)


def test_images(data: Path, names: Sequence[str], count: int) -> Items:
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


def draw_simulated(items: Items, infer: Infer) -> Panels:
    """Image, label and the mask of weights that have seen no label of a real image."""
    weights = "$@bundle_root + '/models/foundation.pt'"
    return masks(items, infer(checkpoint=weights))


def draw_segmentation(items: Items, infer: Infer) -> Panels:
    """Image, label, mask and uncertainty."""
    folder = infer(uncertainty=True)
    uncertainty = [read(folder / f"{Path(item['image']).stem}_uncertainty.png") for item in items]
    return masks(items, folder) | {"uncertainty": torch.stack(uncertainty)}


def draw_enhancement(items: Items, infer: Infer) -> Panels:
    """Before, after and the difference, in the middle of the images, pixel by pixel."""
    folder = infer()
    before = torch.stack([read(item["image"], crop=True) for item in items])
    after = torch.stack([read(folder / f"{Path(item['image']).stem}_enhanced.png", crop=True) for item in items])
    return {"before": before, "after": after, "change x4": 0.5 + 4 * (after - before)}


def draw_classification(items: Items, infer: Infer) -> Panels:
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


def draw_pretraining(items: Items, infer: Infer) -> Panels:
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
FIGURES: dict[str, tuple[str, str, Callable[[Items, Infer], Panels], tuple[str, ...]]] = {
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
    bundle, stem, draw, names = FIGURES[figure]
    home = root / f"usfm_{bundle}"
    items = test_images(data, names, count)
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse(arguments)
    logging.getLogger("ignite").setLevel(logging.WARNING)
    for figure in args.figures:
        draw_figure(figure, args.data, args.root, args.count)


if __name__ == "__main__":
    main()
