# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""The command line: what it refuses, how it fails, what it tells."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from monai_usfm.cli import app, main
from monai_usfm.settings import parse_options


@pytest.mark.parametrize(
    ("tokens", "options"),
    [
        ("--spatial_size [96,96]", {"spatial_size": [96, 96]}),
        ("--spatial_size 96 96", {"spatial_size": [96, 96]}),
        ("--learning-rate 1e-3 --amp", {"learning_rate": 0.001, "amp": True}),
        ("--network_def#width 256 --head=upernet", {"network_def#width": 256, "head": "upernet"}),
        (
            "--weight_decay -1 --resume false --pretrained null",
            {"weight_decay": -1, "resume": False, "pretrained": None},
        ),
        ("--device $torch.device('cpu')", {"device": "$torch.device('cpu')"}),
        ("--output_dir 2024 --cache_dir null --seed 7", {"output_dir": "2024", "cache_dir": None, "seed": 7}),
        ("--a#b {'_target_':'UNet','strides':(2,2)}", {"a#b": {"_target_": "UNet", "strides": (2, 2)}}),
    ],
)
def test_options_are_literals_text_lists_or_flags(tokens, options):
    assert parse_options(tokens.split()) == options


def test_a_value_without_an_option_is_refused():
    with pytest.raises(ValueError, match="'stray' belongs to no option"):
        parse_options(["stray", "--seed", "1"])


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["trian"], 2, 'Did you mean "train"'),
        (["train"], 2, "--task"),
        (["train", "--task", "segmentatio"], 2, 'Did you mean "segmentation"'),
        (["train", "--task", "segmentation", "--max_epoch", "3"], 1, "max_epochs"),
        (["train", "--task", "segmentation", "--overlays", "dem"], 1, "demo"),
        (["predict", "--dataset_dir", "here"], 1, "--checkpoint"),
        (["evaluate", "--dataset_dir", "here"], 1, "give --task"),
        (["average", "mean.pt", "a.pt", "./a.pt"], 1, "stands there twice"),
        (["train", "--task", "segmentation", "--seed", "$None"], 1, "--seed must have a value"),
        (["train", "--task", "enhancement", "--noise_strength", "0.5"], 1, "--noise_strength must be two numbers"),
        (["evaluate", "--task", "segmentation", "--bundle_root", "nowhere"], 1, "nowhere is no bundle"),
    ],
)
def test_the_last_line_of_a_failure_is_one_sentence(capfd, arguments, status, words):
    assert main(arguments) == status
    told = capfd.readouterr().err
    assert told.strip().splitlines()[-1].startswith("error: ") and words in told.strip().splitlines()[-1]
    assert "Traceback" not in told


def test_every_verb_has_help_from_its_docstring(capsys):
    verbs = [name for name in app if not name.startswith("-")]
    assert len(verbs) >= 4
    for verb in verbs:
        assert main([verb, "--help"]) == 0
        assert f"Usage: monai-usfm {verb}" in capsys.readouterr().out


def test_help_imports_neither_torch_nor_monai():
    code = "import sys; from monai_usfm.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0


def test_the_options_of_a_bundle_are_listed_as_they_would_be(capsys):
    assert main(["train", "--task", "segmentation", "--max-epochs", "7", "--list_options"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "--max_epochs 7" in lines
    assert '--output_dir "output/segmentation"' in lines
    assert "Passes" in lines[lines.index("--max_epochs 7") + 1]
    assert main(["evaluate", "--task", "segmentation", "--list_options"]) == 0
    told = capsys.readouterr().out
    assert "--split" in told and "--max_epochs" not in told


def test_an_option_that_changes_nothing_is_told(capsys, monkeypatch, tmp_path):
    for step in ("initialize", "run", "finalize"):
        monkeypatch.setattr(f"monai.bundle.ConfigWorkflow.{step}", lambda flow: None)
    words = ["--task", "segmentation", "--output_dir", str(tmp_path), "--device", "cpu", "--seed", "1", "--num_classes"]
    words += ["3", "--batch_size", "2", "--learning_rate", "1", "--train#trainer#max_epochs", "5"]
    assert main(["train", *words]) == 0
    assert "change nothing" not in capsys.readouterr().out
    assert main(["evaluate", *words, "--region", "0", "--validate#dataloader#num_workers", "1"]) == 0
    told = "these options change nothing here: --batch_size, --learning_rate, --train#trainer#max_epochs."
    assert told in capsys.readouterr().out


def test_a_prediction_that_left_files_out_ends_with_status_3(repository, tmp_path, capfd):
    image = min((repository / "examples" / "breast" / "images").glob("*.png"))
    (tmp_path / "in").mkdir()
    arguments = ["predict", "--task", "segmentation", "--dataset_dir", str(tmp_path / "in"), "--device", "cpu"]
    arguments += ["--output_dir", str(tmp_path / "out"), "--preview", "false"]
    shutil.copy(image, tmp_path / "in" / "whole.png")
    assert main(arguments) == 0
    (tmp_path / "in" / "half.png").write_bytes(image.read_bytes()[: image.stat().st_size // 2])
    assert main(arguments) == 3
    assert "half.png" in (tmp_path / "out" / "failed.csv").read_text()
    assert (tmp_path / "out" / "whole_seg.png").is_file()
