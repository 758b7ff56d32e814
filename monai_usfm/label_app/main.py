# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""The app of MONAI Label 0.8 that ``monai-usfm serve-label`` copies into a folder beside its bundles and starts.

Label's own ``monaibundle`` runs these bundles too. This app adds what that one cannot know: training writes where
inference reads, masks are never JPEG or DICOM, an image is chosen by the uncertainty of the network, and what cannot
work is refused in one sentence. It is no module of the package, because it needs MONAI Label.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.tasks.activelearning.first import First
from monailabel.tasks.activelearning.random import Random
from monailabel.tasks.infer.bundle import BundleInferTask
from monailabel.tasks.train.bundle import BundleTrainTask

from monai_usfm import __version__
from monai_usfm.cards import NO_CLASSES
from monai_usfm.errors import describe, root_cause
from monai_usfm.inferers import mean_entropy

REFUSED = (ValueError, OSError)  # the fault is in what was asked
UNTRAINABLE = {
    "classification": "MONAI Label sends masks, no classes; train it by monai-usfm train --task classification",
    "enhancement": "it learns from images without masks; train it by monai-usfm train --task enhancement",
    "interactive": "its clicks are simulated; train it by monai-usfm train --task segmentation --overlays interactive",
}
TYPES = {"classification": "classification", "interactive": "deepedit"}  # of MONAI Label; others are segmentations


def card_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "models" / "model.json").read_text(encoding="utf-8"))


def task_of(folder: Path) -> str:
    """What a bundle is for, as the card of its weights says; a segmentation that takes prompts is "interactive"."""
    card = card_of(folder)
    return "interactive" if card.get("prompts") else card["task"]


class Infer(BundleInferTask):
    """A bundle's inference, with results in a lossless type, that tells of what it cannot read."""

    def __init__(self, path: str, conf: dict[str, str]) -> None:
        self.interactive = task_of(Path(path)) == "interactive"
        super().__init__(path, conf, type=TYPES.get(task_of(Path(path)), "segmentation"))
        self._config["model_filename"] = ["model.pt"]  # the others are weights to start a training from

    def __call__(self, request: dict[str, Any], callbacks: Any = None) -> Any:
        if not str(request.get("image")).lower().endswith((".nii", ".nii.gz", ".nrrd", ".mha")):
            request.setdefault("result_extension", ".png" if self.dimension == 2 else ".nii.gz")
        try:
            return super().__call__(request, callbacks)
        except Exception as error:
            cause = root_cause(error)
            if isinstance(cause, REFUSED):
                raise HTTPException(400, describe(error)) from error
            raise

    def run_pre_transforms(self, data: dict[str, Any], transforms: Any) -> dict[str, Any]:
        read, rest = transforms[:2], transforms[2:]  # the file, its channels first
        data = super().run_pre_transforms(data, read)
        axes = sum(size > 1 for size in data[self.input_key].shape[1:])
        if self.interactive and self.bundle_config.get("frames") != (axes > self.dimension):
            self.bundle_config["frames"] = axes > self.dimension  # the slices that have a prompt
            rest = self.pre_transforms(data)[2:]
        if axes > self.dimension and not self.interactive:
            raise ValueError(
                f"{Path(data['image_path']).name} is a volume or cine, and {Path(self.bundle_path).name} a network of "
                "images: serve weights of volumes, made a bundle by monai-usfm pack, or send single frames."
            )
        return super().run_pre_transforms(data, rest)

    def uncertainty(self, image: str, device: str = "cpu") -> float:
        """Mean entropy of the calibrated probabilities, as a share of its maximum."""
        data = {"image": image, "image_path": image, "device": device, "model_filename": "model.pt"}
        data = self.run_pre_transforms(data, self.pre_transforms(data))
        logits = self.run_inferer(data, device=device)[self.output_label_key].float()
        return float(mean_entropy(self.bundle_config.get_parsed_content("card"), logits[None]))


class Train(BundleTrainTask):
    """A bundle's training, which writes the weights that its inference reads."""

    def _update_overrides(self, overrides: dict[str, Any]) -> dict[str, Any]:
        overrides["export_path"] = os.path.join(self.bundle_path, "models", "model.pt")
        return overrides

    def _load_checkpoint(self, model_pytorch: str, pretrained: bool, train_handlers: list) -> None:
        if pretrained:  # without it Label 0.8 looks for a file without a name
            super()._load_checkpoint(model_pytorch, pretrained, train_handlers)


class Uncertainty(ScoringMethod):
    """Scores every unlabeled image by the uncertainty of the network, once for each state of its weights."""

    def __init__(self, infer: Infer) -> None:
        super().__init__("Mean entropy of the probabilities")
        self.infer = infer

    def __call__(self, request: dict[str, Any], datastore: Any) -> dict[str, float]:
        state = os.stat(self.infer.get_path()).st_mtime
        scores = {}
        for image in sorted(datastore.get_unlabeled_images(request.get("label_tag"), request.get("labels"))):
            known = datastore.get_image_info(image).get("uncertainty", {})
            if known.get("weights") != state:
                try:
                    known = {"weights": state, "score": self.infer.uncertainty(datastore.get_image_uri(image))}
                except Exception as error:
                    if not isinstance(root_cause(error), REFUSED):
                        raise
                    known = {"weights": state, "score": -1.0, "refused": describe(error)}  # never the first choice
                datastore.update_image_info(image, {"uncertainty": known})
            scores[image] = known["score"]
        return scores


class MostUncertain(Strategy):
    """The unlabeled image that the network is least sure of."""

    def __init__(self, scoring: Uncertainty) -> None:
        super().__init__("The image that the network is least sure of")
        self.scoring = scoring

    def __call__(self, request: dict[str, Any], datastore: Any) -> dict[str, Any] | None:
        scores = self.scoring(request, datastore)
        return {"id": max(scores, key=scores.__getitem__)} if scores else None


class UltrasoundApp(MONAILabelApp):
    """Inference of all bundles in ``model``, training of segmentations, active learning by uncertainty."""

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        names = [name.strip() for name in conf["models"].split(",")]
        self.bundles = {name: Path(app_dir, "model", name) for name in names}
        super().__init__(app_dir, studies, conf, "monai_usfm", "Ultrasound, research only", __version__)

    def init_infers(self) -> dict[str, Any]:
        return {name: Infer(str(folder), self.conf) for name, folder in self.bundles.items()}

    def init_trainers(self) -> dict[str, Any]:
        trainable = {name: folder for name, folder in self.bundles.items() if task_of(folder) not in UNTRAINABLE}
        return {name: Train(str(folder), self.conf) for name, folder in trainable.items()}

    def init_scoring_methods(self) -> dict[str, Any]:
        return {
            f"{name}_uncertainty": Uncertainty(infer)
            for name, infer in self._infers.items()
            if task_of(self.bundles[name]) != "enhancement"
            and not any(map(card_of(self.bundles[name]).get, NO_CLASSES))
        }

    def init_strategies(self) -> dict[str, Any]:
        ours = {name: MostUncertain(scoring) for name, scoring in self.init_scoring_methods().items()}
        return {"first": First(), "random": Random(), **ours}

    def train(self, request: dict[str, Any]) -> Any:
        name = str(request.get("model"))
        if name in self.bundles and name not in self._trainers:
            raise HTTPException(400, f"{name} is not trained here: {UNTRAINABLE[task_of(self.bundles[name])]}.")
        return super().train(request)
