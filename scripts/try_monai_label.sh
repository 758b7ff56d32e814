#!/usr/bin/env bash
# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
# Runs these bundles in MONAI Label's own server, in an environment of its own: bash scripts/try_monai_label.sh [FOLDER]
#
# MONAI Label 0.8.5 needs pydicom 2. Its requirements sam2 and torchvision would bring a second PyTorch with CUDA, several
# gigabytes, so it is installed without them. Of torchvision it imports two names for apps that ours are not; where there
# is none, the environment gets a stand-in for these.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
env="${1:-$root/.venv-label}"
mkdir -p "$env"
env="$(cd "$env" && pwd)"
install() { "$env/bin/python" -m pip install --quiet -c "$env/constraints.txt" "$@"; }
if [ ! -f "$env/complete" ]; then
    python3 -m venv "$env"
    printf '%s\n' "pydicom<3" "pynetdicom<3" "dicomweb-client<0.60" >"$env/constraints.txt"
    install torch==2.13.0 monai==1.6.1 numpy
    install --no-deps monailabel==0.8.5 pydicom-seg==0.4.1
    install pydicom pynetdicom dicomweb-client SimpleITK jsonschema fastapi uvicorn pydantic-settings \
        python-dotenv python-multipart httpx psutil schedule timeloop expiringdict expiring_dict cachetools watchdog numpymaxflow \
        girder-client passlib pyjwt bcrypt shapely requests requests-toolbelt google-auth scikit-image setuptools pytest
    install -e "$root"
    site="$("$env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
    if ! "$env/bin/python" -c 'import torchvision.utils' 2>/dev/null; then
        mkdir -p "$site/torchvision"
        : >"$site/torchvision/__init__.py"
        echo 'make_grid = save_image = None' >"$site/torchvision/utils.py"
    fi
    : >"$env/complete"
fi
cd "$root"
exec "$env/bin/python" -m pytest -ra tests/test_monai_label.py
