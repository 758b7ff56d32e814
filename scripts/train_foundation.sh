#!/usr/bin/env bash
# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
# Trains the pretrained starts small.pt and, the one that is shipped, model.pt without any label of a real image.
#
#   bash scripts/train_foundation.sh UNLABELED.json DINOV2_VITS14.pt OUTPUT_FOLDER [OPTION...]
#
# About an hour on one core of a CPU with bf16 instructions. Finished steps are kept; an interrupted one goes on.
# Options go to every training: "--epoch_length 32" with SIMULATED=24, AGREEMENT=0 (nothing learned agrees) and
# a list of a few dozen images tries the whole chain in minutes.
# The tiny network goes on from the shipped one. That of 0.9 began with the encoder of a masked autoencoder (mae.pt of 0.8: --objective
# mae, 300 epochs) and the decoder of foundation.pt of 0.8; START names another file.
set -euo pipefail
unlabeled=$(realpath "$1")
dinov2=$(realpath "$2")
mkdir -p "$3"
out=$(realpath "$3")
shift 3
options=("$@")
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
root="$here/bundles/usfm_pretraining"
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"

python - "$out" "$unlabeled" "${SIMULATED:-12000}" <<'PY'
import json
import sys
from pathlib import Path

from monai_usfm.simulation import write_synthetic_dataset

out, unlabeled, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
organs = ("breast", "fetal_head", "muscle", "breast", "thyroid", "breast", "nerve", "breast", "prostate", "fetal_head")
organs += ("breast", "kidney", "muscle", "gallbladder", "breast", "bladder", "liver")
lists = json.loads(
    write_synthetic_dataset(
        out / "simulated", count, len(organs), 0, image_size=(192, 192), organs=organs, healthy=0.12
    ).read_text()
)
# Lines have an output layer of their own: in that of lesions they would be painted into breasts.
for name, chosen in {"lines": lambda organ: organ == "muscle", "targets": lambda organ: organ not in ("muscle", "nerve")}.items():
    part = {s: [i for i in lists[s] if chosen(i["organ"])] for s in ("training", "validation")}
    (out / "simulated" / f"{name}.json").write_text(json.dumps(part))
parts = {
    "target": {"datalist": f"{out}/simulated/targets.json", "num_classes": 2},
    "lines": {"datalist": f"{out}/simulated/lines.json", "num_classes": 2},
    "structures": {"datalist": f"{out}/simulated/datalist.json", "num_classes": 48, "label_key": "structures"},
    "unlabeled": {"datalist": unlabeled},
}
shares = {"target": 0.56, "lines": 0.07, "structures": 0.17, "unlabeled": 0.2}
small = {"spatial_size": [128, 128], "stored_size": [160, 160]}
tiny = {"spatial_size": [192, 192], "stored_size": [192, 192]}
(out / "small.json").write_text(json.dumps({"parts": parts, "shares": shares, "restoration_weight": 0.1, **small}))
parts["pseudo"] = {"datalist": f"{out}/pseudo/datalist.json", "num_classes": 2, "output": "target"}
# The tokens of small first, which need no decoder, then everything at once.
shares = {"target": 0.25, "pseudo": 0.08, "lines": 0.04, "structures": 0.08, "unlabeled": 0.55}
tokens = {"segmentation_weight": 0.0, "restoration_weight": 0.0, "texture_weight": 0.5, "sizes": [[128, 128], [192, 192]]}
(out / "tokens.json").write_text(json.dumps({"parts": parts, "shares": shares, **tiny, **tokens}))
shares = {"target": 0.26, "pseudo": 0.22, "lines": 0.06, "structures": 0.08, "unlabeled": 0.38}
# Restoration does not pay here (docs/results/foundation.md); the layer that restores is trained alone, at the end.
weights = {"distillation_weight": 1.5, "texture_weight": 0.5, "restoration_weight": 0.0, "sizes": [[128, 128], [128, 128], [192, 192]]}
# What maps tokens to the teacher's is in no exported file.
goes_on = f"$monai.networks.copy_model_state(@network_def, torch.load('{out}/tokens/checkpoints/last.pt')['network'])"
weights["initialize"] = ["$bundle.start(@output_dir, @export_path)", "$bundle.prepare_network(@network_def)", goes_on]
(out / "tiny.json").write_text(json.dumps({"parts": parts, "shares": shares, **tiny, **weights}))
# The output that restores pixels, alone.
frozen = [f"$@network_def.{part}.requires_grad_(False)" for part in ("encoder", "decoder")]
adam = {"_target_": "torch.optim.AdamW", "params": "$@network_def.to_image.parameters()", "lr": "@learning_rate"}
(out / "pixels.json").write_text(json.dumps({"optimizer": adam, "initialize": [*weights["initialize"][:2], *frozen]}))
PY

