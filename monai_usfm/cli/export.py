# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""The verb that writes trained weights for other runtimes, and compares what they give with what Python gives."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from monai.networks import convert_to_trt
from monai.utils import convert_to_tensor, optional_import

from monai_usfm.cards import card_path, load_network, read_card
from monai_usfm.files import atomic_write, keep_apart
from monai_usfm.workflow import load_bundle

__all__ = ["export"]

Format = Literal["torchscript", "pt2", "onnx", "safetensors", "trt"]
ENDINGS: dict[str, Format] = {".ts": "torchscript", ".pt2": "pt2", ".onnx": "onnx", ".safetensors": "safetensors"}
TOLERANCE = 1e-3  # of the largest output; sums in another order differ by about 1e-6
TOLERANCE_TRT = 2e-2  # of 16-bit floating point
SCORE_LOST = 0.005  # share of the score that 8-bit integers may cost
CALIBRATION_IMAGES = 48


def export(checkpoint: str, output: str, *, format: Format | None = None, calibration: str | None = None) -> Path:
    """Export trained weights as one file for other runtimes, with their card inside.

    The network takes any number of images ``(B, C, *S)`` in [0, 1] and gives logits, maps or features, as in Python.
    A table compares the two on batches of 1 and 3 random images.

    Args:
        checkpoint: weights with a card.
        output: file to write: ``.ts`` (TorchScript), ``.pt2`` (torch.export), ``.onnx`` or ``.safetensors`` (weights
            alone).
        format: default: what the ending says; ``trt`` is TorchScript with a 16-bit engine of TensorRT, which needs an
            NVIDIA GPU.
        calibration: folder of images with a datalist: ONNX with 8-bit integers, whose ranges are those of images of the
            training split. The table then has the score of both networks on the test split.

    Returns:
        The file.

    Raises:
        ValueError: for another ending, or where the exported network gives something else or scores worse.
        RuntimeError: for ``trt`` without a GPU or TensorRT.
    """
    target = Path(output)
    kind = format or ENDINGS.get(target.suffix)
    if kind is None:
        raise ValueError(
            f"{output}: the ending must be .ts (TorchScript), .pt2, .onnx or .safetensors; or give format."
        )
    keep_apart(target, checkpoint, card_path(checkpoint))
    if calibration is not None and kind != "onnx":
        raise ValueError(f"{output}: 8-bit integers are written as .onnx; name such a file, or leave calibration out.")
    if kind == "trt" and not (torch.cuda.is_available() and optional_import("torch_tensorrt")[1]):
        raise RuntimeError("format trt needs an NVIDIA GPU and pip install torch_tensorrt.")
    network, card = load_network(checkpoint), read_card(checkpoint)
    shape = (card["network"]["in_channels"], *card["network"]["spatial_size"])
    arguments = (network, json.dumps(card), torch.zeros(2, *shape))
    with atomic_write(target) as part, torch.no_grad():
        if calibration is not None:
            table = _integers(checkpoint, card["task"], calibration, Path(part), *arguments)
        else:
            run = WRITERS[kind](Path(part), *arguments)
            table = ["not compared: pip install onnxruntime"] if run is None else _differences(network, run, shape)
    print(f"{target}: {kind}, takes (B, {', '.join(map(str, shape))}), float32 in [0, 1]")
    for line in table:
        print(f"  {line}")
    return target


Run = Callable[[torch.Tensor], torch.Tensor]


def _differences(network: torch.nn.Module, run: Run, shape: tuple[int, ...]) -> list[str]:
    """The lines of the table.

    Raises:
        ValueError: for a difference that is more than rounding.
    """
    generator, lines = torch.Generator().manual_seed(0), []
    device = next(network.parameters()).device
    tolerance = TOLERANCE if device.type == "cpu" else TOLERANCE_TRT
    for batch in (1, 3):
        images = torch.rand(batch, *shape, generator=generator).to(device)
        wanted = network(images)
        found = float((run(images) - wanted).abs().max() / wanted.abs().max())
        if not found < tolerance:
            raise ValueError(f"the exported network differs by {found:.1e} for {batch} images; nothing is written.")
        lines.append(f"batch of {batch}: largest difference from PyTorch {found:.1e} of the largest output")
    return lines


