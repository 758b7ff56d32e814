# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Ultrasound transforms in array and dictionary form."""

from __future__ import annotations

from monai_usfm.physics.speckle import add_speckle, respeckle, speckle_intensity
from monai_usfm.physics.spectrum import (
    apply_band_stop,
    draw_rings,
    equal_rings,
    frequency_radius,
    random_ring_masks,
    ring_mask,
    usfm_rings,
)
from monai_usfm.transforms.acquisition import (
    RandDepthAttenuation,
    RandDepthAttenuationd,
    RandDynamicRange,
    RandDynamicRanged,
    RandGain,
    RandGaind,
    RandTimeGain,
    RandTimeGaind,
    apply_gain,
    attenuate,
    recompress,
    time_gain,
)
from monai_usfm.transforms.annotation import AnnotationReport, RemoveAnnotations, RemoveAnnotationsd
from monai_usfm.transforms.artifacts import (
    RandAcousticShadow,
    RandAcousticShadowd,
    RandHaze,
    RandHazed,
    RandReverberation,
    RandReverberationd,
    acoustic_shadow,
    add_haze,
    reverberate,
)
from monai_usfm.transforms.band_stop import (
    FourierBandStop,
    FourierBandStopd,
    RandFourierBandStop,
    RandFourierBandStopd,
)
from monai_usfm.transforms.batch import BatchAppearance, BatchAugmentation
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
from monai_usfm.transforms.dictionary import add_aliases
from monai_usfm.transforms.field_of_view import FieldOfView, FieldOfViewd
from monai_usfm.transforms.labels import LabelIndices, LabelIndicesd, is_jpeg_label
from monai_usfm.transforms.landmarks import Landmarksd, draw_heatmaps, landmarks_of_logits, soft_argmax, spatial_softmax
from monai_usfm.transforms.noise_recovery import NoiseRecovery, gaussian_blur
from monai_usfm.transforms.presence import PresenceThresholdd, RandBackgroundCropd, presence_score
from monai_usfm.transforms.probe import (
    RandDepthZoom,
    RandDepthZoomd,
    change_geometry,
    zoomed_geometry,
)
from monai_usfm.transforms.resize import SeparableResize, SeparableResized, resize_linear
from monai_usfm.transforms.speckle import RandSpeckleNoise, RandSpeckleNoised, SpeckleNoise, SpeckleNoised

__all__ = [
    "AnnotationReport",
    "BatchAppearance",
    "BatchAugmentation",
    "BeamGeometry",
    "FieldOfView",
    "FieldOfViewd",
    "FitBeam",
    "FitBeamd",
    "FourierBandStop",
    "FourierBandStopd",
    "FromBeamSpace",
    "FromBeamSpaced",
    "LabelIndices",
    "LabelIndicesd",
    "Landmarksd",
    "NoiseRecovery",
    "NotAConeError",
    "PresenceThresholdd",
    "RandAcousticShadow",
    "RandAcousticShadowd",
    "RandBackgroundCropd",
    "RandDepthAttenuation",
    "RandDepthAttenuationd",
    "RandDepthZoom",
    "RandDepthZoomd",
    "RandDynamicRange",
    "RandDynamicRanged",
    "RandFourierBandStop",
    "RandFourierBandStopd",
    "RandGain",
    "RandGaind",
    "RandHaze",
    "RandHazed",
    "RandReverberation",
    "RandReverberationd",
    "RandSpeckleNoise",
    "RandSpeckleNoised",
    "RandTimeGain",
    "RandTimeGaind",
    "RemoveAnnotations",
    "RemoveAnnotationsd",
    "SeparableResize",
    "SeparableResized",
    "SpeckleNoise",
    "SpeckleNoised",
    "ToBeamSpace",
    "ToBeamSpaced",
    "acoustic_shadow",
    "add_haze",
    "add_speckle",
    "apply_band_stop",
    "apply_gain",
    "attenuate",
    "change_geometry",
    "draw_heatmaps",
    "draw_rings",
    "equal_rings",
    "frequency_radius",
    "gaussian_blur",
    "is_jpeg_label",
    "landmarks_of_logits",
    "presence_score",
    "random_ring_masks",
    "recompress",
    "resize_linear",
    "respeckle",
    "reverberate",
    "ring_mask",
    "soft_argmax",
    "spatial_softmax",
    "speckle_intensity",
    "time_gain",
    "usfm_rings",
    "zoomed_geometry",
]

__all__ += add_aliases(globals())  # RandGainD and RandGainDict beside RandGaind, as in MONAI
