# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""How fast the transforms are next to what one would use instead: ``python benchmarks/transforms.py [GROUP ...]``.

All candidates of a group take turns in one process, on one thread, timed by CPU time (``--clock wall`` for a GPU or an
idle machine). A ratio is taken within each round and the table shows the median over the rounds with its quartiles, so
that a change of the machine's speed between rounds cancels. Peers that are not installed are skipped by name.

To add a transform, write a function that takes an image ``(C, *S)`` and returns ``{name: callable}``, ours first, and
decorate it with ``@group``; or add a row to ``effects``, which compares each transform with its own peers and with a
pair of Fourier transforms.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import platform
import statistics
import subprocess
import time
from collections.abc import Callable

import numpy as np
import torch
from monai.transforms import (
    ForegroundMask,
    GibbsNoise,
    KSpaceSpikeNoise,
    RandAdjustContrast,
    RandAffine,
    RandBiasField,
    RandCoarseDropout,
    RandGaussianNoise,
    RandGaussianSmooth,
    RandRicianNoise,
    RandScaleIntensity,
)
from spread import spread

import monai_usfm.transforms as ours
from monai_usfm.networks.blocks.token_mask import TokenMask
from monai_usfm.transforms import (
    BeamGeometry,
    RandFourierBandStop,
    RandSpeckleNoise,
    SpeckleNoise,
    apply_band_stop,
    random_ring_masks,
)

Candidates = dict[str, Callable[[], object]]

SHAPES = {"2D 224": (1, 224, 224), "2D 224, 3 channels": (3, 224, 224), "3D 128": (1, 128, 128, 128)}
GROUPS: dict[str, tuple[tuple[str, ...], Callable[[torch.Tensor], Candidates]]] = {}


def group(*shapes: str) -> Callable[[Callable[[torch.Tensor], Candidates]], Callable[[torch.Tensor], Candidates]]:
    """Register a function under its name, to be run on images of these shapes."""

    def register(function: Callable[[torch.Tensor], Candidates]) -> Callable[[torch.Tensor], Candidates]:
        GROUPS[function.__name__] = (shapes, function)
        return function

    return register


def installed(package: str) -> bool:
    if importlib.util.find_spec(package) is None:
        print(f"skipped: {package} (not installed)")
        return False
    return True


@group("2D 224", "3D 128")
def speckle(image: torch.Tensor) -> Candidates:
    """Speckle on a log-compressed image; peers add or multiply some other noise."""
    array, dims = image.numpy(), image.ndim - 1
    independent = RandSpeckleNoise(prob=1.0, looks=(1.0, 1.0), psf_sigma=None)
    any_looks = RandSpeckleNoise(prob=1.0, looks=(3.0, 5.0), psf_sigma=None)
    correlated, wide = SpeckleNoise(psf_sigma=1.0), SpeckleNoise(psf_sigma=2.5)
    anew, linear = SpeckleNoise(mode="respeckle"), SpeckleNoise(psf_sigma=None, dynamic_range_db=None)
    rows: Candidates = {
        "ours, independent samples": lambda: independent(image),
        "ours, independent, 3 to 5 looks": lambda: any_looks(image),
        "ours, independent, linear envelope": lambda: linear(image),
        "ours, PSF of 1 sample": lambda: correlated(image),
        "ours, PSF of 2.5 samples": lambda: wide(image),
        'ours, "respeckle"': lambda: anew(image),
    }
    gaussian, rician = RandGaussianNoise(prob=1.0, std=0.1), RandRicianNoise(prob=1.0, std=0.1)
    state = np.random.RandomState(0)
    rows |= {
        "MONAI RandGaussianNoise": lambda: gaussian(image),
        "MONAI RandRicianNoise": lambda: rician(image),
        "NumPy, Rayleigh in decibels": lambda: np.clip(
            array + 20 / 60 * np.log10(state.rayleigh(0.5**0.5, array.shape)).astype(np.float32), 0, 1
        ),
        "NumPy, complex noise and Gaussian filter": lambda: numpy_correlated(array, state),
        "torch, rand and log": lambda: image.add(torch.rand_like(image).log_().neg_().log10_(), alpha=1 / 6).clamp_(
            0, 1
        ),
        "multiply alone": lambda: image * image,
    }
    if dims == 2 and installed("albumentations"):
        import albumentations

        noise = albumentations.MultiplicativeNoise((0.5, 1.5), elementwise=True, p=1.0)
        pixels = np.ascontiguousarray(array[0])
        rows["albumentations MultiplicativeNoise"] = lambda: noise(image=pixels)["image"]
    if installed("torchio"):
        import torchio

        added, volume = torchio.RandomNoise(std=(0.1, 0.1)), image if dims == 3 else image[..., None]
        rows["torchio RandomNoise"] = lambda: added(volume)
    return rows


