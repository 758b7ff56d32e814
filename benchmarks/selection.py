# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Active learning simulated on labels that are all there: ``python benchmarks/selection.py DATALIST``.

Each seed begins with the same random images and adds some a round by each strategy. A logistic regression on frozen
tokens says where the structure is; its entropy is the uncertainty, the mean token the embedding. The score is the mean
Dice of the test split; the area under its curve is the mean over the rounds.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from scipy import stats
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate, normalize

from monai_usfm import load_network
from monai_usfm.evaluation.images import extract_features, load_images, read_items
from monai_usfm.evaluation.selection import choose

STRATEGIES = ("random", "uncertainty", "coreset", "mix")


def tokens_and_masks(encoder: torch.nn.Module, arguments: argparse.Namespace, split: str) -> tuple[torch.Tensor, ...]:
    """Tokens ``(M, N, E)``, masks ``(M, H, W)`` and the share of each token that is inside ``(M, N)``."""
    items = read_items(arguments.datalist, split, limit=arguments.limit)
    size = [arguments.size] * 2
    tokens, masks = [], []
    for start in range(0, len(items), 32):
        loaded = load_images(items[start : start + 32], size, 2)
        tokens.append(extract_features(encoder, loaded, "tokens", amp=True).flatten(2).transpose(1, 2).half())
        masks.append(loaded.labels > 0)  # type: ignore[operator]
    side = round(tokens[0].shape[1] ** 0.5)
    mask = torch.cat(masks)
    share = torch.nn.functional.adaptive_avg_pool2d(mask[:, None].float(), side).flatten(1)
    return torch.cat(tokens), mask, share


def fitted(tokens: torch.Tensor, share: torch.Tensor, decay: float = 1e-3) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights ``(E,)`` and bias of a logistic regression of the share."""
    x, y = tokens.flatten(0, 1).float(), share.flatten()
    weight, bias = torch.zeros(x.shape[1], requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = binary_cross_entropy_with_logits(x @ weight + bias, y) + decay * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach(), bias.detach()


def dice(logits: torch.Tensor, masks: torch.Tensor) -> float:
    """Mean Dice of token logits ``(M, N)``, enlarged to the masks."""
    side = round(logits.shape[1] ** 0.5)
    found = interpolate(logits.unflatten(1, (1, side, side)), masks.shape[1:], mode="bilinear")[:, 0] > 0
    both, sizes = (found & masks).sum((1, 2)), found.sum((1, 2)) + masks.sum((1, 2))
    return float((2 * both / sizes.clamp(min=1)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("datalist")
    parser.add_argument("--checkpoint", default="bundles/usfm_pretraining/models/mae.pt")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--first", type=int, default=20)
    parser.add_argument("--number", type=int, default=20, help="images added in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--limit", type=int, help="of the images of a split")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    encoder = load_network(arguments.checkpoint, "encoder")
    pool, _, share = tokens_and_masks(encoder, arguments, "training")
    test, masks, _ = tokens_and_masks(encoder, arguments, "test")
    mean, std = pool.float().mean((0, 1)), pool.float().std((0, 1)) + 1e-6
    features = normalize(pool.float().mean(1), dim=1).numpy()
    pool, test = ((tokens.float() - mean) / std for tokens in (pool, test))
    curves = {name: np.zeros((arguments.seeds, arguments.rounds + 1)) for name in STRATEGIES}
    for seed in range(arguments.seeds):
        rng = np.random.default_rng(seed)
        start = rng.permutation(len(pool))[: arguments.first].tolist()
        for name in STRATEGIES:
            labeled = list(start)
            for turn in range(arguments.rounds + 1):
                weight, bias = fitted(pool[labeled], share[labeled])
                curves[name][seed, turn] = dice(test @ weight + bias, masks)
                left = np.setdiff1d(np.arange(len(pool)), labeled)
                if name == "random":
                    labeled += rng.permutation(left)[: arguments.number].tolist()
                    continue
                p = torch.sigmoid(pool[left] @ weight + bias)
                entropy = (torch.special.entr(p) + torch.special.entr(1 - p)).mean(1).numpy()
                chosen = choose(features[left], arguments.number, name, entropy, features[labeled])
                labeled += left[chosen].tolist()
    print(f"{len(pool)} images to choose from, {len(test)} of the test; Dice after 0 to {arguments.rounds} rounds\n")
    print("| strategy | curve | area | minus random (95 %) |\n| --- | --- | --- | --- |")
    for name, values in curves.items():
        difference = values.mean(1) - curves["random"].mean(1)
        half = stats.t.ppf(0.975, arguments.seeds - 1) * stats.sem(difference)
        gain = f"{difference.mean():+.4f} [{difference.mean() - half:+.4f}, {difference.mean() + half:+.4f}]"
        points = " ".join(f"{v:.3f}" for v in values.mean(0))
        print(f"| {name} | {points} | {values.mean():.4f} | {'' if name == 'random' else gain} |")


if __name__ == "__main__":
    main()
