# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Simulated ultrasound: images with exact masks, classes and clean targets, made on the fly or on disk.

Nothing here is patient data. Anatomy comes from :mod:`monai_usfm.simulation.organs`, echoes from
:mod:`monai_usfm.simulation.echoes`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import PathLike
from monai.data import Dataset
from monai.transforms import apply_transform
from PIL import Image, ImageDraw, ImageFont
from torch.utils.data import DataLoader

from monai_usfm.files import atomic_write, write_text_atomically
from monai_usfm.simulation.echoes import (
    Device,
    backscatter,
    detect,
    display,
    draw_device,
    scatterers,
    shadow_db,
    specular_strength,
    to_beams,
    to_image,
)
from monai_usfm.simulation.organs import CLASS_NAMES, ORGANS
from monai_usfm.simulation.phantoms import STRUCTURES, Phantom
from monai_usfm.simulation.view import Motion, MovingScatterers, View

DESCRIPTION = "Synthetic ultrasound simulated by monai_usfm; no patient, no scanner. Not for clinical conclusions."
_VERSION = 3  # of the simulation: a data set written by another one is written anew
_FILES = ("image", "label", "structures", "instances", "clean", "low", "annotations")  # keys that are written
_SPECULAR_GAIN = 4.5  # amplitude of a full impedance step that faces the probe, relative to soft tissue


