# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
from collections import Counter

import msgspec
import pytest
from aiohttp import web

from shoal.bench.client import TransferFailed
from shoal.bench.load import Load, Loaded, answer_size, generate, percentile, put_under_load
from tests.unit.web_loopback import served

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX: y\r\n\r\n"


def test_an_answer_ends_where_its_content_length_says() -> None:
    assert answer_size(HEAD, head_only=False) == len(HEAD) + 5
    assert answer_size(HEAD + b"hello", head_only=False) == len(HEAD) + 5
    assert answer_size(HEAD.lower().replace(b"http", b"HTTP", 1), head_only=False) is not None


def test_the_answer_to_head_ends_with_its_head() -> None:
    assert answer_size(HEAD, head_only=True) == len(HEAD)


def test_a_head_that_is_not_whole_says_nothing_yet() -> None:
    assert answer_size(HEAD[:-1], head_only=False) is None


@pytest.mark.parametrize(
    "received",
    [
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"x" * 70_000,
    ],
)
def test_what_cannot_be_measured_is_refused(received: bytes) -> None:
    with pytest.raises(ValueError, match=r"404|Content-Length|does not end"):
        answer_size(received, head_only=False)


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(number) for number in range(1, 101)]
    assert (percentile(values, 0.5), percentile(values, 0.99)) == (50.0, 99.0)
    assert percentile([7.0], 0.99) == 7.0


async def hello(_request: web.Request) -> web.StreamResponse:
    return web.Response(text="hello" * 100_000)


def load(address: str, *, keep_alive: bool = True, path: str = "/x") -> Load:
    return Load(
        address=address,
        method="GET",
        targets=[path],
        connections=3,
        seconds=0.2,
        keep_alive=keep_alive,
    )


@pytest.mark.parametrize("keep_alive", [True, False])
async def test_every_answer_is_received_whole(keep_alive: bool) -> None:
    connections: Counter[object] = Counter()

    async def handler(request: web.Request) -> web.StreamResponse:
        if request.transport is not None:  # the load may end while this one is under way
            connections[request.transport] += 1
        return await hello(request)

    async with served(("GET", "/x", handler)) as address:
        loaded = await asyncio.to_thread(generate, load(address, keep_alive=keep_alive))
    assert loaded.requests > 0
    assert loaded.received >= 500_000 * loaded.requests
    assert 0 < loaded.p50_ms <= loaded.p99_ms
    if keep_alive:
        assert len(connections) == 3
    else:
        assert set(connections.values()) == {1}


async def test_targets_are_asked_for_in_turn() -> None:
    asked: Counter[str] = Counter()

    async def handler(request: web.Request) -> web.StreamResponse:
        asked[request.query["n"]] += 1
        return web.Response(text="x")

    async with served(("GET", "/x", handler)) as address:
        one = Load(
            address=address,
            method="GET",
            targets=["/x?n=1", "/x?n=2"],
            connections=1,
            seconds=0.1,
        )
        await asyncio.to_thread(generate, one)
    assert abs(asked["1"] - asked["2"]) <= 1
    assert asked["2"] > 0


async def test_it_runs_in_a_process_of_its_own() -> None:
    async with served(("GET", "/x", hello)) as address:
        loaded = await put_under_load(load(address))
    assert isinstance(loaded, Loaded)
    assert loaded.requests > 0


async def test_an_answer_that_is_no_success_fails_the_load_and_is_shown() -> None:
    # One connection: the first refusal ends the load, and others would still be on their way in.
    refused = msgspec.structs.replace(load("", path="/y"), connections=1)
    async with served() as address:
        with pytest.raises(TransferFailed, match=r"GET http://.*/y: .*404"):
            await put_under_load(msgspec.structs.replace(refused, address=address))


async def test_a_service_that_is_not_there_fails_the_load() -> None:
    async with served() as address:
        pass
    with pytest.raises(TransferFailed, match="refused"):
        await put_under_load(load(address))
