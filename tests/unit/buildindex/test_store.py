# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from shoal.buildindex import writes
from shoal.buildindex.clock import Version
from shoal.buildindex.database import Database, Transaction
from shoal.buildindex.records import Record
from shoal.buildindex.store import Store
from shoal.buildindex.view import View
from shoal.model.digest import Digest
from shoal.model.errors import Unavailable

DIGEST = Digest.of(b"x")


def put(name: str, wall_ms: int = 1) -> partial[int]:
    record = Record("tag", "app", name, str(DIGEST), Version(wall_ms, 0, "0" * 16))
    return partial(writes.take, records=[record])


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = Store(Database(tmp_path))
    yield store
    await store.close()


async def tags(store: Store) -> list[str]:
    page = await store.read(partial(View.tags, repository="app", last="", count=1_000))
    return page.names if page else []


async def test_writes_that_wait_together_are_one_transaction(store: Store) -> None:
    statements: list[str] = []
    store._database._writing.set_trace_callback(statements.append)
    written = await asyncio.gather(*(store.write(put(f"t{n}")) for n in range(200)))
    assert [one.result for one in written] == [1] * 200
    assert statements.count("COMMIT") <= 3
    assert len(await tags(store)) == 200


async def test_each_writer_hears_what_became_of_its_own_write(store: Store) -> None:
    def fail(transaction: Transaction) -> None:
        transaction.put("tag", "app", "never", str(DIGEST))
        raise writes.Lost([DIGEST])

    def tag(transaction: Transaction) -> str:
        transaction.put("tag", "app", "mine", str(DIGEST))
        return "done"

    first, lost, last = await asyncio.gather(
        store.write(put("first")), store.write(fail), store.write(tag), return_exceptions=True
    )
    assert not isinstance(first, BaseException)
    assert (first.result, first.records) == (1, [])  # a neighbour's record is not spread again
    assert isinstance(lost, writes.Lost)
    assert not isinstance(last, BaseException)
    assert last.result == "done"
    assert [record.name for record in last.records] == ["mine"]
    assert await tags(store) == ["first", "mine"]


async def test_a_disk_that_takes_no_write_fails_the_push_and_keeps_what_was(store: Store) -> None:
    await store.write(put("v1"))
    store._database._writing.execute("PRAGMA query_only = ON")
    for _ in range(2):
        with pytest.raises(Unavailable, match="could not write to"):
            await store.write(put("v2"))
    with pytest.raises(Unavailable):
        await store.probe()
    store._database._writing.execute("PRAGMA query_only = OFF")
    assert await tags(store) == ["v1"]
    assert (await store.write(put("v2"))).result == 1


async def test_a_writer_that_leaves_does_not_harm_the_others(store: Store) -> None:
    leaving = asyncio.create_task(store.write(put("leaving")))
    staying = asyncio.create_task(store.write(put("staying")))
    await asyncio.sleep(0)
    leaving.cancel()
    assert (await staying).result == 1
    assert "staying" in await tags(store)


async def test_an_operation_that_breaks_is_told_to_its_writer_and_the_next_one_works(
    store: Store,
) -> None:
    def broken(_transaction: Transaction) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await store.write(broken)
    assert (await store.write(put("v1"))).result == 1
