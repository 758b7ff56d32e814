# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Trains the pretrained starts, the larger ``small`` and the tiny one that is shipped, without a label of a real image.

    python scripts/train_foundation.py UNLABELED.json DINOV2_VITS14.pt OUTPUT_FOLDER [OPTION...]

About an hour on one core of a CPU with bf16 instructions. Finished steps are kept; an interrupted one goes on. Options
of the bundle go to every training: ``--simulated 24 --agreement 0 --epoch_length 32`` and a list of a few dozen images
try the whole chain in minutes. On a GPU ``--resident true --batch_size 512 --epoch_length 24576 --rate 2
--num_workers 15`` sees eight times as many images.

The tiny network goes on from the shipped one. That of 0.9 began with the encoder of a masked autoencoder (``mae.pt`` of
0.8: ``--objective mae``, 300 epochs) and the decoder of ``foundation.pt`` of 0.8; ``--start`` names another file.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from monai_usfm import build_network, read_card, save_network, write_card
from monai_usfm.cards import average_networks
from monai_usfm.data import load_datalist
from monai_usfm.evaluation.pseudo_labels import pseudo_label
from monai_usfm.files import atomic_write, write_text_atomically
from monai_usfm.settings import parse_options
from monai_usfm.simulation import write_synthetic_dataset
from monai_usfm.workflow import find_bundle, run_bundle

JOINT = ("foundation",)
WORKERS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # macOS has none
PSEUDO = ("breast", "fetal head")  # organs of real images whose structures small knows from simulated ones
# Breasts and heads more often: lesions are what varies most.
ORGANS = ("breast", "fetal_head", "muscle", "breast", "thyroid", "breast", "nerve", "breast", "prostate", "fetal_head")
ORGANS += ("breast", "kidney", "muscle", "gallbladder", "breast", "bladder", "liver")


def simulate(folder: Path, number: int) -> None:
    """Simulated images, with a list of all, of what has a border around it, and of lines."""
    if (folder / "targets.json").is_file():
        return
    shown = {"image_size": (192, 192), "organs": ORGANS, "healthy": 0.12}
    file = write_synthetic_dataset(folder, number, len(ORGANS), 0, num_workers=WORKERS, **shown)
    lists = json.loads(file.read_text())
    # Lines have an output layer of their own: in that of lesions they would be painted into breasts.
    for name, left_out in {"lines": set(ORGANS) - {"muscle"}, "targets": {"muscle", "nerve"}}.items():
        part = {s: [i for i in lists[s] if i["organ"] not in left_out] for s in ("training", "validation")}
        write_text_atomically(folder / f"{name}.json", json.dumps(part))


def run(
    folder: Path, overlays: tuple[str, ...], settings: dict[str, Any], *, rate: float, options: dict[str, Any]
) -> Path:
    """One training of the bundle, unless it is there; its weights. ``rate`` multiplies its learning rate."""
    weights = folder / "model.pt"
    if not weights.is_file():
        own = {"output_dir": str(folder), "resume": True, "learning_rate": settings["learning_rate"] * rate}
        started = time.perf_counter()
        run_bundle("pretraining", overlays=overlays, **{**settings, **own, **options})
        print(f"{folder.name}: {time.perf_counter() - started:.0f} s", flush=True)
    return weights


def save(state: dict[str, torch.Tensor], weights: Path, like: Path) -> Path:
    """Weights with the card of others, which is written last."""
    with atomic_write(weights) as part:
        torch.save(state, part)
    write_card(weights, read_card(like))
    return weights