def numpy_correlated(array: np.ndarray, state: np.random.RandomState) -> np.ndarray:
    """What a paper's supplement would do."""
    from scipy.ndimage import gaussian_filter

    real, imag = (
        gaussian_filter(state.randn(*array.shape).astype(np.float32), (0, *[1.0] * (array.ndim - 1))) for _ in "ri"
    )
    intensity = real**2 + imag**2
    return np.clip(array + 10 / 60 * np.log10(intensity / intensity.mean()), 0, 1)


@group("2D 224", "2D 224, 3 channels", "3D 128")
def band_stop(image: torch.Tensor) -> Candidates:
    """Random rings of the spectrum removed; peers disturb the spectrum in some other way."""
    array, dims = image.numpy(), image.ndim - 1
    axes = tuple(range(1, image.ndim))
    rings = RandFourierBandStop(prob=1.0)
    generator = torch.Generator().manual_seed(0)
    batch = image[None]

    def on_device() -> torch.Tensor:
        return apply_band_stop(batch, random_ring_masks(1, image.shape[1:], generator=generator))

    rows: Candidates = {
        "ours": lambda: rings(image),
        "ours, batch functions": on_device,
        "rfft and irfft alone": lambda: torch.fft.irfftn(torch.fft.rfftn(image, dim=axes), s=image.shape[1:], dim=axes),
    }
    if image.shape[0] > 1:
        gray = image[:1].expand_as(image)
        rows["ours, gray expanded to the channels"] = lambda: rings(gray)
    gibbs = GibbsNoise(alpha=0.5)
    spike = KSpaceSpikeNoise(loc=(0, *[10] * dims), k_intensity=13.0)
    radius = np.sqrt(
        sum(np.square(axis) for axis in np.ogrid[tuple(slice(-1, 1, size * 1j) for size in array.shape[1:])])
    )
    keep = ~((radius > 0.3) & (radius <= 0.6))
    rows |= {
        "MONAI GibbsNoise": lambda: gibbs(image),
        "MONAI KSpaceSpikeNoise": lambda: spike(image),
        "NumPy, fftn and fftshift": lambda: (
            np.fft.ifftn(
                np.fft.ifftshift(np.fft.fftshift(np.fft.fftn(array, axes=axes), axes=axes) * keep, axes=axes), axes=axes
            ).real
        ),
        "torch, fftn, fftshift and abs": lambda: textbook(image, torch.from_numpy(keep), axes),
    }
    if installed("torchio"):
        import torchio

        spikes, ghosts = torchio.RandomSpike(), torchio.RandomGhosting()
        volume = image if dims == 3 else image[..., None]
        rows["torchio RandomSpike"] = lambda: spikes(volume)
        rows["torchio RandomGhosting"] = lambda: ghosts(volume)
    return rows


