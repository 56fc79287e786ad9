# SPDX-License-Identifier: Apache-2.0
"""Tags in SQLite and in a real PostgreSQL."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from shoal.backend.base import BlobName, Blobs, LinkName, Name, Repositories, TagName, TagsOf
from shoal.backend.sql import SqlBackend
from shoal.model.digest import Digest
from shoal.web.deadline import Deadline
from shoal.web.failures import NotFound, Rejected, Unreachable
from tests.unit.backend.postgres import (
    PASSWORD,
    PASSWORD_QUOTED,
    Postgres,
    running_postgres,
)

ONE, TWO = Digest.of(b"one"), Digest.of(b"two", "sha512")


def soon() -> Deadline:
    return Deadline.after(20)


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with running_postgres() as cluster:
        yield cluster


@pytest.fixture(params=["sqlite", "postgresql"])
async def backend(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[SqlBackend]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/tags.sqlite"
    else:
        url = request.getfixturevalue("postgres").url
    made = await opened(url)
    page = await made.list(Repositories(), deadline=soon())
    for repository in page.names:
        for tag in (await made.list(TagsOf(repository), deadline=soon())).names:
            await made.delete(TagName(repository, tag), deadline=soon())
    yield made
    await made.close()


async def opened(url: str) -> SqlBackend:
    """The backend of a database that may be starting still."""
    made = SqlBackend(url, timeout=10)
    async with asyncio.timeout(30):
        while True:
            try:
                await made.list(Repositories(), deadline=soon())
            except Unreachable:
                await asyncio.sleep(0.05)
            else:
                return made


async def read(backend: SqlBackend, name: Name, start: int = 0, stop: int | None = None) -> bytes:
    async with backend.get(name, start, stop, deadline=soon()) as content:
        return b"".join([chunk async for chunk in content.chunks()])


async def test_a_tag_is_written_read_moved_and_deleted(backend: SqlBackend) -> None:
    name = TagName("team/app", "v1")
    assert await backend.stat(name, deadline=soon()) is None
    with pytest.raises(NotFound, match="team/app v1"):
        await read(backend, name)
    for digest in (ONE, TWO):
        await backend.put(name, str(digest).encode(), deadline=soon())
        assert await read(backend, name) == str(digest).encode()
        assert await backend.stat(name, deadline=soon()) == len(str(digest))
    assert await read(backend, name, 3, 10) == str(TWO).encode()[3:10]
    assert await backend.delete(name, deadline=soon())
    assert not await backend.delete(name, deadline=soon())
    assert await backend.stat(name, deadline=soon()) is None


async def test_a_tag_may_come_from_a_file(backend: SqlBackend, tmp_path: Path) -> None:
    file = tmp_path / "tag"
    file.write_text(f"{ONE}\n")
    await backend.put(TagName("a", "b"), file, deadline=soon())
    assert await read(backend, TagName("a", "b")) == str(ONE).encode()


async def test_tags_that_differ_by_case_are_two_and_order_is_that_of_bytes(
    backend: SqlBackend,
) -> None:
    tags = ["v1", "V1", "v-1", "v.1", "_x", "10", "9"]
    for tag in tags:
        await backend.put(TagName("a", tag), str(ONE).encode(), deadline=soon())
    await backend.put(TagName("a/b", "other"), str(ONE).encode(), deadline=soon())
    found: list[str] = []
    after: str | None = ""
    while after is not None:
        page = await backend.list(TagsOf("a"), after=after, limit=2, deadline=soon())
        found += page.names
        after = page.last
    assert found == sorted(tags)


async def test_repositories_are_listed_once_each(backend: SqlBackend) -> None:
    for repository in ("b", "a/x", "a"):
        for tag in ("1", "2"):
            await backend.put(TagName(repository, tag), str(ONE).encode(), deadline=soon())
    first = await backend.list(Repositories(), limit=2, deadline=soon())
    assert (first.names, first.last) == (("a", "a/x"), "a/x")
    rest = await backend.list(Repositories(), after="a/x", limit=2, deadline=soon())
    assert (rest.names, rest.last) == (("b",), None)


async def test_links_are_kept(backend: SqlBackend) -> None:
    link = LinkName("team/app", ONE, "blob")
    await backend.put(link, str(ONE).encode(), deadline=soon())
    await backend.put(link, str(ONE).encode(), deadline=soon())
    assert await read(backend, link) == str(ONE).encode()
    assert await backend.stat(LinkName("team/app", ONE, "manifest"), deadline=soon()) is None
    assert await backend.delete(link, deadline=soon())


async def test_blobs_and_what_is_no_digest_are_refused(backend: SqlBackend) -> None:
    name = BlobName("a", ONE)
    with pytest.raises(Rejected, match="no blobs"):
        await backend.stat(name, deadline=soon())
    with pytest.raises(Rejected, match="no blobs"):
        await backend.put(name, str(ONE).encode(), deadline=soon())
    with pytest.raises(Rejected, match="no blobs"):
        await backend.list(Blobs("a"), deadline=soon())
    with pytest.raises(Rejected, match="digest"):
        await backend.put(TagName("a", "b"), b"<html>", deadline=soon())


async def test_many_writers_of_one_tag_leave_one_of_their_digests(backend: SqlBackend) -> None:
    digests = [Digest.of(bytes([number])) for number in range(40)]
    name = TagName("busy", "latest")
    await asyncio.gather(
        *(backend.put(name, str(digest).encode(), deadline=soon()) for digest in digests)
    )
    assert (await read(backend, name)).decode() in map(str, digests)


async def test_several_processes_make_the_tables_at_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/new.sqlite"
    backends = [SqlBackend(url) for _ in range(6)]
    await asyncio.gather(
        *(it.put(TagName("a", "b"), str(ONE).encode(), deadline=soon()) for it in backends)
    )
    for backend in backends:
        assert await read(backend, TagName("a", "b")) == str(ONE).encode()
        await backend.close()


async def test_a_locked_database_is_unreachable_and_bounded(tmp_path: Path) -> None:
    path = tmp_path / "tags.sqlite"
    backend = SqlBackend(f"sqlite:///{path}", timeout=0.2)
    await backend.list(Repositories(), deadline=soon())
    locked = sqlite3.connect(path)
    locked.execute("BEGIN EXCLUSIVE")
    with pytest.raises(Unreachable, match="locked"):
        await backend.put(TagName("a", "b"), str(ONE).encode(), deadline=soon())
    locked.close()
    await backend.put(TagName("a", "b"), str(ONE).encode(), deadline=soon())
    await backend.close()


async def test_a_deadline_that_has_passed_asks_nothing(tmp_path: Path) -> None:
    backend = SqlBackend(f"sqlite:///{tmp_path}/tags.sqlite")
    with pytest.raises(Unreachable, match="not asked"):
        await backend.stat(TagName("a", "b"), deadline=Deadline.after(0))
    await backend.close()
    assert not (tmp_path / "tags.sqlite").exists()


async def test_a_wrong_password_is_no_part_of_the_error(postgres: Postgres) -> None:
    await (await opened(postgres.url)).close()
    for url in (
        postgres.url.replace(PASSWORD_QUOTED, "an-old-password"),
        postgres.url.replace(f":{PASSWORD_QUOTED}", "") + "?password=an-old-password",
    ):
        backend = SqlBackend(url, timeout=5)
        with pytest.raises(Unreachable, match="authentication failed") as failure:
            await backend.stat(TagName("a", "b"), deadline=soon())
        told = f"{failure.value!r} {failure.value} {backend.description}"
        assert "an-old-password" not in told
        assert PASSWORD not in told
        assert failure.value.__cause__ is None
        await backend.close()


async def test_a_database_that_was_restarted_is_used_again(postgres: Postgres) -> None:
    backend = await opened(postgres.url)
    name = TagName("restart", "v1")
    await backend.put(name, str(ONE).encode(), deadline=soon())
    postgres.stop()
    with pytest.raises(Unreachable):
        await backend.stat(name, deadline=soon())
    postgres.start()
    await (await opened(postgres.url)).close()
    assert await read(backend, name) == str(ONE).encode()
    await backend.close()


@pytest.mark.parametrize(
    "url, said",
    [
        ("not a url with a secret", "expected a database's URL"),
        ("oracle://scott:secret@host/db", "oracle is none of"),
        ("sqlite://", "needs a file"),
        ("sqlite:///:memory:", "needs a file"),
        ("postgresql+nosuch://user:secret@host/db", "no driver"),
    ],
)
def test_a_url_that_cannot_work_is_refused_without_its_password(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as failure:
        SqlBackend(url)
    assert "secret" not in str(failure.value)
