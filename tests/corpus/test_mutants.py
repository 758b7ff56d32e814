# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""The faults of mutants.py, in a process that has not imported the package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_tests_notice_every_fault():
    done = subprocess.run([sys.executable, Path(__file__).with_name("mutants.py")], capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stdout
