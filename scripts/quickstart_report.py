# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""The page that scripts/quickstart.py ends with: figures and measured effects first, in one file."""

from __future__ import annotations

import base64
import html
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from monai.transforms import Resize
from PIL import Image
from scipy.ndimage import gaussian_filter, median_filter

from monai_usfm.data import LoadUltrasound, load_datalist, results_root
from monai_usfm.data.folders import stem_of
from monai_usfm.data.formats import SUPPORTED_SUFFIXES
from monai_usfm.evaluation.statistics import PairedTest, bootstrap_interval, paired_test
from monai_usfm.files import write_csv, write_text_atomically
from monai_usfm.handlers.drawing import draw_overlay
from monai_usfm.transforms import LabelIndices

PANELS = {"original": "original", "seen": "what the network sees", "shipped": "restored before the adaptation"}
PANELS |= {"adapted": "restored after it"}
STARTS = {"shipped": "shipped start", "adapted": "adapted one"}
HIDDEN = 0.4  # share of the patches that are overwritten
WIDTHS = (1, 2, 3, 5)  # pixels; the filters that a restoration is compared with get the best of them
FILTERS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "Gaussian": gaussian_filter,
    "median": lambda image, width: median_filter(image, 2 * width + 1),
}
RUNS = {"start": "from the shipped start", "scratch": "from scratch"}
LEARNT = 0.2  # mean Dice below which two networks are compared in what they have not learned
STYLE = """
:root{color-scheme:light}*{box-sizing:border-box}
body{font:16px/1.5 system-ui,sans-serif;margin:0;color:#1b1b1f;background:#fff}
main{max-width:70rem;margin:0 auto;padding:1rem}h1{line-height:1.2}h2{margin-top:2.2rem}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(15rem,1fr));gap:1rem}
.cards p{margin:0;padding:1rem;border:1px solid #c8c8d0;border-radius:.5rem}
.cards strong{display:block;font-size:1.5rem}
.grid{display:grid;gap:.4rem;margin:1rem 0}.grid figure{margin:0;min-width:0}
.wide{grid-template-columns:repeat(auto-fill,minmax(min(14rem,45%),1fr))}.three{grid-template-columns:repeat(3,1fr);max-width:46rem}
.four{grid-template-columns:repeat(4,1fr);max-width:60rem}
@media(max-width:600px){.four{grid-template-columns:repeat(2,1fr)}}
img{width:100%;height:auto;display:block;border-radius:.2rem}figcaption{color:#4a4a55;font-size:.85rem}
.note{background:#fff4d6;border-left:.3rem solid #b07f00;padding:.5rem 1rem}
pre{background:#f2f2f6;padding:.8rem;white-space:pre-wrap;overflow-wrap:anywhere}
table{border-collapse:collapse}td,th{border:1px solid #bbb;padding:.2rem .6rem;text-align:left;overflow-wrap:break-word}
table+table{margin-top:1rem}td:last-child{overflow-wrap:anywhere}
@media(max-width:600px){table{font-size:.85rem}td,th{padding:.2rem .3rem}}
"""


def write(output: Path, plan: dict[str, Any]) -> list[str]:
    """Write ``report.html``; returns what was measured, a sentence each."""
    parts: list[str] = []
    cards: list[tuple[str, str]] = []
    images = f"{plan['test']} {plan['images']}"
    root = results_root(plan["dataset_dir"], plan["datalist"])  # where names repeat, the folder of all
    shown = [
        {**item, "folder": Path(item["image"]).parent.absolute().relative_to(root) if root else Path()}
        for item in load_datalist(plan["datalist"], plan["dataset_dir"], "test")
    ]

    parts.append("<h2>Segmentation of images it has never seen</h2>")
    parts.append(f"<p>The shipped network on {text(images)}. It was trained on breast lesions of other patients.")
    parts.append("Each image has an overlay like these in <code>shipped/previews</code>, measurements in")
    parts.append("<code>shipped/statistics.csv</code>.</p>")
    parts.append(grid(previews(output, shown, 8), "wide"))
    dice = mean_of_images(output / "shipped" / "evaluation" / "cases.csv", "dice")
    if dice:
        scored = f"{interval(dice, shown)} of the shipped network, {len(dice)} {plan['images']}"
        cards.append((f"Dice {np.mean(list(dice.values())):.3f}", scored))

    if plan["labeled"]:
        scores = {name: mean_of_images(output / name / "evaluation" / "cases.csv", "dice") for name in RUNS}
        cards.append(few_labels(parts, output, plan, [item for item in shown if item.get("label")], scores))
    cards.append(adaptation(parts, output, plan, shown))

    head = [f"<h1>What monai_usfm did with {text(images)}</h1>"]
    head += [f'<p class="note">{text(note)}</p>' for note in plan["notes"]]
    head.append('<div class="cards">')
    head += [f"<p><strong>{text(number)}</strong>{text(words)}</p>" for number, words in cards]
    parts = [*head, "</div>", *parts, *ending(output, plan)]
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>monai_usfm quickstart</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body><main>\n" + "\n".join(parts) + "\n</main></body></html>\n"
    )
    write_text_atomically(output / "report.html", page)
    return [f"{number}: {words}" for number, words in cards]


