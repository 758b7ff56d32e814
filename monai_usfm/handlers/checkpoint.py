# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that survive a crash, and randomness that survives a restart."""

from __future__ import annotations

import math
import os
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ignite import distributed as idist
from ignite.engine import Engine, Events
from monai.data.utils import set_rnd
from monai.utils import set_determinism
from torch.nn.utils import parametrize
from torch.optim.lr_scheduler import LambdaLR

from monai_usfm.cards import card_path, check_card, describe_network, save_network
from monai_usfm.files import atomic_write
from monai_usfm.handlers.gradient import require_finite
from monai_usfm.handlers.records import EpochLoss
from monai_usfm.handlers.sharding import gather, scatter
from monai_usfm.networks import UltrasoundViT
from monai_usfm.networks.weights.load import bare
from monai_usfm.networks.weights.read import halved

__all__ = ["BestCheckpoint", "EpochSeed", "ExportWeights", "ResumableCheckpoint", "ValidateStart", "save_atomically"]


def save_atomically(state: Any, path: str | os.PathLike) -> Path:
    """``torch.save`` to a temporary file, then rename: readers see the old file or the new one, whole."""
    with atomic_write(path) as part:
        torch.save(state, part)
    return Path(path)


def _restore(thing: Any, state: Mapping[str, Any], share: float = 1.0) -> None:
    """``load_state_dict``; of a schedule only how far it is, its length and peak being those of this run's options.

    ``share`` is the number of steps for each that the state counted.
    """
    if isinstance(thing, LambdaLR):
        thing.last_epoch, thing._step_count = round(share * state["last_epoch"]), state["_step_count"]
        with warnings.catch_warnings():  # get_lr() warns outside of step(), which would advance the schedule
            warnings.simplefilter("ignore")
            rates = thing.get_lr()  # the schedule's own, with its floor
        for group, rate in zip(thing.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        thing._last_lr = rates
    else:
        thing.load_state_dict(scatter(dict(state), thing))


def _merged(network: torch.nn.Module, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """``state`` with every parametrised weight, such as one with a low-rank update, as the plain tensor it stands for.

    The network computes them and keeps its own state. A copy of it would not do: PyTorch's parametrised modules share
    their class with their copies, and removing the parametrisation from a copy breaks the original.
    """
    own = {name: value.clone() for name, value in network.state_dict().items()}
    merged = {name: value for name, value in state.items() if ".parametrizations." not in name}
    network.load_state_dict(state)
    with torch.no_grad():
        for name, module in network.named_modules():
            if parametrize.is_parametrized(module):
                merged.update(
                    {f"{name}.{tensor}": getattr(module, tensor).clone() for tensor in module.parametrizations}
                )
    network.load_state_dict(own)
    return merged


@dataclass(eq=False)
class EpochSeed:
    """Seeds all randomness from (seed, epoch), so that an epoch is the same after a restart as without one.

    Attach it to the trainer before anything that draws. It seeds PyTorch, NumPy and Python, the random transforms of
    the data set, and tells the sampler its epoch. Use non-persistent workers: they take their seeds from PyTorch's.

    Args:
        seed: non-negative base seed.
        data_loader: the training loader.
        rank: number of this process, which draws its own augmentations.
        fixed: draw the same every time, as a validation loss wants.
        interval: steps between the checkpoints within an epoch, see :class:`ResumableCheckpoint`; after each of them
            it seeds anew, so that nothing drawn before need be known to go on from there. None for none.
    """

    seed: int
    data_loader: torch.utils.data.DataLoader
    rank: int = 0
    fixed: bool = False
    interval: int | None = None

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}.")

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self)
        engine.add_event_handler(Events.ITERATION_STARTED, self._within)

    def _within(self, engine: Engine) -> None:
        done = (engine.state.iteration - 1) % engine.state.epoch_length
        if _due(engine, done, self.interval):
            self._seed(engine.state.epoch, done)

    def __call__(self, engine: Engine) -> None:
        epoch = 0 if self.fixed else engine.state.epoch
        seed = self._seed(epoch)
        set_rnd(self.data_loader.dataset, seed=seed)
        if hasattr(self.data_loader.dataset, "epoch"):  # items of this dataset have seeds of their own
            self.data_loader.dataset.epoch = epoch
        if hasattr(self.data_loader.sampler, "set_epoch"):
            self.data_loader.sampler.set_epoch(epoch)

    def _seed(self, epoch: int, steps: int = 0) -> int:
        # Large odd multipliers keep the seeds of neighboring runs, epochs and parts of them apart.
        seed = (self.seed + 1_000_003 * epoch + 7_919 * self.rank + 104_729 * steps) % (2**31)
        cudnn = torch.backends.cudnn
        chosen = cudnn.deterministic, cudnn.benchmark  # at the start, for the whole run
        set_determinism(seed=seed, use_deterministic_algorithms=None)
        cudnn.deterministic, cudnn.benchmark = chosen
        return seed


