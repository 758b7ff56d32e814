# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""``python -m monai_usfm`` is the command ``monai-usfm``."""

from __future__ import annotations

import sys

from monai_usfm.cli import main

if __name__ == "__main__":
    sys.exit(main())
