# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""The last line of a failing run is its root cause."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset

from monai_usfm.data import LoadUltrasound, UnreadableImageError
from monai_usfm.errors import describe, report, root_cause
from monai_usfm.metrics.scores import confusion_counts
from monai_usfm.settings import parse_options


def broken(path: str) -> None:
    try:
        raise KeyError("decoder")
    except KeyError as error:
        raise UnreadableImageError(path, "not an image; convert it to PNG.") from error


def load(path: str) -> None:
    LoadUltrasound()(path)


def caught(function) -> Exception:
    with pytest.raises(Exception) as info:
        function()
    return info.value


def test_the_frames_that_monai_puts_around_an_error_are_left_out() -> None:
    parser = ConfigParser({"read": broken, "a": "$@read('x.png')", "b": "$@a + 1"})
    error = caught(lambda: parser.get_parsed_content("b"))
    assert str(error).startswith("Failed to evaluate")
    assert isinstance(root_cause(error), UnreadableImageError)
    assert describe(error) == "x.png: not an image; convert it to PNG."


def test_an_error_in_a_transform_of_a_worker_is_named_as_in_the_main_process() -> None:
    data = Dataset([{"image": "x.png"}], transform=lambda item: broken(item["image"]))
    for workers in (0, 1):
        error = caught(lambda n=workers: list(DataLoader(data, num_workers=n)))
        assert describe(error).endswith("x.png: not an image; convert it to PNG.")


def test_an_error_that_says_little_has_its_kind_in_front() -> None:
    assert describe(KeyError("label")) == "KeyError: label"


def test_a_full_disk_is_said_as_such() -> None:
    assert "no space is left on the disk of out/last.pt: free some" in describe(OSError(28, "No space", "out/last.pt"))
    torchs = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 24256 vs 24144")
    assert "no space is left on the disk for a checkpoint" in describe(torchs)


@pytest.mark.parametrize(
    ("function", "traceback"),
    [
        (lambda: parse_options(["stray"]), False),
        (lambda: list(DataLoader(Dataset(["x.png"], transform=load), num_workers=1)), False),
        (Path("gone.txt").read_text, False),
        (lambda: confusion_counts(np.array([-1]), np.array([0]), 2), True),  # what is called from this package
        (lambda: json.loads("{"), True),
    ],
)
def test_a_traceback_is_printed_unless_the_sentence_says_all(function, traceback: bool, capsys) -> None:
    report(caught(function))
    told = capsys.readouterr().err
    assert told.splitlines()[-1].startswith("error: ") and ("Traceback" in told.splitlines()[0]) is traceback


def test_the_last_line_of_a_failing_command_is_the_cause(tmp_path: Path) -> None:
    config = {
        "imports": ["$import monai_usfm.bundle as bundle", "$import json"],
        "initialize": ["$bundle.start()"],
        "count": 0,
        "run": ["$json.loads('{') if @count else None"],
    }
    (tmp_path / "run.json").write_text(json.dumps(config))

    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(tmp_path / "run.json")]
    done = subprocess.run([*command, "--count", "1"], capture_output=True, text=True)
    assert done.returncode == 1
    first, *_, last = done.stderr.splitlines()
    assert last == "error: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"
    assert first != last
