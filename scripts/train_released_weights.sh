#!/usr/bin/env bash
# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
# Trains the weights that the bundles ship, on the openly licensed development images.
#
#   bash scripts/train_released_weights.sh DATA_FOLDER OUTPUT_FOLDER [OPTION...]
#
# About three hours on one core of a CPU with bf16 instructions, and one more with DINOV2=dinov2_vits14.pt, which trains
# the pretrained start anew. Finished steps are kept; an interrupted one goes on. Options go to every training:
# "--max_epochs 1" tries the whole chain in a copy of the repository, in a quarter of an hour.
set -euo pipefail
data=$(cd "$1" && pwd)
mkdir -p "$2"
out=$(cd "$2" && pwd)
shift 2
options=("$@")
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
start="$here/bundles/usfm_pretraining/models/model.pt"

bundle() { # bundle, name, then options
    local root="$here/bundles/$1" name=$2
    shift 2
    [ -f "$out/$name/model.pt" ] && return
    python -W ignore -m monai.bundle run --config_file "$root/configs/train.json" --bundle_root "$root" \
        --output_dir "$out/$name" --resume true "$@" ${options[@]+"${options[@]}"}
}

if [ -n "${DINOV2:-}" ]; then # the start: simulated labels, unlabeled images and teachers
    python "$here/scripts/train_foundation.py" "$data/pretraining_all.json" "$DINOV2" "$out/starts" \
        ${options[@]+"${options[@]}"}
    start="$out/starts/foundation/model.pt"
fi
# Breast lesions: the mean of two trainings.
lesions=()
for seed in 0 1; do
    bundle usfm_segmentation "lesions_$seed" --dataset_dir "$data/busbra" --pretrained "$start" --spatial_size "[256,256]" \
        --max_epochs 44 --warmup_epochs 2 --val_interval 5 --background_crops 0.1 --seed "$seed" \
        --class_names "['background','lesion']"
    lesions+=("$out/lesions_$seed/model.pt")
done
[ -f "$out/lesions/model.pt" ] || python -W ignore -m monai_usfm average "$out/lesions/model.pt" "${lesions[@]}"
# HC18: pixel sizes and published circumferences are in its table.
python -W ignore -m monai_usfm join-table --datalist "$data/fetal_head_hc18/dataset.json" \
    --table "$data/fetal_head_hc18/labels.csv" --output "$out/fetal_head.json" \
    --columns patient=subject_id spacing=pixel_size_mm circumference=head_circumference_mm
bundle usfm_segmentation fetal_head --dataset_dir "$data/fetal_head_hc18" --datalist "$out/fetal_head.json" --pretrained "$start" \
    --spatial_size "[256,256]" --max_epochs 20 --warmup_epochs 1 --val_interval 4 --class_names "['background','fetal head']"
# Benign or malignant: from the masks of the same images.
bundle usfm_classification classification --dataset_dir "$data/busbra" --pretrained "$out/lesions_0/model.pt" \
    --spatial_size "[192,192]" --max_epochs 16 --warmup_epochs 1 --val_interval 2 --learning_rate 0.0003
# No labels: the start, inflated, learns structures in simulated volumes.
bundle usfm_segmentation simulated_volumes --pretrained "$start" --spatial_dims 3 --spatial_size "[48,96,96]" --batch_size 2 \
    --synthetic#num_training 264 --synthetic#num_validation 12 --synthetic#num_test 24 --synthetic#seed 1 \
    --max_epochs 8 --warmup_epochs 1 --val_interval 4
bundle usfm_enhancement enhancement --dataset_dir "$data" --datalist "$data/unlabelled/pretraining.json" --pretrained "$start" \
    --spatial_size "[192,192]" --max_epochs 5 --warmup_epochs 1 --val_interval 1

# Into the bundles, each with its card; data, license and scores are then written there by hand.
ship() { # name, file of a bundle
    for ending in pt json; do cp "$out/$1/model.$ending" "$here/bundles/$2.$ending"; done
}
[ ! -d "$out/starts" ] || ship starts/foundation usfm_pretraining/models/model
ship lesions usfm_segmentation/models/model
ship fetal_head usfm_segmentation/models/fetal_head
ship simulated_volumes usfm_segmentation/models/simulated_volumes
ship classification usfm_classification/models/model
ship enhancement usfm_enhancement/models/model
