# SPDX-License-Identifier: Apache-2.0
"""Platforms of images (OCI image-spec image-index.md, "platform")."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import msgspec

from shoal.model.digest import Digest, InvalidDigest

_PLATFORM = re.compile(r"([a-z0-9]+)/([a-z0-9_]+)(?:/([a-z0-9]+))?", re.ASCII)


class InvalidPlatform(ValueError):
    """The text is not a platform."""


@dataclass(frozen=True, slots=True)
class Platform:
    """What an image runs on."""

    os: str
    architecture: str
    variant: str = ""

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Read ``os/architecture`` or ``os/architecture/variant``; raise `InvalidPlatform`."""
        match = _PLATFORM.fullmatch(text)
        if match is None:
            raise InvalidPlatform(
                f"{text[:80]!r} is not a platform such as linux/amd64 or linux/arm/v7"
            )
        return cls(match[1], match[2], match[3] or "")

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))

    def runs(self, image: Platform) -> bool:
        """Whether a host that asks for this platform may be given the image of that one.

        A variant that either side leaves out is any.
        """
        if (self.os, self.architecture) != (image.os, image.architecture):
            return False
        return not self.variant or not image.variant or self.variant == image.variant


class _Child(msgspec.Struct):
    digest: str = ""
    platform: Any = None


class _Said(msgspec.Struct):
    os: str
    architecture: str
    variant: str | None = None


class _Index(msgspec.Struct):
    manifests: list[_Child] = []


def platforms_of(index: bytes) -> dict[Digest, list[Platform]]:
    """Which platforms each child of an index is for, as far as it says so.

    What is no platform, or cannot be read, is left out.
    """
    found: dict[Digest, list[Platform]] = {}
    try:
        children = msgspec.json.decode(index, type=_Index).manifests
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return found
    for child in children:
        platform = _platform(child.platform)
        if platform is None:
            continue
        try:
            found.setdefault(Digest.parse(child.digest), []).append(platform)
        except InvalidDigest:
            continue
    return found


def _platform(said: Any) -> Platform | None:
    try:
        read = msgspec.convert(said, _Said)
    except msgspec.ValidationError:
        return None
    return Platform(read.os, read.architecture, read.variant or "")
