# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Embeddings of a folder of images as files that any tool can read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from ignite.engine import Engine, Events

from monai_usfm.files import append_csv, atomic_write
from monai_usfm.networks.nets.features import FeatureExtractor

__all__ = ["EmbeddingSaver"]


class EmbeddingSaver:
    """Collects one embedding per image and writes ``embeddings.npz`` (``embeddings``, ``images``) and
    ``embeddings.csv``, which grows with every batch.

    Attach it to an evaluator whose ``pred`` is a vector for each image; file names come from the image's metadata.

    Args:
        output_dir: folder of the files.
        network: :class:`~monai_usfm.networks.FeatureExtractor` for feature maps; not needed without ``feature_blocks``.
        feature_blocks: also write the maps ``(E, *grid)`` after these blocks, as ``000000_<image>_maps.npz`` (its
            number in the list first) with one entry ``block_<i>`` each.
    """

    def __init__(
        self, output_dir: str, network: FeatureExtractor | None = None, feature_blocks: Sequence[int] = ()
    ) -> None:
        if feature_blocks and network is None:
            raise ValueError("feature_blocks need the network that makes the maps.")
        self.folder = Path(output_dir)
        self.network = network
        self.feature_blocks = list(feature_blocks)
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
            name = str(getattr(image, "meta", {}).get("filename_or_obj", f"image_{len(self.names):06d}"))
            self.names.append(name)
            self.vectors.append(torch.as_tensor(item["pred"]).detach().float().cpu().flatten().numpy())
            row = {"image": name, **{f"feature_{i}": f"{v:.6g}" for i, v in enumerate(self.vectors[-1])}}
            append_csv(self.folder / "embeddings.csv", [row], anew=len(self.names) == 1)
            if self.network is not None and self.feature_blocks:
                with torch.no_grad():
                    pixels = torch.as_tensor(image).as_subclass(torch.Tensor).unsqueeze(0)
                    maps = self.network.feature_maps(pixels, self.feature_blocks)
                number = f"{len(self.names) - 1:06d}"
                self._save(
                    f"{number}_{Path(name).name.split('.')[0]}_maps.npz",
                    {f"block_{i}": m[0].float().cpu().numpy() for i, m in zip(self.feature_blocks, maps, strict=True)},
                )

    def _save(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        with atomic_write(self.folder / name) as part:
            np.savez_compressed(part, **arrays)

    def _write(self, engine: Engine) -> None:
        if self.vectors:
            self._save("embeddings.npz", {"embeddings": np.stack(self.vectors), "images": np.array(self.names)})
