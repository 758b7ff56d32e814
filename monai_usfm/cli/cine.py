# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Verbs for cines: a label carried from one frame to all, and segmentation of one frame after the other."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import SaveImage

from monai_usfm.cards import full_scale_of, load_network, require_classes
from monai_usfm.data import LoadUltrasound, result_name
from monai_usfm.data.folders import mark_results, stem_of
from monai_usfm.files import atomic_writer, keep_apart, write_csv
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
        now = self.predict(torch.as_tensor(frame, dtype=torch.float32)[None, None])[0]
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

    Writes ``NAME_seg.nii.gz``, on the grid of the file, and ``latency.csv``. The latency is that from the gray frame to
    its mask on the grid of the frame; the first frame, which also warms up, is not in the summary.

    Args:
        checkpoint: weights of a 2D segmentation.
        cine: file.
        output: folder of the results.
        smoothing: share of the former frames in the probabilities, in [0, 1).
        device: where to run.
    """
    network: Any = load_network(checkpoint, "segmentation")
    require_classes(network.card, checkpoint, "segmentation", spatial_dims=2)
    load = LoadUltrasound(3)
    frames = load(cine, full_scale=full_scale_of(network.card))
    mark_results(output)
    segment = FrameSegmenter(network, smoothing, device)
    masks, seconds = [], []
    for frame in np.asarray(frames[0]):
        start = time.perf_counter()
        masks.append(segment(frame))
        seconds.append(time.perf_counter() - start)
    target = _save(np.stack(masks), load, frames, output, "seg")
    write_csv(Path(output) / "latency.csv", [{"frame": k, "ms": f"{1000 * s:.2f}"} for k, s in enumerate(seconds)])
    after = 1000 * np.array(seconds[1:] or seconds)
    print(
        f"{len(masks)} frames: median {np.median(after):.1f} ms, 95 % below {np.percentile(after, 95):.1f} ms, "
        f"{1000 / after.mean():.1f} frames per second; {target}"
    )


def propagate(cine: str, label: str, *, frame: int = 0, output: str = "propagated") -> None:
    """Carry the label of one frame to all frames of a cine by optical flow.

    Writes ``NAME_label.nii.gz``, on the grid of the file, a first draft of the labels of a cine. Needs OpenCV
    (``pip install opencv-python-headless``). Structures that leave the plane are followed wrongly: look at the result.

    Args:
        cine: file.
        label: mask of that frame, of the size of a frame, or of the whole cine, of which that frame is taken.
        frame: the number of that frame, from 0.
        output: folder of the result.
    """
    load = LoadUltrasound(3)
    frames = load(cine)
    read: Any = LoadUltrasound(2, scale=None)
    drawn = read(label)
    if (count := drawn.meta["num_frames"]) > 1:  # a tool that saves masks of all frames, of which some are drawn
        if count != len(frames[0]) or not 0 <= frame < count:
            raise ValueError(f"{label} has {count} frames, {cine} {len(frames[0])}; it has no mask of frame {frame}.")
        drawn = read(label, frame)
    mask = np.asarray(drawn[0])
    if not mask.any() or (mask < 0).any() or (mask % 1).any():
        raise ValueError(f"{label}: the mask of frame {frame} must hold class indices, some of them above 0.")
    keep_apart(Path(output) / f"{stem_of(cine)}_label.nii.gz", cine, label)
    labels = propagate_label(np.asarray(frames[0]), mask.astype(np.min_scalar_type(int(mask.max()))), frame)
    print(f"{len(labels)} frames: {_save(labels, load, frames, output, 'label')}")


def _save(labels: np.ndarray, load: LoadUltrasound, frames: torch.Tensor, output: str, kind: str) -> str:
    """``(T, H, W)`` as NIfTI on the grid of the file that ``load`` gave ``frames`` of; its name."""
    data: Any = torch.as_tensor(labels.astype(np.int32))[None]
    known: Any = frames
    whole = load.upright.inverse(MetaTensor(data, meta=known.meta, applied_operations=known.applied_operations))
    save = SaveImage(
        output,
        kind,
        ".nii.gz",
        output_dtype=labels.dtype,
        resample=False,
        separate_folder=False,
        print_log=False,
        savepath_in_metadict=True,
        writer=atomic_writer(".nii.gz"),
        output_name_formatter=result_name,
    )
    return str(save(whole).meta["saved_to"])
