# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Draw the figures of docs/synthetic.md: organs, qualities, cine, volumes; on request beside real images.

python scripts/figure_synthetic.py                                    writes docs/figures/synthetic_*.png
python scripts/figure_synthetic.py --output /tmp --beside FOLDER      also real images from FOLDER next to ours
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from scipy.ndimage import binary_erosion

from monai_usfm.data import SyntheticUltrasound
from monai_usfm.simulation.organs import ORGANS

TILE, GAP = 160, 4
OUTLINE = (255, 210, 0)


def tile(gray: np.ndarray, label: np.ndarray | None = None) -> Image.Image:
    """A gray figure, fitted into a square without distortion; the outline of ``label`` in yellow."""
    color = np.repeat((np.clip(gray, 0, 1) * 255).astype(np.uint8)[..., None], 3, axis=2)
    if label is not None:
        mask = label > 0
        color[mask & ~binary_erosion(mask)] = OUTLINE
    figure = ImageOps.contain(Image.fromarray(color), (TILE, TILE), Image.Resampling.BILINEAR)
    canvas = Image.new("RGB", (TILE, TILE))
    canvas.paste(figure, ((TILE - figure.width) // 2, (TILE - figure.height) // 2))
    return canvas


def sheet(rows: Sequence[Sequence[Image.Image]], path: Path) -> None:
    step = TILE + GAP
    page = Image.new("RGB", (step * max(map(len, rows)) - GAP, step * len(rows) - GAP), "white")
    for r, row in enumerate(rows):
        for c, figure in enumerate(row):
            page.paste(figure, (c * step, r * step))
    palette = Image.new("P", (1, 1))  # grays and the color of outlines keep the files small
    shades = [(round(255 * i / 95),) * 3 for i in range(96)]
    blends = [tuple(round(c * i / 8) for c in OUTLINE) for i in range(2, 9)]
    palette.putpalette([c for color in (*shades, *blends) for c in color])
    page.quantize(palette=palette, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1024:.0f} KiB")


def plane(item: dict, key: str, *cut: int | slice) -> np.ndarray:
    return item[key][0][cut].float().numpy()


def organs(seed: int) -> list[list[Image.Image]]:
    world = SyntheticUltrasound(2 * len(ORGANS), seed=seed)
    first, second = [world[i] for i in range(len(ORGANS))], [world[len(ORGANS) + i] for i in range(len(ORGANS))]
    return [
        [tile(plane(i, "image")) for i in first],
        [tile(plane(i, "image")) for i in second],
        [tile(plane(i, "image"), plane(i, "label")) for i in second],
        [tile(plane(i, "clean")) for i in second],
    ]


def qualities(seed: int) -> list[list[Image.Image]]:
    world = SyntheticUltrasound(len(ORGANS), seed=seed, quality="pair", marks=True)
    items = list(world)
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


def beside(folder: Path, seed: int) -> list[list[Image.Image]]:
    """Real images of ``folder`` (any PNG whose path does not name a mask) above simulated ones."""
    names = [p for p in sorted(folder.rglob("*.png")) if "mask" not in str(p.relative_to(folder)).lower()]
    if not names:
        raise SystemExit(f"{folder} holds no PNG images.")
    chosen = random.Random(seed).sample(names, min(12, len(names)))
    real = [tile(np.asarray(Image.open(name).convert("L"), np.float32) / 255) for name in chosen]
    world = SyntheticUltrasound(12, seed=seed, quality="pair")
    made = [tile(plane(item, "low" if n % 2 else "image")) for n, item in enumerate(world)]
    return [real[:6], real[6:], made[:6], made[6:]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).resolve().parents[1] / "docs" / "figures"
    parser.add_argument("--output", type=Path, default=default, help="folder for the figures")
    parser.add_argument("--beside", type=Path, help="folder of real images to show above simulated ones")
    parser.add_argument("--seed", type=int, default=3)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    if options.beside:
        sheet(beside(options.beside, options.seed), options.output / "synthetic_beside_real.png")
    for draw in (organs, qualities, cine, volumes):
        sheet(draw(options.seed), options.output / f"synthetic_{draw.__name__}.png")


if __name__ == "__main__":
    main()
