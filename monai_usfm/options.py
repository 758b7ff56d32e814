# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""The options of a bundle: names that nothing reads and values that cannot work are refused before anything starts.

MONAI takes every ``--name value`` for a new entry of the configuration, and runs as if nothing had been said. Here an
entry that no other one refers to is an error.
"""

from __future__ import annotations

import difflib
import inspect
import logging
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from monai.bundle import ComponentLocator, ConfigComponent, ConfigParser, ReferenceResolver
from monai.utils import ensure_tuple, optional_import, str2bool

__all__ = ["check_names", "check_together", "check_values", "flag", "set_options"]

logger = logging.getLogger(__name__)

DESCRIPTIONS = "_options_"  # entry of a config that says in a sentence what each option means
# Entries that MONAI and its clients look for by name, whether or not another entry refers to them.
CLIENT_IDS = (
    "imports initialize run finalize bundle_root device dataset_dir output_dir network_def network dataset dataloader "
    "inferer evaluator handlers preprocessing postprocessing pre_transforms post_transforms label_transforms "
    "displayable_configs train validate val_interval key_metric run_name"
)
GROUPS = ("train", "validate")
GROUP_IDS = (
    "preprocessing postprocessing dataset dataloader sampler inferer handlers trainer evaluator key_metric "
    "additional_metrics prepare_batch"
)
STEPS = ("imports", "initialize", "run", "finalize")  # what MONAI evaluates of a config; all else by their references
READ_AT_START = ("seed", "deterministic")  # by monai_usfm.bundle.start, of whatever config
READ_BY_CLIENTS, READ_IN_GROUPS = frozenset(CLIENT_IDS.split()), frozenset(GROUP_IDS.split())
# What users of other tools type.
SYNONYMS = {
    word: name
    for name, words in {
        "learning_rate": "lr",
        "max_epochs": "epochs num_epochs",
        "dataset_dir": "data data_dir root",
        "batch_size": "batch",
        "num_workers": "workers",
        "spatial_size": "image_size img_size roi_size",
        "output_dir": "out output save_dir",
        "device": "gpu",
        "pretrained": "weights init",
        "num_classes": "classes",
        "split": "section",
        "weight_decay": "wd",
        "network_size": "model",
        "checkpoint": "ckpt ckpt_path",
    }.items()
    for word in words.split()
}


def flag(value: Any) -> bool:
    """A switch as it may be written on a command line: ``true``, ``False``, ``1``, ``no``.

    Raises:
        ValueError: for anything else.
    """
    return value if isinstance(value, bool) else bool(str2bool(str(value)))


def _length(entry: Any) -> int:
    return len(entry) if isinstance(entry, list) else 0


def set_options(parser: ConfigParser, options: Mapping[str, Any]) -> None:
    """Put values at ids such as ``train#trainer#max_epochs``, as MONAI's command line does.

    Raises:
        ValueError: for an entry that no config has, with the nearest right name, where MONAI raises a KeyError.
    """
    for place, value in options.items():
        parts, there = ReferenceResolver.split_id(place), cast(Any, parser.config)
        for depth, part in enumerate(parts):
            known = list(there) if isinstance(there, Mapping) else [str(n) for n in range(_length(there))]
            new = depth == len(parts) - 1 and isinstance(there, Mapping)  # whether anything reads it is told later
            if part not in known and not new:
                near = _nearest("#".join(parts[: depth + 1]), part, known, parts[depth + 1 :])
                raise ValueError(f"There is no option --{place}.{near}")
            there = there.get(part) if isinstance(there, Mapping) else there[int(part)]
        parser[place] = value


def check_names(config: Mapping[str, Any]) -> None:
    """Refuse entries that nothing reads, and arguments that no function takes, with the nearest right name.

    Args:
        config: a merged configuration, command line included.

    Raises:
        ValueError: naming every such entry.
    """
    used = _references(config)
    for group in GROUPS:
        entries = config.get(group)
        if isinstance(entries, Mapping) and "dataloader" not in entries and f"{group}::dataloader" in used:
            raise ValueError(
                f"a config that was given later replaced all of {group!r}: write what it changes as one entry, such as "
                f'"{group}#{next(iter(entries), "dataset")}#NAME".'
            )
    described = set(config.get(DESCRIPTIONS, {}))
    known = described | {name for name in config if name in used}
    wrong: list[tuple[str, str, Iterable[str]]] = [
        (name, name, known)
        for name, value in config.items()
        if name not in used | described | READ_BY_CLIENTS and not name.startswith("_") and _is_typed(value)
    ]
    for group in GROUPS:
        entries = config.get(group)
        for name, value in entries.items() if isinstance(entries, Mapping) else ():
            if name not in READ_IN_GROUPS and f"{group}::{name}" not in used and _is_typed(value):
                wrong.append((f"{group}#{name}", name, READ_IN_GROUPS))
    locator = ComponentLocator()
    for place, component in _components(config):
        allowed = _arguments(component, locator)
        if allowed is None:
            continue
        for name in component:
            if name not in allowed and name not in ConfigComponent.non_arg_keys:
                wrong.append((f"{place}#{name}", name, allowed))
    if wrong:
        raise ValueError(
            " ".join(f"There is no option --{place}.{_nearest(place, name, names)}" for place, name, names in wrong)
            + " --list_options of the command, or `_options_` of the config, has them all."
        )


def warn_without_effect(config: Mapping[str, Any], given: Iterable[str], used: Sequence[str] = STEPS) -> None:
    """Say which of the names that a user gave are options that change nothing (:func:`without_effect`).

    No error, because one list of options may serve a training and its evaluation. Names that are no options are left to
    :func:`check_names`, and to those who take them.
    """
    described = config.get(DESCRIPTIONS, ())
    names = [name for name in given if name in described or len(ReferenceResolver.split_id(name)) > 1]
    if idle := without_effect(config, names, used):
        logger.warning("these options change nothing here: %s.", ", ".join(f"--{name}" for name in idle))


def _is_typed(value: Any) -> bool:
    """Whether it is what a user types for an option: no part that is built, which another network may leave unused."""
    return not isinstance(value, Mapping) and not (isinstance(value, str) and value[:1] in "$@%" and value)


def _nearest(place: str, name: str, names: Iterable[str], rest: Sequence[str] = ()) -> str:
    names = sorted(names)
    found = [SYNONYMS[name]] if SYNONYMS.get(name) in names else difflib.get_close_matches(name, names, 2, 0.55)
    found = found or [other for other in names if name in other or other in name][:2]
    prefix = place[: -len(name)]
    return f" Did you mean {' or '.join('#'.join([f'--{prefix}{other}', *rest]) for other in found)}?" if found else ""


def _leaves(config: Any) -> Iterator[str]:
    if isinstance(config, str):
        yield config
    elif isinstance(config, Mapping):
        for name, value in config.items():
            if name not in (DESCRIPTIONS, "_desc_", "_meta_"):
                yield from _leaves(value)
    elif isinstance(config, list | tuple):
        for value in config:
            yield from _leaves(value)


def _ids(config: Any) -> set[str]:
    """Ids that entries refer to, such as ``train::trainer::max_epochs``."""
    return {name for text in _leaves(config) for name in ReferenceResolver.match_refs_pattern(text)}


def _references(config: Mapping[str, Any]) -> set[str]:
    """Ids that entries refer to, with the ids around them: ``train::trainer`` of ``@train::trainer::max_epochs``."""
    split = [name.split("::") for name in _ids(config)]
    return {"::".join(parts[:end]) for parts in split for end in range(1, len(parts) + 1)}


def _entry(config: Any, place: str) -> Any:
    """What stands at an id; None where nothing does."""
    for part in place.split("::"):
        if isinstance(config, list):
            config = config[int(part)] if part.isdigit() and int(part) < len(config) else None
        else:
            config = config.get(part) if isinstance(config, Mapping) else None
    return config


def without_effect(config: Mapping[str, Any], options: Iterable[str], used: Sequence[str] = STEPS) -> list[str]:
    """Those options that change nothing, because no entry that a run comes to refers to them, such as
    ``learning_rate`` in an evaluation, whose config lies over that of the training.

    Args:
        config: a merged configuration, command line included.
        options: ids of its entries.
        used: ids of the entries that are evaluated; default: those of a run.
    """
    reached, waiting = set(READ_AT_START), list(used)
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting.extend(_ids(_entry(config, name)))

    def read(option: str) -> bool:
        place = "::".join(ReferenceResolver.split_id(option))
        return any(f"{place}::".startswith(f"{name}::") or name.startswith(f"{place}::") for name in reached)

    return [option for option in options if not read(option)]


def _components(config: Any, place: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every entry that builds something, with its id."""
    if isinstance(config, Mapping):
        if "_target_" in config:
            yield place, config
        for name, value in config.items():
            if name != "_meta_":
                yield from _components(value, f"{place}#{name}" if place else str(name))
    elif isinstance(config, list):
        for index, value in enumerate(config):
            yield from _components(value, f"{place}#{index}")


