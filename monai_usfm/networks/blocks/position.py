# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Positions of tokens: sine-cosine tables, BEiT's relative position bias and the resizing of both, and rotations."""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from scipy.interpolate import make_interp_spline

__all__ = [
    "RelativePositionBias",
    "RotaryPositions",
    "TokenPositions",
    "resize_position_table",
    "resize_relative_table",
    "sincos_position_table",
]


def sincos_position_table(grid: Sequence[int], hidden_size: int) -> torch.Tensor:
    """Fixed sine-cosine codes ``(prod(grid), hidden_size)``, row-major.

    In 2D this is the table of the MAE reference: the first half codes the column, the second the row, each as sines
    then cosines of ``position / 10000 ** (k / K)``. In 3D the axes are coded in the same way, last axis first; what is
    left where ``hidden_size`` is not divisible by ``2 * len(grid)`` is zero.
    He et al. 2022, https://arxiv.org/abs/2111.06377.
    """
    per_axis = hidden_size // (2 * len(grid))
    frequency = 10000.0 ** (-torch.arange(per_axis, dtype=torch.float64) / per_axis)
    coordinates = torch.meshgrid(*[torch.arange(n, dtype=torch.float64) for n in grid], indexing="ij")
    parts = []
    for coordinate in reversed(coordinates):
        angle = coordinate.reshape(-1, 1) * frequency
        parts += [angle.sin(), angle.cos()]
    table = torch.cat(parts, dim=1)
    return F.pad(table, (0, hidden_size - table.shape[1])).float()


def resize_position_table(table: torch.Tensor, source: list[int], target: list[int]) -> torch.Tensor:
    """Resample row-major codes ``(1, prod(source), E)`` to ``(1, prod(target), E)``.

    Bicubic without corner alignment, one axis after the other: equal to MAE's resizing in 2D, and defined in 3D too.
    """
    width = table.shape[-1]
    codes = table.reshape(source + [width]).movedim(-1, 0)  # (E, *source)
    for axis in range(len(source)):
        if source[axis] != target[axis]:
            moved = codes.movedim(axis + 1, 1)
            shape = moved.shape
            lines = moved.reshape(1, width, source[axis], -1)
            lines = F.interpolate(
                lines.float(), size=[target[axis], lines.shape[-1]], mode="bicubic", align_corners=False
            ).to(table.dtype)
            codes = lines.reshape([width, target[axis]] + list(shape[2:])).movedim(1, axis + 1)
    return codes.movedim(0, -1).reshape(1, -1, width)


