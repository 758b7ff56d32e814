# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Federated training: MONAI's MonaiAlgo on all bundles, and what examples/federated makes of it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from monai.fl.utils.constants import ExtraItems, ModelType

from monai_usfm import load_network
from monai_usfm.data import load_datalist
from monai_usfm.simulation import write_synthetic_dataset
from monai_usfm.workflow import TASKS, find_bundle, run_bundle

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "federated"
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def federated():
    """The module of the example, which is a folder of scripts."""
    sys.path.insert(0, str(EXAMPLE))
    import federated

    yield federated
    sys.path.remove(str(EXAMPLE))
    del sys.modules["federated"]


@pytest.fixture
def options(tiny_training) -> dict:
    """Options of a site: how many epochs it trains is the federation's."""
    return {name: value for name, value in tiny_training.items() if name != "max_epochs"} | {"val_interval": 1}


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("task", TASKS)
def test_final_and_best_model_are_those_of_the_network_and_shipped_weights_stay(
    federated, simulated_images, options, tmp_path, task
):
    shipped = find_bundle(task) / "models" / "model.pt"
    before = hashlib.sha256(shipped.read_bytes()).hexdigest()
    site = federated.Site("a", task, simulated_images, tmp_path, rounds=2, **options)
    start = site.weights
    after, steps = site.train(start)
    assert steps == 2 and not same(start, after)
    final, best = (
        site.algo.get_weights({ExtraItems.MODEL_TYPE: kind}).weights
        for kind in (ModelType.FINAL_MODEL, ModelType.BEST_MODEL)
    )
    assert same(final, after) and same(best, after)  # of one epoch the last is the best
    again, _ = site.train(after)
    assert same(site.algo.get_weights({ExtraItems.MODEL_TYPE: ModelType.FINAL_MODEL}).weights, again)
    assert hashlib.sha256(shipped.read_bytes()).hexdigest() == before
    network = load_network(site.save(after, tmp_path / "global" / "model.pt"))
    state = network.state_dict()
    assert all(torch.equal(state[name], after[name].half().float()) for name in state if name in after)


def test_one_site_is_central_training_to_the_last_bit(federated, simulated_images, options, tmp_path):
    site = federated.Site("a", "segmentation", simulated_images, tmp_path / "site", rounds=2, **options)
    weights = federated.run_rounds([site], 2)
    run_bundle(
        "segmentation",
        "train",
        dataset_dir=str(simulated_images),
        output_dir=str(tmp_path / "central"),
        max_epochs=2,
        **options,
    )
    central = torch.load(tmp_path / "central" / "checkpoints" / "last.pt", weights_only=True)["network"]
    assert same(central, weights)


def test_the_average_is_weighted_by_the_shares(federated):
    states = [
        ({"w": torch.tensor([1.0]), "n": torch.tensor(3)}, 3.0),
        ({"w": torch.tensor([5.0]), "n": torch.tensor(4)}, 1.0),
    ]
    assert federated.average(states)["w"].item() == 2.0
    assert federated.average(states)["n"].item() == 3


def test_fedprox_stays_nearer_to_the_start_of_the_round(federated, simulated_images, options, tmp_path):
    moved = []
    for proximal in (0.0, 100.0):
        site = federated.Site(
            "a", "segmentation", simulated_images, tmp_path / str(proximal), 1, proximal=proximal, **options
        )
        start = site.weights
        after, _ = site.train(start)
        moved.append(sum(float((after[name] - start[name]).square().sum()) for name in start))
    assert 0 < moved[1] < moved[0]


