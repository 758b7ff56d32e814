#!/usr/bin/env python
# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Which settings of the pretraining bundle pay: each arm trains for the same time, then probes and fine-tuning judge.

    python scripts/ablate_pretraining.py --dataset_dir data --datalist data/unlabelled/pretraining.json \\
        --labelled data/busbra/dataset.json --patient_table data/busbra/labels.csv --also fetal_head.json \\
        --output ablation

Every arm is `bundles/usfm_pretraining` with one setting changed, on the same images. A few of its steps are timed, then
its epochs are made as long as the time allows, so that the learning rate reaches its end. The encoder is judged on
validation splits only: a linear probe of the class, a dense linear probe of the label (of a second data set too with
--also, whose items name their patients), and UPerNet on the frozen encoder, trained on 10 and 20 % of the patients.
Finished runs are kept: call it again to go on. Writes runs.csv, ablation.csv, ablation.md and ablation.png.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn as nn
from ignite.engine import Events
from matplotlib.figure import Figure
from monai.bundle import ConfigWorkflow
from monai.networks.nets import MaskedAutoEncoderViT
from scipy import stats

from monai_usfm.data import load_datalist, write_synthetic_dataset
from monai_usfm.evaluation import (
    CaseSet,
    FineTuning,
    NetworkSpec,
    Recipe,
    add_patient_options,
    add_patients,
    dense_linear_probe,
    extract_features,
    label_subsets,
    linear_probe,
    load_cases,
    patients_of,
)
from monai_usfm.evaluation.report import conditions_of_run, markdown_table, save_figure
from monai_usfm.files import write_csv, write_text_atomically
from monai_usfm.networks import UltrasoundViT
from monai_usfm.networks.blocks.patch_embed import patchify

BUNDLE = Path(__file__).resolve().parents[1] / "bundles" / "usfm_pretraining"
EPOCHS = 10  # their length is what the time decides; the first is the warm-up
TIMED_STEPS = 5
FRACTIONS = (0.1, 0.2)
REFERENCE = "reference"
EARLY = ("reference", "fill", "objective", "encoder", "control")


class MonaiMAE(nn.Module):
    """MONAI's ``MaskedAutoEncoderViT`` with the loss that it leaves to its user, in float32: autocast breaks it."""

    def __init__(self, img_size: Sequence[int], **settings: Any) -> None:
        super().__init__()
        self.net = MaskedAutoEncoderViT(1, img_size, 16, decoder_mlp_dim=384, spatial_dims=2, qkv_bias=True, **settings)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        with torch.autocast(image.device.type, enabled=False):
            prediction, mask = self.net(image.float())
            error = (prediction - patchify(image.float(), (16, 16))).square().mean(dim=-1)
            return {"loss": (error * mask).sum() / mask.sum()}

    def forward_features(self, image: torch.Tensor) -> torch.Tensor:
        """``(B, 1, H, W) -> (B, 1 + N, E)``, class token first."""
        with torch.autocast(image.device.type, enabled=False):
            tokens = self.net.patch_embedding(image.float())
            return self.net.blocks(torch.cat([self.net.cls_token.expand(len(tokens), -1, -1), tokens], dim=1))


@dataclass(frozen=True)
class Arm:
    """One setting of the bundle.

    Args:
        group: what is varied.
        value: its value.
        changes: keys of its config -> values.
        synthetic: simulated images that are added to the list.
        trained: False leaves the weights as they were drawn.
    """

    group: str
    value: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    synthetic: int = 0
    trained: bool = True

    def describe(self) -> dict[str, Any]:
        """The settings as they are compared when a run goes on."""
        return json.loads(json.dumps(asdict(self), default=lambda other: other.__name__))


