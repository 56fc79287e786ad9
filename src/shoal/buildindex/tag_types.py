# SPDX-License-Identifier: Apache-2.0
"""What kind of thing a tag points to, by its name. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from shoal.buildindex.config import TagTypeConfig

TagType = Literal["docker", "default"]


class TagTypes:
    """The tag types of a config; the first pattern that is found in a name decides."""

    def __init__(self, config: Sequence[TagTypeConfig]) -> None:
        self._types = [(re.compile(entry.pattern), entry.type) for entry in config]

    def of(self, name: str) -> TagType:
        """The type of ``repository:tag`` or ``repository@digest``; ``docker`` when none matches."""
        for pattern, tag_type in self._types:
            if pattern.search(name):
                return tag_type
        return "docker"
