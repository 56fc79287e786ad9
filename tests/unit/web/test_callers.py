# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from shoal.web.callers import while_connected
from tests.unit.web_loopback import served, wire


async def test_work_is_done_and_its_failure_is_the_handlers() -> None:
    async def done() -> str:
        return "done"

    async def failing() -> str:
        raise web.HTTPConflict

    async def handler(request: web.Request) -> web.Response:
        work = failing() if "fail" in request.query else done()
        return web.Response(text=await while_connected(request, work))

    async with served(("GET", "/", handler)) as address, wire(address) as connection:
        assert (await connection.ask("GET", "/")).body == b"done"
        assert (await connection.ask("GET", "/?fail")).status == 409


@pytest.mark.parametrize("half_closed", [False, True])
async def test_work_ends_when_its_caller_has_gone(half_closed: bool) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def handler(request: web.Request) -> web.Response:
        await while_connected(request, work())
        return web.Response()

    async with served(("PUT", "/", handler)) as address, wire(address) as connection:
        await connection.send("PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi")
        await begun.wait()
        if half_closed:
            connection.writer.write_eof()
        else:
            connection.writer.transport.abort()
        await asyncio.wait_for(ended.wait(), 5.0)
