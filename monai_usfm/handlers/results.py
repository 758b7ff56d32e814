# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""What inference writes beside its files: previews, contact sheets, measurements of structures, embeddings."""

from __future__ import annotations

import json
import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.utils import convert_to_tensor
from PIL import Image

from monai_usfm.data import LoadUltrasound
from monai_usfm.data.folders import RESULTS_MARK, mark_results, stem_of
from monai_usfm.files import append_csv, atomic_write, write_csv, write_text_atomically
from monai_usfm.handlers.drawing import (
    draw_bars,
    draw_over_time,
    draw_overlay,
    draw_pair,
    draw_volume,
    label_figure,
    save_movie,
    tile,
)
from monai_usfm.handlers.report import EvaluationReport, known_spacing, over_time
from monai_usfm.metrics.geometry import muscle_architecture
from monai_usfm.metrics.measurements import measure
from monai_usfm.networks.nets.vit import FeatureExtractor

__all__ = ["CasePreviews", "ClassificationPreviews", "EmbeddingSaver", "EnhancementPreviews", "SegmentationResults"]

SPACING = ("spacing", "spacing_known", "spacing_box")
THUMBNAIL, COLUMNS, PAGE = (270, 300), 4, 24
AHEAD = 8  # cases that may wait to be drawn


class CasePreviews:
    """Saves a figure of each case under ``previews``, and small ones together as ``contact_sheet.jpg``.

    Attach it to an evaluator that decollates: ``pred`` has the axes of the file, ``image`` the metadata that
    tells which file it was. The file is read again, so that the preview has its full resolution. After every 24 cases
    another sheet begins, ``contact_sheet_2.jpg`` and so on. All this is done in a thread beside the network. Figures
    and tables of an earlier run in the same folder are removed.

    Args:
        output_dir: folder of the results.
        names: of classes or landmarks, for subclasses that need them.
        data_root_dir: the folder whose subfolders the previews repeat, as in :class:`monai.transforms.SaveImaged`;
            empty puts all into one.
        preview: draw figures at all.
    """

    table = ""  # name of a CSV and JSON file that gets rows of every case

    def __init__(
        self, output_dir: str, names: Sequence[str] | None = None, data_root_dir: str = "", preview: bool = True
    ) -> None:
        self.folder = Path(output_dir) / "previews"
        self.names = [str(name) for name in names or ()]
        self.rows: list[dict[str, Any]] = []
        self.root = data_root_dir
        self.preview = preview
        self.page: list[Image.Image] = []
        self.pages = 0
        self.beside: ThreadPoolExecutor | None = None
        self.waiting: deque[Future] = deque()

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._cases)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def draw(self, item: Mapping[str, Any], image: np.ndarray, stem: Path) -> Image.Image | None:
        """The figure of one case, or None for none; ``image`` ``(*S)`` is in [0, 1], upright."""
        raise NotImplementedError

    def _start(self, engine: Engine) -> None:
        self.page, self.pages, self.rows = [], 0, []
        self.waiting.clear()
        former = [*self.folder.parent.glob("contact_sheet*.jpg")]  # of another run, which may have had more cases
        if table := type(self).table:
            former += [self.folder.parent / f"{table}.{ending}" for ending in ("csv", "json")]
        if (self.folder / RESULTS_MARK).is_file():  # else it was there before, and may hold what is not ours
            former += [*self.folder.rglob("*.jpg"), *self.folder.rglob("*.mp4")]
        for old in former:
            old.unlink(missing_ok=True)
        self.beside = ThreadPoolExecutor(1)  # one, so that cases keep their order

    def record(self, item: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows of a case, which all have the same keys; the CSV is whole after each, the JSON at the end."""
        rows = [{"image": str(item["image"].meta["filename_or_obj"]), **row} for row in rows]
        shown = [{k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows]
        append_csv(self.folder.parent / f"{self.table}.csv", shown, anew=not self.rows)
        self.rows.extend(rows)

    def _cases(self, engine: Engine) -> None:
        if (self.preview or self.table) and self.beside is not None:
            self.waiting.extend(self.beside.submit(self._case, engine, item) for item in engine.state.output)
            self._wait(AHEAD)

    def _wait(self, left: int) -> None:
        """Until so many cases are left to draw; an error of one that was drawn is raised here."""
        while len(self.waiting) > left:
            self.waiting.popleft().result()

    def _case(self, engine: Engine, item: Mapping[str, Any]) -> None:
        meta = item["image"].meta
        path = Path(str(meta["filename_or_obj"]))
        if self.preview and not self.folder.exists():
            mark_results(self.folder)
        below = path.parent.absolute().relative_to(Path(self.root).absolute()) if self.root else Path()
        stem = self.folder / below / stem_of(path)
        dims = item["image"].dim() - 1
        # A plane of a volume or cine is the one the network saw.
        frame, white = int(meta.get("frame", 0)) if dims == 2 else None, float(meta.get("full_scale", 0)) or None
        loaded = LoadUltrasound(dims)(path, frame=frame, full_scale=white)
        loaded.meta |= {key: meta[key] for key in SPACING if key in meta}  # of the chosen region, or the datalist's
        figure = self.draw({**item, "loaded": loaded}, np.asarray(loaded[0]), stem)
        if figure is not None:
            _save(figure, stem.with_name(f"{stem.name}.jpg"))
            small = figure.copy()
            small.thumbnail(THUMBNAIL, Image.Resampling.BILINEAR, reducing_gap=1.0)
            self.page.append(small)
            if len(self.page) == PAGE:
                self._sheet(engine)

    def _finish(self, engine: Engine) -> None:
        self._wait(0)
        self._sheet(engine)
        if self.rows:
            lines = ",\n".join(json.dumps(row) for row in self.rows)
            write_text_atomically(self.folder.parent / f"{self.table}.json", f"[\n{lines}\n]\n")
        if self.beside is not None:
            self.beside.shutdown()

    def _sheet(self, engine: Engine) -> None:
        if self.page:
            self.pages += 1
            number = f"_{self.pages}" if self.pages > 1 else ""
            path = self.folder.parent / f"contact_sheet{number}.jpg"
            _save(tile(self.page, COLUMNS), path)
            engine.logger.info(f"{type(self).__name__}: {len(self.page)} cases at a glance: {path}")
            self.page = []


def warn_beyond_spacing(labels: np.ndarray, meta: Mapping[str, Any]) -> None:
    """Warn where structures lie outside the ultrasound region whose scale measures them.

    Args:
        labels: classes, ``(*S)``, 0 for background.
        meta: of the image, with ``spacing_box``, the rows and columns (top, bottom, left, right) of that region.
    """
    if "spacing_box" not in meta:
        return
    top, bottom, left, right = (int(n) for n in meta["spacing_box"])
    outside = int((labels > 0).sum() - (labels[..., top:bottom, left:right] > 0).sum())
    if outside:
        warnings.warn(
            f"{meta['filename_or_obj']}: {outside} of {int((labels > 0).sum())} pixels of structures lie outside rows "
            f"{top} to {bottom} and columns {left} to {right}, the ultrasound region whose scale measures them: their "
            "mm do not hold. Choose another by --region INDEX.",
            stacklevel=2,
        )


class SegmentationResults(CasePreviews):
    """Overlays of the segments, and a table of what :func:`~monai_usfm.metrics.measure` measures on them.

    ``statistics.csv`` and ``statistics.json`` have a row per case and class (per frame of a cine, per part with
    ``components``); they are whole after every case. Of a volume the preview has three planes and a montage. Of a cine
    it has frames and the areas over time, and beside it lies a movie of all frames.

    Args:
        output_dir: folder of the results.
        num_classes: classes, background included.
        names: of the classes, with or without the background.
        data_root_dir, preview: see :class:`CasePreviews`.
        statistics: write the tables.
        components: measure each connected part of a class.
        time: the first of three axes is time: every frame is measured by itself.
        muscle: of 2D images also what :func:`~monai_usfm.metrics.muscle_architecture` finds between two aponeuroses.
    """

    table = "statistics"

    def __init__(
        self,
        output_dir: str,
        num_classes: int,
        names: Sequence[str] | None = None,
        data_root_dir: str = "",
        preview: bool = True,
        statistics: bool = True,
        components: bool = False,
        time: bool = False,
        muscle: bool = False,
    ) -> None:
        names = [str(name) for name in names or range(num_classes)]
        names = names if len(names) == num_classes else ["background", *names]
        super().__init__(output_dir, names, data_root_dir, preview)
        self.num_classes = num_classes
        self.table = self.table if statistics else ""
        self.components = components
        self.time = time
        self.muscle = muscle

    def draw(self, item: Mapping[str, Any], image: np.ndarray, stem: Path) -> Image.Image | None:
        labels, spacing = upright(item["pred"], image), known_spacing(item["loaded"])
        if spacing:
            warn_beyond_spacing(labels, item["loaded"].meta)
        time = self.time and image.ndim == 3
        if time:
            plane = spacing and spacing[1:]
            frames = [self._rows(*pair, plane) for pair in zip(labels, image, strict=True)]
            rows = [{"frame": k, **row} for k, found in enumerate(frames) for row in found]
        else:
            spacing = None if over_time(item["loaded"]) else spacing
            rows = self._rows(labels, image, spacing, self.components)
        if self.table:
            self.record(item, rows)
        if not self.preview:
            return None
        if time:
            return self._draw_cine(image, labels, spacing, rows, stem)
        if self.components:
            rows = self._rows(labels, image, spacing)
        draw = draw_overlay if image.ndim == 2 else draw_volume
        return label_figure(draw(image, labels, spacing), stem.name, [(row["class"], _describe(row)) for row in rows])

    def _rows(
        self, labels: np.ndarray, image: np.ndarray, spacing: list[float] | None, components: bool = False
    ) -> list[dict[str, Any]]:
        rows = measure(labels, self.num_classes, spacing, self.names, components)
        if not self.muscle or image.ndim != 2:
            return rows
        return [{**row, **muscle_architecture(labels == row["class"], image, spacing)} for row in rows]

    def _draw_cine(
        self, image: np.ndarray, labels: np.ndarray, spacing: list[float] | None, rows: list[dict], stem: Path
    ) -> Image.Image:
        plane = spacing and spacing[1:]
        frames = (draw_overlay(i, k, plane, 480) for i, k in zip(image, labels, strict=True))
        save_movie(stem.with_name(f"{stem.name}.mp4"), frames)
        areas = {name: [row["area"] for row in rows if row["name"] == name] for name in self.names[1:]}
        curve = draw_over_time(areas, rows[0]["unit"])
        legend = [
            (number, f"{name}: in {np.count_nonzero(line)} of {len(line)} frames")
            for number, (name, line) in enumerate(areas.items(), start=1)
        ]
        montage = draw_volume(image, labels, spacing, time=True)
        curve = curve.resize((montage.width, round(curve.height * montage.width / curve.width)))
        return label_figure(tile([montage, curve], 1), stem.name, legend)


class EnhancementPreviews(CasePreviews):
    """Before, after and the change; of a volume the middle slice."""

    def draw(self, item: Mapping[str, Any], image: np.ndarray, stem: Path) -> Image.Image:
        after = upright(item["pred"], image) / 255.0
        if image.ndim == 3:
            image, after = image[len(image) // 2], after[len(after) // 2]
        return label_figure(draw_pair(image, after), stem.name)


class ClassificationPreviews(CasePreviews):
    """The image over the probability of each class, by ``names`` or by its index."""

    def draw(self, item: Mapping[str, Any], image: np.ndarray, stem: Path) -> Image.Image:
        shares = torch.as_tensor(item["pred"]).flatten().tolist()
        names = self.names or [str(number) for number in range(len(shares))]
        plane = image if image.ndim == 2 else image[len(image) // 2]
        return label_figure(draw_bars(plane, dict(zip(names, shares, strict=True))), stem.name)


class EmbeddingSaver(EvaluationReport):
    """Writes ``embeddings.npz`` (``embeddings``, ``images``) and ``embeddings.csv``, which grows with every batch.

    Attach it to an evaluator that decollates and whose ``pred`` is a vector for each image.

    Args:
        output_dir: folder of the files.
        network: :class:`~monai_usfm.networks.FeatureExtractor` for feature maps; not needed without ``feature_blocks``.
        feature_blocks: also write the maps ``(E, *grid)`` after these blocks, as ``000000_<image>_maps.npz`` (its
            number in the list first) with one entry ``block_<i>`` each.
    """

    files = ("embeddings.csv", "embeddings.npz")
    streamed = "embeddings.csv"

    def __init__(
        self, output_dir: str, network: FeatureExtractor | None = None, feature_blocks: Sequence[int] = ()
    ) -> None:
        if feature_blocks and network is None:
            raise ValueError("feature_blocks need the network that makes the maps.")
        super().__init__(output_dir)
        self.network = network
        self.feature_blocks = list(feature_blocks)

    def collect(self, engine: Engine) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for item in engine.state.output:
            name, number = self.file_of(item["image"], rows), len(self.rows) + len(rows)
            rows.append({"image": name, "vector": convert_to_tensor(item["pred"]).float().flatten().cpu().numpy()})
            if self.network is not None and self.feature_blocks:
                with torch.no_grad():
                    maps = self.network.feature_maps(convert_to_tensor(item["image"])[None], self.feature_blocks)
                arrays = {
                    f"block_{i}": m[0].float().cpu().numpy() for i, m in zip(self.feature_blocks, maps, strict=True)
                }
                self._save(f"{number:06d}_{stem_of(name)}_maps.npz", arrays)
        return rows

    def shown(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"image": r["image"], **{f"feature_{i}": f"{v:.6g}" for i, v in enumerate(r["vector"])}} for r in rows]

    def write(self, engine: Engine, rows: list[dict[str, Any]]) -> None:
        write_csv(self.folder / "embeddings.csv", self.shown(rows))
        vectors, names = ([row[key] for row in rows] for key in ("vector", "image"))
        self._save("embeddings.npz", {"embeddings": np.stack(vectors), "images": np.array(names)})

    def _save(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        with atomic_write(self.folder / name) as part:
            np.savez_compressed(part, **arrays)


def upright(prediction: torch.Tensor, image: np.ndarray) -> np.ndarray:
    """``(1, *axes of the file)`` -> the upright axes of ``image``; axes of length 1 come and go."""
    array = np.asarray(convert_to_tensor(prediction).cpu())[0]
    return array.T.reshape(image.shape)


def _describe(row: Mapping[str, Any]) -> str:
    """``lesion: 214 mm², 18.2 x 13.1 mm (2 parts)``."""
    unit, dims = row["unit"], 2 if "area" in row else 3
    size = row["area"] if dims == 2 else row["volume"]
    if not size:
        return f"{row['name']}: not found"
    parts = f" (largest of {row['parts']} parts)" if row["parts"] > 1 else ""
    lengths = f"{row['longest_diameter']:.1f} x {row['perpendicular_diameter']:.1f} {unit}"
    return f"{row['name']}: {size:,.0f} {unit}{'²' if dims == 2 else '³'}, {lengths}{parts}"


def _save(figure: Image.Image, path: Path) -> None:
    with atomic_write(path) as part:
        figure.save(part, format="JPEG", quality=92)
