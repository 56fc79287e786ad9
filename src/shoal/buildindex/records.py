# SPDX-License-Identifier: Apache-2.0
"""A tag as build-indexes keep it and give it to each other. Pure."""

from __future__ import annotations

from typing import Annotated

import msgspec

from shoal.buildindex.clock import Version
from shoal.model.digest import Digest, InvalidDigest
from shoal.model.errors import BadRequest
from shoal.model.names import MAX_NAME, InvalidName, InvalidTag, repository_name, tag_name

MAX_BATCH = 1_000
"""Records in one answer or request between build-indexes."""


class TagRecord(msgspec.Struct, frozen=True):
    """One write of a tag: from this version on it points to this digest."""

    repository: Annotated[str, msgspec.Meta(max_length=MAX_NAME)]
    tag: Annotated[str, msgspec.Meta(max_length=128)]
    digest: Annotated[str, msgspec.Meta(max_length=160)]
    version: Version

    def newer_than(self, other: TagRecord | None) -> bool:
        """Whether this write of the tag wins over the other.

        The digest breaks the tie that two nodes with one id would make (a copied data directory):
        every build-index still ends with the same one.
        """
        if other is None:
            return True
        return (self.version, self.digest) > (other.version, other.digest)

    def check(self) -> None:
        """Raise `BadRequest` unless name, tag and digest are well-formed."""
        try:
            repository_name(self.repository)
            tag_name(self.tag)
            Digest.parse(self.digest)
        except (InvalidName, InvalidTag, InvalidDigest) as error:
            raise BadRequest(f"not a tag record: {error}") from error


class Batch(msgspec.Struct, frozen=True):
    """Records given to a neighbour."""

    records: Annotated[list[TagRecord], msgspec.Meta(max_length=MAX_BATCH)]


class Changes(msgspec.Struct, frozen=True):
    """A page of a build-index's changes, in the order in which it took them."""

    node: str
    """The build-index that answers. Sequence numbers count for this one only."""

    records: list[TagRecord]
    next: int
    """Ask for what comes after this sequence number next."""

    more: bool
    """Whether there was more at the time of the answer."""


class Page(msgspec.Struct, frozen=True):
    """A page of a sorted list of names."""

    names: list[str]
    more: bool
    """Whether names follow the last one."""
