#!/usr/bin/env python
# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Measure cysts and wires of a test object before and after enhancement, beside the blur that is as smooth.

    python scripts/score_regions.py --image phantom.png --enhanced out/phantom.png \\
        --cyst 205,226,28 --background 205,305,28 --wire 478,224,12

Regions are discs ROW,COLUMN,RADIUS in pixels. Contrast (CNR, gCNR) is that of the cyst against the background, the
speckle SNR that of the background, the widths (FWHM along rows and columns, pixels) those of the wire. Any blur raises
CNR, gCNR and speckle SNR; what it costs is the width of the wire. The last row is therefore the Gaussian blur whose
speckle SNR equals that of the enhanced image.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from monai_usfm.data import LoadUltrasound
from monai_usfm.evaluation.report import markdown_table
from monai_usfm.metrics import CNRMetric, FWHMMetric, GeneralizedCNRMetric, SpeckleSNRMetric
from monai_usfm.transforms import gaussian_blur

COLUMNS = ("", "CNR", "gCNR", "speckle SNR", "width along rows", "width along columns")


def disc(text: str) -> tuple[float, float, float]:
    """ROW,COLUMN,RADIUS."""
    try:
        row, column, radius = (float(v) for v in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not ROW,COLUMN,RADIUS") from None
    if radius < 1:
        raise argparse.ArgumentTypeError(f"the radius of {text!r} is below one pixel")
    return row, column, radius


def mask_of(region: tuple[float, float, float], size: tuple[int, int]) -> torch.Tensor:
    """Mask (1, 1, H, W) of a disc that lies inside the image."""
    row, column, radius = region
    if not (radius <= row <= size[0] - 1 - radius and radius <= column <= size[1] - 1 - radius):
        raise SystemExit(f"the disc {row:g},{column:g},{radius:g} is not inside the image of {size[0]} x {size[1]}.")
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    return (((y - row) ** 2 + (x - column) ** 2) <= radius**2)[None, None].float()


def blur_as_smooth(image: torch.Tensor, region: torch.Tensor, snr: float, metric: SpeckleSNRMetric) -> float:
    """Sigma in pixels at which the speckle SNR of the blurred image is ``snr``; 0 if the image is as smooth already."""
    low, high = 0.0, 20.0
    if float(metric(image, region)) >= snr:
        return 0.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if float(metric(gaussian_blur(image, middle), region)) < snr else (low, middle)
    return (low + high) / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--enhanced", type=Path, required=True)
    parser.add_argument("--cyst", type=disc, required=True)
    parser.add_argument("--background", type=disc, required=True)
    parser.add_argument("--wire", type=disc)
    parser.add_argument("--dynamic_range_db", type=float, default=60.0)
    args = parser.parse_args()
    load = LoadUltrasound()
    before, after = (load(path).as_tensor()[None] for path in (args.image, args.enhanced))
    if before.shape != after.shape:
        parser.error(f"{args.image} is {tuple(before.shape[2:])}, {args.enhanced} is {tuple(after.shape[2:])}.")
    size = (before.shape[2], before.shape[3])
    cyst, background = mask_of(args.cyst, size), mask_of(args.background, size)
    both = torch.cat([cyst, background], dim=1)
    wire = mask_of(args.wire, size) if args.wire else None
    speckle = SpeckleSNRMetric(args.dynamic_range_db)
    sigma = blur_as_smooth(before, background, float(speckle(after, background)), speckle)
    images = {
        "image": before,
        "enhanced": after,
        f"blur, sigma {sigma:.2f}": gaussian_blur(before, sigma),
    }
    rows = []
    for name, image in images.items():
        values = [CNRMetric()(image, both), GeneralizedCNRMetric()(image, both), speckle(image, background)]
        if wire is not None:
            values += [FWHMMetric(axis, dynamic_range_db=args.dynamic_range_db)(image, wire) for axis in (0, 1)]
        rows.append([name, *(f"{float(value):.3f}" for value in values)])
    print(markdown_table(COLUMNS[: len(rows[0])], rows))


if __name__ == "__main__":
    main()