# mini is smaller than any named size, so that it sees the images some forty times in four minutes of one core, in which
# tiny with the settings of train.json hardly leaves its random start; the decoders of the overlays are made for base
ENCODERS = {
    "mini": {"hidden_size": 96, "mlp_dim": 384, "num_layers": 6, "num_heads": 3},
    "tiny": {"hidden_size": 192, "mlp_dim": 768, "num_layers": 12, "num_heads": 3},
}
DECODERS = {
    "mini": {"decoder_hidden_size": 96, "decoder_num_layers": 2, "decoder_num_heads": 3},
    "tiny": {"decoder_hidden_size": 128, "decoder_num_layers": 2, "decoder_num_heads": 4},
}
AS_MAE = {"pos_embed": "sincos", "layer_scale": 0}
AS_STORED: dict[str, Any] = {"augmentation": "@validate#augmentation"}
PIPELINE = [
    {"_target_": "monai_usfm.data.LoadUltrasoundd", "keys": "image", "frame": "middle"},
    {"_target_": "Resized", "keys": "image", "spatial_size": "@stored_size", "anti_aliasing": True, "mode": "bilinear"},
    {
        "_target_": "monai_usfm.transforms.semantics_preserving_pipeline",
        "keys": "image",
        "spatial_size": "@stored_size",
    },
    {"_target_": "ToTensord", "keys": "image", "track_meta": False},
]
NETWORK = "$monai_usfm.networks.MaskedImageModel(bundle.encoder_of(@plan), {})"
FREQUENCY = "band_stop=@band_stop, loss_function=monai_usfm.losses.SpatialFrequencyLoss(frequency_weight={})"

# by importance: a run that is cut short has the first ones
ARMS: dict[str, Arm] = {
    REFERENCE: Arm("reference", "train.json as it is"),
    "fill_token": Arm("fill", "token", changes={"plan#fill": "token"}),
    "fill_mean": Arm("fill", "mean", changes={"plan#fill": "mean"}),
    "sparse": Arm("objective", "sparse", changes={"objective": "sparse"}),
    "mae": Arm("objective", "mae", changes={"objective": "mae"}),
    "as_mae": Arm("encoder", "that of mae: sin-cos positions, no layer scale", changes=AS_MAE),
    "untrained": Arm("control", "untrained encoder", trained=False),
    "untrained_as_mae": Arm("control", "untrained encoder of mae", changes=AS_MAE, trained=False),
    "monai": Arm(
        "control",
        "MONAI MaskedAutoEncoderViT",
        changes={
            "network_def": {"_target_": MonaiMAE, "img_size": "$@plan['spatial_size']"},
            "exported": "@network_def",
            "optimizer#params": "$@network_def.parameters()",
        },
    ),
    "no_band_stop": Arm("band-stop", "off", changes={"network_def": NETWORK.format("band_stop=None")}),
    "organs_as_listed": Arm("organ balance", "temperature 0", changes={"organ_temperature": 0.0}),
    "augmentation_none": Arm("augmentation", "none", changes=AS_STORED),
    "ratio_0.75": Arm("mask ratio", "0.75", changes={"plan#mask_ratio": 0.75}),
    "unit_1": Arm("mask unit", "1 patch", changes={"plan#mask_unit": 1}),
    "frequency_0": Arm("frequency loss", "weight 0", changes={"network_def": NETWORK.format(FREQUENCY.format(0.0))}),
    "synthetic": Arm("images", "with 400 simulated", synthetic=400),
    "ratio_0.4": Arm("mask ratio", "0.4", changes={"plan#mask_ratio": 0.4}),
    "augmentation_ultrasound": Arm(
        "augmentation", "semantics preserving", changes={**AS_STORED, "train#preprocessing#transforms": PIPELINE}
    ),
    "frequency_1": Arm("frequency loss", "weight 1", changes={"network_def": NETWORK.format(FREQUENCY.format(1.0))}),
    "rings_16": Arm("band-stop", "16 rings", changes={"band_stop#num_rings": 16}),
    "rings_4": Arm("band-stop", "4 rings", changes={"band_stop#num_rings": 4}),
}


