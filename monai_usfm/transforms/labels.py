# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Label images as class indices, whatever values a file uses for its classes."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from monai.transforms import Transform
from monai.utils import convert_to_tensor
from monai.utils.misc import ImageMetaKey
from scipy import ndimage

from monai_usfm.transforms.dictionary import TORCH, DictionaryForm, WarnsOnce, dictionary_form

__all__ = ["LabelIndices", "LabelIndicesd", "is_jpeg_label", "label_value"]


def is_jpeg_label(label: torch.Tensor) -> bool:
    """Whether a label map was read from a JPEG, whose compression spreads the value of each class."""
    return _file_name(label).lower().endswith((".jpg", ".jpeg"))


def label_value(value: int | Sequence[int]) -> int:
    """The value of a class in a label map; a color ``[R, G, B]`` has the one that :func:`color_values` gives it.

    Raises:
        ValueError: for what is neither a whole number nor such a color.
    """
    if isinstance(value, Sequence) and len(value) == 3 and all(part in range(256) for part in value):
        return int(color_values(np.array(value)))
    if isinstance(value, Sequence) or not float(value).is_integer():
        raise ValueError(f"{value} is neither a whole number nor a color such as [0, 255, 0].")
    return int(value)


def color_values(colors: np.ndarray) -> np.ndarray:
    """One number for each color ``(3, ...)`` of 8 bits: of a gray one its value, up to 255, of others 0xRRGGBB."""
    red, green, blue = colors.astype(np.int64)
    # pure blue is below 256: it takes the places that gray ones have left
    mixed = np.where((red == 0) & (green == 0), blue * 0x010101, (red << 16) | (green << 8) | blue)
    return np.where((red == green) & (green == blue), red, mixed)


def _named(values: Sequence[float]) -> str:
    """Values as the user would give them, beside those that may stand for one the color."""
    return ", ".join(f"{v:g}" if v < 256 or v % 1 else f"{v:.0f} (as a color {_color(int(v))})" for v in values)


def _color(value: int) -> list[int]:
    bands = list((value & 0xFFFFFF).to_bytes(3, "big"))
    return [0, 0, bands[2]] if len(set(bands)) == 1 else bands


def _file_name(label: torch.Tensor) -> str:
    return str(getattr(label, "meta", {}).get(ImageMetaKey.FILENAME_OR_OBJ, ""))