def few_labels(
    parts: list[str], output: Path, plan: dict[str, Any], shown: list[dict], scores: dict[str, dict[str, float]]
) -> tuple[str, str]:
    """The comparison of fine-tuning with training from scratch."""
    both = sorted(scores["start"].keys() & scores["scratch"].keys())
    pairs = np.array([[scores[name][image] for name in RUNS] for image in both])
    effect = compared(pairs[:, 0], pairs[:, 1], patients(shown, both))
    words = verdict(pairs.mean(0), effect.low, effect.high)
    parts.append(f"<h2>Few labels: {plan['labels']} labeled images</h2><p>{text(words)}.")
    parts.append(
        "Two networks of one kind, trained on the same labels in the same number of steps. Left: the label.</p>"
    )
    figures = []
    indices = LabelIndices(plan["num_classes"], plan["label_values"])
    for item in spread(shown, 4):
        image = np.asarray(LoadUltrasound()(item["image"])[0])
        masks = {"label": np.asarray(indices(LoadUltrasound(scale=None)(item["label"]))[0])}
        for name, title in RUNS.items():
            file = output / name / item["folder"] / f"{stem(item)}_seg.png"
            masks[title] = np.asarray(LoadUltrasound(scale=None)(file)[0])
        figures += [(draw_overlay(image, mask, size=400), title) for title, mask in masks.items()]
    parts.append(grid(figures, "three"))
    table = [["network", "mean test Dice", "95 % interval", "median", "Dice below 0.1"]]
    for column, (name, title) in enumerate(RUNS.items()):
        dice = pairs[:, column]
        spread_of = interval(scores[name], shown)
        table.append([title, f"{dice.mean():.3f}", spread_of, f"{np.median(dice):.3f}", f"{(dice < 0.1).sum()}"])
    parts.append(as_table(table))
    curves = {title: curve(output / name, "val_mean_dice") for name, title in RUNS.items()}
    parts.append(grid([(draw_curves(curves, "validation Dice"), "Dice of the validation images during training")], ""))
    return (
        f"Dice {effect.difference:+.3f}",
        f"95 % interval {ends(effect.low, effect.high, '+.3f')}: {plan['labels']} labels, {pairs[:, 0].mean():.3f} "
        f"{RUNS['start']}, {pairs[:, 1].mean():.3f} {RUNS['scratch']}. {words}.",
    )


def save_reconstructions(networks: dict[str, Any], items: list[dict], output: Path) -> None:
    """Corrupt test images, the same way for all networks, and let each restore them.

    Writes ``reconstructions.csv``, the PSNR by image and method, and images of four cases.
    """
    for network in networks.values():
        network.eval().corrupt.token_mask.ratio = HIDDEN
    read, resize = LoadUltrasound(), Resize(networks["shipped"].encoder.img_size, mode="bilinear", anti_aliasing=True)
    rows, shown = [], [item["image"] for item in spread(items, 4)]
    for number, item in enumerate(items):
        image = torch.as_tensor(resize(read(item["image"], item.get("frame"))))[None].as_subclass(torch.Tensor)
        images = {"original": image}
        for name, network in networks.items():
            torch.manual_seed(number)  # of the patches, their speckle and the rings of frequencies
            panels = network.panels(image)
            images |= {"seen": panels["corrupted"], name: panels["reconstruction"]}
        pixels = {name: value[0, 0].numpy() for name, value in images.items()}
        methods = {name: pixels[name] for name in ("seen", *networks)}
        methods |= {f"{name} {w}": found(pixels["seen"], w) for name, found in FILTERS.items() for w in WIDTHS}
        for method, found in methods.items():
            error = np.square(found.clip(0, 1) - pixels["original"]).mean()
            rows.append({"image": item["image"], "method": method, "psnr": float(-10 * np.log10(error + 1e-12))})
        if item["image"] in shown:
            (output / "reconstructions").mkdir(exist_ok=True)
            for name, values in pixels.items():
                gray = Image.fromarray((255 * values.clip(0, 1)).round().astype(np.uint8))
                gray.save(output / "reconstructions" / f"{shown.index(item['image'])}_{name}.png")
    write_csv(output / "reconstructions.csv", rows)


