# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Settings on the command line of scripts."""

from __future__ import annotations

import pytest

from monai_usfm.settings import literal, split_named_path


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[96,96]", [96, 96]),
        ("1e-3", 0.001),
        ("None", None),
        ("null", None),
        ("true", True),
        ("small", "small"),
        ("a#b", "a#b"),
        ("$torch.device('cpu')", "$torch.device('cpu')"),
        ("{'_target_': 'UNet', 'strides': (2, 2)}", {"_target_": "UNet", "strides": (2, 2)}),
        ("x=y", "x=y"),
        ("2024_01", "2024_01"),  # Python's 202401
        ("{[1]: 2}", "{[1]: 2}"),
        ("", ""),
    ],
)
def test_a_value_is_a_literal_or_text(text, value):
    assert literal(text) == value


def test_a_path_may_have_a_name_and_hold_the_sign(tmp_path):
    (tmp_path / "lr=1").mkdir()
    assert split_named_path("ours=a/lr=1.pt") == ("ours", "a/lr=1.pt")
    assert split_named_path("a.pt") == ("", "a.pt")
    assert split_named_path(str(tmp_path / "lr=1")) == ("", str(tmp_path / "lr=1"))
