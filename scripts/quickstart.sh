#!/usr/bin/env bash
# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
# From a machine with nothing but Python to a report on real images: makes the environment, then runs quickstart.py.
#
#   bash scripts/quickstart.sh [--venv DIR] [--data FOLDER | --synthetic] [--output DIR] [--start FILE] [--quick]
#
# --venv DIR is the virtual environment to make or reuse (default .venv in the repository, or the active environment if it
# has torch); `bash scripts/quickstart.sh --help` explains the rest. pip's own settings apply, for example PIP_INDEX_URL.
set -euo pipefail
# shellcheck source=scripts/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

venv="" arguments=()
while [ $# -gt 0 ]; do
    case "$1" in
        --venv)
            [ -n "${2:-}" ] || fail "--venv needs a folder"
            venv="$(mkdir -p "$2" && cd "$2" && pwd -P)" && shift 2
            ;;
        *) arguments+=("$1") && shift ;;
    esac
done
# Wrong arguments stop here, before anything is installed.
"$(find_python)" "$root/scripts/quickstart.py" --check ${arguments[@]+"${arguments[@]}"}
case " ${arguments[*]-} " in *" --help "* | *" -h "*) exit 0 ;; esac
prepare_environment "$venv"
say "Python: $PYTHON, threads: $OMP_NUM_THREADS"
exec "$PYTHON" "$root/scripts/quickstart.py" ${arguments[@]+"${arguments[@]}"}
