# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Ultrasound transforms in array and dictionary form."""

from __future__ import annotations

from monai_usfm.transforms.band_stop import (
    FourierBandStop,
    FourierBandStopd,
    RandFourierBandStop,
    RandFourierBandStopd,
    apply_band_stop,
    draw_rings,
    equal_rings,
    frequency_radius,
    random_ring_masks,
    ring_mask,
    usfm_rings,
)
from monai_usfm.transforms.beam import (
    BeamGeometry,
    FitBeam,
    FitBeamd,
    FromBeamSpace,
    FromBeamSpaced,
    NotAConeError,
    ToBeamSpace,
    ToBeamSpaced,
)
from monai_usfm.transforms.field_of_view import CropFieldOfView, CropFieldOfViewd, FieldOfView, FieldOfViewd
from monai_usfm.transforms.speckle import (
    RandSpeckleNoise,
    RandSpeckleNoised,
    SpeckleNoise,
    SpeckleNoised,
    add_speckle,
    beam_speckle_intensity,
    respeckle,
    speckle_field,
    speckle_intensity,
)

__all__ = [
    "BeamGeometry",
    "CropFieldOfView",
    "CropFieldOfViewd",
    "FieldOfView",
    "FieldOfViewd",
    "FitBeam",
    "FitBeamd",
    "FourierBandStop",
    "FourierBandStopd",
    "FromBeamSpace",
    "FromBeamSpaced",
    "NotAConeError",
    "RandFourierBandStop",
    "RandFourierBandStopd",
    "RandSpeckleNoise",
    "RandSpeckleNoised",
    "SpeckleNoise",
    "SpeckleNoised",
    "ToBeamSpace",
    "ToBeamSpaced",
    "add_speckle",
    "apply_band_stop",
    "beam_speckle_intensity",
    "draw_rings",
    "equal_rings",
    "frequency_radius",
    "random_ring_masks",
    "respeckle",
    "ring_mask",
    "speckle_field",
    "speckle_intensity",
    "usfm_rings",
]
