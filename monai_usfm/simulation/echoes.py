# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""From tissue to image: the pulse-echo chain of a simulated ultrasound machine.

The chain works in beam space, ``(axial, lateral)`` or ``(elevation, axial, lateral)``, where a machine works:

1. every beam cell holds one point scatterer, a complex Gaussian number times the root of the local echogenicity;
   the sum of the scatterers that one pulse covers is then a circular Gaussian, which is fully developed speckle
   (Wagner et al. 1983, https://doi.org/10.1109/T-SU.1983.31404);
2. smooth interfaces add a coherent, angle-dependent part; attenuation along the beam casts shadows and enhancement;
3. the field is filtered with a point-spread function whose lateral width changes with depth;
4. receiver noise grows with depth as the time-gain compensation does; looks (compounding) are averaged;
5. log compression, gray map, and scan conversion to the image.

It is a linear convolution model in the spirit of Bamber and Dickinson 1980 (https://doi.org/10.1088/0031-9155/25/3/006)
and Gao et al. 2009 (COLE, https://doi.org/10.1109/TUFFC.2009.1131): no wave equation, no multiple scattering.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from scipy.fft import next_fast_len

from monai_usfm.physics.beam import BeamGeometry
from monai_usfm.simulation.phantoms import SOFT_TISSUE_ATTENUATION

SPEED_OF_SOUND = 1.54  # mm/us
_SIGMA_PER_FWHM = 1 / 2.355


@dataclass(frozen=True)
class Device:
    """What a machine and its settings do to the echoes. Decibels are relative to the echo of soft tissue."""

    frequency: float  # at the center, MHz
    cycles: float = 1.6  # length of the pulse (FWHM) in wavelengths
    f_number: float = 2.0  # depth over aperture width, kept constant until the aperture is fully open
    aperture: float = 20.0  # full lateral width in mm
    slice_aperture: float = 8.0  # the one in elevation
    focus: float = 0.5  # depth of the transmit focus as a fraction of the imaged depth
    looks: int = 1  # compounded, 1 to 4
    line_step: int = 1  # 1 if every beam is sent, 2 if every other beam is interpolated, and so on
    dynamic_range: float = 60.0  # decibels between black and white
    level: float = 0.5  # the gray (0 to 1) of soft tissue
    gamma: float = 1.0  # exponent of the gray map
    smoothing: float = 0.0  # 0 to 1, strength of the machine's speckle reduction
    tgc_error: float = 0.0  # relative error of the machine's assumed attenuation
    noise: float = -30.0  # of the receiver at the far end of the beams, dB
    clutter: float = -40.0  # level of the side lobes, dB
    haze: float = -40.0  # clutter of the near field, dB
    falloff: float = 0.0  # decibels that are missing at the far end (gain sliders, poor contact); negative adds
    shading: float = 0.0  # standard deviation in dB of the slow changes of gain over the image (contact, TGC sliders)

    @property
    def wavelength(self) -> float:
        return SPEED_OF_SOUND / self.frequency

    def degraded(self) -> Device:
        """The same machine at its worst: lower frequency, fewer lines, more noise and clutter, smaller range."""
        return replace(
            self,
            frequency=0.55 * self.frequency,
            cycles=1.15 * self.cycles,
            f_number=1.15 * self.f_number,
            looks=1,
            line_step=2 * self.line_step,
            dynamic_range=self.dynamic_range - 14.0,
            smoothing=0.0,
            noise=self.noise + 12.0,
            clutter=self.clutter + 8.0,
            haze=self.haze + 8.0,
        )


def draw_device(kind: str, rng: np.random.Generator) -> Device:
    """A random machine for ``kind`` of probe: ``"linear"``, ``"convex"`` or ``"phased"``."""
    u = rng.uniform
    dynamic_range = u(42.0, 78.0)
    headroom = {"linear": u(18.0, 36.0), "convex": u(17.0, 33.0), "phased": u(18.0, 30.0)}[
        kind
    ]  # dB from black to tissue
    frequency = {"linear": u(5.5, 14.0), "convex": u(2.8, 5.0), "phased": u(2.0, 3.5)}[kind]
    return Device(
        frequency=frequency,
        cycles=u(1.1, 2.0),
        f_number={"linear": u(2.0, 6.0), "convex": u(2.2, 4.5), "phased": u(3.0, 4.0)}[kind],
        aperture={"linear": u(7.0, 16.0), "convex": u(14.0, 28.0), "phased": u(17.0, 22.0)}[kind],
        slice_aperture={"linear": u(5.0, 8.0), "convex": u(11.0, 15.0), "phased": u(12.0, 16.0)}[kind],
        focus=u(0.35, 0.7),
        looks=int(rng.choice([1, 2, 4], p=[0.4, 0.35, 0.25])),
        dynamic_range=dynamic_range,
        level=min(headroom / dynamic_range, 0.62),
        gamma=u(0.8, 1.5),
        smoothing=u(0.0, 0.5),
        tgc_error=u(-0.1, 0.1),
        noise=u(-36.0, -14.0),
        clutter=u(-46.0, -30.0),
        haze=u(-44.0, -22.0) if kind != "phased" else u(-30.0, -18.0),
        falloff=float(rng.triangular(-6.0, 0.0, 18.0)),
        shading=u(0.5, 4.0),
    )


# ---------------------------------------------------------------------------------------------------- scan conversion


def to_beams(maps: torch.Tensor, geometry: BeamGeometry, beam_shape: Sequence[int]) -> torch.Tensor:
    """Resample tissue maps ``(C, *S)`` along the beams, ``(C, *beam_shape)``; a 2D geometry serves every slice."""
    dims = geometry.spatial_dims
    return to_image(maps, geometry, geometry.beam_grid(maps.shape[-dims:], beam_shape[-dims:]))


def to_image(values: torch.Tensor, geometry: BeamGeometry, grid: torch.Tensor) -> torch.Tensor:
    """Scan conversion ``(C, *beam_shape) -> (C, *S)``; ``grid`` is ``geometry.image_grid(S)``."""
    stack = values.dim() - 1 > geometry.spatial_dims
    source = values.transpose(0, 1) if stack else values[None]
    out = F.grid_sample(source, grid.expand(len(source), *grid.shape[1:]), padding_mode="border", align_corners=True)
    return out.transpose(0, 1) if stack else out[0]


# --------------------------------------------------------------------------------------------------------- the echoes


def scatterers(beam_shape: Sequence[int], rng: np.random.Generator) -> torch.Tensor:
    """One unit-power complex Gaussian scatterer per beam cell, ``complex64`` of ``beam_shape``."""
    pair = rng.standard_normal((*beam_shape, 2), dtype=np.float32) * np.float32(math.sqrt(0.5))
    return torch.view_as_complex(torch.from_numpy(pair))


def specular_strength(
    impedance: np.ndarray, direction: Sequence[np.ndarray | None], steps: Sequence[float]
) -> np.ndarray:
    """Amplitude of mirror-like echoes: change of impedance along the beam, times the cube of the cosine of incidence.

    ``direction`` is the unit vector of the beam at each pixel, an array per axis of ``impedance``, ``None`` for zeros.
    ``steps`` are mm per pixel along each axis; the change is that from column to column.
    """
    along = np.zeros_like(impedance)
    square = np.full_like(impedance, 1e-12)
    for axis, component in enumerate(direction):
        if impedance.shape[axis] < 2:
            continue
        slope = np.gradient(impedance, axis=axis) * np.float32(steps[-1] / steps[axis])
        square += slope * slope
        if component is not None:
            along += slope * component
    along = np.abs(along)
    return along * (along / np.sqrt(square)) ** 3.0


def shadow_db(attenuation: torch.Tensor, step: float, device: Device) -> torch.Tensor:
    """Two-way loss in dB along each beam, after the machine has compensated for average soft tissue.

    ``attenuation`` is in dB/cm/MHz in beam space, axial axis second last, with ``step`` mm between axial samples.
    """
    assumed = SOFT_TISSUE_ATTENUATION * (1 + device.tgc_error)
    # A pulse is shifted to lower frequencies as it is attenuated, so that loss grows slower than in proportion.
    effective = min(device.frequency, 6.0 + 0.35 * max(device.frequency - 6.0, 0.0))
    loss = torch.cumsum(attenuation - assumed, dim=-2) * (2 * effective * step / 10)
    return torch.where(loss < 0, 14 * torch.tanh(loss / 14), loss).clamp(max=55.0)


def _transfer(count: int, sigma: torch.Tensor) -> torch.Tensor:
    """Fourier transform of a Gaussian of ``sigma`` samples (any shape): ``(*sigma.shape, count)``."""
    frequency = torch.fft.fftfreq(count)
    return torch.exp(-2 * (math.pi * frequency * sigma[..., None]) ** 2)


def _with_side_lobes(main: torch.Tensor, sigma: torch.Tensor, level: float) -> torch.Tensor:
    """Add a skirt, eight times as wide and ``level`` dB below in power, and scale the whole to unit noise power."""
    skirt = _transfer(main.shape[-1], 8 * sigma)
    ratio = 10 ** (level / 20) * (main.square().mean(-1) / skirt.square().mean(-1)).sqrt()
    both = main + ratio[..., None] * skirt
    return both / both.square().mean(-1, keepdim=True).sqrt()


def beam_widths(
    geometry: BeamGeometry, beam_shape: Sequence[int], device: Device, slice_step: float | None, depth: torch.Tensor
) -> tuple[float, torch.Tensor, torch.Tensor | None]:
    """Standard deviation of the pulse in samples: axial (a number), lateral and elevational (one per depth)."""
    step = (geometry.radii[1] - geometry.radii[0]) / (beam_shape[-2] - 1)
    axial = max(device.cycles * device.wavelength / 2 * _SIGMA_PER_FWHM * math.sqrt(2) / step, 0.75)

    def width(aperture: float, f_number: float) -> torch.Tensor:  # mm; diffraction widened away from the focus
        number = torch.clamp(depth / aperture, min=f_number)
        focus = device.focus * float(depth[-1])
        blur = ((depth - focus) / (2.5 * focus + 1e-6)) ** 2
        return 1.02 * device.wavelength * number * torch.sqrt(1 + blur) * _SIGMA_PER_FWHM * math.sqrt(2)

    if geometry.kind == "linear":
        pitch = torch.full_like(depth, (geometry.width[1] - geometry.width[0]) / (beam_shape[-1] - 1))  # type: ignore[index]
    else:
        angles = geometry.angles[1] if geometry.spatial_dims == 3 else geometry.angles
        pitch = (geometry.radii[0] + depth) * (angles[1] - angles[0]) / (beam_shape[-1] - 1)
    pitch = pitch.clamp(min=1e-3)
    lateral = (width(device.aperture, device.f_number) / pitch).clamp(0.8, beam_shape[-1] / 6)
    if len(beam_shape) == 2:
        return axial, lateral, None
    if geometry.spatial_dims == 3:
        first, last = geometry.angles[0]
        slice_pitch = ((geometry.radii[0] + depth) * (last - first) / (beam_shape[0] - 1)).clamp(min=1e-3)
    else:
        slice_pitch = torch.full_like(depth, float(slice_step or 1.0))
    elevation = (width(device.slice_aperture, 3.0) / slice_pitch).clamp(0.6, beam_shape[0] / 6)
    return axial, lateral, elevation


def _extended(field: torch.Tensor, extents: Sequence[int]) -> torch.Tensor:
    """Continue ``field`` to ``extents``: mirrored at both ends (of a periodic axis), silent along the axial axis."""
    for axis, extent in zip(range(-field.dim(), 0), extents, strict=True):
        count = field.shape[axis]
        margin = extent - count
        if margin == 0:
            continue
        if axis == -2:
            silence = field.new_zeros([*field.shape[:-2], margin, field.shape[-1]])
            parts = [field, silence]
        else:
            after, before = (margin + 1) // 2, margin // 2
            far, near = field.narrow(axis, count - after, after), field.narrow(axis, 0, before)
            parts = [field, far.flip(axis), near.flip(axis)]
        field = torch.cat(parts, dim=axis)
    return field


def backscatter(
    echo: torch.Tensor,
    specular: torch.Tensor,
    loss: torch.Tensor,
    field: torch.Tensor,
    geometry: BeamGeometry,
    device: Device,
    rng: np.random.Generator,
    slice_step: float | None = None,
) -> torch.Tensor:
    """Mean echo intensity over the looks, in beam space, 1 where soft tissue is insonified without loss.

    Args:
        echo, specular, loss: echogenicity in dB, amplitude of interfaces, loss in dB, all of the beam shape.
        field: :func:`scatterers`.
        geometry, device: where the beams lie, and the machine.
        rng: draws the receiver noise.
        slice_step: mm between the slices of a stack of 2D frames.
    """
    shape = echo.shape
    reach = geometry.radii[1] - geometry.radii[0]
    depth = torch.linspace(0, reach, shape[-2])
    axial, lateral, elevation = beam_widths(geometry, shape, device, slice_step, depth)

    haze = 10 ** (device.haze / 10) * torch.exp(-depth / (0.25 * reach))[:, None] * 4
    amplitude = torch.sqrt(10 ** (echo / 10) + haze) * 10 ** (-loss / 20)
    # the lateral sum over one pulse makes a coherent line brighter than its samples: undo what the scaling of H adds
    coherent = specular * 10 ** (-loss / 20) / lateral.sqrt()[:, None]
    if elevation is not None:
        coherent = coherent / elevation.sqrt()[:, None]
    gain = SOFT_TISSUE_ATTENUATION * 2 * min(device.frequency, 6.0) / 10  # dB per mm of depth
    noise_db = (device.noise - gain * (reach - depth)).clamp(min=-90)
    noise = 10 ** (noise_db / 20)[:, None]

    # The Fourier transforms are periodic: mirror a margin of tissue beside the beams, and leave silence below them.
    weighted, coherent = field * amplitude, coherent.to(field.dtype)
    extents = []
    for axis, sigma in zip(range(-len(shape), 0), (elevation, None, lateral)[-len(shape) :], strict=True):
        count = shape[axis]
        margin = math.ceil(4 * axial if sigma is None else min(3 * float(sigma.max()), 0.25 * count))
        extents.append(next_fast_len(count + margin))
    weighted, coherent = _extended(weighted, extents), _extended(coherent, extents)
    rows, columns = extents[-2:]
    lateral_padded = torch.cat([lateral, lateral[-1:].expand(rows - shape[-2])])
    across = _with_side_lobes(_transfer(columns, lateral_padded), lateral_padded, device.clutter)
    along = _transfer(rows, torch.tensor(axial))
    along = along / along.square().mean().sqrt()
    if elevation is not None:
        elevation_padded = torch.cat([elevation, elevation[-1:].expand(rows - shape[-2])])
        slices = _transfer(extents[0], elevation_padded)
        slices = (slices / slices.square().mean(-1, keepdim=True).sqrt()).T[:, :, None]  # (E, A, 1)
    noise = F.pad(noise, (0, 0, 0, rows - shape[-2]))

    intensity = torch.zeros(shape)
    checker = [torch.tensor([1.0, -1.0]).repeat(n // 2 + 1)[:n] for n in extents[-2:]]
    keep = tuple(slice(n) for n in shape)
    for look in range(device.looks):
        # Turning the phase of every other sample moves the pass band by half the sampling rate: another part of the
        # same scatterers' spectrum, hence a nearly independent look, as frequency and angle compounding take it.
        echoes = weighted
        if look % 2:
            echoes = echoes * checker[1]
        if look // 2:
            echoes = echoes * checker[0][:, None]
        echoes = echoes + coherent
        if elevation is not None:
            echoes = torch.fft.ifft(torch.fft.fft(echoes, dim=0) * slices, dim=0)[: shape[0]]
        echoes = torch.fft.ifft(torch.fft.fft(echoes) * across)[..., : shape[-1]]
        echoes = echoes + scatterers(echoes.shape, rng) * noise
        echoes = torch.fft.ifft(torch.fft.fft(echoes, dim=-2) * along[:, None], dim=-2)[keep]
        intensity += torch.view_as_real(echoes).square().sum(-1)
    return intensity / device.looks


def detect(intensity: torch.Tensor, device: Device) -> torch.Tensor:
    """Decibels of the detected signal, after the machine's line interpolation and speckle reduction."""
    level = 10 * torch.log10(intensity + 1e-9)
    stacked = level.reshape(-1, 1, *level.shape[-2:])
    if device.line_step > 1:
        sent = stacked[..., :: device.line_step]
        rows, width = stacked.shape[-2:]
        reached = (sent.shape[-1] - 1) * device.line_step + 1  # every line sent keeps its place
        between = F.interpolate(sent, size=(rows, reached), mode="bilinear", align_corners=True)
        stacked = F.pad(between, (0, width - reached, 0, 0), mode="replicate")
    if device.smoothing > 0:
        mean = F.avg_pool2d(F.pad(stacked, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        stacked = stacked + device.smoothing * (mean - stacked)
    return stacked.reshape(level.shape)


def display(level: torch.Tensor, device: Device) -> torch.Tensor:
    """Gray value in [0, 1] of ``level`` in dB."""
    return (device.level + level / device.dynamic_range).clamp(0, 1) ** device.gamma
