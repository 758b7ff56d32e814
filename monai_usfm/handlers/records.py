# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""What a run leaves behind for people: progress, a table of metrics, a record of the settings, pictures."""

from __future__ import annotations

import csv
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from ignite import distributed as idist
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from PIL import Image, ImageDraw

from monai_usfm.files import whole_file, write_csv, write_text_atomically
from monai_usfm.handlers.gradient import loss_of

__all__ = ["MetricsTable", "PictureHandler", "Progress", "RunRecord", "save_panels", "write_text_atomically"]


class Progress:
    """A bar in a terminal, plain lines in a log; silent in all processes but the first.

    Args:
        name: printed in front.
        loss: item of the trainer's output that is shown.
        stream: where to print; default standard error.
    """

    def __init__(self, name: str = "train", loss: str = "loss", stream: Any = None) -> None:
        self.name = name
        self.loss = loss
        self.stream = stream
        self.started = 0.0
        self.images = 0
        self.total = 0.0

    def attach(self, engine: Engine) -> None:
        if idist.get_rank() > 0:
            return
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._finish)

    def _out(self) -> Any:
        return sys.stderr if self.stream is None else self.stream

    def _start(self, engine: Engine) -> None:
        self.started, self.images, self.total = time.perf_counter(), 0, 0.0

    def _step(self, engine: Engine) -> None:
        self.total += loss_of(engine, self.loss)
        self.images += len(engine.state.batch["image"]) if isinstance(engine.state.batch, Mapping) else 0
        out = self._out()
        if out.isatty():
            length = engine.state.epoch_length
            done = (engine.state.iteration - 1) % length + 1
            bar = "#" * (30 * done // length)
            out.write(f"\r{self._line(engine, done)} [{bar:<30}] {done}/{length} ")
            out.flush()

    def _line(self, engine: Engine, done: int) -> str:
        rate = self.images / max(time.perf_counter() - self.started, 1e-9)
        return (
            f"{self.name} epoch {engine.state.epoch}/{engine.state.max_epochs} loss {self.total / max(done, 1):.5f} "
            f"({rate:.1f} images/s)"
        )

    def _finish(self, engine: Engine) -> None:
        out = self._out()
        clear = "\r" + 120 * " " + "\r" if out.isatty() else ""
        out.write(f"{clear}{self._line(engine, engine.state.epoch_length)}\n")
        out.flush()


class MetricsTable:
    """One row an epoch in ``metrics.csv``: mean training loss, learning rate, seconds, and the validation metrics.

    Rows of epochs that a resumed run repeats are replaced. The same rows are written to ``metrics.json``. Of several
    processes the first writes, with the loss of its own share of the data.

    Args:
        output_dir: folder of the files.
        optimizer: whose first group's learning rate is noted.
        evaluator: whose metrics are noted; None for none.
        loss: item of the trainer's output.
    """

    def __init__(
        self,
        output_dir: str,
        optimizer: torch.optim.Optimizer,
        evaluator: Engine | None = None,
        loss: str = "loss",
    ) -> None:
        self.path = Path(output_dir) / "metrics.csv"
        self.optimizer = optimizer
        self.evaluator = evaluator
        self.loss = loss
        self.rows: list[dict[str, Any]] = []
        self.opened = False
        self.losses: list[float] = []
        self.started = 0.0
        self.validated = False

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._open)
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)
        if self.evaluator is not None:
            self.evaluator.add_event_handler(Events.COMPLETED, self._note)

    def _note(self, _: Engine) -> None:
        self.validated = True

    def _open(self, engine: Engine) -> None:
        self.rows, self.opened = [], False

    def _read(self, engine: Engine) -> None:
        """Rows of earlier epochs. Read in the first epoch: by then a checkpoint has told which one that is."""
        self.opened = True
        if self.path.is_file() and engine.state.epoch > 1:
            with open(self.path, newline="", encoding="utf-8") as file:
                rows = [
                    {**row, **{key: int(row[key]) for key in ("epoch", "iteration")}} for row in csv.DictReader(file)
                ]
            self.rows = [row for row in rows if row["epoch"] < engine.state.epoch]

    def _start(self, engine: Engine) -> None:
        if not self.opened:
            self._read(engine)
        self.losses, self.started, self.validated = [], time.perf_counter(), False

    def _step(self, engine: Engine) -> None:
        self.losses.append(loss_of(engine, self.loss))

    def _write(self, engine: Engine) -> None:
        row: dict[str, Any] = {
            "epoch": engine.state.epoch,
            "iteration": engine.state.iteration,
            "train_loss": f"{sum(self.losses) / max(len(self.losses), 1):.6g}",
            "learning_rate": f"{self.optimizer.param_groups[0]['lr']:.6g}",
            "seconds": f"{time.perf_counter() - self.started:.2f}",
        }
        if self.evaluator is not None and self.validated:
            for name, value in self.evaluator.state.metrics.items():
                number = torch.as_tensor(value).float()
                row[name] = f"{number.item():.6g}" if number.numel() == 1 else json.dumps(number.tolist())
        self.rows.append(row)
        if idist.get_rank() > 0:
            return
        write_csv(self.path, self.rows)
        write_text_atomically(self.path.with_suffix(".json"), json.dumps(self.rows, indent=1) + "\n")


