# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""What is installed: the ranges of pyproject.toml and the tested versions agree."""

from __future__ import annotations

import ast
import json
import re
import sys

import pytest
from packaging.requirements import Requirement

import monai_usfm

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib


def names(lines):
    return {Requirement(line).name for line in lines}


@pytest.fixture(scope="module")
def project(repository):
    return tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def pins(repository):
    """Name -> tested version, of requirements.txt and of constraints.txt."""
    found = []
    for file in ("requirements.txt", "constraints.txt"):
        text = (repository / file).read_text(encoding="utf-8")
        found.append(dict(re.findall(r"^([\w.-]+)==([\w.]+)", text, re.MULTILINE)))
    return found


def test_requirements_are_the_runtime_packages(project, pins):
    assert set(pins[0]) == names(project["dependencies"])


def test_constraints_are_the_optional_packages(project, pins):
    wanted = names(line for group in project["optional-dependencies"].values() for line in group)
    assert set(pins[1]) == wanted - {"monai_usfm"}


def test_tested_versions_are_in_the_ranges(project, pins):
    versions = pins[0] | pins[1]
    lines = [*project["dependencies"], *(line for group in project["optional-dependencies"].values() for line in group)]
    for requirement in map(Requirement, lines):
        if requirement.name != "monai_usfm":
            assert requirement.specifier.contains(versions[requirement.name]), requirement


@pytest.mark.parametrize("bundle", ["pretraining", "segmentation", "classification", "enhancement"])
def test_metadata_of_bundles_name_every_runtime_package_in_its_tested_version(repository, pins, bundle):
    file = repository / "bundles" / f"usfm_{bundle}" / "configs" / "metadata.json"
    metadata = json.loads(file.read_text(encoding="utf-8"))
    named = dict(metadata["required_packages_version"], torch=metadata["pytorch_version"])
    named |= {"monai": metadata["monai_version"], "numpy": metadata["numpy_version"]}
    assert named == pins[0] | {"monai_usfm": monai_usfm.__version__}


def test_modules_import_from_the_floors_below_alone(repository):
    text = (repository / "CONTRIBUTING.md").read_text(encoding="utf-8")
    sentence = text[text.index("`files`") : text.index(" A module imports")]
    floors = [re.findall(r"`(\w+)`", part) for part in sentence.split("<")]
    height = {name: number for number, part in enumerate(floors) for name in part}
    package = repository / "monai_usfm"
    for file in sorted(package.glob("*/**/*.py")) + sorted(package.glob("[a-z]*.py")):
        here = file.relative_to(package).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            if module and module.startswith("monai_usfm.") and (there := module.split(".")[1]) != here:
                assert height[there] < height[here], f"{file}, line {node.lineno}: {here} imports {there}"
