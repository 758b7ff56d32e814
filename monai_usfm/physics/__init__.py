# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Ultrasound physics as tensor functions: beams, speckle, spectrum, display in decibels. Nothing here imports MONAI."""
