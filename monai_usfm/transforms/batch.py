# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Augmentation of whole batches where they live, for pretraining at the speed of the network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.layers import Pool
from monai.utils import ensure_tuple_rep

__all__ = ["BatchAppearance", "BatchAugmentation"]


def unit_range(image: torch.Tensor) -> torch.Tensor:
    """Bytes to [0, 1]; floats stay as they are.

    Raises:
        ValueError: for other types, whose white is not known.
    """
    if image.dtype == torch.uint8:
        return image.float() / 255
    if not image.is_floating_point():
        raise ValueError(f"images must be uint8 or floats in [0, 1], got {image.dtype}; scale them first.")
    return image.float()


def item_on_device(batch: Mapping[str, Any], key: str, device: Any, non_blocking: bool, **kwargs: Any) -> torch.Tensor:
    """An item of a batch as a plain tensor, where a ``prepare_batch`` of MONAI's engines is to have it."""
    tensor = torch.as_tensor(batch[key]).as_subclass(torch.Tensor)
    return tensor.to(device=device, non_blocking=non_blocking, **kwargs)


class BatchAugmentation:
    """Random resized crop, rotation, flip and brightness of a batch in one resampling, on the device of training.

    Used as ``prepare_batch`` of a MONAI trainer: without ``label_key`` it makes the (image, target) pair of
    self-supervised learning, both the same augmented image; with it, labels that are images follow the geometry by
    nearest neighbor, and other labels (a class per image) are passed on.

    Per image, a crop of a random share and aspect ratio is resized to ``spatial_size`` after a rotation about the
    crop's center, mirrored along the last axis with probability ``flip``, and its values are raised to a random power.
    With probability ``shrink_prob`` the whole image is made smaller instead of being cropped, each axis by a factor
    of its own up to 2, and set somewhere on black: as a deeper scan or a screen with wide margins shows it.
    Draws come from PyTorch's global generator of the device. 2D and 3D: in 3D the rotation is in the plane of the last
    two axes.

    Args:
        spatial_size: size of the output.
        scale: range of the cropped share of the image's area or volume.
        ratio: range of the crop's aspect ratio (last axis by the one before), drawn log-uniformly.
        rotate: largest rotation in degrees, either way.
        flip: probability of mirroring.
        gamma: largest factor of the exponent, either way; 1 leaves values alone.
        shrink_prob: probability of shrinking instead of cropping.
        key: item of the batch that is the image.
        label_key: item of the batch that is the label: ``(B, C, *S)``, or one value or vector per image.
        continuous_label: resample the label like an image (for enhancement), instead of by nearest neighbor.

    Raises:
        ValueError: for ranges that are empty or out of bounds.
    """

    def __init__(
        self,
        spatial_size: Sequence[int],
        scale: Sequence[float] = (0.67, 1.0),
        ratio: Sequence[float] = (0.75, 1.3333),
        rotate: float = 10.0,
        flip: float = 0.5,
        gamma: float = 1.3,
        shrink_prob: float = 0.0,
        key: str = "image",
        label_key: str | None = None,
        continuous_label: bool = False,
    ) -> None:
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"scale must be an increasing pair in (0, 1], got {tuple(scale)}.")
        if not 0 < ratio[0] <= ratio[1]:
            raise ValueError(f"ratio must be an increasing pair of positive numbers, got {tuple(ratio)}.")
        if gamma < 1 or rotate < 0 or not 0 <= flip <= 1:
            raise ValueError(f"need gamma >= 1, rotate >= 0, flip in [0, 1]; got {gamma}, {rotate}, {flip}.")
        if not 0 <= shrink_prob <= 1:
            raise ValueError(f"shrink_prob must be in [0, 1], got {shrink_prob}.")
        self.spatial_size = tuple(int(n) for n in spatial_size)
        self.scale, self.ratio = tuple(scale), tuple(ratio)
        self.rotate, self.flip, self.gamma, self.key = rotate, flip, gamma, key
        self.shrink_prob = shrink_prob
        self.label_key = label_key
        self.continuous_label = continuous_label

    def __call__(
        self, batch: Mapping[str, Any], device: Any = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """``prepare_batch`` of MONAI's engines: ``(image, target)`` on ``device``."""
        image = item_on_device(batch, self.key, device, non_blocking, **kwargs)
        if self.label_key is None:
            augmented, _ = self.augment(image)
            return augmented, augmented
        label = item_on_device(batch, self.label_key, device, non_blocking, **kwargs)
        if label.dim() == image.dim():
            return self.augment(image, label)
        return self.augment(image)[0], label

    def augment(
        self, image: torch.Tensor, label: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """``(B, C, *S) -> (B, C, *spatial_size)``, float in [0, 1]; uint8 input is scaled from 0..255.

        A label ``(B, L, *S)`` keeps its dtype, and takes the background value 0 where the image was left; a continuous
        one is scaled like the image.
        """
        dims = image.dim() - 2
        size = ensure_tuple_rep(self.spatial_size, dims)
        image = unit_range(image)
        label = unit_range(label) if label is not None and self.continuous_label else label
        batch, device = image.shape[0], image.device

        def uniform(low: float, high: float) -> torch.Tensor:
            return low + (high - low) * torch.rand(batch, device=device)

        side = uniform(*self.scale) ** (1.0 / dims)
        stretch = torch.exp(0.5 * uniform(*(math.log(r) for r in self.ratio)))
        # Extents in the order of grid_sample: last axis first. A side longer than the image is cut to it.
        extent = torch.stack([side * stretch, side / stretch, *[side] * (dims - 2)], dim=1).clamp(max=1.0)
        if self.shrink_prob > 0:
            shrunk = torch.rand(batch, 1, device=device) < self.shrink_prob
            extent = torch.where(shrunk, 2 ** torch.rand(batch, dims, device=device), extent)
        center = (1 - extent) * (2 * torch.rand(batch, dims, device=device) - 1)
        angle = torch.deg2rad(uniform(-self.rotate, self.rotate))
        mirror = 1.0 - 2.0 * (torch.rand(batch, device=device) < self.flip).float()
        theta = torch.zeros(batch, dims, dims + 1, device=device)
        # Rotation in the plane of the last two axes, in pixels: the grid's units differ where the image is not square.
        aspect = image.shape[-2] / image.shape[-1]
        theta[:, 0, 0] = extent[:, 0] * angle.cos() * mirror
        theta[:, 0, 1] = -extent[:, 1] * angle.sin() * aspect
        theta[:, 1, 0] = extent[:, 0] * angle.sin() * mirror / aspect
        theta[:, 1, 1] = extent[:, 1] * angle.cos()
        for axis in range(2, dims):
            theta[:, axis, axis] = extent[:, axis]
        theta[:, :, -1] = center
        grid = F.affine_grid(theta, [batch, 1, *size], align_corners=False)
        # Half a pixel of the edge lies beyond the centers of its pixels: it repeats them, and only what is farther out
        # is black; with zero padding a crop at the edge would get a dark line there.
        inside = (grid.abs() <= 1).all(dim=-1).unsqueeze(1)
        out = inside * F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)
        if self.gamma > 1:
            limit = math.log(self.gamma)
            power = torch.exp(uniform(-limit, limit)).view(-1, *[1] * (dims + 1))
            out = out.clamp(0, 1).pow(power)
        if label is not None:
            mode = "bilinear" if self.continuous_label else "nearest"
            moved = inside * F.grid_sample(label.float(), grid, mode=mode, padding_mode="border", align_corners=False)
            if self.continuous_label and self.gamma > 1:
                moved = moved.clamp(0, 1).pow(power)
            label = moved.to(label.dtype)
        return out, label


class BatchAppearance:
    """How another machine, setting or patient would show the images of a batch, on the device of training.

    Each image gets each of the changes with probability ``prob``, all of random strength: dynamic range (up to a factor
    of 1.6) and gain (up to 0.2; both may saturate), gain along the depth (up to 0.4), dark from some depth on, one
    shadow, coarser resolution, speckle-like noise. Black stays black. Draws come from PyTorch's global generator of the
    device. Depth is the axis before the last.

    With ``style_prob`` an image of ``styled`` takes the style of a random one of ``sources``: its amplitude spectrum,
    in part, with its own phases, and then its gray values, in part, rank by rank. So simulated images look like the
    real ones of the batch, of which no label is needed. Xu et al. 2021 (amplitude mix), https://arxiv.org/abs/2105.11120.

    Args:
        prob: of each change.
        style_prob: of a style.
        style_share: largest part of the amplitudes and gray values that comes from the other image.

    Raises:
        ValueError: for a probability outside [0, 1].
    """

    def __init__(self, prob: float = 0.3, style_prob: float = 0.5, style_share: float = 0.7) -> None:
        if not 0 <= prob <= 1 or not 0 <= style_prob <= 1:
            raise ValueError(f"prob and style_prob must be in [0, 1], got {prob} and {style_prob}.")
        self.prob, self.style_prob, self.style_share = prob, style_prob, style_share

    def __call__(
        self, image: torch.Tensor, styled: torch.Tensor | None = None, sources: torch.Tensor | None = None
    ) -> torch.Tensor:
        """``(B, C, *S)`` in [0, 1] to the same; ``styled`` and ``sources`` are places in the batch."""
        if styled is not None and sources is not None and len(sources) and self.style_prob > 0:
            styled = styled[torch.rand(len(styled), device=image.device) < self.style_prob]
            if len(styled):
                drawn = sources[torch.randint(len(sources), (len(styled),), device=image.device)]
                image = image.index_copy(0, styled, self.style(image[styled], image[drawn]))
        return self.appearance(image)

    def style(self, image: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        """``image`` with part of the amplitudes and gray values of ``source``, both ``(B, C, *S)``."""
        dims = image.dim() - 2
        axes = tuple(range(2, dims + 2))
        share = self.style_share * torch.rand(2, len(image), *[1] * (dims + 1), device=image.device)
        found, wanted = torch.fft.rfftn(image, dim=axes), torch.fft.rfftn(source, dim=axes)
        mixed = torch.polar(torch.lerp(found.abs(), wanted.abs(), share[0]), found.angle())
        mixed = torch.fft.irfftn(mixed, s=image.shape[2:], dim=axes)
        ranks = mixed.flatten(1).argsort(1)
        matched = torch.empty_like(ranks, dtype=image.dtype).scatter_(1, ranks, source.flatten(1).sort(1).values)
        return torch.lerp(mixed, matched.view_as(mixed), share[1]).clamp(0, 1)

    def appearance(self, image: torch.Tensor) -> torch.Tensor:
        """The changes alone."""
        batch, dims, device = len(image), image.dim() - 2, image.device
        shape = (batch, *[1] * (dims + 1))

        def uniform(low: float, high: float) -> torch.Tensor:
            return low + (high - low) * torch.rand(shape, device=device)

        def chosen() -> torch.Tensor:
            return (torch.rand(shape, device=device) < self.prob).float()

        rows, columns = image.shape[-2:]
        depth = torch.linspace(0, 1, rows, device=device).view(rows, 1)
        across = torch.linspace(0, 1, columns, device=device)
        lit = (image / 0.02).clamp(max=1)  # so that black stays black
        factor = torch.exp(chosen() * uniform(-1, 1) * math.log(1.6))
        shift = chosen() * uniform(-0.2, 0.2)
        slope = chosen() * uniform(-0.4, 0.4)
        deep = (depth - uniform(0.35, 0.9)).clamp(min=0)
        loss = chosen() * uniform(1.0, 6.0) * deep
        # A shadow: a band that widens with depth, dark from its start on.
        width = uniform(0.02, 0.15) * (1 + depth)
        beside = ((across - uniform(0, 1)).abs() / width).square()
        below = ((depth - uniform(0.1, 0.8)) / 0.05).clamp(0, 1)
        loss = loss + chosen() * uniform(0.1, 0.8) * torch.exp(-beside) * below
        image = ((image - 0.5) * factor + 0.5 + lit * (shift + slope * (depth - 0.5)) - loss).clamp(0, 1) * lit
        coarse = (torch.rand(batch, device=device) < self.prob).nonzero().flatten()
        if len(coarse):
            scale = float(1 + 1.5 * torch.rand(1, device=device))
            mode = "bilinear" if dims == 2 else "trilinear"
            size = [max(1, round(n / scale)) for n in image.shape[2:]]
            small = F.interpolate(image[coarse], size, mode=mode, align_corners=False)
            image = image.index_copy(0, coarse, F.interpolate(small, image.shape[2:], mode=mode, align_corners=False))
        grain = torch.randn_like(image[:, :1])
        grain = Pool[Pool.AVG, dims](3, stride=1, padding=1)(grain) * 3 ** (dims / 2)
        return (image * (1 + chosen() * uniform(0, 0.25) * grain)).clamp(0, 1) * lit  # resampling spreads over black
