# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.buildindex.clock import Version
from shoal.buildindex.records import TagRecord
from shoal.buildindex.tags import TagDatabase, TagDatabaseUnusable, TagStore
from shoal.model.digest import Digest
from shoal.model.errors import Unavailable

NODE = "0" * 16


def record(
    tag: str, content: str, wall_ms: int = 1, *, repository: str = "app", node: str = NODE
) -> TagRecord:
    digest = str(Digest.of(content.encode()))
    return TagRecord(repository, tag, digest, Version(wall_ms, 0, node))


@pytest.fixture
def database(tmp_path: Path) -> Iterator[TagDatabase]:
    database = TagDatabase(tmp_path)
    yield database
    database.close()


def test_a_tag_that_was_put_is_read_and_listed_at_once(database: TagDatabase) -> None:
    assert database.apply([record("v1", "one")]) == [True]
    assert database.get("app", "v1") == record("v1", "one")
    assert database.tags("app", "", 10).names == ["v1"]
    assert database.repositories("", 10).names == ["app"]


def test_the_newer_write_wins_in_either_order(database: TagDatabase) -> None:
    old, new = record("v1", "old", 1), record("v1", "new", 2)
    assert database.apply([old, new]) == [True, True]
    assert database.apply([old, new]) == [False, False]
    assert database.get("app", "v1") == new


def test_tags_survive_a_restart_and_the_node_keeps_its_id(tmp_path: Path) -> None:
    database = TagDatabase(tmp_path)
    database.apply([record("v1", "one", 7)])
    node = database.node
    database.close()
    again = TagDatabase(tmp_path)
    assert again.get("app", "v1") == record("v1", "one", 7)
    assert again.node == node
    assert again.newest_version() == Version(7, 0, NODE)
    again.apply([record("v2", "two")])
    assert again.changes(1, 10).records == [record("v2", "two")]
    again.close()


def test_lists_are_in_ascii_order_and_paged(database: TagDatabase) -> None:
    names = ["B", "a", "_x", "10", "9", "v1.0", "v1-rc"]
    database.apply([record(name, name) for name in names])
    everything = sorted(names)
    assert database.tags("app", "", 100).names == everything
    pages = []
    last, more = "", True
    while more:
        page = database.tags("app", last, 2)
        pages += page.names
        last, more = page.names[-1], page.more
    assert pages == everything
    assert database.tags("app", "a", 100).names == [name for name in everything if name > "a"]


def test_repositories_are_in_ascii_order_and_paged(database: TagDatabase) -> None:
    names = ["library/app", "app", "app/inner", "app-x", "zoo"]
    database.apply(
        [record(f"t{number}", "x", repository=name) for name in names for number in range(3)]
    )
    assert database.repositories("", 100).names == sorted(names)
    page = database.repositories("app", 2)
    assert page.names == sorted(names)[1:3]
    assert page.more
    assert not database.repositories("library/app", 2).more


def test_changes_come_in_the_order_in_which_they_were_taken(database: TagDatabase) -> None:
    database.apply([record("a", "1"), record("b", "2")])
    database.apply([record("a", "3", 2)])
    page = database.changes(0, 1)
    assert page.records == [record("b", "2")]
    assert page.more
    rest = database.changes(page.next, 10)
    assert rest.records == [record("a", "3", 2)]
    assert not rest.more
    assert database.changes(rest.next, 10).records == []
    assert database.changes(rest.next, 10).next == rest.next


def test_a_sequence_number_from_before_a_set_back_gives_everything(database: TagDatabase) -> None:
    database.apply([record("a", "1")])
    assert database.changes(500, 10).records == [record("a", "1")]


def test_cursors_are_remembered(database: TagDatabase) -> None:
    assert database.cursor("host:1") is None
    database.set_cursor("host:1", NODE, 5)
    database.set_cursor("host:1", NODE, 6)
    assert database.cursor("host:1") == (NODE, 6)