def halfway(before: Path, after: Path, weights: Path) -> Path:
    """The mean of two whole networks; of an encoder alone, which lies far away, nothing: the second as it is."""
    if weights.with_suffix(".json").is_file():
        return weights
    old, new = read_card(before), read_card(after)
    if (old["task"], old["network"]) != (new["task"], new["network"]):
        return save(torch.load(after, map_location="cpu", weights_only=True), weights, after)
    return save_network(weights, average_networks([after, before]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("unlabeled", type=Path)
    parser.add_argument("dinov2", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--simulated", type=int, default=12000, help="images")
    parser.add_argument("--agreement", type=float, default=0.8, help="of the views that a pseudo-label must have")
    parser.add_argument(
        "--teachers", nargs="+", choices=("small", "dinov2"), default=["small", "dinov2"], help="of the tiny network"
    )
    parser.add_argument("--rate", type=float, default=1.0, help="factor of the learning rates, for larger batches")
    parser.add_argument("--start", type=Path, default=find_bundle("pretraining") / "models" / "model.pt")
    chosen, rest = parser.parse_known_args()
    options = parse_options(rest)
    train = partial(run, rate=chosen.rate, options=options)
    out, unlabeled = chosen.output.resolve(), str(chosen.unlabeled.resolve())
    seen = {item.get("organ") for item in load_datalist(unlabeled, None, "training")}
    if not seen & set(PSEUDO):  # before the trainings that come first
        raise SystemExit(f"{unlabeled}: no item of 'training' has the organ {' or '.join(PSEUDO)}; name organs there.")
    simulate(out / "simulated", chosen.simulated)
    parts: dict[str, dict[str, Any]] = {
        "target": {"datalist": f"{out}/simulated/targets.json", "num_classes": 2},
        "lines": {"datalist": f"{out}/simulated/lines.json", "num_classes": 2},
        "structures": {"datalist": f"{out}/simulated/datalist.json", "num_classes": 48, "label_key": "structures"},
        "unlabeled": {"datalist": unlabeled},
    }
    common = {"parts": parts, "organ_temperature": 0.3, "num_workers": 0, "cache_dir": f"{out}/cache"}

    # The decoder alone learns first, then the upper two thirds of the encoder with it.
    small = {
        **common,
        "shares": {"target": 0.56, "lines": 0.07, "structures": 0.17, "unlabeled": 0.2},
        "restoration_weight": 0.1,
        "spatial_size": [128, 128],
        "stored_size": [160, 160],
    }
    decoder = {
        "pretrained": str(chosen.dinov2.resolve()),
        "patch_size": [16, 16],
        "in_channels": 1,
        "frozen_blocks": 12,
    }
    decoder |= {"max_epochs": 2, "warmup_epochs": 0.2, "learning_rate": 0.002}
    found = train(out / "small_decoder", JOINT, {**small, **decoder})
    both = {"pretrained": str(found), "frozen_blocks": 4, "max_epochs": 5, "warmup_epochs": 0.3}
    both |= {"learning_rate": 0.0008, "layer_decay": 0.65}
    teacher = train(out / "small", JOINT, {**small, **both})

    # What small sees in real images, where it is sure, teaches the tiny network beside small's tokens.
    if not (out / "pseudo" / "datalist.json").is_file():
        pseudo_label(
            str(teacher),
            unlabeled,
            str(out / "pseudo"),
            organs=PSEUDO,
            agreement=chosen.agreement,
            num_workers=int(options.get("num_workers", 0)),
        )
    parts["pseudo"] = {"datalist": f"{out}/pseudo/datalist.json", "num_classes": 2, "output": "target"}
    # The tokens of small first, which need no decoder, then everything at once. Restoration does not pay beside them
    # (docs/results/foundation_training.md); the layer that restores is trained alone, at the end.
    if "dinov2" in chosen.teachers and not (out / "dinov2" / "model.pt").is_file():
        # On the token grid of the student without smaller images.
        (out / "dinov2").mkdir(exist_ok=True)
        save_network(out / "dinov2" / "model.pt", build_network("encoder", chosen.dinov2, patch_size=[16, 16]))
    teachers = [str(out / name / "model.pt") for name in chosen.teachers]
    tiny = {**common, "teacher": teachers, "texture_weight": 0.5, "restoration_weight": 0.0}
    tiny |= {"spatial_size": [192, 192], "stored_size": [192, 192]}
    tokens = {
        "shares": {"target": 0.25, "pseudo": 0.08, "lines": 0.04, "structures": 0.08, "unlabeled": 0.55},
        "segmentation_weight": 0.0,
        "sizes": [[128, 128], [192, 192]],
        "pretrained": str(chosen.start.resolve()),
        "max_epochs": 4,
        "warmup_epochs": 0.3,
        "learning_rate": 0.0015,
    }
    encoder = train(out / "tokens", JOINT, {**tiny, **tokens})
    begin = ["$bundle.start(@output_dir, @export_path)"]
    state = "torch.load(@matched, weights_only=True)['network']"
    joint = {
        # What maps tokens to the teacher's is in no exported file.
        "matched": f"{out}/tokens/checkpoints/last.pt",
        "shares": {"target": 0.26, "pseudo": 0.22, "lines": 0.06, "structures": 0.08, "unlabeled": 0.38},
        "distillation_weight": 1.5,
        "sizes": [[128, 128], [128, 128], [192, 192]],
        "initialize": [*begin, f"$monai.networks.copy_model_state(@network_def, {state})"],
        "pretrained": str(encoder),
        "max_epochs": 11,
        "warmup_epochs": 0.4,
        "learning_rate": 0.0012,
    }
    after = train(out / "joint", JOINT, {**tiny, **joint})
    mean = halfway(chosen.start, after, out / "mean" / "model.pt")

    frozen = [f"$@network_def.{part}.requires_grad_(False)" for part in ("encoder", "decoder")]
    adam = {"_target_": "torch.optim.AdamW", "params": "$@network_def.to_image.parameters()", "lr": "@learning_rate"}
    pixels = {
        "optimizer": adam,
        "initialize": [*begin, *frozen],
        "objective": "pyramid",
        "pretrained": str(mean),
        "datalist": unlabeled,
        "batch_size": 16,
        "epoch_length": 4800,
        "max_epochs": 1,
        "warmup_epochs": 0.05,
        "learning_rate": 0.003,
        "organ_temperature": 0.5,
        "num_workers": 0,
    }
    restores = torch.load(train(out / "pixels", (), pixels), map_location="cpu", weights_only=True)
    whole = torch.load(mean, map_location="cpu", weights_only=True)
    whole |= {name: value for name, value in restores.items() if name.startswith("to_image.")}
    print(f"small: {teacher}, tiny: {save(whole, out / 'foundation' / 'model.pt', mean)}, each with its card.")


if __name__ == "__main__":
    main()
