# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""What the reports of an evaluation have in common."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from ignite import distributed as idist
from ignite.engine import Engine, Events

from monai_usfm.files import append_csv, write_csv, write_text_atomically

__all__ = ["EvaluationReport"]

Row = dict[str, Any]


def known_spacing(image: Any, shape: Sequence[int] | None = None) -> list[float] | None:
    """Spacing in mm of the grid of the file, or of the whole image on a grid of ``shape``; None where it is unknown."""
    meta = getattr(image, "meta", {})
    if meta.get("spacing") is None or not bool(meta.get("spacing_known", True)):
        return None
    steps = [float(v) for v in torch.as_tensor(meta["spacing"]).flatten()][: image.dim() - 1]
    if shape is not None and "spatial_shape" in meta:  # MONAI's order of it is that of files: columns first
        steps = [mm * int(n) / m for mm, n, m in zip(steps, reversed(meta["spatial_shape"]), shape, strict=True)]
    return steps or None


def over_time(image: Any) -> bool:
    """Whether the first of three axes is time, along which there are no millimeters: the whole of a cine."""
    return image.dim() == 4 and bool(getattr(image, "meta", {}).get("cine", False))


def unit_of(units: Sequence[str]) -> str:
    """The unit of all cases, or that they have several."""
    return units[0] if len(set(units)) == 1 else "mixed mm and px: do not average"


def moments(values: Any, name: str) -> dict[str, float | None]:
    """Mean and standard deviation of the finite values, None where there are none."""
    known = np.asarray(values, dtype=float)
    known = known[np.isfinite(known)]
    mean, std = (float(known.mean()), float(known.std())) if len(known) else (None, None)
    return {name: mean, f"{name}_std": std}


class EvaluationReport:
    """Collects rows during an evaluation and writes files at its end; of several processes the first, for all.

    Subclasses say what the rows of a batch are (:meth:`collect`) and what is written (:meth:`write`). Attach it to an
    evaluator that decollates.

    Args:
        output_dir: folder of the files. Those of an earlier run stay until this one has written its own; then what it
            did not write is removed, as it would pass for a result of this one.
        names: of what is measured, for subclasses that need them.
    """

    # what it may write
    files: tuple[str, ...] = ("cases.csv", "summary.json")
    # table that grows with every batch, so that a run that is broken off leaves what it had, and nothing of another
    streamed: str | None = None

    def __init__(self, output_dir: str, names: Sequence[str] | None = None) -> None:
        self.folder = Path(output_dir)
        self.names = [str(name) for name in names or ()]
        self.rows: list[Row] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def collect(self, engine: Engine) -> Sequence[Row]:
        """Rows of the batch that ``engine`` has just evaluated; ``self.rows`` holds those before."""
        raise NotImplementedError

    def write(self, engine: Engine, rows: list[Row]) -> None:
        """Write the files; there is at least one row."""
        raise NotImplementedError

    def _start(self, engine: Engine) -> None:
        self.rows = []
        if self.streamed is not None and idist.get_rank() == 0:
            self._remove(self._there())

    def _there(self) -> dict[Path, tuple[int, int]]:
        """Files that there are, each with what tells it from one that replaces it."""
        files = (self.folder / name for name in self.files)
        return {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files if file.is_file()}

    def _remove(self, former: Mapping[Path, tuple[int, int]]) -> None:
        """Delete those files that are the former ones."""
        for file, mark in self._there().items():
            if former.get(file) == mark:
                file.unlink()

    def _collect(self, engine: Engine) -> None:
        found = list(self.collect(engine))
        if self.streamed is not None and found and idist.get_world_size() == 1:
            append_csv(self.folder / self.streamed, self.shown(found), anew=not self.rows)
        self.rows.extend(found)

    def shown(self, rows: list[Row]) -> list[Row]:
        """Rows as the streamed table has them."""
        return rows

    def _finish(self, engine: Engine) -> None:
        rows = self.rows
        if idist.get_world_size() > 1:
            parts: list[Any] = [None] * idist.get_world_size()
            dist.all_gather_object(parts, rows)
            rows = [row for part in parts for row in part]
        if idist.get_rank() == 0:
            former = self._there()
            if rows:
                self.write(engine, rows)
            self._remove(former)

    def file_of(self, image: Any, rows: Sequence[Row] = (), each: int = 1) -> str:
        """File of an image of the batch, or its number where it does not know; each has so many rows."""
        number = (len(self.rows) + len(rows)) // each
        return str(getattr(image, "meta", {}).get("filename_or_obj", f"image_{number:06d}"))

    def case_of(self, image: Any, rows: Sequence[Row] = (), each: int = 1) -> dict[str, Any]:
        """Columns that name a case: its file, and of one with several frames the number of this one."""
        meta = getattr(image, "meta", {})
        alone = int(meta.get("num_frames", 1)) < 2 or int(meta.get("frame", -1)) < 0
        return {"image": self.file_of(image, rows, each), **({} if alone else {"frame": int(meta["frame"])})}

    def write_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows as CSV, floats with five decimals."""
        shown = [{k: f"{v:.5f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows]
        write_csv(self.folder / name, shown)

    def write_summary(self, engine: Engine, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json`` and log it; a number that could not be computed is ``null``."""
        summary = _finite(summary)
        write_text_atomically(self.folder / "summary.json", json.dumps(summary, indent=1, allow_nan=False) + "\n")
        engine.logger.info(f"{type(self).__name__}: {json.dumps(summary)}")


def _finite(value: Any) -> Any:
    """None for NaN and infinity, which JSON has no form for."""
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
