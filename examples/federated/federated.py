# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""A site of a federation: MONAI's MonaiAlgo on a bundle of ours; and rounds of sites in one process, to try settings.

python federated.py --help
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import torch
from monai.engines import IterationEvents
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems, FlStatistics
from monai.fl.utils.exchange_object import ExchangeObject

from monai_usfm import save_network
from monai_usfm.simulation import ORGANS, write_synthetic_dataset
from monai_usfm.workflow import find_bundle, run_bundle

Weights = Mapping[str, torch.Tensor]
# A network that trains on a CPU in minutes. Without these, a bundle's own defaults hold.
SMALL: dict[str, Any] = {
    "pretrained": None,
    "spatial_size": [96, 96],
    "network_options#num_layers": 4,
    "network_options#hidden_size": 96,
    "network_options#mlp_dim": 192,
    "network_options#num_heads": 3,
    "batch_size": 8,
    "num_workers": 0,
    "figure_interval": 0,
    "device": "cpu",
    "amp": "fp32",
}


class Site:
    """One site's training of a bundle. What leaves it is the weights, and the number of steps they took.

    Optimizer, schedule and randomness stay and go on from round to round, so that one site alone trains as it would
    without a federation. The bundle's own files are only read: everything is written to ``output_dir``.

    Args:
        name: of the site.
        task: ``"pretraining"``, ``"segmentation"``, ``"classification"`` or ``"enhancement"``.
        dataset_dir: its images, with their ``dataset.json``.
        output_dir: its results.
        rounds: of the whole federation, for which the schedule is laid out.
        local_epochs: epochs of a round.
        proximal: FedProx's mu, which draws each weight to that of the round's start; 0 is FedAvg.
        options: of the bundle's ``train.json``.
    """

    def __init__(
        self,
        name: str,
        task: str,
        dataset_dir: str | Path,
        output_dir: str | Path,
        rounds: int,
        local_epochs: int = 1,
        proximal: float = 0.0,
        **options: Any,
    ) -> None:
        self.task, self.output, self.proximal = task, Path(output_dir), proximal
        root = str(find_bundle(task))
        settings = {
            "bundle_root": root,
            "dataset_dir": str(dataset_dir),
            "output_dir": str(output_dir),
            "lr_scheduler#steps": f"${rounds * local_epochs} * @steps_per_epoch",
            **options,
        }
        self.algo = MonaiAlgo(
            bundle_root=root,
            local_epochs=local_epochs,
            send_weight_diff=False,
            train_kwargs=settings,
            config_evaluate_filename=None,
            best_model_filepath=str(self.output / "checkpoints" / "best.pt"),
            final_model_filepath=str(self.output / "checkpoints" / "last.pt"),
            save_dict_key="network",
        )
        self.algo.initialize({ExtraItems.CLIENT_NAME: name})
        self.trainer: Any = self.algo.trainer
        self.before: list[torch.Tensor] = []
        self.trainer.add_event_handler(IterationEvents.LOSS_COMPLETED, self._draw_back)

    def _draw_back(self) -> None:
        """Add ``mu / 2 * |w - w_start|^2`` to the loss (Li et al. 2020, https://arxiv.org/abs/1812.06127).

        So its gradient is clipped with that of the images, and divided among the batches of a step as theirs is.
        """
        if self.proximal:
            pairs = zip(self.trainer.network.parameters(), self.before, strict=True)
            away = sum((weight - start).square().sum() for weight, start in pairs if weight.requires_grad)
            self.trainer.state.output["loss"] = self.trainer.state.output["loss"] + self.proximal / 2 * away

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """A copy of the network's state."""
        return {name: value.detach().clone() for name, value in self.trainer.network.state_dict().items()}

    def train(self, weights: Weights) -> tuple[dict[str, torch.Tensor], int]:
        """A round from these weights: the new ones, and the optimizer steps that were made."""
        self.before = [weights[name].clone() for name, _ in self.trainer.network.named_parameters()]
        self.algo.train(ExchangeObject(weights=dict(weights)))
        steps = self.algo.get_weights().statistics[FlStatistics.NUM_EXECUTED_ITERATIONS]
        return self.weights, int(steps)

    def save(self, weights: Weights, path: str | Path) -> Path:
        """Write the federation's weights with their card; of a pretraining, the encoder that the other bundles take.

        The whole state lies beside them as ``best.pt``, which ``evaluate.json`` of the pretraining reads.
        """
        self.trainer.network.load_state_dict(dict(weights))
        parser: Any = self.algo.train_workflow.parser
        exported = parser.get_parsed_content("exported") if self.task == "pretraining" else self.trainer.network
        save_network(path, exported)
        torch.save(dict(weights), Path(path).with_name("best.pt"))
        return Path(path)


def average(results: Sequence[tuple[Weights, float]]) -> dict[str, torch.Tensor]:
    """The mean of the sites' weights, each by its share; what is no floating-point number is that of the first."""
    total, first = sum(share for _, share in results), results[0][0]
    return {
        name: sum(state[name].double() * (share / total) for state, share in results).to(value.dtype)
        if value.is_floating_point()
        else value
        for name, value in first.items()
    }


