# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Organ-balanced sampling that can be resumed: what an epoch draws depends on its number alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence

import torch
from torch.utils.data import Sampler

__all__ = ["OrganBalancedSampler", "WeightedSampler", "organ_balanced_weights"]


def organ_balanced_weights(organs: Sequence[str], temperature: float = 1.0) -> torch.Tensor:
    """Probability of each image such that rare organs are drawn more often.

    An image of an organ with ``n`` images gets a weight in proportion to ``n ** -temperature``. So 1 gives every organ
    the same share, 0 every image, and values between trade one for the other.

    Returns:
        ``(len(organs),)``, float64, sum 1.

    Raises:
        ValueError: when there are no images, an organ is missing (``None`` or empty), or the temperature is negative.
    """
    if len(organs) == 0:
        raise ValueError("there are no images to weight.")
    missing = [index for index, organ in enumerate(organs) if organ is None or organ == ""]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(organs)} images have no organ (the first is number {missing[0]}); "
            "give every item of the datalist an 'organ'."
        )
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"temperature must be 0 or more, got {temperature}.")
    counts = Counter(organs)
    largest = max(counts.values())  # relative to it, so that no power overflows
    weights = torch.tensor([(counts[organ] / largest) ** -temperature for organ in organs], dtype=torch.float64)
    return weights / weights.sum()


class WeightedSampler(Sampler[int]):
    """Draw ``num_samples`` items per epoch with replacement, repeatably, on one or many processes.

    Epoch ``e`` of a sampler is one draw from a generator seeded with ``(seed, e)``. It is the same in every process and
    whatever was drawn before, so a run resumed at epoch ``e`` sees what an uninterrupted one saw; process ``r`` of
    ``R`` takes entries ``r``, ``r + R``, ... of it. Call :meth:`set_epoch` before each epoch.

    Args:
        weights: of each item, not negative, with a positive sum.
        num_samples: length of an epoch over all processes, rounded up to a multiple of ``num_replicas``; by default the
            number of items.
        seed: of the draw.
        rank: number of this process; by default that of ``torch.distributed`` where it runs, else 0.
        num_replicas: number of processes, likewise.

    Raises:
        ValueError: for other weights, or when ``num_samples`` or ``rank`` is out of range.
    """

    together = 1  # entries that stay side by side

    def __init__(
        self,
        weights: torch.Tensor,
        num_samples: int | None = None,
        seed: int = 0,
        rank: int | None = None,
        num_replicas: int | None = None,
    ) -> None:
        self.weights = torch.as_tensor(weights)
        if self.weights.numel() == 0 or not bool((self.weights >= 0).all()) or not 0 < self.weights.sum() < math.inf:
            raise ValueError("weights must be finite and not negative, with a positive sum.")
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        here = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if distributed else (0, 1)
        self.rank = here[0] if rank is None else rank
        self.num_replicas = here[1] if num_replicas is None else num_replicas
        wanted = len(weights) if num_samples is None else num_samples
        if wanted < 1:
            raise ValueError(f"num_samples must be at least 1, got {wanted}.")
        if not 0 <= self.rank < self.num_replicas:
            raise ValueError(f"rank must be in [0, {self.num_replicas}), got {self.rank}.")
        self.num_samples = self.together * math.ceil(wanted / self.together / self.num_replicas)
        self.seed = seed
        self.epoch = 0
        self.skip = 0  # entries that the next iteration leaves out: those of a resumed epoch that were seen

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration draws."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Samples per epoch of this process."""
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        first, self.skip = self.skip, 0
        # multiplying by a large odd number keeps neighboring seeds and epochs apart in the generator's seed space
        generator = torch.Generator().manual_seed((self.seed * 0x9E3779B97F4A7C15 + self.epoch) % 2**63)
        drawn = self._draw(self.num_samples * self.num_replicas, generator)
        drawn = drawn.view(-1, self.together)[self.rank :: self.num_replicas]
        return iter(drawn.flatten().tolist()[first:])

    def _draw(self, number: int, generator: torch.Generator) -> torch.Tensor:
        """Indices of the whole epoch, ``(number,)``."""
        return torch.multinomial(self.weights, number, replacement=True, generator=generator)


class OrganBalancedSampler(WeightedSampler):
    """A :class:`WeightedSampler` that is organ-balanced.

    Within the draw each organ's images are taken in shuffled rounds: none comes twice before all have come once.

    With ``sequences`` the draw is of pairs: each image is followed by another one of its sequence, drawn at random, or
    by itself where there is none.

    Args:
        organs: organ of each image.
        temperature: see :func:`organ_balanced_weights`.
        num_samples, seed, rank, num_replicas: see :class:`WeightedSampler`.
        sequences: sequence of each image, for pairs, see :class:`~monai_usfm.networks.FramePairs`; ``num_samples`` is
            then rounded up to whole pairs.

    Raises:
        ValueError: see :func:`organ_balanced_weights` and :class:`WeightedSampler`, or when not every image has its
            sequence.
    """

    def __init__(
        self,
        organs: Sequence[str],
        temperature: float = 1.0,
        num_samples: int | None = None,
        seed: int = 0,
        rank: int | None = None,
        num_replicas: int | None = None,
        sequences: Sequence[Hashable] | None = None,
    ) -> None:
        self.others = None if sequences is None else _others(sequences, len(organs))
        self.together = 1 if sequences is None else 2
        super().__init__(organ_balanced_weights(organs, temperature), num_samples, seed, rank, num_replicas)
        number = {organ: index for index, organ in enumerate(sorted(set(organs), key=str))}
        of_organ = torch.tensor([number[organ] for organ in organs])
        self._members = [torch.nonzero(of_organ == index).flatten() for index in range(len(number))]
        self._shares = torch.stack([self.weights[members].sum() for members in self._members])

    def _draw(self, number: int, generator: torch.Generator) -> torch.Tensor:
        total = number // self.together
        organ = torch.multinomial(self._shares, total, replacement=True, generator=generator)
        drawn = torch.empty(total, dtype=torch.long)
        for number, members in enumerate(self._members):
            places = torch.nonzero(organ == number).flatten()
            rounds = [
                members[torch.randperm(len(members), generator=generator)]
                for _ in range(math.ceil(len(places) / len(members)))
            ]
            if rounds:
                drawn[places] = torch.cat(rounds)[: len(places)]
        if self.others is None:
            return drawn
        chance = torch.rand(total, generator=generator)
        partner = []
        for index, u in zip(drawn.tolist(), chance.tolist(), strict=True):
            frames, place = self.others[index]
            partner.append(frames[(place + 1 + int(u * (len(frames) - 1))) % len(frames)])
        return torch.stack([drawn, torch.tensor(partner)], dim=1).flatten()


def _others(sequences: Sequence[Hashable], number: int) -> list[tuple[list[int], int]]:
    """For each image all images of its sequence, and which of them it is."""
    if len(sequences) != number:
        raise ValueError(f"{len(sequences)} sequences for {number} images: give one for each.")
    members: dict[Hashable, list[int]] = {}
    found = []
    for index, sequence in enumerate(sequences):
        frames = members.setdefault(sequence, [])
        found.append((frames, len(frames)))
        frames.append(index)
    return found
