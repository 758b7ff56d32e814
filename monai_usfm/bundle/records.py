# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""The handlers of a training: those of each step, and those that keep its records."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.handlers import LrScheduleHandler, MLFlowHandler, TensorBoardStatsHandler
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from monai_usfm.bundle.start import configuration
from monai_usfm.bundle.training import rank
from monai_usfm.handlers import (
    BestCheckpoint,
    EpochLoss,
    EpochSeed,
    ExportWeights,
    FiniteLoss,
    GradientClip,
    MetricsTable,
    Progress,
    ResumableCheckpoint,
    RunLock,
    RunRecord,
    ValidateStart,
    learning_rates,
    leave_errors,
    validate_whole,
)
from monai_usfm.handlers.records import readable

__all__ = [
    "TrainingRecords",
    "TrainingSteps",
]

logger = logging.getLogger(__name__)
FILES = ("last.pt", "previous.pt", "best.pt")  # in the folder of the checkpoints


class TrainingSteps:
    """Handlers of each step: seeds of the epoch, guards of loss and gradient, clipping, the schedule.

    The trainer's output becomes a list with one entry, as MONAI's own handlers (MLflow's) expect it; decollating a
    whole batch for that would cost time.

    Args:
        data_loader, seed: see :class:`~monai_usfm.handlers.EpochSeed`.
        lr_scheduler: advanced after every step.
        network, clip_norm: see :class:`~monai_usfm.handlers.GradientClip`.
        save_interval: steps between checkpoints within an epoch; None for none.
    """

    def __init__(
        self,
        data_loader: Any,
        seed: int,
        lr_scheduler: Any,
        network: torch.nn.Module,
        clip_norm: float,
        save_interval: int | None = None,
    ) -> None:
        self.handlers: list[Any] = [
            EpochSeed(seed, data_loader, rank(), interval=save_interval),
            FiniteLoss(),
            GradientClip(network, clip_norm),
            LrScheduleHandler(lr_scheduler, print_lr=False, epoch_level=False),
        ]

    def attach(self, engine: Engine) -> None:
        for handler in self.handlers:
            handler.attach(engine)
        engine.add_event_handler(Events.ITERATION_COMPLETED, _as_list)


def _as_list(engine: Engine) -> None:
    engine.state.output = [engine.state.output]  # type: ignore[assignment, list-item]


