# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Ready-made augmentation pipelines for ultrasound: MONAI ``Compose``s of MONAI's transforms and ours.

Both are plain functions, so a bundle names them in JSON::

    {"_target_": "monai_usfm.transforms.semantics_preserving_pipeline",
     "keys": ["image"], "label_keys": ["label"], "spatial_size": [224, 224], "geometry_key": "image_beam"}

VanBerlo et al. 2025, https://arxiv.org/abs/2504.07904, found the first kind better for tasks that need the whole
image, crops better for small findings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from monai.config import KeysCollection
from monai.transforms import (
    Compose,
    DeleteItemsd,
    MapTransform,
    MaskIntensityd,
    RandAdjustContrastd,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    RandScaleCropd,
    RandScaleIntensityd,
    RandScaleIntensityFixedMeand,
    Resized,
    ScaleIntensityRanged,
)
from monai.utils import ensure_tuple

from monai_usfm.transforms.field_of_view import FieldOfViewd
from monai_usfm.transforms.postprocessing import RandCLAHEd, RandSaltAndPepperd, RandWaveletDenoised
from monai_usfm.transforms.probe import RandConvexityChanged, RandDepthZoomd, RandProbeTypeChanged
from monai_usfm.transforms.speckle import RandSpeckleNoised

__all__ = ["distilled_pipeline", "semantics_preserving_pipeline"]

_POSTFIX = "pipeline_fov"


def semantics_preserving_pipeline(
    keys: KeysCollection,
    spatial_size: Sequence[int],
    label_keys: KeysCollection | None = None,
    fov_key: str | None = None,
    geometry_key: str | None = None,
    dynamic_range_db: float | None = 60.0,
) -> Compose:
    """Changes that another scanner, probe or setting would have made, on the whole image (AugUS-O).

    In order: probe type, convexity and depth change, wavelet denoising, CLAHE, gamma, brightness, contrast, speckle,
    Gaussian noise, salt and pepper, reflection, shift and rotation. Ranges and probabilities are those of the authors'
    later code versions (their table is not machine-readable), with these differences: wavelet thresholds follow the
    published rule; speckle has the statistics of speckle; rotation is limited to 22.5 degrees; the depth zoom keeps
    angles and the probe's curvature.

    Args:
        keys: images ``(C, *S)`` in [0, 1], all of one field of view (one draw serves them).
        spatial_size: S of the images.
        label_keys: masks that follow every change of geometry, by nearest neighbor.
        fov_key: item with the field of view ``(1, *S)``, which follows too; found by ``FieldOfViewd`` if ``None``.
        geometry_key: item with the :class:`BeamGeometry` (``FitBeamd`` stores it), removed at the end because flips and
            rotations outdate it. Without it the probe changes take the image for a linear probe's, so they are left
            out.
        dynamic_range_db: display range of log-compressed images, ``None`` for linear ones.

    Returns:
        A ``Compose`` of dictionary transforms; outside the field of view images are 0.
    """
    images, masks, first, last, fov = _items(keys, label_keys, fov_key)
    moved = images + masks
    modes = ["bilinear"] * len(images) + ["nearest"] * len(masks)
    change: dict[str, Any] = {"mode": modes, "geometry_key": geometry_key}
    probe = [
        RandProbeTypeChanged(moved, prob=0.3, **change),
        RandConvexityChanged(moved, prob=0.75, **change),
        RandDepthZoomd(moved, prob=0.333, factor=(0.8, 1.2), **change),
    ]
    inside: dict[str, Any] = {"fov_key": fov, "geometry_key": geometry_key}
    size = tuple(int(n) for n in spatial_size)
    in_plane = (0.0,) * (len(size) - 2)
    return Compose(
        [
            *first,
            *(probe if geometry_key is not None else []),
            RandWaveletDenoised(images, prob=0.5, alpha=(2.5, 3.5), **inside),
            RandCLAHEd(images, prob=0.333, clip_limit=(5.0, 10.0), **inside),
            RandAdjustContrastd(images, prob=0.5, gamma=(0.5, 2.0)),
            *_brightness_contrast(images, 0.5),
            *_tidy(images, fov),
            RandSpeckleNoised(images, prob=0.333, dynamic_range_db=dynamic_range_db, **inside),
            RandGaussianNoised(images, prob=0.333, std=2.5 / 255),
            *_tidy(images, fov),
            RandSaltAndPepperd(images, prob=0.1, fraction=(0.001, 0.005), **inside),
            RandFlipd(moved, prob=0.5, spatial_axis=len(size) - 1),
            RandAffined(
                moved,
                prob=0.5,
                # in the plane of rows and columns only: in 3D that is a rotation about the first axis
                rotate_range=math.radians(22.5) if len(size) == 2 else (math.radians(22.5), 0.0, 0.0),
                translate_range=(*in_plane, 0.2 * size[-2], 0.2 * size[-1]),
                mode=modes,
                padding_mode="zeros",
            ),
            MaskIntensityd(images, mask_key=fov),
            *last,
            *([DeleteItemsd(geometry_key)] if geometry_key is not None else []),
        ]
    )


