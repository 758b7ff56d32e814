# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
# Shared by quickstart.sh and test.sh, which source it: finds or makes the Python environment.
#
#   prepare_environment VENV [EXTRA]   sets PYTHON; EXTRA is a group of optional packages of pyproject.toml
#
# VENV may be empty: then an active environment that has torch is used as it is (only missing packages are added, and
# torch is never replaced), else .venv in the repository is made or reused.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"

say() { printf '%s\n' "$*"; }

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# Python from 3.10 that can be started; 3.11 first, because every number of this version was measured with it.
find_python() {
    local name
    for name in "${USFM_PYTHON:-}" python3.11 python3.12 python3.13 python3.10 python3; do
        if [ -n "$name" ] && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then
            printf '%s' "$name"
            return
        fi
    done
    fail "no Python from 3.10 found. Install python3.11 (with its venv module), or name one: USFM_PYTHON=/path/to/python"
}

# run_logged LOG MESSAGE COMMAND...: output goes to LOG; on failure the end of the log is shown and the log is named.
run_logged() {
    local log="$1" message="$2" started=$SECONDS
    shift 2
    mkdir -p "$(dirname "$log")"
    say "$message (log: $log)"
    if ! "$@" </dev/null >"$log" 2>&1; then
        tail -n 25 "$log" | sed 's/^/    /' >&2 || true
        fail "this step failed: $message. Read $log"
    fi
    say "  done in $((SECONDS - started)) s"
}

prepare_environment() {
    local venv="$1" extra="${2:-}" active="${VIRTUAL_ENV:-}"
    export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" # this checkout, whatever else is installed
    export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
    if [ -z "$venv" ] && [ -n "$active" ] && "$active/bin/python" -c 'import torch' >/dev/null 2>&1; then
        PYTHON="$active/bin/python"
        _complete_active_environment "$active" "$extra"
    else
        [ -n "$venv" ] || venv="$root/.venv"
        _make_environment "$venv" "$extra"
    fi
    if [ -z "${OMP_NUM_THREADS:-}" ]; then # small batches do not profit from more than four
        OMP_NUM_THREADS="$("$PYTHON" -c 'import os
cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
print(min(4, cores))')"
        export OMP_NUM_THREADS
    fi
    # Threads that wait sleep: those that spin, as is the default, slow each other several times where other work runs.
    export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"
}

_make_environment() {
    local venv="$1" extra="$2" base torch wanted
    if [ -e "$venv" ] && [ ! -f "$venv/pyvenv.cfg" ] && [ -n "$(ls -A "$venv")" ]; then
        fail "$venv exists and is no virtual environment; give another folder with --venv"
    fi
    base="$(find_python)"
    if ! "$venv/bin/python" -c '' >/dev/null 2>&1; then # new, moved, or its Python is gone
        say "Making a virtual environment in $venv with $("$base" --version)."
        "$base" -m venv --clear "$venv" ||
            fail "$base cannot make a virtual environment. On Debian and Ubuntu: apt install python3-venv"
    fi
    PYTHON="$venv/bin/python"
    wanted="$("$PYTHON" - "$root" <<'PY'
import hashlib, sys
from pathlib import Path

root = Path(sys.argv[1])
content = [(root / name).read_bytes() for name in ("requirements.txt", "constraints.txt", "pyproject.toml")]
print(hashlib.sha256(b"\0".join([*content, str(root).encode()])).hexdigest())
PY
)"
    if _is_stamped "$venv/runtime.stamp" && { [ -z "$extra" ] || _is_stamped "$venv/$extra.stamp"; }; then
        say "Using the environment in $venv: requirements.txt, constraints.txt and pyproject.toml are those it was made with."
        return
    fi
    if ! _is_stamped "$venv/runtime.stamp"; then
        torch="$(sed -n 's/^\(torch==[^ #;]*\).*/\1/p' "$root/requirements.txt")"
        [ -n "$torch" ] || fail "$root/requirements.txt has no line torch==VERSION"
        run_logged "$venv/install-1-torch.log" "Installing $torch (large: some minutes)" \
            "$PYTHON" -m pip install "$torch"
        run_logged "$venv/install-2-package.log" "Installing monai_usfm with the tested versions of what it needs" \
            "$PYTHON" -m pip install -c "$root/constraints.txt" -e "$root"
        printf '%s\n' "$wanted" >"$venv/runtime.stamp"
    fi
    if [ -n "$extra" ]; then
        run_logged "$venv/install-3-$extra.log" "Installing the optional packages of the group '$extra'" \
            "$PYTHON" -m pip install -c "$root/constraints.txt" -e "$root[$extra]"
        printf '%s\n' "$wanted" >"$venv/$extra.stamp"
    fi
}

_is_stamped() { [ -f "$1" ] && [ "$(cat "$1")" = "$wanted" ]; }

_complete_active_environment() {
    local active="$1" extra="$2" missing log
    say "Using the active environment $active."
    missing="$("$PYTHON" - "$root" "$extra" <<'PY'
import re, sys
from importlib import metadata
from pathlib import Path

try:
    import tomllib
except ImportError:  # Python 3.10
    from pip._vendor import tomli as tomllib

root, extra = Path(sys.argv[1]), sys.argv[2]
project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
wanted, groups = list(project["dependencies"]), project["optional-dependencies"]
text = (root / "requirements.txt").read_text(encoding="utf-8") + (root / "constraints.txt").read_text(encoding="utf-8")
pins = dict(re.findall(r"^([\w.-]+)==([\w.]+)", text, re.MULTILINE))
queue = [extra] if extra else []
while queue:
    for line in groups[queue.pop()]:
        inner = re.fullmatch(r"monai_usfm\[(.+)\]", line)
        if inner:
            queue += inner.group(1).replace(" ", "").split(",")
        else:
            wanted.append(line)
for line in wanted:
    name = re.match(r"[\w.-]+", line).group()
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        print(line)
        continue
    if name in ("torch", "monai") and version.split("+")[0] != pins[name]:
        print(f"note: {name} is {version} here, {pins[name]} was tested.", file=sys.stderr)
PY
)"
    [ -n "$missing" ] || return 0
    say "Missing in it: $(printf '%s' "$missing" | tr '\n' ' ')"
    log="$active/monai_usfm-install"
    mkdir -p "$log"
    printf '%s\n' "$missing" >"$log/missing.txt"
    "$PYTHON" -m pip freeze --exclude-editable 2>/dev/null | grep -iE '^(torch|numpy)==' >"$log/keep.txt" || true
    run_logged "$log/missing.log" "Installing what is missing" \
        "$PYTHON" -m pip install -c "$log/keep.txt" -r "$log/missing.txt"
}
