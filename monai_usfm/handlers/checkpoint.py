# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that survive a crash, and randomness that survives a restart."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite import distributed as idist
from ignite.engine import Engine, Events
from monai.data.utils import set_rnd
from monai.utils import set_determinism
from torch.nn.utils import parametrize
from torch.optim.lr_scheduler import LambdaLR

from monai_usfm.files import whole_file

__all__ = ["BestCheckpoint", "EpochSeed", "ExportWeights", "ResumableCheckpoint", "save_atomically"]


def save_atomically(state: Any, path: str | os.PathLike) -> Path:
    """``torch.save`` to a temporary file, then rename: readers see the old file or the new one, whole."""
    with whole_file(path) as part:
        torch.save(state, part)
    return Path(path)


def _plain(module: Any) -> Any:
    """The network inside a distributed wrapper."""
    return module.module if isinstance(module, torch.nn.parallel.DistributedDataParallel) else module


def _restore(thing: Any, state: Mapping[str, Any]) -> None:
    """``load_state_dict``; of a schedule only how far it is, its length and peak being those of this run's settings."""
    if isinstance(thing, LambdaLR):
        thing.last_epoch, thing._step_count = state["last_epoch"], state["_step_count"]
        rates = [base * rate(thing.last_epoch) for base, rate in zip(thing.base_lrs, thing.lr_lambdas, strict=True)]
        for group, rate in zip(thing.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        thing._last_lr = rates
    else:
        thing.load_state_dict(state)


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


class EpochSeed:
    """Seeds all randomness from (seed, epoch), so that an epoch is the same after a restart as without one.

    Attach it to the trainer before anything that draws. It seeds PyTorch, NumPy and Python, the random transforms of
    the data set, and tells the sampler its epoch. Use non-persistent workers: they take their seeds from PyTorch's.

    Args:
        seed: non-negative base seed.
        data_loader: the training loader.
        rank: number of this process, which draws its own augmentations.
        fixed: draw the same every time, as a validation loss wants.
    """

    def __init__(self, seed: int, data_loader: torch.utils.data.DataLoader, rank: int = 0, fixed: bool = False) -> None:
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}.")
        self.seed = seed
        self.data_loader = data_loader
        self.rank = rank
        self.fixed = fixed

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        # A large odd multiplier keeps the seeds of neighbouring runs and epochs apart.
        epoch = 0 if self.fixed else engine.state.epoch
        seed = (self.seed + 1_000_003 * epoch + 7_919 * self.rank) % (2**31)
        set_determinism(seed=seed, use_deterministic_algorithms=None)
        set_rnd(self.data_loader.dataset, seed=seed)
        if hasattr(self.data_loader.sampler, "set_epoch"):
            self.data_loader.sampler.set_epoch(epoch)


