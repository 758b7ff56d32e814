# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""What the pretrained start restores of corrupted images, beside Gaussian and median filters, in dB.

    python benchmarks/restoration.py DATA/busbra bundles/usfm_pretraining/models/model.pt

Half the patches are filled with speckle and a quarter to three quarters of the rings of the spectrum removed, as in
training. PSNR against the clean image, mean over images; of the filters the width that is best for each column.
"""

import argparse
import statistics
from collections.abc import Callable

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, median_filter

from monai_usfm import build_network
from monai_usfm.evaluation.images import load_images, read_items
from monai_usfm.evaluation.report import markdown_table

SIZE = (192, 192)
FILTERS: dict[str, list[Callable[[np.ndarray], np.ndarray]]] = {
    "best Gaussian of 1, 2, 3, 4 pixels": [lambda x, s=s: gaussian_filter(x, s) for s in (1, 2, 3, 4)],
    "best median of 3, 5, 7, 9 pixels": [lambda x, s=s: median_filter(x, s) for s in (3, 5, 7, 9)],
}


def psnr(image: np.ndarray, clean: np.ndarray, hidden: np.ndarray) -> tuple[float, float]:
    """Of the hidden parts and of the whole image."""
    error = (image - clean) ** 2
    return -10 * np.log10(error[hidden].mean()), -10 * np.log10(error.mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder with dataset.json")
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--every", type=int, default=8, help="of the images")
    options = parser.parse_args()
    listed = f"{options.data}/dataset.json"
    everything = read_items(listed, options.split)
    items = everything[:: options.every]
    clean = load_images(items, SIZE).images
    print(f"{len(items)} of {len(everything)} images of {listed}, {options.split}\n")
    scores: dict[str, list[list[tuple[float, float]]]] = {}
    for file in options.checkpoints:
        network = build_network("pretraining", file, objective="pyramid", spatial_size=SIZE, mask_ratio=0.5).eval()
        torch.manual_seed(0)
        with torch.no_grad():
            parts = [network(batch) for batch in clean.split(8)]
        corrupted, restored = (torch.cat([part[name] for part in parts]) for name in ("corrupted", "prediction"))
        grid = [n // p for n, p in zip(SIZE, network.encoder.patch_size, strict=True)]
        masks = torch.cat([part["mask"] for part in parts]).reshape(-1, 1, *grid)
        masks = torch.nn.functional.interpolate(masks, SIZE) > 0
        arrays = [x[:, 0].numpy() for x in (corrupted, clean, masks, restored.clamp(0, 1))]
        for seen, true, mask, found in zip(*arrays, strict=True):
            rows = {}
            if file == options.checkpoints[0]:  # all see the same corruption
                rows = {"corrupted": [seen], **{name: [f(seen) for f in group] for name, group in FILTERS.items()}}
            for name, images in {**rows, file: [found]}.items():
                scores.setdefault(name, []).append([psnr(image, true, mask) for image in images])
    table = []
    for name, cases in scores.items():
        means = [
            [statistics.fmean(case[k][column] for case in cases) for k in range(len(cases[0]))] for column in (0, 1)
        ]
        table.append([name, *(f"{max(values):.1f}" for values in means)])
    print(markdown_table(["", "hidden parts", "whole image"], table))


if __name__ == "__main__":
    main()
