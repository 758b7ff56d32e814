# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""A MONAI Deploy application: a folder of ultrasound DICOM in; segmentations, overlays and measurements out.

python app.py -i STUDIES -o RESULTS -m MODEL
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from images import analyze, load_model
from monai.deploy.conditions import CountCondition
from monai.deploy.core import AppContext, Application, Fragment, Operator, OperatorSpec
from monai.deploy.operators.dicom_data_loader_operator import DICOMDataLoaderOperator
from monai.deploy.operators.dicom_series_selector_operator import DICOMSeriesSelectorOperator
from results import write_results

import monai_usfm
from monai_usfm.files import write_text_atomically

logger = logging.getLogger(__name__)
RULES = Path(__file__).with_name("series.json")
SERIES = "study_selected_series_list"


class UltrasoundOperator(Operator):
    """Analyzes every still and cine of the selected series and writes the results.

    Args:
        fragment: the application.
        model: weights with their card, a bundle's folder or a TorchScript file.
        folder: where results go.
    """

    def __init__(self, fragment: Fragment, *args, model: Path, folder: Path, **kwargs) -> None:
        self.model, self.folder = model, folder
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        spec.input(SERIES)

    def compute(self, op_input, op_output, context) -> None:
        model = load_model(self.model)
        selected = [chosen.series for study in op_input.receive(SERIES) for chosen in study.selected_series]
        if not selected:
            raise ValueError(f"no series matches the rules in {RULES.name}.")
        files = [s.get_native_sop_instance().filename for series in selected for s in series.get_sop_instances()]
        report: dict = {
            "software": f"monai_usfm {monai_usfm.__version__}",
            "use": "research only, not for clinical use",
            "model": {"file": model.file.name, "sha256": model.sha256, "task": model.task, "classes": model.names},
            "images": [],
            "left_out": [],
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        made: dict[str, str] = {}
        for number, file in enumerate(sorted(set(map(str, files))), start=1):
            try:
                result = analyze(file, model)
            except (ValueError, OSError) as error:  # one file that is no image must not stop the study
                logger.warning("left out: %s", error)
                report["left_out"].append({"file": Path(file).name, "reason": str(error)})
                continue
            report["images"].append(write_results(result, model, self.folder, made, number))
        write_text_atomically(self.folder / "report.json", json.dumps(report, indent=1) + "\n")


class UltrasoundApplication(Application):
    """Folder of DICOM -> series chosen by rule -> results."""

    def __init__(self, context: AppContext) -> None:
        self.context = context
        super().__init__()

    def compose(self) -> None:
        # Without the count, an operator without inputs is run again and again.
        loader = DICOMDataLoaderOperator(
            self, CountCondition(self, 1), name="loader", input_folder=Path(self.context.input_path)
        )
        selector = DICOMSeriesSelectorOperator(self, name="selector", rules=RULES.read_text(), all_matched=True)
        analysis = UltrasoundOperator(
            self, name="analysis", model=Path(self.context.model_path), folder=Path(self.context.output_path)
        )
        self.add_flow(loader, selector, {("dicom_study_list", "dicom_study_list")})
        self.add_flow(selector, analysis, {(SERIES, SERIES)})


if __name__ == "__main__":
    UltrasoundApplication(Application.init_app_context()).run()
