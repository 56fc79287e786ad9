# SPDX-License-Identifier: Apache-2.0
"""The contract on SQLite, and on a real PostgreSQL and MariaDB."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import exc

from shoal.backend.base import Repositories, TagName, TagsOf
from shoal.backend.sql import SqlBackend
from shoal.web.failures import Unreachable
from tests.integration.backends.contract import (
    REPOSITORY,
    DeadContract,
    DeadlineContract,
    DeniedContract,
    Place,
    TagContract,
    deadline,
    every_page,
)
from tests.integration.backends.mariadb import running_mariadb
from tests.unit.backend.postgres import PASSWORD_QUOTED, Postgres, running_postgres

TIMEOUT = 15.0
WRONG = "not-the-password"


class SqlContract(TagContract, DeadlineContract):
    """What every database keeps: tags and links, and no blobs."""

    asked = TagName(REPOSITORY, "asked-for")


class TestSqlite(SqlContract):
    @pytest.fixture
    async def place(self, tmp_path: Path) -> AsyncIterator[Place]:
        backend = SqlBackend(f"sqlite:///{tmp_path}/tags.sqlite")
        yield Place(backend)
        await backend.close()


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with running_postgres() as cluster:
        yield cluster


class TestPostgres(SqlContract, DeadContract, DeniedContract):
    # A driver that cannot connect has no code that says why.
    refusal = Unreachable

    @pytest.fixture
    async def place(self, postgres: Postgres) -> AsyncIterator[Place]:
        address, dead = f"127.0.0.1:{postgres.port}", "127.0.0.1:1"
        denied = postgres.url.replace(PASSWORD_QUOTED, WRONG)
        urls = [postgres.url, postgres.url.replace(address, dead), denied]
        async with opened(*urls) as backends:
            yield Place(backends[0], dead=backends[1], denied=backends[2], secret=WRONG)


@pytest.fixture(scope="module")
def mariadb() -> Iterator[int]:
    """The port of a server with a database."""
    with running_mariadb() as port:
        engine = sa.create_engine(f"mysql+pymysql://root@127.0.0.1:{port}/")
        ends = time.monotonic() + 30
        while True:
            try:
                with engine.begin() as connection:
                    connection.execute(sa.text("CREATE DATABASE shoal"))
                break
            except exc.OperationalError:
                assert time.monotonic() < ends, "MariaDB does not answer"
                time.sleep(0.05)
        engine.dispose()
        yield port


@pytest.mark.parametrize("scheme", ["mysql+pymysql", "mariadb+pymysql"])
class TestMariaDb(SqlContract, DeadContract):
    """Without credentials: that server has no accounts."""

    @pytest.fixture
    async def place(self, mariadb: int, scheme: str) -> AsyncIterator[Place]:
        urls = [f"{scheme}://root@127.0.0.1:{port}/shoal" for port in (mariadb, 1)]
        async with opened(*urls) as backends:
            yield Place(backends[0], dead=backends[1])


@asynccontextmanager
async def opened(url: str, *others: str) -> AsyncIterator[list[SqlBackend]]:
    """Backends, the first one without any tags."""
    backends = [SqlBackend(each, timeout=TIMEOUT) for each in (url, *others)]
    try:
        await emptied(backends[0])
        yield backends
    finally:
        for backend in backends:
            await backend.close()


async def emptied(backend: SqlBackend) -> None:
    """Remove all tags, once the server answers."""
    repositories: list[str] | None = None
    async with asyncio.timeout(30):
        while repositories is None:
            try:
                repositories = await every_page(backend, Repositories(), 100)
            except Unreachable:
                await asyncio.sleep(0.05)
    for repository in repositories:
        for tag in await every_page(backend, TagsOf(repository), 100):
            await backend.delete(TagName(repository, tag), deadline=deadline())
