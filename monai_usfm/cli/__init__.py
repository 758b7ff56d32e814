# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""The command ``monai-usfm``: one verb for each thing that a user does.

A verb is a function of the package whose docstring is its help and whose arguments are its options, written with
underscores or dashes alike. Its module is imported when it is called, so that ``--help`` is quick.

Exit status: 0 done; 1 the work failed, and the last line says why; 2 the command line is wrong; 3 done, but some inputs
could not be read (``predict``, ``convert-dicom``); 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError, Parameter

from monai_usfm import __version__

__all__ = ["app", "main"]

app = App(
    name="monai-usfm",
    help="Ultrasound foundation models for MONAI. `monai-usfm VERB --help` explains a verb.",
    version=__version__,
    default_parameter=Parameter(negative=(), consume_multiple=True, name_transform=lambda name: name),
)

VERBS = {
    "Data": {
        "convert-dicom": ("data.convert:convert_dicom_folder", "Convert DICOM to NIfTI or PNG, also de-identified."),
        "datalist": ("data:make_datalist", "Make a datalist from folders of files, split by patient."),
        "join-table": ("data:join_table", "Give the items of a datalist what a table knows of them."),
        "compound": ("data.sweeps:compound_sweep", "Make a volume from a freehand sweep and its poses."),
        "propagate": ("cli.cine:propagate", "Carry the label of one frame through a cine by optical flow."),
        "check-leaks": ("evaluation:check_leaks", "Stop when test data stand in the training data."),
    },
    "Networks": {
        "pretrain": ("cli.bundles:pretrain", "Train an encoder on images without labels."),
        "train": ("cli.bundles:train", "Train a network for a task, pretrained or from scratch."),
        "evaluate": ("cli.bundles:evaluate", "Score trained weights on a split of a datalist."),
        "predict": ("cli.bundles:predict", "Apply trained weights to a folder of images."),
        "adapt": ("cli.adapt:adapt", "Fit a trained segmentation to the images of another scanner."),
        "pseudo-label": ("evaluation.pseudo_labels:pseudo_label", "Label images where a network is sure."),
        "stream": ("cli.cine:stream", "Segment a cine frame by frame and print the latency."),
        "select": ("evaluation.selection:select", "Choose the images that are worth labeling next."),
        "calibrate": ("cli.bundles:calibrate", "Fit the temperature of trained weights."),
    },
    "Evidence": {
        "probe": ("evaluation.probes:probe", "Probe frozen encoders: neighbors, linear, attentive, dense."),
        "label-efficiency": ("evaluation.board:label_efficiency", "Compare networks on few and many labels."),
        "transfer-board": ("evaluation.board:transfer_board", "Compare starts on several tasks."),
        "audit": ("evaluation.audit:audit", "Robustness to other scanners; shortcuts of a classifier."),
    },
    "Clients": {
        "convert-weights": ("cli.convert:convert_weights", "Convert weights from and to published layouts."),
        "export": ("cli.export:export", "Write trained weights as TorchScript, torch.export, ONNX or safetensors."),
        "average": ("cli.weights:average", "Average the weights of several trainings."),
        "pack": ("cli.weights:pack", "Make a bundle of trained weights, for MONAI Label and Deploy."),
        "serve-label": ("cli.weights:serve_label", "Start MONAI Label with packed bundles."),
    },
}
"""Group -> verb -> its function in the package, imported when it is called, and its help."""

for _group, _verbs in VERBS.items():
    for _name, (_target, _help) in _verbs.items():
        app.command(f"monai_usfm.{_target}", name=_name, help=_help, group=_group)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the name of the program; None takes those of the process.

    Returns:
        The exit status.
    """
    try:
        result = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        return _fail(str(error), 2)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except SystemExit as error:  # of a workflow; text is a message, as Python has it
        return _fail(error.code, 1) if isinstance(error.code, str) else int(error.code or 0)
    except Exception as error:
        from monai_usfm.errors import report

        report(error)
        return 1
    if isinstance(result, list):
        from monai_usfm.files import FAILED, Failures

        return FAILED if result and isinstance(result, Failures) else 0
    return result if isinstance(result, int) and not isinstance(result, bool) else 0


def _fail(message: str, status: int) -> int:
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr)
    return status
