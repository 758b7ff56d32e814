# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""What loading did, in words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["LoadReport"]


@dataclass
class LoadReport:
    """What :func:`load_pretrained` did.

    Args:
        layout: recognized layout of the source.
        loaded: weights of the network that were filled, by their names in the network.
        missing: weights of the network that the source does not have; they kept their values.
        unexpected: tensors of the source that were not used, by their names in the source.
        resized: for every weight whose shape was adapted, what was done to it.
        notes: everything else worth knowing, for example conversions that keep the function.
        anew: weights of the network that have another shape in the source, such as those of a head for other classes,
            with both shapes; they kept their values.
    """

    layout: str
    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    resized: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    anew: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"layout: {self.layout}", f"loaded: {len(self.loaded)} weights"]
        lines += [f"missing: {name}" for name in summarize(self.missing)]
        lines += [f"other shape, started anew: {name}: {shapes}" for name, shapes in self.anew.items()]
        lines += [f"unexpected: {name}" for name in summarize(self.unexpected)]
        lines += [f"resized: {name}: {what}" for name, what in self.resized.items()]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


def summarize(names: Sequence[str]) -> list[str]:
    """Names that differ only in their block numbers on one line: ``blocks.*.gamma_1 (12)``."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(re.sub(r"\.\d+\.", ".*.", name), []).append(name)
    return [members[0] if len(members) == 1 else f"{group} ({len(members)})" for group, members in groups.items()]
