# SPDX-License-Identifier: Apache-2.0
"""Clients in processes of their own: they begin on the word, and say what went wrong."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from shoal.bench.client import TransferFailed
from shoal.bench.fetch import Task, fetcher

BODY = bytes(100_000)


class Served(ThreadingHTTPServer):
    """Answers with `BODY`, and knows what it was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.paths: list[str] = []

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


class _Handler(BaseHTTPRequestHandler):
    server: Served

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        found = self.path != "/missing"
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- as it is above
        pass


@pytest.fixture
def served() -> Iterator[Served]:
    with Served() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


async def test_nothing_is_asked_for_before_the_word(served: Served) -> None:
    task = Task([served.url("a"), served.url("b"), served.url("c")], at_once=2)
    async with fetcher(task) as client:
        assert served.paths == []
        fetched = await client.go(20)
    assert sorted(served.paths) == ["/a", "/b", "/c"]
    assert fetched.size == 3 * len(BODY)
    assert 0 < fetched.first_byte_s <= fetched.wall_s


async def test_a_failure_names_the_request_and_the_answer(served: Served) -> None:
    url = served.url("missing")
    async with fetcher(Task([url])) as client:
        with pytest.raises(TransferFailed, match=f"GET {url}: 404"):
            await client.go(20)


async def test_a_launcher_that_fails_is_told_from_a_client_that_does(served: Served) -> None:
    with pytest.raises(TransferFailed, match="a client did not start"):
        async with fetcher(Task([served.url("a")]), ("false",)):
            pass
    assert served.paths == []