@pytest.mark.usefixtures("database")
def test_a_second_process_on_the_data_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TagDatabaseUnusable, match="another build-index runs on"):
        TagDatabase(tmp_path)


def test_a_database_of_a_newer_shoal_is_refused(tmp_path: Path) -> None:
    TagDatabase(tmp_path).close()
    connection = sqlite3.connect(tmp_path / "tags.sqlite")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(TagDatabaseUnusable, match="newer Shoal"):
        TagDatabase(tmp_path)
    with pytest.raises(TagDatabaseUnusable, match="newer Shoal"):  # and the lock is not kept
        TagDatabase(tmp_path)


def test_a_file_that_is_no_database_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "tags.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(TagDatabaseUnusable, match=r"cannot open .*tags\.sqlite"):
        TagDatabase(tmp_path)


def test_every_commit_is_synced(database: TagDatabase) -> None:
    assert database._writing.execute("PRAGMA synchronous").fetchone() == (2,)
    assert database._writing.execute("PRAGMA journal_mode").fetchone() == ("wal",)


records = st.builds(
    TagRecord,
    st.just("app"),
    st.sampled_from(["v1", "v2"]),
    st.sampled_from([str(Digest.of(bytes([number]))) for number in range(3)]),
    st.builds(Version, st.integers(0, 3), st.integers(0, 2), st.sampled_from([NODE, "f" * 16])),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(records, max_size=12), st.data())
def test_build_indexes_agree_whatever_the_order_in_which_records_reach_them(
    written: list[TagRecord], data: st.DataObject
) -> None:
    ends = []
    for _ in range(2):
        order = data.draw(st.permutations(written + written[:3]))
        with tempfile.TemporaryDirectory() as folder:
            database = TagDatabase(Path(folder))
            cut = len(order) // 2
            database.apply(order[:cut])
            database.apply(order[cut:])
            ends.append([database.get("app", tag) for tag in ("v1", "v2")])
            database.close()
    assert ends[0] == ends[1]
    for end in filter(None, ends[0]):
        assert not any(r.newer_than(end) for r in written if r.tag == end.tag)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[TagStore]:
    store = TagStore(TagDatabase(tmp_path))
    yield store
    await store.close()


async def test_writes_that_wait_together_are_one_transaction(store: TagStore) -> None:
    statements: list[str] = []
    store._database._writing.set_trace_callback(statements.append)
    kept = await asyncio.gather(*(store.apply([record(f"t{n}", "x")]) for n in range(200)))
    assert kept == [[True]] * 200
    assert statements.count("COMMIT") <= 3
    page = await store.tags("app", "", 1000)
    assert page is not None
    assert len(page.names) == 200


async def test_each_writer_hears_what_became_of_its_own_records(store: TagStore) -> None:
    await store.apply([record("a", "x", 5)])
    batches = ([record("a", "y", 4), record("b", "y")], [record("c", "z")])
    kept = await asyncio.gather(*map(store.apply, batches))
    assert kept == [[False, True], [True]]


async def test_a_disk_that_takes_no_write_fails_the_push_and_keeps_the_old_tag(
    store: TagStore,
) -> None:
    await store.apply([record("v1", "old", 1)])
    store._database._writing.execute("PRAGMA query_only = ON")
    with pytest.raises(Unavailable, match="could not write to"):
        await store.apply([record("v1", "new", 2)])
    with pytest.raises(Unavailable):
        await store.probe()
    store._database._writing.execute("PRAGMA query_only = OFF")
    assert await store.get("app", "v1") == record("v1", "old", 1)
    assert await store.apply([record("v1", "new", 2)]) == [True]


async def test_a_repository_without_tags_is_not_an_empty_page(store: TagStore) -> None:
    await store.apply([record("v1", "x")])
    assert await store.tags("nothing", "", 10) is None
    page = await store.tags("app", "v1", 10)
    assert page is not None
    assert page.names == []
