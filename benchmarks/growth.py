# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""How cost grows with the tokens of an image and with the length of a list: ``python benchmarks/growth.py FOLDER``.

The lists name hard links to 2,000 noise images of 64 x 64 in FOLDER, which is made and can be deleted afterwards;
in the store every item has noise of its own. CPU seconds of one thread; where two ways are compared they take turns,
and the ratio is that of each round.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import matplotlib.pyplot as plt
import numpy as np
import torch
from monai.networks.nets import ViT
from PIL import Image

from monai_usfm.data import LoadUltrasoundd, UltrasoundDataset, load_datalist
from monai_usfm.data.store import ENTRY
from monai_usfm.networks import UltrasoundViT

DISTINCT, DRAWN, SIDE = 2000, 1000, 64
TINY = {"hidden_size": 192, "mlp_dim": 768, "num_layers": 2, "num_heads": 3}


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def private_mb() -> float:
    """Memory of this process that the system cannot take back: not the pages of mapped files."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["RssAnon"].split()[0]) / 1000


def tokens(sides: list[int], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of forward and backward of two blocks, width 192, one image of side x side patches, bf16."""
    times: dict[str, list[float]] = {"ours": [], "MONAI's ViT": []}
    print("\n### Tokens\n\n| tokens | ours, ms | MONAI's ViT, ms | ratio |\n| --- | --- | --- | --- |")
    for side in sides:
        size = (16 * side, 16 * side)
        image = torch.rand(1, 1, *size)
        networks = {
            "ours": UltrasoundViT(size, pos_embed="sincos", **TINY),
            "MONAI's ViT": ViT(1, size, 16, spatial_dims=2, **TINY),
        }

        def step(network: torch.nn.Module, image: torch.Tensor = image) -> None:
            with torch.autocast("cpu", torch.bfloat16):
                output = network(image)
            (output[0] if isinstance(output, tuple) else output).float().square().mean().backward()

        taken: dict[str, list[float]] = {name: [] for name in networks}
        for _ in range(rounds + 1):
            for name, network in networks.items():
                taken[name].append(1000 * cpu_seconds(lambda network=network: step(network)))
        for name in networks:
            times[name].append(statistics.median(taken[name][1:]))
        ratio = statistics.median(b / a for a, b in zip(*(taken[name][1:] for name in networks), strict=True))
        print(f"| {side**2} | {times['ours'][-1]:.1f} | {times[name][-1]:.1f} | {ratio:.2f} |", flush=True)
    return times


