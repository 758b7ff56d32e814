# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Active learning simulated on labels that are all there: ``python benchmarks/selection.py DATALIST``.

Each seed begins with the same random images and adds some a round by each strategy. A logistic regression on frozen
tokens says where the structure is; another one, on their mean, which class the image has. Its entropy is the
uncertainty, the mean token the embedding. The area under a curve is the mean over the rounds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate, normalize

from monai_usfm import load_network
from monai_usfm.evaluation.images import extract_features, load_images, read_items
from monai_usfm.evaluation.selection import choose
from monai_usfm.workflow import find_bundle

STRATEGIES = ("random", "uncertainty", "coreset", "mix")


def read(encoder: torch.nn.Module, arguments: argparse.Namespace, split: str) -> tuple[Any, ...]:
    """Tokens ``(M, N, E)``, masks ``(M, H, W)``, the share of a token that is inside ``(M, N)``, classes ``(M,)``."""
    items = read_items(arguments.datalist, split, limit=arguments.limit)
    tokens, masks, classes = [], [], []
    for start in range(0, len(items), 32):
        loaded = load_images(items[start : start + 32], [arguments.size] * 2, 2)
        tokens.append(extract_features(encoder, loaded.images, "tokens", amp=True).flatten(2).transpose(1, 2).half())
        masks.append(loaded.labels > 0)  # type: ignore[operator]
        classes.append(loaded.classes)
    mask, side = torch.cat(masks), round(tokens[0].shape[1] ** 0.5)
    share = torch.nn.functional.adaptive_avg_pool2d(mask[:, None].float(), side).flatten(1)
    return torch.cat(tokens), mask, share, None if any(c is None for c in classes) else torch.cat(classes)


def fitted(tokens: torch.Tensor, share: torch.Tensor, decay: float = 1e-3) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights ``(E,)`` and bias of a logistic regression of the share."""
    x, y = tokens.flatten(0, -2).float(), share.flatten()
    weight, bias = torch.zeros(x.shape[1], requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=40, line_search_fn="strong_wolfe")

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


def entropy(logits: torch.Tensor) -> torch.Tensor:
    p = torch.sigmoid(logits)
    return torch.special.entr(p) + torch.special.entr(1 - p)


def simulate(metric: str, features: np.ndarray, learn: Callable, arguments: argparse.Namespace) -> None:
    """Print the curve of each strategy; ``learn(labeled)`` gives the score and the uncertainty of all images."""
    curves = {name: np.zeros((arguments.seeds, arguments.rounds + 1)) for name in STRATEGIES}
    for seed in range(arguments.seeds):
        rng = np.random.default_rng(seed)
        start = rng.permutation(len(features))[: arguments.first].tolist()
        for name in STRATEGIES:
            labeled = list(start)
            for turn in range(arguments.rounds + 1):
                curves[name][seed, turn], uncertainty = learn(labeled)
                left = np.setdiff1d(np.arange(len(features)), labeled)
                if name == "random":
                    labeled += rng.permutation(left)[: arguments.number].tolist()
                else:
                    options = uncertainty[left].numpy(), features[labeled]
                    labeled += left[choose(features[left], arguments.number, name, *options)].tolist()
    print(f"\n| strategy | {metric} after 0 to {arguments.rounds} rounds | area | minus random (95 %) |")
    print("| --- | --- | --- | --- |")
    for name, values in curves.items():
        difference = values.mean(1) - curves["random"].mean(1)
        half = stats.t.ppf(0.975, arguments.seeds - 1) * stats.sem(difference)
        gain = f"{difference.mean():+.4f} [{difference.mean() - half:+.4f}, {difference.mean() + half:+.4f}]"
        points = " ".join(f"{v:.3f}" for v in values.mean(0))
        print(f"| {name} | {points} | {values.mean():.4f} | {'' if name == 'random' else gain} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("datalist")
    parser.add_argument("--checkpoint", default=find_bundle("pretraining") / "models" / "model.pt")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--first", type=int, default=20)
    parser.add_argument("--number", type=int, default=20, help="images added in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--limit", type=int, help="of the images of a split")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    encoder = load_network(arguments.checkpoint, "encoder")
    pool, _, share, classes = read(encoder, arguments, "training")
    test, masks, _, test_classes = read(encoder, arguments, "test")
    mean, std = pool.float().mean((0, 1)), pool.float().std((0, 1)) + 1e-6
    features = normalize(pool.float().mean(1), dim=1)
    pool, test = ((tokens.float() - mean) / std for tokens in (pool, test))

    def learn_masks(labeled: list[int]) -> tuple[float, torch.Tensor]:
        weight, bias = fitted(pool[labeled], share[labeled])
        return dice(test @ weight + bias, masks), entropy(pool @ weight + bias).mean(1)

    def learn_classes(labeled: list[int]) -> tuple[float, torch.Tensor]:
        weight, bias = fitted(pool[labeled].mean(1), classes[labeled].float(), 1e-2)
        score = roc_auc_score(test_classes, test.mean(1) @ weight + bias)
        return float(score), entropy(pool.mean(1) @ weight + bias)

    print(f"{len(pool)} images to choose from, {len(test)} of the test, {arguments.seeds} seeds")
    simulate("Dice", features.numpy(), learn_masks, arguments)
    if classes is not None:
        simulate("AUC", features.numpy(), learn_classes, arguments)


if __name__ == "__main__":
    main()
