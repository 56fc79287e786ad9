# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import json
import os
import resource
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from shoal.web.client import MAX_BODY, Answer, HttpClient
from shoal.web.deadline import HEADER, Deadline
from shoal.web.failures import CallFailed, NotFound, Overloaded, Rejected, Unreachable
from tests.unit.web_loopback import Wire, loops, served

SOON = 10.0


@asynccontextmanager
async def client() -> AsyncIterator[HttpClient]:
    http = HttpClient(user_agent="shoal-test", connect_timeout=1.0)
    try:
        yield http
    finally:
        await http.close()


@asynccontextmanager
async def acting(act: Callable[[Wire], Awaitable[None]]) -> AsyncIterator[str]:
    """A server that does as it is told with each connection; gives its URL."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await act(Wire(reader, writer))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield "http://{}:{}".format(*server.sockets[0].getsockname())
    finally:
        server.close()


def soon() -> Deadline:
    return Deadline.after(SOON)


async def test_a_call_under_way_ends_when_the_client_is_closed_and_is_not_sent_again() -> None:
    heads: asyncio.Queue[bytes] = asyncio.Queue()

    async def silent(wire: Wire) -> None:
        heads.put_nowait(await wire.head_of_request())
        await wire.reader.read()

    http = HttpClient(user_agent="shoal-test")
    async with acting(silent) as url:
        call = asyncio.create_task(http.call("POST", url, json={}, deadline=soon()))
        await heads.get()
        await http.close()
        with pytest.raises(Unreachable):
            await call
        with pytest.raises(Unreachable, match="closed its HTTP client"):
            await http.call("POST", url, json={}, deadline=soon())
    assert heads.empty()


async def echo(request: web.Request) -> web.StreamResponse:
    return web.json_response(
        {
            "method": request.method,
            "path": request.raw_path,
            "headers": {name.lower(): value for name, value in request.headers.items()},
            "body": (await request.read()).decode(),
        }
    )


async def test_a_call_says_who_asks_for_how_long_and_what() -> None:
    async with served(("*", "/{rest:.*}", echo)) as address, client() as http:
        answer = await http.call(
            "POST",
            f"http://{address}/tags/a%2Fb%3Alatest",
            deadline=Deadline.after(5),
            params={"after": "a b"},
            headers={"X-One": "1"},
            json={"n": 1},
        )
        seen = json.loads(answer.body)
        assert seen["path"] == "/tags/a%2Fb%3Alatest?after=a+b"
        assert seen["body"] == '{"n":1}'
        assert seen["headers"]["user-agent"] == "shoal-test"
        assert seen["headers"]["x-one"] == "1"
        assert seen["headers"]["content-type"] == "application/json"
        assert seen["headers"]["accept-encoding"] == "identity"
        assert 4000 < int(seen["headers"][HEADER.lower()]) <= 5000


def answering(status: int, body: str = "", **headers: str) -> Callable[[Wire], Awaitable[None]]:
    async def act(connection: Wire) -> None:
        await connection.head_of_request()
        lines = "".join(f"{name.replace('_', '-')}: {text}\r\n" for name, text in headers.items())
        await connection.send(
            f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n{lines}\r\n{body}"
        )

    return act


ERROR_BODY = '{"errors": [{"code": "BLOB_UNKNOWN", "message": "no owner has it"}]}'


@pytest.mark.parametrize(
    "status,kind",
    [
        (404, NotFound),
        (429, Overloaded),
        (500, Overloaded),
        (503, Overloaded),
        (400, Rejected),
        (409, Rejected),
        (301, Rejected),
        (204, Rejected),
    ],
)
async def test_an_unexpected_status_is_a_failure_of_its_kind(
    status: int, kind: type[CallFailed]
) -> None:
    body = "" if status == 204 else ERROR_BODY
    async with acting(answering(status, body, Retry_After="3")) as url, client() as http:
        with pytest.raises(CallFailed) as caught:
            await http.call("GET", f"{url}/x", deadline=soon())
        failure = caught.value
        assert type(failure) is kind
        assert (failure.method, failure.url, failure.status) == ("GET", f"{url}/x", status)
        assert failure.retry_after == 3.0
        if body:
            assert failure.code == "BLOB_UNKNOWN"
            assert str(failure) == (f"GET {url}/x answered {status}: BLOB_UNKNOWN: no owner has it")
        expected = await http.call("GET", f"{url}/x", deadline=soon(), expect=(status,))
        assert expected.status == status


@pytest.mark.parametrize("body", ["", "plain words", "{}", "[]", '{"errors": [{}]}', "\x00"])
async def test_an_error_without_the_specs_body_is_told_as_it_is(body: str) -> None:
    async with acting(answering(404, body)) as url, client() as http:
        with pytest.raises(NotFound) as caught:
            await http.call("GET", url + "/", deadline=soon())
        assert caught.value.code is None
        assert caught.value.detail


def refusing_port() -> str:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{sock.getsockname()[1]}"


async def hang_up(connection: Wire) -> None:
    await connection.head_of_request()
    connection.writer.transport.abort()


async def close(connection: Wire) -> None:
    await connection.head_of_request()


async def babble(connection: Wire) -> None:
    await connection.head_of_request()
    await connection.send("+OK POP3 server ready\r\n\r\n")


async def cut(connection: Wire) -> None:
    await connection.head_of_request()
    await connection.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort")


async def say_nothing(connection: Wire) -> None:
    await connection.reader.read()


async def too_much(connection: Wire) -> None:
    await connection.head_of_request()
    await connection.send(f"HTTP/1.1 200 OK\r\nContent-Length: {MAX_BODY + 1}\r\n\r\n")
    await connection.send(bytes(MAX_BODY + 1))


BROKEN = [hang_up, close, babble, cut, say_nothing, too_much]


@pytest.mark.parametrize("act", BROKEN)
@pytest.mark.parametrize("verb", ["call", "stream", "upload"])
async def test_what_is_no_proper_answer_is_unreachable_with_what_was_asked(
    act: Callable[[Wire], Awaitable[None]], verb: str, tmp_path: Path
) -> None:
    (tmp_path / "f").write_bytes(b"x" * 100)
    async with acting(act) as url, client() as http:
        deadline = Deadline.after(0.3)

        async def ask() -> None:
            if verb == "call":
                await http.call("GET", url + "/x", deadline=deadline)
            elif verb == "upload":
                await http.upload(url + "/x", tmp_path / "f", 100, deadline=deadline)
            else:
                async with http.stream("GET", url + "/x", deadline=deadline) as answer:
                    size = 0
                    async for chunk in answer.chunks():
                        size += len(chunk)
                raise Unreachable("GET", url + "/x", "streams have no limit")

        with pytest.raises(Unreachable) as caught:
            await ask()
        assert caught.value.url == url + "/x"
        assert caught.value.detail
        if act is say_nothing:
            assert "0.3 s" in caught.value.detail


@pytest.mark.parametrize("verb", ["call", "upload"])
async def test_nobody_listening_is_unreachable(verb: str, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    for url in (refusing_port(), "http://nowhere.invalid", "http://[::1]:1"):
        async with client() as http:
            if verb == "call":
                asking = http.call("GET", url + "/x", deadline=soon())
            else:
                asking = http.upload(url + "/x", tmp_path / "f", 1, deadline=soon())
            with pytest.raises(Unreachable) as caught:
                await asking
            assert caught.value.status is None


async def test_after_the_deadline_nothing_is_sent() -> None:
    async with client() as http:
        with pytest.raises(Unreachable, match="the deadline has passed"):
            await http.call("GET", "http://127.0.0.1:1/x", deadline=Deadline.after(0))


class Shape(msgspec.Struct):
    n: int


def test_an_answer_is_decoded_or_the_call_has_failed() -> None:
    assert Answer("GET", "http://x/", 200, {}, b'{"n": 5}').decode(Shape) == Shape(5)
    with pytest.raises(Unreachable, match="not what this version of Shoal expects"):
        Answer("GET", "http://x/", 200, {}, b'{"n": "5"}').decode(Shape)


async def test_a_stream_gives_the_body_as_it_comes() -> None:
    go_on = asyncio.Event()

    async def act(connection: Wire) -> None:
        await connection.head_of_request()
        await connection.send("HTTP/1.1 200 OK\r\nContent-Length: 6\r\nX-A: b\r\n\r\nabc")
        await go_on.wait()
        await connection.send("def")

    deadline = Deadline.after(0.2)
    async with (
        acting(act) as url,
        client() as http,
        http.stream("GET", url + "/", deadline=deadline) as answer,
    ):
        assert (answer.status, answer.size, answer.headers["x-a"]) == (200, 6, "b")
        chunks = answer.chunks()
        assert await anext(chunks) == b"abc"
        await asyncio.sleep(deadline.remaining() + 0.01)  # it was for the head alone
        go_on.set()
        assert await anext(chunks) == b"def"
        with pytest.raises(StopAsyncIteration):
            await anext(chunks)


async def test_a_stream_that_pauses_too_long_is_unreachable() -> None:
    async def act(connection: Wire) -> None:
        await connection.head_of_request()
        await connection.send("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc")
        await connection.reader.read()

    async with (
        acting(act) as url,
        client() as http,
        http.stream("GET", url + "/", deadline=soon(), idle_timeout=0.1) as answer,
    ):
        chunks = answer.chunks()
        assert await anext(chunks) == b"abc"
        with pytest.raises(Unreachable, match="imeout"):
            await anext(chunks)


async def test_an_error_of_a_stream_is_told_before_its_body() -> None:
    async with acting(answering(404, ERROR_BODY)) as url, client() as http:
        with pytest.raises(NotFound, match="no owner has it"):
            async with http.stream("GET", url + "/", deadline=soon()):
                pass


async def test_connections_are_kept_and_those_of_unread_streams_are_not() -> None:
    connections = 0

    async def act(connection: Wire) -> None:
        nonlocal connections
        connections += 1
        while True:
            await connection.head_of_request()
            await connection.send("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc")

    async with acting(act) as url, client() as http:
        for _ in range(3):
            await http.call("GET", url + "/", deadline=soon())
        async with http.stream("GET", url + "/", deadline=soon()) as answer:
            assert [chunk async for chunk in answer.chunks()] == [b"abc"]
        assert connections == 1


@pytest.mark.parametrize("method", ["GET", "POST", "PUT"])
async def test_a_restart_of_the_other_side_does_not_fail_the_next_call(method: str) -> None:
    connections = 0

    async def act(connection: Wire) -> None:
        nonlocal connections
        connections += 1
        await connection.head_of_request()
        await connection.send("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc")
        if connections == 1:
            await connection.head_of_request()  # and hang up without a word

    async with acting(act) as url, client() as http:
        for _ in range(2):
            assert (await http.call(method, url + "/", deadline=soon())).body == b"abc"
    assert connections == 2


# -- uploads ----------------------------------------------------------------------------------


def on_each_loop(scenario: Callable[[], Coroutine[object, object, None]]) -> None:
    for factory in loops():
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(asyncio.wait_for(scenario(), 30))


async def sink(request: web.Request) -> web.StreamResponse:
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
    return web.json_response(
        {
            "size": len(body),
            "same": body == CONTENT[: len(body)],
            "length": request.headers.get("Content-Length"),
            "agent": request.headers.get("User-Agent"),
            "deadline": HEADER in request.headers,
        },
        status=201,
    )


CONTENT = os.urandom(5_000_000)


def test_a_file_is_sent_whole_or_from_its_beginning(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(CONTENT)

    async def scenario() -> None:
        async with served(("PUT", "/x", sink)) as address, client() as http:
            url = f"http://{address}/x"
            for size in (len(CONTENT), 1_000_000, 0):
                answer = await http.upload(url, tmp_path / "f", size, deadline=soon())
                assert answer.status == 201
                assert json.loads(answer.body) == {
                    "size": size,
                    "same": True,
                    "length": str(size),
                    "agent": "shoal-test",
                    "deadline": True,
                }

    on_each_loop(scenario)


def test_one_descriptor_may_be_sent_several_times_at_once(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(CONTENT)

    async def scenario() -> None:
        with (tmp_path / "f").open("rb") as file:
            async with served(("PUT", "/x", sink)) as address, client() as http:
                sending = [
                    http.upload(f"http://{address}/x", file.fileno(), len(CONTENT), deadline=soon())
                    for _ in range(3)
                ]
                for answer in await asyncio.gather(*sending):
                    assert json.loads(answer.body)["same"]
            assert file.tell() == 0

    on_each_loop(scenario)


def test_an_answer_before_the_end_of_the_body_ends_the_sending(tmp_path: Path) -> None:
    with (tmp_path / "f").open("wb") as file:
        file.truncate(200_000_000)

    async def early(request: web.Request) -> web.StreamResponse:
        await request.content.readany()
        return web.json_response(
            {"errors": [{"code": "BLOB_UPLOAD_INVALID", "message": "busy"}]}, status=409
        )

    async def close_after(connection: Wire) -> None:
        await connection.head_of_request()
        body = '{"errors": [{"code": "X", "message": "busy"}]}'
        await connection.send(f"HTTP/1.1 409 X\r\nContent-Length: {len(body)}\r\n\r\n{body}")

    async def scenario() -> None:
        async with served(("PUT", "/x", early), grace=0.1) as address, client() as http:
            with pytest.raises(Rejected, match="busy"):
                await http.upload(
                    f"http://{address}/x", tmp_path / "f", 200_000_000, deadline=soon()
                )
        async with acting(close_after) as url, client() as http:
            with pytest.raises(Rejected, match="busy"):
                await http.upload(url + "/x", tmp_path / "f", 200_000_000, deadline=soon())

    on_each_loop(scenario)


def test_a_receiver_that_stalls_or_leaves_is_unreachable(tmp_path: Path) -> None:
    with (tmp_path / "f").open("wb") as file:
        file.truncate(200_000_000)

    async def stall(connection: Wire) -> None:
        connection.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await gone.wait()

    async def leave(connection: Wire) -> None:
        await connection.reader.read(100_000)
        connection.writer.transport.abort()

    gone = asyncio.Event()

    async def scenario() -> None:
        nonlocal gone
        gone = asyncio.Event()
        async with client() as http:
            async with acting(stall) as url:
                with pytest.raises(Unreachable, match=r"took nothing for 0\.2 s"):
                    await http.upload(
                        url, tmp_path / "f", 200_000_000, deadline=soon(), stall_timeout=0.2
                    )
                with pytest.raises(Unreachable, match=r"not sent and answered in 0\.3 s"):
                    await http.upload(
                        url, tmp_path / "f", 200_000_000, deadline=Deadline.after(0.3)
                    )
                gone.set()
            async with acting(leave) as url:
                with pytest.raises(Unreachable):
                    await http.upload(url, tmp_path / "f", 200_000_000, deadline=soon())

    on_each_loop(scenario)


async def test_a_file_that_is_shorter_than_said_is_no_answer(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    async with served(("PUT", "/x", sink), grace=0.1) as address, client() as http:
        with pytest.raises(Unreachable, match="cannot send the file: the file ends at 3"):
            await http.upload(f"http://{address}/x", tmp_path / "f", 10, deadline=soon())


async def test_a_chunked_answer_is_understood(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")

    async def act(connection: Wire) -> None:
        await connection.head_of_request()
        await connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        await connection.send("3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")

    async with acting(act) as url, client() as http:
        answer = await http.upload(url + "/x", tmp_path / "f", 3, deadline=soon())
        assert answer.body == b"abcde"


async def test_headers_cannot_carry_a_second_request(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    async with served(("PUT", "/x", sink)) as address, client() as http:
        with pytest.raises(Unreachable, match="line break"):
            await http.upload(
                f"http://{address}/x",
                tmp_path / "f",
                3,
                deadline=soon(),
                headers={"X": "a\r\nContent-Length: 0"},
            )


def test_uploads_leave_no_descriptor_open(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(CONTENT)

    async def scenario() -> None:
        async with served(("PUT", "/x", sink)) as address, client() as http:

            async def one() -> None:
                await http.upload(
                    f"http://{address}/x", tmp_path / "f", len(CONTENT), deadline=soon()
                )

            await one()
            before = len(os.listdir("/proc/self/fd"))
            for _ in range(5):
                task = asyncio.create_task(one())
                await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            await one()
            assert len(os.listdir("/proc/self/fd")) <= before + 1

    on_each_loop(scenario)


def test_sending_costs_little_memory(tmp_path: Path) -> None:
    size = 300_000_000
    with (tmp_path / "f").open("wb") as file:
        file.truncate(size)

    async def count(request: web.Request) -> web.StreamResponse:
        received = 0
        async for chunk in request.content.iter_any():
            received += len(chunk)
        return web.Response(text=str(received))

    async def scenario() -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        async with served(("PUT", "/x", count)) as address, client() as http:
            answer = await http.upload(f"http://{address}/x", tmp_path / "f", size, deadline=soon())
            assert answer.body == str(size).encode()
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown < 64 * 1024

    on_each_loop(scenario)