class _Former:
    """Keeps the checkpoints that a training finds in its folder and does not resume from, under other names.

    Those of an earlier run of the same trainer, such as a round of federated training, are its own.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, False

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        first, self.asked = not self.asked, True
        if rank() > 0 or not first or not (self.folder / "last.pt").is_file():
            return
        for name in FILES:
            if (self.folder / name).is_file():
                (self.folder / name).replace(self.folder / f"former_{name}")
        engine.logger.warning(
            f"{self.folder} held checkpoints of another training, which --resume true would have gone on with: they "
            "are kept as former_last.pt and so on."
        )


class TrainingRecords:
    """Handlers of each epoch and of the whole run, after the validation: lock, table, checkpoint, progress, export.

    Args:
        name: printed in front of each line of progress.
        output_dir: folder of all results.
        ckpt_dir: folder of ``last.pt``, ``previous.pt`` and ``best.pt``.
        export_path: file of the weights that are exported at the end.
        network: what is trained.
        optimizer, lr_scheduler: saved with it.
        evaluator: the validation.
        best: the handler that keeps the best epoch.
        options: values of the run's options, for ``run.json`` and for a resumed run to compare.
        resume, resume_anyway, save_interval: see :class:`~monai_usfm.handlers.ResumableCheckpoint`.
        exported: what is exported, if not the network.
        last: export the last epoch, not the best.
        card: fields of the exported weights' card.
    """

    def __init__(
        self,
        name: str,
        output_dir: str,
        ckpt_dir: str,
        export_path: str,
        network: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        lr_scheduler: Any,
        evaluator: Engine,
        best: BestCheckpoint,
        options: Mapping[str, Any],
        resume: bool = False,
        resume_anyway: bool = False,
        exported: torch.nn.Module | None = None,
        last: bool = False,
        card: Mapping[str, Any] | None = None,
        save_interval: int | None = None,
    ) -> None:
        self.folder, self.checkpoints = Path(output_dir), Path(ckpt_dir)
        self.network, self.optimizer, self.evaluator = network, optimizer, evaluator
        self.writer: SummaryWriter | None = None
        self.resume = resume
        objects = {"network": network, "optimizer": optimizer, "lr_scheduler": lr_scheduler, "best": best}
        plain = self.options = readable(options)
        self.export_path = Path(export_path)
        loss = EpochLoss()
        self.table = MetricsTable(output_dir, optimizer, evaluator, loss)
        self.handlers: list[Any] = [
            RunLock(output_dir),
            self.table,
            ResumableCheckpoint(
                f"{ckpt_dir}/last.pt",
                objects,
                resume,
                options=plain,
                resume_anyway=resume_anyway,
                interval=save_interval,
                loss=loss,
            ),
            ValidateStart(evaluator, best),
            Progress(name, loss=loss),
            ExportWeights(export_path, network if exported is None else exported, best, last, half=True, card=card),
            *([] if resume else [_Former(self.checkpoints)]),  # behind all that may refuse the training
            RunRecord(output_dir, plain, configuration()),
        ]

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._require_space)
        engine.add_event_handler(Events.STARTED, self._start_mlflow)
        leave_errors(engine)
        validate_whole(self.network, self.evaluator)
        for handler in self.handlers:
            handler.attach(engine)
        if rank() == 0:
            engine.add_event_handler(Events.STARTED, self._open)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._rates)
            engine.add_event_handler(Events.COMPLETED, self._tell)
            engine.add_event_handler(Events.COMPLETED, self._to_mlflow)

    def _require_space(self, engine: Engine) -> None:
        """Refuse a disk too full for the checkpoints: weights and two moments in two files and a third, the best, the
        export."""
        needed = sum(p.numel() for p in self.network.parameters()) * 4 * (3 * 3 + 2)
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.checkpoints).free
        if self.resume:  # which are replaced
            free += sum(file.stat().st_size for file in map(self.checkpoints.joinpath, FILES) if file.is_file())
        if free < needed:
            raise RuntimeError(
                f"the disk of {self.checkpoints} has {free / 1e6:.0f} MB left, and the checkpoints of this network "
                f"need {needed / 1e6:.0f} MB: free some, or give another --output_dir or --ckpt_dir."
            )

    def _open(self, engine: Engine) -> None:
        if self.writer is not None:  # a further round of a federation, of which each number is written once
            return
        self.writer = SummaryWriter(str(self.folder / "tensorboard"))
        TensorBoardStatsHandler(
            self.writer, tag_name="train_loss", output_transform=lambda output: output[0]["loss"], epoch_log=False
        ).attach(engine)
        TensorBoardStatsHandler(
            self.writer, iteration_log=False, global_epoch_transform=lambda _: engine.state.epoch
        ).attach(self.evaluator)

    def _rates(self, engine: Engine) -> None:
        if self.writer is not None:
            for name, rate in learning_rates(self.optimizer).items():
                self.writer.add_scalar(f"rate/{name}", rate, engine.state.epoch)
            self.writer.add_scalar("train_loss/epoch", float(self.table.rows[-1]["train_loss"]), engine.state.epoch)
            for file in self._figures(engine.state.epoch):
                pixels = np.asarray(Image.open(file).convert("RGB"))
                self.writer.add_image(file.stem.split("_epoch_")[0], pixels, engine.state.epoch, dataformats="HWC")

    def _figures(self, epoch: int) -> list[Path]:
        """What an epoch and its validation have drawn."""
        files = list(self.folder.glob(f"figures/*_epoch_{epoch:04d}.png"))
        if self.evaluator.state.epoch == epoch:
            files += self.folder.glob("validation/*.png")
        return files

    def _start_mlflow(self, engine: Engine) -> None:
        """The trainer begins the run: of the validation of the start it would get that one's max_epochs, for good."""
        for tracker in _trackers(engine):
            tracker.start(engine)

    def _to_mlflow(self, engine: Engine) -> None:
        """Under ``--tracking mlflow`` the run gets the options, the figures and the card of the weights too."""
        for tracker in _trackers(engine):
            if tracker.cur_run is None:
                continue
            run = tracker.cur_run.info.run_id
            known = tracker.client.get_run(run).data.params
            for name, value in self.options.items():
                if name not in known:
                    tracker.client.log_param(run, name, str(value)[:500])
            files = [self.folder / "metrics.png", self.export_path, self.export_path.with_suffix(".json")]
            figures = [*sorted(self.folder.glob("figures/*.png"))[-1:], *self.folder.glob("validation/*.png")]
            for file in (*files, *figures):
                if file.is_file():
                    tracker.client.log_artifact(run, str(file))

    def _tell(self, engine: Engine) -> None:
        if self.writer is not None:
            self.writer.flush()
        engine.logger.info(f"results of this training: {self.folder}")


def _trackers(engine: Engine) -> list[MLFlowHandler]:
    """MONAI's handlers of MLflow on an engine."""
    owners = [getattr(entry[0], "__self__", None) for entry in engine._event_handlers[Events.COMPLETED]]
    return [owner for owner in owners if isinstance(owner, MLFlowHandler)]