def test_the_term_of_fedprox_is_clipped_and_counted_once_in_an_accumulated_step(federated, options, tmp_path):
    images = tmp_path / "images"
    file = write_synthetic_dataset(images, 4, 4, 0, image_size=(40, 40), organs=("breast",))
    (images / "dataset.json").write_text(file.read_text())
    gradients = {}
    for name, more in {"one": {"batch_size": 4}, "two": {"batch_size": 2, "accumulation_steps": 2}}.items():
        given = {
            **options,
            **more,
            "max_epochs": 1,
            "clip_norm": 1e6,
            "pixel_loss": "$lambda prediction, label: 0 * prediction.sum()",
        }
        site = federated.Site("a", "segmentation", images, tmp_path / name, 1, proximal=1.0, **given)
        weights = {key: value + 1 if value.is_floating_point() else value for key, value in site.weights.items()}
        site.before = [weights[key] for key, _ in site.trainer.network.named_parameters()]
        seen, named = [], dict(site.trainer.network.named_parameters())
        site.trainer.optimizer.step = lambda *_, seen=seen, named=named: seen.append(
            {key: weight.grad.clone() for key, weight in named.items() if weight.requires_grad}
        )
        site.trainer.run()
        gradients[name] = seen[0]
    assert all(torch.allclose(gradients["one"][key], torch.tensor(-1.0)) for key in gradients["one"])
    assert same(gradients["one"], gradients["two"])


def test_a_client_is_given_folders_with_blanks_and_signs(federated):
    folder = "/a b/it's ü 100%"
    words = federated.client_arguments(task="segmentation", images=folder, output=folder, rounds=5, local_epochs=1)
    given = federated.client_parser().parse_args(words.split())  # as NVFlare parts them
    assert (given.images, given.output, given.rounds) == (folder, folder, 5)


def test_sites_see_different_organs_and_share_no_patient(federated, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = federated.make_sites("sites", number=2, images=20)
    assert len(load_datalist(folders[0] / "dataset.json", folders[0], "training")) == 20  # also of a relative folder
    lists = [json.loads((folder / "dataset.json").read_text())["training"] for folder in folders]
    common = [
        sum(item["organ"] in {i["organ"] for i in lists[0][:16]} for item in items) / len(items) for items in lists
    ]
    assert common[0] >= 0.7 and common[1] <= 0.5
    patients = [{item["patient"] for item in items} for items in lists]
    assert len(patients[0]) == len(lists[0]) and not patients[0] & patients[1]


def run_job(folder: Path, *arguments: object) -> dict[str, torch.Tensor]:
    """The weights that the server of a simulated job of NVFlare wrote at its end."""
    pytest.importorskip("nvflare", reason="NVFlare is not installed: pip install nvflare")
    command = [sys.executable, str(EXAMPLE / "job.py"), "--output", str(folder), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    (file,) = folder.glob("nvflare/**/FL_global_model.pt")
    return torch.load(file, weights_only=True)["model"]


def test_a_job_of_nvflare_with_one_site_is_central_training(federated, tmp_path):
    # NVFlare multiplies weights by the steps and divides by their sum, which for a power of two costs no bit
    found = run_job(tmp_path, "--sites", 1, "--images", 32, "--rounds", 2)
    central = tmp_path / "central"
    options = {**federated.SMALL, "max_epochs": 2, "output_dir": str(central)}
    run_bundle("segmentation", "train", dataset_dir=str(tmp_path / "images" / "site_1"), **options)
    assert same(torch.load(central / "checkpoints" / "last.pt", weights_only=True)["network"], found)


@pytest.mark.parametrize(
    "options", [("--task", "segmentation"), ("--task", "pretraining", "--proximal", 0.01, "--privacy", "percentile")]
)
def test_a_job_of_nvflare_with_four_sites_averages_them(federated, tmp_path, options):
    found = run_job(tmp_path, "--sites", 4, "--images", 24, "--rounds", 2, *options)
    start = torch.load(tmp_path / "start" / "initial.pt", weights_only=True)
    assert found.keys() == start.keys() and not same(found, start)
    assert all(torch.isfinite(value).all() for value in found.values())
    finals = [torch.load(file, weights_only=True)["network"] for file in tmp_path.glob("sites/*/checkpoints/last.pt")]
    assert len(finals) == 4 and not same(finals[0], finals[1])
