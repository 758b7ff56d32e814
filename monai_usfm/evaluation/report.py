# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Tables in Markdown, and the conditions that a number was made under."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import monai
import torch
from monai.config import PathLike

from monai_usfm import __version__
from monai_usfm.cards.card import sha256_of

__all__ = ["conditions_of_run", "file_digest", "markdown_table"]


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; floats with three decimals."""
    shown = [[f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    lines = [list(columns), ["---"] * len(columns), *shown]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def file_digest(path: PathLike) -> str:
    """First 12 hexadecimal digits of the SHA-256 of a file: tells weights of one name apart."""
    return sha256_of(Path(path))[:12]


def conditions_of_run(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Versions, commit and machine under which a number is made."""
    device = torch.device(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "monai_usfm": __version__,
        "commit": _commit(),
        "torch": torch.__version__,
        "monai": monai.__version__,
        "python": platform.python_version(),
        "device": f"{device.type} ({name})",
        "threads": torch.get_num_threads(),
    }


@lru_cache(maxsize=1)  # of the code that was imported, whatever happens to the files later
def _commit() -> str:
    """Commit of the checkout this package runs from, with ``+`` when its files were edited; empty without one."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=here, capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        return commit + ("+" if git("status", "--porcelain", "--untracked-files=no", "..") else "")
    except (OSError, subprocess.SubprocessError):
        return ""