class RunRecord:
    """Writes ``run.json`` at the start: the command, the settings as they were resolved, versions and device.

    Of several processes the first writes.

    Args:
        output_dir: folder of the file.
        settings: resolved values worth keeping, by name.
    """

    def __init__(self, output_dir: str, settings: Mapping[str, Any]) -> None:
        self.path = Path(output_dir) / "run.json"
        self.settings = dict(settings)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine | None = None) -> None:
        if idist.get_rank() > 0:
            return
        record = {
            "command": sys.argv,
            "settings": {name: _readable(value) for name, value in self.settings.items()},
            "config": _config_of_command(sys.argv),
            "versions": _versions(),
            "platform": platform.platform(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "threads": torch.get_num_threads(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        write_text_atomically(self.path, json.dumps(record, indent=1) + "\n")


def _readable(value: Any) -> Any:
    if isinstance(value, str | int | float | bool) or value is None:
        return value
    if isinstance(value, list | tuple):
        return [_readable(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): _readable(v) for k, v in value.items()}
    return str(value)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("monai_usfm", "monai", "torch", "numpy", "pytorch-ignite", "nibabel", "itk", "pydicom"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _config_of_command(argv: Sequence[str]) -> Any:
    """The merged config of a ``monai.bundle run`` command with its overrides; None where there is no such command."""
    pairs: dict[str, str] = {}
    for position, word in enumerate(argv):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            if equals:
                pairs[name] = value
            elif position + 1 < len(argv):
                pairs[name] = argv[position + 1]
    files = pairs.pop("config_file", None)
    if files is None:
        return None
    try:
        names = json.loads(files.replace("'", '"')) if files.startswith("[") else files.split(",")
        config = ConfigParser.load_config_files(names)
    except (OSError, ValueError):
        return None
    return {"files": names, "merged": config, "overrides": pairs}


def save_panels(path: str | os.PathLike, panels: Mapping[str, torch.Tensor], max_items: int = 8) -> Path:
    """Save a picture with one row per sample and one titled column per panel, through a temporary file.

    Args:
        path: PNG file.
        panels: title -> ``(B, C, *S)`` in [0, 1]; C is 1 (grey) or 3 (RGB); of a volume the middle slice is shown.
        max_items: rows at most.
    """
    columns = []
    for tensor in panels.values():
        tensor = torch.as_tensor(tensor).detach().float().cpu()[:max_items]
        if tensor.dim() == 5:
            tensor = tensor[:, :, tensor.shape[2] // 2]
        tensor = tensor[:, :3] if tensor.shape[1] >= 3 else tensor[:, :1].expand(-1, 3, -1, -1)
        columns.append((tensor.nan_to_num().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1))
    gap, header = 4, 16
    height = max(c.shape[1] for c in columns)
    widths = [c.shape[2] for c in columns]
    rows = max(len(c) for c in columns)
    canvas = Image.new("RGB", (sum(widths) + gap * (len(columns) + 1), header + rows * (height + gap)), (24, 24, 24))
    draw = ImageDraw.Draw(canvas)
    left = gap
    for title, column, width in zip(panels, columns, widths, strict=True):
        draw.text((left + 2, 2), str(title), fill=(255, 255, 255))
        for row, picture in enumerate(column):
            canvas.paste(Image.fromarray(picture.numpy()), (left, header + row * (height + gap)))
        left += width + gap
    with whole_file(path) as part:
        canvas.save(part, format="PNG")
    return Path(path)


class PictureHandler:
    """Saves pictures of the last batch of an engine every few epochs.

    On an evaluator the epoch is that of the trainer which runs it. Of several processes the first saves.

    Args:
        output_dir: folder; files are named ``<prefix>_epoch_0001.png``.
        panels: called with the engine; gives the panels of :func:`save_panels`.
        interval: epochs between pictures; epoch 1 has one too, if an evaluator runs in it.
        prefix: start of the file name.
        max_items: rows at most.
    """

    def __init__(
        self,
        output_dir: str,
        panels: Callable[[Engine], Mapping[str, torch.Tensor]],
        interval: int = 1,
        prefix: str = "pictures",
        max_items: int = 8,
    ) -> None:
        self.folder = Path(output_dir)
        self.panels = panels
        self.interval = interval
        self.prefix = prefix
        self.max_items = max_items

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        epoch = engine.state.epoch
        if idist.get_rank() > 0:
            return
        if epoch == 1 or epoch % self.interval == 0:
            save_panels(self.folder / f"{self.prefix}_epoch_{epoch:04d}.png", self.panels(engine), self.max_items)