class ResumableCheckpoint:
    """Saves everything that training needs after every ``interval`` epochs, and takes it up again.

    One file, ``last.pt``, replaced atomically, by the first process alone; loaded with ``weights_only=True``. Together
    with :class:`EpochSeed` a run that was killed goes on as if it had not been: it repeats the epoch that was cut and
    gives the same losses; one that was killed after its last epoch does what follows it. With a larger ``max_epochs``
    it trains on, at the rates of a schedule of that length. Attach it after the handlers whose state it saves: after
    the validation, where the best value is among ``objects``.

    Args:
        path: the checkpoint file.
        objects: what to save and restore by ``state_dict``: network, optimizer, scheduler, ...; the engine is added.
        resume: restore from ``path`` at the start if the file exists.
        interval: epochs between saves.

    Raises:
        RuntimeError: when the file does not fit the objects, with the name of the file.
    """

    def __init__(self, path: str, objects: Mapping[str, Any], resume: bool = False, interval: int = 1) -> None:
        self.path = Path(path)
        self.objects = dict(objects)
        self.resume = resume
        self.interval = interval

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.restore)
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self.save)
        engine.add_event_handler(Events.COMPLETED, self.save)

    def save(self, engine: Engine) -> None:
        if idist.get_rank() > 0:
            return
        state = {name: _plain(thing).state_dict() for name, thing in self.objects.items()}
        state["engine"] = {"epoch": engine.state.epoch, "iteration": engine.state.iteration}
        scaler = getattr(engine, "scaler", None)
        if scaler is not None:
            state["scaler"] = scaler.state_dict()
        save_atomically(state, self.path)

    def restore(self, engine: Engine) -> None:
        if not self.resume:
            return
        if not self.path.is_file():
            engine.logger.info(f"resume: no checkpoint at {self.path}, starting from the beginning.")
            return
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            for name, thing in self.objects.items():
                _restore(_plain(thing), state[name])
            progress = state["engine"]
        except Exception as error:
            raise RuntimeError(
                f"cannot resume from {self.path}: {error}. Was it written by a run with other settings? "
                "Set resume to false, or remove the file."
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
        engine.state.epoch = progress["epoch"]
        engine.state.iteration = progress["iteration"]
        scaler = getattr(engine, "scaler", None)
        if scaler is not None and "scaler" in state:
            scaler.load_state_dict(state["scaler"])
        engine.logger.info(f"resumed from {self.path} after epoch {progress['epoch']}.")


class BestCheckpoint:
    """Saves the network whenever the evaluator's key metric improves; attach it to the evaluator.

    Of several processes, which share the metric, the first saves.

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

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        name = engine.state.key_metric_name
        if name is None:
            raise RuntimeError("BestCheckpoint needs an evaluator with key_val_metric.")
        value = self.sign * float(engine.state.metrics[name])
        # A metric that is not a number never wins, not even the first time.
        if value > self.best:
            self.best = value
            if idist.get_rank() > 0:
                return
            save_atomically(_plain(self.network).state_dict(), self.path)
            engine.logger.info(f"new best {name}: {self.sign * value:.4f}, saved to {self.path}.")

    def state_dict(self) -> dict[str, float]:
        return {"best": self.best}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.best = float(state["best"])


class ExportWeights:
    """At the end of training, the first process writes the weights that other bundles take as ``pretrained``.

    Low-rank updates (:func:`~monai_usfm.networks.apply_lora`) are merged into the written weights.

    Args:
        path: the file, replaced atomically.
        network: module to export (for instance the feature extractor around the encoder).
        source: state-dict file to export instead of the last state: the best checkpoint, if this run or the one that it
            resumes has written it. Its entries are matched to ``network`` by name, so it may hold more.
        half: store floating tensors as float16, which halves the file; loading converts them back.
    """

    def __init__(self, path: str, network: torch.nn.Module, source: str | None = None, half: bool = False) -> None:
        self.path = Path(path)
        self.network = network
        self.source = source
        self.half = half
        self._stale: int | None = None

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._look)
        engine.add_event_handler(Events.COMPLETED, self)

    def _written(self) -> int | None:
        """When the best checkpoint was written, in nanoseconds; None where there is none."""
        return os.stat(self.source).st_mtime_ns if self.source is not None and os.path.isfile(self.source) else None

    def _look(self, engine: Engine) -> None:
        self._stale = self._written() if engine.state.epoch == 0 else None  # left by another run in this folder

    def __call__(self, engine: Engine) -> None:
        if idist.get_rank() > 0:
            return
        network = _plain(self.network)
        state = network.state_dict()
        if self.source is not None and self._written() not in (None, self._stale):
            best = torch.load(self.source, map_location="cpu", weights_only=True)
            state = {name: best[name] for name in state}
        if any(parametrize.is_parametrized(module) for module in network.modules()):
            state = _merged(network, state)
        state = {name: value.detach().cpu() for name, value in state.items()}
        if self.half:
            state = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
        save_atomically(state, self.path)
        engine.logger.info(f"weights written to {self.path}.")
