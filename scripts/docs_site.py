# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Hook of mkdocs.yml: the site has the paths of the repository, so one link serves both; notebooks become pages."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/**/*", "bundles/*/docs/*", "examples/*/*.md"]
LINKED = ["LICENSE", "CITATION.cff", "examples/*/LICENSE.txt", "monai_usfm/simulation/organs/lesions.py"]


def on_files(files: Files, config: Any) -> Files:
    """Pages, figures and what they link to."""
    found = Files([file for file in files if file.generated_by])
    for path in sorted({p for pattern in (*PAGES, *LINKED) for p in ROOT.glob(pattern) if p.is_file()}):
        name = path.relative_to(ROOT).as_posix()
        found.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
        if path.suffix == ".ipynb":
            page = name.removesuffix(".ipynb") + ".md"
            found.append(File.generated(config, page, content=as_page(path)))
    return found


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to notebooks, which serve in the repository, lead to their pages here."""
    return re.sub(r"(?<!Download this notebook\])\(([^()\s]+)\.ipynb\)", r"(\1.md)", markdown)


def as_page(notebook: Path) -> str:
    """Text and code of a notebook; outputs are not stored."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    parts = []
    for cell in cells:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    return "\n\n".join([*parts, f"[Download this notebook]({notebook.name})"]) + "\n"
