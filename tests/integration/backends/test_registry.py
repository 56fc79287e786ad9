# SPDX-License-Identifier: Apache-2.0
"""The contract on another registry, as a target and as an upstream, over sockets that fail."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Literal

import pytest
from aiohttp import web
from aiohttp.test_utils import unused_port

from shoal.backend import registry_body
from shoal.backend.base import BlobName
from shoal.backend.config import RegistryBackendConfig
from shoal.backend.registry import RegistryBackend
from shoal.model.digest import Digest
from tests.integration.backends.contract import (
    PART,
    BodyContract,
    DeniedContract,
    Place,
    ReadContract,
    ReadOnlyContract,
    RemoteContract,
    TagContract,
    WriteContract,
    blob,
    deadline,
    noise,
    read,
    store,
)
from tests.integration.backends.relay import Relay
from tests.unit.backend.registry_server import FakeRegistry, error, manifest_of, upstream_of

SECRET = "not-the-password"


def target(address: str, **settings: object) -> RegistryBackend:
    config = {"kind": "registry", "url": f"http://{address}", "timeout": 15.0, **settings}
    return RegistryBackend.of(RegistryBackendConfig.model_validate(config))


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry().running() as running:
        yield running


class TestTarget(WriteContract, TagContract, RemoteContract, BodyContract, DeniedContract):
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

    async def named(
        self, place: Place, repository: str, what: bytes, kind: Literal["manifest", "blob"]
    ) -> Digest:
        """A registry takes no tag before what it names."""
        content = manifest_of(what) if kind == "manifest" else what
        name = blob(content, repository)
        await place.backend.put(name, content, deadline=deadline())
        return name.digest

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


class TestUpstream(ReadContract, ReadOnlyContract, RemoteContract, BodyContract, DeniedContract):
    @pytest.fixture
    async def place(self, registry: FakeRegistry) -> AsyncIterator[Place]:
        self.registry = registry
        async with AsyncExitStack() as stack:
            closed = await stack.enter_async_context(FakeRegistry().running())

            @closed.hook
            async def refuse(_: web.Request) -> web.StreamResponse | None:
                return error(401, "UNAUTHORIZED", {"WWW-Authenticate": 'Basic realm="x"'})

            relay = await stack.enter_async_context(Relay.to("127.0.0.1", registry.base_port))

            async def at(url: str, **settings: str) -> RegistryBackend:
                backend = upstream_of(registry, url=url, **settings)
                return await stack.enter_async_context(backend)

            yield Place(
                await at(f"http://{relay.address}"),
                relay,
                await at(f"http://127.0.0.1:{unused_port()}"),
                await at(closed.base, username="me", password=SECRET),
                SECRET,
            )

    async def stored(self, place: Place, content: bytes) -> BlobName:
        self.registry.add_blob("team/app", content)
        return blob(content)

    async def test_a_body_that_ends_early_is_an_error(self, place: Place) -> None:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(registry_body, "RESUMPTIONS", 0)
            await super().test_a_body_that_ends_early_is_an_error(place)
