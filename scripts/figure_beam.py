# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Draw docs/figures/beam.png and annotations.png: fitted beams, beam space, removed marks, on phantoms made here.

Usage: python scripts/figure_beam.py [folder]
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from monai.data import MetaTensor
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import gaussian_filter

from monai_usfm.transforms import BeamGeometry, FitBeam, FromBeamSpace, RemoveAnnotations, ToBeamSpace

SHAPE = (260, 340)
GEOMETRIES = {
    "convex": BeamGeometry("convex", (-60.0, 170.0), (75.0, 310.0), (-0.55, 0.55)),
    "phased": BeamGeometry("phased", (6.0, 170.0), (4.0, 245.0), (-0.7, 0.7)),
}


def phantom(geometry: BeamGeometry, seed: int) -> torch.Tensor:
    """Log-compressed speckle of layered tissue with a cyst, made along the beams and scan-converted: ``(1, H, W)``."""
    shape = geometry.natural_beam_shape()
    rng = np.random.default_rng(seed)
    depth, lateral = np.meshgrid(np.linspace(0, 1, shape[0]), np.linspace(-1, 1, shape[1]), indexing="ij")
    echo = 0.6 + 0.5 * (np.sin(25 * depth + 2 * lateral) > 0.6) * (depth < 0.35)
    echo[((depth - 0.55) / 0.13) ** 2 + ((lateral - 0.15) / 0.3) ** 2 < 1] = 0.03
    field = [gaussian_filter(rng.standard_normal(shape), (1.2, 3.0)) for _ in range(2)]
    envelope = np.hypot(*field) / np.std(field) * echo * np.exp(-0.8 * depth)
    beams = np.clip(0.72 + 20 / 55 * np.log10(envelope + 1e-6), 0.02, 1).astype(np.float32)
    return FromBeamSpace(SHAPE)(torch.as_tensor(beams[None]), geometry).clamp(0, 1)


def draw_beams(path: Path) -> None:
    figure, axes = plt.subplots(2, 3, figsize=(9, 5.2), layout="constrained")
    for row, (name, truth) in zip(axes, GEOMETRIES.items(), strict=True):
        image = MetaTensor(phantom(truth, seed=1))
        image[:, 8:16, 8:60:3] = 0.9  # text beside the sector, which the fit has to ignore
        fit = FitBeam()(image)
        convert = ToBeamSpace()
        beams = convert(image, fit)
        back = convert.inverse(beams)
        row[0].imshow(image[0], cmap="gray", vmin=0, vmax=1)
        row[0].contour(fit.mask(SHAPE)[0], levels=[0.5], colors="tab:orange", linewidths=1.6)
        row[0].set_title(f"{name}: fit (confidence {fit.confidence:.2f})", fontsize=9)
        row[1].imshow(beams[0].as_tensor(), cmap="gray", vmin=0, vmax=1, aspect="auto")
        row[1].set_title("beam space: depth down, beams across", fontsize=9)
        row[2].imshow(back[0].as_tensor(), cmap="gray", vmin=0, vmax=1)
        row[2].set_title("and back", fontsize=9)
    save(figure, axes, path)


def draw_annotations(path: Path) -> None:
    image = phantom(GEOMETRIES["convex"], seed=2)[0].numpy()
    canvas = Image.new("L", SHAPE[::-1])
    pen = ImageDraw.Draw(canvas)
    pen.text((120, 205), "LIVER RIGHT 12", fill=235, font=ImageFont.load_default(14))
    for x, y in ((152, 118), (226, 124)):
        pen.line((x - 5, y, x + 5, y), 235)
        pen.line((x, y - 5, x, y + 5), 235)
    pen.rectangle((318, 20, 324, 90), fill=200)
    marked = torch.as_tensor(np.maximum(image, np.asarray(canvas, np.float32) / 255))[None]
    remove = RemoveAnnotations()
    mask, _ = remove.detect(marked)
    cleaned = remove(marked)
    figure, axes = plt.subplots(1, 3, figsize=(9, 2.7), layout="constrained")
    kinds = ", ".join(f"{remove.report.kinds.count(k)} {k}" for k in sorted(set(remove.report.kinds)))
    for axis, (title, drawn) in zip(
        axes, {"before": marked, f"found: {kinds}": mask, "after": cleaned}.items(), strict=True
    ):
        axis.imshow(drawn[0], cmap="gray", vmin=0, vmax=1)
        axis.set_title(title, fontsize=9)
    save(figure, axes[None], path)


def save(figure: plt.Figure, axes: np.ndarray, path: Path) -> None:
    for axis in axes.ravel():
        axis.set_axis_off()
    figure.savefig(path, dpi=80)
    plt.close(figure)
    # 64 grays and colors are enough for a page and halve the file
    Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size // 1000} kB")


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).resolve().parents[1] / "docs" / "figures")
    folder.mkdir(parents=True, exist_ok=True)
    draw_beams(folder / "beam.png")
    draw_annotations(folder / "annotations.png")