class LabelIndices(WarnsOnce, Transform):
    """Map the values of a label image to class indices 0 .. K - 1, and refuse any other value.

    Values within a thousandth of an integer are that integer, as resampling and scaled NIfTI leave them.

    JPEG does not keep values: such a label (by the file name in its metadata) takes the nearest class, if the classes
    are at least 32 gray levels apart and nine pixels of ten lie within a quarter of that distance of one. A mask of
    zeros and ones alone is taken as it is. A mask of two classes with few values between, in steep slopes, as resizing
    leaves them, takes the nearest class too. The first such file gives a warning.

    Labels drawn as closed lines, as HC18 has them, stand for what the lines enclose, and are filled, slice by slice:
    lines of at most six pixels around at least as many as they have. The first such file gives a warning, and so does
    each later one whose line is not closed, as of a structure that the border of the image cuts.

    A file with other values than background of which no pixel is left for a class gives a warning. So do ``values``
    without 0, the first of which may be a structure that is then taken for the background.

    Args:
        num_classes: K, background included.
        values: file value of each class, in the order of the classes; of a colored file ``[R, G, B]``. None takes class
            indices as they are, and, for two classes, 0/255 masks too.
        fill_outlines: false leaves closed lines as they are: where a thin wall is the structure.

    Raises:
        ValueError: for more than 256 classes, when ``values`` are not K different numbers, or a label has a value that
            is no class, or is a JPEG that does not tell its classes apart.
    """

    backend = TORCH

    def __init__(
        self, num_classes: int, values: Sequence[int | Sequence[int]] | None = None, fill_outlines: bool = True
    ) -> None:
        try:
            whole = [label_value(v) for v in values or ()]
            if values is not None and not len(values) == len(set(whole)) == num_classes:
                raise ValueError("two are equal, or their number is another one.")
        except ValueError as error:
            raise ValueError(
                f"label_values must be {num_classes} different whole numbers or colors, one per class, got "
                f"{list(values or ())}: {error}"
            ) from None
        if num_classes > 256:
            raise ValueError(f"num_classes must be at most 256, since labels are kept as bytes, got {num_classes}.")
        if values is not None and 0 not in whole:
            warnings.warn(
                f"label_values {list(values)}: {values[0]} is taken for the background. If it is a structure, and the "
                "files have no background, put 0 first, and count one class more in num_classes.",
                stacklevel=2,
            )
        self.num_classes = num_classes
        self.values = None if values is None else whole
        self.fill_outlines = fill_outlines

    def __call__(self, label: torch.Tensor) -> torch.Tensor:
        """``(1, *S) -> (1, *S)`` uint8 class indices."""
        label = convert_to_tensor(label, track_meta=True)
        if label.is_floating_point():
            whole = label.round()
            label = torch.where((label - whole).abs() <= 1e-3, whole, label)
        values, stored = self.values, label
        if is_jpeg_label(label):
            bits = self.num_classes == 2 and values is None and bool((label <= 1).all())
            values = (
                [0, 1] if bits else values or ([0, 255] if self.num_classes == 2 else list(range(self.num_classes)))
            )
            label = label if bits else self._nearest(label, values)
        found = label.unique().tolist()
        if self.num_classes == 2 and len(found) > 4 and found[-1] <= 255:
            try:
                label = self._nearest(label, values or [0, 255], resized=True)
                found = label.unique().tolist()
            except ValueError:  # they are no slopes: told below, as what stands for no class
                pass
            else:
                self._warn(
                    "slopes",
                    f"{_file_name(stored) or 'a label'}: has values between those of its classes, as resizing leaves "
                    "them; each takes the nearest, in other files too.",
                )
        if values is None:
            binary_mask = self.num_classes == 2 and 255 in found and set(found) <= {0, 255}
            values = [0, 255] if binary_mask else list(range(self.num_classes))
        unknown = sorted(set(found) - set(values))
        if unknown:
            name = _file_name(label) or "a label"
            raise ValueError(
                f"{name}: value(s) {_named(unknown[:8])} stand for no class; expected [{_named(values)}]. "
                "Set num_classes, and label_values to the file values of the classes in their order; to score or go on "
                "from weights, choose some that have these classes."
            )
        index = torch.zeros_like(label, dtype=torch.uint8)
        for number, value in enumerate(values):
            index[label == value] = number
        if self.fill_outlines:
            self._fill(index, [number for number, value in enumerate(values) if number and value in found], stored)
        if not index.any() and bool((stored != values[0]).any()):
            warnings.warn(
                f"{_file_name(stored) or 'a label'}: has values up to {float(stored.max()):g}, but no pixel of a class "
                "other than background; set label_values to the file values of the classes.",
                stacklevel=2,
            )
        return index

    def _fill(self, index: torch.Tensor, present: list[int], stored: torch.Tensor) -> None:
        classes = index.as_subclass(torch.Tensor)[0].cpu().numpy()  # type: ignore[arg-type]
        masks = {number: classes == number for number in present}
        areas = {number: area for number, mask in masks.items() if (area := filled_outlines(mask)) is not None}
        for number, area in sorted(areas.items(), key=lambda pair: -pair[1].sum()):  # one within another lies on it
            index[0][torch.from_numpy(area)] = number
        name, closed = _file_name(stored) or "a label", [n for n in areas if areas[n].sum() > masks[n].sum()]
        if closed:
            self._warn(
                "outlines",
                f"{name}: has closed lines around a structure; they are filled, in other files too. Where a thin wall "
                "is the structure, set fill_outlines to false.",
            )
        elif areas and "outlines" in self._warned:
            self._warn(
                name, f"{name}: its line is not closed, or covers more than it encloses, and stays a line; fill it."
            )

    def _nearest(self, label: torch.Tensor, values: list[int], resized: bool = False) -> torch.Tensor:
        """The nearest class of each pixel of a JPEG, or of a mask that was resized as an image is."""
        levels = torch.tensor(sorted(values), dtype=torch.float32, device=label.device)
        step = float(levels.diff().min())
        off = step / (8 if resized else 4)  # for an edge that overshoots, or what compression leaves
        middles = (levels[1:] + levels[:-1]) / 2
        nearest = levels[torch.bucketize(label.float(), middles)]
        if not (nearest != values[0]).any() and (label != values[0]).any():
            near = 0.0  # nothing reaches a class: another scale, such as 0 and 1, which JPEG does not keep
        else:
            near = float(((label - nearest).abs() <= off).float().mean())
        if step < 32 or near < 0.9:
            raise ValueError(
                f"{_file_name(label)}: JPEG does not keep the values of a label map, and this one does not tell the "
                f"classes {values} apart; store it as PNG, or set label_values to values at least 32 apart."
            )
        _refuse_plateaus(label, nearest, step, off, values, resized)
        return nearest.to(label.dtype)


