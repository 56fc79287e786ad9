# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import errno
import json
import logging
from typing import Any

import msgspec
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from shoal.model.errors import BlobUnknown, ManifestUnknown
from shoal.store.ingest import Stalled
from shoal.web.failures import NotFound, Overloaded, Unreachable
from shoal.web.process import CannotListen
from shoal.web.server import deadline_of, merged_header, read_body, read_json
from shoal.web.serving import Listener, listening
from tests.unit.web_loopback import Handler, served, wire


def raising(error: Exception) -> Handler:
    async def handler(_request: web.Request) -> web.StreamResponse:
        raise error

    return handler


async def test_health_readiness_and_metrics() -> None:
    async with served() as address, wire(address) as http:
        assert (await http.ask("GET", "/health")).body == b"OK"
        ready = await http.ask("GET", "/readiness")
        assert (ready.status, json.loads(ready.body)) == (200, {"ready": True})
        measured = await http.ask("GET", "/metrics")
        line = (
            b'shoal_http_requests_total{method="GET",route="/health",service="test",status="200"}'
        )
        assert line in measured.body
        assert b"process_resident_memory_bytes" in measured.body


async def test_a_service_that_is_not_ready_says_what_is_missing() -> None:
    async with (
        served(missing=["tracker 127.0.0.1:5004: refused"]) as address,
        wire(address) as http,
    ):
        reply = await http.ask("GET", "/readiness")
        assert reply.status == 503
        assert json.loads(reply.body) == {
            "ready": False,
            "missing": ["tracker 127.0.0.1:5004: refused"],
        }
        assert (await http.ask("GET", "/health")).status == 200


ERRORS: list[tuple[Exception, int, str, str]] = [
    (BlobUnknown("not here"), 404, "BLOB_UNKNOWN", "not here"),
    (
        NotFound("GET", "http://o/x", "gone", status=404),
        502,
        "UNAVAILABLE",
        "GET http://o/x answered",
    ),
    (Unreachable("GET", "http://o/x", "refused"), 503, "UNAVAILABLE", "GET http://o/x: refused"),
    (
        Overloaded("GET", "http://o/x", "full", status=503, retry_after=7),
        503,
        "UNAVAILABLE",
        "full",
    ),
    (
        Overloaded("GET", "http://o/x", "soon", status=429, retry_after=0.2),
        503,
        "UNAVAILABLE",
        "soon",
    ),
    (Stalled("no byte came"), 408, "REQUEST_TIMEOUT", "no byte came"),
    (TimeoutError(), 504, "UNAVAILABLE", "GET /x was not done in time"),
    (OSError(errno.ENOSPC, "No space"), 507, "INSUFFICIENT_STORAGE", "disk of x is full"),
    (ValueError("a secret"), 500, "UNKNOWN", "unexpected error"),
    (OSError(errno.EIO, "a secret"), 500, "UNKNOWN", "unexpected error"),
]


@pytest.mark.parametrize("error,status,code,message", ERRORS)
async def test_what_a_handler_raises_becomes_the_specs_error_body(
    error: Exception, status: int, code: str, message: str
) -> None:
    async with served(("GET", "/x", raising(error))) as address, wire(address) as http:
        with capture_logs() as logs:
            reply = await http.ask("GET", "/x")
        assert reply.status == status
        (entry,) = json.loads(reply.body)["errors"]
        assert entry["code"] == code
        assert message in entry["message"]
        assert "secret" not in entry["message"]
        assert reply.headers["content-type"].startswith("application/json")
        tracebacks = [log for log in logs if log.get("exc_info")]
        assert len(tracebacks) == (1 if status == 500 else 0)
        if isinstance(error, Overloaded):
            assert reply.headers["retry-after"] == ("7" if error.retry_after == 7 else "1")
        elif status in {502, 503, 504}:
            assert int(reply.headers["retry-after"]) >= 1
        assert (await http.ask("GET", "/health")).status == 200


