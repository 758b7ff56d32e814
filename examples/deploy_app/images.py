# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""What the application does to one DICOM image, without the SDK: read it, apply the network, measure."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import torch
from pydicom.dataset import Dataset

from monai_usfm import load_network
from monai_usfm.cards import require_classes
from monai_usfm.data import LoadUltrasound
from monai_usfm.inferers import ImagePredictor
from monai_usfm.metrics import measure

# Ultrasound (Multi-frame) Image Storage and their retired forms. An Enhanced US Volume needs a network of volumes.
IMAGES = (
    "1.2.840.10008.5.1.4.1.1.6.1",
    "1.2.840.10008.5.1.4.1.1.6",
    "1.2.840.10008.5.1.4.1.1.3.1",
    "1.2.840.10008.5.1.4.1.1.3",
)
FRAMES_AT_ONCE = 8


@dataclass
class Model:
    """A network of the package or its TorchScript form, and what has to be known to use it.

    Attributes:
        predict: images ``(N, 1, H, W)`` in [0, 1] to probabilities.
        task: "segmentation" or "classification".
        names: of the classes; of a segmentation the background is the first.
        file: where the weights are.
        sha256: of that file.
    """

    predict: ImagePredictor
    task: str
    names: list[str]
    file: Path
    sha256: str


def load_model(path: str | Path) -> Model:
    """Load weights with their card, a bundle's folder, or a TorchScript file.

    A TorchScript file of ``monai-usfm export`` holds the card, one of ``monai.bundle ckpt_export`` the metadata of the
    bundle, which do not tell the temperature.

    Raises:
        FileNotFoundError: where there is neither.
        ValueError: see :func:`monai_usfm.cards.require_classes`; of volumes too.
    """
    file = Path(path)
    if file.is_dir():
        names = ("models/model.pt", "model.pt", "models/model.ts", "model.ts")
        found = [file / name for name in names if (file / name).is_file()]
        if not found:
            raise FileNotFoundError(f"{file} has none of {', '.join(names)}: name a bundle's folder, or the weights.")
        file = found[0]
    if file.suffix == ".ts":
        held = {"card.json": "", "metadata.json": ""}
        network: torch.nn.Module = torch.jit.load(str(file), map_location="cpu", _extra_files=held)
        card = json.loads(held["card.json"]) if held["card.json"] else _card_of(json.loads(held["metadata.json"]))
    else:
        network = load_network(file)
        card = network.card
    options = card["network"]
    card = {**card, "network": {"spatial_dims": len(options["spatial_size"]), **options}}
    require_classes(card, file, spatial_dims=2)
    names = [str(name) for name in card.get("class_names") or range(int(options["num_classes"]))]
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return Model(ImagePredictor(network, card=card), card["task"], names, file, digest)


def _card_of(metadata: dict[str, Any]) -> dict[str, Any]:
    """What a bundle's metadata tell of its network."""
    image, pred = (
        metadata["network_data_format"][group][name] for group, name in (("inputs", "image"), ("outputs", "pred"))
    )
    names = list(pred.get("channel_def", {}).values())
    options = {"spatial_size": image["spatial_shape"], "in_channels": image["num_channels"], "num_classes": len(names)}
    task = "segmentation" if pred.get("format") == "segmentation" else "classification"
    return {"task": task, "network": options, "class_names": names}


@dataclass
class Result:
    """What was found in one image.

    Attributes:
        source: the DICOM data set.
        frames: ``(N, H, W)`` in [0, 1]; one for a still.
        spacing: mm per pixel along (H, W); None where the file does not tell.
        frame_time: seconds between frames; 0 where the file does not tell.
        labels: class indices ``(N, H, W)`` of a segmentation.
        measurements: rows of :func:`monai_usfm.metrics.measure`, each with its ``frame``, counted from 1.
        probabilities: of each class, the mean over the frames, of a classification.
    """

    source: Dataset
    frames: np.ndarray
    spacing: tuple[float, float] | None
    frame_time: float
    labels: np.ndarray | None = None
    measurements: list[dict[str, Any]] = field(default_factory=list)
    probabilities: dict[str, float] | None = None


def analyze(file: str | Path, model: Model) -> Result:
    """Read a still or a cine, apply the network to every frame, measure.

    Raises:
        UnreadableImageError: for a file that cannot be decoded.
        ValueError: for a DICOM file that is no ultrasound still or cine.
    """
    source = pydicom.dcmread(file)
    if source.get("SOPClassUID") not in IMAGES:
        kind = getattr(source.get("SOPClassUID"), "name", "no SOP class")
        raise ValueError(f"{file}: {kind}; only ultrasound stills and cines are read.")
    count = int(source.get("NumberOfFrames") or 1)
    image = LoadUltrasound(spatial_dims=3 if count > 1 else 2)(file)
    frames = torch.as_tensor(image).as_subclass(torch.Tensor)[0].reshape(count, *image.shape[-2:])
    mm = [float(step) for step in image.meta["spacing"][-2:]]
    spacing = (mm[0], mm[1]) if image.meta["spacing_known"] else None
    result = Result(source, frames.numpy(), spacing, float(image.meta.get("frame_time", 0.0)))
    scores = [model.predict(part[:, None]) for part in frames.split(FRAMES_AT_ONCE)]
    if model.task == "classification":
        means = torch.cat(scores).mean(0).tolist()
        result.probabilities = dict(zip(model.names, means, strict=True))
        return result
    result.labels = np.concatenate([part.argmax(1).numpy() for part in scores]).astype(np.uint8)
    for frame, labels in enumerate(result.labels, start=1):
        rows = measure(labels, len(model.names), spacing, model.names)
        result.measurements += [{"frame": frame, **row} for row in rows]
    return result