def _due(engine: Engine, done: int, interval: int | None) -> bool:
    """Whether a checkpoint lies after ``done`` steps of an epoch; never where gradients are being summed."""
    every = interval and math.lcm(interval, getattr(engine, "accumulation_steps", 1))
    return bool(every) and 0 < done < engine.state.epoch_length and done % every == 0


# Options that a resumed run may change: they say where things lie, how fast and how long it goes, what is shown.
FREE_NAMES = (
    "bundle_root dataset_dir datalist output_dir ckpt_dir export_path max_epochs num_workers cache_dir "
    "device compile use_checkpoint sharded resident resume resume_anyway figure_interval class_names"
)
FREE_OPTIONS = frozenset(FREE_NAMES.split())


class ResumableCheckpoint:
    """Saves everything that training needs after every epoch, and within long ones, and takes it up again.

    Two files: ``last.pt``, replaced atomically, and ``previous.pt``, the one before; written by the first process
    alone, never with a weight that is not a number; loaded with ``weights_only=True``. Together with
    :class:`EpochSeed` a run that was killed goes on as if it had not been: it repeats the epoch that was cut and gives
    the same losses; one that was killed after its last epoch does what follows it. With a larger ``max_epochs`` it
    trains on, at the rates of a schedule of that length. Attach it after the handlers whose state it saves: after the
    validation, where the best value is among ``objects``.

    Args:
        path: the checkpoint file.
        objects: what to save and restore by ``state_dict``: network, optimizer, scheduler, ...; the engine is added.
        resume: restore from ``path`` at the start if the file exists.
        options: values of the run's options. A resumed run must have the same, but for :data:`FREE_OPTIONS`.
        resume_anyway: resume with other options. With another number of steps in an epoch, as of other batches or
            another number of processes, it goes on at the same share of it.
        interval: also save after so many steps of an epoch, which a resumed run then goes on with instead of repeating
            it. For a loader with an :class:`~monai_usfm.data.OrganBalancedSampler`, items whose draws depend on their
            place in the list alone, and an :class:`EpochSeed` of this interval. None for none.
        loss: the :class:`~monai_usfm.handlers.EpochLoss` whose sum a resumed run goes on with; None for none. Files of
            earlier versions have none.

    Raises:
        RuntimeError: when the file does not fit the objects, with the name of the file.
        ValueError: when an option has another value than in the saved run.
        FloatingPointError: when a weight is NaN or infinite; the files are left as they are.
    """

    def __init__(
        self,
        path: str,
        objects: Mapping[str, Any],
        resume: bool = False,
        options: Mapping[str, Any] | None = None,
        resume_anyway: bool = False,
        interval: int | None = None,
        loss: EpochLoss | None = None,
    ) -> None:
        self.path = Path(path)
        self.interval = interval
        self.loss = loss
        self.objects = dict(objects)
        self.resume = resume
        self.options = {name: value for name, value in (options or {}).items() if name not in FREE_OPTIONS}
        self.resume_anyway = resume_anyway
        self.written: int | None = None  # steps at the file: no state is written twice, or both files were one

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.restore)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._within)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)
        engine.add_event_handler(Events.COMPLETED, self.save)

    def _within(self, engine: Engine) -> None:
        if _due(engine, engine.state.iteration % engine.state.epoch_length, self.interval):
            self.save(engine)

    def save(self, engine: Engine) -> None:
        if engine.state.iteration == self.written:
            return
        self.written = engine.state.iteration
        state = {name: gather(bare(thing).state_dict()) for name, thing in self.objects.items()}
        loss = {} if self.loss is None else {"loss": self.loss.state_dict()}
        if idist.get_rank() > 0:
            return
        try:
            require_finite(
                {k: v for k, v in state.items() if isinstance(self.objects[k], torch.nn.Module)}, "the network"
            )
        except FloatingPointError as error:
            raise FloatingPointError(
                f"{error} Nothing was written after epoch {engine.state.epoch}; {self.path} is that of an earlier "
                "epoch: lower learning_rate, or use amp fp32, and go on with --resume true."
            ) from None
        steps = engine.state.iteration % engine.state.epoch_length  # of an epoch that is not over
        epoch = engine.state.epoch - (steps > 0)
        state["engine"] = {"epoch": epoch, "iteration": engine.state.iteration, "steps": steps, **loss}
        state["options"] = self._signed(engine)
        scaler = getattr(engine, "scaler", None)
        if scaler is not None:
            state["scaler"] = scaler.state_dict()
        with atomic_write(self.path) as part:
            torch.save(state, part)
            if self.path.is_file():
                with atomic_write(self.path.with_name("previous.pt")) as copy:
                    shutil.copyfile(self.path, copy)

    def _signed(self, engine: Engine) -> dict[str, Any]:
        return {**self.options, "steps_per_epoch": engine.state.epoch_length}

    def restore(self, engine: Engine) -> None:
        if not self.resume:
            return
        if not self.path.is_file():
            engine.logger.info(f"resume: no checkpoint at {self.path}, starting from the beginning.")
            return
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            progress, saved = state["engine"], state.get("options", {})
        except Exception as error:
            raise RuntimeError(
                f"cannot resume from {self.path}: it is no checkpoint of a training ({type(error).__name__}). Copy "
                "previous.pt beside it over it, or start anew with --resume false."
            ) from error
        self._compare(engine, saved)
        length = engine.state.epoch_length
        before = saved.get("steps_per_epoch", length)
        try:
            for name, thing in self.objects.items():
                _restore(bare(thing), state[name], length / before)
        except Exception as error:
            raise RuntimeError(
                f"cannot resume from {self.path}: {error}. Was it written by a run with other options? Give those, or "
                "start anew with --resume false, another output_dir and the weights it exported as --pretrained: of "
                "these what fits is taken, whatever the classes."
            ) from error
        if progress["epoch"] > engine.state.max_epochs:
            raise RuntimeError(
                f"{self.path} has reached epoch {progress['epoch']}, beyond max_epochs {engine.state.max_epochs}: "
                "raise max_epochs to train longer."
            )
        if progress["epoch"] == engine.state.max_epochs:  # killed after its last epoch: what follows it is still done
            engine.logger.warning(
                f"{self.path} has reached epoch {progress['epoch']}, the last one: nothing is left to train. Raise "
                "max_epochs to train longer."
            )
        steps = progress.get("steps", 0) * length // before
        engine.state.epoch = progress["epoch"]
        engine.state.iteration = self.written = progress["epoch"] * length + steps
        if steps:
            engine.state.dataloader.sampler.skip = steps * engine.state.dataloader.batch_size
        if self.loss is not None and "loss" in progress:
            self.loss.load_state_dict(progress["loss"])
        scaler = getattr(engine, "scaler", None)
        if scaler is not None and "scaler" in state:
            scaler.load_state_dict(state["scaler"])
        more = f" and {steps} steps" if steps else ""
        engine.logger.info(f"resumed from {self.path} after epoch {progress['epoch']}{more}.")

    def _compare(self, engine: Engine, saved: Mapping[str, Any]) -> None:
        """Refuse options that differ from the saved ones; what either run does not name is not compared."""
        own = self._signed(engine)
        changed = [f"{k} is {own[k]!r}, was {saved[k]!r}" for k in sorted(own) if k in saved and own[k] != saved[k]]
        if not changed:
            return
        if not self.resume_anyway:
            raise ValueError(
                f"{self.path} was written with other options: {'; '.join(changed)}. Give the saved values, start anew "
                "with --resume false and another output_dir, or accept the change with --resume_anyway true."
            )
        engine.logger.warning(f"resumed with other options: {'; '.join(changed)}.")


