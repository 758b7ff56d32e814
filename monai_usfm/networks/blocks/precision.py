# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Which parts of a network leave autocast in evaluation."""

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["in_float32"]


def in_float32(call: Callable[..., Any], training: bool, image: torch.Tensor, *maps: Any) -> Any:
    """``call(image, *maps)`` outside autocast, unless in training; ``maps`` are tensors or lists of them.

    In bf16 a whole head moves one boundary pixel in some hundred (Dice 0.9987 to float32), the encoder hardly any
    (0.9999): the eight bits of an image do not survive bf16, and the norms of dark regions enlarge what is lost.
    """
    if training or not torch.is_autocast_enabled(image.device.type):
        return call(image, *maps)

    def exact(x: Any) -> Any:
        return [exact(entry) for entry in x] if isinstance(x, list) else x.float()

    with torch.autocast(image.device.type, enabled=False):
        return call(image.float(), *map(exact, maps))
