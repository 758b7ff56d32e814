# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""What the trainings of the four bundles have in common: processes, lists, schedules, and the handlers of a run."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from monai.data import DistributedSampler
from monai.handlers import LrScheduleHandler, MLFlowHandler, TensorBoardStatsHandler
from monai.inferers import Inferer
from monai.losses import DeepSupervisionLoss
from monai.optimizers import WarmupCosineSchedule
from PIL import Image
from torch.utils.data import Dataset, Sampler
from torch.utils.tensorboard import SummaryWriter

from monai_usfm.bundle.start import options
from monai_usfm.cards import ENCODER, WIDTHS, build_network, network_options, read_card
from monai_usfm.data import OrganBalancedSampler, label_fraction, load_splits
from monai_usfm.handlers import (
    BestCheckpoint,
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
)
from monai_usfm.handlers.gradient import loss_of
from monai_usfm.handlers.records import readable
from monai_usfm.inferers import WindowInferer
from monai_usfm.losses import ATMLoss
from monai_usfm.networks import apply_lora, freeze

__all__ = [
    "EnhancementItems",
    "FirstChannelLoss",
    "LabeledBatch",
    "MixedBatch",
    "TrainingRecords",
    "TrainingSteps",
    "default_device",
    "encoder_of",
    "encoder_options",
    "fingerprint",
    "loss_of_head",
    "lower_is_better",
    "network_loss",
    "on_device",
    "plan",
    "prepare_network",
    "preprocessing_of",
    "rank",
    "record",
    "simulated",
    "start_weights",
    "training_items",
    "training_sampler",
    "validation_sampler",
    "warmup_cosine",
    "window_inferer",
]

logger = logging.getLogger(__name__)


def rank() -> int:
    """Number of this process among those that torchrun started; 0 alone."""
    return int(os.environ.get("RANK", 0))


def default_device() -> torch.device:
    """The GPU of this process, or the CPU where there is none."""
    return torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu")


def on_device(network: torch.nn.Module, device: torch.device | str, compile: bool = False) -> torch.nn.Module:
    """The network on its device; of several processes that train, in PyTorch's wrapper that averages their gradients.

    Args:
        network: moved and compiled in place, so that its weights keep their names.
        device: where to.
        compile: by :func:`torch.compile`, at the first call.
    """
    network = network.to(device)
    if compile:
        network.compile()
    if not (network.training and dist.is_available() and dist.is_initialized()):
        return network
    ids = [torch.device(device)] if torch.device(device).type == "cuda" else None
    return torch.nn.parallel.DistributedDataParallel(network, device_ids=ids)


def start_weights(pretrained: Any, bundle_root: str = ".", **options: Any) -> Any:
    """Weights to start from: a file as it is given, or for ``"shipped"`` the start that comes with the bundle.

    The shipped start is left out, and the log says so, where an option asks for another encoder or there is no such
    file. Options that resize it (image size, patch size, volumes) keep it.

    Args:
        pretrained: a file, ``"shipped"``, or None for none.
        bundle_root: folder of the bundle; the start lies in its ``models/foundation.pt``, or that of the segmentation
            bundle beside it.
        options: of the encoder that is asked for; None stands for "as in the start".
    """
    if pretrained != "shipped":
        return None if pretrained == "null" else pretrained  # MONAI's command line hands the word on
    path = Path(bundle_root, "models", "foundation.pt")
    beside = Path(bundle_root).resolve().parent / "usfm_segmentation" / "models" / "foundation.pt"
    path = beside if beside.is_file() and not path.is_file() else path
    if not path.is_file():
        logger.warning("there is no shipped start at %s: training starts from scratch.", path)
        return None
    network = read_card(path)["network"]
    other = [name for name, value in options.items() if value is not None and value != network.get(name)]
    if other:
        logger.warning("%s: not that of the shipped start, so training starts from scratch.", ", ".join(other))
        return None
    return str(path)


