# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Load ultrasound files for training: reader and upright transform in one, with one frame and one grid per item."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import DtypeLike, KeysCollection, PathLike
from monai.transforms import MapTransform, Transform
from monai.utils import ensure_tuple_rep

from monai_usfm.data.decoded import frame_picker
from monai_usfm.data.grids import check_one_grid, on_one_grid, resampled
from monai_usfm.data.reader import UltrasoundReader
from monai_usfm.data.upright import UprightGray
from monai_usfm.transforms.dictionary import TORCH

__all__ = ["LoadUltrasound", "LoadUltrasoundd"]


class LoadUltrasound(Transform):
    """Load one ultrasound file as a channel-first, upright, gray tensor with values in [0, 1] and spacing in mm.

    The same as ``LoadImage(reader=UltrasoundReader())``, ``EnsureChannelFirst()`` and
    :class:`~monai_usfm.data.UprightGray`, where the formats and the meaning of the arguments are told, in one step that
    decodes no more than it needs: one frame of a cine of 8 bits, 8 bits as bytes.

    ``scale=None`` reads a label map: stored numbers, also of several masks of one image, given as a list (see
    ``UltrasoundReader(label=True)``). With metadata tracking off (:func:`monai.data.set_track_meta`) a plain tensor is
    returned and no metadata is built.

    Args:
        spatial_dims, frame, dtype, scale, full_scale: see :class:`~monai_usfm.data.UprightGray`.
        region: of DICOM, the ultrasound region that gives the spacing, see
            :class:`~monai_usfm.data.UltrasoundDicomReader`.

    Raises:
        ValueError: on an unknown option.
        UnreadableImageError: on calling, naming the file.
    """

    backend = TORCH

    def __init__(
        self,
        spatial_dims: int = 2,
        frame: str | int = "middle",
        dtype: DtypeLike | torch.dtype = torch.float32,
        scale: str | None = "auto",
        full_scale: float | None = None,
        region: str | int | None = "largest_tissue",
    ) -> None:
        self.reader = UltrasoundReader(scale is None, region)
        self.upright = UprightGray(spatial_dims, frame, dtype, scale, full_scale)

    def __call__(
        self,
        filename: PathLike | Sequence[PathLike],
        frame: str | int | None = None,
        spacing: float | Sequence[float] | None = None,
        full_scale: float | None = None,
    ) -> torch.Tensor:
        """``path -> (1, *S)``.

        Args:
            filename: the file; with ``scale=None`` also a list of masks.
            frame, spacing, full_scale: see :class:`~monai_usfm.data.UprightGray`.
        """
        pick = frame_picker(self.upright.frame if frame is None else frame, str(filename))
        values, meta = self.reader.load(filename, pick if self.upright.spatial_dims == 2 else None)
        return self.upright.apply(values, meta, pick, spacing, full_scale)


class LoadUltrasoundd(MapTransform):
    """Dictionary form of :class:`LoadUltrasound`.

    An item may fix what its files cannot tell: ``item["frame"]`` (an index or ``"middle"``), ``item["spacing"]``
    (mm, in the order of ``S``) and ``item["full_scale"]`` (value of white). All keys must lie on one grid: of one size,
    at one place as far as both files say where they lie (:func:`~monai_usfm.data.grids.check_one_grid`), and turned
    alike by EXIF.

    Args:
        keys: items to load.
        spatial_dims, frame, full_scale, region: see :class:`LoadUltrasound`.
        dtype, scale: see :class:`LoadUltrasound`; one, or one per key: ``("auto", None)`` for image and label.
        resample: bring what lies elsewhere onto the grid of the first key, where both files have geometry: labels by
            nearest neighbor, images linearly. Without it such items are an error.
        allow_missing_keys: do not raise when an item lacks a key.
    """

    backend = TORCH

    def __init__(
        self,
        keys: KeysCollection,
        spatial_dims: int = 2,
        frame: str | int = "middle",
        dtype: DtypeLike | torch.dtype | Sequence[DtypeLike | torch.dtype] = torch.float32,
        scale: str | Sequence[str | None] | None = "auto",
        full_scale: float | None = None,
        region: str | int | None = "largest_tissue",
        resample: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.resample = resample
        self.loaders = [
            LoadUltrasound(spatial_dims, frame, one_dtype, one_scale, full_scale, region)
            for one_dtype, one_scale in zip(
                ensure_tuple_rep(dtype, len(self.keys)), ensure_tuple_rep(scale, len(self.keys)), strict=True
            )
        ]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key, loader in self.key_iterator(d, self.loaders):
            d[key] = loader(d[key], d.get("frame"), d.get("spacing"), d.get("full_scale"))
        keys = [key for key in self.keys if key in d]
        for key in keys[1:]:
            names = str(data[key]), str(data[keys[0]])
            if self.resample and not on_one_grid(d[key], d[keys[0]]):
                label = self.loaders[self.keys.index(key)].upright.scale is None
                d[key] = resampled(names[0], d[key], names[1], d[keys[0]], label)
            check_one_grid(names[0], d[key], names[1], d[keys[0]])
        return d
