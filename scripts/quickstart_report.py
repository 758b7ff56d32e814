#!/usr/bin/env python
# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Write report.html (one file, pictures inside) and report.md from a finished run of scripts/quickstart.sh.

python scripts/quickstart_report.py quickstart
"""

from __future__ import annotations

import argparse
import base64
import csv
import html
import io
import json
import os
import platform
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from monai_usfm.files import write_text_atomically
from monai_usfm.handlers import save_panels, segmentation_panels

matplotlib.use("Agg")
RUNS = {"pretrained": "with pretraining", "scratch": "from scratch"}
LEARNT = 0.2  # mean Dice below which two networks are compared in what they have not learnt
STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c1c1c}"
    "img{max-width:100%}table{border-collapse:collapse}td,th{border:1px solid #bbb;padding:.2rem .6rem;text-align:left}"
    ".note{background:#fff4d6;border-left:.3rem solid #e0a800;padding:.5rem 1rem}figcaption{color:#555}"
)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="output folder of scripts/quickstart.sh")
    folder = parser.parse_args(arguments).folder
    missing = [name for name in needed_files() if not (folder / name).is_file()]
    if missing:
        raise SystemExit(
            f"{folder} is no finished quickstart: {', '.join(missing)} missing. Run scripts/quickstart.sh."
        )
    pictures = draw_pictures(folder)
    report = Report()
    write_content(report, folder, pictures)
    write_text_atomically(folder / "report.md", report.markdown())
    write_text_atomically(folder / "report.html", report.html(folder))
    return 0


def needed_files() -> list[str]:
    runs = [f"segmentation_{name}/{file}" for name in RUNS for file in ("metrics.csv", "evaluation/cases.csv")]
    return ["plan.json", "timings.csv", "pretraining/metrics.csv", "pretraining/run.json", *runs]


class Report:
    """Headings, paragraphs, tables and pictures, written once and shown as Markdown and as HTML."""

    def __init__(self) -> None:
        self.parts: list[tuple[str, Any]] = []

    def heading(self, text: str) -> None:
        self.parts.append(("heading", text))

    def text(self, text: str) -> None:
        self.parts.append(("text", text))

    def note(self, text: str) -> None:
        self.parts.append(("note", text))

    def table(self, rows: list[list[str]]) -> None:
        self.parts.append(("table", rows))

    def picture(self, path: Path, caption: str) -> None:
        self.parts.append(("picture", (path, caption)))

    def markdown(self) -> str:
        lines = ["# Quickstart: what pretraining did\n"]
        for kind, content in self.parts:
            if kind == "heading":
                lines.append(f"## {content}\n")
            elif kind == "note":
                lines.append(f"> **{content}**\n")
            elif kind == "text":
                lines.append(f"{content}\n")
            elif kind == "picture":
                lines.append(f"![{content[1]}](<{content[0].as_posix()}>)\n\n{content[1]}\n")
            else:
                head, *body = [[cell.replace("|", "\\|") for cell in row] for row in content]
                rows = [head, ["---"] * len(head), *body]
                lines.append("".join(f"| {' | '.join(row)} |\n" for row in rows))
        return "\n".join(lines)

    def html(self, folder: Path) -> str:
        """One self-contained page; pictures, given relative to ``folder``, are embedded."""
        lines = ["<h1>Quickstart: what pretraining did</h1>"]
        for kind, content in self.parts:
            if kind == "heading":
                lines.append(f"<h2>{html.escape(content)}</h2>")
            elif kind in ("text", "note"):
                lines.append(f'<p class="{kind}">{html.escape(content)}</p>')
            elif kind == "picture":
                data = base64.b64encode((folder / content[0]).read_bytes()).decode()
                caption = html.escape(content[1])
                picture = f'<img alt="{html.escape(content[1], quote=True)}" src="data:image/png;base64,{data}">'
                lines.append(f"<figure>{picture}<figcaption>{caption}</figcaption></figure>")
            else:
                head, *body = [[html.escape(cell) for cell in row] for row in content]
                rows = ["".join(f"<th>{cell}</th>" for cell in head)]
                rows += ["".join(f"<td>{cell}</td>" for cell in row) for row in body]
                lines.append("<table>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>")
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>monai_usfm quickstart</title>'
            f"<style>{STYLE}</style></head><body>\n" + "\n".join(lines) + "\n</body></html>\n"
        )


def write_content(report: Report, folder: Path, pictures: dict[str, Path]) -> None:
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    settings = {name: run_settings(folder / f"segmentation_{name}") for name in RUNS}
    images = "simulated images" if plan["simulated_segmentation"] else "your images"
    pretraining_images = "simulated images" if plan["simulated_pretraining"] else "your images"
    for note in plan["notes"]:
        report.note(note)

    report.heading("Result")
    scores = {name: dice_of_images(folder / f"segmentation_{name}" / "evaluation" / "cases.csv") for name in RUNS}
    shared = sorted(scores["pretrained"].keys() & scores["scratch"].keys())
    pairs = np.array([[scores[name][image] for name in RUNS] for image in shared])
    effect = paired_effect(pairs)
    report.text(describe(effect, images))
    rows = [["segmentation", f"mean test Dice ({images})", "standard deviation", "median", "Dice below 0.1"]]
    for column, title in enumerate(RUNS.values()):
        dice = pairs[:, column]
        rows.append(
            [title, f"{dice.mean():.3f}", f"{dice.std():.3f}", f"{np.median(dice):.3f}", f"{(dice < 0.1).sum()}"]
        )
    report.table(rows)
    labelled = settings["scratch"].get("training_items", "?")
    unlabelled = run_settings(folder / "pretraining").get("training_items", "?")
    report.text(
        f"Both segmentations saw the same {counted(labelled, plan['simulated_segmentation'], 'labelled ')} in the same "
        f"number of steps with the same seed, and were scored on the same {len(shared)} test images. The encoder was "
        f"pretrained on {counted(unlabelled, plan['simulated_pretraining'])} without labels. From "
        "scratch all layers learn at the full rate; from the pretrained encoder early layers learn more slowly. One "
        "training run each: the interval covers the choice of test images, not the luck of a run. A demonstration of "
        "minutes, no evidence about the method."
    )

    report.heading("Segmentation")
    if "cases" in pictures:
        report.picture(
            pictures["cases"], f"Test cases ({images}): image | label | prediction {' | '.join(RUNS.values())}"
        )
    report.picture(
        pictures["segmentation"], f"Fine-tuning ({images}): training loss, and Dice of the validation images"
    )
    report.heading("Pretraining")
    if "reconstruction" in pictures:
        report.picture(
            pictures["reconstruction"],
            f"Validation images ({pretraining_images}) after the last epoch: input | what the encoder saw | its "
            "reconstruction | absolute error",
        )
    report.picture(pictures["pretraining"], f"Pretraining loss ({pretraining_images})")

    report.heading("Time and versions")
    with open(folder / "timings.csv", newline="", encoding="utf-8") as stream:
        timings = list(csv.reader(stream))
    total = sum(float(row[-1]) for row in timings)
    # a message may hold commas; the last field is the number of seconds
    report.table(
        [
            ["step", "seconds"],
            *[[",".join(row[:-1]), row[-1]] for row in timings],
            ["all before the report", f"{total:g}"],
        ]
    )
    record = json.loads((folder / "pretraining" / "run.json").read_text(encoding="utf-8"))
    machine = {
        "platform": record.get("platform", "?"),
        "processor cores": str(os.cpu_count()),
        "threads": str(record.get("threads", "?")),
        "GPU": str(record.get("gpu") or "none"),
        "started": record.get("started", "?"),
    }
    versions = {"python": platform.python_version(), **record.get("versions", {})}
    report.table([["name", "value"], *[[name, str(value)] for name, value in {**versions, **machine}.items()]])


def counted(number: int | str, simulated: bool, kind: str = "") -> str:
    """A number of images, in words: ``3 labelled simulated images``, ``3 of your labelled images``."""
    return f"{number} {kind}simulated images" if simulated else f"{number} of your {kind}images"


def run_settings(folder: Path) -> dict[str, Any]:
    path = folder / "run.json"
    return json.loads(path.read_text(encoding="utf-8")).get("options", {}) if path.is_file() else {}


def dice_of_images(path: Path) -> dict[str, float]:
    """Image -> Dice, averaged over its classes."""
    values: dict[str, list[float]] = defaultdict(list)
    with open(path, newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            values[row["image"]].append(float(row["dice"]))
    return {image: float(np.mean(found)) for image, found in values.items()}


def paired_effect(pairs: np.ndarray, draws: int = 2000) -> dict[str, float]:
    """Mean difference (first minus second column) and its 95 % percentile bootstrap interval over the rows.

    Raises:
        SystemExit: when there is no row.
    """
    if not len(pairs):
        raise SystemExit("the two evaluations share no test image; run scripts/quickstart.sh again.")
    difference = pairs[:, 0] - pairs[:, 1]
    chosen = np.random.default_rng(0).integers(0, len(difference), (draws, len(difference)))
    low, high = np.quantile(difference[chosen].mean(axis=1), [0.025, 0.975])
    first, second = pairs.mean(axis=0)
    return {
        "pretrained": float(first),
        "scratch": float(second),
        "difference": float(difference.mean()),
        "low": float(low),
        "high": float(high),
    }


def describe(effect: dict[str, float], images: str) -> str:
    """What was measured, in words that claim no more than the interval allows."""
    if max(effect["pretrained"], effect["scratch"]) < LEARNT:
        verdict = "Neither segmentation learnt its task in these few steps, so nothing can be said about pretraining"
    elif effect["low"] > 0:
        verdict = "In this run pretraining helped"
    elif effect["high"] < 0:
        verdict = "In this run pretraining did harm"
    else:
        verdict = "No gain from pretraining could be shown: the interval includes zero"
    return (
        f"{verdict}. Mean Dice on the test section ({images}): {effect['pretrained']:.3f} with pretraining, "
        f"{effect['scratch']:.3f} from scratch; difference {effect['difference']:+.3f} "
        f"(95 % interval {effect['low']:+.3f} to {effect['high']:+.3f})."
    )


def draw_pictures(folder: Path) -> dict[str, Path]:
    """Make the figures in ``report_pictures``; returned paths are relative to ``folder``."""
    target = Path("report_pictures")
    (folder / target).mkdir(exist_ok=True)
    found = {"pretraining": target / "pretraining.png", "segmentation": target / "segmentation.png"}
    pretraining = read_curve(folder / "pretraining" / "metrics.csv")
    draw_curves(
        folder / found["pretraining"],
        {"loss": {"training": pretraining["train_loss"], "validation": pretraining.get("val_loss", {})}},
        logarithmic=True,
    )
    curves = {title: read_curve(folder / f"segmentation_{name}" / "metrics.csv") for name, title in RUNS.items()}
    draw_curves(
        folder / found["segmentation"],
        {
            "training loss": {title: curve["train_loss"] for title, curve in curves.items()},
            "validation Dice": {title: curve.get("val_mean_dice", {}) for title, curve in curves.items()},
        },
    )
    reconstructions = sorted((folder / "pretraining" / "pictures").glob("reconstruction_epoch_*.png"))
    if reconstructions:
        found["reconstruction"] = target / "reconstruction.png"
        enlarge(reconstructions[-1], folder / found["reconstruction"])
    if draw_cases(folder, folder / target / "cases.png"):
        found["cases"] = target / "cases.png"
    return found


def read_curve(path: Path) -> dict[str, dict[int, float]]:
    """Column -> epoch -> value of ``metrics.csv``; epochs without a value are left out."""
    curve: dict[str, dict[int, float]] = defaultdict(dict)
    with open(path, newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            for name, value in row.items():
                if value:
                    curve[name][int(row["epoch"])] = float(value)
    return curve


def draw_curves(path: Path, panels: dict[str, dict[str, dict[int, float]]], logarithmic: bool = False) -> None:
    """One panel per title, one line per name."""
    figure = Figure(figsize=(4.8 * len(panels), 3.2), layout="constrained")
    for axes, (title, lines) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels.items(), strict=True):
        for name, points in lines.items():
            if points:
                axes.plot(list(points), list(points.values()), marker="." if len(points) < 12 else "", label=name)
        axes.set(xlabel="epoch", ylabel=title, yscale="log" if logarithmic else "linear")
        axes.grid(alpha=0.3, which="both")
        axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    path.write_bytes(buffer.getvalue())


def enlarge(source: Path, target: Path, width: int = 900) -> None:
    with Image.open(source) as picture:
        factor = max(1, width // picture.width)
        picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST).save(target)


def draw_cases(folder: Path, target: Path, side: int = 200) -> bool:
    """Image, label and both predictions of the cases; False when there are none."""
    names = sorted(path.stem for path in (folder / "cases" / "images").glob("*.png"))
    files = {name: folder / f"segmentation_{name}" / "predictions" for name in RUNS}
    names = [name for name in names if all((path / f"{name}_seg.png").is_file() for path in files.values())]
    if not names:
        return False

    def read(path: Path, nearest: bool) -> torch.Tensor:
        """``(1, side, side)``; grey values or class indices."""
        with Image.open(path) as picture:
            how = Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR
            return torch.from_numpy(np.asarray(picture.convert("L").resize((side, side), how), dtype=np.float32))[None]

    panels: dict[str, torch.Tensor] = {}
    for run, title in RUNS.items():
        output = [
            {
                "image": read(folder / "cases" / "images" / f"{name}.png", nearest=False) / 255,
                "label": read(folder / "cases" / "labels" / f"{name}.png", nearest=True),
                "pred": read(files[run] / f"{name}_seg.png", nearest=True),
            }
            for name in names
        ]
        number = 1 + int(max(float(item[key].max()) for item in output for key in ("label", "pred")))
        shown = segmentation_panels(output, max(2, number))
        panels |= {"image": shown["image"], "label": shown["label"], title: shown["prediction"]}
    save_panels(target, panels, max_items=len(names))
    return True


if __name__ == "__main__":
    sys.exit(main())