async def test_a_missed_deadline_is_a_gateway_timeout() -> None:
    error = Unreachable("GET", "http://o/x", "no answer in time")
    async with served(("GET", "/x", raising(error))) as address, wire(address) as http:
        reply = await http.ask("GET", "/x", "Shoal-Deadline-Ms: 0")
        assert reply.status == 504


async def test_unknown_routes_and_methods_have_error_bodies_too() -> None:
    route = ("PUT", "/x", raising(ManifestUnknown("x")))
    async with served(route) as address, wire(address) as http:
        reply = await http.ask("GET", "/nowhere")
        assert (reply.status, json.loads(reply.body)["errors"][0]["code"]) == (404, "NOT_FOUND")
        reply = await http.ask("GET", "/x")
        assert reply.status == 405
        assert reply.headers["allow"] == "PUT"
        assert json.loads(reply.body)["errors"][0]["code"] == "UNSUPPORTED"
        head = await http.ask("HEAD", "/nowhere")
        assert head.status == 404
        assert (await http.ask("GET", "/health")).status == 200


async def test_the_callers_deadline_reaches_the_handler() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(text=str(deadline_of(request).remaining()))

    async with served(("GET", "/x", handler), request_timeout=30) as address, wire(address) as http:
        assert 29 < float((await http.ask("GET", "/x")).body) <= 30
        assert 4 < float((await http.ask("GET", "/x", "Shoal-Deadline-Ms: 5000")).body) <= 5


async def test_repeated_headers_are_one_list() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(text=merged_header(request, "accept"))

    async with served(("GET", "/x", handler)) as address, wire(address) as http:
        reply = await http.ask("GET", "/x", "Accept: a/b", "ACCEPT: c/d, e/f")
        assert reply.body == b"a/b, c/d, e/f"
        assert (await http.ask("GET", "/x")).body == b""


class Question(msgspec.Struct):
    digests: list[str]


async def ask_json(request: web.Request) -> web.StreamResponse:
    question = await read_json(request, Question, limit=100)
    return web.json_response(question.digests)


async def test_json_bodies_are_bounded_and_checked() -> None:
    async with served(("POST", "/x", ask_json)) as address, wire(address) as http:

        async def post(body: str) -> Any:
            await http.send(
                f"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}"
            )
            reply = await http.reply()
            return reply.status, json.loads(reply.body)

        assert await post('{"digests": ["a"]}') == (200, ["a"])
        for wrong in ('{"digests": 5}', "{", "", "\x00" * 50):
            status, body = await post(wrong)
            assert (status, body["errors"][0]["code"]) == (400, "BAD_REQUEST")
        status, body = await post('{"digests": ["' + "a" * 100 + '"]}')
        assert (status, body["errors"][0]["code"]) == (413, "SIZE_INVALID")
        assert await post('{"digests": ["a"]}') == (200, ["a"])


