# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""What a segmentation of lesions marks where there is none, at some thresholds of its presence score.

    python benchmarks/presence.py DATA bundles/usfm_segmentation/models/model.pt ...

DATA holds ``busbra`` and ``muscle_aponeurosis``. Thresholds are fitted on the validation lesions, each to a share of
them that keeps its mask. Dice is that of these images on the grid of their files, which chooses among trainings. Free
of lesions are the parts of the test images above, below and beside the lesion, at least 0.3 of a side; muscles; and 120
simulated healthy breasts. ``--test`` scores the test split too, which should choose nothing.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.utils import convert_to_tensor

from monai_usfm import load_network
from monai_usfm.data import LoadUltrasoundd, SyntheticUltrasound
from monai_usfm.evaluation.calibration import threshold_at
from monai_usfm.evaluation.images import read_items
from monai_usfm.evaluation.report import markdown_table
from monai_usfm.inferers import autocast, autocast_dtype
from monai_usfm.metrics.scores import overlap_scores
from monai_usfm.transforms import presence_score, resize_linear

SENSITIVITIES = (0.995, 0.99, 0.98, 0.95)
LEAST = 0.3  # of a side, for a part to count as an image


def free_parts(image: torch.Tensor, label: torch.Tensor) -> list[torch.Tensor]:
    """The parts of an image ``(1, H, W)`` beside the box of its label ``(H, W)``."""
    height, width = label.shape
    (top, bottom), (left, right) = ((int(s.min()), int(s.max()) + 1) for s in torch.where(label > 0))
    boxes = [(0, top, 0, width), (bottom, height, 0, width), (0, height, 0, left), (0, height, right, width)]
    return [image[:, a:b, c:d] for a, b, c, d in boxes if b - a >= LEAST * height and d - c >= LEAST * width]


def read(folder: Path, split: str) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Images ``(1, H, W)`` and masks ``(H, W)``."""
    load: Any = LoadUltrasoundd(["image", "label"], scale=["auto", None])
    items = [load(item) for item in read_items(str(folder / "dataset.json"), split)]
    return convert_to_tensor([i["image"] for i in items]), [convert_to_tensor(i["label"])[0] > 0 for i in items]


@torch.inference_mode()
def scores(
    network: Any, images: Sequence[torch.Tensor], masks: Sequence[torch.Tensor] | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Presence score of each image, whether anything is marked without a threshold, and the Dice if there are masks."""
    size, rows = network.card["network"]["spatial_size"], []
    for number, image in enumerate(images):
        with autocast("cpu", autocast_dtype("auto", "cpu")):
            logits = network(resize_linear(image[None], size)).float()
        dice = np.nan
        if masks is not None:
            mask = masks[number]
            shown = torch.nn.functional.interpolate(logits.softmax(1), mask.shape, mode="bilinear")
            dice = overlap_scores((shown.argmax(1)[0] > 0).int(), mask.int(), 2)["dice"]
        rows.append((float(presence_score(logits)), bool((logits.argmax(1) > 0).any()), dice))
    present, marked, dices = map(np.array, zip(*rows, strict=True))
    return present, marked, dices


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--test", action="store_true")
    options = parser.parse_args()
    validation, test = (read(options.data / "busbra", split) for split in ("validation", "test"))
    healthy = SyntheticUltrasound(120, 2, (224, 224), ("breast",), seed=77, healthy=1.0)
    free = {
        "parts": [part for pair in zip(*test, strict=True) for part in free_parts(*pair)],
        "muscle": read(options.data / "muscle_aponeurosis", "test")[0],
        "simulated": [convert_to_tensor(healthy[k]["image"]) for k in range(len(healthy))],
    }
    print(f"{len(validation[0])} validation images; " + ", ".join(f"{len(v)} {k}" for k, v in free.items()), "\n")
    rows = []
    for file in options.checkpoints:
        network = load_network(file).eval()
        lesions = {"validation": scores(network, *validation)}
        if options.test:
            lesions["test"] = scores(network, *test)
        marks = {name: scores(network, images) for name, images in free.items()}
        present = torch.from_numpy(lesions["validation"][0])
        fitted = {f"{s:g}": threshold_at(present, s) for s in SENSITIVITIES}
        for name, threshold in {"none": -np.inf, **fitted}.items():
            row = [Path(file).stem, name, f"{threshold:.2f}"]
            for present, _, dices in lesions.values():
                row.append(f"{np.where(present >= threshold, dices, 0).mean():.4f}")
            row += [f"{100 * np.mean((p >= threshold) & m):.0f} %" for p, m, _ in marks.values()]
            rows.append(row)
    print(markdown_table(["weights", "sensitivity", "threshold", *(f"Dice, {n}" for n in lesions), *free], rows))


if __name__ == "__main__":
    main()
