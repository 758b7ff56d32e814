# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
# mypy: ignore-errors
"""A compact fine-tuning loop with one recipe for every network: what the label-efficiency curves compare.

Everything that could favour a network is shared: images, batches, augmentation, loss, budget and schedule. A network
brings its learning rate, which :func:`choose_learning_rate` selects on the validation split.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from monai.losses import DiceCELoss
from monai.networks import copy_model_state
from monai.networks.nets import UNETR, AttentionUnet, DenseNet121, DynUNet, SegResNet, UNet

from monai_usfm.evaluation.cases import CaseSet, restore_size
from monai_usfm.evaluation.label_efficiency import Cell
from monai_usfm.evaluation.report import file_digest
from monai_usfm.evaluation.scores import classification_scores, overlap_scores
from monai_usfm.inferers import autocast
from monai_usfm.losses import ATMLoss
from monai_usfm.networks.fine_tuning import freeze, layer_decay_groups
from monai_usfm.networks.nets import UltrasoundClassifier, UltrasoundSegmenter
from monai_usfm.networks.nets.vit import UltrasoundViT, usfm_vit_base, usfm_vit_small, usfm_vit_tiny
from monai_usfm.networks.weights import load_pretrained, read_checkpoint

__all__ = ["FineTuning", "NetworkSpec", "Recipe", "augment", "choose_learning_rate", "fine_tune"]

TASKS = ("segmentation", "classification")
ENCODERS: dict[str, Callable[..., UltrasoundViT]] = {
    "usfm_vit_tiny": usfm_vit_tiny,
    "usfm_vit_small": usfm_vit_small,
    "usfm_vit_base": usfm_vit_base,
}


@dataclass(frozen=True)
class NetworkSpec:
    """A network to compare, and how it starts.

    Args:
        network: ``usfm_vit_tiny``, ``usfm_vit_small`` or ``usfm_vit_base`` with the head of the task; MONAI's ``unet``,
            ``attention_unet``, ``segresnet``, ``unetr`` and ``dynunet`` (segmentation) or ``densenet121``
            (classification).
        weights: file that :func:`~monai_usfm.networks.weights.load_pretrained` reads, with the decoder where it has one
            that fits; for MONAI's networks a state dict of the same network, taken but for layers of another shape (the
            last one, for other classes). None starts from scratch.
        learning_rate: at its peak.
        layer_decay: factor on the learning rate from each encoder block to the one before it.
        head: segmentation head, or pooling of the classifier; None is the network's default.
        options: further keywords of the encoder, or of MONAI's network.
        frozen: train the head alone.
        head_options: further keywords of the segmentation head, such as ``width``.
    """

    network: str = "usfm_vit_tiny"
    weights: str | None = None
    learning_rate: float = 5e-4
    layer_decay: float = 1.0
    head: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    frozen: bool = False
    head_options: dict[str, Any] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """The settings as text and numbers, with a digest of the weights, for the table of results."""
        described = asdict(self)
        described["options"] = json.dumps(self.options, sort_keys=True)
        described["weights"] = f"sha256:{file_digest(self.weights)}" if self.weights else ""
        described["head"] = self.head or ""
        if not self.frozen:  # as tables before there was the choice
            del described["frozen"]
        del described["head_options"]
        if self.head_options:
            described["head_options"] = json.dumps(self.head_options, sort_keys=True)
        return described

    def build(self, task: str, num_classes: int, size: Sequence[int], in_channels: int = 1) -> nn.Module:
        """The network for images ``(B, in_channels, *size)``, weights loaded.

        Raises:
            ValueError: for a network that the task does not have, or weights of another network.
        """
        dims = len(size)
        if self.network in ENCODERS:
            settings = {"img_size": size, "in_channels": in_channels, "spatial_dims": dims, **self.options}
            encoder = ENCODERS[self.network](**settings)
            net: nn.Module
            if task == "segmentation":
                segmentation: dict[str, Any] = {"head": self.head} if self.head else {}
                net = UltrasoundSegmenter(encoder, num_classes, **segmentation, **self.head_options)
            else:
                classification: dict[str, Any] = {"pool": self.head} if self.head else {}
                net = UltrasoundClassifier(encoder, num_classes, **classification)
            if self.weights:
                load_pretrained(net, self.weights)
            return freeze(net) if self.frozen else net
        builders = _monai_networks(task)
        if self.network not in builders:
            names = ", ".join([*ENCODERS, *builders])
            raise ValueError(f"no network {self.network!r} for {task}; choose one of {names}.")
        if self.frozen:
            raise ValueError(f"{self.network!r} has no encoder of this package to freeze.")
        net = builders[self.network](dims, in_channels, num_classes, tuple(size), self.options)
        if self.weights:
            state = read_checkpoint(self.weights)
            if set(state) != set(net.state_dict()):
                raise ValueError(f"{self.weights} holds weights of another network than {self.network!r}.")
            copy_model_state(net, state)  # leaves layers of another shape alone
        return net


@dataclass(frozen=True)
class Recipe:
    """What every network gets alike.

    Args:
        steps: optimiser steps; with ``seconds`` the largest number of them.
        seconds: training time per cell, evaluation not counted, for comparisons at equal time; None has no limit. On a
            CPU it is the computing time of the training thread, which other work on the machine does not shorten.
        batch_size: images per step.
        evaluations: times the validation split is scored; the best weights are kept.
        weight_decay: of all weights with two or more dimensions.
        amp: bfloat16 autocast.
    """

    steps: int = 400
    seconds: float | None = None
    batch_size: int = 16
    evaluations: int = 5
    weight_decay: float = 0.05
    amp: bool = False


class FineTuning:
    """The cell of a label-efficiency table: fine-tune one network on one fraction with one seed, score the test split.

    Pass it to :func:`~monai_usfm.evaluation.label_efficiency.run_label_efficiency` as ``train_fn``. The validation
    split selects the weights; the test split is only scored, once, at the size of its files.

    Args:
        task: ``"segmentation"`` or ``"classification"``.
        train: training split.
        validation: validation split.
        test: test split.
        subsets: fraction -> indices into ``train``.
        networks: name in the table -> network.
        num_classes: classes, with background in segmentation.
        recipe: shared settings.
        device: where to train.

    Raises:
        ValueError: for an unknown task, a split without what the task needs, or a patient in two splits.
    """

    def __init__(
        self,
        task: str,
        train: CaseSet,
        validation: CaseSet,
        test: CaseSet,
        subsets: Mapping[float, Sequence[int]],
        networks: Mapping[str, NetworkSpec],
        num_classes: int = 2,
        recipe: Recipe | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if task not in TASKS:
            raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}.")
        splits = {"training": train, "validation": validation, "test": test}
        for name, cases in splits.items():
            if (cases.labels if task == "segmentation" else cases.classes) is None:
                wanted = "label maps" if task == "segmentation" else "classes: every item needs an integer 'class'"
                raise ValueError(f"the {name} split has no {wanted}.")
            if task == "classification" and not 0 <= int(cases.classes.min()) <= int(cases.classes.max()) < num_classes:
                wrong = int(((cases.classes < 0) | (cases.classes >= num_classes)).int().argmax())
                raise ValueError(
                    f"{cases.names[wrong]}: class {int(cases.classes[wrong])} is outside the {num_classes} classes; "
                    "correct the datalist or num_classes."
                )
            for other, others in splits.items():
                shared = sorted(set(map(str, cases.patients)) & set(map(str, others.patients)))  # 1 and "1" are one
                if name != other and shared:
                    raise ValueError(f"{len(shared)} patients are in {name} and {other}, for example {shared[0]}.")
        self.task, self.train, self.validation, self.test = task, train, validation, test
        self.subsets, self.networks = dict(subsets), dict(networks)
        self.num_classes, self.recipe, self.device = num_classes, recipe or Recipe(), torch.device(device)

    def conditions(self) -> dict[str, Any]:
        """Settings shared by all cells, for the table of results."""
        return {
            "task": self.task,
            "size": "x".join(map(str, self.train.images.shape[2:])),
            "num_classes": self.num_classes,
            "training_images": len(self.train),
            "validation_images": len(self.validation),
            "test_images": len(self.test),
            "test_patients": len(set(self.test.patients)),
            **{("max_steps" if k == "steps" else k): ("" if v is None else v) for k, v in asdict(self.recipe).items()},
        }

    def describe(self) -> dict[str, dict[str, Any]]:
        """Settings of each network, for the table of results."""
        return {name: spec.describe() for name, spec in self.networks.items()}

    def __call__(self, fraction: float, seed: int, initialisation: str) -> Cell:
        rows = list(self.subsets[fraction])
        net, history = self.fit(rows, seed, self.networks[initialisation])
        metrics, cases = self._score(net)
        details = {
            "images": len(rows),
            "patients": len({self.train.patients[i] for i in rows}),
            "parameters": sum(p.numel() for p in net.parameters()),
            **history,
        }
        return Cell(metrics=metrics, cases=cases, details=details)

    def fit(self, rows: Sequence[int], seed: int, spec: NetworkSpec) -> tuple[nn.Module, dict[str, float]]:
        """Train on some rows of the training split; the network with its best weights, and what happened."""
        # initial weights, dropout and drop path draw from the global state; manual_seed seeds every device
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            net = spec.build(self.task, self.num_classes, self.train.images.shape[2:], self.train.images.shape[1])
            net.to(self.device)
            history = fine_tune(net, self.task, self.train, rows, self.validation, self.recipe, spec, seed)
        return net, history

    def _score(self, net: nn.Module) -> tuple[dict[str, float], dict[str, list[Any]]]:
        cases: dict[str, list[Any]] = {"name": [Path(name).name for name in self.test.names]}
        cases["patient"] = list(self.test.patients)
        if self.task == "classification":
            assert self.test.classes is not None  # checked on construction
            logits = torch.cat(list(predict(net, self.test, self.recipe.amp)))
            probabilities = torch.softmax(logits.double(), dim=1)
            cases["label"] = self.test.classes.tolist()
            cases.update({f"probability_{c}": probabilities[:, c].tolist() for c in range(self.num_classes)})
            return classification_scores(probabilities, self.test.classes), cases
        assert self.test.truths is not None
        scores = []
        truths = iter(self.test.truths)
        for batch in predict(net, self.test, self.recipe.amp):
            for logits in batch:
                truth = next(truths)
                found = restore_size(torch.softmax(logits, dim=0), truth.shape).argmax(dim=0)
                scores.append(overlap_scores(found, truth, self.num_classes))
        cases.update({name: [score[name] for score in scores] for name in scores[0]})
        return {name: sum(cases[name]) / len(scores) for name in scores[0]}, cases


def choose_learning_rate(
    tuning: FineTuning, spec: NetworkSpec, fraction: float, candidates: Sequence[float], seed: int = 0
) -> tuple[float, dict[float, float]]:
    """The learning rate with the best validation score at one fraction and seed; the test split is not looked at.

    Returns:
        The learning rate, and the validation score of each.
    """
    if fraction not in tuning.subsets:
        known = ", ".join(f"{f:g}" for f in tuning.subsets)
        raise ValueError(f"rates are tuned on a fraction of the comparison ({known}), got {fraction:g}.")
    scores = {}
    for rate in candidates:
        candidate = NetworkSpec(**{**asdict(spec), "learning_rate": rate})
        try:
            scores[rate] = tuning.fit(list(tuning.subsets[fraction]), seed, candidate)[1]["validation_score"]
        except FloatingPointError:  # too high a rate: another one wins
            scores[rate] = -math.inf
    if max(scores.values()) == -math.inf:
        raise FloatingPointError(f"{spec.network} diverges at every rate of {list(candidates)}; try lower ones.")
    return max(scores, key=scores.__getitem__), scores


def fine_tune(
    net: nn.Module,
    task: str,
    train: CaseSet,
    rows: Sequence[int],
    validation: CaseSet,
    recipe: Recipe,
    spec: NetworkSpec,
    seed: int = 0,
) -> dict[str, float]:
    """Train ``net`` in place and leave it with the weights that were best on the validation split.

    AdamW with linear warm-up over the first 5 % of the budget and cosine decay to zero. The order of images and their
    augmentation depend on ``seed`` alone, so that every network sees the same batches.

    Returns:
        ``steps`` done, ``best_step``, its ``validation_score`` (mean Dice or macro-F1), ``final_loss`` and
        ``seconds`` of training.
    """
    device = next(net.parameters()).device
    images = train.images[list(rows)].to(device)
    target = (train.labels if task == "segmentation" else train.classes)[list(rows)].to(device)  # type: ignore[index]
    several = spec.head == "segvit"  # its list in training mode is for ATMLoss alone; others give one output or more
    loss_of = F.cross_entropy if task == "classification" else ATMLoss() if several else _segmentation_loss()
    optimizer = torch.optim.AdamW(
        layer_decay_groups(net, spec.learning_rate, recipe.weight_decay, spec.layer_decay), fused=True
    )
    peaks = [group["lr"] for group in optimizer.param_groups]
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    best, best_step, weights = -math.inf, 0, {}
    marks = [(i + 1) / recipe.evaluations for i in range(recipe.evaluations)]
    spent, step, loss = 0.0, 0, torch.zeros(())
    progress = 0.0
    clock = time.thread_time if device.type == "cpu" else time.perf_counter
    net.train()
    while progress < 1.0:
        started = clock()
        while len(order) < recipe.batch_size:
            order += torch.randperm(len(images), generator=generator).tolist()
        batch, order = order[: recipe.batch_size], order[recipe.batch_size :]
        x = images[batch].float().div_(255)
        y = target[batch].long()
        x, moved = augment(x, y if task == "segmentation" else None, generator)
        y = y if moved is None else moved
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * min(1.0, (progress + 1e-3) / 0.05) * 0.5 * (1 + math.cos(math.pi * progress))
        with autocast(device, torch.bfloat16 if recipe.amp else None, x.dim() - 2):
            outputs = net(x)
        if several:
            loss = loss_of([output.float() for output in outputs], y.unsqueeze(1))
        else:
            outputs = outputs if isinstance(outputs, list | tuple) else [outputs]
            loss = torch.stack([loss_of(output.float(), y) for output in outputs]).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 3.0)
        optimizer.step()
        step += 1
        spent += clock() - started
        progress = max(step / recipe.steps, spent / recipe.seconds if recipe.seconds else 0.0)
        if progress >= marks[0] - 1e-9:
            marks = [m for m in marks if m > progress + 1e-9]
            score = _validation_score(net, task, validation, recipe.amp)
            if score > best:
                best, best_step = score, step
                weights = {k: v.detach().clone() for k, v in net.state_dict().items()}
            net.train()
            if not marks:
                break
    if not math.isfinite(loss.item()):
        raise FloatingPointError(f"the loss of {spec.network} became {loss.item()}; lower its learning rate.")
    net.load_state_dict(weights)
    net.eval()
    return {
        "steps": step,
        "best_step": best_step,
        "validation_score": best,
        "final_loss": loss.item(),
        "seconds": round(spent, 2),
    }


def augment(
    images: torch.Tensor, labels: torch.Tensor | None, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Mirror, rotate (15°), scale (0.8 to 1.25), shift (10 %), gamma, contrast and brightness, one draw per image.

    Args:
        images: ``(B, C, *S)`` in [0, 1].
        labels: class indices ``(B, *S)``, moved along with nearest-neighbour sampling; or None.
        generator: source of the draws, on the CPU.

    Returns:
        New images, in [0, 1], and new labels.
    """
    batch, dims = len(images), images.ndim - 2
    draw = (2 * torch.rand(6 + dims, batch, generator=generator) - 1).to(images.device)
    angle, scale = draw[0] * math.radians(15), 1.25 ** draw[1]
    mirror = torch.where(draw[2] < 0, -1.0, 1.0)
    aspect = images.shape[-2] / images.shape[-1]  # the grid is normalised per axis, a rotation is not
    theta = torch.zeros(batch, dims, dims + 1, device=images.device)
    theta[:, range(dims), range(dims)] = 1.0
    theta[:, 0, 0], theta[:, 0, 1] = mirror * angle.cos(), -angle.sin() * aspect
    theta[:, 1, 0], theta[:, 1, 1] = mirror * angle.sin() / aspect, angle.cos()
    theta = theta / scale[:, None, None]
    theta[:, :, dims] = 0.2 * draw[6:].T  # 10 % of the width is 0.2 of the range [-1, 1]
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    shape = (batch,) + (1,) * (images.ndim - 1)
    gamma, contrast, brightness = 1.5 ** draw[3], 1 + 0.2 * draw[4], 0.05 * draw[5]
    moved = moved.clamp(0, 1) ** gamma.reshape(shape) * contrast.reshape(shape)
    inside = moved > 0  # the black around the image stays black
    moved = torch.where(inside, moved + brightness.reshape(shape), moved).clamp(0, 1)
    if labels is None:
        return moved, None
    placed = F.grid_sample(labels[:, None].float(), grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return moved, placed[:, 0].round().to(labels.dtype)


@torch.no_grad()
def predict(net: nn.Module, cases: CaseSet, amp: bool = False, batch_size: int = 32) -> Any:
    """Yield float32 logits on the CPU, batch by batch."""
    device = next(net.parameters()).device
    net.eval()
    for images in cases.images.split(batch_size):
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=amp):
            output = net(images.to(device).float().div_(255))
        yield output.float().cpu()


