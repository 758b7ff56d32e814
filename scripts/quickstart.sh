#!/usr/bin/env bash
# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
# From a machine with nothing but Python to a report: pretrain a tiny encoder, fine-tune a segmentation with and without
# it, compare the two on test images.
set -euo pipefail
# shellcheck source=scripts/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

usage() {
    cat <<'TEXT'
bash scripts/quickstart.sh [--data FOLDER] [--output DIR] [--venv DIR] [--quick]

  --data FOLDER   your own ultrasound images (PNG, JPEG, TIFF, NIfTI, MHA, NRRD, DICOM; folders below are searched).
                  Masks are found beside them (images/ and masks/, or NAME_mask). Without masks the encoder is pretrained
                  on your images and the segmentation is done on simulated ones. Without --data all images are simulated.
  --output DIR    where everything is written; default ./quickstart. A former quickstart there is replaced.
  --venv DIR      virtual environment to make or reuse; default .venv in the repository, or the active environment if
                  it has torch.
  --quick         a few steps only: shows that everything works, not what pretraining does.

Under 10 minutes on two CPU cores after the installation; a GPU is used where there is one. pip's own settings apply, for
example PIP_INDEX_URL for a mirror, or PIP_EXTRA_INDEX_URL for builds of torch for another accelerator.
TEXT
}

absolute() { # a path that need not exist, from the caller's folder
    case "$1" in
        /*) printf '%s' "${1%/}" ;;
        *) printf '%s' "$PWD/${1%/}" ;;
    esac
}

data="" output="$PWD/quickstart" venv="" quick=0
while [ $# -gt 0 ]; do
    case "$1" in
        --data | --output | --venv)
            [ -n "${2:-}" ] || fail "$1 needs a folder"
            case "$1" in
                --data) data="$(absolute "$2")" ;;
                --output) output="$(absolute "$2")" ;;
                --venv) venv="$(absolute "$2")" ;;
            esac
            shift 2
            ;;
        --quick) quick=1 && shift ;;
        -h | --help) usage && exit 0 ;;
        *) usage >&2 && fail "unknown argument: $1" ;;
    esac
done
[ -z "$data" ] || [ -d "$data" ] || fail "--data: there is no folder $data"
if [ -e "$output" ] && [ ! -f "$output/quickstart.stamp" ] && [ -n "$(ls -A "$output")" ]; then
    fail "$output is not empty and not from a former quickstart; give another folder with --output"
fi

# What is trained. Pretraining: batches of 16 images; fine-tuning: batches of 8, about 48 labelled images.
size="[112,112]" images="192,16,48" pretraining_epochs=30 epoch_images=240 finetuning_epochs=30 interval=5
if [ "$quick" = 1 ]; then
    images="24,4,6" pretraining_epochs=2 epoch_images=32 finetuning_epochs=2 interval=1
fi

prepare_environment "$venv"
say "Python: $PYTHON, threads: $OMP_NUM_THREADS"
mkdir -p "$output"
rm -rf "$output/logs" "$output/pretraining" "$output/segmentation_pretrained" "$output/segmentation_scratch" \
    "$output/cases" "$output/pretraining.json" "$output/segmentation.json"
rm -f "$output/report.html" "$output/report.md" "$output/timings.csv" "$output/plan.json"
touch "$output/quickstart.stamp"
cd "$root"
export PYTHONUNBUFFERED=1
number=0

step() { # step NAME MESSAGE COMMAND...: a logged command whose seconds go to timings.csv
    local name="$1" started=$SECONDS
    number=$((number + 1))
    shift
    run_logged "$output/logs/$number-$name.log" "[$number/9] $1" "${@:2}"
    printf '%s,%s\n' "$1" "$((SECONDS - started))" >>"$output/timings.csv"
}

bundle() { # bundle NAME "OVERLAYS" ARGUMENTS...: runs configs of one bundle
    local folder="bundles/$1" files="" overlay
    for overlay in $2; do files="$files${files:+,}'$folder/configs/$overlay.json'"; done
    "$PYTHON" -m monai.bundle run --config_file "[$files]" --bundle_root "$folder" "${@:3}"
}

step data "Preparing the images" \
    "$PYTHON" scripts/quickstart_data.py --output "$output" --images "$images" ${data:+--data "$data"}
# shellcheck disable=SC1091
source "$output/plan.sh"
say "  $plan_summary"

step pretraining "Pretraining on $plan_pretraining_origin, without labels" \
    bundle usfm_pretraining "train demo" --output_dir "$output/pretraining" \
    --dataset_dir "$plan_pretraining_dir" --datalist "$plan_pretraining_list" --cache_dir "$output/cache" \
    --spatial_size "$size" --max_epochs "$pretraining_epochs" --epoch_length "$epoch_images" --warmup_epochs 2 \
    --learning_rate 0.001 --val_interval "$interval" --picture_interval "$pretraining_epochs"

finetune() { # finetune pretrained|scratch ARGUMENTS...
    local name="$1"
    shift
    step "segmentation-$name" "Fine-tuning a segmentation on $plan_segmentation_origin ($name)" \
        bundle usfm_segmentation "train demo" --output_dir "$output/segmentation_$name" \
        "${segmentation[@]}" --label_fraction "$plan_label_fraction" --max_epochs "$finetuning_epochs" --batch_size 8 \
        --val_interval "$interval" --picture_interval "$finetuning_epochs" "$@"
    step "evaluation-$name" "Evaluating it on the test images ($name)" \
        bundle usfm_segmentation "train evaluate demo" --output_dir "$output/segmentation_$name" "${segmentation[@]}"
    step "inference-$name" "Segmenting the cases of the report ($name)" \
        bundle usfm_segmentation "inference" --dataset_dir "$output/cases/images" \
        --output_dir "$output/segmentation_$name/predictions" --checkpoint "$output/segmentation_$name/model.pt" \
        --spatial_size "$size" --num_classes "$plan_num_classes"
}
segmentation=(--dataset_dir "$plan_segmentation_dir" --datalist "$plan_segmentation_list" --spatial_size "$size"
    --num_classes "$plan_num_classes" --label_values "$plan_label_values")
# Decay of the learning rate towards the first layers protects what they learnt; from scratch there is nothing to protect.
finetune pretrained --pretrained "$output/pretraining/model.pt"
finetune scratch --layer_decay 1.0

step report "Writing the report" "$PYTHON" scripts/quickstart_report.py "$output"
say ""
sed -n '/^## Result/,/^## /p' "$output/report.md" | sed '/^## /d;/^$/d'
say "Report: $output/report.html (the same as text: report.md). Encoder: $output/pretraining/model.pt"
