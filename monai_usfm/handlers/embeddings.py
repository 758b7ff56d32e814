# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Embeddings of a folder of images as files that any tool can read."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor

from monai_usfm.handlers.records import write_text_atomically

__all__ = ["EmbeddingSaver"]


class EmbeddingSaver:
    """Collects one embedding per image and writes ``embeddings.npz`` (``embeddings``, ``images``) and
    ``embeddings.csv``.

    Attach it to an evaluator whose ``pred`` is a vector for each image; file names come from the image's metadata.

    Args:
        output_dir: folder of the two files.
        keys: item of the evaluator's output.
    """

    def __init__(self, output_dir: str, keys: str = "pred") -> None:
        self.folder = Path(output_dir)
        self.keys = keys
        self.names: list[str] = []
        self.vectors: list[np.ndarray] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _start(self, engine: Engine) -> None:
        self.names, self.vectors = [], []

    def _collect(self, engine: Engine) -> None:
        for item in engine.state.output:
            image = item["image"]
            known = isinstance(image, MetaTensor) and "filename_or_obj" in image.meta
            self.names.append(str(image.meta["filename_or_obj"]) if known else f"image_{len(self.names):06d}")
            self.vectors.append(torch.as_tensor(item[self.keys]).detach().float().cpu().flatten().numpy())

    def _write(self, engine: Engine) -> None:
        if not self.vectors:
            return
        vectors = np.stack(self.vectors)
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".embeddings.{os.getpid()}.tmp"
        with open(temporary, "wb") as file:
            np.savez_compressed(file, embeddings=vectors, images=np.array(self.names))
        os.replace(temporary, self.folder / "embeddings.npz")
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["image", *[f"feature_{i}" for i in range(vectors.shape[1])]])
        table.writerows([name, *[f"{v:.6g}" for v in vector]] for name, vector in zip(self.names, vectors, strict=True))
        write_text_atomically(self.folder / "embeddings.csv", text.getvalue())