class BestCheckpoint:
    """Saves the network whenever the evaluator's key metric improves; attach it to the evaluator.

    Of several processes, which share the metric, the first saves. Weights that are not numbers are never saved. The
    untouched start, which a :class:`~monai_usfm.handlers.ValidateStart` marks, is noted as ``start`` and not saved:
    training is told when no epoch was better.

    Args:
        path: file of the state dict, replaced atomically.
        network: the network.
        negate: True when smaller is better, as for a loss.
    """

    def __init__(self, path: str, network: torch.nn.Module, negate: bool = False) -> None:
        self.path = Path(path)
        self.network = network
        self.sign = -1.0 if negate else 1.0
        self.best = -float("inf")
        self.start: float | None = None
        self.untouched = False  # true while the start is validated
        self.asked = False  # whether any epoch was validated

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        name = engine.state.key_metric_name
        if name is None:
            raise RuntimeError("BestCheckpoint needs an evaluator with key_val_metric.")
        value = self.sign * float(engine.state.metrics[name])
        if self.untouched:
            self.start = value
            return
        self.asked = True
        # A metric that is not a number never wins, not even the first time.
        if value > self.best:
            state = gather(bare(self.network).state_dict())
            require_finite(state, "the network")
            self.best = value
            if idist.get_rank() > 0:
                return
            save_atomically(state, self.path)
            engine.logger.info(f"new best {name}: {self.sign * value:.4f}, saved to {self.path}.")

    def state_dict(self) -> dict[str, float | None]:
        return {"best": self.best, "start": self.start, "asked": self.asked}

    def load_state_dict(self, state: Mapping[str, float | None]) -> None:
        self.best = float(state["best"])  # type: ignore[arg-type]
        self.start = state.get("start")
        self.asked = bool(state.get("asked"))


