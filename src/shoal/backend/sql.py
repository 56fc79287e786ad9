# SPDX-License-Identifier: Apache-2.0
"""Tags, and what belongs to a repository, in a database: SQLite, PostgreSQL, MySQL, MariaDB.

Needs the extra `sql`; nothing else imports this module. The tables ``tags`` and ``links`` are made
when they are not there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.dialects import mysql, postgresql, sqlite

from shoal.backend.asking import Call
from shoal.backend.base import (
    BlobName,
    Content,
    LinkName,
    Listing,
    Name,
    Page,
    Repositories,
    Source,
    TagName,
    TagsOf,
)
from shoal.backend.config import SqlBackendConfig
from shoal.backend.content import TextContent
from shoal.backend.sources import as_source
from shoal.model.digest import Digest, InvalidDigest
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, NotFound, Rejected, Unreachable

CONNECTIONS = 4
"""Connections of one process, and threads that wait for the database."""

_DETAIL = 300
_DIALECTS = ("sqlite", "postgresql", "mysql", "mariadb")

T = TypeVar("T")


def _text(length: int) -> sa.types.TypeEngine[str]:
    """Text that is compared and ordered by its bytes: the tags V1 and v1 are two."""
    plain = sa.String(length)
    exact = mysql.VARCHAR(length, charset="ascii", collation="ascii_bin")
    return plain.with_variant(sa.String(length, collation="C"), "postgresql").with_variant(
        exact, "mysql", "mariadb"
    )


_METADATA = sa.MetaData()
_TAGS = sa.Table(
    "tags",
    _METADATA,
    sa.Column("repository", _text(255), primary_key=True),
    sa.Column("tag", _text(128), primary_key=True),
    sa.Column("digest", _text(140), nullable=False),
    sa.Column("updated", sa.DateTime(timezone=True), nullable=False),
)
_LINKS = sa.Table(
    "links",
    _METADATA,
    sa.Column("repository", _text(255), primary_key=True),
    sa.Column("digest", _text(140), primary_key=True),
    sa.Column("kind", _text(8), primary_key=True),
    sa.Column("updated", sa.DateTime(timezone=True), nullable=False),
)


class SqlBackend:
    """Tags and links as rows; blobs are `Rejected`."""

    def __init__(self, url: str, *, timeout: float = 15.0) -> None:
        """`url` is SQLAlchemy's; `timeout` (seconds) bounds each question to the database.

        Raises `ValueError` for a URL that is none, without repeating it: it has a password.
        """
        try:
            parsed = sa.make_url(url)
        except exc.ArgumentError:
            raise ValueError(
                "expected a database's URL, such as postgresql+psycopg://user:password@host/name"
            ) from None
        self._dialect = parsed.get_backend_name()
        if self._dialect not in _DIALECTS:
            raise ValueError(f"{self._dialect} is none of {', '.join(_DIALECTS)}")
        if self._dialect == "sqlite" and parsed.database in (None, "", ":memory:"):
            raise ValueError("SQLite needs a file, such as sqlite:////var/lib/shoal/tags.sqlite")
        address = "" if parsed.host is None else parsed.host
        port = "" if parsed.port is None else f":{parsed.port}"
        self.description = f"{self._dialect}://{address}{port}/{parsed.database or ''}"
        self.read_only = False
        self._secrets = [text for text in (parsed.password, *_secrets(parsed)) if text]
        try:
            self._engine = sa.create_engine(
                parsed,
                pool_size=CONNECTIONS,
                max_overflow=0,
                pool_timeout=timeout,
                pool_pre_ping=True,
                connect_args=_connect_args(parsed, timeout),
            )
        except (ImportError, exc.ArgumentError, TypeError) as error:
            raise ValueError(
                f"no driver for {parsed.drivername}: pip install 'shoal[sql]' and use "
                "postgresql+psycopg:// or mysql+pymysql://"
            ) from error
        if self._dialect == "sqlite":
            sa.event.listen(self._engine, "connect", _safe_sqlite)
        self._threads = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="sql")
        self._slots = asyncio.Semaphore(CONNECTIONS)
        self._ready = False

    @classmethod
    def of(cls, config: SqlBackendConfig) -> SqlBackend:
        """The backend of a config entry; raises `ValueError` as the constructor does."""
        return cls(config.url.get_secret_value(), timeout=config.timeout)

    async def stat(self, name: Name, *, deadline: Deadline) -> int | None:
        """Bytes of the digest's text, or None: there is no such row."""
        digest = await self._digest("SELECT", name, deadline)
        return None if digest is None else len(digest)

    @asynccontextmanager
    async def get(
        self, name: Name, start: int = 0, stop: int | None = None, *, deadline: Deadline
    ) -> AsyncIterator[Content]:
        """The digest's text."""
        digest = await self._digest("SELECT", name, deadline)
        if digest is None:
            raise NotFound("SELECT", self._shown(name), "there is no such row")
        yield TextContent(digest, start, stop)

    async def put(self, name: Name, source: Path | bytes | Source, *, deadline: Deadline) -> None:
        """Insert the row, or change its digest, in one transaction."""
        call = self._call("UPSERT", name)
        # A link's content is in its name; a tag's has to be read.
        digest = str(name.digest) if isinstance(name, LinkName) else await _digest_in(call, source)
        table, key = self._row("UPSERT", name)
        values = {**key, "digest": digest, "updated": datetime.now(UTC)}
        statement = self._upsert(table, values, list(key))
        await self._run(call, deadline, lambda connection: connection.execute(statement))

    async def list(
        self, listing: Listing, *, after: str = "", limit: int = 1000, deadline: Deadline
    ) -> Page:
        """A page of tags, or of the repositories that have one."""
        call = Call("SELECT", self.description)
        match listing:
            case TagsOf():
                column = _TAGS.c.tag
                query = sa.select(column).where(_TAGS.c.repository == listing.repository)
            case Repositories():
                column = _TAGS.c.repository
                query = sa.select(column).distinct()
            case _:
                raise call.rejected("a database has tags and no blobs")
        query = query.where(column > after).order_by(column).limit(limit + 1)
        names = await self._run(
            call, deadline, lambda connection: connection.execute(query).scalars().all()
        )
        more = len(names) > limit
        return Page(tuple(names[:limit]), names[limit - 1] if more else None)

    async def delete(self, name: Name, *, deadline: Deadline) -> bool:
        """Remove the row; whether it was there."""
        table, key = self._row("DELETE", name)
        statement = sa.delete(table).where(*_same(table, key))
        return await self._run(
            self._call("DELETE", name),
            deadline,
            lambda connection: connection.execute(statement).rowcount > 0,
        )

    async def close(self) -> None:
        """Close all connections, when what runs has ended."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._threads.shutdown)
        await loop.run_in_executor(None, self._engine.dispose)

    # -- rows ---------------------------------------------------------------------------------

    async def _digest(self, method: str, name: Name, deadline: Deadline) -> str | None:
        table, key = self._row(method, name)
        query = sa.select(table.c.digest).where(*_same(table, key))
        return await self._run(
            self._call(method, name),
            deadline,
            lambda connection: connection.execute(query).scalar_one_or_none(),
        )

    def _row(self, method: str, name: Name) -> tuple[sa.Table, dict[str, str]]:
        match name:
            case TagName():
                return _TAGS, {"repository": name.repository, "tag": name.tag}
            case LinkName():
                key = {"repository": name.repository, "digest": str(name.digest)}
                return _LINKS, {**key, "kind": name.kind}
            case BlobName():
                raise self._call(method, name).rejected("a database keeps tags and no blobs")

    def _upsert(self, table: sa.Table, values: dict[str, Any], key: Sequence[str]) -> sa.Executable:
        changed = {name: value for name, value in values.items() if name not in key}
        if self._dialect in ("mysql", "mariadb"):
            return mysql.insert(table).values(values).on_duplicate_key_update(changed)
        insert = postgresql.insert if self._dialect == "postgresql" else sqlite.insert
        return insert(table).values(values).on_conflict_do_update(index_elements=key, set_=changed)

    # -- the database -------------------------------------------------------------------------

    async def _run(self, call: Call, deadline: Deadline, work: Callable[[sa.Connection], T]) -> T:
        """Do it in a transaction in one of our threads; raise the failures of backends.

        Whoever no longer waits does not stop it: the database's own timeout does.
        """
        async with call.within(deadline):
            await self._slots.acquire()
            running = asyncio.get_running_loop().run_in_executor(
                self._threads, self._transaction, work
            )
            running.add_done_callback(self._ended)
            try:
                return await asyncio.shield(running)
            except exc.SQLAlchemyError as error:
                raise self._failure(call, error) from None

    def _ended(self, running: asyncio.Future[Any]) -> None:
        self._slots.release()
        if not running.cancelled():
            running.exception()  # looked at, so that it is not logged when nobody waits any more

    def _transaction(self, work: Callable[[sa.Connection], T]) -> T:
        if not self._ready:
            self._make_tables()
            self._ready = True
        with self._engine.begin() as connection:
            return work(connection)

    def _make_tables(self) -> None:
        for table in (_TAGS, _LINKS):
            for again in (True, True, False):
                try:
                    table.create(self._engine, checkfirst=True)
                    break
                except exc.DBAPIError:
                    # Another process made it between our look and our doing, or it cannot be made.
                    if not again:
                        raise

    def _failure(self, call: Call, error: exc.SQLAlchemyError) -> CallFailed:
        """The statement, its parameters and the URL are not in the text."""
        cause = error.orig if isinstance(error, exc.DBAPIError) else error
        text = " ".join(str(cause).split())
        for secret in self._secrets:
            text = text.replace(secret, "***")
        permanent = (
            exc.ProgrammingError | exc.IntegrityError | exc.DataError | exc.NotSupportedError
        )
        kind = Rejected if isinstance(error, permanent) else Unreachable
        return kind(call.method, call.url, text[:_DETAIL] or type(cause).__name__)

    def _call(self, method: str, name: Name) -> Call:
        return Call(method, self._shown(name))

    def _shown(self, name: Name) -> str:
        what = name.tag if isinstance(name, TagName) else str(name.digest)
        return f"{self.description} {name.repository} {what}"


def _same(table: sa.Table, key: dict[str, str]) -> list[sa.ColumnElement[bool]]:
    return [table.c[column] == value for column, value in key.items()]


async def _digest_in(call: Call, source: Path | bytes | Source) -> str:
    content = await as_source(call, source)
    text = b"".join([chunk async for chunk in content.chunks()]).decode(errors="replace")
    try:
        return str(Digest.parse(text.strip()))
    except InvalidDigest as error:
        raise call.rejected(f"its content is a digest: {error}") from error


def _secrets(url: sa.URL) -> list[str]:
    """What a URL's query may hide: libpq takes passwords there, too."""
    return [str(value) for key, value in url.query.items() if "pass" in key.lower()]


def _connect_args(url: sa.URL, timeout: float) -> dict[str, Any]:
    seconds = max(1, round(timeout))
    match url.get_backend_name():
        case "sqlite":
            return {"timeout": timeout}
        case "postgresql":
            return {
                "connect_timeout": seconds,
                # What the URL itself says comes last, and so it holds.
                "options": f"-c statement_timeout={seconds * 1000} {_option(url)}".strip(),
                # A server that vanished is noticed also while we wait for its answer.
                "tcp_user_timeout": seconds * 1000,
            }
        case _:
            return {
                "connect_timeout": seconds,
                "read_timeout": seconds,
                "write_timeout": seconds,
            }


def _option(url: sa.URL) -> str:
    found = url.query.get("options", "")
    return found if isinstance(found, str) else " ".join(found)


def _safe_sqlite(connection: Any, _: object) -> None:
    """Several processes on one host may use the file, and what is committed is on the disk."""
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
