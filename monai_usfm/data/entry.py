# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""One image file on its way into a datalist."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .pairing import SPLIT_WORDS, words_of

__all__ = ["Entry"]


@dataclass
class Entry:
    """An image file and what was found out about it."""

    path: Path
    root: Path  # the folder of the command line it lies in
    organ: str
    patient: str | None = None
    rule: str = ""  # how the patient was found
    labels: list[Path] = field(default_factory=list)  # several masks of one image are joined
    fov: Path | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    digest: str = ""
    hashes: np.ndarray | None = None
    num_frames: int = 1
    tells_white: bool = True  # data type or header gives the value of white
    unreadable: str = ""

    @property
    def below(self) -> str:
        """The path below the folder of the command line."""
        return self.path.relative_to(self.root).as_posix()

    @property
    def named_split(self) -> str | None:
        """The split that a folder's name gives the file, the nearest folder first; that of the command line counts."""
        for part in (self.root.name, *self.path.relative_to(self.root).parts[:-1])[::-1]:
            for word in words_of(part):
                if word in SPLIT_WORDS:
                    return SPLIT_WORDS[word]
        return None
