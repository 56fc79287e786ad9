# SPDX-License-Identifier: Apache-2.0
"""Content digests (OCI image-spec, descriptor.md, "Digests")."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Protocol

ALGORITHMS = {"sha256": 64, "sha512": 128}
"""Registered algorithms and the length of their hex form."""

_HEX = re.compile(r"[0-9a-f]+")


class InvalidDigest(ValueError):
    """The text is not a digest of a registered algorithm."""


class Hasher(Protocol):
    """The part of hashlib's objects that is used here."""

    def update(self, data: bytes | bytearray | memoryview, /) -> None: ...
    def hexdigest(self) -> str: ...


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """``algorithm:hex``, always lower case and of the algorithm's exact length."""

    algorithm: str
    hex: str

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Parse ``sha256:<64 hex>`` or ``sha512:<128 hex>``; raise `InvalidDigest` otherwise."""
        algorithm, _, encoded = text.partition(":")
        length = ALGORITHMS.get(algorithm)
        if length is None:
            known = ", ".join(ALGORITHMS)
            raise InvalidDigest(f"{text[:160]!r} is not a digest: the algorithm must be of {known}")
        if len(encoded) != length or _HEX.fullmatch(encoded) is None:
            raise InvalidDigest(
                f"{text[:160]!r} is not a digest: {algorithm} needs {length} lower-case hex digits"
            )
        return cls(algorithm, encoded)

    @classmethod
    def of(cls, data: bytes | bytearray | memoryview, algorithm: str = "sha256") -> Digest:
        """The digest of bytes in memory. For blobs, hash in a thread while they flow."""
        return cls(algorithm, hashlib.new(algorithm, data).hexdigest())

    def hasher(self) -> Hasher:
        """A fresh hash object of this digest's algorithm."""
        return new_hasher(self.algorithm)


def new_hasher(algorithm: str) -> Hasher:
    """A fresh hash object; the algorithm is one of `ALGORITHMS`."""
    return hashlib.new(algorithm)
