# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Lists that the bundles train on."""

from __future__ import annotations

from pathlib import Path

import pytest

from monai_usfm.bundle import enhancement_items


@pytest.mark.parametrize("keys", [{"input_key": "label"}, {"target_key": "image"}])
def test_a_file_that_is_both_of_a_pair_is_refused(keys: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"of a pair are both '(label|image)': .* --input_key and --target_key"):
        enhancement_items("training", str(tmp_path), pairs=True, **keys)
