# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""The verb that writes trained weights for other runtimes, and compares what they give with what Python gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from monai.utils import optional_import

from monai_usfm.cards import load_network, read_card
from monai_usfm.files import atomic_write

__all__ = ["export"]

Format = Literal["torchscript", "pt2", "onnx", "safetensors"]
ENDINGS: dict[str, Format] = {".ts": "torchscript", ".pt2": "pt2", ".onnx": "onnx", ".safetensors": "safetensors"}
TOLERANCE = 1e-3  # of the largest output; sums in another order differ by about 1e-6


def export(checkpoint: str, output: str, *, format: Format | None = None) -> Path:
    """Export trained weights as one file for other runtimes, with their card inside.

    The network takes any number of images ``(B, C, *S)`` in [0, 1] and gives logits, maps or features, as in Python.
    A table compares the two on batches of 1 and 3 random images.

    Args:
        checkpoint: weights with a card.
        output: file to write: ``.ts`` (TorchScript), ``.pt2`` (torch.export), ``.onnx`` or ``.safetensors`` (weights
            alone).
        format: default: what the ending says.

    Returns:
        The file.

    Raises:
        ValueError: for another ending, or where the exported network gives something else.
    """
    target = Path(output)
    kind = format or ENDINGS.get(target.suffix)
    if kind is None:
        raise ValueError(
            f"{output}: the ending must be .ts (TorchScript), .pt2, .onnx or .safetensors; or give format."
        )
    network, card = load_network(checkpoint), read_card(checkpoint)
    shape = (card["network"]["in_channels"], *card["network"]["spatial_size"])
    with atomic_write(target) as part, torch.no_grad():
        run = WRITERS[kind](network, Path(part), json.dumps(card), torch.zeros(2, *shape))
        differences = {} if run is None else _differences(network, run, shape)
    print(f"{target}: {kind}, takes (B, {', '.join(map(str, shape))}), float32 in [0, 1]")
    for batch, difference in differences.items():
        print(f"  batch of {batch}: largest difference from PyTorch {difference:.1e} of the largest output")
    if run is None:
        print("  not compared: pip install onnxruntime")
    return target


Run = Callable[[torch.Tensor], torch.Tensor]


def _differences(network: torch.nn.Module, run: Run, shape: tuple[int, ...]) -> dict[int, float]:
    generator, found = torch.Generator().manual_seed(0), {}
    for batch in (1, 3):
        images = torch.rand(batch, *shape, generator=generator)
        wanted = network(images)
        found[batch] = float((run(images) - wanted).abs().max() / wanted.abs().max())
        if not found[batch] < TOLERANCE:
            raise ValueError(
                f"the exported network differs by {found[batch]:.1e} for {batch} images; nothing is written."
            )
    return found


def _torchscript(network: torch.nn.Module, part: Path, card: str, example: torch.Tensor) -> Run:
    torch.jit.script(network).save(str(part), _extra_files={"card.json": card})
    return torch.jit.load(str(part))


def _pt2(network: torch.nn.Module, part: Path, card: str, example: torch.Tensor) -> Run:
    program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    with part.open("wb") as file:
        torch.export.save(program, file, extra_files={"card.json": card})
    with part.open("rb") as file:
        return torch.export.load(file).module()


def _onnx(network: torch.nn.Module, part: Path, card: str, example: torch.Tensor) -> Run | None:
    dynamic: Any = ({0: torch.export.Dim("batch")},)
    names: Any = {"input_names": ["image"], "output_names": ["pred"]}
    program = torch.onnx.export(network, (example,), dynamo=True, dynamic_shapes=dynamic, **names)
    assert program is not None  # it is None for a file name alone
    program.model.metadata_props["card"] = card
    program.save(str(part))
    runtime, there = optional_import("onnxruntime")
    if not there:
        return None
    session = runtime.InferenceSession(str(part), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"image": images.numpy()})[0])


def _safetensors(network: torch.nn.Module, part: Path, card: str, example: torch.Tensor) -> Run:
    from safetensors.torch import load_file, save_file

    state = {name: tensor.clone().contiguous() for name, tensor in network.state_dict().items()}
    save_file(state, str(part), metadata={"card": card})
    network.load_state_dict(load_file(str(part)))
    return network


WRITERS: dict[str, Callable[..., Run | None]] = {
    "torchscript": _torchscript,
    "pt2": _pt2,
    "onnx": _onnx,
    "safetensors": _safetensors,
}