def _geometric_coordinates(source: int, target: int) -> list[float]:
    """Where BEiT places the ``source`` relative offsets on the axis of the ``target`` ones.

    Near offsets keep their distance, far ones are stretched in geometric progression. Bisection bounds and step are
    those of the published code, so that resized tables agree with it up to its transposition.
    """
    left, right, ratio = 1.01, 1.5, 1.5
    half = source // 2
    while right - left > 1e-6:
        ratio = (left + right) / 2.0
        reach = (1.0 - ratio**half) / (1.0 - ratio)
        if reach > float(target // 2):
            right = ratio
        else:
            left = ratio
    coordinates = [0.0]
    step = 1.0
    for _ in range(half):
        coordinates.append(coordinates[-1] + step)
        coordinates.insert(0, coordinates[0] - step)
        step = step * ratio
    return coordinates


def _spline_matrix(knots: list[float], reach: int) -> torch.Tensor:
    """Matrix ``(2 * reach + 1, len(knots))``: values at ``knots`` -> their not-a-knot cubic spline at -reach .. reach.

    The end pieces are continued beyond the knots, so the result is finite everywhere. Fewer than four knots give the
    polynomial through all of them.
    """
    spline = make_interp_spline(knots, np.eye(len(knots)), k=min(3, len(knots) - 1))
    return torch.from_numpy(spline(np.arange(-reach, reach + 1)))


def resize_relative_table(table: torch.Tensor, source: list[int], target: list[int]) -> torch.Tensor:
    """Resize BEiT bias tables ``(..., prod(2 * source - 1) + 3, heads)`` to another token grid.

    Offsets are interpolated by a cubic spline over geometrically growing distances, axis by axis; the last three rows
    (class token to patch, patch to class token, class token to itself) are kept. Unlike the resizing published with
    USFM, rows stay rows and columns stay columns, and the spline is continued at the border, so that no size gives
    NaN. The map is linear in the table: gradients pass.
    """
    heads = table.shape[-1]
    lead = list(table.shape[:-2])
    offsets = table[..., :-3, :]
    values = offsets.reshape(lead + [2 * n - 1 for n in source] + [heads])
    for axis in range(len(source)):
        if source[axis] != target[axis]:
            rows, wanted = 2 * source[axis] - 1, 2 * target[axis] - 1
            if rows == 1:
                matrix = torch.ones(wanted, 1, dtype=torch.float64)
            else:
                matrix = _spline_matrix(_geometric_coordinates(rows, wanted), wanted // 2)
            matrix = matrix.to(dtype=table.dtype, device=table.device)
            place = len(lead) + axis
            with torch.autocast(table.device.type, enabled=False):  # the rounding of each axis would add up
                values = torch.matmul(values.movedim(place, -1), matrix.transpose(0, 1)).movedim(-1, place)
    return torch.cat([values.reshape(lead + [-1, heads]), table[..., -3:, :]], dim=-2)


def _relative_index(grid: list[int], tokens: torch.Tensor) -> torch.Tensor:
    """Rows of the bias table for query and key: tokens ``(..., K) -> (..., K + 1, K + 1)``, class token first."""
    index = torch.zeros_like(tokens.unsqueeze(-1) - tokens.unsqueeze(-2))
    rest, stride = tokens, 1
    for axis in range(len(grid) - 1, -1, -1):
        size = grid[axis]
        place = rest % size
        rest = torch.div(rest, size, rounding_mode="floor")
        index = index + (place.unsqueeze(-1) - place.unsqueeze(-2) + size - 1) * stride
        stride = stride * (2 * size - 1)
    # `stride` is now the number of patch-to-patch rows; three more follow.
    to_class = torch.full_like(index[..., :1], stride + 1)
    first = torch.full_like(index[..., :1, :], stride)
    corner = torch.full_like(index[..., :1, :1], stride + 2)
    return torch.cat([torch.cat([corner, first], -1), torch.cat([to_class, index], -1)], -2)


class _GridPositions(nn.Module):
    """Positions over a token grid, which checkpoints keep beside them: a table alone does not tell its grid.

    Loading a table of another grid, of images of another size, resizes it as a forward pass on such images does.
    """

    def __init__(self, grid: Sequence[int]) -> None:
        super().__init__()
        self.grid = [int(n) for n in grid]
        self.register_buffer("native_grid", torch.tensor(self.grid))

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        # Files that say nothing about the grid load as before; the shape of the table is checked anyway.
        grid = state_dict.setdefault(prefix + "native_grid", torch.tensor(self.grid)).tolist()
        if grid != self.grid:  # tables of 7 x 14 and 14 x 7 tokens have one shape
            if len(grid) != len(self.grid):
                errors = args[-1]
                errors.append(
                    f"{prefix}native_grid: the weights are for a grid of {grid} tokens, the network has {self.grid}; "
                    "use load_pretrained, which inflates."
                )
                return
            for name in (prefix + own for own, _ in self.named_parameters()):
                # what was put together from two networks of different grids (MONAI's copy_model_state) has one's own
                if name in state_dict and state_dict[name].shape[-2] == self._rows(grid):
                    state_dict[name] = self._resized(state_dict[name].double(), grid, self.grid)
            state_dict[prefix + "native_grid"] = torch.tensor(self.grid)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _rows(self, grid: list[int]) -> int:
        raise NotImplementedError

    def _resized(self, table: torch.Tensor, source: list[int], target: list[int]) -> torch.Tensor:
        raise NotImplementedError


class RelativePositionBias(_GridPositions):
    """BEiT's learned bias on attention logits, by the offset between query and key.

    Bao et al. 2022, https://arxiv.org/abs/2106.08254; in USFM one table serves all blocks, in others (``num_tables``)
    each has its own. A grid other than the native one gets a resized table.
    """

    def __init__(self, grid: Sequence[int], num_heads: int, num_tables: int = 1) -> None:
        super().__init__(grid)
        self.num_heads = num_heads
        self.num_tables = num_tables
        rows = self._rows(self.grid)
        shape = (rows, num_heads) if num_tables == 1 else (num_tables, rows, num_heads)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(shape))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def _rows(self, grid: list[int]) -> int:
        return math.prod(2 * n - 1 for n in grid) + 3

    def _resized(self, table: torch.Tensor, source: list[int], target: list[int]) -> torch.Tensor:
        return resize_relative_table(table, source, target)

    def forward(self, grid: list[int], keep: torch.Tensor | None = None) -> torch.Tensor:
        """Bias ``(tables, 1 or B, heads, 1 + K, 1 + K)`` for a token grid, or for the tokens ``keep`` (B, K) of it."""
        table: torch.Tensor = self.relative_position_bias_table
        tokens = keep
        if tokens is None:
            count = 1
            for n in grid:
                count *= n
            tokens = torch.arange(count, device=table.device).unsqueeze(0)
        if table.dim() == 2:
            table = table.unsqueeze(0)
        if grid != self.grid:
            if torch.jit.is_scripting():
                raise ValueError("in TorchScript relative positions take images of the native img_size alone.")
            else:  # not compiled
                table = resize_relative_table(table, self.grid, grid)
        index = _relative_index(grid, tokens)
        # One lookup serves every table and head: (rows, tables * heads) -> (B, Q, K, tables, heads).
        flat = table.transpose(0, 1).reshape(table.shape[1], -1)
        bias = torch.index_select(flat, 0, index.reshape(-1))
        bias = bias.reshape(list(index.shape) + [self.num_tables, self.num_heads])
        return bias.permute(3, 0, 4, 1, 2).contiguous()


class TokenPositions(_GridPositions):
    """Absolute position codes with a row for the class token, resized to any grid: learned, or sines and cosines."""

    def __init__(self, grid: Sequence[int], hidden_size: int, learnable: bool) -> None:
        super().__init__(grid)
        table = torch.cat([torch.zeros(1, hidden_size), sincos_position_table(self.grid, hidden_size)]).unsqueeze(0)
        if learnable:
            nn.init.trunc_normal_(table, std=0.02)
        # A parameter in both cases, as in published files; a frozen one follows `to` and checkpoints too.
        self.table = nn.Parameter(table, requires_grad=learnable)

    def forward(self, grid: list[int]) -> torch.Tensor:
        """Codes ``(1, 1 + prod(grid), E)``."""
        return self.table if grid == self.grid else self._resized(self.table, self.grid, grid)

    def _rows(self, grid: list[int]) -> int:
        return math.prod(grid) + 1

    def _resized(self, table: torch.Tensor, source: list[int], target: list[int]) -> torch.Tensor:
        return torch.cat([table[:, :1], resize_position_table(table[:, 1:], source, target)], dim=1)


class RotaryPositions(_GridPositions):
    """Rotations of queries and keys by the place of their token, as in DINOv3 (RoPE).

    A place is that of the center of the patch, from -1 to 1 across the image, so that every grid has its own rotations.
    It turns pairs of channels by ``2 pi place / 100 ** (k / K)``: the first half of the pairs by the row, the second by
    the column. In volumes the slice turns them too, with the same frequencies in reverse order, so that a volume of
    one slice is an image. Class token and registers are not turned.
    Su et al. 2021, https://arxiv.org/abs/2104.09864; Siméoni et al. 2025, https://arxiv.org/abs/2508.10104.

    Args:
        grid: native token grid.
        head_dim: channels of a head ``d``.

    Raises:
        ValueError: for a ``head_dim`` that is no multiple of four.
    """

    frequencies: torch.Tensor

    def __init__(self, grid: Sequence[int], head_dim: int) -> None:
        super().__init__(grid)
        if head_dim % 4 != 0:
            raise ValueError(f"rotary positions turn channels in fours; a head has {head_dim} of them.")
        falling = 1 / rotary_periods(head_dim)
        rest = torch.zeros_like(falling)
        plane = [torch.cat([falling, rest]), torch.cat([rest, falling])]
        slices = [falling.flip(0).repeat(2)] * (len(grid) - 2)
        self.register_buffer("frequencies", torch.stack(slices + plane), persistent=False)

    def forward(self, grid: list[int], keep: torch.Tensor | None, unturned: int) -> torch.Tensor:
        """Cosines and sines ``(2, 1 or B, 1, unturned + K, d)`` of a token grid, or of the tokens ``keep`` (B, K)."""
        axes = [(2 * torch.arange(n, device=self.frequencies.device) + 1) / n - 1 for n in grid]
        places = torch.stack(torch.meshgrid(axes, indexing="ij"), dim=-1).reshape(-1, len(grid), 1)
        angles = (2 * math.pi * places * self.frequencies).sum(1).repeat(1, 2)  # a product of matrices would be in bf16
        angles = angles.unsqueeze(0) if keep is None else angles[keep]
        angles = F.pad(angles, [0, 0, unturned, 0])
        return torch.stack([angles.cos(), angles.sin()]).unsqueeze(2)


def rotary_periods(head_dim: int) -> torch.Tensor:
    """Periods (head_dim / 4,) of DINOv3, in half widths of the image."""
    quarter = head_dim // 4
    return 100 ** (torch.arange(quarter) / quarter)
