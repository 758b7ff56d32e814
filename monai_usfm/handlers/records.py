# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""What a run leaves behind for people: progress, a table of metrics, a record of the options, figures."""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from filelock import FileLock, Timeout
from ignite import distributed as idist
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar
from matplotlib.figure import Figure
from monai.engines import Evaluator
from monai.handlers import StatsHandler, ValidationHandler
from monai.utils import convert_to_tensor
from PIL import Image

import monai_usfm
from monai_usfm.files import atomic_write, remove_abandoned, save_figure, write_csv, write_text_atomically
from monai_usfm.handlers.drawing import label_figure, tile
from monai_usfm.handlers.gradient import loss_of

__all__ = [
    "EpochLoss",
    "EpochValidation",
    "FigureHandler",
    "MetricsTable",
    "Progress",
    "RunLock",
    "RunRecord",
    "ScoreLog",
    "draw_metrics",
    "learning_rates",
    "leave_errors",
    "network_panels",
    "save_panels",
]


ROWS = 8  # of a figure


def leave_errors(engine: Engine) -> None:
    """Ignite logs an error twice before it raises it; whoever runs the engine tells it, once."""
    engine.logger = engine.logger.getChild("monai_usfm")  # that of the class is everybody's
    engine.logger.addFilter(lambda record: record.levelno < logging.ERROR)


class ScoreLog(StatsHandler):
    """MONAI's log of the scores, without the traceback that it logs, twice, of an error that is then raised."""

    def attach(self, engine: Engine) -> None:
        super().attach(engine)
        leave_errors(engine)

    def exception_raised(self, _engine: Engine, e: Exception) -> None:
        raise e


class EpochValidation(ValidationHandler):
    """MONAI's, every ``interval`` epochs, and after the last one too: it is mostly the best, and else never scored."""

    def __init__(self, interval: int, validator: Evaluator | None = None) -> None:
        super().__init__(interval, validator)

    def attach(self, engine: Engine) -> None:
        def due(engine: Engine, epoch: int) -> bool:
            return epoch % self.interval == 0 or epoch == engine.state.max_epochs

        engine.add_event_handler(Events.EPOCH_COMPLETED(event_filter=due), self)


class EpochLoss:
    """Mean training loss of an epoch; of one that is taken up again over all of its steps.

    Attach it before the :class:`~monai_usfm.handlers.ResumableCheckpoint` that keeps it.
    """

    def __init__(self) -> None:
        self.total, self.steps = 0.0, 0

    def attach(self, engine: Engine) -> None:
        if not engine.has_event_handler(self._step):  # several handlers may tell the same one
            engine.add_event_handler(Events.STARTED, self._reset)
            engine.add_event_handler(Events.EPOCH_STARTED, self._start)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)

    @property
    def mean(self) -> float:
        return self.total / max(self.steps, 1)

    def _reset(self) -> None:
        self.total, self.steps = 0.0, 0

    def _start(self, engine: Engine) -> None:
        if engine.state.iteration % engine.state.epoch_length == 0:  # else a checkpoint restored what was done of it
            self._reset()

    def _step(self, engine: Engine) -> None:
        self.total += loss_of(engine)
        self.steps += 1

    def state_dict(self) -> dict[str, float]:
        """Sum, of several processes their mean, and number; all processes must call it."""
        total = self.total
        if idist.get_world_size() > 1:
            total = float(idist.all_reduce(total)) / idist.get_world_size()
        return {"total": total, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.total, self.steps = float(state["total"]), int(state["steps"])


class Progress:
    """Ignite's bar with the time left in a terminal, plain lines in a log; silent in all processes but the first.

    Args:
        name: printed in front.
        stream: where to print; default standard error.
        loss: what is told of the loss; default one of its own.
    """

    def __init__(self, name: str = "train", stream: Any = None, loss: EpochLoss | None = None) -> None:
        self.name = name
        self.stream = stream
        self.loss = loss or EpochLoss()
        self.begun = self.started = 0.0
        self.first = self.images = 0

    def attach(self, engine: Engine) -> None:
        if idist.get_rank() > 0:
            return
        self.loss.attach(engine)
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        if self._out().isatty():
            bar = ProgressBar(desc=self.name, file=self._out())
            bar.attach(engine, output_transform=lambda _: {"loss": self.loss.mean})
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._finish)

    def _out(self) -> Any:
        return sys.stderr if self.stream is None else self.stream

    def _start(self, engine: Engine) -> None:
        self.started, self.images = time.perf_counter(), 0
        if not self.begun:
            self.begun, self.first = self.started, engine.state.epoch

    def _step(self, engine: Engine) -> None:
        self.images += len(engine.state.batch["image"]) if isinstance(engine.state.batch, Mapping) else 0

    def _finish(self, engine: Engine) -> None:
        now, epoch, epochs = time.perf_counter(), engine.state.epoch, engine.state.max_epochs
        left = (now - self.begun) / (epoch - self.first + 1) * (epochs - epoch)
        self._out().write(
            f"{self.name} epoch {epoch}/{epochs} loss {self.loss.mean:.5f} "
            f"({self.images / max(now - self.started, 1e-9):.1f} images/s, {timedelta(seconds=round(left))} left)\n"
        )
        self._out().flush()


