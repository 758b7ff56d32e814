# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Which parts of a network leave autocast in evaluation."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

__all__ = ["in_float32"]


def in_float32(method: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: a module's method ``(image, *maps)`` leaves autocast, unless in training; maps are tensors or lists.

    In bf16 a whole head moves one boundary pixel in some hundred (Dice 0.9987 to float32), the encoder hardly any
    (0.9999): the eight bits of an image do not survive bf16, and the norms of dark regions enlarge what is lost.

    TorchScript compiles the method without the decorator, by the names that it finds here: ``self`` and ``torch``.
    """

    def exact(x: Any) -> Any:
        return [exact(entry) for entry in x] if isinstance(x, list) else x.float()

    @wraps(method)
    def call(self: torch.nn.Module, image: torch.Tensor, *maps: Any) -> Any:
        if self.training or not torch.is_autocast_enabled(image.device.type):
            return method(self, image, *maps)
        with torch.autocast(image.device.type, enabled=False):
            return method(self, image.float(), *map(exact, maps))

    return call
