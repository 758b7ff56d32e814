#!/usr/bin/env bash
# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
# Trains the weights that the bundles ship, on the openly licensed development images.
#
#   bash scripts/train_released_weights.sh DATA_FOLDER OUTPUT_FOLDER [OPTION...]
#
# About nine hours on one core of a CPU with bf16 instructions. Finished steps are kept; an interrupted one goes on.
# Options go to every training: "--max_epochs 1" tries the whole chain in a copy of the repository, in a quarter of an hour.
set -euo pipefail
data=$(cd "$1" && pwd)
mkdir -p "$2"
out=$(cd "$2" && pwd)
shift 2
options=("$@")
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

bundle() { # bundle, name, then options
    local root="$here/bundles/$1" name=$2
    shift 2
    [ -f "$out/$name/model.pt" ] && return
    python -W ignore -m monai.bundle run --config_file "$root/configs/train.json" --bundle_root "$root" \
        --output_dir "$out/$name" --spatial_size "[192,192]" --network_size tiny --resume true "$@" \
        ${options[@]+"${options[@]}"}
}

unlabeled=(--dataset_dir "$data" --datalist "$data/unlabelled/pretraining.json" --batch_size 64 --learning_rate 0.001
    --organ_temperature 0.5 --num_workers 0 --augmentation#scale "[0.4,1.0]" --plan#decoder_hidden_size 192
    --plan#decoder_num_layers 3 --plan#decoder_num_heads 3)
# The weights of 0.6 to 0.8 that are still shipped start from this encoder.
bundle usfm_pretraining pretraining --objective sparse --pretrained null "${unlabeled[@]}" --max_epochs 130 --warmup_epochs 8 --cache_dir "$out/cache"
bundle usfm_pretraining mae --objective mae --pretrained null "${unlabeled[@]}" --max_epochs 300 --warmup_epochs 10 --val_interval 10 --cache_dir "$out/cache"
# Three training stages, each from encoder and decoder of the one before; the last one with the augmentation of
# train.json, those before it with crops, rotation, flips and gamma alone.
plain=(--augmentation#shrink_prob 0 --intensity_augmentation "[]")
bundle usfm_segmentation segmentation_first --dataset_dir "$data/busbra" --pretrained "$out/pretraining/model.pt" \
    --max_epochs 40 --warmup_epochs 2 --val_interval 2 "${plain[@]}"
bundle usfm_segmentation segmentation_second --dataset_dir "$data/busbra" --pretrained "$out/segmentation_first/model.pt" \
    --max_epochs 44 --warmup_epochs 2 --val_interval 2 --learning_rate 0.0007 --seed 1 "${plain[@]}"
bundle usfm_segmentation segmentation --dataset_dir "$data/busbra" --pretrained "$out/segmentation_second/model.pt" \
    --max_epochs 40 --warmup_epochs 2 --val_interval 2 --learning_rate 0.0007 --seed 2
# The pretrained start, from the masked autoencoder; needs DINOv2's weights: DINOV2=dinov2_vits14.pt.
[ -z "${DINOV2:-}" ] || python "$here/scripts/train_foundation.py" "$data/pretraining_all.json" "$DINOV2" "$out/starts" \
    --start "$out/mae/model.pt" ${options[@]+"${options[@]}"}
# HC18: pixel sizes and published circumferences are in its table.
python -W ignore -m monai_usfm join-table --datalist "$data/fetal_head_hc18/dataset.json" \
    --table "$data/fetal_head_hc18/labels.csv" --output "$out/fetal_head.json" \
    --columns patient=subject_id spacing=pixel_size_mm circumference=head_circumference_mm
# From the shipped start, which is the default.
bundle usfm_segmentation fetal_head --dataset_dir "$data/fetal_head_hc18" --datalist "$out/fetal_head.json" --max_epochs 20 --warmup_epochs 1 \
    --val_interval 4
# From the shipped start too: first the masks of the same images, then the classes.
bundle usfm_segmentation lesions --dataset_dir "$data/busbra" --max_epochs 30 --warmup_epochs 1 --val_interval 3 --background_crops 0.1
bundle usfm_classification classification --dataset_dir "$data/busbra" --pretrained "$out/lesions/model.pt" \
    --max_epochs 16 --warmup_epochs 1 --val_interval 2 --learning_rate 0.0003
# No labels: the start, inflated, learns structures in simulated volumes.
volumes=(--spatial_dims 3 --spatial_size "[48,96,96]" --batch_size 2 --synthetic#num_validation 12 --synthetic#num_test 24)
bundle usfm_segmentation simulated_volumes "${volumes[@]}" --max_epochs 8 --warmup_epochs 1 --val_interval 4 \
    --synthetic#num_training 264 --synthetic#seed 1
bundle usfm_enhancement enhancement --dataset_dir "$data" --datalist "$data/unlabelled/pretraining.json" \
    --max_epochs 5 --warmup_epochs 1 --val_interval 1

# The encoder of the pretrained start under the decoder of the breast lesions: one family, equal scores.
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
start="$here/bundles/usfm_pretraining/models/model.pt"
[ -f "$out/starts/foundation/model.pt" ] && start="$out/starts/foundation/model.pt"
mkdir -p "$out/segmentation_changed"
[ -f "$out/segmentation_changed/model.pt" ] || python -W ignore "$here/scripts/change_start.py" "$out/segmentation/model.pt" "$start" \
    "$data/busbra" "$data/busbra/dataset.json" "$out/segmentation_changed/model.pt" --steps 320

# Into the bundles, each with its card; data, license and scores are then written there by hand.
ship() { # name, file of a bundle
    for ending in pt json; do cp "$out/$1/model.$ending" "$here/bundles/$2.$ending"; done
}
[ ! -d "$out/starts" ] || ship starts/foundation usfm_pretraining/models/model
ship segmentation_changed usfm_segmentation/models/model
ship fetal_head usfm_segmentation/models/fetal_head
ship simulated_volumes usfm_segmentation/models/simulated_volumes
ship classification usfm_classification/models/model
ship enhancement usfm_enhancement/models/model
