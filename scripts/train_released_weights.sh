#!/usr/bin/env bash
# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
# Trains the weights that the bundles ship, on the openly licensed development images.
#
#   bash scripts/train_released_weights.sh DATA_FOLDER OUTPUT_FOLDER [OPTION...]
#
# About four hours of one core of a CPU with bf16 instructions, two trainings at a time on more, and one more hour with
# DINOV2=dinov2_vits14.pt, which trains the pretrained start on. Finished steps are kept; an interrupted one goes on.
# GPU=1 takes larger batches, which fill one, and trains what it can at once.
# Options go to every training: "--max_epochs 1" tries the whole chain in a copy of the repository, in 15 minutes of a
# core, 33 with DINOV2.
set -euo pipefail
trap 'kill 0' INT # what runs in the background does not hear of it otherwise
[ $# -ge 2 ] || { echo "usage: bash scripts/train_released_weights.sh DATA_FOLDER OUTPUT_FOLDER [OPTION...]" >&2 && exit 2; }
data=$(cd "$1" && pwd)
mkdir -p "$2"
out=$(cd "$2" && pwd)
shift 2
options=("$@")
wide=() larger=()
if [ -n "${GPU:-}" ]; then
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}"
    wide=(--resident true --batch_size 512 --epoch_length 24576 --rate 2 --num_workers 15)
    larger=(--batch_size 64 --num_workers 4)
fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
start="$here/bundles/usfm_pretraining/models/model.pt"

bundle() { # bundle, name, then options
    local root="$here/bundles/$1" name=$2
    shift 2
    [ -f "$out/$name/model.pt" ] && return
    python -W ignore -m monai.bundle run --config_file "$root/configs/train.json" --bundle_root "$root" \
        --output_dir "$out/$name" --pretrained "$start" --resume true "$@" ${options[@]+"${options[@]}"}
}

if [ -n "${DINOV2:-}" ]; then # the start: simulated labels, unlabeled images and teachers
    python "$here/scripts/train_foundation.py" "$data/pretraining_all.json" "$DINOV2" "$out/starts" ${wide[@]+"${wide[@]}"} \
        ${options[@]+"${options[@]}"}
    start="$out/starts/foundation/model.pt"
fi
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(python -c "import os; print((os.cpu_count() + 1) // 2)")}"
# Breast lesions: the mean of trainings that differ in their seed. Dark depths are taken for lesions; a wide shadow from
# half the depth on, in three images of ten, is what such depths look like.
intensity=$(python - "$here/bundles/usfm_segmentation/configs/train.json" <<'PY'
import json, sys
shadow = {"_target_": "monai_usfm.transforms.RandAcousticShadowd", "keys": "image", "prob": 0.3}
shadow |= {"loss_db": [15, 60], "start": [0.45, 0.9], "width": [0.3, 3.0]}
print([*json.load(open(sys.argv[1]))["intensity_augmentation"], shadow])
PY
)
breasts() {
    bundle usfm_segmentation "lesions_$1" --dataset_dir "$data/busbra" --spatial_size "[256,256]" --max_epochs 44 \
        --warmup_epochs 2 --val_interval 5 --background_crops 0.1 --intensity_augmentation "$intensity" --seed "$1" \
        --class_names "['background','lesion']" \
        ${larger[@]+"${larger[@]}" --learning_rate 0.002 --num_workers 5 --val_interval 11}
}
# HC18: pixel sizes and published circumferences are in its table; 377 more training images in another folder.
python - "$data" "$out/fetal_head.json" <<'PY'
import json, pathlib, sys
from monai_usfm.data import join_table, load_datalist
data, output = map(pathlib.Path, sys.argv[1:])
columns = {"fetal_head_hc18": ["patient=subject_id", "spacing=pixel_size_mm", "circumference=head_circumference_mm"]}
columns |= {"fetal_head_hc18_extra": ["patient=subject"]}
splits = {"training": [], "validation": [], "test": []}
for folder, taken in columns.items():
    listed = join_table(str(data / folder / "dataset.json"), str(data / folder / "labels.csv"), taken, output=str(output))
    for split in splits if folder == "fetal_head_hc18" else ["training"]:
        splits[split] += load_datalist(listed, data / folder, split)
output.write_text(json.dumps(splits, indent=1))
PY
classes() { # benign or malignant: from the masks of the same images
    bundle usfm_classification classification --dataset_dir "$data/busbra" --pretrained "$out/lesions_0/model.pt" \
        --spatial_size "[192,192]" --max_epochs 16 --warmup_epochs 1 --val_interval 2 --learning_rate 0.0003 \
        --class_names "['benign','malignant']" ${larger[@]+"${larger[@]}" --learning_rate 0.0006}
}
heads() {
    bundle usfm_segmentation fetal_head --datalist "$out/fetal_head.json" --spatial_size "[256,256]" --max_epochs 20 \
        --warmup_epochs 1 --val_interval 4 --class_names "['background','fetal head']" \
        ${larger[@]+"${larger[@]}" --learning_rate 0.002}
}
volumes() { # the start, inflated
    bundle usfm_segmentation prostate --dataset_dir "$data/prostate_trus_3d" --spatial_dims 3 --batch_size 2 \
        --spatial_size "[48,64,48]" --max_epochs 60 --warmup_epochs 3 --val_interval 5 \
        --class_names "['background','prostate']"
}
enhancement() {
    bundle usfm_enhancement enhancement --dataset_dir "$data" --datalist "$data/unlabelled/pretraining.json" \
        --spatial_size "[192,192]" --max_epochs 5 --warmup_epochs 1 --val_interval 1 ${larger[@]+--num_workers 4}
}
chains=("breasts 0; classes; enhancement" "breasts 1; heads; volumes") # at once; each goes on where another one fails
[ -z "${GPU:-}" ] || chains=("breasts 0; classes" "breasts 1" "heads" "volumes; enhancement")
running=() failed=0
for chain in "${chains[@]}"; do
    (eval "$chain") &
    running+=($!)
done
for process in "${running[@]}"; do wait "$process" || failed=1; done
[ "$failed" = 0 ]

lesions=("$out/lesions_0/model.pt" "$out/lesions_1/model.pt")
[ -f "$out/lesions/model.pt" ] || python -W ignore -m monai_usfm average "$out/lesions/model.pt" "${lesions[@]}"
# Temperatures and the presence threshold, on the validation split.
python -W ignore -m monai_usfm calibrate --checkpoint "$out/lesions/model.pt" --dataset_dir "$data/busbra" --sensitivity 0.995
python -W ignore -m monai_usfm calibrate --checkpoint "$out/classification/model.pt" --dataset_dir "$data/busbra"

# Into the bundles, each with its card; data, license and scores are then written there by hand.
ship() { # name, file of a bundle
    for ending in pt json; do cp "$out/$1/model.$ending" "$here/bundles/$2.$ending"; done
}
[ ! -d "$out/starts" ] || ship starts/foundation usfm_pretraining/models/model
ship lesions usfm_segmentation/models/model
ship fetal_head usfm_segmentation/models/fetal_head
ship prostate usfm_segmentation/models/prostate
ship classification usfm_classification/models/model
ship enhancement usfm_enhancement/models/model
