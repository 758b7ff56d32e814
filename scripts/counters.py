# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Counts how large and how plain the package is, now or at any revision, as a Markdown table.

python scripts/counters.py                      this checkout
python scripts/counters.py f28d2df HEAD .        before, after, and the files as they lie here
python scripts/counters.py --mypy HEAD          the messages of mypy too (minutes)
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LOGIC = re.compile(r"\bif\b|\bfor\b|\blambda\b|\band\b|\bor\b|\bnot\b")
LONGEST = 150  # characters of a line of the pages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revisions", nargs="*", default=["."], help="of git; . for the files as they lie here")
    parser.add_argument("--mypy", action="store_true")
    options = parser.parse_args()
    tables = {}
    for revision in options.revisions:
        with tempfile.TemporaryDirectory() as folder:
            root = ROOT if revision == "." else extracted(revision, folder)
            tables[revision] = {**count(root), **({"mypy messages": mypy(root)} if options.mypy else {})}
    print(f"| counter | {' | '.join(tables)} |\n|---|{'---|' * len(tables)}")
    for name in next(iter(tables.values())):
        print(f"| {name} | {' | '.join(str(table[name]) for table in tables.values())} |")


def extracted(revision: str, folder: str) -> Path:
    """The files of a revision."""
    archive = subprocess.run(["git", "archive", revision], cwd=ROOT, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    return Path(folder)


def count(root: Path) -> dict[str, Any]:
    """The counters of a checkout."""
    lines = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in root.glob("monai_usfm/**/*.py")}
    configs = [f for f in root.glob("bundles/*/configs/*.json") if f.name != "metadata.json"]
    trains = {f.parents[1].name: f for f in configs if f.name == "train.json"}
    contents = {f: json.loads(f.read_text(encoding="utf-8")) for f in configs}
    expressions = [text for content in contents.values() for text in leaves(content) if text.startswith("$")]
    longest = max(lines, key=lines.__getitem__)
    return {
        "lines of the package": sum(lines.values()),
        "longest module": f"{lines[longest]} ({longest.relative_to(root)})",
        "lines of tests": sum(len(f.read_text("utf-8").splitlines()) for f in root.glob("tests/**/*.py")),
        "configs": len(configs),
        "longest train.json": max(len(f.read_text("utf-8").splitlines()) for f in trains.values()),
        "options": ", ".join(f"{name} {len(contents[f].get('_options_', {}))}" for name, f in sorted(trains.items())),
        "expressions in configs": len(expressions),
        "of these with logic": sum(bool(LOGIC.search(text)) for text in expressions),
        "import circles": circles(root),
        f"lines of pages over {LONGEST} characters": len(long_lines(root)),
    }


def leaves(value: Any) -> Iterator[str]:
    if isinstance(value, dict | list):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from leaves(entry)
    elif isinstance(value, str):
        yield value


def circles(root: Path) -> str:
    """Whether folders of the package import each other when they are imported, with the first circle."""
    graph: dict[str, set[str]] = {}
    for file in root.glob("monai_usfm/*/**/*.py"):
        floor = file.relative_to(root).parts[1]
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("monai_usfm."):
                graph.setdefault(floor, set()).add(str(node.module).split(".")[1])
    try:
        TopologicalSorter({floor: others - {floor} for floor, others in graph.items()}).prepare()
    except CycleError as error:
        return " > ".join(error.args[1])
    return "none"


def long_lines(root: Path) -> list[str]:
    """Lines of the change log, the README and the pages that are too long; tables and code may be."""
    found = []
    for page in (root / "CHANGELOG.md", root / "README.md", *root.glob("docs/*.md")):
        code = False
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
            code ^= line.strip().startswith("```")
            if not code and not line.startswith("|") and len(line) > LONGEST:
                found.append(f"{page.relative_to(root)}:{number}")
    return found


def mypy(root: Path) -> int:
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=root, capture_output=True, text=True)
    return sum(": error:" in line for line in done.stdout.splitlines())


if __name__ == "__main__":
    main()
