# SPDX-License-Identifier: Apache-2.0
"""A proxy to talk to, over HTTP or not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer

from tests.unit.proxy.memory_proxy import Proxy
from tests.unit.registry_http import Client


@pytest.fixture
def proxy(tmp_path: Path) -> Proxy:
    return Proxy(tmp_path / "uploads")


@pytest.fixture
async def client(proxy: Proxy) -> AsyncIterator[Client]:
    async with TestClient(TestServer(proxy.application())) as running:
        yield running
