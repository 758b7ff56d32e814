# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Gives a trained network the encoder of another start by distillation: its decoder stays, and so do its scores.

    python scripts/change_start.py NETWORK.pt START.pt DATA_FOLDER DATALIST.json OUT.pt [--steps 320]

A pyramid decoder takes the sum of four mapped blocks from its encoder and nothing else. The encoder of the start learns
that sum, first by least squares of the maps alone, then with everything, on augmented training images, without labels.
About six minutes of one CPU core with bf16 instructions.
"""

import argparse
import math
from collections.abc import Callable

import torch
from monai.data import Dataset
from monai.transforms import Compose
from torch import nn

import monai_usfm
from monai_usfm.data import LoadUltrasoundd, load_splits
from monai_usfm.networks.heads import PyramidDecoder
from monai_usfm.transforms import BatchAugmentation, SeparableResized


def decoder_of(network: nn.Module) -> PyramidDecoder:
    return next(module for module in network.modules() if isinstance(module, PyramidDecoder))


def taken(network: nn.Module, image: torch.Tensor) -> torch.Tensor:
    """What the decoder takes from the encoder: ``(B, C, *S) -> (B, width, *grid)``."""
    maps = network.encoder.forward_intermediates(image, network.indices)
    return sum(project(m).float() for project, m in zip(decoder_of(network).maps, maps, strict=True))


def batches(images: list[torch.Tensor], size: list[int], count: int = 32) -> Callable[[], torch.Tensor]:
    """Draws augmented batches."""
    augmentation = BatchAugmentation(size, scale=(0.4, 1.0), rotate=15.0, gamma=1.5, shrink_prob=0.3)

    def draw() -> torch.Tensor:
        chosen = [images[i] for i in torch.randint(len(images), (count,)).tolist()]
        x = augmentation.augment(torch.stack(chosen))[0]
        gain = 1 + 0.3 * (2 * torch.rand(count, 1, 1, 1) - 1)
        speckle = 0.08 * (torch.rand(count, 1, 1, 1) < 0.2) * torch.randn_like(x)
        return (x * (gain + speckle)).clamp(0, 1)

    return draw


def fit_maps(network: nn.Module, image: torch.Tensor, target: torch.Tensor, ridge: float = 0.003) -> None:
    """Least squares of the decoder's linear maps for the encoder as it is."""
    with torch.autocast("cpu", torch.bfloat16):
        maps = network.encoder.forward_intermediates(image, network.indices)
    width = maps[0].shape[1]
    tokens = [nn.functional.layer_norm(m.float().movedim(1, -1), [width], eps=1e-6) for m in maps]
    x, y = torch.cat(tokens, -1).flatten(0, -2), target.movedim(1, -1).flatten(0, -2)
    mean = y.mean(0)
    weight = torch.linalg.solve(x.T @ x + ridge * len(x) * torch.eye(x.shape[1]), x.T @ (y - mean)).T
    for k, project in enumerate(decoder_of(network).maps):
        nn.init.ones_(project.norm.weight)
        nn.init.zeros_(project.norm.bias)
        project.proj.weight.copy_(weight[:, k * width : (k + 1) * width])
        project.proj.bias.copy_(mean if k == 0 else torch.zeros_like(mean))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("network", "start", "dataset_dir", "datalist", "out"):
        parser.add_argument(name)
    parser.add_argument("--steps", type=int, default=320)
    parser.add_argument("--learning_rate", type=float, default=0.0008)
    options = parser.parse_args()
    torch.manual_seed(0)
    teacher = monai_usfm.load_network(options.network)
    task, known = teacher.card["task"], dict(teacher.card["network"])
    for name in ("network_size", "pos_embed", "layer_scale"):  # these are the start's
        known.pop(name, None)
    student = monai_usfm.build_network(task, options.start, **known)
    own = {name: value for name, value in teacher.state_dict().items() if not name.startswith("encoder.")}
    kept = student.load_state_dict(own, strict=False)
    if kept.unexpected_keys or any(not name.startswith("encoder.") for name in kept.missing_keys):
        raise ValueError(f"{options.network} has another head than its card says: {kept}")
    size = list(known["spatial_size"])
    stored = [round(1.1 * n) for n in size]
    load = [LoadUltrasoundd("image"), SeparableResized("image", stored, mode="bilinear", anti_aliasing=True)]
    items = [
        {"image": item["image"]}
        for item in load_splits(options.dataset_dir, options.datalist, synthetic_dir=None)["training"]
    ]
    read = Dataset(items, Compose(load))
    images = [(255 * read[i]["image"].as_tensor()).round().to(torch.uint8) for i in range(len(read))]
    draw = batches(images, size)

    def autocast() -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16)

    with torch.no_grad(), autocast():
        first = torch.cat([draw() for _ in range(6)])
        target = torch.cat([taken(teacher, part) for part in first.split(32)])
    scale = target.std((0, 2, 3), keepdim=True)
    with torch.no_grad():
        fit_maps(student, first, target)
    encoder = list(student.encoder.parameters())
    maps = list(decoder_of(student).maps.parameters())
    groups = [
        {"params": [p for p in encoder if p.dim() > 1], "weight_decay": 0.02, "factor": 1.0},
        {"params": [p for p in encoder if p.dim() <= 1], "weight_decay": 0.0, "factor": 1.0},
        {"params": maps, "weight_decay": 0.0, "factor": 2.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.98), fused=True)
    for step in range(options.steps):
        rate = options.learning_rate * min(1.0, (step + 1) / 40) * 0.5 * (1 + math.cos(math.pi * step / options.steps))
        for group in optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        image = draw()
        with autocast():
            with torch.no_grad():
                target = taken(teacher, image)
            answer = taken(student, image)
        loss = nn.functional.smooth_l1_loss(answer / scale, target / scale)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_([*encoder, *maps], 5.0)
        optimizer.step()
        if step % 20 == 19:
            rest = 1 - float(((answer.detach() - target).var((0, 2, 3)) / target.var((0, 2, 3))).mean())
            print(f"step {step + 1}: loss {float(loss.detach()):.4f}, variance explained {rest:.3f}", flush=True)
    student.eval()
    card = {k: v for k, v in teacher.card.items() if k not in ("network", "scores", "recipe", "sha256", "card_version")}
    monai_usfm.save_network(options.out, student, **card)


if __name__ == "__main__":
    main()
