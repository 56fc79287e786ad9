# SPDX-License-Identifier: Apache-2.0
"""The relay through which the services of a cluster under chaos reach each other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from shoal.chaos.relay import Relay

HOST = "127.0.0.1"
WITHIN = 5.0


@asynccontextmanager
async def echo() -> AsyncIterator[int]:
    """A server that sends back what it gets; its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1024):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(serve, HOST, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@asynccontextmanager
async def relayed() -> AsyncIterator[tuple[Relay, int]]:
    """A relay to an echo server, and the relay's port."""
    relay = Relay()
    async with echo() as port:
        await relay.listen(HOST)
        relay.lead_to(HOST, port)
        try:
            yield relay, int(relay.address.rpartition(":")[2])
        finally:
            await relay.close()


async def test_bytes_pass_in_both_directions_and_so_does_the_end() -> None:
    async with relayed() as (_, port), asyncio.timeout(WITHIN):
        reader, writer = await asyncio.open_connection(HOST, port)
        writer.write(b"x" * 100_000)
        writer.write_eof()
        assert await reader.read() == b"x" * 100_000
        writer.close()


async def test_cut_off_it_resets_connections_that_stand() -> None:
    async with relayed() as (relay, port), asyncio.timeout(WITHIN):
        reader, writer = await asyncio.open_connection(HOST, port)
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        relay.cut()
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        writer.close()


async def test_cut_off_it_takes_connections_and_answers_only_when_joined_again() -> None:
    async with relayed() as (relay, port), asyncio.timeout(WITHIN):
        relay.cut()
        reader, writer = await asyncio.open_connection(HOST, port)
        writer.write(b"hello")
        answer = asyncio.create_task(reader.readexactly(5))
        done, _ = await asyncio.wait({answer}, timeout=0.05)
        assert not done
        relay.join()
        assert await answer == b"hello"
        writer.close()
