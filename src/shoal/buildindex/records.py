# SPDX-License-Identifier: Apache-2.0
"""What build-indexes keep and give to each other: versioned records. Pure.

Every record says one thing about one name in one repository: to which digest a tag points, that a
manifest belongs to the repository, or that a blob does. A record without a value is a tombstone:
the name was deleted. Of two records of one name the newer one holds, everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Literal

import msgspec

from shoal.buildindex.clock import Version
from shoal.model.digest import Digest, InvalidDigest
from shoal.model.errors import BadRequest
from shoal.model.manifest import MAX_ENTRIES, MAX_MANIFEST_BYTES
from shoal.model.names import MAX_NAME, InvalidName, InvalidTag, repository_name, tag_name

MAX_BATCH = 1_000
"""Records in one answer or request between build-indexes."""

MAX_BATCH_BYTES = MAX_MANIFEST_BYTES
"""Bytes of such records, unless a single one has more: a manifest's annotations may fill it."""

MAX_BATCH_BODY = MAX_BATCH_BYTES + 2 * 1024 * 1024
"""Bytes of a body that holds them, with all that is around the values."""

Kind = Literal["tag", "manifest", "blob"]


class ManifestEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a repository knows of one of its manifests without reading it."""

    media_type: Annotated[str, msgspec.Meta(max_length=255)]
    size: Annotated[int, msgspec.Meta(ge=0, le=MAX_MANIFEST_BYTES)]
    """Bytes of the manifest."""

    subject: str | None = None
    """Digest of the manifest that it says something about."""

    artifact_type: str = ""
    annotations: dict[str, str] = {}
    references: Annotated[list[str], msgspec.Meta(max_length=2 * MAX_ENTRIES)] = []
    """Digests of its config, of its layers that are kept here, and of its children, in order."""

    def digests(self) -> Iterator[str]:
        """Every digest that it names."""
        yield from self.references
        if self.subject is not None:
            yield self.subject


Value = Annotated[str, msgspec.Meta(max_length=160)] | ManifestEntry | None


class Record(msgspec.Struct, frozen=True):
    """One write of a name: from this version on it has this value."""

    kind: Kind
    repository: Annotated[str, msgspec.Meta(max_length=MAX_NAME)]
    name: Annotated[str, msgspec.Meta(max_length=160)]
    """The tag, or the digest of the manifest or blob."""

    value: Value
    """A tag's digest, what is known of a manifest, an empty text for a blob; None: deleted."""

    version: Version

    def newer_than(self, other: Record | None) -> bool:
        """Whether this write wins over another one of the same name.

        Versions are equal only when two nodes have one id (a copied data directory), or when
        garbage collection judged a record that was renewed in the same millisecond. What is there
        then wins over its deletion, and otherwise the value decides: all build-indexes end alike.
        """
        if other is None or self.version != other.version:
            return other is None or self.version > other.version
        return _tie(self.value) > _tie(other.value)

    def check(self) -> None:
        """Raise `BadRequest` unless the name and all that the value names are well-formed."""
        try:
            repository_name(self.repository)
            match self.kind, self.value:
                case "tag", str(digest):
                    tag_name(self.name)
                    Digest.parse(digest)
                case "tag", None:
                    tag_name(self.name)
                case "manifest", ManifestEntry() as entry:
                    Digest.parse(self.name)
                    for digest in entry.digests():
                        Digest.parse(digest)
                case ("manifest", None) | ("blob", "" | None):
                    Digest.parse(self.name)
                case _:
                    raise BadRequest(f"not a {self.kind} record: the value is of another kind")
        except (InvalidName, InvalidTag, InvalidDigest) as error:
            raise BadRequest(f"not a {self.kind} record: {error}") from error


_ENCODER = msgspec.json.Encoder(order="deterministic")
_ENTRY = msgspec.json.Decoder(ManifestEntry)


def encoded_value(value: str | ManifestEntry | None) -> str | None:
    """The text in which a value is stored; equal values have equal texts."""
    return _ENCODER.encode(value).decode() if isinstance(value, ManifestEntry) else value


def _tie(value: str | ManifestEntry | None) -> tuple[bool, str]:
    return value is not None, encoded_value(value) or ""


def decoded_value(kind: str, text: str | None) -> str | ManifestEntry | None:
    """The value of a stored text."""
    return _ENTRY.decode(text) if kind == "manifest" and text is not None else text


def batches(records: Iterable[Record]) -> Iterator[bytes]:
    """Records as bodies of requests to a neighbour (`Batch`), each of a bounded size."""
    waiting: list[bytes] = []
    size = 0
    for record in records:
        one = msgspec.json.encode(record)
        if waiting and (len(waiting) == MAX_BATCH or size + len(one) > MAX_BATCH_BYTES):
            yield _body(waiting)
            waiting, size = [], 0
        waiting.append(one)
        size += len(one)
    if waiting:
        yield _body(waiting)


def _body(encoded: list[bytes]) -> bytes:
    return b'{"records":[%b]}' % b",".join(encoded)


class Batch(msgspec.Struct, frozen=True):
    """Records given to a neighbour."""

    records: Annotated[list[Record], msgspec.Meta(max_length=MAX_BATCH)]


class Changes(msgspec.Struct, frozen=True):
    """A page of a build-index's changes, in the order in which it took them."""

    node: str
    """The build-index that answers. Sequence numbers count for this one only."""

    records: list[Record]
    next: int
    """Ask for what comes after this sequence number next."""

    more: bool
    """Whether there was more at the time of the answer."""


class Page(msgspec.Struct, frozen=True):
    """A page of a sorted list of names."""

    names: list[str]
    more: bool
    """Whether names follow the last one."""


class ReferrerEntry(msgspec.Struct, frozen=True):
    """A manifest that says something about another one."""

    digest: str
    media_type: str
    size: int
    artifact_type: str
    annotations: dict[str, str]


class ReferrersPage(msgspec.Struct, frozen=True):
    """A page of the referrers of a manifest, sorted by digest."""

    referrers: list[ReferrerEntry]
    more: bool
    """Whether referrers follow the last one."""
