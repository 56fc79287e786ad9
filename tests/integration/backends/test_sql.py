# SPDX-License-Identifier: Apache-2.0
"""The contract of tags on SQLite, and on a real PostgreSQL and MariaDB."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import exc

from shoal.backend.base import Repositories, TagName, TagsOf
from shoal.backend.sql import SqlBackend
from shoal.web.failures import Unreachable
from tests.integration.backends.contract import Place, TagContract, deadline, every_page
from tests.integration.backends.mariadb import running_mariadb
from tests.unit.backend.postgres import Postgres, running_postgres


class TestSqlite(TagContract):
    @pytest.fixture
    async def place(self, tmp_path: Path) -> AsyncIterator[Place]:
        backend = SqlBackend(f"sqlite:///{tmp_path}/tags.sqlite")
        yield Place(backend)
        await backend.close()


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with running_postgres() as cluster:
        yield cluster


class TestPostgres(TagContract):
    @pytest.fixture
    async def place(self, postgres: Postgres) -> AsyncIterator[Place]:
        backend = SqlBackend(postgres.url)
        await emptied(backend)
        yield Place(backend)
        await backend.close()


@pytest.fixture(scope="module")
def mariadb() -> Iterator[str]:
    """The URL of a database."""
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
        yield f"root@127.0.0.1:{port}/shoal"


@pytest.mark.parametrize("scheme", ["mysql+pymysql", "mariadb+pymysql"])
class TestMariaDb(TagContract):
    @pytest.fixture
    async def place(self, mariadb: str, scheme: str) -> AsyncIterator[Place]:
        backend = SqlBackend(f"{scheme}://{mariadb}")
        await emptied(backend)
        yield Place(backend)
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
