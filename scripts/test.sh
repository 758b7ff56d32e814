#!/usr/bin/env bash
# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
# The whole fast test suite, from a fresh machine with nothing but Python:
#
#   bash scripts/test.sh [--venv DIR] [ARGUMENTS OF PYTEST...]
#
# Makes or reuses .venv; an active environment that has torch is used instead. Tests that need real images use
# ../shared/data or the folder in MONAI_USFM_DATA, and are skipped, with the reason, where there is none.
set -euo pipefail
# shellcheck source=scripts/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

venv=""
if [ "${1:-}" = "--venv" ]; then
    [ -n "${2:-}" ] || fail "--venv needs a folder"
    mkdir -p "$(dirname "$2")"
    venv="$(cd "$(dirname "$2")" && pwd -P)/$(basename "$2")"
    shift 2
fi
prepare_environment "$venv" test
here="$PWD"
cd "$root"
say "Running the tests with $("$PYTHON" --version), OMP_NUM_THREADS=$OMP_NUM_THREADS."
# Paths given on the command line are relative to the caller's folder where they exist there.
arguments=()
for argument in "$@"; do
    case "$argument" in
        -* | /*) ;;
        *) if [ ! -e "${argument%%::*}" ] && [ -e "$here/${argument%%::*}" ]; then argument="$here/$argument"; fi ;;
    esac
    arguments+=("$argument")
done
exec "$PYTHON" -m pytest ${arguments[@]+"${arguments[@]}"} </dev/null
