# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""The bundles as the model zoo and its users take them: its unit test, loading from anywhere, the hub's layout."""

from __future__ import annotations

import ast
import inspect
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from monai.bundle import ConfigParser, ConfigWorkflow, load
from monai.networks.trt_compiler import TrtCompiler
from PIL import Image
from safetensors.torch import load_file

from monai_usfm import build_network, save_network
from monai_usfm.cards import find_card
from monai_usfm.cli import main
from monai_usfm.options import check_names
from monai_usfm.workflow import TASKS

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def check_workflow(workflow: ConfigWorkflow) -> None:
    """As ``ci/unit_tests/utils.py`` of the model zoo has it."""
    workflow.initialize()
    assert not workflow.check_properties()
    workflow.run()
    workflow.finalize()


@pytest.mark.parametrize(
    "task", [pytest.param(task, marks=() if task == "segmentation" else pytest.mark.slow) for task in TASKS]
)
def test_the_zoos_unit_test(repository, simulated_images, tiny_training, tmp_path, task):
    """Two epochs of training, an evaluation, an inference, each with its properties checked."""
    root = repository / "bundles" / f"usfm_{task}"
    places = {"bundle_root": str(root), "dataset_dir": str(simulated_images), "output_dir": str(tmp_path)}
    tiny = {**places, **tiny_training}
    for names, kind in ((["train"], "train"), (["train", "evaluate"], "train")):
        files = [str(root / "configs" / f"{name}.json") for name in names]
        check_workflow(ConfigWorkflow(config_file=files, workflow_type=kind, logging_file=False, **tiny))
    inference = {**places, "checkpoint": str(tmp_path / "model.pt"), "device": "cpu"}
    file = str(root / "configs" / "inference.json")
    check_workflow(ConfigWorkflow(config_file=file, workflow_type="inference", logging_file=False, **inference))


@pytest.mark.parametrize("kind", ["train", "inference"])
@pytest.mark.parametrize("task", TASKS)
def test_a_bundle_loads_from_anywhere(repository, tmp_path, monkeypatch, task, kind):
    monkeypatch.chdir(tmp_path)
    network = load(f"usfm_{task}", bundle_dir=str(repository / "bundles"), workflow_type=kind)
    shipped = torch.load(repository / "bundles" / f"usfm_{task}" / "models" / "model.pt", weights_only=True)
    state = network.state_dict()
    if task == "pretraining":  # features and the default objective have no use for the decoder beside the encoder
        shipped = {name: value for name, value in shipped.items() if name.startswith("encoder.")}
    if kind == "train":  # for images of the size that training has by default
        shipped = {name: value for name, value in shipped.items() if ".pos_embed." not in name}
    assert all(torch.equal(state[name], value.float()) for name, value in shipped.items())


@pytest.mark.parametrize("task", TASKS)
def test_properties_of_inference_are_checked_without_images(repository, tmp_path, task):
    root = repository / "bundles" / f"usfm_{task}"
    workflow = ConfigWorkflow(
        config_file=str(root / "configs" / "inference.json"),
        workflow_type="inference",
        logging_file=False,
        bundle_root=str(root),
        dataset_dir=str(tmp_path / "nowhere"),
        output_dir=str(tmp_path),
    )
    workflow.initialize()
    assert not workflow.check_properties()


@pytest.mark.parametrize("task", TASKS[1:])
def test_the_overlay_for_tensorrt_changes_the_network_alone_and_nothing_on_a_cpu(repository, tmp_path, task):
    configs = repository / "bundles" / f"usfm_{task}" / "configs"
    plain = ConfigParser.load_config_files([configs / "inference.json"])
    config = ConfigParser.load_config_files([configs / "inference.json", configs / "inference_trt.json"])
    differing = {name for name in config if config[name] != plain.get(name)}
    assert differing == {"_desc_", "imports", "network"}
    check_names(config)
    given = re.search(r"args=({.*})", config["network"])
    inspect.signature(TrtCompiler).bind(None, "plan", **ast.literal_eval(given.group(1)))  # as trt_compile calls it
    parser = ConfigParser({**config, "bundle_root": str(configs.parent), "device": "cpu"})
    if not torch.cuda.is_available():
        assert parser.get_parsed_content("network") is parser.get_parsed_content("network_def")


