# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Where the simulated probe stands, and how the tissue before it moves."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from monai_usfm.physics.beam import BeamGeometry
from monai_usfm.simulation.echoes import Device, scatterers
from monai_usfm.simulation.organs import ORGANS
from monai_usfm.simulation.phantoms import Phantom


class View:
    """Where the probe stands: kind of probe, depth, pixel size, beam geometry."""

    def __init__(self, organ: str, image_size: Sequence[int], volume: bool, rng: np.random.Generator) -> None:
        height, width = image_size[-2:]
        self.kind = str(rng.choice(ORGANS[organ].probes))
        reach = float(rng.uniform(*ORGANS[organ].depth))
        slices = image_size[0] if volume else 0
        if self.kind == "linear":
            half = float(rng.uniform(17, 27))
            radius, top, bottom, widest = 0.0, 0.0, reach, half
            choices = (reach / height, 2 * half / width)
        else:
            radius = float(rng.uniform(40, 62)) if self.kind == "convex" else 1.0
            opening = float(rng.uniform(0.48, 0.66) if self.kind == "convex" else rng.uniform(0.62, 0.78))
            top, bottom = radius * (math.cos(opening) - 1), reach
            widest = (radius + reach) * math.sin(opening)
            choices = ((bottom - top) / height * 1.02, 2 * widest / width * 1.02)
        # Between the image that the beams fill (and overflow) and the one that shows all of them.
        draw = float(rng.uniform(0, 1))
        share = {"linear": draw**2, "convex": draw, "phased": 0.5 + 0.5 * draw}[self.kind]
        step = float(min(choices) + share * (max(choices) - min(choices)))
        if not volume:  # people zoom, and crop the near field of a curved probe away
            step *= float(rng.choice([1.0, rng.uniform(0.65, 1.0)], p=[0.5, 0.5]))
        row_of_face = float(max((height * step - (bottom - top)) * rng.uniform(0, 0.5), 0.0) - top) / step
        if not volume and self.kind == "convex" and rng.random() < 0.35:
            row_of_face = -float(rng.uniform(0.0, 0.16)) * reach / step
        middle = (width - 1) / 2
        self.row_of_face, self.step = row_of_face, step
        self.steps: tuple[float, ...] = (step, step)
        face = (row_of_face - radius / step, middle)
        if self.kind == "linear":
            width_of_face = (-half, half)
            self.geometry = BeamGeometry("linear", face, (0.0, reach), width=width_of_face, spacing=(step, step))
        elif volume and (self.kind == "phased" or rng.random() < 0.6):
            tilt = float(rng.uniform(0.3, 0.5) if self.kind == "convex" else rng.uniform(0.5, 0.7))
            slice_step = 2.02 * (radius + reach) * math.sin(tilt) / slices
            self.steps = (slice_step, step, step)
            self.geometry = BeamGeometry(
                "sector3d",
                ((slices - 1) / 2, *face),
                (radius, radius + reach),
                ((-tilt, tilt), (-opening, opening)),
                spacing=self.steps,
            )
        else:
            self.geometry = BeamGeometry(
                self.kind, face, (radius, radius + reach), (-opening, opening), spacing=(step, step)
            )
        if volume and len(self.steps) == 2:  # a sweep of parallel frames
            extent = 40.0 if self.kind == "linear" else 110.0
            self.steps = (float(rng.uniform(0.6, 1.0)) * extent / slices, step, step)
        self.shape = (slices, height, width) if volume else (height, width)
        self.radius, self.half = radius, widest
        self.gain_lattice = rng.standard_normal((4, 6)).astype(np.float32)  # slow changes of gain: depth x lateral
        # A rib, gas or an edge without contact takes away the beams on one side.
        self.dropout = (0.0, 0.0, 0.0)
        if rng.random() < (0.15 if self.kind == "linear" else 0.35):
            self.dropout = (rng.choice((-1.0, 1.0)), rng.uniform(0.05, 0.22), rng.uniform(5, 20))
        self.depth = min(reach, (height - 1 - row_of_face) * step)
        natural = self.geometry.natural_beam_shape()
        lines = [max(24, round(0.85 * n)) for n in natural]
        axial = max(32, natural[-2])
        # Matrix and swept probes have few slices, and the far field would ask for more beams than the image can show.
        self.beam_shape: tuple[int, ...] = (axial, lines[-1])
        if volume:
            self.beam_shape = (min(lines[0], slices) if len(natural) == 3 else slices, axial, min(lines[-1], width))

    def coordinates(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Lateral, depth and elevation position of every pixel in mm, broadcastable to the image."""
        height, width = self.shape[-2:]
        z = (np.arange(height, dtype=np.float32) - np.float32(self.row_of_face)) * np.float32(self.step)
        x = (np.arange(width, dtype=np.float32) - np.float32((width - 1) / 2)) * np.float32(self.step)
        if len(self.shape) == 2:
            return x[None, :], z[:, None], np.zeros((1, 1), np.float32)
        slices = self.shape[0]
        y = (np.arange(slices, dtype=np.float32) - np.float32((slices - 1) / 2)) * np.float32(self.steps[0])
        return x[None, None, :], z[None, :, None], y[:, None, None]

    def gain_loss(self, device: Device) -> torch.Tensor:
        """Loss of gain in dB ``(axial, lateral)``: with depth, by uneven contact, and by a dropout at one side."""
        size = self.beam_shape[-2:]
        lattice = torch.from_numpy(self.gain_lattice)[None, None]
        loss = device.shading * F.interpolate(lattice, size=size, mode="bicubic", align_corners=True)[0, 0]
        loss = loss + device.falloff * torch.linspace(0, 1, size[0])[:, None] ** 1.5
        side, share, strength = self.dropout
        across = torch.linspace(-side, side, size[1])  # 1 at the border that lost contact
        return loss + strength * torch.sigmoid((across - (1 - 2 * share)) * 14)

    def half_width(self, z: float) -> float:
        """Half-width in mm that both the beams and the image show at depth ``z``."""
        if self.kind == "linear":
            beams = self.half
        else:
            angles = self.geometry.angles[1] if self.geometry.spatial_dims == 3 else self.geometry.angles
            beams = (z + self.radius) * math.tan(angles[1])
        return min(beams, (self.shape[-1] - 1) / 2 * self.step)

    def empty_phantom(self, rng: np.random.Generator) -> Phantom:
        x, z, y = self.coordinates()
        return Phantom(x, z, y, self.shape, self.steps, self.depth, self.half_width, rng)

    def beam_direction(self) -> list[np.ndarray | None]:
        """Unit vector of the beam at each pixel, one component per image axis."""
        x, z, y = self.coordinates()
        if self.kind == "linear":
            along: list[np.ndarray | None] = [np.ones((1,) * len(self.shape), np.float32), None]
        else:
            swing = y if self.geometry.spatial_dims == 3 else np.zeros_like(y)
            length = np.sqrt(x * x + (z + self.radius) ** 2 + swing * swing) + np.float32(1e-6)
            along = [(z + self.radius) / length, x / length]
            if self.geometry.spatial_dims == 3:
                return [swing / length, *along]
        return [None, *along] if len(self.shape) == 3 else along


class Motion:
    """A smooth periodic displacement of the tissue that starts at rest: breathing or pressure, and a heartbeat."""

    def __init__(self, phantom: Phantom, rng: np.random.Generator) -> None:
        shallow = phantom.depth < 60
        self.cycles = float(rng.uniform(0.8, 1.5))
        self.swing = (
            float(rng.uniform(-1, 1)) * (1.0 if shallow else 5.0),
            float(rng.uniform(0.5, 1)) * (0.9 if shallow else 3.0),
        )
        self.depth, self.beat = phantom.depth, phantom.beat
        if self.beat is not None:
            self.swing = (0.3 * self.swing[0], 0.3 * self.swing[1])

    def shift(self, x: torch.Tensor, z: torch.Tensor, phase: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Displacement in mm of the material points that rest at ``(x, z)``."""
        wave = math.sin(2 * math.pi * phase)
        ramp = (z / self.depth).clamp(0, 1)  # the probe holds the skin
        dx, dz = self.swing[0] * wave * ramp, self.swing[1] * wave * ramp
        if self.beat is not None:
            (center_x, center_z), radius, strength = self.beat
            squeeze = strength * math.sin(math.pi * phase) ** 2
            near = torch.exp(-((torch.hypot(x - center_x, (z - center_z) * 0.75) / (1.5 * radius)) ** 4))
            dx = dx - squeeze * near * (x - center_x)
            dz = dz - 0.6 * squeeze * near * (z - center_z)
        return dx, dz

    def origin(self, x: torch.Tensor, z: torch.Tensor, phase: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Where the material that is now at ``(x, z)`` rests: the inverse of :meth:`shift` by fixed-point iteration."""
        from_x, from_z = x, z
        for _ in range(5):
            dx, dz = self.shift(from_x, from_z, phase)
            from_x, from_z = x - dx, z - dz
        return from_x, from_z


class MovingScatterers:
    """Point scatterers that ride with the tissue: moved, put into their beam cell, phase turned by their path."""

    def __init__(self, view: View, device: Device, rng: np.random.Generator) -> None:
        self.view, self.wavelength = view, device.wavelength
        shape = view.beam_shape
        self.amplitude = scatterers(shape, rng).reshape(-1)
        index = torch.stack(torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij"), -1).reshape(-1, 2)
        jitter = torch.from_numpy(rng.uniform(-0.5, 0.5, (len(index), 2)).astype(np.float32))
        self.scale = torch.tensor([n - 1 for n in shape], dtype=torch.float32)
        self.position = view.geometry.beam_to_pixel((index + jitter) / self.scale)  # rows, columns at rest

    def at(self, motion: Motion, phase: float) -> torch.Tensor:
        """Field of unit mean power on the beam grid, complex64 ``beam_shape``."""
        view, shape = self.view, self.view.beam_shape
        middle = (view.shape[1] - 1) / 2
        x, z = (self.position[:, 1] - middle) * view.step, (self.position[:, 0] - view.row_of_face) * view.step
        dx, dz = motion.shift(x, z, phase)
        moved = torch.stack([(z + dz) / view.step + view.row_of_face, (x + dx) / view.step + middle], -1)
        beam = view.geometry.pixel_to_beam(moved)
        reach = view.geometry.radii[1] - view.geometry.radii[0]
        path = (beam[:, 0] - view.geometry.pixel_to_beam(self.position)[:, 0]) * reach
        turned = self.amplitude * torch.polar(torch.ones_like(path), -4 * math.pi / self.wavelength * path)
        cell = (beam * self.scale).round().long()
        # What leaves on one side enters on the other, as unseen tissue would.
        flat = (cell[:, 0] % shape[0]) * shape[1] + cell[:, 1] % shape[1]
        field = torch.zeros(shape[0] * shape[1], dtype=torch.complex64)
        return field.index_add_(0, flat, turned).reshape(shape)