class SyntheticUltrasound(Dataset):
    """Simulated ultrasound of procedural organs; item ``i`` is a function of ``(seed, i)`` alone.

    Organs and classes alternate, so that every run of ``2 * len(organs)`` items is balanced. Each item is a dictionary:

    - ``image``: ``(1, *S)`` float32 in [0, 1], 0 outside the field of view;
    - ``label``: ``(1, *S)`` uint8, 1 inside the target (the lesion of breast, thyroid and liver; left ventricle; fetal
      head; kidney; aponeuroses of muscle ...); ``structures``: ``(1, *S)`` uint8 codes into
      :data:`~monai_usfm.simulation.STRUCTURES`; ``instances``: ``(1, *S)`` uint8, every lesion, chamber, sheet ... has
      a number of its own;
    - ``class``: 0 or 1 (2: no lesion), named by :data:`~monai_usfm.simulation.organs.CLASS_NAMES`; ``organ``: str;
    - ``clean``: ``(1, *S)`` echogenicity on the same gray scale: no speckle, noise, shadow or blur;
    - ``fov``: ``(1, *S)`` bool; ``geometry``: the :class:`~monai_usfm.transforms.BeamGeometry` that was used;
    - ``spacing``: tensor of mm per voxel along ``S`` (a time axis counts 1);
    - ``low`` (``quality="pair"``): the same anatomy and scatterers seen by a worse machine;
    - ``annotations`` (``annotations=True``): ``(1, *S)`` bool, pixels of burned-in calipers and text.

    Args:
        num_samples: length of the data set.
        spatial_dims: 2 for images, 3 for volumes and cines.
        image_size: ``(H, W)``, ``(D, H, W)`` with elevation first, or ``(T, H, W)`` for a cine; by default
            ``(224, 224)``, ``(96, 96, 96)`` and ``(16, 128, 128)``.
        organs: names out of :data:`~monai_usfm.simulation.organs.ORGANS`; all by default.
        seed: non-negative integer.
        cine: with ``spatial_dims=3``, make the first axis time: breathing, probe pressure and heartbeat move the tissue
            and the scatterers in it.
        quality: ``"high"``, ``"low"`` or ``"pair"``.
        annotations: burn calipers and text into the images (2D and cine).
        transform: applied to each item, as in :class:`monai.data.Dataset`.
        healthy: share of items of organs with lesions that have none; their ``label`` is empty and their class 2.

    Raises:
        ValueError: for an unknown organ or quality, or sizes that do not fit ``spatial_dims``.
    """

    def __init__(
        self,
        num_samples: int,
        spatial_dims: int = 2,
        image_size: Sequence[int] | None = None,
        organs: Sequence[str] | None = None,
        seed: int = 0,
        cine: bool = False,
        quality: str = "high",
        annotations: bool = False,
        transform: Callable | None = None,
        healthy: float = 0.0,
    ) -> None:
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}.")
        if cine and spatial_dims != 3:
            raise ValueError("a cine is a (T, H, W) image: set spatial_dims=3.")
        if image_size is None:
            image_size = (224, 224) if spatial_dims == 2 else (16, 128, 128) if cine else (96, 96, 96)
        size = tuple(int(n) for n in image_size)
        if len(size) != spatial_dims:
            raise ValueError(
                f"image_size must have {spatial_dims} entries for spatial_dims={spatial_dims}, got {size}."
            )
        if min(size[-2:]) < 16 or size[0] < (1 if cine else 8):
            raise ValueError(f"image_size must be at least 16 in rows and columns and 8 in slices, got {size}.")
        organs = tuple(ORGANS) if organs is None else (organs,) if isinstance(organs, str) else tuple(organs)
        unknown = [organ for organ in organs if organ not in ORGANS]
        if unknown or not organs:
            raise ValueError(f"unknown organs {unknown}; choose from {tuple(ORGANS)}.")
        if quality not in ("high", "low", "pair"):
            raise ValueError(f'quality must be "high", "low" or "pair", got {quality!r}.')
        if annotations and spatial_dims == 3 and not cine:
            raise ValueError("volumes carry no burned-in annotations: use annotations with 2D images or a cine.")
        if num_samples < 0 or seed < 0:
            raise ValueError(f"num_samples and seed must not be negative, got {num_samples} and {seed}.")
        if not 0 <= healthy <= 1:
            raise ValueError(f"healthy is a share between 0 and 1, got {healthy}.")
        super().__init__(range(num_samples), transform)
        self.spatial_dims, self.image_size, self.organs, self.seed = spatial_dims, size, organs, int(seed)
        self.cine, self.quality, self.annotations, self.healthy = cine, quality, annotations, float(healthy)

    def _transform(self, index: int) -> Any:
        item = self.simulate(self.data[index])
        return item if self.transform is None else apply_transform(self.transform, item)

    def simulate(self, index: int) -> dict[str, Any]:
        """Item ``index`` before the transform."""
        # Separate streams, so that an option which draws more from one leaves the others as they are.
        view_rng, anatomy_rng, echo_rng, annotation_rng, health_rng = (
            np.random.default_rng(s) for s in np.random.SeedSequence([self.seed, index]).spawn(5)
        )
        organ = self.organs[index % len(self.organs)]
        altered = (index // len(self.organs)) % 2
        view = View(organ, self.image_size, self.spatial_dims == 3 and not self.cine, view_rng)
        phantom = view.empty_phantom(anatomy_rng)
        phantom.healthy = len(CLASS_NAMES[organ]) > 2 and health_rng.random() < self.healthy
        ORGANS[organ].paint(phantom, bool(altered))
        device = draw_device(view.kind, view_rng)
        worse = device.degraded()
        machines = {"high": (device,), "low": (worse,), "pair": (device, worse)}[self.quality]

        fov = view.geometry.mask(phantom.shape[-view.geometry.spatial_dims :])[0].expand(phantom.shape)
        if self.cine:
            images, tissue = _film(phantom, view, machines, self.image_size[0], anatomy_rng, echo_rng)
            fov = fov.expand(self.image_size)
        else:
            tissue = _Tissue.of(phantom)
            images = _still(tissue, view, machines, scatterers(view.beam_shape, echo_rng), echo_rng)
        item: dict[str, Any] = {
            "image": images[0] * fov,
            "label": tissue.target * fov,
            "structures": tissue.structures * fov,
            "instances": tissue.instances * fov,
            "clean": display(tissue.maps[0], machines[0]) * fov,
            "fov": fov.clone(),
        }
        if self.quality == "pair":
            item["low"] = images[1] * fov
        if self.annotations:
            canvas = _draw_annotations(item["label"].numpy(), organ, annotation_rng)
            drawn = torch.from_numpy(canvas > 0)
            for key in ("image", "low"):
                if key in item:
                    item[key] = torch.where(drawn, torch.from_numpy(canvas), item[key])
            item["annotations"] = drawn.expand(self.image_size).clone()
        item = {key: value[None] for key, value in item.items()}
        spacing = torch.tensor(((1.0,) if self.cine else ()) + view.steps)
        kind = 2 if phantom.healthy else altered
        return item | {"class": kind, "organ": organ, "spacing": spacing, "geometry": view.geometry}


class _Tissue(NamedTuple):
    """The maps of a phantom as tensors: what one frame needs."""

    maps: torch.Tensor  # echogenicity, attenuation, impedance
    structures: torch.Tensor
    target: torch.Tensor
    instances: torch.Tensor

    @classmethod
    def of(cls, phantom: Phantom) -> _Tissue:
        maps = np.stack([phantom.echo, phantom.attenuation, phantom.impedance])
        codes = (torch.from_numpy(c) for c in (phantom.structures, phantom.target, phantom.instances))
        return cls(torch.from_numpy(maps), *codes)


def _still(
    tissue: _Tissue, view: View, machines: Sequence[Device], field: torch.Tensor, rng: np.random.Generator
) -> list[torch.Tensor]:
    """One image or volume ``(*S)`` per machine of the same tissue and scatterers."""
    specular = torch.from_numpy(specular_strength(tissue.maps[2].numpy(), view.beam_direction(), view.steps))
    specular = specular * _SPECULAR_GAIN
    beams = to_beams(torch.stack([tissue.maps[0], tissue.maps[1], specular]), view.geometry, view.beam_shape)
    step = (view.geometry.radii[1] - view.geometry.radii[0]) / (view.beam_shape[-2] - 1)
    grid = view.geometry.image_grid(view.shape[-view.geometry.spatial_dims :])
    slice_step = view.steps[0] if len(view.shape) == 3 else None
    images = []
    for machine in machines:
        loss = shadow_db(beams[1], step, machine) + view.gain_loss(machine)
        intensity = backscatter(beams[0], beams[2], loss, field, view.geometry, machine, rng, slice_step)
        images.append(display(to_image(detect(intensity, machine)[None], view.geometry, grid)[0], machine))
    return images


def _film(
    phantom: Phantom,
    view: View,
    machines: Sequence[Device],
    frames: int,
    rng: np.random.Generator,
    echo_rng: np.random.Generator,
) -> tuple[list[torch.Tensor], _Tissue]:
    """A cine ``(T, H, W)`` per machine, and the moved tissue of every frame, stacked along time."""
    rest = _Tissue.of(phantom)
    motion = Motion(phantom, rng)
    field = MovingScatterers(view, machines[0], echo_rng)
    x, z, _ = (torch.from_numpy(c) for c in view.coordinates())
    x, z = torch.broadcast_tensors(x, z)
    films: list[list[torch.Tensor]] = [[] for _ in machines]
    maps, masks = [], []
    for phase in np.linspace(0, motion.cycles, frames, endpoint=False):
        from_x, from_z = motion.origin(x, z, float(phase))
        rows, columns = from_z / view.step + view.row_of_face, from_x / view.step + (view.shape[1] - 1) / 2
        grid = torch.stack([columns / (view.shape[1] - 1), rows / (view.shape[0] - 1)], -1)[None] * 2 - 1
        options = {"padding_mode": "border", "align_corners": True}
        codes = torch.stack([rest.structures, rest.target, rest.instances]).float()
        codes = F.grid_sample(codes[None], grid, mode="nearest", **options)[0].to(torch.uint8)  # type: ignore[arg-type]
        moved = _Tissue(F.grid_sample(rest.maps[None], grid, **options)[0], *codes)  # type: ignore[arg-type]
        images = _still(moved, view, machines, field.at(motion, float(phase)), echo_rng)
        for film, image in zip(films, images, strict=True):
            film.append(image)
        maps.append(moved.maps)
        masks.append(codes)
    tissue = _Tissue(torch.stack(maps, dim=1), *torch.stack(masks, dim=1))
    return [torch.stack(film) for film in films], tissue


# ---------------------------------------------------------------------------------------------------------- annotations


def _draw_annotations(label: np.ndarray, organ: str, rng: np.random.Generator) -> np.ndarray:
    """Calipers on the target, a caption and depth ticks, as gray values ``(H, W)``; 0 where nothing is drawn."""
    flat = label if label.ndim == 2 else label[0]
    height, width = flat.shape
    canvas = Image.new("L", (width, height))
    pen = ImageDraw.Draw(canvas)
    pen.fontmode = "1"
    bright = int(rng.integers(200, 256))
    rows, columns = np.nonzero(flat)
    if len(rows):
        arm = max(2, round(0.012 * max(height, width)))
        first, last = int(columns.argmin()), int(columns.argmax())
        upper, lower = int(rows.argmin()), int(rows.argmax())
        for i in (first, last, upper, lower)[: int(rng.choice([2, 4]))]:
            r, c = int(rows[i]), int(columns[i])
            pen.line([(c - arm, r), (c + arm, r)], fill=bright)
            pen.line([(c, r - arm), (c, r + arm)], fill=bright)
    words = {"breast": "BREAST", "fetal_head": "HC", "heart": "A4C"}.get(organ, organ.upper())
    caption = f"{rng.choice(['RT', 'LT', ''])} {words} {rng.integers(1, 13)}:00".strip()
    font = ImageFont.load_default(size=max(8, round(0.045 * height)))
    spot = (round(0.03 * width), round((0.03 if rng.random() < 0.4 else 0.9) * height))
    pen.text(spot, caption, fill=bright, font=font)
    for row in np.linspace(0.05, 0.95, int(rng.integers(4, 10))) * (height - 1):
        pen.line([(width - 4, round(row)), (width - 1, round(row))], fill=bright)
    return np.asarray(canvas, np.float32) / 255


# ------------------------------------------------------------------------------------------------------------ on disk


def write_synthetic_dataset(
    folder: PathLike, num_training: int, num_validation: int, num_test: int, num_workers: int = 0, **options: Any
) -> Path:
    """Write :class:`SyntheticUltrasound` as files and a Decathlon-style datalist, once.

    Images are 8-bit PNG, volumes and cines uint8 NIfTI (``.nii.gz``, axes x, y, z or x, y, t; the affine holds the
    spacing in mm). ``label``, ``structures`` and ``instances`` hold indices. Items have ``image``, ``label``,
    ``structures``, ``instances``, ``clean``, ``class``, ``organ``, ``patient`` and, where asked for, ``low`` and
    ``annotations``; each item is a patient of its own. A complete folder written with equal settings is left as it is;
    an interrupted or differing one is written anew. The datalist is written last and names itself synthetic.

    Args:
        folder: where to write; made if absent.
        num_training, num_validation, num_test: number of items of each split.
        num_workers: processes that simulate and write; 0 works in this one. The files do not depend on it.
        options: those of :class:`SyntheticUltrasound`, by name.

    Returns:
        Path of ``datalist.json``.

    Raises:
        ValueError: if the folder holds a ``datalist.json`` that is not synthetic, or for bad settings.
    """
    folder = Path(folder)
    counts = {"training": num_training, "validation": num_validation, "test": num_test}
    if min(counts.values()) < 0:
        raise ValueError(f"numbers of items must not be negative, got {counts}.")
    world = SyntheticUltrasound(sum(counts.values()), **options)
    described = ("spatial_dims", "image_size", "organs", "seed", "cine", "quality", "annotations", "healthy")
    settings = {"version": _VERSION, **counts, **{name: getattr(world, name) for name in described}}
    settings = json.loads(json.dumps(settings))  # as it is read back
    target = folder / "datalist.json"
    if target.is_file():
        try:
            known = json.loads(target.read_text(encoding="utf-8"))
        except ValueError:
            known = None
        if not isinstance(known, dict) or known.get("synthetic") is not True:
            raise ValueError(f"{target} is not a synthetic data set; choose another folder.")
        items = [item for split in counts for item in known.get(split, [])]
        complete = all((folder / item[key]).is_file() for item in items for key in _FILES if key in item)
        if known.get("settings") == settings and complete:
            return target
        target.unlink(missing_ok=True)

    names = [split for split, count in counts.items() for _ in range(count)]
    # A loader of torch gives processes, their single threads and their errors; the order stays.
    entries = list(DataLoader(_Writer(world, folder, names), batch_size=None, num_workers=num_workers))
    splits = {split: [e for e, n in zip(entries, names, strict=True) if n == split] for split in counts}
    content = {
        "name": "synthetic ultrasound",
        "description": DESCRIPTION,
        "synthetic": True,
        "settings": settings,
        "labels": {"0": "background", "1": "target"},
        "structures": dict(enumerate(STRUCTURES)),
        "classes": {organ: list(CLASS_NAMES[organ]) for organ in world.organs},
        **splits,
    }
    write_text_atomically(target, json.dumps(content, indent=1))
    return target


class _Writer(Dataset):
    """Item ``i`` is simulated and written when it is asked for; what comes back is its entry of the datalist."""

    def __init__(self, world: SyntheticUltrasound, folder: Path, splits: Sequence[str]) -> None:
        super().__init__(splits)
        self.world, self.folder = world, folder

    def __getitem__(self, index: int) -> dict[str, Any]:  # type: ignore[override]
        item, split = self.world.simulate(index), self.data[index]
        name = f"{item['organ']}_{index:05d}{'.png' if self.world.spatial_dims == 2 else '.nii.gz'}"
        entry: dict[str, Any] = {}
        for key in _FILES:
            if key in item:
                path = Path(split) / key / name
                _save(self.folder / path, item[key][0], item["spacing"], scale=key in ("image", "clean", "low"))
                entry[key] = path.as_posix()
        entry |= {"class": item["class"], "organ": item["organ"], "patient": f"synthetic-{self.world.seed}-{index:05d}"}
        return entry | {"spacing": [round(float(s), 6) for s in item["spacing"]]}


def _save(path: Path, values: torch.Tensor, spacing: torch.Tensor, scale: bool) -> None:
    array = (values * 255).round().to(torch.uint8).numpy() if scale else values.to(torch.uint8).numpy()
    with atomic_write(path) as part:
        if array.ndim == 2:
            Image.fromarray(array).save(part, format="PNG")
            return
        import nibabel

        affine = np.diag([*(float(s) for s in spacing.flip(0)), 1.0])
        volume = nibabel.Nifti1Image(np.ascontiguousarray(array.transpose(2, 1, 0)), affine)
        volume.header.set_xyzt_units("mm")
        nibabel.save(volume, part)
