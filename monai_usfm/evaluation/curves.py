# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Label-efficiency curves with the bundles' own training: what ``monai-usfm label-efficiency`` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai_usfm.cards import network_options
from monai_usfm.evaluation.bundle_runs import BundleTraining
from monai_usfm.evaluation.images import read_items
from monai_usfm.evaluation.label_efficiency import (
    FRACTIONS,
    label_subsets,
    run_label_efficiency,
    summarize_label_efficiency,
)
from monai_usfm.settings import literal, split_named_path

__all__ = ["BASELINES", "label_efficiency"]

_LEVELS = {"channels": [16, 32, 64, 128, 256], "strides": [2, 2, 2, 2]}
_NESTED = {"kernel_size": [3] * 5, "strides": [1, 2, 2, 2, 2], "upsample_kernel_size": [2] * 4}
_TINY = {"hidden_size": 192, "mlp_dim": 768, "num_heads": 3}
BASELINES: dict[str, dict[str, Any]] = {
    "unet": {"_target_": "UNet", **_LEVELS, "num_res_units": 2},
    "attention_unet": {"_target_": "AttentionUnet", **_LEVELS},
    "segresnet": {"_target_": "SegResNet", "init_filters": 16},
    "unetr": {"_target_": "UNETR", **_TINY},
    "dynunet": {"_target_": "DynUNet", **_NESTED},
    "densenet121": {"_target_": "DenseNet121"},
}
"""MONAI's networks with usual settings, as the bundles' ``network_def``: nothing else of the training changes."""


def label_efficiency(
    datalist: str,
    *,
    task: str = "segmentation",
    pretrained: Sequence[str] = (),
    baselines: Sequence[str] = ("scratch",),
    fractions: Sequence[float] = FRACTIONS,
    seeds: Sequence[int] = (0, 1, 2),
    steps: int | None = 400,
    seconds: float | None = None,
    learning_rate: float = 1e-3,
    baseline_learning_rate: float = 1e-3,
    dataset_dir: str | None = None,
    label_fractions: str | None = None,
    overlays: Sequence[str] = (),
    reference: str | None = None,
    title: str = "",
    output_dir: str = "label_efficiency",
    options: dict[str, Any] | None = None,
) -> Path:
    """Train networks on 5, 10, 20, 50 and 100 % of the labeled patients with a bundle's ``train.json``; compare them.

    Each network is trained and scored by the bundle itself, so its numbers are those of ``monai-usfm train`` and
    ``evaluate``. Finished cells are kept: run it again to continue, or with more seeds. Writes ``cells.csv``,
    ``label_efficiency.csv``, ``.md`` and ``.png``.

    Args:
        datalist: JSON file with ``training``, ``validation`` and ``test``.
        task: bundle: ``segmentation`` or ``classification``.
        pretrained: weights to start from, as FILE or NAME=FILE.
        baselines: ``scratch``, the bundle's network without pretrained weights, and MONAI's networks: ``unet``,
            ``attention_unet``, ``segresnet``, ``unetr``, ``dynunet``, ``densenet121``.
        fractions: of the labeled patients.
        seeds: of training; the parts of the data are the same for all.
        steps: optimizer steps of every training; None trains for the bundle's ``max_epochs``.
        seconds: computing time of every training instead of ``steps``.
        learning_rate: of the networks of this package.
        baseline_learning_rate: of MONAI's networks.
        dataset_dir: folder the paths of the datalist start from; default: that of the file.
        label_fractions: the data set's own parts; default: ``label_fractions.json`` beside the datalist, if any.
        overlays: names of further configs of the bundle.
        reference: the network that is tested against the others; default: the first.
        title: of the table and the figure.
        output_dir: folder of the results.
        options: further options of the bundle; on the command line ``--options.max_epochs 30``.

    Returns:
        The table in Markdown.

    Raises:
        ValueError: for two networks of one name, a baseline that is not known, or none to compare.
        FileNotFoundError: for parts that are not there.
    """
    given = {name: literal(value) for name, value in (options or {}).items()}
    networks: dict[str, dict[str, Any]] = {}
    for entry in pretrained:
        name, path = split_named_path(entry)
        _add(networks, name or "pretrained", {"pretrained": path, "learning_rate": learning_rate})
    for name in baselines:
        if name == "scratch":
            _add(networks, name, {"pretrained": None, "layer_decay": 1.0, "learning_rate": learning_rate})
        elif name in BASELINES:
            settings = {
                "network_def": _baseline(name, task, given),
                "pretrained": None,
                "layer_decay": 1.0,
                "learning_rate": baseline_learning_rate,
            }
            _add(networks, name, settings)
        else:
            raise ValueError(f"there is no baseline {name!r}; choose from scratch, {', '.join(BASELINES)}.")
    if not networks:
        raise ValueError("there is no network to train: give pretrained or baselines.")
    folder = Path(dataset_dir) if dataset_dir else Path(datalist).parent
    splits = {split: read_items(datalist, split, dataset_dir) for split in ("training", "validation", "test")}
    published = Path(label_fractions) if label_fractions else Path(datalist).parent / "label_fractions.json"
    if label_fractions and not published.is_file():
        raise FileNotFoundError(f"{published}: no such file; without label_fractions the parts are drawn here.")
    subsets = label_subsets(splits["training"], fractions, published if published.is_file() else None, folder)
    budget = {"seconds": seconds} if seconds else {"steps": steps} if steps else {}
    training = BundleTraining(
        task,
        networks,
        splits,
        subsets,
        Path(output_dir) / "runs",
        overlays,
        **budget,
        **{k: literal(v) for k, v in (options or {}).items()},
    )
    conditions = {
        **training.conditions(),
        "datalist": Path(datalist).name,
        "parts": published.name if published.is_file() else "label_fraction, seed 0",
    }
    run_label_efficiency(training, output_dir, training.describe(), fractions, seeds, conditions)
    primary = "macro_f1" if task == "classification" else "dice"
    print(summarize_label_efficiency(output_dir, primary, reference or next(iter(networks)), title))
    return Path(output_dir) / "label_efficiency.md"


def _baseline(name: str, task: str, options: dict[str, Any]) -> dict[str, Any]:
    """Definition of one of MONAI's networks for the images and classes of the bundle with these options."""
    sizes = ("spatial_dims", "spatial_size", "in_channels", "num_classes")
    plan = network_options(task, **{key: options[key] for key in sizes if key in options})
    image = {"img_size": plan["spatial_size"]} if name == "unetr" else {}
    axes = {"spatial_dims": plan["spatial_dims"], "in_channels": plan["in_channels"]}
    return {**BASELINES[name], **image, **axes, "out_channels": plan["num_classes"]}


def _add(networks: dict[str, dict[str, Any]], name: str, options: dict[str, Any]) -> None:
    if name in networks:
        raise ValueError(f"two networks are called {name!r}: give each weight file a name of its own, NAME=FILE.")
    networks[name] = options
