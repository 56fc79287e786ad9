# SPDX-License-Identifier: Apache-2.0
"""Pushes, mounts, deletions and garbage collection against one database."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shoal.buildindex import writes
from shoal.buildindex.clock import Version
from shoal.buildindex.database import Database, Outcome
from shoal.buildindex.garbage import Condemned, mark
from shoal.buildindex.records import ManifestEntry
from shoal.model.digest import Digest
from shoal.model.errors import Unsupported
from shoal.model.media_types import OCI_INDEX, OCI_MANIFEST

CONFIG, LAYER, MANIFEST, INDEX, SUBJECT = (
    Digest.of(name.encode()) for name in ("config", "layer", "manifest", "index", "subject")
)
ENTRY = ManifestEntry(OCI_MANIFEST, 10, references=[str(CONFIG), str(LAYER)])


class Index:
    """A database whose wall clock (ms) the test sets."""

    def __init__(self, folder: Path) -> None:
        self.now = 1_000
        self.database = Database(folder, wall_ms=lambda: self.now)
        self.view = self.database.view

    def do(self, operation: Callable[..., Any], *args: object, **given: object) -> Outcome:
        (outcome,) = self.database.run([lambda transaction: operation(transaction, *args, **given)])
        if outcome.refused is not None:
            raise outcome.refused
        return outcome

    def link(self, *digests: Digest, repository: str = "app") -> None:
        for digest in digests:
            self.do(writes.link, repository, digest, renew_before=0)

    def put(
        self,
        digest: Digest = MANIFEST,
        entry: ManifestEntry = ENTRY,
        tags: tuple[str, ...] = ("v1",),
        *,
        renew_before: int = 0,
        manifests: tuple[Digest, ...] = (),
    ) -> Outcome:
        blobs = [Digest.parse(name) for name in entry.references]
        return self.do(
            writes.put_manifest,
            "app",
            digest,
            entry,
            tags,
            needs_blobs=[blob for blob in blobs if blob not in manifests],
            needs_manifests=manifests,
            renew_before=renew_before,
        )

    def image(self) -> None:
        self.link(CONFIG, LAYER)
        self.put()

    def written_at(self, digest: Digest) -> int | None:
        return self.view.linked_at("app", str(digest))

    def condemned(self, *, grace_ms: int, untagged: Any = "keep") -> list[Condemned]:
        return mark(
            self.view.contents("app"),
            now=self.now / 1000,
            grace=grace_ms / 1000,
            untagged=untagged,
        )


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    index = Index(tmp_path)
    yield index
    index.database.close()


def names(records: Any) -> list[tuple[str, str, bool]]:
    return sorted((r.kind, r.name, r.value is not None) for r in records)


# -- pushes ---------------------------------------------------------------------------------------


def test_a_manifest_and_its_tags_are_one_write(index: Index) -> None:
    index.link(CONFIG, LAYER)
    outcome = index.put(tags=("v1", "latest"))
    assert names(outcome.written) == [
        ("manifest", str(MANIFEST), True),
        ("tag", "latest", True),
        ("tag", "v1", True),
    ]
    assert len({record.version for record in outcome.written}) == 1
    found = index.view.find_manifest("app", "latest")
    assert found is not None
    assert (found.digest, found.media_type, found.size) == (MANIFEST, OCI_MANIFEST, 10)
    assert index.view.find_manifest("app", str(MANIFEST)) == found
    assert index.view.find_manifest("other", str(MANIFEST)) is None


def test_a_manifest_whose_layer_has_left_meanwhile_is_refused_whole(index: Index) -> None:
    index.image()
    with pytest.raises(writes.Lost) as lost:
        index.do(
            writes.put_manifest,
            "app",
            INDEX,
            ManifestEntry(OCI_INDEX, 5),
            ["v1"],
            needs_blobs=[LAYER, SUBJECT],
            needs_manifests=[MANIFEST, INDEX],
            renew_before=0,
        )
    assert lost.value.digests == {SUBJECT, INDEX}
    assert index.view.tag("app", "v1") == str(MANIFEST)
    assert not index.view.has_manifest("app", str(INDEX))


def test_a_push_renews_what_it_relies_on_when_that_is_old(index: Index) -> None:
    index.image()
    index.now = 5_000
    assert names(index.put(tags=(), renew_before=1_000).written) == [
        ("manifest", str(MANIFEST), True)
    ]
    renewed = index.put(tags=(), renew_before=1_001).written
    assert names(renewed) == [
        ("blob", str(CONFIG), True),
        ("blob", str(LAYER), True),
        ("manifest", str(MANIFEST), True),
    ]
    assert index.written_at(LAYER) == 5_000


def test_an_index_renews_the_records_of_its_children(index: Index) -> None:
    index.image()
    index.now = 5_000
    entry = ManifestEntry(OCI_INDEX, 5, references=[str(MANIFEST)])
    outcome = index.put(INDEX, entry, manifests=(MANIFEST,), renew_before=2_000)
    assert ("manifest", str(MANIFEST), True) in names(outcome.written)
    child = index.view.record("manifest", "app", str(MANIFEST))
    assert child is not None
    assert (child.value, child.version.wall_ms) == (ENTRY, 5_000)


def test_adoption_makes_all_that_a_tag_needs_part_of_the_repository(index: Index) -> None:
    top = ManifestEntry(OCI_INDEX, 5, references=[str(MANIFEST)])

    def adopt() -> Outcome:
        return index.do(
            writes.adopt,
            "app",
            "v1",
            INDEX,
            manifests={MANIFEST: ENTRY, INDEX: top},
            blobs=[CONFIG, LAYER],
            renew_before=0,
        )

    adopt()
    assert index.view.tag("app", "v1") == str(INDEX)
    assert index.view.absent("app", [CONFIG, LAYER], [MANIFEST, INDEX]) == set()
    assert names(adopt().written) == [("manifest", str(INDEX), True), ("tag", "v1", True)]
    index.do(writes.delete_manifest, "app", MANIFEST)
    adopt()
    assert index.view.has_manifest("app", str(MANIFEST))


def test_a_tag_of_something_that_is_no_manifest_is_found_without_a_type(index: Index) -> None:
    index.do(writes.adopt, "app", "v1", LAYER, manifests={}, blobs=(), renew_before=0)
    found = index.view.find_manifest("app", "v1")
    assert found is not None
    assert (found.digest, found.media_type, found.size) == (LAYER, "", 0)
    assert index.view.find_manifest("app", str(LAYER)) is None


def test_a_link_that_is_young_is_not_written_again(index: Index) -> None:
    index.link(LAYER)
    assert index.do(writes.link, "app", LAYER, renew_before=1_000).written == []
    index.now = 9_000
    assert len(index.do(writes.link, "app", LAYER, renew_before=1_001).written) == 1


@pytest.mark.parametrize(
    "source, there", [("app", True), (None, True), ("other", False), ("new", False)]
)
def test_a_blob_is_mounted_only_from_where_it_is(
    index: Index, source: str | None, there: bool
) -> None:
    index.link(LAYER)
    outcome = index.do(writes.mount, "new", LAYER, source, renew_before=0)
    assert outcome.result is there
    assert (index.view.linked_at("new", str(LAYER)) is not None) is there


def test_nothing_is_mounted_from_where_the_blob_was_deleted(index: Index) -> None:
    index.link(LAYER)
    index.do(writes.delete_blob, "app", LAYER)
    assert index.do(writes.mount, "new", LAYER, None, renew_before=0).result is False
    assert index.do(writes.mount, "new", LAYER, "app", renew_before=0).result is False


def test_relying_on_blobs_renews_those_that_are_there_and_old(index: Index) -> None:
    index.link(LAYER)
    index.now = 2_000
    index.link(CONFIG)
    index.now = 3_000
    pairs = [("app", str(LAYER)), ("app", str(CONFIG)), ("app", str(SUBJECT)), ("no", str(LAYER))]
    outcome = index.do(writes.rely, pairs, renew_before=1_500)
    assert outcome.result == [True, True, False, False]
    assert names(outcome.written) == [("blob", str(LAYER), True)]


# -- deletions ------------------------------------------------------------------------------------


def test_deleting_a_tag_leaves_the_manifest(index: Index) -> None:
    index.image()
    assert index.do(writes.delete_tag, "app", "v1").result is True
    assert index.view.tag("app", "v1") is None
    assert index.view.has_manifest("app", str(MANIFEST))
    assert index.do(writes.delete_tag, "app", "v1").result is False
    assert index.do(writes.delete_tag, "app", "never").written == []


def test_deleting_a_manifest_deletes_the_tags_that_point_to_it(index: Index) -> None:
    index.image()
    index.put(tags=("latest",))
    index.put(INDEX, ManifestEntry(OCI_INDEX, 5), tags=("other",))
    outcome = index.do(writes.delete_manifest, "app", MANIFEST)
    assert names(outcome.written) == [
        ("manifest", str(MANIFEST), False),
        ("tag", "latest", False),
        ("tag", "v1", False),
    ]
    page = index.view.tags("app", "", 10)
    assert page is not None
    assert page.names == ["other"]
    assert index.do(writes.delete_manifest, "app", MANIFEST).result is False
    index.put(tags=("v1",))
    assert index.view.tag("app", "v1") == str(MANIFEST)
    assert index.view.tag("app", "latest") is None


def test_what_a_tag_without_a_manifest_record_points_to_is_deleted_with_it(index: Index) -> None:
    index.do(writes.adopt, "app", "v1", LAYER, manifests={}, blobs=(), renew_before=0)
    assert index.do(writes.delete_manifest, "app", LAYER).result is True
    assert index.view.tag("app", "v1") is None


def test_a_blob_of_a_manifest_is_not_deleted_before_that(index: Index) -> None:
    index.image()
    with pytest.raises(Unsupported, match=str(MANIFEST)) as refused:
        index.do(writes.delete_blob, "app", LAYER)
    assert refused.value.detail == {"digest": str(LAYER), "manifests": [str(MANIFEST)]}
    index.do(writes.delete_manifest, "app", MANIFEST)
    assert index.do(writes.delete_blob, "app", LAYER).result is True
    assert index.written_at(LAYER) is None
    assert index.do(writes.delete_blob, "app", LAYER).result is False


def test_a_manifest_of_another_repository_does_not_keep_a_blob(index: Index) -> None:
    index.image()
    index.link(LAYER, repository="other")
    assert index.do(writes.delete_blob, "other", LAYER).result is True
    assert index.written_at(LAYER) is not None


# -- garbage collection ---------------------------------------------------------------------------


def test_what_no_manifest_references_is_collected_after_the_grace_time(index: Index) -> None:
    index.image()
    index.link(SUBJECT)
    index.now = 2_000
    assert index.condemned(grace_ms=1_000) == []
    index.now = 2_001
    condemned = index.condemned(grace_ms=1_000)
    assert [one.name for one in condemned] == [str(SUBJECT)]
    outcome = index.do(writes.collect, condemned)
    assert outcome.result == condemned
    assert names(outcome.written) == [("blob", str(SUBJECT), False)]
    assert index.view.absent("app", [CONFIG, LAYER, SUBJECT], []) == {SUBJECT}


def test_a_link_that_was_renewed_after_it_was_judged_stays(index: Index) -> None:
    index.link(LAYER)
    index.now = 10_000
    condemned = index.condemned(grace_ms=1_000)
    assert len(condemned) == 1
    index.do(writes.rely, [("app", str(LAYER))], renew_before=5_000)
    assert index.do(writes.collect, condemned).result == []
    assert index.written_at(LAYER) == 10_000


def test_a_link_that_a_manifest_came_to_reference_stays(index: Index) -> None:
    index.link(CONFIG, LAYER)
    index.now = 10_000
    condemned = index.condemned(grace_ms=1_000)
    assert len(condemned) == 2
    index.put(tags=())
    assert index.do(writes.collect, condemned).result == []


def test_untagged_manifests_and_what_only_they_need_go_together(index: Index) -> None:
    index.image()
    index.now = 10_000
    assert index.condemned(grace_ms=1_000, untagged="remove") == []
    index.do(writes.delete_tag, "app", "v1")
    condemned = index.condemned(grace_ms=1_000, untagged="remove")
    assert {one.name for one in condemned} == {str(MANIFEST), str(CONFIG), str(LAYER)}
    assert index.do(writes.collect, condemned).result == condemned
    assert index.view.repositories("", 10).names == []


def test_a_manifest_that_was_tagged_after_it_was_judged_stays_with_its_blobs(
    index: Index,
) -> None:
    index.image()
    index.do(writes.delete_tag, "app", "v1")
    index.now = 10_000
    condemned = index.condemned(grace_ms=1_000, untagged="remove")
    index.put(tags=("v2",))
    assert index.do(writes.collect, condemned).result == []
    assert index.view.tag("app", "v2") == str(MANIFEST)
    assert index.view.absent("app", [CONFIG, LAYER], [MANIFEST]) == set()


def test_a_renewal_on_another_build_index_wins_over_the_collection_here(
    index: Index, tmp_path: Path
) -> None:
    index.link(LAYER)
    other = Index(tmp_path / "other")
    other.now = index.now = 10_000
    other.do(writes.take, index.view.changes(0, 10).records)
    (deleted,) = index.do(writes.collect, index.condemned(grace_ms=1_000)).written
    (renewed,) = other.do(writes.rely, [("app", str(LAYER))], renew_before=9_000).written
    assert deleted.version == Version(1_000, 1, index.database.node)
    for one, order in ((index, [renewed]), (other, [deleted])):
        one.do(writes.take, order)
        assert one.written_at(LAYER) == 10_000
    other.database.close()


# -- referrers ------------------------------------------------------------------------------------


def referrer(index: Index, name: str, artifact_type: str = "text/a", **annotations: str) -> Digest:
    digest = Digest.of(name.encode())
    entry = ManifestEntry(
        OCI_MANIFEST,
        7,
        subject=str(SUBJECT),
        artifact_type=artifact_type,
        annotations=annotations,
    )
    index.put(digest, entry, tags=())
    return digest


def test_referrers_are_sorted_filtered_and_paged_and_need_no_subject(index: Index) -> None:
    found = sorted(str(referrer(index, f"r{number}")) for number in range(5))
    other = str(referrer(index, "sbom", "text/b", made="yes"))
    page = index.view.referrers("app", SUBJECT, None, "", 10)
    assert [one.digest for one in page.referrers] == sorted([*found, other])
    assert not page.more
    (sbom,) = index.view.referrers("app", SUBJECT, "text/b", "", 10).referrers
    assert (sbom.digest, sbom.media_type, sbom.size) == (other, OCI_MANIFEST, 7)
    assert (sbom.artifact_type, sbom.annotations) == ("text/b", {"made": "yes"})
    first = index.view.referrers("app", SUBJECT, "text/a", "", 2)
    rest = index.view.referrers("app", SUBJECT, "text/a", first.referrers[-1].digest, 10)
    assert [r.digest for r in (*first.referrers, *rest.referrers)] == found
    assert (first.more, rest.more) == (True, False)
    assert index.view.referrers("other", SUBJECT, None, "", 10).referrers == []
    assert index.view.referrers("app", LAYER, None, "", 10).referrers == []


def test_a_referrer_that_is_deleted_is_listed_no_more(index: Index) -> None:
    one = referrer(index, "r")
    index.do(writes.delete_manifest, "app", one)
    assert index.view.referrers("app", SUBJECT, None, "", 10).referrers == []


def test_a_page_of_referrers_ends_when_their_annotations_are_large(index: Index) -> None:
    for number in range(4):
        referrer(index, f"r{number}", note="x" * 1_500_000)
    listed: list[str] = []
    sizes = []
    last, more = "", True
    while more:
        page = index.view.referrers("app", SUBJECT, None, last, 100)
        sizes.append(len(page.referrers))
        listed += [one.digest for one in page.referrers]
        last, more = listed[-1], page.more
    assert sizes == [2, 2]
    assert listed == sorted(listed)
    assert len(set(listed)) == 4


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_what_older_clients_list_under_the_fallback_tag_is_among_the_referrers(
    index: Index, algorithm: str
) -> None:
    subject = Digest.of(b"subject", algorithm)
    index.image()
    missing = Digest.of(b"a child that is not here")
    fallback = ManifestEntry(OCI_INDEX, 9, references=[str(MANIFEST), str(missing)])
    tag = f"{algorithm}-{subject.hex[:64]}"
    index.do(
        writes.put_manifest,
        "app",
        INDEX,
        fallback,
        [tag],
        needs_blobs=(),
        needs_manifests=(),
        renew_before=0,
    )
    page = index.view.referrers("app", subject, None, "", 10)
    assert [one.digest for one in page.referrers] == [str(MANIFEST)]
    assert index.view.referrers("app", subject, None, str(MANIFEST), 10).referrers == []
    # A client that knows both ways pushes it with a subject, too: it is listed once.
    both = ManifestEntry(OCI_MANIFEST, 10, subject=str(subject))
    index.put(MANIFEST, both, tags=())
    page = index.view.referrers("app", subject, None, "", 10)
    assert [one.digest for one in page.referrers] == [str(MANIFEST)]
    index.do(writes.delete_tag, "app", tag)
    assert len(index.view.referrers("app", subject, None, "", 10).referrers) == 1


# -- many -----------------------------------------------------------------------------------------


def test_many_tags_of_one_manifest_are_deleted_with_it(index: Index) -> None:
    index.link(CONFIG, LAYER)
    index.put(tags=tuple(f"t{number}" for number in range(3_000)))
    page = index.view.tags("app", "", 10_000)
    assert page is not None
    assert len(page.names) == 3_000
    outcome = index.do(writes.delete_manifest, "app", MANIFEST)
    assert len(outcome.written) == 3_001
    assert index.view.tags("app", "", 10) is None


def test_lookups_and_lists_are_answered_from_indexes(index: Index) -> None:
    """No statement of a request reads a whole table."""
    plans: list[str] = []
    statements: list[str] = []
    reading = index.view._connection
    index.image()
    reading.set_trace_callback(statements.append)
    view = index.view
    view.tags("app", "", 10)
    view.repositories("", 10)
    view.collected("", 10)
    view.find_manifest("app", "v1")
    view.find_manifest("app", str(MANIFEST))
    view.linked_at("app", str(LAYER))
    view.linked_anywhere(str(LAYER))
    view.referencing("app", str(LAYER), 5)
    view.tags_of("app", str(MANIFEST))
    view.wanted([str(LAYER)])
    view.referrers("app", SUBJECT, "x", "", 5)
    view.changes(0, 10)
    reading.set_trace_callback(None)
    for statement in statements:
        rows = reading.execute(f"EXPLAIN QUERY PLAN {statement}").fetchall()
        plans += [row[3] for row in rows]
    assert len(statements) >= 12
    assert any("USING INDEX referrers (repository=? AND subject=?" in plan for plan in plans)
    scans = [plan for plan in plans if plan.startswith("SCAN")]
    allowed = ("SCAN found", "SCAN (subquery", "SCAN CONSTANT ROW", "SCAN sqlite_sequence")
    assert [scan for scan in scans if not scan.startswith(allowed)] == []