def adaptation(parts: list[str], output: Path, plan: dict[str, Any], shown: list[dict]) -> tuple[str, str]:
    """Self-supervised adaptation: an image is corrupted, and the network learns to restore it."""
    table = pd.read_csv(output / "reconstructions.csv").pivot(index="image", columns="method", values="psnr")
    mean = table.mean()
    best = {name: mean[[f"{name} {w}" for w in WIDTHS]].idxmax() for name in FILTERS}
    effect = compared(table["adapted"].to_numpy(), table["shipped"].to_numpy(), patients(shown, list(table.index)))
    words = "helped" if effect.low > 0 else "did harm" if effect.high < 0 else "showed no gain"
    words = words if effect.count > 1 else "says nothing of other patients"
    parts.append(f"<h2>No labels: adapting the network to {plan['adapted']} images</h2>")
    parts.append(f"<p>{HIDDEN:.0%} of the patches are overwritten by speckle of their mean brightness, and half of the")
    parts.append("frequencies are missing; encoder and decoder learn to restore the image. This needs no labels, and")
    parts.append("is how a network gets to know your images. The speckle of overwritten parts cannot be known:")
    parts.append("look for the layers, the contours and the dark and bright regions.</p>")
    parts.append(
        grid(
            [
                (Image.open(output / "reconstructions" / f"{k}_{name}.png").convert("RGB"), title)
                for k in range(len(spread(shown, 4)))
                for name, title in PANELS.items()
            ],
            "four",
        )
    )
    rows = [["test images", "mean PSNR (dB)"], ["what the network sees", f"{mean['seen']:.2f}"]]
    rows += [[f"{name} filter, the best of {len(WIDTHS)} widths", f"{mean[best[name]]:.2f}"] for name in FILTERS]
    rows += [[f"restored by the {start}", f"{mean[name]:.2f}"] for name, start in STARTS.items()]
    parts.append(as_table(rows))
    if not plan["own"]:
        parts.append("<p>The shipped start has seen other images of this kind, so little is left to gain.</p>")
    filtered = max(mean[name] for name in best.values())
    return (
        f"{mean['adapted'] - mean['seen']:+.1f} dB",
        f"PSNR of corrupted test images {mean['seen']:.1f} dB; by the better filter {filtered:.1f}; restored by the "
        f"shipped start {mean['shipped']:.1f}, by the one adapted without labels {mean['adapted']:.1f}: the "
        f"adaptation {words} (95 % interval {ends(effect.low, effect.high, '+.2f')} dB).",
    )


def ending(output: Path, plan: dict[str, Any]) -> list[str]:
    """What was not shown, what to do next, and under which conditions this ran."""
    start = f" --pretrained {quote(plan['start'])}" if plan["start"] else ""
    limits = [
        "One training run each: the intervals cover the choice of test images, not the luck of a run.",
        "Minutes of training on two cores show a direction, not what a full training reaches (docs/RESULTS.md).",
        "Other scanners and hospitals: the shipped network has only seen those of its training images.",
        "Whether the adapted network segments or classifies better: fine-tune from it and compare.",
        "Volumes, cines, classification and enhancement: see the bundles.",
    ]
    if not plan["own"]:
        limits.insert(0, "Your images. That is what the next commands are for.")
    commands = (
        f"source {quote(f'{sys.prefix}/bin/activate')}\n"
        "# your images; masks in images/ and masks/, or as NAME_mask. If no name tells a patient, it asks for one\n"
        "monai-usfm datalist MY_IMAGES\n"
        f"monai-usfm train --task segmentation --dataset_dir MY_IMAGES{start} --output_dir runs/mine\n"
        "monai-usfm predict --checkpoint runs/mine/model.pt --dataset_dir NEW_IMAGES --output_dir predictions"
    )
    seconds = plan["seconds"] | {"all": [sum(column) for column in zip(*plan["seconds"].values(), strict=True)]}
    times = [["step", "seconds", "of one core"]]
    times += [[name, f"{passed:.0f}", f"{computed:.0f}"] for name, (passed, computed) in seconds.items()]
    record = json.loads((output / "adapted" / "run.json").read_text(encoding="utf-8"))
    machine = {"platform": record.get("platform"), "cores": os.cpu_count(), "threads": record.get("threads")}
    machine |= {"GPU": record.get("gpu") or "none", **record.get("versions", {})}
    return [
        "<h2>What was not shown</h2><ul>" + "".join(f"<li>{text(line)}</li>" for line in limits) + "</ul>",
        f"<h2>Next: your own data</h2><pre>{text(commands)}</pre>",
        "<h2>Time and versions</h2>",
        as_table(times),
        as_table([["name", "value"], *([name, str(value)] for name, value in machine.items())]),
    ]


