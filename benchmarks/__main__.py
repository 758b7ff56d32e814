# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Every table of the benchmarks, one after the other: ``python benchmarks FOLDER_OF_IMAGES [--quick]``."""

import subprocess
import sys
import tempfile
from pathlib import Path

folder, *more = sys.argv[1:] or [""]
if not Path(folder).is_dir() or not folder or more not in ([], ["--quick"]):
    sys.exit("usage: python benchmarks FOLDER_OF_IMAGES [--quick]")
quick = bool(more)
here = Path(__file__).parent
with tempfile.TemporaryDirectory() as scratch:
    growth = [scratch, "--counts", "1000", "--sides", "7", "14", "--rounds", "2"] if quick else [scratch]
    for script, arguments in (
        ("programs.py", [folder, *(["--images", "8", "--rounds", "2"] if quick else [])]),
        ("transforms.py", ["speckle", "band_stop", "--rounds", "2", "--shapes", "2D 224"] if quick else []),
        ("pretraining.py", ["--size", "tiny", "--data", folder, *(["--batch", "2", "--rounds", "2"] if quick else [])]),
        *([] if quick else [("pretraining.py", ["--size", "base"])]),
        ("growth.py", growth),
    ):
        print(f"\n## {script} {' '.join(arguments)}", flush=True)
        subprocess.run([sys.executable, str(here / script), *arguments], check=True)
