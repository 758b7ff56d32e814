# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""A job of NVFlare 2.9: FedAvg or FedProx of a bundle of ours, in its simulator, or exported for real sites.

python job.py --task segmentation --sites 4 --rounds 5                             runs it
python job.py --task segmentation --sites 4 --rounds 5 --export --export-dir JOB   writes the job for an admin to submit
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from federated import SMALL, add_options, client_arguments, make_sites
from nvflare.app_common.filters import PercentilePrivacy, SVTPrivacy
from nvflare.app_opt.pt.file_model_persistor import PTFileModelPersistor
from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.app_opt.pt.recipes.fedprox import FedProxRecipe
from nvflare.client.config import TransferType
from nvflare.recipe import SimEnv

from monai_usfm.workflow import load_bundle

HERE = Path(__file__).parent
FILTERS = {"percentile": PercentilePrivacy, "svt": SVTPrivacy}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, "segmentation")
    parser.add_argument("--privacy", choices=FILTERS, help="filter of what leaves a site, see PRIVACY.md")
    given, _ = parser.parse_known_args()  # --export is NVFlare's
    root = Path(given.output).resolve()
    folders = make_sites(root / "images", given.sites, given.images, seed=10_000 * given.seed)

    flow = load_bundle(given.task, dataset_dir=str(folders[0]), output_dir=str(root / "start"), **SMALL)
    flow.initialize()
    initial = root / "start" / "initial.pt"
    torch.save(flow.parser.get_parsed_content("network_def").state_dict(), initial)

    settings: dict[str, Any] = {
        "name": f"{given.task}_{'fedprox' if given.proximal else 'fedavg'}",
        "model_persistor": PTFileModelPersistor(source_ckpt_file_full_name=initial.name),
        "min_clients": given.sites,
        "num_rounds": given.rounds,
        "train_script": str(HERE / "client.py"),
        "train_args": client_arguments(
            task=given.task,
            images=root / "images",
            output=root / "sites",
            rounds=given.rounds,
            local_epochs=given.local_epochs,
        ),
        "params_transfer_type": TransferType.DIFF if given.privacy else TransferType.FULL,
    }
    recipe = FedProxRecipe(fedprox_mu=given.proximal, **settings) if given.proximal else FedAvgRecipe(**settings)
    recipe.add_server_file(str(initial))
    recipe.add_client_file(str(HERE / "federated.py"))
    if given.privacy:
        recipe.add_client_output_filter(FILTERS[given.privacy](), tasks=["train"])
    names = [folder.name for folder in folders]
    run = recipe.execute(SimEnv(clients=names, workspace_root=str(root / "nvflare")))
    if not list(Path(str(run.get_result())).rglob("FL_global_model.pt")) or not all(
        (root / "sites" / name / "checkpoints" / "last.pt").is_file() for name in names
    ):
        raise SystemExit(f"a site did not train: look at log.txt of the sites in {root / 'nvflare'}.")
    print(f"results: {run.get_result()}")


if __name__ == "__main__":
    main()