async def test_a_chunked_body_is_bounded_too() -> None:
    async with served(("POST", "/x", ask_json)) as address, wire(address) as http:
        await http.send("POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        await http.send("c8\r\n" + "a" * 200 + "\r\n0\r\n\r\n")
        assert (await http.reply()).status == 413


async def test_a_body_that_does_not_come_is_a_request_timeout() -> None:
    async with served(("POST", "/x", ask_json)) as address, wire(address) as http:
        await http.send(
            "POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\nShoal-Deadline-Ms: 50\r\n\r\n{"
        )
        assert (await http.reply()).status == 408


async def test_a_malformed_chunked_body_is_a_bad_request() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(body=await read_body(request, 1000))

    async with served(("POST", "/x", handler)) as address, wire(address) as http:
        await http.send("POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        await http.send("zz\r\nnot a chunk")
        assert (await http.reply()).status == 400


async def test_a_streamed_body_has_no_limit_and_is_not_decompressed() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        size = 0
        async for chunk in request.content.iter_any():
            size += len(chunk)
        return web.Response(text=str(size))

    async with served(("PUT", "/x", handler)) as address, wire(address) as http:
        size = 20_000_000
        await http.send(
            "PUT /x HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\n"
            f"Content-Length: {size}\r\n\r\n"
        )
        await http.send(bytes(size))
        assert (await http.reply()).body == str(size).encode()


TLS_HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(range(190))


@pytest.mark.parametrize(
    "garbage",
    [
        TLS_HELLO,
        b"\x00" * 300,
        b"SSH-2.0-OpenSSH_9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nBad Header\r\n\r\n",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
    ],
)
async def test_what_is_not_http_is_refused_without_a_traceback(
    garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with served() as address:
        async with wire(address) as http:
            await http.send(garbage)
            answer = await asyncio.wait_for(http.rest(), 5)
        assert answer == b"" or answer.startswith((b"HTTP/1.1 400", b"HTTP/1.0 400"))
        async with wire(address) as http:
            assert (await http.ask("GET", "/health")).status == 200
    assert [record for record in caplog.records if record.exc_info] == []
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_garbage_after_a_request_is_refused_without_a_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with served() as address, wire(address) as http:
        assert (await http.ask("GET", "/health")).status == 200
        await http.send("garbage\r\n\r\n")
        assert (await asyncio.wait_for(http.rest(), 5)).startswith(b"HTTP/1.")
    assert [record for record in caplog.records if record.exc_info] == []


async def test_a_client_that_vanishes_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    seen: asyncio.Queue[str] = asyncio.Queue()

    async def handler(request: web.Request) -> web.StreamResponse:
        seen.put_nowait("began")
        try:
            return web.Response(body=await request.content.read())
        except BaseException as error:
            seen.put_nowait(type(error).__name__)
            raise

    async with served(("PUT", "/x", handler)) as address:
        with capture_logs() as logs:
            async with wire(address) as http:
                await http.send("PUT /x HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc")
                assert await seen.get() == "began"
            assert "Error" in await asyncio.wait_for(seen.get(), 5)
        async with wire(address) as http:
            assert (await http.ask("GET", "/health")).status == 200
    assert [entry for entry in logs if entry["log_level"] in {"warning", "error"}] == []
    assert [record for record in caplog.records if record.exc_info] == []


async def test_stopping_lets_running_requests_finish() -> None:
    began, go_on = asyncio.Event(), asyncio.Event()

    async def handler(_request: web.Request) -> web.StreamResponse:
        began.set()
        await go_on.wait()
        return web.Response(text="done")

    server = served(("GET", "/x", handler), grace=5)
    address = await server.__aenter__()
    async with wire(address) as http, wire(address) as idle:
        await idle.ask("GET", "/health")
        asking = asyncio.create_task(http.ask("GET", "/x"))
        await began.wait()
        stopping = asyncio.create_task(server.__aexit__(None, None, None))
        assert await asyncio.wait_for(idle.rest(), 5) == b"", "idle connections are closed"
        with pytest.raises(ConnectionError):
            async with wire(address):
                pass
        assert not stopping.done()
        go_on.set()
        assert (await asking).body == b"done"
        await asyncio.wait_for(stopping, 5)


async def test_requests_that_outlast_the_grace_are_cancelled() -> None:
    began = asyncio.Event()
    ended: list[str] = []

    async def handler(_request: web.Request) -> web.StreamResponse:
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise
        raise AssertionError

    server = served(("GET", "/x", handler), grace=0.05)
    address = await server.__aenter__()
    async with wire(address) as http:
        await http.send("GET /x HTTP/1.1\r\nHost: x\r\n\r\n")
        await began.wait()
        await asyncio.wait_for(server.__aexit__(None, None, None), 5)
        assert await http.rest() == b""
    assert ended == ["cancelled"]


async def test_a_port_in_use_is_one_line_with_address_and_key() -> None:
    async with served() as address:
        other = Listener(web.Application(), address, "peer.listen")
        with pytest.raises(CannotListen) as caught:
            async with listening([other], grace=1):
                pass
        assert str(caught.value) == (
            f'cannot listen on {address} (config key "peer.listen"): '
            "another process listens there; stop it, or choose another port"
        )
