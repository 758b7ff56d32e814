# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoint files into state dicts, without running code from them."""

from __future__ import annotations

import argparse
import inspect
import os
import pickle
import re
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from monai.utils import optional_import

__all__ = ["halved", "read_checkpoint"]

safetensors_torch, has_safetensors = optional_import("safetensors.torch")


F = TypeVar("F", bound=Callable[..., Any])


def names_file(argument: str) -> Callable[[F], F]:
    """Decorator: every ValueError of the function names the file that it was given as ``argument``."""

    def decorate(function: F) -> F:
        signature = inspect.signature(function)

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return function(*args, **kwargs)
            except ValueError as error:
                source = signature.bind(*args, **kwargs).arguments[argument]
                if not isinstance(source, str | os.PathLike) or os.path.basename(source) in str(error):
                    raise
                raise ValueError(f"{source}: {error}") from error

        return cast(F, call)

    return decorate


def halved(state: Mapping[str, Any]) -> dict[str, Any]:
    """The floating tensors of a state dict as float16, but for those with values beyond its range."""

    def half(value: torch.Tensor) -> torch.Tensor:
        small = value.half()
        return value if bool((small.isinf() & value.isfinite()).any()) else small

    return {name: half(value) if value.is_floating_point() else value for name, value in state.items()}


def read_checkpoint(source: str | os.PathLike | Mapping[str, Any]) -> Mapping[str, Any]:
    """The object in a PyTorch or safetensors file, read without running code from it; a mapping is returned as it is.

    Raises:
        FileNotFoundError: where there is no such file; IsADirectoryError for a folder.
        ValueError: for a file that is damaged, a TorchScript program, holds no state dict, or holds Python objects
            whose reading could run code. Every message names the file.
    """
    if isinstance(source, Mapping):
        return source
    if not isinstance(source, str | os.PathLike):
        raise TypeError(f"source must be a path or a state dict, got {type(source).__name__}.")
    path = Path(source).expanduser()
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name the checkpoint file in it.")
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint file at {path}.")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        # MAE's trainer stores its command line; a Namespace is plain data.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if re.search(r"GLOBAL |Unsupported class|instantiate|reduce", str(error)):
            raise ValueError(
                f"{path} holds Python objects besides tensors, and reading them could run code. If you trust its "
                "origin, save the tensors alone: torch.save(torch.load(path, weights_only=False)['model'], new_path)."
            ) from error
        raise ValueError(f"{path} is no PyTorch checkpoint, or it is damaged.") from error
    except Exception as error:  # a damaged archive raises almost anything, from OSError to KeyError
        if "TorchScript" in str(error):
            raise ValueError(
                f"{path} is a TorchScript program: give the .pt that it was exported from, or save "
                "torch.jit.load(path).state_dict() as a .pt."
            ) from error
        raise ValueError(f"{path} is no PyTorch checkpoint, or it is truncated: download or copy it again.") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a state dict.")
    return content


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    if not has_safetensors:
        raise ImportError(f"reading {path} needs the package safetensors: pip install safetensors.")
    try:
        return safetensors_torch.load_file(str(path))
    except Exception as error:
        raise ValueError(f"{path} is no safetensors file, or it is truncated: download or copy it again.") from error