def run_rounds(sites: Sequence[Site], rounds: int, equal: bool = False) -> dict[str, torch.Tensor]:
    """Federated averaging of sites in this process.

    Args:
        sites: all start from the weights of the first.
        rounds: how many.
        equal: each site has the same say, else by its optimizer steps.
    """
    weights = sites[0].weights
    for _ in range(rounds):
        results = [site.train(weights) for site in sites]
        weights = average([(state, 1.0 if equal else float(steps)) for state, steps in results])
    return weights


def make_sites(folder: str | Path, number: int = 4, images: int = 240, seed: int = 0) -> list[Path]:
    """Simulated images of sites that see different organs, and different numbers of images.

    Site ``i``, from 1, has ``images / i`` images, four fifths of them of three organs of its own. In ``common`` are
    images of every organ alike, which no site has: the validation split there.

    Returns:
        The folders of the sites, each with a ``dataset.json``.
    """
    root, names, folders = Path(folder).resolve(), list(ORGANS), []
    for index in range(number):
        own = [names[(3 * index + k) % len(names)] for k in range(3)]
        other = [name for name in names if name not in own]
        items: dict[str, list[dict[str, Any]]] = {"training": [], "validation": []}
        for part, (organs, share) in enumerate(((own, 0.8), (other, 0.2))):
            place, count = root / f"site_{index + 1}" / f"part_{part}", round(images / (index + 1) * share)
            made = simulated(place, max(count, 4), max(count // 8, 2), organs, seed + 2 * index + part)
            items = {split: items[split] + made[split] for split in items}
        folders.append(root / f"site_{index + 1}")
        (folders[-1] / "dataset.json").write_text(json.dumps(items))
    common = simulated(root / "common", 4, 4 * len(names), names, seed + 1000)
    (root / "common" / "dataset.json").write_text(json.dumps(common))
    return folders


def simulated(folder: Path, training: int, validation: int, organs: Sequence[str], seed: int) -> dict[str, list]:
    """Items of simulated images with whole paths, each of a patient that no other folder has."""
    size = [round(1.15 * side) for side in SMALL["spatial_size"]]
    file = write_synthetic_dataset(folder, training, validation, 0, image_size=size, organs=organs, seed=seed)
    made = json.loads(file.read_text())
    return {
        split: [
            {
                **{key: str(folder / item[key]) for key in ("image", "label")},
                **{key: item[key] for key in ("organ", "class")},
                "patient": f"{folder.parent.name} {folder.name} {item['patient']}",
            }
            for item in made[split]
        ]
        for split in ("training", "validation")
    }


def client_arguments(**options: Any) -> str:
    """What :func:`client_parser` reads: NVFlare parts it at blanks, which a folder may have, so names are encoded."""
    return " ".join(f"--{name} {quote(str(value))}" for name, value in options.items())


def client_parser() -> argparse.ArgumentParser:
    """Arguments of ``client.py``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--task")
    parser.add_argument("--images", type=unquote, help="folder with a folder of each site's name; %%20 is a blank")
    parser.add_argument("--output", type=unquote)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--local_epochs", type=int)
    return parser


def add_options(parser: argparse.ArgumentParser, task: str) -> None:
    """Options that the federation has here and under NVFlare; ``task`` is the default one."""
    parser.add_argument("--task", default=task, choices=("pretraining", "segmentation"))
    parser.add_argument("--output", default="output/federated")
    parser.add_argument("--sites", type=int, default=4)
    parser.add_argument("--images", type=int, default=240, help="of the largest site; site i has 1/i of them")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--local_epochs", type=int, default=1)
    parser.add_argument("--proximal", type=float, default=0.0, help="mu of FedProx; 0 is FedAvg")
    parser.add_argument("--seed", type=int, default=0, help="of images and start; under NVFlare of the images alone")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser, "pretraining")
    parser.add_argument("--balanced", type=int, default=0, help="images each site draws in an epoch, and equal weights")
    given = parser.parse_args()
    root = Path(given.output)
    folders = make_sites(root / "images", given.sites, given.images, seed=10_000 * given.seed)
    options = SMALL | {"seed": given.seed}
    if given.balanced:
        options["epoch_length" if given.task == "pretraining" else "train#sampler#num_samples"] = given.balanced
    sites = [
        Site(folder.name, given.task, folder, root / "sites" / folder.name, given.rounds, given.local_epochs,
             given.proximal, **options)
        for folder in folders
    ]  # fmt: skip
    weights = run_rounds(sites, given.rounds, equal=bool(given.balanced))
    path = sites[0].save(weights, root / "global" / "model.pt")
    options |= {"dataset_dir": str(root / "images" / "common"), "output_dir": str(root / "global")}
    if given.task == "segmentation":
        options |= {"checkpoint": str(path), "split": "validation"}
    else:
        options |= {"ckpt_dir": str(path.parent)}
    run_bundle(given.task, "evaluate", **options)


if __name__ == "__main__":
    main()