@dataclass
class Judges:
    """The labelled data, in memory, and the scores of an encoder on it."""

    tuning: FineTuning
    also: dict[str, tuple[CaseSet, CaseSet]]
    amp: bool

    def score(self, encoder: nn.Module, spec: NetworkSpec | None, seed: int) -> dict[str, float]:
        """Name of the judge -> score on the validation split.

        Args:
            encoder: gives tokens.
            spec: how to build a segmentation network with its weights; None where there is no such network.
            seed: of fine-tuning.
        """
        train, validation = self.tuning.train, self.tuning.validation
        maps = self._maps(encoder, train, validation)
        pooled = [part.flatten(2).mean(2) for part in maps]
        penalties = (1e-2, 1e-1, 1.0)
        linear = linear_probe(pooled[0], train.classes, pooled[1], validation.classes, train.patients, penalties)
        scores = {"linear_auc": linear.metrics["auc"], "dense_dice": _dense(maps, train, validation)}
        for name, splits in self.also.items():
            scores[f"dense_dice_{name}"] = _dense(self._maps(encoder, *splits), *splits)
        for fraction, rows in self.tuning.subsets.items() if spec is not None else ():
            # scored once, at the end: with nothing to select, the validation split is as good as another one
            history = self.tuning.fit(rows, seed, spec)[1]
            scores[f"tuned_dice_{100 * fraction:g}"] = history["validation_score"]
        return scores

    def _maps(self, encoder: nn.Module, *splits: CaseSet) -> list[torch.Tensor]:
        where = {"device": self.tuning.device, "amp": self.amp}
        return [extract_features(encoder, split, "tokens", **where)["features"] for split in splits]


def _dense(maps: Sequence[torch.Tensor], train: CaseSet, validation: CaseSet) -> float:
    # one penalty for all arms: a sweep of it would take longer than their pretraining
    return dense_linear_probe(maps[0], train.labels, maps[1], validation.labels, train.patients, l2=(1e-2,)).metrics[
        "dice"
    ]


def epoch_steps(seconds: float, seconds_per_step: float) -> int:
    """Steps of each of the ``EPOCHS`` epochs that together take ``seconds``; at least one."""
    return max(1, round(seconds / seconds_per_step / EPOCHS))


def workflow(arm: Arm, seed: int, args: argparse.Namespace, folder: Path, **length: int) -> ConfigWorkflow:
    """The bundle with the settings of an arm, ready to run; ``length``: ``max_epochs`` and ``epoch_length``."""
    datalist = args.datalist
    if arm.synthetic:
        datalist = joined_list(args.datalist, args.output / "synthetic", arm.synthetic, args.size)
    changes = dict(arm.changes)
    encoder, decoder = ENCODERS[args.network], DECODERS[args.network]
    if isinstance(changes.get("network_def"), dict):
        changes["network_def"] = {**changes["network_def"], **encoder, **decoder}
    elif "objective" in changes:  # those with a decoder
        changes.update({f"plan#{key}": value for key, value in decoder.items()})
    settings = {
        "dataset_dir": str(args.dataset_dir),
        "datalist": str(datalist),
        "output_dir": str(folder),
        "export_path": str(folder / "model.pt"),
        "cache_dir": str(args.output / "cache"),
        "network_size": "tiny",
        "spatial_size": list(args.size),
        "batch_size": args.batch_size,
        "learning_rate": args.learning_rate,
        "warmup_epochs": 1,
        "num_workers": 0,
        "val_interval": EPOCHS + 1,
        "picture_interval": 0,
        "seed": seed,
        "device": f"$torch.device('{args.device}')",
        **length,
        **{f"plan#{key}": value for key, value in encoder.items()},
        **changes,
    }
    configs = BUNDLE / "configs"
    flow = ConfigWorkflow(
        config_file=str(configs / "train.json"),
        meta_file=str(configs / "metadata.json"),
        logging_file=False,
        workflow_type="train",
        bundle_root=str(BUNDLE),
        **settings,
    )
    flow.initialize()
    return flow


def joined_list(datalist: Path, folder: Path, count: int, size: Sequence[int]) -> Path:
    """A datalist of the images of another one and of ``count`` simulated ones, written into ``folder``."""
    shape = [round(1.15 * n) for n in size]
    simulated = load_datalist(write_synthetic_dataset(folder, count, 0, 0, image_size=shape), None, "training")
    content = json.loads(datalist.read_text(encoding="utf-8"))
    items = [{"image": os.path.abspath(item["image"]), "organ": item["organ"]} for item in simulated]
    content["training"] = content["training"] + items
    return write_text_atomically(folder / "joined.json", json.dumps(content))


