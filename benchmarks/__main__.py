# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Every table of the benchmarks, one after the other: ``python benchmarks FOLDER_OF_IMAGES``."""

import subprocess
import sys
from pathlib import Path

if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
    sys.exit("usage: python benchmarks FOLDER_OF_IMAGES")
here = Path(__file__).parent
for script, arguments in (
    ("programs.py", [sys.argv[1]]),
    ("transforms.py", []),
    ("pretraining.py", ["--size", "tiny", "--data", sys.argv[1]]),
    ("pretraining.py", ["--size", "base"]),
):
    print(f"\n## {script} {' '.join(arguments)}", flush=True)
    subprocess.run([sys.executable, str(here / script), *arguments], check=True)
