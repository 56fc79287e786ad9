# SPDX-License-Identifier: Apache-2.0
"""The laws of the records: newest wins, replicas converge, and what is derived agrees with them."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.buildindex import writes
from shoal.buildindex.clock import Version
from shoal.buildindex.database import FILE, Database, DatabaseUnusable, Operation, Transaction
from shoal.buildindex.records import MAX_BATCH_BYTES, Kind, ManifestEntry, Record
from shoal.model.digest import Digest
from shoal.model.errors import Unsupported
from shoal.model.media_types import OCI_INDEX, OCI_MANIFEST

NODE = "0" * 16
OTHER = "f" * 16


def digest(content: str) -> str:
    return str(Digest.of(content.encode()))


def record(
    kind: Kind,
    name: str,
    value: str | ManifestEntry | None,
    wall_ms: int = 1,
    *,
    repository: str = "app",
) -> Record:
    return Record(kind, repository, name, value, Version(wall_ms, 0, NODE))


def tag(name: str, content: str, wall_ms: int = 1, *, repository: str = "app") -> Record:
    return record("tag", name, digest(content), wall_ms, repository=repository)


def manifest(
    content: str, wall_ms: int = 1, *references: str, subject: str | None = None
) -> Record:
    value = ManifestEntry(
        OCI_MANIFEST, len(content), references=[digest(ref) for ref in references], subject=subject
    )
    return record("manifest", digest(content), value, wall_ms)


def take(database: Database, *records: Record) -> int:
    (outcome,) = database.run([partial(writes.take, records=records)])
    return int(outcome.result)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path)
    yield database
    database.close()


def test_what_was_taken_is_read_and_listed_at_once(database: Database) -> None:
    assert take(database, tag("v1", "one")) == 1
    view = database.view
    assert view.tag("app", "v1") == digest("one")
    assert view.record("tag", "app", "v1") == tag("v1", "one")
    page = view.tags("app", "", 10)
    assert page is not None
    assert page.names == ["v1"]
    assert view.repositories("", 10).names == ["app"]


def test_the_newer_write_wins_in_either_order(database: Database) -> None:
    old, new = tag("v1", "old", 1), tag("v1", "new", 2)
    assert take(database, old, new) == 2
    assert take(database, old, new) == 0
    assert database.view.record("tag", "app", "v1") == new


def test_records_survive_a_restart_and_the_node_keeps_its_id(tmp_path: Path) -> None:
    database = Database(tmp_path, wall_ms=lambda: 5)
    take(database, tag("v1", "one", 7))
    node = database.node
    database.close()
    again = Database(tmp_path, wall_ms=lambda: 5)
    assert again.node == node
    assert again.view.tag("app", "v1") == digest("one")
    (outcome,) = again.run([lambda transaction: transaction.put("tag", "app", "v2", digest("two"))])
    assert outcome.result.version == Version(7, 1, node)  # later than all that is here
    assert [r.name for r in again.view.changes(1, 10).records] == ["v2"]
    again.close()


def test_tags_are_in_ascii_order_and_paged(database: Database) -> None:
    names = ["B", "a", "_x", "10", "9", "v1.0", "v1-rc"]
    take(database, *(tag(name, name) for name in names))
    pages: list[str] = []
    last, more = "", True
    while more:
        page = database.view.tags("app", last, 2)
        assert page is not None
        pages += page.names
        last, more = page.names[-1], page.more
    assert pages == sorted(names)


def test_repositories_are_those_with_a_live_tag_or_manifest_in_ascii_order(
    database: Database,
) -> None:
    names = ["library/app", "app", "app/inner", "app-x", "zoo"]
    take(
        database,
        *(tag(f"t{number}", "x", repository=name) for name in names for number in range(3)),
        record("blob", digest("b"), "", repository="blobs-only"),
        record("manifest", digest("m"), ManifestEntry(OCI_MANIFEST, 1), repository="untagged"),
        record("tag", "t", None, repository="deleted"),
    )
    everything = sorted([*names, "untagged"])
    assert database.view.repositories("", 100).names == everything
    page = database.view.repositories("app", 2)
    assert page.names == everything[1:3]
    assert page.more
    assert not database.view.repositories("library/app", 3).more


def test_a_repository_that_has_nothing_is_not_an_empty_page(database: Database) -> None:
    take(database, tag("v1", "x"), manifest("m"))
    assert database.view.tags("nothing", "", 10) is None
    page = database.view.tags("app", "v1", 10)
    assert page is not None
    assert page.names == []
    take(database, record("tag", "v1", None, 2))
    page = database.view.tags("app", "", 10)
    assert page is not None  # its manifest is still there
    take(database, record("manifest", digest("m"), None, 2))
    assert database.view.tags("app", "", 10) is None


def test_changes_come_in_the_order_in_which_they_were_taken(database: Database) -> None:
    take(database, tag("a", "1"), tag("b", "2"))
    take(database, tag("a", "3", 2))
    page = database.view.changes(0, 1)
    assert page.records == [tag("b", "2")]
    assert page.more
    rest = database.view.changes(page.next, 10)
    assert rest.records == [tag("a", "3", 2)]
    assert not rest.more
    end = database.view.changes(rest.next, 10)
    assert (end.records, end.next) == ([], rest.next)


def test_a_page_of_changes_is_bounded_by_bytes_and_never_empty(database: Database) -> None:
    size = MAX_BATCH_BYTES * 2 // 3
    large = [
        record("manifest", digest(str(n)), ManifestEntry(OCI_MANIFEST, 1, artifact_type="x" * size))
        for n in range(3)
    ]
    take(database, *large)
    after, pages = 0, []
    while True:
        page = database.view.changes(after, 100)
        pages.append(page.records)
        after = page.next
        if not page.more:
            break
    assert pages == [[one] for one in large]


def test_a_sequence_number_from_before_a_set_back_gives_everything(database: Database) -> None:
    take(database, tag("a", "1"))
    assert database.view.changes(500, 10).records == [tag("a", "1")]


def test_cursors_are_remembered(database: Database) -> None:
    assert database.view.cursor("host:1") is None
    database.set_cursor("host:1", NODE, 5)
    database.set_cursor("host:1", NODE, 6)
    assert database.view.cursor("host:1") == (NODE, 6)


@pytest.mark.usefixtures("database")
def test_a_second_process_on_the_data_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnusable, match="another build-index runs on"):
        Database(tmp_path)


@pytest.mark.parametrize("version, which", [(99, "a newer"), (1, "an older")])
def test_a_database_of_another_shoal_is_refused(tmp_path: Path, version: int, which: str) -> None:
    Database(tmp_path).close()
    connection = sqlite3.connect(tmp_path / FILE)
    connection.execute(f"PRAGMA user_version = {version}")
    connection.close()
    for _ in range(2):  # the lock is not kept
        with pytest.raises(DatabaseUnusable, match=which):
            Database(tmp_path)


def test_a_file_that_is_no_database_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"not a database" * 100)
    with pytest.raises(DatabaseUnusable, match=r"cannot open .*tags\.sqlite"):
        Database(tmp_path)


def test_every_commit_is_synced(database: Database) -> None:
    assert database._writing.execute("PRAGMA synchronous").fetchone() == (2,)
    assert database._writing.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_an_operation_that_refuses_leaves_nothing_and_the_others_are_kept(
    database: Database,
) -> None:
    def half(transaction: Transaction) -> None:
        transaction.put("tag", "app", "half", digest("x"))
        raise Unsupported("no")

    def whole(transaction: Transaction) -> None:
        transaction.put("tag", "app", "whole", digest("x"))

    refused, done = database.run([half, whole])
    assert isinstance(refused.refused, Unsupported)
    assert done.refused is None
    assert [one.name for one in done.written] == ["whole"]
    assert database.view.tag("app", "half") is None
    assert database.view.tag("app", "whole") == digest("x")


def test_an_operation_sees_those_before_it_in_the_same_transaction(database: Database) -> None:
    link: Operation = partial(writes.link, repository="app", digest=Digest.of(b"x"), renew_before=0)
    delete: Operation = partial(writes.delete_blob, repository="app", digest=Digest.of(b"x"))
    outcomes = database.run([delete, link, delete, delete])
    assert [outcome.result for outcome in outcomes] == [False, None, True, False]


def test_a_tag_is_hidden_by_a_newer_deletion_of_its_manifest_and_back_when_that_is(
    database: Database,
) -> None:
    take(database, manifest("m", 1), tag("v1", "m", 2))
    take(database, record("manifest", digest("m"), None, 3))
    assert database.view.tag("app", "v1") is None
    assert database.view.repositories("", 10).names == []
    take(database, manifest("m", 4))
    assert database.view.tag("app", "v1") == digest("m")


def test_a_tag_that_is_newer_than_the_deletion_of_its_manifest_is_live(database: Database) -> None:
    take(database, record("manifest", digest("m"), None, 3), tag("v1", "m", 4))
    assert database.view.tag("app", "v1") == digest("m")


def test_old_tombstones_are_purged_with_the_tags_that_they_hide(database: Database) -> None:
    take(
        database,
        tag("hidden", "m", 1),
        record("manifest", digest("m"), None, 3),
        record("tag", "gone", None, 4),
        record("blob", digest("b"), None, 9),
    )
    newest = database.view.changes(0, 10).next
    assert database.purge(9) == 2
    assert database.view.record("tag", "app", "hidden") is None
    assert database.view.record("tag", "app", "gone") is None
    assert database.view.record("blob", "app", digest("b")) is not None
    assert database.purge(100) == 1
    assert database.purge(100) == 0
    # A neighbour that has seen all of it must see what comes next.
    take(database, tag("new", "n", 200))
    assert [r.name for r in database.view.changes(newest, 10).records] == ["new"]


def test_a_snapshot_is_of_one_moment(database: Database) -> None:
    take(database, record("blob", digest("a"), ""))
    with database.snapshot() as view:
        assert len(view.contents("app").links) == 1
        take(database, record("blob", digest("b"), ""))
        assert len(view.contents("app").links) == 1
    with database.snapshot() as view:
        assert len(view.contents("app").links) == 2


def test_contents_are_all_that_garbage_collection_judges(database: Database) -> None:
    take(
        database,
        tag("v1", "m"),
        manifest("m", 2, "config", "layer", subject=digest("s")),
        record("blob", digest("layer"), "", 3),
        record("blob", digest("gone"), None, 3),
        record("blob", digest("elsewhere"), "", 3, repository="other"),
    )
    contents = database.view.contents("app")
    assert contents.tags == {"v1": digest("m")}
    (found,) = contents.manifests
    assert (found.digest, found.version.wall_ms, found.subject) == (digest("m"), 2, digest("s"))
    assert set(found.references) == {digest("config"), digest("layer")}
    assert [(link.digest, link.version.wall_ms) for link in contents.links] == [
        (digest("layer"), 3)
    ]
    assert database.view.collected("", 10).names == ["app", "other"]


DIGESTS = [digest(name) for name in "abc"]

versions = st.builds(Version, st.integers(0, 3), st.integers(0, 2), st.sampled_from([NODE, OTHER]))
entries = st.builds(
    ManifestEntry,
    st.sampled_from([OCI_MANIFEST, OCI_INDEX]),
    st.integers(0, 2),
    subject=st.none() | st.sampled_from(DIGESTS),
    references=st.lists(st.sampled_from(DIGESTS), max_size=2),
)
records = st.one_of(
    st.builds(
        Record,
        st.just("tag"),
        st.just("app"),
        st.sampled_from(["v1", "v2"]),
        st.none() | st.sampled_from(DIGESTS),
        versions,
    ),
    st.builds(
        Record,
        st.just("manifest"),
        st.just("app"),
        st.sampled_from(DIGESTS),
        st.none() | entries,
        versions,
    ),
    st.builds(
        Record,
        st.just("blob"),
        st.just("app"),
        st.sampled_from(DIGESTS),
        st.sampled_from([None, ""]),
        versions,
    ),
)

DERIVED = (
    "SELECT repository, tag, digest FROM tags",
    "SELECT repository, digest, media_type, size, subject FROM manifests",
    "SELECT repository, manifest, target FROM refs",
)


def everything(database: Database) -> list[set[object]]:
    connection = database._writing
    stored = "SELECT kind, repository, name, value, wall_ms, counter, node FROM records"
    return [set(connection.execute(statement)) for statement in (stored, *DERIVED)]


def newest_of(written: Sequence[Record]) -> dict[tuple[str, str], Record]:
    newest: dict[tuple[str, str], Record] = {}
    for one in written:
        if one.newer_than(newest.get((one.kind, one.name))):
            newest[one.kind, one.name] = one
    return newest


@settings(max_examples=40, deadline=None)
@given(st.lists(records, max_size=14), st.data())
def test_build_indexes_end_alike_whatever_the_order_in_which_records_reach_them(
    written: list[Record], data: st.DataObject
) -> None:
    ends = []
    for _ in range(2):
        order = data.draw(st.permutations(written + written[:3]))
        with tempfile.TemporaryDirectory() as folder:
            database = Database(Path(folder))
            cut = len(order) // 2
            take(database, *order[:cut])
            take(database, *order[cut:])
            before = everything(database)
            assert take(database, *order) == 0  # once more changes nothing
            assert everything(database) == before
            ends.append(before)
            for (kind, name), one in newest_of(written).items():
                assert database.view.record(one.kind, "app", name) == one, kind
            database.close()
    assert ends[0] == ends[1]


@settings(max_examples=40, deadline=None)
@given(st.lists(records, max_size=14))
def test_what_is_derived_is_what_the_newest_records_say(written: list[Record]) -> None:
    newest = newest_of(written)
    live = {}
    for (kind, name), one in newest.items():
        if kind == "tag" and isinstance(one.value, str):
            of = newest.get(("manifest", one.value))
            if of is None or of.value is not None or of.version <= one.version:
                live[name] = one.value
    manifests = {
        name: one.value
        for (kind, name), one in newest.items()
        if kind == "manifest" and isinstance(one.value, ManifestEntry)
    }
    with tempfile.TemporaryDirectory() as folder:
        database = Database(Path(folder))
        for one in written:
            take(database, one)
        view = database.view
        page = view.tags("app", "", 10)
        assert (page.names if page else []) == sorted(live)
        assert {name: view.tag("app", name) for name in live} == live
        for name in DIGESTS:
            blob = newest.get(("blob", name))
            linked = blob is not None and blob.value is not None
            assert (view.linked_at("app", name) is not None) == linked
            assert view.has_manifest("app", name) == (name in manifests)
            users = {of for of, entry in manifests.items() if name in entry.references}
            assert set(view.referencing("app", name, 10)) == users
            assert set(view.tags_of("app", name)) == {t for t, to in live.items() if to == name}
            mentions = linked + (name in manifests) + list(live.values()).count(name) + len(users)
            assert view.mentions([name]) == {name: mentions}
            expected = linked or name in manifests or name in live.values() or bool(users)
            assert view.wanted([name]) == ([name] if expected else [])
            page_of = view.referrers("app", Digest.parse(name), None, "", 10)
            assert [r.digest for r in page_of.referrers] == sorted(
                of for of, entry in manifests.items() if entry.subject == name
            )
        database.close()