joint() { # name, parts, then options
    local name=$1 parts=$2
    shift 2
    [ -f "$out/$name/model.pt" ] && return
    python -W ignore -m monai.bundle run --bundle_root "$root" --output_dir "$out/$name" --cache_dir "$out/cache" --resume true \
        --config_file "['$root/configs/train.json','$root/configs/foundation.json','$out/$parts.json']" \
        --organ_temperature 0.3 --num_workers 0 "$@" \
        ${options[@]+"${options[@]}"}
}

# The decoder alone learns first, then the upper two thirds of the encoder with it.
joint small_decoder small --pretrained "$dinov2" --patch_size "[16,16]" --in_channels 1 --frozen_blocks 12 --max_epochs 2 \
    --warmup_epochs 0.2 --learning_rate 0.002
joint small small --pretrained "$out/small_decoder/model.pt" --frozen_blocks 4 --max_epochs 5 --warmup_epochs 0.3 \
    --learning_rate 0.0008 --layer_decay 0.65
# What small sees in real images, where it is sure, teaches the tiny network beside small's tokens.
[ -f "$out/pseudo/datalist.json" ] || python -W ignore -m monai_usfm pseudo-label "$out/small/model.pt" "$unlabeled" "$out/pseudo" \
    --organs breast "fetal head" --agreement "${AGREEMENT:-0.8}"
joint tokens tokens --pretrained "${START:-$root/models/model.pt}" --teacher "$out/small/model.pt" --max_epochs 4 --warmup_epochs 0.3 \
    --learning_rate 0.0015
joint joint tiny --pretrained "$out/tokens/model.pt" --teacher "$out/small/model.pt" --max_epochs 11 --warmup_epochs 0.4 \
    --learning_rate 0.0012
# Halfway between the network it went on from and what it became, where that was a whole network: an encoder alone, as of a masked
# autoencoder, has no decoder to go with, and lies far away.
mkdir -p "$out/mean"
[ -f "$out/mean/model.json" ] || python - "$out" "${START:-$root/models/model.pt}" <<'PY'
import sys

import torch

from monai_usfm import read_card, write_card

out, start = sys.argv[1:]
before, after = (torch.load(file, weights_only=True) for file in (start, f"{out}/joint/model.pt"))
if all(name in before and before[name].shape == value.shape for name, value in after.items()):
    for name, value in after.items():
        if value.is_floating_point():
            after[name] = torch.lerp(before[name].float(), value.float(), 0.5).to(value.dtype)
torch.save(after, f"{out}/mean/model.pt")
write_card(f"{out}/mean/model.pt", read_card(f"{out}/joint/model.pt"))
PY
[ -f "$out/pixels/model.pt" ] || python -W ignore -m monai.bundle run --bundle_root "$root" --output_dir "$out/pixels" --resume true \
    --config_file "['$root/configs/train.json','$out/pixels.json']" --objective pyramid --pretrained "$out/mean/model.pt" --datalist "$unlabeled" \
    --batch_size 16 --epoch_length 4800 --max_epochs 1 --warmup_epochs 0.05 --learning_rate 0.003 --organ_temperature 0.5 --num_workers 0 \
    ${options[@]+"${options[@]}"}
mkdir -p "$out/foundation"
python - "$out" <<'PY'
import sys

import torch

from monai_usfm import read_card, write_card

out = sys.argv[1]
state, pixels = (torch.load(f"{out}/{name}/model.pt", weights_only=True) for name in ("mean", "pixels"))
state |= {name: value for name, value in pixels.items() if name.startswith("to_image.")}
torch.save(state, f"{out}/foundation/model.pt")
write_card(f"{out}/foundation/model.pt", read_card(f"{out}/mean/model.pt"))
PY
echo "small: $out/small/model.pt, tiny: $out/foundation/model.pt, each with its card."
