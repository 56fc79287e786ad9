# SPDX-License-Identifier: Apache-2.0
"""Registries behind TLS: whose certificates are trusted, and that nothing leads back to http."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme
from aiohttp import web
from aiohttp.test_utils import TestServer

from shoal.backend.registry import RegistryBackend
from shoal.backend.upstreams import UpstreamConfig, UpstreamNames
from shoal.model.digest import Digest
from shoal.web.failures import Rejected, Unreachable
from tests.unit.backend.registry_server import FakeRegistry, no_requests, soon

HERE = "up.example.com/team/app"
DIGEST = Digest.of(b"a manifest")


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@asynccontextmanager
async def serving(authority: trustme.CA, location: str | None = None) -> AsyncIterator[str]:
    """A registry where every tag is there, or that redirects."""

    async def handle(_: web.Request) -> web.Response:
        if location is not None:
            return web.Response(status=307, headers={"Location": location})
        return web.Response(headers={"Docker-Content-Digest": str(DIGEST)})

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", handle)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    server = TestServer(app, host="127.0.0.1", scheme="https")
    await server.start_server(ssl=context)
    try:
        yield f"https://localhost:{server.port}"
    finally:
        await server.close()


async def ask(url: str, ca: Path | None, *, allow_private: bool = False) -> Digest | None:
    config = UpstreamConfig(url=url, ca=ca, timeout=5, allow_private=allow_private)
    remote = UpstreamNames({"up.example.com": config}).remote(HERE)
    assert remote is not None
    backend = RegistryBackend.upstream(remote)
    try:
        return await backend.head_tag(HERE, "v1", soon())
    finally:
        await backend.close()


async def test_only_the_configs_authority_is_trusted(authority: trustme.CA, tmp_path: Path) -> None:
    good, other = tmp_path / "good.pem", tmp_path / "other.pem"
    authority.cert_pem.write_to_path(good)
    trustme.CA().cert_pem.write_to_path(other)
    async with serving(authority) as url:
        assert await ask(url, good) == DIGEST
        for wrong in (other, None):
            with pytest.raises(Unreachable, match=r"(?i)certificate"):
                await ask(url, wrong)


async def test_an_authority_that_is_not_there_is_said(
    authority: trustme.CA, tmp_path: Path
) -> None:
    async with serving(authority) as url:
        with pytest.raises(Unreachable, match="No such file"):
            await ask(url, tmp_path / "missing.pem")


async def test_a_redirect_from_https_to_http_is_refused(
    authority: trustme.CA, tmp_path: Path
) -> None:
    ca = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(ca)
    async with (
        FakeRegistry().running() as storage,
        serving(authority, f"{storage.base}/x") as url,
    ):
        with no_requests(storage), pytest.raises(Rejected, match="not encrypted"):
            await ask(url, ca, allow_private=True)
