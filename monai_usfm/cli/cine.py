# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Verbs for cines: a label carried from one frame to all, and segmentation of one frame after the other."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from monai_usfm.cards import full_scale_of, load_network, require_classes
from monai_usfm.data import LoadUltrasound
from monai_usfm.data.folders import stem_of
from monai_usfm.files import atomic_write, write_csv
from monai_usfm.inferers import ImagePredictor
from monai_usfm.metrics.cine import propagate_label

__all__ = ["FrameSegmenter", "propagate", "stream"]


class FrameSegmenter:
    """Segments the frames of a cine one after the other, as they come from the scanner.

    Args:
        network: a 2D segmentation network with a card, see :func:`monai_usfm.load_network`.
        smoothing: share of the former frames in the probabilities: 0 for none; 0.5 halves their weight with every
            frame, which steadies the mask and lets it lag behind the motion.
        device: where to run.
    """

    def __init__(self, network: Any, smoothing: float = 0.0, device: torch.device | str = "cpu") -> None:
        if not 0 <= smoothing < 1:
            raise ValueError(f"--smoothing must be in [0, 1); got {smoothing!r}.")
        self.predict, self.smoothing = ImagePredictor(network, device), smoothing
        self.past: torch.Tensor | None = None

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        """Gray ``(H, W)`` in [0, 1] -> class indices ``(H, W)``."""
        now = self.predict(torch.as_tensor(frame, dtype=torch.float32)[None])
        if self.past is not None and self.smoothing:
            now = torch.lerp(now, self.past, self.smoothing)
        self.past = now
        return now.argmax(0).to(torch.uint8).numpy()


def stream(
    checkpoint: str,
    cine: str,
    *,
    output: str = "stream",
    smoothing: float = 0.0,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
) -> None:
    """Segment a cine frame by frame, as a live stream, and print the latency.

    Writes ``NAME_seg.nii.gz`` (x, y, 1, t) and ``latency.csv``. The latency is that from the gray frame to its mask on
    the grid of the frame; the first frame, which also warms up, is not in the summary.

    Args:
        checkpoint: weights of a 2D segmentation.
        cine: file.
        output: folder of the results.
        smoothing: share of the former frames in the probabilities, in [0, 1).
        device: where to run.
    """
    network: Any = load_network(checkpoint, "segmentation")
    require_classes(network.card, checkpoint, "segmentation", spatial_dims=2)
    frames = LoadUltrasound(3)(cine, full_scale=full_scale_of(network.card))
    segment = FrameSegmenter(network, smoothing, device)
    masks, seconds = [], []
    for frame in np.asarray(frames[0]):
        start = time.perf_counter()
        masks.append(segment(frame))
        seconds.append(time.perf_counter() - start)
    target = _save(np.stack(masks), frames, cine, output, "seg")
    write_csv(Path(output) / "latency.csv", [{"frame": k, "ms": f"{1000 * s:.2f}"} for k, s in enumerate(seconds)])
    after = 1000 * np.array(seconds[1:] or seconds)
    print(
        f"{len(masks)} frames: median {np.median(after):.1f} ms, 95 % below {np.percentile(after, 95):.1f} ms, "
        f"{1000 / after.mean():.1f} frames per second; {target}"
    )


def propagate(cine: str, label: str, *, frame: int = 0, output: str = "propagated") -> None:
    """Carry the label of one frame to all frames of a cine by optical flow.

    Writes ``NAME_label.nii.gz`` (x, y, 1, t), a first draft of the labels of a cine. Needs OpenCV (``pip install
    'monai_usfm[augment]'``). Structures that leave the plane are followed wrongly: look at the result.

    Args:
        cine: file.
        label: mask of one frame, of the size of a frame.
        frame: the number of that frame, from 0.
        output: folder of the result.
    """
    frames = LoadUltrasound(3)(cine)
    mask = np.asarray(LoadUltrasound(2, scale=None)(label)[0]).astype(np.uint8)
    labels = propagate_label(np.asarray(frames[0]), mask, frame)
    print(f"{len(labels)} frames: {_save(labels, frames, cine, output, 'label')}")


def _save(labels: np.ndarray, frames: torch.Tensor, cine: str, output: str, kind: str) -> Path:
    """``(T, H, W)`` as NIfTI with the axes x, y, 1, t."""
    steps = [float(v) for v in frames.meta["spacing"]]  # type: ignore[attr-defined]
    image = nib.Nifti1Image(labels.transpose(2, 1, 0)[:, :, None], np.diag([steps[2], steps[1], 1.0, 1.0]))
    target = Path(output) / f"{stem_of(cine)}_{kind}.nii.gz"
    with atomic_write(target) as part:
        nib.save(image, part)
    return target
