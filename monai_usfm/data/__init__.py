# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Reading, listing, sampling and simulating ultrasound images."""

from __future__ import annotations

from monai_usfm.simulation import SyntheticUltrasound, write_synthetic_dataset
from monai_usfm.transforms.dictionary import add_aliases

from .classes import class_weights, load_class_splits, value_scale
from .convert import convert_dicom, convert_dicom_folder
from .datalist import check_patient_leak, join_table, label_fraction, load_datalist, read_datalist
from .dataset import UltrasoundDataset
from .deidentify import Pseudonyms
from .dicom import UltrasoundDicomReader
from .dicom_geometry import UltrasoundRegion, frame_times, ultrasound_regions
from .folders import mark_results
from .formats import SUPPORTED_SUFFIXES, UnreadableImageError, unreadable_reason
from .joint import JointBatch, JointLabeld, joint_classes, joint_splits, joint_weights
from .listing import UnknownPatientsError, make_datalist
from .loading import LoadUltrasound, LoadUltrasoundd
from .patients import add_patients
from .reader import UltrasoundReader, dataset_full_scale
from .sampler import OrganBalancedSampler, organ_balanced_weights
from .splits import list_images, load_splits, result_name, results_root
from .store import Uint8Store
from .upright import UprightGray, UprightGrayd

__all__ = [
    "SUPPORTED_SUFFIXES",
    "JointBatch",
    "JointLabeld",
    "LoadUltrasound",
    "LoadUltrasoundd",
    "OrganBalancedSampler",
    "Pseudonyms",
    "SyntheticUltrasound",
    "Uint8Store",
    "UltrasoundDataset",
    "UltrasoundDicomReader",
    "UltrasoundReader",
    "UltrasoundRegion",
    "UnknownPatientsError",
    "UnreadableImageError",
    "UprightGray",
    "UprightGrayd",
    "add_patients",
    "check_patient_leak",
    "class_weights",
    "convert_dicom",
    "convert_dicom_folder",
    "dataset_full_scale",
    "frame_times",
    "join_table",
    "joint_classes",
    "joint_splits",
    "joint_weights",
    "label_fraction",
    "list_images",
    "load_class_splits",
    "load_datalist",
    "load_splits",
    "make_datalist",
    "mark_results",
    "organ_balanced_weights",
    "read_datalist",
    "result_name",
    "results_root",
    "ultrasound_regions",
    "unreadable_reason",
    "value_scale",
    "write_synthetic_dataset",
]

__all__ += add_aliases(globals())  # LoadUltrasoundD and LoadUltrasoundDict beside LoadUltrasoundd, as in MONAI