def train(arm: Arm, seed: int, args: argparse.Namespace, folder: Path) -> tuple[ConfigWorkflow, dict[str, Any]]:
    """Time a few steps of the arm, then train it for ``args.seconds``; the workflow after it, and what was spent."""
    batch = args.batch_size
    trial = workflow(arm, seed, args, folder / "timing", max_epochs=2, epoch_length=TIMED_STEPS * batch)
    steps = epoch_steps(args.seconds, run_flow(trial, args.device)[-1] / TIMED_STEPS)
    flow = workflow(arm, seed, args, folder, max_epochs=EPOCHS, epoch_length=steps * batch)
    spent = sum(run_flow(flow, args.device))
    details = {"steps": steps * EPOCHS, "samples": steps * EPOCHS * batch, "seconds": round(spent, 1)}
    return flow, details


def run_flow(flow: ConfigWorkflow, device: str) -> list[float]:
    """Train; the seconds of each epoch. On a CPU they are those of the processor, which other work does not stretch."""
    clock = time.process_time if torch.device(device).type == "cpu" else time.perf_counter
    trainer = flow.parser.get_parsed_content("train#trainer")
    marks: list[float] = []
    for event in (Events.EPOCH_STARTED, Events.EPOCH_COMPLETED):
        trainer.add_event_handler(event, lambda: marks.append(clock()))
    flow.run()
    flow.finalize()
    return [stop - start for start, stop in zip(marks[::2], marks[1::2], strict=True)]


def run_arm(arm: Arm, seed: int, args: argparse.Namespace, judges: Judges, folder: Path) -> dict[str, Any]:
    """Scores and costs of one arm with one seed."""
    if arm.trained:
        flow, details = train(arm, seed, args, folder)
    else:
        flow = workflow(arm, seed, args, folder, max_epochs=1)
        details = {"steps": 0, "samples": 0, "seconds": 0.0}
    network = flow.parser.get_parsed_content("network_def")
    encoder = getattr(network, "encoder", network)
    spec = None
    if isinstance(encoder, UltrasoundViT):
        spec = NetworkSpec(
            weights=str(folder / "model.pt") if arm.trained else None,
            learning_rate=1e-3,
            head="upernet",  # it has no way around the encoder
            head_options={"width": 64},
            options={
                key: flow.parser.get_parsed_content("plan")[key]
                for key in (*ENCODERS[args.network], "pos_embed", "layer_scale")
            },
            frozen=True,
        )
    return {"scores": judges.score(encoder, spec, seed), "details": details}


def load_judges(args: argparse.Namespace) -> Judges:
    folder = args.labelled.parent
    splits = {}
    for section in ("training", "validation", "test"):
        items = add_patients(load_datalist(args.labelled, folder, section), folder, **patients_of(args))
        splits[section] = items
    published = folder / "label_fractions.json"
    subsets = label_subsets(splits["training"], FRACTIONS, published if published.is_file() else None, folder)
    # the test split is only compared with the others for shared patients; nothing here is scored on it
    train, validation, test = (load_cases(items, args.size, True) for items in splits.values())
    tuning = FineTuning(
        "segmentation",
        train,
        validation,
        test,
        {fraction: train.rows([str(item["image"]) for item in part]) for fraction, part in subsets.items()},
        {},
        recipe=Recipe(steps=args.tuning_steps, evaluations=1, amp=args.amp),
        device=args.device,
    )
    also = {}
    if args.also:
        base = args.also_dir or args.also.parent
        parts = (load_cases(load_datalist(args.also, base, s), args.size, True) for s in ("training", "validation"))
        also[args.also.stem] = tuple(parts)
    return Judges(tuning, also, args.amp)


def pooled_noise(runs: Sequence[Mapping[str, Any]], judge: str) -> tuple[float, int]:
    """Standard deviation between seeds, pooled over the arms with several, and its degrees of freedom."""
    squares, freedom = 0.0, 0
    for values in scores_by_arm(runs, judge).values():
        squares += float(np.var(values)) * len(values)
        freedom += len(values) - 1
    return (math.sqrt(squares / freedom), freedom) if freedom else (math.nan, 0)


