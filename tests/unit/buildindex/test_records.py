# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import msgspec
import pytest

from shoal.buildindex.clock import Version
from shoal.buildindex.records import (
    MAX_BATCH,
    MAX_BATCH_BODY,
    Batch,
    Kind,
    ManifestEntry,
    Record,
    batches,
    decoded_value,
    encoded_value,
)
from shoal.model.digest import Digest
from shoal.model.errors import BadRequest
from shoal.model.media_types import OCI_MANIFEST

NODE = "0" * 16
DIGEST = str(Digest.of(b"x"))
ENTRY = ManifestEntry(
    OCI_MANIFEST, 7, subject=DIGEST, annotations={"b": "2", "a": "ü\u0000"}, references=[DIGEST]
)


def record(kind: Kind, name: str, value: str | ManifestEntry | None, wall_ms: int = 1) -> Record:
    return Record(kind, "app", name, value, Version(wall_ms, 0, NODE))


GOOD = [
    record("tag", "v1", DIGEST),
    record("tag", "v1", None),
    record("manifest", DIGEST, ENTRY),
    record("manifest", DIGEST, None),
    record("blob", DIGEST, ""),
    record("blob", DIGEST, None),
]


@pytest.mark.parametrize("good", GOOD, ids=lambda r: f"{r.kind}-{r.value is not None}")
def test_a_record_reaches_a_neighbour_as_it_was_written(good: Record) -> None:
    (body,) = batches([good])
    (arrived,) = msgspec.json.decode(body, type=Batch).records
    assert arrived == good
    arrived.check()
    assert decoded_value(good.kind, encoded_value(good.value)) == good.value


@pytest.mark.parametrize(
    "bad",
    [
        record("tag", ".v1", DIGEST),
        record("tag", "v1", "sha256:12"),
        record("tag", "v1", ""),
        record("tag", "v1", ENTRY),
        record("manifest", "v1", ENTRY),
        record("manifest", DIGEST, DIGEST),
        record("manifest", DIGEST, ManifestEntry(OCI_MANIFEST, 1, references=["sha256:12"])),
        record("manifest", DIGEST, ManifestEntry(OCI_MANIFEST, 1, subject="v1")),
        record("blob", "sha256:12", ""),
        record("blob", DIGEST, "x"),
        record("blob", "md5:00", None),
        Record("tag", "App", "v1", DIGEST, Version(1, 0, NODE)),
    ],
)
def test_a_record_that_makes_no_sense_is_refused(bad: Record) -> None:
    with pytest.raises(BadRequest, match=f"not a {bad.kind} record"):
        bad.check()


@pytest.mark.parametrize(
    "bad",
    [
        {"kind": "layer"},
        {"value": 5},
        {"value": {"media_type": OCI_MANIFEST}},
        {"value": {"media_type": OCI_MANIFEST, "size": -1}},
        {"version": [1, 0, "node"]},
        {"version": [2**48, 0, NODE]},
        {"name": "x" * 161},
    ],
)
def test_what_is_no_record_is_not_even_decoded(bad: dict[str, Any]) -> None:
    good = {"kind": "tag", "repository": "app", "name": "v", "value": None, "version": [1, 0, NODE]}
    msgspec.convert(good, Record)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({**good, **bad}, Record)


def test_what_is_there_wins_over_its_deletion_of_the_same_version() -> None:
    there, gone = record("blob", DIGEST, ""), record("blob", DIGEST, None)
    assert there.newer_than(gone)
    assert not gone.newer_than(there)
    assert not there.newer_than(there)
    assert record("blob", DIGEST, None, 2).newer_than(there)


def test_of_two_values_of_one_version_every_build_index_takes_the_same() -> None:
    one, other = (record("manifest", DIGEST, ManifestEntry(OCI_MANIFEST, size)) for size in (1, 2))
    assert one.newer_than(other) != other.newer_than(one)


def test_batches_are_bounded_by_count() -> None:
    records = [record("tag", f"t{number}", DIGEST) for number in range(2 * MAX_BATCH + 1)]
    decoded = [msgspec.json.decode(body, type=Batch).records for body in batches(records)]
    assert [len(part) for part in decoded] == [MAX_BATCH, MAX_BATCH, 1]
    assert [one for part in decoded for one in part] == records


def test_batches_are_bounded_by_bytes() -> None:
    size = 3 * 1024 * 1024
    large = ManifestEntry(OCI_MANIFEST, 1, annotations={"a": "x" * size})
    records = [record("manifest", DIGEST, large), record("tag", "v", DIGEST)] * 3
    bodies = list(batches(records))
    assert len(bodies) == 3
    assert max(map(len, bodies)) <= MAX_BATCH_BODY
    decoded = [msgspec.json.decode(body, type=Batch).records for body in bodies]
    assert [one for part in decoded for one in part] == records


def test_nothing_makes_no_batch() -> None:
    assert list(batches([])) == []
