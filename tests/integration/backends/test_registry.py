# SPDX-License-Identifier: Apache-2.0
"""The contract of blobs on another registry, over sockets that fail."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import unused_port

from shoal.backend import registry_body
from shoal.backend.base import BlobName
from shoal.backend.config import RegistryBackendConfig
from shoal.backend.registry import RegistryBackend
from tests.integration.backends.contract import (
    PART,
    Place,
    ReadContract,
    ReadOnlyContract,
    RemoteContract,
    WriteContract,
    blob,
    noise,
    read,
    store,
)
from tests.integration.backends.relay import Relay
from tests.unit.backend.registry_server import FakeRegistry, error, upstream_of

SECRET = "not-the-password"


def target(address: str, **settings: object) -> RegistryBackend:
    config = {"kind": "registry", "url": f"http://{address}", "timeout": 15.0, **settings}
    return RegistryBackend.of(RegistryBackendConfig.model_validate(config))


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry().running() as running:
        yield running


class TestTarget(WriteContract, RemoteContract):
    @pytest.fixture
    async def place(self, registry: FakeRegistry) -> AsyncIterator[Place]:
        async with FakeRegistry().running() as closed:

            @closed.hook
            async def refuse(_: web.Request) -> web.StreamResponse | None:
                return error(401, "UNAUTHORIZED", {"WWW-Authenticate": 'Basic realm="x"'})

            async with Relay.to("127.0.0.1", registry.base_port) as relay:
                backends = [
                    target(relay.address),
                    target(f"127.0.0.1:{unused_port()}"),
                    target(f"127.0.0.1:{closed.base_port}", username="me", password=SECRET),
                ]
                yield Place(backends[0], relay, backends[1], backends[2], SECRET)
                for backend in backends:
                    await backend.close()

    async def test_a_body_that_ends_early_is_an_error(self, place: Place) -> None:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(registry_body, "RESUMPTIONS", 0)
            await super().test_a_body_that_ends_early_is_an_error(place)

    async def test_a_body_that_ends_early_is_asked_for_again(self, place: Place) -> None:
        assert place.faults is not None
        content = noise(3 * PART)
        name = await store(place.backend, content)
        place.faults.cut_after = PART
        assert await read(place.backend, name) == content


class TestUpstream(ReadContract, ReadOnlyContract):
    @pytest.fixture
    async def place(self, registry: FakeRegistry) -> AsyncIterator[Place]:
        async with upstream_of(registry) as backend:
            yield Place(backend)

    @pytest.fixture(autouse=True)
    def _registry(self, registry: FakeRegistry) -> None:
        self.registry = registry

    async def stored(self, place: Place, content: bytes) -> BlobName:
        self.registry.add_blob("team/app", content)
        return blob(content)