def test_the_layout_of_the_hub_has_a_card_at_the_root_whose_images_are_there(repository, tmp_path, monkeypatch):
    weights = repository / "bundles" / "usfm_segmentation" / "models" / "model.pt"
    target = tmp_path / "usfm_segmentation"
    assert main(["pack", str(weights), str(target), "--hub"]) == 0
    _, header, text = (target / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(header) == {
        "library_name": "monai",
        "license": "apache-2.0",
        "tags": ["monai", "medical", "ultrasound", "segmentation"],
    }
    links = [link for link in re.findall(r"\]\(([^)]*)\)", text) if not link.startswith(("http", "#"))]
    assert links and all((target / link).is_file() for link in links)
    assert {Image.open(target / link).format for link in links if link.endswith(".png")} == {"PNG"}
    kept = load_file(target / "models" / "model.safetensors")
    wanted = torch.load(weights, weights_only=True)
    assert kept.keys() == wanted.keys() and all(torch.equal(kept[name], wanted[name]) for name in kept)
    monkeypatch.chdir(tmp_path)
    assert load("usfm_segmentation", bundle_dir=str(tmp_path), workflow_type="inference") is not None


def test_own_weights_claim_nothing_of_the_bundle_they_came_from(repository, tmp_path):
    options = {"network_size": "custom", "hidden_size": 24, "mlp_dim": 48, "num_layers": 4, "num_heads": 3}
    network = build_network("segmentation", spatial_size=[32, 32], num_classes=3, **options)
    names = ["Hintergrund", "Läsion", "Gefäß"]
    started = {"file": "start.pt", "data": "images of the start", "license": "CC BY 4.0"}
    weights = save_network(tmp_path / "own.pt", network, class_names=names, start=started, data="40 of my images")
    target = tmp_path / "vessels_segmentation"
    assert main(["pack", str(weights), str(target), "--hub"]) == 0
    metadata = json.loads((target / "configs" / "metadata.json").read_text())
    page, notes = ((target / name).read_text() for name in ("README.md", "docs/data_license.txt"))
    for text in (json.dumps(metadata, ensure_ascii=False), page):
        assert "Gefäß" in text and "40 of my images" in text
        assert not any(word in text for word in ("BUS-BRA", "HC18", "fetal_head"))
    assert "images of the start. License: CC BY 4.0" in notes and "foundation.pt" in notes
    assert metadata["version"] == "0.1.0" and "license: other" in page
    assert sorted(file.name for file in (target / "docs").iterdir()) == ["data_license.txt"]
    assert find_card(target / "models" / "model.safetensors")["class_names"] == names


@pytest.mark.slow
def test_a_release_runs_in_a_clean_environment(repository, simulated_images, tmp_path):
    """The wheel and the packed bundles, one of them by its zip file, are all that is taken of the checkout."""
    release, unpacked = tmp_path / "release" / "usfm_segmentation.zip", tmp_path / "unpacked"
    for task in TASKS:
        weights = repository / "bundles" / f"usfm_{task}" / "models" / "model.pt"
        assert main(["pack", str(weights), str(release if task == "segmentation" else unpacked / f"usfm_{task}")]) == 0
    with zipfile.ZipFile(release) as archive:
        archive.extractall(unpacked)
    (wheel,) = release.parent.glob("monai_usfm-*.whl")
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "env")], check=True)
    python = str(tmp_path / "env" / "bin" / "python")
    # the requirements are those of this environment, without the checkout, which is in it as an editable install
    packages = Path(torch.__file__).parents[1]
    (place,) = (tmp_path / "env").glob("lib/python*/site-packages")
    for entry in packages.iterdir():
        if not entry.name.startswith(("monai_usfm", "_editable_impl_monai_usfm", "__editable__", "pip", "setuptools")):
            (place / entry.name).exists() or (place / entry.name).symlink_to(entry)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)], check=True)
    (tmp_path / "in").mkdir()
    shutil.copy(next(simulated_images.glob("**/*.png")), tmp_path / "in" / "a.png")
    clean = {"cwd": tmp_path, "env": {"PATH": "/usr/bin:/bin"}, "check": True}
    for task, result in {
        "segmentation": "a_seg.png", "enhancement": "a_enhanced.png", "classification": "images.csv",
        "pretraining": "embeddings.npz",
    }.items():  # fmt: skip
        root, output = unpacked / f"usfm_{task}", tmp_path / "out" / task
        command = [python, "-m", "monai.bundle", "run", "--config_file", str(root / "configs" / "inference.json")]
        places = ["--bundle_root", str(root), "--dataset_dir", str(tmp_path / "in"), "--output_dir", str(output)]
        subprocess.run([*command, *places], **clean)
        assert (output / result).is_file()
    where = [python, "-c", "import monai_usfm; print(monai_usfm.__file__)"]
    assert str(tmp_path / "env") in subprocess.run(where, capture_output=True, text=True, **clean).stdout