def write_list(folder: Path, count: int) -> Path:
    """A datalist of ``count`` names."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        path = images / f"{number:06d}.png"
        if number < DISTINCT and not path.exists():
            noise = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
            Image.fromarray(noise).save(path)
        elif not path.exists():
            os.link(images / f"{number % DISTINCT:06d}.png", path)
    datalist = folder / f"{count}.json"
    names = [{"image": f"images/{number:06d}.png", "organ": "liver"} for number in range(count)]
    datalist.write_text(json.dumps({"training": names}))
    return datalist


def fill(datalist: Path, store: Path) -> None:
    """Put the images into the store: the first as training does, then noise for each item, or this would take hours."""
    items = load_datalist(datalist, None, "training")
    dataset = UltrasoundDataset(items, [LoadUltrasoundd("image")], cache_dir=store)
    for number in range(min(DISTINCT, len(items))):
        dataset[number]
    (index,) = store.glob("*.index")
    *_, (_, start, size, _) = ENTRY.iter_unpack(index.read_bytes())
    header = index.with_suffix(".bin").read_bytes()[start : start + size - SIDE**2]
    noise = np.random.default_rng(0)
    with open(index, "ab") as entries, open(index.with_suffix(".bin"), "ab") as shard:
        for item in items[DISTINCT:]:
            content = header + noise.bytes(SIDE**2)
            entries.write(ENTRY.pack(dataset._store.key(item), shard.tell(), len(content), crc32(content)))  # type: ignore[union-attr]
            shard.write(content)


def measure(datalist: Path, store: Path, rounds: int) -> None:
    """In a process of its own: what a list and its store need, and how fast items come."""
    before = private_mb()
    start = time.process_time()
    items = load_datalist(datalist, None, "training")
    listing, listed = time.process_time() - start, private_mb()
    stored = UltrasoundDataset(items, [LoadUltrasoundd("image")], cache_dir=store)
    opening = cpu_seconds(lambda: stored[0])
    opened = private_mb()
    loose = UltrasoundDataset(items, [LoadUltrasoundd("image")])
    times: dict[str, list[float]] = {"store": [], "loose": []}
    for number in range(rounds):
        chosen = random.Random(number).sample(range(len(items)), DRAWN)
        times["store"].append(cpu_seconds(lambda chosen=chosen: [stored[k] for k in chosen]) / DRAWN)
        times["loose"].append(cpu_seconds(lambda chosen=chosen: [loose[k] for k in chosen]) / DRAWN)
    ratios = sorted(b / a for a, b in zip(times["store"], times["loose"], strict=True))
    found = {"listing_s": listing, "listing_mb": listed - before, "opening_s": opening, "opening_mb": opened - listed}
    found |= {"store_ms": 1000 * statistics.median(times["store"]), "grown_mb": private_mb() - opened}
    found |= {"ratio": statistics.median(ratios), "low": ratios[0], "high": ratios[-1]}
    print(json.dumps(found))


def lists(folder: Path, counts: list[int], rounds: int) -> dict[int, dict[str, float]]:
    """A row for each length."""
    head = [
        "images",
        "list: s, MB",
        "store opened, first item: s, MB",
        "random item from the store, ms",
        "loose / store",
    ]
    print(f"\n### Lists\n\n| {' | '.join(head)} |\n| {' | '.join(['---'] * len(head))} |")
    rows = {}
    for count in counts:
        datalist, store = write_list(folder, count), folder / f"store{count}"
        part = folder / f"part{count}"  # of a store: one that was broken off is not measured
        for task, place in (("--fill", part), ("--measure", store)):
            if task == "--fill" and store.exists():
                continue
            shutil.rmtree(part, ignore_errors=True)
            command = [sys.executable, __file__, str(datalist), task, str(place), "--rounds", str(rounds)]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            if task == "--fill":
                part.rename(store)
        row = rows[count] = json.loads(output.splitlines()[-1])
        cells = [f"{count:,}", f"{row['listing_s']:.2f}, {row['listing_mb']:.0f}"]
        cells += [f"{row['opening_s']:.2f}, {row['opening_mb']:.0f}", f"{row['store_ms']:.2f}"]
        cells += [f"{row['ratio']:.1f} ({row['low']:.1f}-{row['high']:.1f})"]
        print(f"| {' | '.join(cells)} |", flush=True)
    return rows


def draw(sides: list[int], times: dict[str, list[float]], rows: dict[int, dict[str, float]], path: Path) -> None:
    """Both growths on logarithmic axes."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for name, values in times.items():
        left.loglog([side**2 for side in sides], values, "o-", label=name)
    left.set(xlabel="tokens", ylabel="ms of forward and backward")
    for name, label in (("listing_s", "list read and checked"), ("opening_s", "store opened, first item")):
        right.loglog(list(rows), [row[name] for row in rows.values()], "o-", label=label)
    right.set(xlabel="images in the list", ylabel="CPU seconds")
    for axes in (left, right):
        axes.legend()
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--counts", type=int, nargs="*", default=[1_000, 20_000, 200_000])
    parser.add_argument("--sides", type=int, nargs="*", default=[7, 14, 32, 64], help="patches along each axis")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--figure", type=Path, default=Path("growth.png"))
    parser.add_argument("--fill", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.fill:
        fill(options.folder, options.fill)
    elif options.measure:
        measure(options.folder, options.measure, options.rounds)
    else:
        times = tokens(options.sides, options.rounds)
        draw(options.sides, times, lists(options.folder, options.counts, options.rounds), options.figure)


if __name__ == "__main__":
    main()
