# SPDX-License-Identifier: Apache-2.0
"""A registry to talk to over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiohttp.test_utils import TestClient, TestServer

from tests.unit.registry_http import Client, Registry


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
async def client(registry: Registry) -> AsyncIterator[Client]:
    async with TestClient(TestServer(registry.application())) as running:
        yield running


@pytest.fixture
async def agent(registry: Registry) -> AsyncIterator[Client]:
    async with TestClient(TestServer(registry.application(pulls_only=True))) as running:
        yield running
