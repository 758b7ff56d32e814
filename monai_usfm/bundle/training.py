# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""What the trainings of the four bundles have in common: processes, networks to start from, losses, schedules."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from monai.inferers import Inferer
from monai.losses import DeepSupervisionLoss
from monai.optimizers import WarmupCosineSchedule
from torch.nn.utils import parametrize

from monai_usfm.cards import build_network, find_card, network_options, read_card
from monai_usfm.handlers import shard
from monai_usfm.inferers import WindowInferer
from monai_usfm.losses import ATMLoss, HeatmapLoss
from monai_usfm.networks import apply_lora, freeze
from monai_usfm.networks.blocks import TransformerBlock
from monai_usfm.networks.weights import read_checkpoint
from monai_usfm.transforms import PROMPTS
from monai_usfm.workflow import find_bundle

__all__ = [
    "default_device",
    "first_channel_loss",
    "load_whole",
    "loss_of_head",
    "lower_is_better",
    "network_loss",
    "on_device",
    "plan",
    "prepare_network",
    "prompted_network",
    "rank",
    "start_weights",
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


def on_device(
    network: torch.nn.Module,
    device: torch.device | str,
    compile: bool = False,
    use_checkpoint: bool = False,
    sharded: bool = False,
) -> torch.nn.Module:
    """The network on its device; of several processes that train, in PyTorch's wrapper that averages their gradients.

    Args:
        network: moved and compiled in place, so that its weights keep their names.
        device: where to.
        compile: by :func:`torch.compile`, at the first call.
        use_checkpoint: of all transformer blocks, see :class:`~monai_usfm.networks.blocks.TransformerBlock`.
        sharded: of several processes each keeps a part of the weights, see :func:`~monai_usfm.handlers.shard`.

    Raises:
        ValueError: for low-rank updates of a network that is spread, which could not be merged.
    """
    network = network.to(device)
    for block in network.modules():
        if isinstance(block, TransformerBlock):
            block.use_checkpoint = use_checkpoint
    partial = getattr(network, "partial", False)
    if partial:  # cuDNN would search its algorithms for every number of images of a part
        torch.backends.cudnn.benchmark = False
    if compile:
        network.compile()
    if not (network.training and dist.is_available() and dist.is_initialized()):
        return network
    if sharded:
        if any(parametrize.is_parametrized(module) for module in network.modules()):
            raise ValueError("--sharded true does not go with --lora_rank, which needs little memory: leave one out.")
        return shard(network)
    ids = [torch.device(device)] if torch.device(device).type == "cuda" else None
    return torch.nn.parallel.DistributedDataParallel(network, device_ids=ids, find_unused_parameters=partial)


def start_weights(pretrained: Any, bundle_root: str = ".", **options: Any) -> Any:
    """Weights to start from: a file as it is given, or for ``"shipped"`` the start that comes with the bundle.

    The shipped start is left out, and the log says so, where an option asks for another encoder or there is no such
    file. Options that resize it (image size, patch size, volumes) keep it.

    Args:
        pretrained: a file, ``"shipped"``, or None for none.
        bundle_root: folder of the bundle, see :func:`start_file`.
        options: of the encoder that is asked for; None stands for "as in the start".
    """
    if pretrained != "shipped":
        return None if pretrained == "null" else pretrained  # MONAI's command line hands the word on
    path = start_file(bundle_root)
    if not path.is_file():
        logger.warning("there is no shipped start at %s: training starts from scratch.", path)
        return None
    network = read_card(path)["network"]
    other = [name for name, value in options.items() if value is not None and value != network.get(name)]
    if other:
        logger.warning("%s: not that of the shipped start, so training starts from scratch.", ", ".join(other))
        return None
    return str(path)


def start_file(bundle_root: str | os.PathLike) -> Path:
    """The start that comes with a bundle: its own ``models/foundation.pt``, which a packed one has, or else the
    ``models/model.pt`` of ``usfm_pretraining``, beside it or in the package."""
    own = Path(bundle_root, "models", "foundation.pt")
    beside = Path(bundle_root).resolve().parent / "usfm_pretraining" / "models" / "model.pt"
    for file in (own, beside):
        if file.is_file():
            return file
    package = find_bundle("pretraining") / "models" / "model.pt"
    return package if package.is_file() else beside


def load_whole(network: torch.nn.Module, checkpoint: str | os.PathLike) -> None:
    """Load a checkpoint of pretraining, which holds more than the encoder.

    Raises:
        ValueError: for exported weights, which lack the layers that reconstruct.
    """
    if find_card(checkpoint) is not None:
        raise ValueError(
            f"{checkpoint}: exported weights hold no layers of their pretraining; name best.pt in the folder "
            "checkpoints of the training. What the encoder is worth, monai-usfm probe tells."
        )
    state = read_checkpoint(checkpoint)
    network.load_state_dict(state.get("network", state))


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


def prepare_network(network: torch.nn.Module, freeze_encoder: bool = False, lora_rank: int = 0) -> torch.nn.Module:
    """Freeze the encoder, or let it learn low-rank updates alone."""
    if freeze_encoder:
        freeze(network)
    if lora_rank:
        apply_lora(network, lora_rank)
    return network


def prompted_network(pretrained: Any, plan: Mapping[str, Any], **options: Any) -> torch.nn.Module:
    """A segmentation whose image has channels of prompts, which at first change nothing that ``pretrained`` gives.

    Args:
        pretrained: weights to start from, of gray images or of such a network; None for none.
        plan: options of the network, with the ``in_channels`` of both.
        options: further ones.
    """
    options["prompts"], start = PROMPTS, plan["in_channels"]
    if pretrained:
        start = network_options("segmentation", pretrained, prompts=PROMPTS)["in_channels"]
    network: Any = build_network("segmentation", pretrained, **{**plan, "in_channels": start}, **options)
    if start == plan["in_channels"]:
        return network
    wide: Any = build_network("segmentation", **plan, **options)
    with torch.no_grad():
        for into, weight in zip(wide.state_dict().values(), network.state_dict().values(), strict=True):
            into.zero_()[tuple(slice(n) for n in weight.shape)] = weight
    wide.load_report, wide.card = network.load_report, {**network.card, **wide.card}
    return wide


def network_loss(output: Any, target: Any = None) -> torch.Tensor:
    """The loss that a network of pretraining gives itself, of a training step or of a validation."""
    return output.get("pred", output)["loss"]


def lower_is_better(current: float, best: float) -> bool:
    """``metric_cmp_fn`` of an evaluator whose key metric is a loss; MONAI begins with -1."""
    return current < best or best == -1


def first_channel_loss(prediction: torch.Tensor, target: torch.Tensor, loss: Callable) -> torch.Tensor:
    """A loss against the first channel of the target, which repeats one gray image for the encoder."""
    return loss(prediction, target[:, :1])


def warmup_cosine(
    optimizer: torch.optim.Optimizer, steps: int, warmup_steps: int = 0, end_lr: float = 1e-6
) -> WarmupCosineSchedule:
    """A linear rise to the peak and a cosine down to ``end_lr``.

    The first step already has a small positive rate, ``1 / (warmup_steps + 1)`` of the peak; a warm-up longer than half
    of the training is cut to that, so that a training of one epoch learns too, and the log says so.
    """
    if warmup_steps > steps // 2:
        logger.info("a warm-up of %d of %d steps is cut to half of the training.", warmup_steps, steps)
        warmup_steps = steps // 2
    return WarmupCosineSchedule(
        optimizer,
        warmup_steps=int(warmup_steps),
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


def loss_of_head(plan: Mapping[str, Any], pixel_loss: Any) -> Any:
    """The loss that goes with a head: SegViT's own, and for UPerNet's two outputs a weighted sum, as USFM has them.

    Args:
        plan: options of the network, with its ``head``.
        pixel_loss: of all other outputs.

    Raises:
        ValueError: for landmarks by SegViT, whose loss is one of classes.
    """
    if plan["head"] == "segvit":
        if isinstance(pixel_loss, HeatmapLoss):
            raise ValueError("--head segvit learns classes and finds no landmarks: choose pyramid or upernet.")
        return ATMLoss()
    return DeepSupervisionLoss(pixel_loss, weights=[1.0, 0.4]) if plan.get("auxiliary") else pixel_loss
