# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Settings on the command line of scripts."""

from __future__ import annotations

import pytest

from monai_usfm.settings import parse_settings


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[96,96]", [96, 96]),
        ("1e-3", 0.001),
        ("None", None),
        ("small", "small"),
        ("a#b", "a#b"),
        ("$torch.device('cpu')", "$torch.device('cpu')"),
        ("{'_target_': 'UNet', 'strides': (2, 2)}", {"_target_": "UNet", "strides": (2, 2)}),
        ("x=y", "x=y"),
        ("", ""),
    ],
)
def test_a_value_is_a_literal_or_text(text, value):
    assert parse_settings([f"train#part={text}", "other=1"]) == {"train#part": value, "other": 1}