@dataclass(eq=False)
class ValidateStart:
    """Validates the untouched network before the first epoch, and says at the end if no epoch was better.

    Attach it to the trainer. A resumed run does not repeat it.

    Args:
        evaluator: the validation.
        best: takes the score as that of the start.
    """

    evaluator: Engine
    best: BestCheckpoint

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._validate)
        engine.add_event_handler(Events.COMPLETED, self._tell)

    def _validate(self, engine: Engine) -> None:
        if engine.state.iteration > 0:
            return
        self.best.untouched = self.evaluator.state.untouched = True
        try:
            self.evaluator.run(1)
        finally:
            self.best.untouched = self.evaluator.state.untouched = False

    def _tell(self, engine: Engine) -> None:
        if self.best.start is not None and not self.best.best > self.best.start:
            engine.logger.warning(
                f"no epoch was better than the untouched start ({self.best.sign * self.best.start:.4f}, best epoch "
                f"{self.best.sign * self.best.best:.4f}): the exported weights are no better than those training began "
                "with. Train longer, or change learning_rate."
            )


@dataclass(eq=False)
class ExportWeights:
    """At the end of training, the first process writes the weights that other bundles take as ``pretrained``.

    Low-rank updates (:func:`~monai_usfm.networks.apply_lora`) are merged into the written weights.

    Args:
        path: the file, replaced atomically.
        network: module to export (for instance the feature extractor around the encoder).
        best: the handler that kept the best epoch; its file is exported, matched to ``network`` by name, so it may hold
            more. None, or one that was never asked, exports the last state.
        last: export the last state though there is a best one, as self-supervised training does.
        half: store floating tensors as float16, which halves the file; loading converts them back.
        card: fields of the card beside the file, see :func:`monai_usfm.write_card`; None, or a network of
            another package, writes none.

    Raises:
        ValueError: before the first step, for a card that contradicts the network.
        FloatingPointError: at the end, when no validation gave a number; nothing is written.
    """

    path: str | os.PathLike
    network: torch.nn.Module
    best: BestCheckpoint | None = None
    last: bool = False
    half: bool = False
    card: Mapping[str, Any] | None = None

    def attach(self, engine: Engine) -> None:
        if self._has_card():
            engine.add_event_handler(Events.STARTED, self._check)
        engine.add_event_handler(Events.COMPLETED, self)

    def _has_card(self) -> bool:
        return self.card is not None and isinstance(getattr(bare(self.network), "encoder", None), UltrasoundViT)

    def _check(self) -> None:
        card = {**describe_network(bare(self.network)), **(self.card or {})}
        names, classes = card.get("class_names"), card["network"].get("num_classes")
        if names is not None and classes is not None and len(names) != max(classes, 2):
            first = ", the background first" if card["task"] == "segmentation" else ""
            raise ValueError(f"--class_names has {len(names)} names for {classes} classes: name each, in order{first}.")
        check_card(card, card_path(self.path))

    def __call__(self, engine: Engine) -> None:
        if self.best is not None and self.best.asked and self.best.best == -float("inf"):
            raise FloatingPointError(
                f"no validation gave a score that is a number, so nothing was written to {self.path}: look at "
                "metrics.csv and at the validation images."
            )
        network = bare(self.network)
        state = gather(network.state_dict())
        if idist.get_rank() > 0:
            return
        if self.best is not None and not self.last and self.best.best > -float("inf"):
            kept = torch.load(self.best.path, map_location="cpu", weights_only=True)
            state = {name: kept[name] for name in state}
        if any(parametrize.is_parametrized(module) for module in network.modules()):
            state = _merged(network, state)
        state = {name: value.detach().cpu() for name, value in state.items()}
        require_finite(state, "the network")
        if self._has_card():
            save_network(self.path, network, state_dict=state, half=self.half, **(self.card or {}))
        else:
            save_atomically(halved(state) if self.half else state, self.path)
        engine.logger.info(f"weights written to {self.path}.")
