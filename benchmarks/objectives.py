# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Objectives beside the joint pretraining: ``python benchmarks/objectives.py UNLABELED.json SIMULATED.json OUTPUT``.

Each objective continues the same joint training (segmentation of simulated images, restoration of unlabeled ones) from
the same start, on the same images in the same order; ``control`` has none. It writes ``OUTPUT/<objective>.pt``, which
``monai-usfm probe`` and ``monai-usfm transfer-board`` judge.

- ``texture``: statistics of each patch (``FoundationModel(texture_weight=...)``).
- ``tree``: the organ and its region of the body from the mean token (:class:`OrganTree`).
- ``contrastive``: two views of an image among all others, by MONAI's ``ContrastiveLoss``. It costs a second pass.
- ``sequence``: the same with a view of another frame of the sequence, where there is one.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import torch
import torch.nn as nn
from monai.losses import ContrastiveLoss

from monai_usfm import build_network, save_network
from monai_usfm.bundle import warmup_cosine
from monai_usfm.data import joint_classes, joint_splits, joint_weights
from monai_usfm.evaluation.images import load_images
from monai_usfm.networks import FoundationModel, layer_decay_groups
from monai_usfm.transforms import BatchAppearance, BatchAugmentation

REGIONS = {
    "fetus": ("fetal head",),
    "abdomen": ("liver", "kidney", "gallbladder", "bladder", "prostate"),
    "chest": ("lung",),
    "superficial": ("breast", "thyroid", "eye"),
    "limb": ("muscle", "bone", "nerve"),
}
WEIGHTS = {"control": 0.0, "texture": 1.0, "tree": 0.3, "contrastive": 0.3, "sequence": 0.3}


