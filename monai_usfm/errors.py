# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""The clear sentence comes last: what went wrong in a run, without the frames that MONAI puts around it."""

from __future__ import annotations

import errno
import re
import sys
import traceback
from pathlib import Path
from types import TracebackType

import torch

__all__ = ["describe", "install_hook", "report", "root_cause", "under_command_line"]

PACKAGE = Path(__file__).parent
REFUSALS = (ValueError, ImportError, RuntimeError, FloatingPointError)
WORKER = " in DataLoader worker process"
LONGEST = 600  # characters of the last line
# How MONAI begins the message of an exception that only says where another one happened.
FRAMES = ("Failed to evaluate", "Failed to instantiate", "applying transform")
# What stands between the exceptions of a chain in the text that a worker of a data loader hands over.
LINKS = re.compile(r"\n\n(?:The above exception was the direct cause|During handling of the above exception)[^\n]*\n\n")


def root_cause(error: BaseException) -> BaseException:
    """The outermost exception of a chain that is not one of MONAI's frames around another."""
    while str(error).startswith(FRAMES):
        inner = error.__cause__ or error.__context__
        if inner is None:
            break
        error = inner
    return error


def report(error: BaseException) -> None:
    """Print the root cause as the last line; before it the traceback, unless the line says all.

    It does of a file that cannot be read or written, and of what this package refuses; not of a call that failed.
    """
    root = root_cause(error)
    if not (isinstance(root, OSError) or (isinstance(root, REFUSALS) and _refused(root))):
        traceback.print_exception(error)
    print(f"error: {describe(error)}", file=sys.stderr)
    sys.stderr.flush()


def _refused(error: BaseException) -> bool:
    """Whether a ``raise`` of this package made the error, in this process or in a worker of a data loader."""
    if WORKER in str(error):
        return PACKAGE in Path(_of_worker(str(error))[2]).parents
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and PACKAGE in Path(frames[-1].filename).parents and str(frames[-1].line).startswith("raise ")


def describe(error: BaseException) -> str:
    """The root cause in one line: its message, with the name of the exception where the message alone says little."""
    error = root_cause(error)
    if isinstance(error, RuntimeError) and ("unexpected pos" in str(error) or "PytorchStreamWriter" in str(error)):
        return "no space is left on the disk for a checkpoint or weights: free some, or give another --output_dir."
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        place = error.filename or "output_dir"
        return f"no space is left on the disk of {place}: free some, or give another --output_dir."
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and error.filename:
        return (
            f"{error.filename} may not be written or read ({error.strerror}): change its permissions or name another."
        )
    if isinstance(error, torch.OutOfMemoryError):
        return "the GPU's memory is full: lower --batch_size, or raise --accumulation_steps and lower --batch_size."
    message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    kind = type(error).__name__
    if isinstance(error, KeyError) and isinstance(error.__cause__, ValueError):  # MONAI's look-up in a config
        return f"there is no such entry in the config. {str(error.__cause__).splitlines()[0]}"
    if WORKER in message:
        kind, message, _ = _of_worker(message)
    message = " ".join(message.split())
    message = message if len(message) <= LONGEST else f"{message[:LONGEST]} ..."  # a list of every weight, say
    clear = isinstance(error, RuntimeError | ValueError | OSError | FloatingPointError) and len(message) > 20
    return message if clear else f"{kind}: {message}"


def _of_worker(text: str) -> tuple[str, str, str]:
    """Kind, message and file of the root cause in the traceback that a worker process prints for its parent."""
    kind, message, file = "RuntimeError", text, ""
    for part in reversed(LINKS.split(text)):  # outermost first, as root_cause goes
        found = re.search(r"^(?:\w+\.)*(\w+): (.*)\Z", part.strip(), re.DOTALL | re.MULTILINE)
        last = [line for line in part.strip().splitlines() if re.match(r"^(?:\w+\.)*\w+(?:: |$)", line)]
        if not found or not last:
            continue
        name, _, message = part[part.rindex(last[-1]) :].strip().partition(": ")
        kind, files = name.rpartition(".")[2], re.findall(r'^  File "(.+)", line', part, re.MULTILINE)
        file = files[-1] if files else ""
        if not message.startswith(FRAMES):
            break
    return kind, message, file


def under_command_line() -> bool:
    """Whether this process is ``python -m monai.bundle``."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec is not None and spec.name.startswith("monai.bundle")


def install_hook() -> None:
    """Under MONAI's command line, :func:`report` the error of a failing run."""
    if under_command_line():
        sys.excepthook = _print_error


def _print_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not isinstance(error, KeyboardInterrupt):
        return report(error)
    traceback.print_exception(kind, error, trace)
    print("\nstopped; a training goes on where it was with --resume true.", file=sys.stderr, flush=True)
