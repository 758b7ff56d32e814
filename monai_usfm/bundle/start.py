# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""The first step of every run of a bundle: look at its options, say clearly what cannot work, keep a record."""

from __future__ import annotations

import inspect
import os
import sys
import tempfile
from itertools import dropwhile
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from monai.bundle import ConfigParser
from monai.utils import set_determinism

from monai_usfm.bundle.training import rank
from monai_usfm.cards.card import sha256_of
from monai_usfm.data import mark_results
from monai_usfm.errors import install_hook, under_command_line
from monai_usfm.handlers import RunRecord
from monai_usfm.options import DESCRIPTIONS, check_names, check_together, check_values, flag, warn_without_effect
from monai_usfm.settings import PATHS, parse_options

__all__ = ["options", "path_names", "require_writable", "start", "stop"]

_waiting: list[RunRecord] = []  # of an evaluation that has not ended


def _parser() -> ConfigParser | None:
    """The parser that is evaluating the expression from which this is called.

    MONAI hands an expression the entries it refers to, and no way to see the others; but the parser is on the stack,
    under the command line, :class:`monai.bundle.ConfigWorkflow` and :func:`monai.bundle.load` alike.
    """
    frame = inspect.currentframe()
    while frame is not None:
        found = frame.f_locals.get("self")
        if isinstance(found, ConfigParser):
            return found
        frame = frame.f_back
    return None


def options() -> dict[str, Any]:
    """Values of the options that the config at hand describes, for a record and for a resumed run to compare."""
    parser = _parser()
    if parser is None:
        raise RuntimeError("options() is for an expression of a bundle's configuration.")
    return _values(parser)


def configuration() -> dict[str, Any] | None:
    """The configuration at hand, command line included, for a record; None where there is none."""
    parser = _parser()
    config: Any = {} if parser is None else parser.config
    return {name: value for name, value in config.items() if name not in ("_meta_", DESCRIPTIONS)} or None


def _values(parser: ConfigParser) -> dict[str, Any]:
    config: Any = parser.config
    return {name: parser.get_parsed_content(name) for name in config.get(DESCRIPTIONS, {}) if name in config}


def checked_options(parser: ConfigParser) -> dict[str, Any]:
    """Values of the options that a config describes.

    Raises:
        ValueError: for names that nothing reads (:func:`check_names`), values out of range (:func:`check_values`) and
            options that would do nothing (:func:`check_together`).
    """
    check_names(cast(Any, parser.config))
    values = _values(parser)
    check_values(values)
    check_together(values, parser)
    return values


def path_names() -> None:
    """Before :func:`start` in ``initialize``: a file or folder that is called 2024 is no number.

    MONAI's command line takes it for one, and 2024_01 for 202401: what was typed is text again.
    """
    parser = _parser()
    if parser is None:
        raise RuntimeError("path_names() is for an expression of a bundle's configuration.")
    config: Any = parser.config
    words = list(dropwhile(lambda word: not word.startswith("--"), sys.argv)) if under_command_line() else []
    given = parse_options(words)
    for name in PATHS.split():
        if type(config.get(name)) in (int, float):
            config[name] = str(given.get(name, config[name]))
            parser.ref_resolver.items[name].update_config(config[name])


def start(output_dir: str | os.PathLike | None = None, export_path: str | os.PathLike | None = None) -> None:
    """First entry of ``initialize``: refuse what cannot work, in one sentence, before anything is read or computed.

    Names that nothing reads (:func:`check_names`), values out of range (:func:`check_values`), options that would do
    nothing (:func:`check_together`) and places that cannot be written are refused. Under torchrun the processes are
    joined, see :func:`stop`. Under MONAI's command line the root cause of any later failure becomes the last line that
    is printed. ``output_dir`` is marked as a folder of results. An inference is recorded there
    (:class:`~monai_usfm.handlers.RunRecord`), in the folder of a training as ``inference_config.json`` and so on; an
    evaluation at its end, with its tables; a training once nothing refuses it any more.

    Args:
        output_dir: folder of the results.
        export_path: file that training writes its weights to.

    Raises:
        ValueError: see above, and where ``output_dir`` is ``dataset_dir`` itself or holds images.
        PermissionError: for a place that cannot be written.
    """
    install_hook()
    _waiting.clear()
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        dist.init_process_group(backend="nccl" if torch.cuda.is_available() else "gloo")
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    parser, values = _parser(), dict[str, Any]()
    if parser is not None:
        values = checked_options(parser)
        if under_command_line():  # the command monai-usfm knows itself what was given
            given = [word[2:].partition("=")[0] for word in sys.argv if word.startswith("--")]
            warn_without_effect(cast(Any, parser.config), given)
        if "seed" in values:
            set_determinism(seed=int(values["seed"]), use_deterministic_algorithms=None)
            exact = flag(values.get("deterministic", False))  # MONAI's seeding turns cuDNN's choice off
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = exact, not exact
    if export_path is not None:
        require_writable(Path(str(export_path)).parent, "export_path")
        for name in ("ckpt_dir", "cache_dir"):
            if values.get(name):
                require_writable(Path(str(values[name])), name)
    if output_dir is not None:
        require_writable(Path(str(output_dir)), "output_dir")
        mark_results(str(output_dir), values.get("dataset_dir"))
        if export_path is None and parser is not None and rank() == 0:
            weights = Path(str(values.get("checkpoint")))
            scored = {"sha256": sha256_of(weights)} if weights.is_file() else {}
            prefix = "inference_" if (Path(str(output_dir)) / "tensorboard").is_dir() else ""
            record = RunRecord(str(output_dir), {**values, **scored}, configuration(), prefix)
            if "validate" in cast(Any, parser.config):
                _waiting.append(record)
            else:
                record()


def stop() -> None:
    """Entry of ``finalize``: write the record of an evaluation, part the processes that :func:`start` joined."""
    while _waiting:
        _waiting.pop()()
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def require_writable(folder: Path, option: str) -> None:
    """Make the folder and write an empty file there.

    Raises:
        PermissionError: when that fails, naming the option.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise PermissionError(
            f"--{option}: nothing can be written to {folder} ({error.strerror}); name another place."
        ) from error