class OrganTree(nn.Module):
    """Cross-entropy of the organ plus that of its region, whose probability is the sum over its organs."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.places = {organ: place for place, organ in enumerate(o for organs in REGIONS.values() for o in organs)}
        self.regions = torch.tensor([number for number, organs in enumerate(REGIONS.values()) for _ in organs])
        self.to_organs = nn.Linear(width, len(self.places))

    def forward(self, features: torch.Tensor, organ: torch.Tensor) -> torch.Tensor:
        """Features ``(B, E)`` and organs ``(B,)``, -1 for one that is not in the tree; a scalar."""
        known = (organ >= 0).nonzero().flatten()
        log = self.to_organs(features[known]).float().log_softmax(1)
        same = self.regions == self.regions[organ[known], None]
        region = log.masked_fill(~same, -torch.inf).logsumexp(1)
        return -(log.gather(1, organ[known, None])[:, 0] + region).sum() / max(len(known), 1)


def train(
    name: str, images: list[torch.Tensor], items: list[dict], classes: dict, options: argparse.Namespace
) -> float:
    """Train by one objective and save the network; the seconds of processor time."""
    torch.manual_seed(options.seed)
    random.seed(options.seed)
    size = [options.size] * 2
    network = build_network("segmentation", options.pretrained, spatial_size=size)
    network.encoder.norm.requires_grad_(True)  # as the probes read it
    width = network.encoder.hidden_size
    texture = WEIGHTS[name] if name == "texture" else 0.0
    model = FoundationModel(network, classes, restoration_weight=1.0, texture_weight=texture).train()
    model.tree = OrganTree(width)
    model.project = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 64))
    seen: list[torch.Tensor] = []  # tokens of the joint pass: no objective but the contrastive one needs another

    def mean_token(maps: list[torch.Tensor]) -> torch.Tensor:
        return network.encoder.norm(maps[-1].flatten(2).transpose(1, 2)).mean(1)

    network.head.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(mean_token(inputs[1])))
    optimizer = torch.optim.AdamW(layer_decay_groups(model, options.learning_rate, 0.05, 0.85), betas=(0.9, 0.95))
    schedule = warmup_cosine(optimizer, options.steps, options.steps // 10)
    augment = BatchAugmentation(size, scale=(0.5, 1.0), rotate=15.0, gamma=1.5, shrink_prob=0.2)
    appear, contrast = BatchAppearance(), ContrastiveLoss(0.2)
    draws = torch.Generator().manual_seed(options.seed)
    weights = joint_weights(items, {"simulated": 0.5, "unlabeled": 0.5}, 0.3)
    organs = torch.tensor([model.tree.places.get(item["organ"].replace("_", " "), -1) for item in items])
    datasets = torch.tensor([item["dataset"] for item in items])
    frames: dict[tuple[str, str], list[int]] = {}
    for row, item in enumerate(items):
        sequence = item.get("sequence") if name == "sequence" else None
        frames.setdefault((item["part"], str(sequence or item["image"])), []).append(row)
    others = {row: [r for r in group if r != row] or [row] for group in frames.values() for row in group}
    begin = time.process_time()
    for step in range(options.steps):
        rows = torch.multinomial(weights, options.batch_size, generator=draws)
        image, label = (torch.stack([part[row] for row in rows.tolist()]) for part in images)
        dataset = datasets[rows]
        torch.manual_seed(1000 * options.seed + step)  # the same views for every objective
        view, moved = augment.augment(image, label)
        view = appear(view, (dataset >= 0).nonzero().flatten(), (dataset < 0).nonzero().flatten())
        seen.clear()
        with torch.autocast("cpu", torch.bfloat16):
            out = model(view, moved, dataset)
            loss = out["loss"]
            if name == "tree":
                loss = loss + WEIGHTS[name] * model.tree(seen[0], organs[rows])
            if name in ("contrastive", "sequence"):
                chosen = [images[0][random.choice(others[row])] for row in rows.tolist()]
                other = appear.appearance(augment.augment(torch.stack(chosen))[0])
                second = mean_token(network.encoder.forward_intermediates(other, network.indices))
                pair = (model.project(features).float() for features in (seen[0], second))
                loss = loss + WEIGHTS[name] * contrast(*pair)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        if step % 25 == 0 or step == options.steps - 1:
            parts = {key: round(float(out[key]), 3) for key in ("segmentation", "restoration", "texture") if key in out}
            print(f"{name} {step}: loss {loss.item():.3f} {parts}", flush=True)
    save_network(options.output / f"{name}.pt", network.eval())
    return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("unlabeled", help="datalist with organs")
    parser.add_argument("simulated", help="datalist with labels of two classes and organs")
    parser.add_argument("output", type=Path)
    parser.add_argument("--objectives", nargs="*", default=list(WEIGHTS), choices=list(WEIGHTS))
    parser.add_argument("--pretrained", default="bundles/usfm_pretraining/models/model.pt")
    parser.add_argument("--images", type=int, help="of each list at most, evenly chosen")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--learning_rate", type=float, default=8e-4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    parts = {
        "simulated": {"datalist": options.simulated, "num_classes": 2},
        "unlabeled": {"datalist": options.unlabeled},
    }
    lists: list[list[dict]] = []
    found = joint_splits(parts)["training"]
    for part in parts:
        own = [{"patient": None, **item} for item in found if item["part"] == part]
        lists.append(own[:: -(-len(own) // options.images)] if options.images else own)
    stored = [round(1.1 * options.size)] * 2
    sets = [load_images(own, stored, 2 if part == "simulated" else 0) for part, own in zip(parts, lists, strict=True)]
    pixels = torch.cat([(loaded.images * 255).byte() for loaded in sets])
    labels = torch.zeros_like(pixels)
    labels[: len(lists[0])] = sets[0].labels[:, None].byte()  # type: ignore[index]
    items = [*lists[0], *lists[1]]
    print(f"{len(lists[0])} simulated and {len(lists[1])} unlabeled images, {options.steps} steps")
    for name in options.objectives:
        seconds = train(name, [pixels, labels], items, joint_classes(parts), options)
        print(f"{name}: {seconds:.0f} s of one processor", flush=True)


if __name__ == "__main__":
    main()
