# SPDX-License-Identifier: Apache-2.0
"""What tests of several kinds of storage need."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from shoal.web.client import HttpClient

DENIED = (
    '<?xml version="1.0" encoding="utf-8"?><Error><Code>SignatureDoesNotMatch</Code>'
    "<Message>The request signature we calculated does not match.</Message></Error>"
)


@pytest.fixture
async def refusing() -> AsyncIterator[str]:
    """The URL of a server that takes no credentials for good."""

    async def refuse(_: web.Request) -> web.Response:
        return web.Response(status=403, text=DENIED, content_type="application/xml")

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", refuse)
    async with TestServer(app, host="127.0.0.1") as server:
        yield str(server.make_url("")).rstrip("/")


@pytest.fixture
async def http() -> AsyncIterator[HttpClient]:
    client = HttpClient(user_agent="shoal-test")
    yield client
    await client.close()