def distilled_pipeline(
    keys: KeysCollection,
    spatial_size: Sequence[int],
    label_keys: KeysCollection | None = None,
    fov_key: str | None = None,
    geometry_key: str | None = None,
    crop_scale: float = 0.63,
) -> Compose:
    """Crops, and the few other changes that helped most: after AugUS-D, for findings that fill a small part.

    In order: probe type, wavelet denoising, brightness, contrast, crop and resize, reflection. The authors' table of
    AugUS-D is not machine-readable; this selection follows their text (crops for local findings, whole-beam changes for
    the rest) and is ours. Arguments as in :func:`semantics_preserving_pipeline`, and:

    Args:
        keys: images ``(C, *S)`` in [0, 1], all of one field of view.
        spatial_size: S of the result; crops are resized to it.
        label_keys: masks that follow every change of geometry, by nearest neighbor.
        fov_key: item with the field of view, which follows too; found by ``FieldOfViewd`` if ``None``.
        geometry_key: item with the :class:`BeamGeometry`, removed at the end.
        crop_scale: smallest side of a crop as a fraction of the image; 0.63 is 40 % of the area in 2D.
    """
    images, masks, first, last, fov = _items(keys, label_keys, fov_key)
    moved = images + masks
    modes = ["bilinear"] * len(images) + ["nearest"] * len(masks)
    probe = RandProbeTypeChanged(moved, prob=0.3, mode=modes, geometry_key=geometry_key)
    size = tuple(int(n) for n in spatial_size)
    resize = ["bilinear" if len(size) == 2 else "trilinear"] * len(images) + ["nearest"] * len(masks)
    return Compose(
        [
            *first,
            *([probe] if geometry_key is not None else []),
            RandWaveletDenoised(images, prob=0.5, alpha=(2.5, 3.5), fov_key=fov, geometry_key=geometry_key),
            *_brightness_contrast(images, 0.8),
            *_tidy(images, fov),
            RandScaleCropd(moved, roi_scale=crop_scale, max_roi_scale=1.0, random_size=True),
            Resized(moved, spatial_size=size, mode=resize),
            RandFlipd(moved, prob=0.5, spatial_axis=len(size) - 1),
            MaskIntensityd(images, mask_key=fov),
            *last,
            *([DeleteItemsd(geometry_key)] if geometry_key is not None else []),
        ]
    )


def _items(
    keys: KeysCollection, label_keys: KeysCollection | None, fov_key: str | None
) -> tuple[list[str], list[str], list[MapTransform], list[MapTransform], str]:
    """Images, masks that move with them, transforms that make and remove the field of view, and its key."""
    images = [str(k) for k in ensure_tuple(keys)]
    labels = [] if label_keys is None else [str(k) for k in ensure_tuple(label_keys)]
    if fov_key is not None:
        return images, [*labels, fov_key], [], [], fov_key
    own = f"{images[0]}_{_POSTFIX}"
    return images, [*labels, own], [FieldOfViewd(images[0], postfix=_POSTFIX)], [DeleteItemsd(own)], own


def _brightness_contrast(images: list[str], prob: float) -> list[MapTransform]:
    return [
        RandScaleIntensityd(images, factors=0.4, prob=prob),
        RandScaleIntensityFixedMeand(images, factors=0.4, prob=prob),
    ]


def _tidy(images: list[str], fov_key: str) -> list[MapTransform]:
    """Back to [0, 1] and black outside the field of view, which MONAI's intensity transforms do not know."""
    return [ScaleIntensityRanged(images, 0, 1, 0, 1, clip=True), MaskIntensityd(images, mask_key=fov_key)]