def plan(task: str, pretrained: Any = None, options: Mapping[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """Options of the network that is trained, every one resolved, see :func:`monai_usfm.network_options`.

    UPerNet is trained as USFM has it, with an auxiliary output and 256 channels, unless told otherwise.

    Args:
        task, pretrained: see :func:`monai_usfm.build_network`.
        options: those that the bundle names; None stands for "not given".
        more: others that a user adds, such as ``--plan#width 64``.
    """
    given = {**(options or {}), **more}
    if given.get("head") == "upernet":
        given = {"auxiliary": True, "width": 256, **given}
    return network_options(task, pretrained, **given)


def encoder_of(plan: Mapping[str, Any], pretrained: Any = None) -> torch.nn.Module:
    """The encoder alone, for a network that is put together in a configuration.

    Args:
        plan: options of a network, see :func:`monai_usfm.network_options`.
        pretrained: weights to start from.
    """
    return build_network("encoder", pretrained, **encoder_options(plan))


def encoder_options(plan: Mapping[str, Any]) -> dict[str, Any]:
    """The options in a plan that are those of the encoder."""
    return {name: plan[name] for name in (*ENCODER, *WIDTHS) if name in plan}


def prepare_network(network: torch.nn.Module, freeze_encoder: bool = False, lora_rank: int = 0) -> torch.nn.Module:
    """Tell what was loaded; freeze the encoder, or let it learn low-rank updates alone."""
    report = getattr(network, "load_report", None)
    if report is not None and rank() == 0:
        print(report)
    if freeze_encoder:
        freeze(network)
    if lora_rank:
        apply_lora(network, lora_rank)
    return network


def simulated(spatial_dims: int, image_size: Sequence[int], volumes: int = 8, **more: Any) -> dict[str, Any]:
    """Settings of the images that stand in for a missing ``dataset_dir``, see :func:`write_synthetic_dataset`.

    Args:
        spatial_dims: 2 for 64 training images, 3 for some volumes; a fourth of them for each other split.
        image_size: of each.
        volumes: training volumes.
        more: further settings, or others than these.
    """
    training = volumes if spatial_dims == 3 else 64
    sizes = {"num_training": training, "num_validation": training // 4, "num_test": training // 4}
    return {**sizes, "spatial_dims": spatial_dims, "image_size": list(image_size), **more}


def training_items(items: Sequence[dict[str, Any]], fraction: float = 1.0, seed: int = 0) -> list[dict[str, Any]]:
    """The items, or a :func:`~monai_usfm.data.label_fraction` of them, each with the name of its ``file``."""
    chosen = label_fraction(items, fraction, seed=seed) if fraction != 1 else items
    return [{**item, "file": str(item["image"])} for item in chosen]


def fingerprint(items: Sequence[Mapping[str, Any]]) -> str:
    """Hash of the names of the images, wherever their folder lies: two runs on the same data have the same."""
    names = [os.path.abspath(str(item["image"])) for item in items]
    root = os.path.commonpath(names) if len(names) > 1 else os.path.dirname(names[0])
    text = "\n".join(os.path.relpath(name, root) for name in names)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def preprocessing_of(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How the pixels of training items became network inputs, for the card."""
    white = next((item["full_scale"] for item in items if item.get("full_scale")), None)
    return {"intensity": "gray, 0 to 1", **({"full_scale": float(white)} if white else {})}


def record(training: Dataset, validation: Dataset) -> dict[str, Any]:
    """What ``run.json`` tells of a run, and a resumed one compares: its options and its data."""
    data: Any = training
    sizes = {"training_items": len(data), "validation_items": len(validation)}  # type: ignore[arg-type]
    return {**options(), **sizes, "data": fingerprint(data.data)}


def network_loss(output: Any, target: Any = None) -> torch.Tensor:
    """The loss that a network of pretraining gives itself, of a training step or of a validation."""
    return output.get("pred", output)["loss"]


def lower_is_better(current: float, best: float) -> bool:
    """``metric_cmp_fn`` of an evaluator whose key metric is a loss; MONAI begins with -1."""
    return current < best or best == -1


class FirstChannelLoss(torch.nn.Module):
    """A loss against the first channel of the target, which repeats one gray image for the encoder.

    Args:
        loss: called with prediction and target.
    """

    def __init__(self, loss: torch.nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return self.loss(prediction, target[:, :1])


def training_sampler(dataset: Dataset, seed: int = 0, num_samples: int | None = None) -> Sampler:
    """Each image once in random order, or ``num_samples`` of them.

    Of several processes each takes its part: a step sees the images that one process would see in a batch as large.
    """
    length = len(dataset)  # type: ignore[arg-type]
    return OrganBalancedSampler(["any"] * length, num_samples=num_samples, seed=seed)


def validation_sampler(dataset: Dataset) -> Sampler | None:
    """Of several processes each takes its part; None, every image in order, for one."""
    if dist.is_available() and dist.is_initialized():
        return DistributedSampler(dataset, even_divisible=False, shuffle=False)
    return None


def warmup_cosine(
    optimizer: torch.optim.Optimizer, steps: int, warmup_steps: int = 0, end_lr: float = 1e-6
) -> WarmupCosineSchedule:
    """A linear rise to the peak and a cosine down to ``end_lr``.

    The first step already has a small positive rate, ``1 / (warmup_steps + 1)`` of the peak; a warm-up longer than half
    of the training is cut to that, so that a training of one epoch learns too.
    """
    warmup_steps = int(min(warmup_steps, steps // 2))
    return WarmupCosineSchedule(
        optimizer,
        warmup_steps=warmup_steps,
        t_total=int(steps),
        end_lr=end_lr,
        warmup_multiplier=1 / (warmup_steps + 1),
    )


def window_inferer(size: Sequence[int], batch_size: int = 4, **options: Any) -> Inferer:
    """Windows that overlap by half, blended by Gaussian weights.

    MONAI raises small weights to 0.001: with its narrower default all weights near the edge of an image would be that,
    and seams would show there. Windows that are black all over are computed once, see
    :class:`~monai_usfm.inferers.WindowInferer`.
    """
    return WindowInferer(size, batch_size, overlap=0.5, mode="gaussian", sigma_scale=0.225, **options)


class MixedBatch:
    """``prepare_batch`` that mixes images and their classes with those of the neighbor in the shuffled batch.

    Zhang et al. 2018, https://arxiv.org/abs/1710.09412.

    Args:
        augmentation: ``prepare_batch`` that gives images and class indices.
        num_classes: classes.
        alpha: of the Beta distribution of the share; 0 mixes nothing.
    """

    def __init__(self, augmentation: Any, num_classes: int, alpha: float = 0.0) -> None:
        self.augmentation = augmentation
        self.num_classes = num_classes
        self.alpha = alpha

    def __call__(self, batch: Any, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Images, and class indices or, mixed, shares ``(B, num_classes)``."""
        image, label = self.augmentation(batch, *args, **kwargs)
        if self.alpha <= 0:
            return image, label
        share = float(torch.distributions.Beta(self.alpha, self.alpha).sample())
        numbers = label.is_floating_point()  # what is predicted are no classes
        classes = label if numbers else torch.nn.functional.one_hot(label, self.num_classes).float()
        mixed = [share * x + (1 - share) * x.roll(1, 0) for x in (image, classes)]
        return mixed[0], mixed[1]


def loss_of_head(plan: Mapping[str, Any], pixel_loss: Any) -> Any:
    """The loss that goes with a head: SegViT's own, and for UPerNet's two outputs a weighted sum, as USFM has them.

    Args:
        plan: options of the network, with its ``head``.
        pixel_loss: of all other outputs.
    """
    if plan["head"] == "segvit":
        return ATMLoss()
    return DeepSupervisionLoss(pixel_loss, weights=[1.0, 0.4]) if plan.get("auxiliary") else pixel_loss


class LabeledBatch:
    """``prepare_batch`` of images and one of their labels, unchanged.

    Args:
        label_key: entry of the batch.
    """

    def __init__(self, label_key: str = "label") -> None:
        self.label_key = label_key

    def __call__(
        self, batch: Mapping[str, Any], device: Any = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        image, label = (batch[key].to(device, non_blocking=non_blocking) for key in ("image", self.label_key))
        return image, label


class EnhancementItems:
    """Lists of images, or of recorded pairs under ``image`` (low quality) and ``label`` (high), split by split.

    Args:
        dataset_dir, datalist, synthetic_dir, synthetic, full_scale: see :func:`~monai_usfm.data.load_splits`.
        pairs: whether pairs are wanted.
        input_key: entry of an item that names the low-quality file; None is ``image``, of simulated pairs ``low``.
        target_key: entry that names the high-quality file; None is ``label``, of simulated pairs ``image``.
    """

    def __init__(
        self,
        dataset_dir: str | None,
        datalist: str | None,
        synthetic_dir: str,
        synthetic: Mapping[str, Any],
        pairs: bool = False,
        input_key: str | None = None,
        target_key: str | None = None,
        full_scale: float | None = None,
    ) -> None:
        simulated = not dataset_dir and not datalist
        self.places: dict[str, Any] = {"dataset_dir": dataset_dir, "datalist": datalist}
        self.options: dict[str, Any] = {"synthetic_dir": synthetic_dir, "synthetic": dict(synthetic)}
        self.options["full_scale"] = full_scale
        self.names = {
            "image": input_key or ("low" if simulated else "image"),
            "label": target_key or ("image" if simulated else "label"),
        }
        if not pairs:
            self.names = {"image": "image"}

    def __call__(self, split: str, **others: str | None) -> list[dict[str, Any]]:
        """Items of a split; further names are entries that become others, where they are given."""
        required = tuple(dict.fromkeys(("image", *self.names.values())))
        found = load_splits(**self.places, **self.options, splits=(split,), required=required)[split]
        names = {**self.names, **{name: key for name, key in others.items() if key}}
        return [{**item, **{name: item[key] for name, key in names.items()}} for item in found]


class TrainingSteps:
    """Handlers of each step: seeds of the epoch, guards of loss and gradient, clipping, the schedule.

    The trainer's output becomes a list with one entry, as MONAI's own handlers (MLflow's) expect it; decollating a
    whole batch for that would cost time.

    Args:
        data_loader, seed: see :class:`~monai_usfm.handlers.EpochSeed`.
        lr_scheduler: advanced after every step.
        network, clip_norm: see :class:`~monai_usfm.handlers.GradientClip`.
    """

    def __init__(
        self, data_loader: Any, seed: int, lr_scheduler: Any, network: torch.nn.Module, clip_norm: float
    ) -> None:
        self.handlers: list[Any] = [
            EpochSeed(seed, data_loader, rank()),
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
        resume, resume_anyway: see :class:`~monai_usfm.handlers.ResumableCheckpoint`.
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
    ) -> None:
        self.folder = Path(output_dir)
        self.network, self.optimizer, self.evaluator = network, optimizer, evaluator
        self.writer: SummaryWriter | None = None
        objects = {"network": network, "optimizer": optimizer, "lr_scheduler": lr_scheduler, "best": best}
        plain = self.options = readable(options)
        self.export_path = Path(export_path)
        self.handlers: list[Any] = [
            RunLock(output_dir),
            RunRecord(output_dir, plain),
            MetricsTable(output_dir, optimizer, evaluator),
            ResumableCheckpoint(f"{ckpt_dir}/last.pt", objects, resume, options=plain, resume_anyway=resume_anyway),
            ValidateStart(evaluator, best),
            Progress(name),
            ExportWeights(export_path, network if exported is None else exported, best, last, half=True, card=card),
        ]

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._require_space)
        engine.add_event_handler(Events.STARTED, self._start_mlflow)
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
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise RuntimeError(
                f"the disk of {self.folder} has {free / 1e6:.0f} MB left, and the checkpoints of this network need "
                f"{needed / 1e6:.0f} MB: free some, or give another --output_dir."
            )

    def _open(self, engine: Engine) -> None:
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
            self.writer.add_scalar("train_loss/epoch", loss_of(engine), engine.state.epoch)
            for file in (self.folder / "figures").glob(f"*_epoch_{engine.state.epoch:04d}.png"):
                pixels = np.asarray(Image.open(file).convert("RGB"))
                self.writer.add_image(file.stem.split("_epoch_")[0], pixels, engine.state.epoch, dataformats="HWC")

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
            for file in (*files, *sorted((self.folder / "figures").glob("*.png"))[-1:]):
                if file.is_file():
                    tracker.client.log_artifact(run, str(file))

    def _tell(self, engine: Engine) -> None:
        if self.writer is not None:
            self.writer.close()
        engine.logger.info(f"results of this training: {self.folder}")


def _trackers(engine: Engine) -> list[MLFlowHandler]:
    """MONAI's handlers of MLflow on an engine."""
    owners = [getattr(entry[0], "__self__", None) for entry in engine._event_handlers[Events.COMPLETED]]
    return [owner for owner in owners if isinstance(owner, MLFlowHandler)]
