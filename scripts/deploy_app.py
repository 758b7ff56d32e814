# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""A MONAI Deploy application that runs one bundle on one image file (docs/label_and_deploy.md).

python scripts/deploy_app.py -i IMAGE -o FOLDER -m BUNDLE

``BUNDLE`` is a bundle's folder, or the TorchScript file that ``monai.bundle ckpt_export`` makes of one. Written are
``pred.png`` or ``pred.nii.gz`` (images), ``pred.json`` (class probabilities) or ``pred.npy`` (embeddings).
"""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
from monai.deploy.conditions import CountCondition
from monai.deploy.core import AppContext, Application, Fragment, Image, IOType, Operator, OperatorSpec
from monai.deploy.operators.monai_bundle_inference_operator import (
    BundleConfigNames,
    IOMapping,
    MonaiBundleInferenceOperator,
    get_bundle_config,
)
from PIL import Image as Picture

from monai_usfm.data import UltrasoundReader
from monai_usfm.files import whole_file, write_text_atomically


class FileToImage(Operator):
    """Emits a file, of any type that training reads, as an ``Image`` with the axes and metadata of MONAI's readers."""

    def __init__(self, fragment: Fragment, *args, path: Path, **kwargs) -> None:
        self.path = path
        self.reader = UltrasoundReader()
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        spec.output("image")

    def compute(self, op_input, op_output, context) -> None:
        array, meta = self.reader.get_data(self.reader.read(self.path))
        op_output.emit(Image(array, metadata=meta), "image")


class ResultToFile(Operator):
    """Writes what the bundle gives: a picture, a volume, probabilities or an embedding."""

    def __init__(self, fragment: Fragment, *args, folder: Path, **kwargs) -> None:
        self.folder = folder
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        spec.input("pred")

    def compute(self, op_input, op_output, context) -> None:
        pred = op_input.receive("pred")
        if isinstance(pred, dict):
            # "result" is left out: the operator takes probabilities for class indices there.
            probabilities = [float(p) for p in pred["probabilities"]]
            write_text_atomically(self.folder / "pred.json", json.dumps({"probabilities": probabilities}) + "\n")
        elif isinstance(pred, np.ndarray):
            with whole_file(self.folder / "pred.npy") as part:
                np.save(part, pred)
        elif pred.asnumpy().ndim == 3:  # (z, y, x)
            volume = nib.Nifti1Image(pred.asnumpy().T, np.asarray(pred.metadata()["original_affine"]))
            with whole_file(self.folder / "pred.nii.gz") as part:
                nib.save(volume, part)
        else:  # (x, y)
            with whole_file(self.folder / "pred.png") as part:
                Picture.fromarray(np.ascontiguousarray(pred.asnumpy().T)).save(part)


class BundleApplication(Application):
    """File -> bundle -> file."""

    def __init__(self, context: AppContext) -> None:
        self.context = context
        super().__init__()

    def compose(self) -> None:
        bundle = Path(self.context.model_path)
        formats = get_bundle_config(str(bundle), ["inference"])["_meta_"]["network_data_format"]
        kinds = {
            name: MonaiBundleInferenceOperator.known_io_data_types[formats[group][name]["type"]]
            for group, name in (("inputs", "image"), ("outputs", "pred"))
        }
        if bundle.is_dir():  # the SDK takes the folder for a model repository, in which it finds nothing to call
            self.context.models = None
        source = FileToImage(
            self,
            CountCondition(self, 1),  # without it, an operator without inputs is run again and again
            name="source",
            path=Path(self.context.input_path),
        )
        inference = MonaiBundleInferenceOperator(
            self,
            name="inference",
            app_context=self.context,
            input_mapping=[IOMapping("image", kinds["image"], IOType.IN_MEMORY)],
            output_mapping=[IOMapping("pred", kinds["pred"], IOType.IN_MEMORY)],
            bundle_path=bundle,
            bundle_config_names=BundleConfigNames(config_names=["inference"]),
        )
        sink = ResultToFile(self, name="sink", folder=Path(self.context.output_path))
        self.add_flow(source, inference, {("image", "image")})
        self.add_flow(inference, sink, {("pred", "pred")})


if __name__ == "__main__":
    BundleApplication(Application.init_app_context()).run()
