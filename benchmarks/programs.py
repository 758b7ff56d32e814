# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""How fast whole programs are: start, reading, inference: ``python benchmarks/programs.py FOLDER_OF_IMAGES``.

Candidates of a table take turns in one process on one thread, timed by CPU time of all threads. A ratio is taken within
each round; the table shows the median over the rounds with its quartiles. The share of the limit is that of bare
decoding for reading, and of the bare network on tensors that lie ready for inference.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from monai.bundle import ConfigWorkflow
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Resized, ScaleIntensityRanged
from PIL import Image
from spread import spread

from monai_usfm import load_network
from monai_usfm.data import LoadUltrasoundd, UltrasoundDataset, list_images
from monai_usfm.transforms import BatchAugmentation, SeparableResized

BUNDLES = Path(__file__).parents[1] / "bundles"
SIZE = (246, 246)  # 1.1 times 224, from which crops are taken


def table(title: str, work: dict[str, Callable[[], object]], rounds: int, images: int, limit: str) -> None:
    """Run the candidates in turn and print images a second, and the share of ``limit``, one of them."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for run in work.values():  # warm-up
        run()
    for _ in range(rounds):
        for name, run in work.items():
            start = time.process_time()
            run()
            times[name].append(time.process_time() - start)
    print(f"\n### {title}\n\n| program | images a CPU second | share of {limit} |\n| --- | --- | --- |")
    for name, own in times.items():
        shares = [best / mine for best, mine in zip(times[limit], own, strict=True)]
        print(f"| {name} | {spread([images / t for t in own])} | {spread(shares)} |", flush=True)


def start() -> None:
    """CPU seconds of a first import."""
    print("\n### Start\n\n| import | CPU seconds |\n| --- | --- |")
    for module in ("torch", "monai", "monai_usfm", "monai_usfm.data, monai_usfm.transforms, monai_usfm.networks"):
        code = f"import time, {module}; print(time.process_time())"
        seconds = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        print(f"| {module} | {float(seconds.split()[-1]):.2f} |", flush=True)


def reading(files: list[str], rounds: int) -> None:
    """From file to a tensor for training, with and without augmentation, and from the store."""
    items = [{"image": file} for file in files]
    chain = Compose(
        [
            LoadImaged("image"),
            EnsureChannelFirstd("image"),
            ScaleIntensityRanged("image", 0, 255, 0, 1),
            Resized("image", SIZE, mode="bilinear", anti_aliasing=True),
        ]
    )
    ours = [LoadUltrasoundd("image"), SeparableResized("image", SIZE, mode="bilinear", anti_aliasing=True)]
    augment = BatchAugmentation([224, 224])

    def augmented(dataset: UltrasoundDataset) -> None:
        for first in range(0, len(items), 16):
            last = min(first + 16, len(items))
            augment({"image": torch.stack([dataset[k]["image"].as_tensor() for k in range(first, last)])})

    def from_store(dataset: UltrasoundDataset) -> None:
        for first in range(0, len(items), 16):
            augment({"image": torch.stack([dataset[k]["image"] for k in range(first, min(first + 16, len(items)))])})

    plain = UltrasoundDataset(items, ours)
    with tempfile.TemporaryDirectory() as folder:
        stored = UltrasoundDataset(items, ours, cache_dir=folder)
        work = {
            "bare decoding (Pillow)": lambda: [np.asarray(Image.open(file).convert("L")) for file in files],
            "MONAI's transforms, resized": lambda: [chain(item) for item in items],
            "ours, resized": lambda: [plain[k] for k in range(len(items))],
            "ours, resized and augmented": lambda: augmented(plain),
            "ours from the store": lambda: [stored[k] for k in range(len(items))],
            "ours from the store, augmented": lambda: from_store(stored),
        }
        table("Reading for training", work, rounds, len(files), "bare decoding (Pillow)")
        size = sum(file.stat().st_size for file in Path(folder).iterdir()) / len(files)
        print(f"\nstore: {size / 1000:.1f} kB an image, {20_000 * size / 1e9:.2f} GB for 20,000")


def inference(task: str, folder: str, files: list[str], rounds: int) -> None:
    """A bundle's ``inference.json`` as it comes, in float32 one by one, and its bare network."""
    bundle = BUNDLES / f"usfm_{task}"
    checkpoint = bundle / "models" / "model.pt"
    network = load_network(checkpoint, None if task == "pretraining" else task)
    ready = torch.rand(8, 1, *network.card["network"]["spatial_size"])

    def bare() -> None:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            for _ in range(0, len(files), len(ready)):
                network(ready)

    def program(**options: object) -> None:
        with tempfile.TemporaryDirectory() as output:
            workflow = ConfigWorkflow(
                workflow_type="infer",
                config_file=str(bundle / "configs/inference.json"),
                meta_file=str(bundle / "configs/metadata.json"),
                logging_file=None,
                bundle_root=str(bundle),
                dataset_dir=folder,
                output_dir=output,
                **options,
            )
            workflow.initialize()
            workflow.run()
            workflow.finalize()

    quiet = {"preview": False, **({"statistics": False} if task == "segmentation" else {})}
    quiet = {} if task == "pretraining" else quiet
    work = {
        "the bare network": bare,
        "inference.json": program,
        **({"without figures and statistics": lambda: program(**quiet)} if quiet else {}),
        "float32, one by one": lambda: program(amp="fp32", batch_size=1, **quiet),
    }
    table(f"Inference of {task}", work, rounds, len(files), "the bare network")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", help="images, of which some are copied to a folder of their own")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tasks", nargs="*", default=["segmentation", "classification", "enhancement", "pretraining"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as folder:
        for number, item in enumerate(list_images(options.folder)[: options.images]):
            source = Path(item["image"]).absolute()
            os.symlink(source, Path(folder, f"{number:05d}{source.suffix}"))
        files = sorted(str(path) for path in Path(folder).iterdir())
        print(json.dumps({"images": len(files), "rounds": options.rounds, "torch": torch.__version__}))
        start()
        reading(files, options.rounds)
        for task in options.tasks:
            with contextlib.redirect_stderr(open(os.devnull, "w")):
                inference(task, folder, files, options.rounds)
    print(f"\npeak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()