def verdict(means: np.ndarray, low: float, high: float) -> str:
    """What was measured, in words that claim no more than the interval allows."""
    if means.max() < LEARNT:
        return "Neither network learnt its task in these few steps, so nothing can be said about the start"
    if np.isnan(low):
        return "All test images are of one patient, so nothing can be said about others"
    if low > 0:
        return "In this run the shipped start helped"
    if high < 0:
        return "In this run the shipped start did harm"
    return "No gain from the shipped start could be shown: the interval includes zero"


def mean_of_images(path: Path, column: str, query: str = "index >= 0") -> dict[str, float]:
    """Image -> mean of a column over the rows of a query; empty without the table."""
    if not path.is_file():
        return {}
    return pd.read_csv(path).query(query).groupby("image", sort=False)[column].mean().to_dict()


def patients(items: list[dict], images: list[str]) -> list[str]:
    """The patient of each image; the image itself where none is known."""
    known = {str(item["image"]): str(item.get("patient", item["image"])) for item in items}
    return [known.get(image, image) for image in images]


def compared(first: np.ndarray, second: np.ndarray, patients: list[str]) -> PairedTest:
    """The paired test over patients; of a single one the difference without an interval."""
    if len(set(patients)) > 1:
        return paired_test(first, second, patients)
    return PairedTest(float(np.mean(first - second)), np.nan, np.nan, np.nan, 1)


def interval(dice: dict[str, float], items: list[dict]) -> str:
    values = np.array(list(dice.values()))
    span = bootstrap_interval(lambda rows: float(values[rows].mean()), patients(items, list(dice)))
    return ends(span.low, span.high, ".3f")


def ends(low: float, high: float, form: str) -> str:
    return "unknown (one patient)" if np.isnan(low) else f"{low:{form}} to {high:{form}}"


def curve(folder: Path, column: str) -> dict[int, float]:
    """Epoch -> value of a column of ``metrics.csv``; epochs without a value are left out."""
    return pd.read_csv(folder / "metrics.csv", index_col="epoch")[column].dropna().to_dict()


def draw_curves(lines: dict[str, dict[int, float]], title: str) -> Image.Image:
    axes = Figure(figsize=(7, 3), dpi=110, layout="constrained").subplots()
    pd.DataFrame(lines).sort_index().plot(ax=axes, marker=".", xlabel="epoch", ylabel=title, ylim=(0, 1), grid=True)
    buffer = io.BytesIO()
    axes.figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")


def spread(items: list[dict], number: int) -> list[dict]:
    """Items at equal distances: none is chosen by its result."""
    return items[:: max(1, len(items) // number)][:number]


def stem(item: dict) -> str:
    """Of the mask of an image, whose letters are as those of the image; DICOM may have no ending."""
    name = Path(item["image"]).name
    return name.removesuffix(".gz").rsplit(".", 1)[0] if name.lower().endswith(SUPPORTED_SUFFIXES) else name


def previews(output: Path, items: list[dict], number: int) -> list[tuple[Image.Image, str]]:
    """Previews of images spread over the list, which compose the letters of their names."""
    folder = output / "shipped" / "previews"
    places = [folder / item["folder"] / f"{stem_of(item['image'])}.jpg" for item in spread(items, number)]
    chosen = [path for path in places if path.is_file()]
    return [(Image.open(path).convert("RGB"), f"{path.stem}, segmented") for path in chosen]


def grid(figures: list[tuple[Image.Image, str]], layout: str) -> str:
    """Figures with their captions, side by side as far as there is room; stored in the page."""
    shown = []
    for drawn, caption in figures:
        buffer = io.BytesIO()
        drawn.save(buffer, "JPEG", quality=88)
        data = base64.b64encode(buffer.getvalue()).decode()
        size = f'width="{drawn.width}" height="{drawn.height}"'
        image = f'<img alt="{text(caption)}" src="data:image/jpeg;base64,{data}" {size}>'
        shown.append(f"<figure>{image}<figcaption>{text(caption)}</figcaption></figure>")
    return f'<div class="grid {layout}">' + "".join(shown) + "</div>"


def as_table(rows: list[list[str]]) -> str:
    head = "".join(f'<th scope="col">{text(cell)}</th>' for cell in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in row) + "</tr>" for row in rows[1:])
    return f"<table><tr>{head}</tr>{body}</table>"


def text(value: Any) -> str:
    return html.escape(str(value), quote=True)