def textbook(image: torch.Tensor, keep: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    """As masked-frequency pretraining codes do it: the whole complex spectrum, shifted there and back."""
    spectrum = torch.fft.fftshift(torch.fft.fftn(image, dim=axes), dim=axes) * keep
    return torch.fft.ifftn(torch.fft.ifftshift(spectrum, dim=axes), dim=axes).abs()


FOURIER = "rfft and irfft"


def sector(shape: tuple[int, ...]) -> tuple[torch.Tensor, BeamGeometry]:
    """A convex scan of speckled tissue on black with a line of bright annotations, and its beams."""
    side = shape[-1]
    geometry = BeamGeometry("convex", (-0.25 * side, (side - 1) / 2), (0.3 * side, 1.15 * side), (-0.45, 0.45))
    speckle = ours.speckle_intensity(shape, psf_sigma=1.0, generator=torch.Generator().manual_seed(0))
    tissue = ours.add_speckle(torch.full(shape, 0.6), speckle)
    image = torch.where(geometry.mask(shape[-2:]).expand(1, *shape[1:]), tissue, 0.0)
    image[..., 2:8, 4:40:4] = 1.0
    return image, geometry


def effects(shape: tuple[int, ...]) -> dict[str, tuple[Callable[[], object], dict[str, Callable[[], object]]]]:
    """Every other transform, with what a user would take instead. All images share one known geometry."""
    image, beam = sector(shape)
    dims, size, array = len(shape) - 1, shape[1:], image.numpy()
    pixels = np.ascontiguousarray(array[0])
    fov, batch = ours.FieldOfView()(image), image[None]
    state = np.random.RandomState(0)
    always = {"prob": 1.0}
    monai: dict[str, Callable[[torch.Tensor], object]] = {
        "RandScaleIntensity": RandScaleIntensity(factors=0.4, **always),
        "RandBiasField": RandBiasField(**always),
        "RandAdjustContrast": RandAdjustContrast(**always),
        "RandCoarseDropout": RandCoarseDropout(holes=1, spatial_size=size[-1] // 4, **always),
        "RandRicianNoise": RandRicianNoise(std=0.1, **always),
        "RandAffine": RandAffine(rotate_range=0.3, scale_range=0.1, padding_mode="zeros", **always),
        "RandGaussianSmooth": RandGaussianSmooth(**always),
        "ForegroundMask": ForegroundMask(threshold="otsu"),
    }

    def peers(*names: str) -> dict[str, Callable[[], object]]:
        return {f"MONAI {name}": lambda name=name: monai[name](image) for name in names}

    def effect(name: str) -> Callable[[], object]:
        transform = getattr(ours, name)(prob=1.0)
        return lambda: transform(image, fov=fov, geometry=beam)

    def sliders() -> np.ndarray:
        gain = np.interp(np.arange(size[-2]), np.linspace(0, size[-2] - 1, 8), state.uniform(-6, 6, 8)) / 60
        return np.clip(array + gain[:, None].astype(np.float32), 0, 1)

    to_beams = ours.ToBeamSpace()
    from_beams, beams = ours.FromBeamSpace(size[-2:]), ours.ToBeamSpace()(image, beam)
    fit = ours.FitBeam(fallback="linear")
    find, clean = ours.FieldOfView(), ours.RemoveAnnotations()
    recovery, augmentation = ours.NoiseRecovery(), ours.BatchAugmentation(size)
    rows: dict[str, tuple[Callable[[], object], dict[str, Callable[[], object]]]] = {
        "RandGain": (effect("RandGain"), peers("RandScaleIntensity")),
        "RandDepthAttenuation": (effect("RandDepthAttenuation"), peers("RandBiasField")),
        "RandTimeGain": (effect("RandTimeGain"), {"NumPy, columns only": sliders}),
        "RandDynamicRange": (effect("RandDynamicRange"), peers("RandAdjustContrast")),
        "RandAcousticShadow": (effect("RandAcousticShadow"), peers("RandCoarseDropout")),
        "RandReverberation": (effect("RandReverberation"), {}),
        "RandHaze": (effect("RandHaze"), peers("RandRicianNoise")),
        "ToBeamSpace": (lambda: to_beams(image, beam), {}),
        "FromBeamSpace": (lambda: from_beams(beams, beam), {}),
        "FitBeam": (lambda: fit(image), {}),
        "FieldOfView": (lambda: find(image), peers("ForegroundMask")),
        "RemoveAnnotations": (lambda: clean(image), {}),
        "NoiseRecovery": (lambda: recovery.degrade(batch), peers("RandGaussianSmooth")),
        "BatchAugmentation": (lambda: augmentation.augment(batch), peers("RandAffine")),
    }
    tokens = int(np.prod([n // 16 for n in size]))
    for kind in ("uniform", "block", "tube", "texture"):
        mask = TokenMask(kind, unit=2)
        rows[f"TokenMask {kind}"] = (
            lambda mask=mask: mask.draw(batch, (16,) * dims),
            {"torch.rand": lambda: torch.rand(1, tokens)},
        )
    if dims == 2 and installed("cv2"):
        import cv2

        bytes_ = (pixels * 255).astype(np.uint8)
        annotations = np.zeros_like(bytes_)
        annotations[2:8, 4:40] = 1
        polar = (size, (size[1] / 2, -0.25 * size[0]), 1.15 * size[0])
        rows["ToBeamSpace"][1]["OpenCV warpPolar, full circle"] = lambda: cv2.warpPolar(pixels, *polar, 0)
        rows["FromBeamSpace"][1]["OpenCV warpPolar, full circle"] = lambda: cv2.warpPolar(
            pixels, *polar, cv2.WARP_INVERSE_MAP
        )
        rows["RemoveAnnotations"][1]["OpenCV inpaint, given mask"] = lambda: cv2.inpaint(
            bytes_, annotations, 3, cv2.INPAINT_TELEA
        )
    if dims == 3:  # frame by frame: so many times as long as in 2D
        del rows["RemoveAnnotations"]
    if installed("torchio"):
        import torchio

        volume = image if dims == 3 else image[..., None]
        ghosting, bias = torchio.RandomGhosting(), torchio.RandomBiasField()
        rows["RandReverberation"][1]["torchio RandomGhosting"] = lambda: ghosting(volume)
        rows["RandDepthAttenuation"][1]["torchio RandomBiasField"] = lambda: bias(volume)
    if dims == 2 and installed("albumentations"):
        import albumentations

        dropped = albumentations.CoarseDropout(p=1.0)
        rows["RandAcousticShadow"][1]["albumentations CoarseDropout"] = lambda: dropped(image=pixels)
    return rows


def effects_table(shape: tuple[int, ...], rounds: int, clock: Callable[[], float]) -> str:
    """Markdown: each transform in ms and in pairs of Fourier transforms, and its peers in multiples of its time."""
    rows = effects(shape)
    image, axes = sector(shape)[0], tuple(range(1, len(shape)))
    calls = {FOURIER: lambda: torch.fft.irfftn(torch.fft.rfftn(image, dim=axes), s=shape[1:], dim=axes)}
    calls |= {name: call for name, (call, _) in rows.items()}
    calls |= {f"{name}: {peer}": call for name, (_, others) in rows.items() for peer, call in others.items()}
    times = measure(calls, rounds, clock)

    def ratio(name: str, reference: str) -> str:
        return f"{statistics.median(a / b for a, b in zip(times[name], times[reference], strict=True)):.2g}"

    lines = ["| transform | ms | in FFT pairs | peer, time over ours |", "| --- | ---: | ---: | --- |"]
    for name, (_, others) in rows.items():
        if name in times:
            peers = ", ".join(f"{p} {ratio(f'{name}: {p}', name)}" for p in others if f"{name}: {p}" in times)
            lines.append(f"| {name} | {1000 * statistics.median(times[name]):.3g} | {ratio(name, FOURIER)} | {peers} |")
    return "\n".join(lines)


def measure(candidates: Candidates, rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds per call of every candidate in every round; a candidate that raises is dropped with its message."""
    repeats: dict[str, int] = {}
    for name, call in candidates.items():
        try:
            begin = time.perf_counter()
            for _ in range(50):  # caches, plans, lazy imports; tables for every drawn parameter
                call()
                if time.perf_counter() - begin > 1.0:
                    break
            start = clock()
            call()
            repeats[name] = max(1, min(50, int(0.02 / max(clock() - start, 1e-6))))
        except Exception as error:  # a peer that fails on this input is a result, too
            print(f"skipped: {name} ({type(error).__name__}: {str(error).splitlines()[0]})")
    times: dict[str, list[float]] = {name: [] for name in repeats}
    for _ in range(rounds):
        for name, count in repeats.items():
            start = clock()
            for _ in range(count):
                candidates[name]()
            times[name].append((clock() - start) / count)
    return times


def table(times: dict[str, list[float]]) -> str:
    """Markdown: time of each candidate, and how many times as long as ours it takes (median and quartiles)."""
    lines = ["| candidate | ms | time over ours |", "| --- | ---: | ---: |"]
    ours = next(iter(times.values()))
    for name, values in times.items():
        ratios = [value / reference for value, reference in zip(values, ours, strict=True)]
        lines.append(f"| {name} | {1000 * statistics.median(values):.3g} | {spread(ratios)} |")
    return "\n".join(lines)


def conditions(threads: int) -> str:
    packages = ("torch", "monai", "numpy", "albumentations", "torchio")
    found = [p for p in packages if importlib.util.find_spec(p)]
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in found)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    return (
        f"{platform.processor() or platform.machine()}, {threads} thread(s), commit {commit.strip() or '?'}, {versions}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", help=f"which to run, all by default: {', '.join(GROUPS)}, effects")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--shapes", nargs="*", help=f"which shapes, all by default: {', '.join(SHAPES)}")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("cpu", "wall"), default="cpu")
    arguments = parser.parse_args()
    if unknown := set(arguments.groups) - {*GROUPS, "effects"}:
        parser.error(f"unknown group {sorted(unknown)}; choose from {', '.join(GROUPS)}, effects")
    torch.set_num_threads(arguments.threads)
    clock = time.process_time if arguments.clock == "cpu" else time.perf_counter
    print(conditions(arguments.threads))
    for name in arguments.groups or [*GROUPS, "effects"]:
        if name == "effects":
            for shape in arguments.shapes or ("2D 224", "3D 128"):
                print(f"\n### effects, {shape}\n{effects.__doc__}\n")
                print(effects_table(SHAPES[shape], arguments.rounds, clock), flush=True)
            continue
        shapes, build = GROUPS[name]
        for shape in shapes:
            if arguments.shapes and shape not in arguments.shapes:
                continue
            image = torch.rand(SHAPES[shape], generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
            print(f"\n### {name}, {shape}\n{build.__doc__}\n")
            print(table(measure(build(image), arguments.rounds, clock)), flush=True)


if __name__ == "__main__":
    main()
