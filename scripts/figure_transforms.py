# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Draw docs/figures/*.png: acquisition, artifacts and depth on one simulated image, with a contour.

Usage: python scripts/figure_transforms.py [output folder]
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from scipy.ndimage import binary_erosion

from monai_usfm.physics.speckle import speckle_intensity
from monai_usfm.transforms.acquisition import apply_gain, attenuate, recompress, time_gain
from monai_usfm.transforms.artifacts import acoustic_shadow, add_haze, reverberate
from monai_usfm.transforms.beam import BeamGeometry
from monai_usfm.transforms.probe import change_geometry, zoomed_geometry

SIZE = (230, 256)
SCALE = 0.8  # of the scene, which is laid out on 288 x 320 pixels
DYNAMIC_RANGE_DB = 60.0
OUTLINE = (255, 190, 0)


def simulate(geometry: BeamGeometry, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Liver-like scene: wall layers, parenchyma, two vessels, a cyst (the label) and a diaphragm; image and label."""
    generator = torch.Generator().manual_seed(seed)
    beams = geometry.beam_to_cartesian((560, 200))  # axial, lateral
    row, column = (beams / SCALE).unbind(-1)
    depth = torch.linspace(0, 1, 560)[:, None].expand(560, 200)
    wave = 0.012 * torch.sin(column / 23) + 0.008 * torch.sin(column / 11 + 1)
    level = torch.full_like(row, -27.0)
    level = torch.where(depth < 0.15 + wave, torch.tensor(-30.0), level)  # muscle
    level = torch.where(depth < 0.075 + wave / 2, torch.tensor(-24.0), level)  # fat

    def band(center: torch.Tensor, thickness: float, height: float) -> torch.Tensor:
        return height * torch.exp(-0.5 * ((depth - center) / thickness) ** 2)

    level = (
        level + band(0.15 + wave, 0.006, 16) + band(0.075 + wave / 2, 0.005, 12) + band(torch.tensor(0.012), 0.012, 10)
    )
    bent = 0.86 + 0.00001 * (column - 150) ** 2
    level = level + band(bent, 0.010, 22) - 9 * (depth > bent).float()

    def ellipse(y: float, x: float, a: float, b: float, angle: float = 0.0) -> torch.Tensor:
        dy, dx = row - y, column - x
        along, across = dx * math.cos(angle) + dy * math.sin(angle), dy * math.cos(angle) - dx * math.sin(angle)
        return (along / a) ** 2 + (across / b) ** 2

    for vessel in (ellipse(190, 215, 40, 7, 0.5), ellipse(215, 92, 9, 8)):
        level = level - 26 * torch.sigmoid(12 * (1 - vessel)) + 7 * torch.exp(-(((vessel - 1.15) / 0.15) ** 2))
    cyst = ellipse(128, 140, 27, 22)
    level = level - 40 * torch.sigmoid(16 * (1 - cyst))
    behind = (depth > 0.42) & ((column - 140).abs() < 26 + 0.1 * (row - 128))
    level = level + 3.5 * F.avg_pool2d(behind.float()[None, None], 9, 1, 4)[0, 0]
    speckle = speckle_intensity((560, 200), psf_sigma=(1.4, 1.3), generator=generator)
    decibels = level + 10 * torch.log10(speckle)
    power = 10 ** (decibels / 10) + 10 ** (-6.2)  # electronic noise
    lines = (1 + 10 * torch.log10(power) / DYNAMIC_RANGE_DB).clamp(0, 1)
    image = F.grid_sample(lines[None, None], geometry.image_grid(SIZE), align_corners=True)[0]
    image = torch.where(geometry.mask(SIZE), image, 0)
    rows, columns = torch.meshgrid(torch.arange(SIZE[0]), torch.arange(SIZE[1]), indexing="ij")
    label = (((columns / SCALE - 140) / 27) ** 2 + ((rows / SCALE - 128) / 22) ** 2 < 1)[None]
    return image, label


def panel(image: torch.Tensor, title: str, label: torch.Tensor | None = None) -> np.ndarray:
    """Gray image with a title bar, the label outlined in color."""
    gray = (image[0].numpy().clip(0, 1) * 255).round().astype(np.uint8)
    rgb = np.repeat(gray[..., None], 3, axis=2)
    if label is not None:
        mask = label[0].numpy() > 0
        rgb[mask & ~binary_erosion(mask)] = OUTLINE
    figure = Image.new("RGB", (rgb.shape[1], rgb.shape[0] + 18), (32, 32, 32))
    figure.paste(Image.fromarray(rgb), (0, 18))
    ImageDraw.Draw(figure).text((5, 3), title, fill=(235, 235, 235))
    return np.asarray(figure)


def save(panels: list[np.ndarray], columns: int, path: Path) -> None:
    """Tile the panels; 31 grays and one color keep the file small."""
    blank = np.zeros_like(panels[0])
    panels = panels + [blank] * (-len(panels) % columns)
    rows = [np.concatenate(panels[i : i + columns], axis=1) for i in range(0, len(panels), columns)]
    rgb = np.concatenate(rows)
    index = np.where(rgb[..., 0] != rgb[..., 2], 31, np.rint(rgb[..., 0] / 255 * 30)).astype(np.uint8)
    figure = Image.fromarray(index, mode="P")
    figure.putpalette([round(i / 30 * 255) for i in range(31) for _ in range(3)] + list(OUTLINE))
    figure.save(path, optimize=True, bits=5)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def main(folder: Path) -> None:
    """Write all figures into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    geometry = BeamGeometry(
        "convex", apex=(-78 * SCALE, 159.5 * SCALE), radii=(92 * SCALE, 362 * SCALE), angles=(-0.47, 0.47)
    )
    image, label = simulate(geometry)
    keep = {"fov": geometry.mask(SIZE), "geometry": geometry}
    generator = torch.Generator().manual_seed(1)
    texture = speckle_intensity((1, *SIZE), psf_sigma=(1.0, 2.5), generator=generator)

    acquisition: list[tuple[str, Callable[[], torch.Tensor]]] = [
        ("original", lambda: image),
        ("gain +8 dB", lambda: apply_gain(image, 8, **keep)),
        ("attenuation 15 dB over depth", lambda: attenuate(image, 15, **keep)),
        ("TGC sliders -6 .. 6 dB", lambda: time_gain(image, (0, 5, 6, 0, -5, -6, 2, 4), **keep)),
        ("dynamic range 60 -> 42 dB", lambda: recompress(image, 60, 42, **keep)),
        ("dynamic range 60 -> 80 dB", lambda: recompress(image, 60, 80, **keep)),
    ]
    artifacts = [
        ("original", lambda: image),
        ("acoustic shadow 22 dB", lambda: acoustic_shadow(image, 22, 0.16, 0.72, 0.13, **keep)),
        ("posterior enhancement 5 dB", lambda: acoustic_shadow(image, -5, 0.5, 0.43, 0.2, **keep)),
        ("reverberation, 3 echoes, -6 dB", lambda: reverberate(image, 0.16, 6.0, **keep)),
        ("haze -33 dB", lambda: add_haze(image, -33, 0.4, 0.15, texture, **keep)),
    ]
    probes = [("original", image, label)]
    for title, (source, target) in (
        ("depth x 0.75", zoomed_geometry(geometry, 0.75)),
        ("depth x 1.1", zoomed_geometry(geometry, 1.1)),
    ):
        moved = change_geometry(image, source, target), change_geometry(label, source, target, "nearest")
        probes.append((title, *moved))
    for name, effects, columns in (
        ("acquisition", acquisition, 3),
        ("artifacts", artifacts, 3),
    ):
        panels = [panel(torch.as_tensor(effect()).as_subclass(torch.Tensor), title) for title, effect in effects]
        save(panels, columns, folder / f"{name}.png")
    save([panel(moved, title, contour) for title, moved, contour in probes], 3, folder / "probe.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1] / "docs" / "figures")