def _integers(
    checkpoint: str, task: str, folder: str, part: Path, network: torch.nn.Module, card: str, example: torch.Tensor
) -> list[str]:
    """Write the network for ONNX Runtime with 8-bit weights and activations, see :func:`export`."""
    quantization, there = optional_import("onnxruntime.quantization")
    if not there:
        raise ValueError("8-bit integers need ONNX Runtime: pip install onnx onnxruntime onnxscript.")
    with tempfile.TemporaryDirectory() as scratch:
        places: dict[str, Any] = {"checkpoint": checkpoint, "dataset_dir": folder, "output_dir": scratch}
        flow = load_bundle(task, "predict", **places, datalist=str(Path(folder, "dataset.json")), split="training")
        data = flow.parser.get_parsed_content("dataset")
        if not len(data):
            raise getattr(data.data, "error", None) or ValueError(f"{folder}: no images in the training split.")
        chosen = range(0, len(data), -(-len(data) // CALIBRATION_IMAGES))
        images = [convert_to_tensor(data[i]["image"])[None] for i in chosen]

        class Reader(quantization.CalibrationDataReader):  # type: ignore[name-defined]
            left = iter(images)

            def get_next(self) -> Any:
                image = next(self.left, None)
                return None if image is None else {"image": image.numpy()}

        whole = Path(scratch, "float.onnx")
        _onnx(whole, network, card, example)
        quantization.quantize_static(
            str(whole), str(part), Reader(), per_channel=True, op_types_to_quantize=["Conv", "Gemm", "MatMul"]
        )
        integers = _session(part)
        wanted, found = (torch.cat([run(image) for image in images]) for run in (network, integers))
        error = float((found - wanted).abs().mean() / (wanted.max() - wanted.min()))
        names, scores, higher = _scores(task, places, (network, integers))
    lost = (scores[0] - scores[1]) / max(abs(scores[0]), 1e-6)
    line = f"{names}: {scores[0]:.4f} in PyTorch, {scores[1]:.4f} in 8 bits"
    if (lost if higher else -lost) > SCORE_LOST:
        raise ValueError(f"8-bit integers cost more than {SCORE_LOST:.1%} of the score ({line}); nothing is written.")
    return [f"mean difference from PyTorch on {len(images)} images: {error:.2%} of the range", line]


def _scores(task: str, places: dict[str, Any], networks: Sequence[Run]) -> tuple[str, list[float], bool]:
    """Name and values of the bundle's own key metric on the test split, and whether a higher one is better."""
    options: dict[str, Any] = {**places, "split": "test", "validate#handlers": []}
    flow = load_bundle(task, "evaluate", **options)
    flow.initialize()
    evaluator, scores = flow.parser.get_parsed_content("validate#evaluator"), []
    for network in networks:
        evaluator.network = network
        evaluator.run()
        scores.append(float(evaluator.state.metrics[evaluator.state.key_metric_name]))
    name = f"{evaluator.state.key_metric_name} of {len(evaluator.data_loader.dataset)} test images"
    return name, scores, evaluator.metric_cmp_fn(1, 0)


def _session(file: Path) -> Run:
    """An ONNX file in ONNX Runtime."""
    runtime, _ = optional_import("onnxruntime")
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"image": images.numpy()})[0])


def _torchscript(part: Path, network: torch.nn.Module, card: str, example: torch.Tensor) -> Run:
    torch.jit.script(network).save(str(part), _extra_files={"card.json": card})
    return torch.jit.load(str(part))


def _pt2(part: Path, network: torch.nn.Module, card: str, example: torch.Tensor) -> Run:
    program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    with part.open("wb") as file:
        torch.export.save(program, file, extra_files={"card.json": card})
    with part.open("rb") as file:
        return torch.export.load(file).module()


def _onnx(part: Path, network: torch.nn.Module, card: str, example: torch.Tensor) -> Run | None:
    dynamic: Any = ({0: torch.export.Dim("batch")},)
    names: Any = {"input_names": ["image"], "output_names": ["pred"]}
    for optimizer in ("onnx_ir", "onnxscript"):  # hundreds of lines where a bundle has set up logging
        logging.getLogger(optimizer).setLevel(logging.WARNING)
    program = torch.onnx.export(network, (example,), dynamo=True, dynamic_shapes=dynamic, verbose=False, **names)
    assert program is not None  # it is None for a file name alone
    program.model.metadata_props["card"] = card
    program.save(str(part))
    return _session(part) if optional_import("onnxruntime")[1] else None


def write_safetensors(path: Path, state: dict[str, torch.Tensor], card: str) -> None:
    """Weights with the text of their card in the header."""
    from safetensors.torch import save

    path.write_bytes(save(state, metadata={"card": card}))  # save_file makes a file that its owner alone may read


def _safetensors(part: Path, network: torch.nn.Module, card: str, example: torch.Tensor) -> Run:
    from safetensors.torch import load_file

    write_safetensors(part, {n: t.clone().contiguous() for n, t in network.state_dict().items()}, card)
    network.load_state_dict(load_file(str(part)))
    return network


def _trt(part: Path, network: torch.nn.Module, card: str, example: torch.Tensor) -> Run:
    shape, batches = list(example.shape), [1, 4, 16]
    engine = convert_to_trt(network.cuda(), "fp16", shape, dynamic_batchsize=batches, use_trace=False)
    torch.jit.save(engine, str(part), _extra_files={"card.json": card})
    return torch.jit.load(str(part))


WRITERS: dict[str, Callable[..., Run | None]] = {
    "torchscript": _torchscript,
    "pt2": _pt2,
    "onnx": _onnx,
    "safetensors": _safetensors,
    "trt": _trt,
}
