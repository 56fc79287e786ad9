# SPDX-License-Identifier: Apache-2.0
"""Config of what is kept on disks, for the services that do."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, WithJsonSchema

from shoal.config.model import Config
from shoal.config.units import Bytes, parse_bytes
from shoal.store.eviction import Limits

_SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*%", re.ASCII)
_WANTED = "a share of the volume, such as 10%, or a size with its unit, such as 20GiB"


def _free_space(text: str) -> str:
    share = _SHARE.fullmatch(text.strip())
    if share is None:
        try:
            parse_bytes(text)
        except ValueError:
            raise ValueError(f"expected {_WANTED}") from None
    elif not float(share[1]) < 100:
        raise ValueError("a share must be below 100%")
    return text.strip()


FreeSpace = Annotated[
    str,
    AfterValidator(_free_space),
    WithJsonSchema({"type": "string", "description": _WANTED}),
]
"""Free space of a volume, as a share of it or in bytes."""


class CacheConfig(Config):
    """When copies go to make room for others."""

    budget: Bytes = 0
    """All copies together; 0: as much as `min_free` allows."""

    min_free: FreeSpace = "10%"
    """What is to stay free on each volume."""

    @property
    def limits(self) -> Limits:
        """The same as numbers."""
        share = _SHARE.fullmatch(self.min_free)
        if share is None:
            return Limits(self.budget, min_free=parse_bytes(self.min_free))
        return Limits(self.budget, min_free_share=float(share[1]) / 100)


class VolumeConfig(Config):
    """A folder on a disk of its own."""

    path: Path

    weight: Annotated[float, Field(ge=0, lt=math.inf)] = 1.0
    """How much of what is new goes there, relative to the others; 0: nothing."""