def _arguments(component: Mapping[str, Any], locator: ComponentLocator) -> set[str] | None:
    """Names that the target takes; None where that cannot be known."""
    target = ConfigComponent(dict(component), locator=locator).resolve_module_name()
    if not isinstance(target, str) or target.startswith("$"):
        return None
    module, _, name = target.rpartition(".")
    thing, there = optional_import(module, name=name) if module else (None, False)
    if not there:
        return None
    names: set[str] = set()
    for function in _signatures(thing):
        parameters = inspect.signature(function).parameters.values()
        names.update(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
        if not any(p.kind == p.VAR_KEYWORD for p in parameters):
            return names
    return None  # the last one takes anything


def _signatures(thing: Any) -> list[Callable[..., Any]]:
    """The function, or a class that states its signature; of others the constructors of it and of its bases.

    A constructor may pass on to a base what it does not name.
    """
    if not inspect.isclass(thing) or "__signature__" in vars(thing):
        return [thing]
    return [vars(base)["__init__"] for base in thing.__mro__ if base is not object and "__init__" in vars(base)]


def _whole(low: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= low


def _number(low: float, high: float = math.inf, open_low: bool = False) -> Callable[[Any], bool]:
    def fits(value: Any) -> bool:
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            return False
        return (low < value if open_low else low <= value) and value <= high

    return fits


def _each(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: all(map(fits, value)) and len(value) > 0 if isinstance(value, list | tuple) else fits(value)


def _accepted(function: Callable[[Any], Any]) -> Callable[[Any], bool]:
    def fits(value: Any) -> bool:
        try:
            function(value)
        except (RuntimeError, AssertionError, TypeError, ValueError):  # the second: PyTorch was built without CUDA
            return False
        return True

    return fits


EXACT_TYPES = (".png", ".tif", ".tiff", ".bmp", ".nii", ".nii.gz", ".mha", ".nrrd")
"""Types of one file that keep the values of a result: JPEG would spread the classes of a mask."""

# Options without which nothing runs; of others None stands for the default.
_NEEDED = (
    "seed learning_rate weight_decay layer_decay warmup_epochs clip_norm num_workers figure_interval device amp "
    "output_dir ckpt_dir export_path label_fraction accumulation_steps"
)
# What options of these names must be in every bundle that has them, and how that is said.
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "max_epochs batch_size accumulation_steps val_interval save_interval in_channels crops_per_volume epoch_length "
    "frames_per_cine": (
        _whole(1),
        "a whole number from 1",
    ),
    "num_workers figure_interval seed lora_rank dropout_samples frozen_blocks clicks": (
        _whole(0),
        "a whole number from 0",
    ),
    "spatial_size patch_size": (_each(_whole(1)), "whole numbers from 1, one for each axis"),
    "learning_rate clip_norm full_scale temperature dynamic_range_db teacher_scale pair_temperature": (
        _number(0, open_low=True),
        "a number above 0",
    ),
    "weight_decay warmup_epochs organ_temperature mixup_alpha temporal_sigma pair_weight "
    "segmentation_weight distillation_weight restoration_weight texture_weight": (_number(0), "0 or more"),
    "layer_decay label_fraction": (_number(0, 1, open_low=True), "in (0, 1]"),
    "holdout dropout label_smoothing background_crops": (_number(0, 1), "in [0, 1]"),
    "mask_ratio": (lambda value: _number(0, 1)(value) and value < 1, "in [0, 1)"),
    "values landmarks class_names": (
        lambda value: isinstance(value, list | tuple) and bool(value) and all(isinstance(name, str) for name in value),
        "a list of names, such as \"['length']\"",
    ),
    "label_values": (
        _accepted(lambda value: [operator.index(n) for entry in value for n in ensure_tuple(entry)]),
        'a list of whole numbers, such as "[0,255]", or of colors, such as "[[0,0,0],[0,255,0]]"',
    ),
    "noise_strength noise_looks noise_psf_sigma noise_blur_sigma": (
        lambda value: (
            isinstance(value, list | tuple) and len(value) == 2 and _each(_number(0))(value) and value[0] <= value[1]
        ),
        "two numbers, low and high, from 0",
    ),
    "views": (
        lambda value: isinstance(value, list | tuple) and all(map(_number(0, open_low=True), value)),
        'a list of sizes above 0, such as "[0.83, 1, 1.17]"',
    ),
    "feature_blocks": (_accepted(lambda value: list(map(operator.index, value))), 'a list such as "[5, 11]"'),
    "presence_threshold": (_number(-math.inf), "a number"),
    "num_classes": (_whole(2), "a whole number from 2, the background included"),
    "spatial_dims": (lambda value: value in (2, 3) and not isinstance(value, bool), "2 or 3"),
    "device": (
        _accepted(lambda value: torch.empty(0, device=value)),
        "a device of this machine, such as cpu or cuda:0",
    ),
    "output_ext": (lambda value: value in EXACT_TYPES, f"one of {', '.join(EXACT_TYPES)}"),
    "amp": (lambda value: value in ("auto", "fp32", "bf16", "fp16"), "auto, fp32, bf16 or fp16"),
    "resume resume_anyway compile use_checkpoint sharded deterministic freeze_encoder class_balance "
    "circumference fill_outlines resident uncertainty box pairs preview statistics components muscle frames "
    "skip_unreadable": (
        _accepted(flag),
        "true or false",
    ),
}
RULES = {name: rule for names, rule in _RULES.items() for name in names.split()}


def check_values(options: Mapping[str, Any]) -> None:
    """Refuse values that cannot work.

    Args:
        options: resolved options by name; those without a rule pass.

    Raises:
        ValueError: naming the option, its value and what it must be.
    """
    for name, value in options.items():
        fits, wanted = RULES.get(name, (lambda _: True, ""))
        if isinstance(value, str) and value == "null" and name != "pretrained":
            raise ValueError(f"--{name} null is a word to MONAI's command line: for none write --{name} '$None'.")
        if value is None and name in _NEEDED.split():
            raise ValueError(f"--{name} must have a value: leave it out for its default.")
        if value is not None and not fits(value):
            raise ValueError(f"--{name} must be {wanted}; got {value!r}.")


# Options that would do nothing beside another entry of a config: the entry, whether it must hold, the options, and what
# the error says of them.
_TOGETHER: tuple[tuple[str, bool, str, str], ...] = (
    (
        "points",
        False,
        "num_classes label_values class_names background_crops circumference presence_threshold uncertainty components "
        "muscle",
        "is not for landmarks, only for masks: leave it out",
    ),
    (
        "numbers",
        False,
        "num_classes class_names class_balance temperature uncertainty",
        "is not for numbers (values), only for classes: leave it out",
    ),
    (
        "volume",
        False,
        "background_crops frames muscle circumference views",
        "is only for a network of 2D images: leave it out",
    ),
    ("freeze_encoder", False, "lora_rank", "does not go with --freeze_encoder true: leave one out"),
    ("cine", False, "components views", "is not for the frames of cines: leave it out"),
    ("cine", True, "temporal_sigma", "is only for cines: give --frames true too"),
    ("statistics", True, "components muscle", "is for the table of measurements: give --statistics true too"),
    ("paired", True, "input_key target_key", "is only for recorded pairs: give --pairs true too"),
    (
        "uncertainty",
        True,
        "dropout dropout_samples",
        "is for the mean over dropout masks: give --uncertainty true too",
    ),
    ("roi_key", True, "background_key", "is only for the contrast of a structure: give --roi_key too"),
    ("prompts", True, "box", "is only for weights that take prompts: leave it out"),
)


def _asked(name: str, value: Any) -> bool:
    if value is None or RULES.get(name) is RULES["resume"]:
        return value is not None and flag(value)
    return len(value) > 0 if hasattr(value, "__len__") else value != 0


def check_together(options: Mapping[str, Any], parser: ConfigParser) -> None:
    """Refuse options that would do nothing beside others, or beside what the card of the weights says.

    Args:
        options: resolved options by name.
        parser: of the config that has them, whose further entries say what is done.

    Raises:
        ValueError: naming the option and what to do.
    """
    config: Any = parser.config
    for entry, wanted, names, sentence in _TOGETHER:
        given = [name for name in names.split() if _asked(name, options.get(name))]
        if given and entry in config and _asked(entry, parser.get_parsed_content(entry)) is not wanted:
            raise ValueError(f"--{given[0]} {sentence}.")