def scores_by_arm(runs: Sequence[Mapping[str, Any]], judge: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for run in runs:
        if judge in run["scores"]:
            found.setdefault(run["arm"], []).append(run["scores"][judge])
    return found


def summarise(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row an arm and judge: mean over seeds, difference to the reference, and whether it is beyond the noise.

    Beyond the noise means outside the 95 % interval (Student) of a difference between two means of so many seeds, with
    the pooled deviation of :func:`pooled_noise`. One such difference in twenty is chance.
    """
    judges = list(dict.fromkeys(judge for run in runs for judge in run["scores"]))
    rows = []
    for judge in judges:
        found = scores_by_arm(runs, judge)
        deviation, freedom = pooled_noise(runs, judge)
        for arm, values in found.items():
            row: dict[str, Any] = {"arm": arm, "judge": judge, "mean": float(np.mean(values)), "seeds": len(values)}
            if REFERENCE in found and freedom:
                spread = deviation * math.sqrt(1 / len(values) + 1 / len(found[REFERENCE]))
                row["difference"] = row["mean"] - float(np.mean(found[REFERENCE]))
                row["noise"] = float(stats.t.ppf(0.975, freedom)) * spread
                row["beyond_noise"] = arm != REFERENCE and abs(row["difference"]) > row["noise"]
            rows.append(row)
    return rows


def verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    """Of the rows of one arm: better or worse where at least two judges say so and none the contrary."""
    up = sum(bool(row.get("beyond_noise")) and row["difference"] > 0 for row in rows)
    down = sum(bool(row.get("beyond_noise")) and row["difference"] < 0 for row in rows)
    if up >= 2 and not down:
        return "better"
    return "worse" if down >= 2 and not up else "mixed" if up and down else "noise"


def report(output: Path, conditions: Mapping[str, Any]) -> str:
    """Tables and plot of the runs that are finished; returns the Markdown."""
    runs = [json.loads(file.read_text(encoding="utf-8")) for file in (output / "runs").glob("*.json")]
    runs = [run for run in runs if run["arm"] in ARMS]
    runs.sort(key=lambda run: (list(ARMS).index(run["arm"]), run["seed"]))
    write_csv(
        output / "runs.csv",
        [{"arm": r["arm"], "seed": r["seed"], **r["scores"], **r["details"], **r["run"]} for r in runs],
    )
    rows = summarise(runs)
    write_csv(output / "ablation.csv", rows)
    judges = list(dict.fromkeys(row["judge"] for row in rows))
    names = [name for name in ARMS if any(run["arm"] == name for run in runs)]
    groups = list(dict.fromkeys(ARMS[name].group for name in names))
    lines = []
    for name in sorted(names, key=lambda name: groups.index(ARMS[name].group)):
        found = {row["judge"]: row for row in rows if row["arm"] == name}
        own = [run["details"] for run in runs if run["arm"] == name]
        cells = []
        for judge in judges:
            row = found.get(judge)
            text = "-" if row is None else f"{row['mean']:.3f}"
            cells.append(f"**{text}**" if row is not None and row.get("beyond_noise") else text)
        cost = [f"{np.mean([d['seconds'] for d in own]):.0f}", f"{np.mean([d['samples'] for d in own]):.0f}"]
        said = "" if name == REFERENCE else verdict(list(found.values()))
        lines.append([ARMS[name].group, ARMS[name].value, len(own), *cost, *cells, said])
    noise = {judge: pooled_noise(runs, judge) for judge in judges}
    spread = [f"{noise[judge][0]:.3f}" if noise[judge][1] else "-" for judge in judges]
    lines.append(["noise", "deviation between seeds", "", "", "", *spread, ""])
    titles = [judge.replace("_", " ") for judge in judges]
    table = markdown_table(["what", "value", "seeds", "seconds", "images seen", *titles, "verdict"], lines)
    machine = runs[0]["run"] if runs else {}
    shown = [*conditions.items(), *((k, machine[k]) for k in ("device", "threads", "torch", "monai") if machine)]
    commits = sorted({run["run"]["commit"] for run in runs})
    text = (
        f"{table}\nBold: beyond the noise between seeds (95 %). Verdict: two judges beyond it, none the other way.\n\n"
        f"Conditions: {', '.join(f'{key} {value}' for key, value in shown)}, commit {', '.join(commits)}.\n"
    )
    write_text_atomically(output / "ablation.md", text)
    plot(output / "ablation.png", rows, judges, names)
    return text


def plot(path: Path, rows: Sequence[Mapping[str, Any]], judges: Sequence[str], names: Sequence[str]) -> None:
    figure = Figure(figsize=(2.2 + 2.1 * len(judges), 0.8 + 0.26 * len(names)))
    panels = figure.subplots(1, max(1, len(judges)), sharey=True, squeeze=False)[0]
    for axes, judge in zip(panels, judges, strict=False):
        for row in (row for row in rows if row["judge"] == judge):
            place = names.index(row["arm"])
            axes.plot(row["mean"], place, "o", markersize=5, color="C3" if row.get("beyond_noise") else "C0")
            if row["arm"] == REFERENCE and "noise" in row:
                single = row["noise"] * math.sqrt((1 + 1 / row["seeds"]) / (2 / row["seeds"]))
                axes.axvspan(row["mean"] - single, row["mean"] + single, color="0.9", zorder=0)
        axes.set_title(judge.replace("_", " "), fontsize=9)
        axes.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(names)), [f"{ARMS[n].group}: {ARMS[n].value}" for n in names], fontsize=8)
    panels[0].invert_yaxis()
    save_figure(path, figure)


def planned(arms: Sequence[str], seeds: int) -> list[tuple[str, int]]:
    """Arm and seed of every run, in order: first those that say what is noise, then the other seeds of all arms."""
    early = [(name, seed) for name in arms if name in (REFERENCE, "untrained") for seed in range(1, seeds)]
    first = [name for name in arms if ARMS[name].group in EARLY]
    rest = [name for name in arms if ARMS[name].group not in EARLY]
    runs = [*((name, 0) for name in first), *early, *((name, 0) for name in rest)]
    return [*runs, *((name, seed) for seed in range(1, seeds) for name in arms if (name, seed) not in early)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", type=Path, required=True, help="folder the paths of --datalist start from")
    parser.add_argument("--datalist", type=Path, required=True, help="images to pretrain on")
    parser.add_argument("--labelled", type=Path, required=True, help="datalist of the judges: label and class")
    add_patient_options(parser)
    parser.add_argument("--also", type=Path, help="a second datalist for the dense probe; items name their patient")
    parser.add_argument("--also_dir", type=Path, help="folder its paths start from; default: that of the file")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=tuple(ARMS), help="default: all")
    parser.add_argument("--seeds", type=int, default=3, help="of every arm; those of the reference come first")
    parser.add_argument("--seconds", type=float, default=240, help="of pretraining, for each run")
    parser.add_argument("--network", choices=ENCODERS, default="mini", help="size of encoder and decoder")
    parser.add_argument("--tuning_steps", type=int, default=60)
    parser.add_argument("--size", type=int, nargs="+", default=(128, 128), help="pixels (H, W)")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast of the judges; the bundle decides itself")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    args.output = args.output.resolve()
    logging.getLogger("ignite").setLevel(logging.WARNING)

    judges = load_judges(args)
    keys = ("network", "seconds", "size", "batch_size", "learning_rate", "tuning_steps", "amp")
    conditions = {key: getattr(args, key) for key in keys}
    conditions["size"] = "x".join(map(str, args.size))
    conditions.update(datalist=args.datalist.name, labelled=args.labelled.parent.name)
    for name, seed in planned(args.arms, args.seeds):
        file = args.output / "runs" / f"{name}-seed{seed}.json"
        settings = {**conditions, "settings": ARMS[name].describe()}
        if file.is_file():
            known = json.loads(file.read_text(encoding="utf-8"))["conditions"]
            if known != settings:
                parser.error(f"{file} was made with other settings ({known}); use another --output or delete it.")
            continue
        folder = args.output / "work" / f"{name}-seed{seed}"
        shutil.rmtree(folder, ignore_errors=True)
        result = run_arm(ARMS[name], seed, args, judges, folder)
        result = {"arm": name, "seed": seed, "conditions": settings, **result, "run": conditions_of_run(args.device)}
        write_text_atomically(file, json.dumps(result, indent=1))
        report(args.output, conditions)
        shown = ", ".join(f"{key} {value:.3f}" for key, value in result["scores"].items())
        print(f"{name}, seed {seed}: {shown} ({result['details']})", flush=True)
        gc.collect()
    print(report(args.output, conditions))


if __name__ == "__main__":
    main()