class MetricsTable:
    """One row an epoch in ``metrics.csv``: mean training loss, learning rates, seconds, and the validation metrics.

    ``learning_rate`` is that of the head; where layers learn at rates of their own, these follow by name. Rows of
    epochs that a resumed run repeats are replaced. The rows are drawn in ``metrics.png``. Of several processes the
    first writes; the loss is the mean over all.

    Args:
        output_dir: folder of the files.
        optimizer: whose learning rates are noted.
        evaluator: whose metrics are noted; None for none.
        loss: what is noted of the loss; default one of its own.
    """

    def __init__(
        self,
        output_dir: str,
        optimizer: torch.optim.Optimizer,
        evaluator: Engine | None = None,
        loss: EpochLoss | None = None,
    ) -> None:
        self.path = Path(output_dir) / "metrics.csv"
        self.optimizer = optimizer
        self.evaluator = evaluator
        self.rows: list[dict[str, Any]] = []
        self.opened = False
        self.loss = loss or EpochLoss()
        self.started = 0.0
        self.validated = False

    def attach(self, engine: Engine) -> None:
        self.loss.attach(engine)
        engine.add_event_handler(Events.STARTED, self._open)
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)
        if self.evaluator is not None:
            self.evaluator.add_event_handler(Events.COMPLETED, self._note)

    def _note(self, _: Engine) -> None:
        self.validated = True

    def _open(self, engine: Engine) -> None:
        self.rows, self.opened = [], False

    def _start(self, engine: Engine) -> None:
        # Rows of earlier epochs are read in the first one: by then a checkpoint has told which one that is.
        if not self.opened and self.path.is_file() and engine.state.epoch > 1:
            rows = pd.read_csv(self.path, dtype=str, keep_default_na=False).to_dict("records")
            rows = [{**row, **{key: int(row[key]) for key in ("epoch", "iteration")}} for row in rows]
            self.rows = [row for row in rows if row["epoch"] < engine.state.epoch]
        self.opened = True
        self.started, self.validated = time.perf_counter(), False

    def _write(self, engine: Engine) -> None:
        loss = self.loss.mean
        if idist.get_world_size() > 1:
            loss = float(idist.all_reduce(loss)) / idist.get_world_size()
        row: dict[str, Any] = {
            "epoch": engine.state.epoch,
            "iteration": engine.state.iteration,
            "train_loss": f"{loss:.6g}",
            **{name: f"{rate:.6g}" for name, rate in learning_rates(self.optimizer).items()},
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
        draw_metrics(self.rows, self.path.with_suffix(".png"))


def learning_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Rates by name: ``learning_rate`` of the head, and ``rate_<layer>`` of each layer where they differ."""
    groups = optimizer.param_groups
    rates = {"learning_rate": float(groups[-1]["lr"])}
    # a schedule may end at one rate for all: those they began with tell whether they have rates of their own
    if len({group.get("initial_lr", group["lr"]) for group in groups}) > 1:
        last = max(group.get("layer", index) for index, group in enumerate(groups))
        for index, group in enumerate(groups):
            layer = group.get("layer", index)
            name = "embedding" if layer == 0 else "head" if layer == last else f"block_{layer}"
            rates[f"rate_{name}"] = float(group["lr"])
    return rates


def draw_metrics(rows: Sequence[Mapping[str, Any]], path: str | os.PathLike) -> None:
    """Loss, scores and learning rates over the epochs as a PNG, one panel each."""
    table = pd.DataFrame(rows).set_index("epoch").drop(columns=["iteration", "seconds"], errors="ignore")
    table = table.apply(pd.to_numeric, errors="coerce").dropna(axis=1, how="all")  # an empty cell, a score by class
    rates = [name for name in table if name == "learning_rate" or name.startswith("rate_")]
    losses = [name for name in table if name in ("train_loss", "val_loss")]
    scores = [name for name in table if name not in (*rates, *losses)]
    panels = {title: names for title, names in (("loss", losses), ("score", scores), ("rate", rates)) if names}
    figure = Figure(figsize=(4.5 * len(panels), 3.2), layout="constrained")
    for axes, (title, names) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name in names:
            axes.plot(table[name].dropna(), marker="." if len(rows) < 30 else None, label=name)
        axes.set(title=title, xlabel="epoch", yscale="log" if title == "rate" else "linear")
        if len(names) < 8:
            axes.legend(fontsize=7)
    save_figure(path, figure, dpi=90)


class RunLock:
    """Keeps a second training out of ``output_dir`` while this one runs, and removes what killed runs left there.

    The lock is the operating system's (:class:`filelock.FileLock` on ``output_dir/.lock``): it ends with the process.
    Temporary files that :func:`~monai_usfm.files.atomic_write` named after a process which no longer lives are deleted.
    Of several processes the first locks. Attach it first.

    Raises:
        RuntimeError: at the start, when another training has the folder.
    """

    def __init__(self, output_dir: str) -> None:
        self.folder = Path(output_dir)
        self.lock = FileLock(self.folder / ".lock", blocking=False)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._take)
        engine.add_event_handler(Events.COMPLETED, self.lock.release)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._give_back)

    def _take(self, engine: Engine) -> None:
        if idist.get_rank() > 0:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self.lock.acquire()
        except Timeout:
            raise RuntimeError(
                f"another training is running in {self.folder}: give this one another --output_dir, or wait for it."
            ) from None
        for part in remove_abandoned(self.folder):
            engine.logger.info(f"removed {part}, which a killed run had left.")

    def _give_back(self, engine: Engine, error: BaseException) -> None:
        self.lock.release()
        raise error


@dataclass(eq=False)
class RunRecord:
    """Writes ``run.json`` at the start: the command, the options as they were resolved, versions and device.

    Beside it ``config.json``, the configuration. Of several processes the first writes. Attach it last, so that what
    another handler refuses is not recorded.

    Args:
        output_dir: folder of the files.
        options: resolved values worth keeping, by name.
        config: the configuration with the command line; None writes none.
        prefix: of the names of the files.
    """

    output_dir: str
    options: Mapping[str, Any]
    config: Mapping[str, Any] | None = None
    prefix: str = ""

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine | None = None) -> None:
        if idist.get_rank() > 0:
            return
        record = {
            "command": sys.argv,
            "options": readable(dict(self.options)),
            "versions": _versions(),
            "platform": platform.platform(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "threads": torch.get_num_threads(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        for name, content in {"config": self.config, "run": record}.items():
            if content is not None:
                text = json.dumps(content, indent=1, default=str) + "\n"
                write_text_atomically(Path(self.output_dir, f"{self.prefix}{name}.json"), text)


def readable(value: Any) -> Any:
    """The value as JSON can hold it; what it has no form for as text."""
    return json.loads(json.dumps(value, default=str))


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "monai_usfm": monai_usfm.__version__}
    for name in ("monai", "torch", "numpy", "pytorch-ignite", "nibabel", "itk", "pydicom"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def save_panels(path: str | os.PathLike, panels: Mapping[str, torch.Tensor]) -> Path:
    """Save a figure: a row for each of the first eight samples, a titled column per panel.

    Args:
        path: PNG file.
        panels: title -> ``(B, C, *S)`` in [0, 1]; C is 1 (gray) or 3 (RGB); of a volume the middle slice is shown.
    """
    columns = []
    for title, tensor in panels.items():
        images = torch.as_tensor(tensor).detach().float().cpu()[:ROWS]
        images = images[:, :, images.shape[2] // 2] if images.dim() == 5 else images
        images = images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)
        pixels = (images.nan_to_num().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
        columns.append(label_figure(tile([Image.fromarray(image) for image in pixels], 1), str(title)))
    with atomic_write(path) as part:
        tile(columns, len(columns)).save(part, format="PNG")
    return Path(path)


def stacked(output: Sequence[Mapping[str, Any]], *keys: str) -> list[torch.Tensor]:
    """Entries ``(C, *S)`` of decollated items as ``(B, C, *S)``, for a figure: of the items as large as the first."""
    items = [item for item in output if item["image"].shape == output[0]["image"].shape]
    return [
        torch.stack([convert_to_tensor(item[key], dtype=torch.float32, device="cpu") for item in items]) for key in keys
    ]


def network_panels(output: Mapping[str, Any], network: Any) -> dict[str, torch.Tensor]:
    """Panels that a network of pretraining draws of the first images of an engine's output."""
    return network.panels(output["image"][:ROWS])


@dataclass(eq=False)
class FigureHandler:
    """Saves figures of the last batch of an engine every few epochs.

    On an evaluator the epoch is that of the trainer which runs it. Of several processes the first saves.

    Args:
        output_dir: folder; files are named ``<prefix>_epoch_0001.png``.
        panels: called with the engine's output; gives the panels of :func:`save_panels`.
        interval: epochs between figures, 0 for none; epoch 1 has one too, if an evaluator runs in it.
        prefix: start of the file name.

    Raises:
        ValueError: for a negative interval.
    """

    output_dir: str
    panels: Callable[[Any], Mapping[str, torch.Tensor]]
    interval: int = 1
    prefix: str = "figures"

    def __post_init__(self) -> None:
        if self.interval < 0:
            raise ValueError(f"figure_interval must be 0 (no figures) or more epochs, got {self.interval}.")

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        epoch = 0 if getattr(engine.state, "untouched", False) else engine.state.epoch  # before the first one
        if idist.get_rank() > 0 or self.interval == 0:
            return
        if epoch == 1 or epoch % self.interval == 0:
            path = Path(self.output_dir, f"{self.prefix}_epoch_{epoch:04d}.png")
            save_panels(path, self.panels(engine.state.output))