def filled_outlines(mask: np.ndarray) -> np.ndarray | None:
    """A mask ``([D,] H, W)`` of thin lines with what they enclose in each slice; None where it is of areas.

    Closed lines enclose at least as much as they have; others are given back as they are.
    """
    places = np.nonzero(mask)
    box = tuple(slice(int(axis.min()), int(axis.max()) + 1) for axis in places)
    inside = mask[box]
    if inside.size < 2 * len(places[0]):  # as nearly all masks are: told without looking for holes
        return None
    slices, square = inside.reshape(-1, *inside.shape[-2:]), np.ones((1, 3, 3), bool)
    filled = np.stack([ndimage.binary_fill_holes(one) for one in slices]).reshape(inside.shape)
    thick = ndimage.binary_erosion(np.pad(slices, ((0, 0), (1, 1), (1, 1))), square, iterations=3)
    if thick.sum() > 0.02 * len(places[0]):
        return None
    if filled.sum() < 2 * len(places[0]):
        return mask
    result = mask.copy()
    result[box] = filled
    return result


def _refuse_plateaus(
    label: torch.Tensor, nearest: torch.Tensor, step: float, off: float, values: list[int], resized: bool
) -> None:
    """Edges of a JPEG have all values between two classes, in steep slopes; a flat part between them is a class that
    was not named. So is, of what was not compressed, a part of one value that is no class, however near to one."""
    gray = label.as_subclass(torch.Tensor).float()  # type: ignore[arg-type]
    spread = F.max_pool2d(gray, 3, 1, 1) + F.max_pool2d(-gray, 3, 1, 1)
    plateau = ((gray - nearest).abs() > off) & (spread <= step / 8)
    if resized:
        plateau |= (gray != nearest) & (spread == 0)
    if plateau.sum() > max(9.0, 0.01 * float((nearest != values[0]).sum())):
        raise ValueError(
            f"{_file_name(label)}: a part of value {float(gray[plateau].median()):g} stands for no class; expected "
            f"{values}. Set num_classes, and label_values to the file values of the classes in their order."
        )


class _LabelForm(DictionaryForm):
    options: ClassVar = {"image_key": ("image", "image whose spatial shape the label must have; None checks nothing.")}
    image_key: str | None

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Check the sizes, then map."""
        for key in self.key_iterator(dict(data)) if self.image_key is not None else ():
            if self.image_key not in data:
                raise KeyError(f"LabelIndicesd: there is no item {self.image_key!r}, which image_key names.")
            size, wanted = (tuple(data[name].shape[1:]) for name in (key, self.image_key))
            if size != wanted:
                raise ValueError(
                    f"{_file_name(data[key]) or key}: the label has size {size}, its image {wanted}: they must lie on "
                    "one grid; correct the datalist or resample the label."
                )
        return super().__call__(data)


LabelIndicesd = dictionary_form(LabelIndices, _LabelForm)
