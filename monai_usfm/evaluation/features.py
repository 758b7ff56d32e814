# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Frozen features of an encoder for a whole data set: what every probe and the train-test leakage check start from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn as nn
from monai.data import DataLoader
from torch.utils.data import Dataset

__all__ = ["extract_features"]

POOLS = ("mean", "class", "tokens")


@torch.no_grad()
def extract_features(
    encoder: nn.Module,
    data: Dataset | Iterable[Any],
    pool: str = "mean",
    *,
    device: torch.device | str | None = None,
    amp: bool = False,
    batch_size: int = 32,
) -> torch.Tensor:
    """Run a frozen encoder over a data set, in its order.

    The encoder may return tokens ``(B, 1 + N, E)`` with the class token first (as
    :class:`~monai_usfm.networks.nets.vit.UltrasoundViT` does), a feature map ``(B, E, *grid)`` (convolutional networks)
    or one vector per image ``(B, E)``. It runs in evaluation mode and is handed back in the mode and on the device it
    came.

    Args:
        encoder: the network; its ``forward_features`` is used where it has one, else its ``forward``.
        data: a ``Dataset``, read in batches of ``batch_size``, or anything that yields batches, for example a
            ``DataLoader`` that does not shuffle. A batch is a tensor ``(B, C, *S)`` or a dictionary with ``"image"``.
        pool: ``"mean"`` of the patch tokens or of the map, ``"class"`` token, or ``"tokens"``: all of them as a map.
        device: where to run; None stays on the encoder's device.
        amp: run in bfloat16 autocast; features are float32 in any case.
        batch_size: images per batch where ``data`` is a data set.

    Returns:
        Features on the CPU, ``(M, E)`` or, for ``pool="tokens"``, ``(M, E, *grid)``.

    Raises:
        ValueError: for an unknown ``pool``, one that the encoder's output cannot give, or empty data.
    """
    if pool not in POOLS:
        raise ValueError(f"pool must be one of {', '.join(POOLS)}, got {pool!r}.")
    home = next((p.device for p in encoder.parameters()), torch.device("cpu"))
    place = torch.device(device) if device is not None else home
    batches = DataLoader(data, batch_size=batch_size, shuffle=False) if isinstance(data, Dataset) else data

    features: list[torch.Tensor] = []
    modes = {part: part.training for part in encoder.modules()}
    encoder.to(place).eval()
    try:
        forward = getattr(encoder, "forward_features", encoder)
        for batch in batches:
            image = batch["image"] if isinstance(batch, Mapping) else batch
            image = torch.as_tensor(image).to(place)
            with torch.autocast(place.type, dtype=torch.bfloat16, enabled=amp):
                output = forward(image)
            features.append(_pooled(output, image, encoder, pool).float().cpu())
    finally:
        for part, mode in modes.items():
            part.training = mode
        encoder.to(home)
    if not features:
        raise ValueError("the data yielded no batch; give at least one image.")
    # batches may be MetaTensors; probes want plain numbers
    return torch.cat([part.as_tensor() if hasattr(part, "as_tensor") else part for part in features])


def _pooled(output: torch.Tensor, image: torch.Tensor, encoder: nn.Module, pool: str) -> torch.Tensor:
    """Encoder output -> ``(B, E)``, or ``(B, E, *grid)`` for ``pool="tokens"``."""
    if output.ndim == 3:  # tokens; images have 4 or 5 dimensions, so a map cannot be meant
        if pool == "class":
            return output[:, 0]
        if pool == "mean":
            return output[:, 1:].mean(dim=1)
        return output[:, 1:].transpose(1, 2).unflatten(2, _token_grid(encoder, image, output.shape[1] - 1))
    if pool == "class" or (pool == "tokens" and output.ndim == 2):
        raise ValueError(
            f'pool="{pool}" needs tokens, but the encoder returned shape {tuple(output.shape)}; use pool="mean".'
        )
    if output.ndim == 2 or pool == "tokens":
        return output
    return output.flatten(2).mean(dim=2)


def _token_grid(encoder: nn.Module, image: torch.Tensor, count: int) -> list[int]:
    tell = getattr(encoder, "token_grid", None)
    if callable(tell):
        return list(tell(image))
    # an encoder that does not tell: patches are cubes in all published ones
    patch = round((image[0, 0].numel() / count) ** (1 / (image.ndim - 2)))
    grid = [size // patch for size in image.shape[2:]]
    if torch.Size(grid).numel() != count:
        raise ValueError(
            f"cannot arrange {count} tokens of an image {tuple(image.shape[2:])} on a grid; "
            "give the encoder a method token_grid(image)."
        )
    return grid
