#!/usr/bin/env python
# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Which options of pretraining pay: each arm is ``monai-usfm pretrain`` with one option changed, then ``probe``.

    python scripts/ablate_pretraining.py --dataset_dir DATA --datalist DATA/unlabelled/pretraining.json \\
        --labeled DATA/busbra/dataset.json --output_dir ablation

Every arm trains on the same images, for the same computing time (``--seconds``) or number of steps (``--steps``). The
frozen encoders are scored on the validation split of the labeled images: a linear probe of the class and a dense linear
probe of the label. `monai-usfm join-table` writes patients into a list that names none. Finished trainings are kept:
call it again to go on. Writes ablation.csv and ablation.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from cyclopts import App, Parameter

from monai_usfm.evaluation.probes import probe
from monai_usfm.evaluation.report import markdown_table
from monai_usfm.files import write_text_atomically
from monai_usfm.workflow import run_bundle, steps_within

SIZES = {"plan#hidden_size": 96, "plan#mlp_dim": 384, "plan#num_layers": 6, "plan#num_heads": 3}
"""Smaller than any named size, so that it sees the images some forty times in four minutes of one core."""
AS_MAE = {"pos_embed": "sincos", "layer_scale": 0}
ARMS: dict[str, dict[str, Any]] = {
    "reference": {},
    "fill_token": {"plan#fill": "token"},
    "fill_mean": {"plan#fill": "mean"},
    "sparse": {"objective": "sparse"},
    "mae": {"objective": "mae"},
    "as_mae": AS_MAE,
    "no_band_stop": {"plan#band_stop": None},
    "organs_as_listed": {"organ_temperature": 0.0},
    "ratio_0.75": {"plan#mask_ratio": 0.75},
    "ratio_0.4": {"plan#mask_ratio": 0.4},
    "unit_1": {"plan#mask_unit": 1},
}
"""Arm -> options of the bundle, the most important first."""

app = App(default_parameter=Parameter(negative=(), consume_multiple=True, name_transform=lambda name: name))


@app.default
def ablate(
    *,
    datalist: str,
    labeled: str,
    dataset_dir: str | None = None,
    arms: tuple[str, ...] = tuple(ARMS),
    seeds: tuple[int, ...] = (0,),
    seconds: float = 240.0,
    steps: int = 0,
    spatial_size: tuple[int, ...] = (128, 128),
    output_dir: str = "ablation",
) -> None:
    """Train the arms that are not there yet, probe all of them, write the table."""
    if unknown := [arm for arm in arms if arm not in ARMS]:
        raise SystemExit(f"there are no arms {', '.join(unknown)}; choose from {', '.join(ARMS)}.")
    out, encoders = Path(output_dir), []
    for seed in seeds:
        for arm in arms:
            folder = out / f"{arm}_{seed}"
            options = {
                "dataset_dir": dataset_dir,
                "datalist": datalist,
                "spatial_size": list(spatial_size),
                "seed": seed,
                "pretrained": None,
                **SIZES,
                **ARMS[arm],
            }
            if not (folder / "model.pt").is_file():
                budget = steps or steps_within(seconds, "pretraining", **options)
                run_bundle("pretraining", output_dir=str(folder), steps=budget, max_epochs=10, **options)
            encoders.append(f"{arm}_{seed}={folder / 'model.pt'}")
    scores = probe(
        labeled,
        [*encoders, "random"],
        probes=("linear", "dense"),
        split="validation",
        spatial_size=spatial_size,
        output_dir=str(out / "probes"),
    )
    table = pd.read_csv(scores).query("(probe == 'linear' and metric == 'auc') or metric == 'dice'")
    table[["arm", "seed"]] = table["encoder"].str.extract(r"(.*?)(?:_(\d+))?$")
    means = table.pivot_table("value", "arm", "probe", ["mean", "std", "count"], sort=False)
    means.columns = [f"{probe} {'seeds' if what == 'count' else what}" for what, probe in means.columns]
    means.to_csv(out / "ablation.csv")
    text = markdown_table(["arm", *means.columns], means.reset_index().to_numpy().tolist())
    print(write_text_atomically(out / "ablation.md", text).read_text())


if __name__ == "__main__":
    app()