def _segmentation_loss() -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    loss = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True)

    def of(output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if output.shape[2:] != labels.shape[1:]:  # deep supervision at a lower resolution
            mode = "bilinear" if output.ndim == 4 else "trilinear"
            output = F.interpolate(output, size=labels.shape[1:], mode=mode, align_corners=False)
        return loss(output, labels[:, None])

    return of


def _validation_score(net: nn.Module, task: str, cases: CaseSet, amp: bool) -> float:
    if task == "classification":
        assert cases.classes is not None
        logits = torch.cat(list(predict(net, cases, amp)))
        return classification_scores(torch.softmax(logits.double(), dim=1), cases.classes)["macro_f1"]
    assert cases.labels is not None
    scores = []
    labels = iter(cases.labels)
    for logits in predict(net, cases, amp):
        for found in logits.argmax(dim=1):
            scores.append(overlap_scores(found, next(labels), logits.shape[1])["dice"])
    return sum(scores) / len(scores)


def _monai_networks(task: str) -> dict[str, Callable[..., nn.Module]]:
    """Name -> builder (spatial_dims, in_channels, num_classes, size, options) of MONAI's network, usual settings."""
    if task == "classification":
        return {"densenet121": lambda d, i, k, s, o: DenseNet121(d, i, k, **o)}
    levels = {"channels": (16, 32, 64, 128, 256), "strides": (2, 2, 2, 2)}
    nested = {"kernel_size": [3] * 5, "strides": [1, 2, 2, 2, 2], "upsample_kernel_size": [2] * 4}
    vit = {"hidden_size": 192, "mlp_dim": 768, "num_heads": 3}  # the size of our smallest encoder
    return {
        "unet": lambda d, i, k, s, o: UNet(d, i, k, **{**levels, "num_res_units": 2, **o}),
        "attention_unet": lambda d, i, k, s, o: AttentionUnet(d, i, k, **{**levels, **o}),
        "segresnet": lambda d, i, k, s, o: SegResNet(d, in_channels=i, out_channels=k, **{"init_filters": 16, **o}),
        "unetr": lambda d, i, k, s, o: UNETR(i, k, s, spatial_dims=d, **{**vit, **o}),
        "dynunet": lambda d, i, k, s, o: DynUNet(d, i, k, **{**nested, **o}),
    }
