# SPDX-License-Identifier: Apache-2.0
"""Reading from another registry: what it serves well, and what it serves wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from shoal.backend import registry_body
from shoal.backend.base import BlobName, Blobs, LinkName, Repositories, TagName, TagsOf
from shoal.backend.registry import RegistryBackend
from shoal.backend.registry_listing import MAX_PAGES
from shoal.model.digest import Digest
from shoal.model.media_types import OCI_MANIFEST
from shoal.web.failures import NotFound, Overloaded, Rejected, Unreachable
from tests.unit.backend.registry_server import (
    FakeRegistry,
    error,
    manifest_of,
    no_requests,
    soon,
    upstream_of,
)

HERE, THERE = "up.example.com/team/app", "team/app"
CONTENT = bytes(range(256)) * 4096
BODY = manifest_of(CONTENT)


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry().running() as running:
        running.add_blob(THERE, CONTENT)
        running.add_manifest(THERE, BODY, "v1")
        yield running


@pytest.fixture
async def backend(registry: FakeRegistry) -> AsyncIterator[RegistryBackend]:
    async with upstream_of(registry) as upstream:
        yield upstream


@pytest.fixture
def blob() -> BlobName:
    return BlobName(HERE, Digest.of(CONTENT))


async def read(
    backend: RegistryBackend, name: BlobName | TagName | LinkName, *span: int | None
) -> bytes:
    start = span[0] if span else 0
    assert start is not None
    stop = span[1] if len(span) > 1 else None
    async with backend.get(name, start, stop, deadline=soon()) as content:
        return b"".join([chunk async for chunk in content.chunks()])


async def test_a_blob_comes_whole_and_in_part(backend: RegistryBackend, blob: BlobName) -> None:
    assert await read(backend, blob) == CONTENT
    assert await read(backend, blob, 1000) == CONTENT[1000:]
    assert await read(backend, blob, 7, 300_000) == CONTENT[7:300_000]
    assert await read(backend, blob, len(CONTENT) - 5, len(CONTENT) + 9) == CONTENT[-5:]
    assert await read(backend, blob, 5, 5) == b""
    assert await read(backend, blob, len(CONTENT)) == b""


async def test_the_size_is_that_of_the_whole_whatever_part_is_asked_for(
    backend: RegistryBackend, blob: BlobName
) -> None:
    for start, stop in ((0, None), (5, 10), (len(CONTENT), None)):
        async with backend.get(blob, start, stop, deadline=soon()) as content:
            assert content.size == len(CONTENT)


async def test_a_manifest_is_found_as_a_blob(
    backend: RegistryBackend, registry: FakeRegistry
) -> None:
    name = BlobName(HERE, Digest.of(BODY))
    assert await backend.stat(name, deadline=soon()) == len(BODY)
    assert await read(backend, name) == BODY
    assert await read(backend, name, 3, 10) == BODY[3:10]
    assert registry.requests("GET", "/blobs/")
    accepted = registry.requests("GET", "/manifests/")[0].headers["Accept"]
    assert OCI_MANIFEST in accepted


async def test_not_there_is_said_after_both_places_were_asked(
    backend: RegistryBackend, registry: FakeRegistry
) -> None:
    name = BlobName(HERE, Digest.of(b"nobody has this"))
    assert await backend.stat(name, deadline=soon()) is None
    with pytest.raises(NotFound, match="team/app"):
        await read(backend, name)
    for method in ("HEAD", "GET"):
        assert [len(registry.requests(method, part)) for part in ("/blobs/", "/manifests/")] == [
            1,
            1,
        ]


async def test_a_tag_is_its_digest(backend: RegistryBackend) -> None:
    digest = str(Digest.of(BODY))
    assert await read(backend, TagName(HERE, "v1")) == digest.encode()
    assert await backend.stat(TagName(HERE, "v1"), deadline=soon()) == len(digest)
    assert await backend.stat(TagName(HERE, "v2"), deadline=soon()) is None
    with pytest.raises(NotFound):
        await read(backend, TagName(HERE, "v2"))


async def test_a_link_is_there_when_its_content_is(
    backend: RegistryBackend, blob: BlobName
) -> None:
    there = LinkName(HERE, blob.digest, "blob")
    assert await read(backend, there) == str(blob.digest).encode()
    assert await backend.stat(LinkName(HERE, blob.digest, "manifest"), deadline=soon()) is None
    there = LinkName(HERE, Digest.of(BODY), "manifest")
    assert await backend.stat(there, deadline=soon()) == len(str(there.digest))


async def test_head_tag_asks_only_by_head(backend: RegistryBackend, registry: FakeRegistry) -> None:
    assert await backend.head_tag(HERE, "v1", soon()) == Digest.of(BODY)
    assert await backend.head_tag(HERE, "gone", soon()) is None
    assert not registry.requests("GET")


@pytest.mark.parametrize("status", [400, 405, 501])
async def test_a_registry_without_head_is_asked_by_get(
    backend: RegistryBackend, registry: FakeRegistry, blob: BlobName, status: int
) -> None:
    @registry.hook
    async def no_head(request: web.Request) -> web.Response | None:
        return web.Response(status=status) if request.method == "HEAD" else None

    assert await backend.head_tag(HERE, "v1", soon()) == Digest.of(BODY)
    assert await backend.head_tag(HERE, "gone", soon()) is None
    assert await backend.stat(blob, deadline=soon()) == len(CONTENT)


@pytest.mark.parametrize("digest", [None, "sha256:short", "md5:abc"])
async def test_a_head_without_a_digest_is_followed_by_a_get(
    backend: RegistryBackend, registry: FakeRegistry, digest: str | None
) -> None:
    @registry.hook
    async def silent(_: web.Request) -> web.Response | None:
        headers = {"Content-Type": OCI_MANIFEST}
        if digest is not None:
            headers["Docker-Content-Digest"] = digest
        return web.Response(body=BODY, headers=headers)

    assert await backend.head_tag(HERE, "v1", soon()) == Digest.of(BODY)


async def test_an_etag_that_is_a_digest_counts(
    backend: RegistryBackend, registry: FakeRegistry
) -> None:
    @registry.hook
    async def etag(_: web.Request) -> web.Response | None:
        return web.Response(headers={"ETag": f'"{Digest.of(BODY)}"'})

    assert await backend.head_tag(HERE, "v1", soon()) == Digest.of(BODY)
    assert not registry.requests("GET")


async def test_a_manifest_comes_with_its_digest_and_type(backend: RegistryBackend) -> None:
    for reference in ("v1", Digest.of(BODY)):
        assert await backend.manifest(HERE, reference, soon()) == (
            Digest.of(BODY),
            OCI_MANIFEST,
            BODY,
        )
    with pytest.raises(NotFound):
        await backend.manifest(HERE, "gone", soon())


async def test_a_manifest_with_another_digest_is_refused(
    backend: RegistryBackend, registry: FakeRegistry
) -> None:
    asked = Digest.of(BODY)
    registry.manifests[THERE, str(asked)] = (OCI_MANIFEST, BODY + b" ")
    for reference in ("v1", asked):
        with pytest.raises(Rejected, match=f"for {asked}"):
            await backend.manifest(HERE, reference, soon())


@pytest.mark.parametrize(
    "content_type, body",
    [
        ("text/html", b"<html>Please log in</html>"),
        ("application/vnd.docker.distribution.manifest.v1+prettyjws", b'{"schemaVersion": 1}'),
    ],
)
async def test_what_is_no_manifest_is_refused(
    backend: RegistryBackend, registry: FakeRegistry, content_type: str, body: bytes
) -> None:
    @registry.hook
    async def page(_: web.Request) -> web.Response | None:
        return web.Response(body=body, headers={"Content-Type": content_type})

    with pytest.raises(Rejected, match="cannot be kept"):
        await backend.manifest(HERE, "v1", soon())


async def test_a_manifest_of_more_than_four_mebibytes_is_not_read(
    backend: RegistryBackend, registry: FakeRegistry
) -> None:
    registry.add_manifest(THERE, b" " * (4 * 1024 * 1024 + 1), "huge")
    with pytest.raises(Unreachable, match="more than 4194304 bytes"):
        await backend.manifest(HERE, "huge", soon())


# -- bodies that break off --------------------------------------------------------------------


def cut_after(registry: FakeRegistry, size: int, *, times: int) -> None:
    """Break the connection of the first GETs of blobs after so many bytes."""
    left = [times]

    @registry.hook
    async def cut(request: web.Request) -> web.StreamResponse | None:
        if request.method != "GET" or "/blobs/" not in request.path or left[0] == 0:
            return None
        left[0] -= 1
        start = request.http_range.start or 0
        response = web.StreamResponse(status=206 if start else 200)
        response.content_length = len(CONTENT) - start
        if start:
            said = f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"
            response.headers["Content-Range"] = said
        await response.prepare(request)
        await response.write(CONTENT[start : start + size])
        assert request.transport is not None
        request.transport.close()
        return response


async def test_a_body_that_breaks_off_is_resumed_from_there(
    backend: RegistryBackend,
    registry: FakeRegistry,
    blob: BlobName,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry_body, "PAUSE", 0.01)
    cut_after(registry, 100_000, times=2)
    assert await read(backend, blob) == CONTENT
    ranges = [it.headers.get("Range") for it in registry.requests("GET")]
    assert ranges == [None, "bytes=100000-", "bytes=200000-"]


async def test_a_registry_without_ranges_sends_again_what_is_there(
    backend: RegistryBackend,
    registry: FakeRegistry,
    blob: BlobName,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry_body, "PAUSE", 0.01)

    @registry.hook
    async def without_ranges(request: web.Request) -> web.StreamResponse | None:
        return web.Response(body=CONTENT) if request.method == "GET" else None

    cut_after(registry, 100_000, times=1)
    assert await read(backend, blob) == CONTENT
    assert await read(backend, blob, 10, 20) == CONTENT[10:20]


async def test_resuming_ends(
    backend: RegistryBackend,
    registry: FakeRegistry,
    blob: BlobName,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry_body, "PAUSE", 0.01)
    cut_after(registry, 10, times=100)
    with pytest.raises(Unreachable, match="broke off"):
        await read(backend, blob)
    assert len(registry.requests("GET")) == 1 + registry_body.RESUMPTIONS


async def test_a_blob_that_has_another_size_after_a_break_is_no_blob(
    backend: RegistryBackend,
    registry: FakeRegistry,
    blob: BlobName,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry_body, "PAUSE", 0.01)
    cut_after(registry, 100, times=1)
    registry.blobs[THERE, str(blob.digest)] = CONTENT[:1000]
    with pytest.raises(Unreachable, match=f"had {len(CONTENT)} bytes, and now it has 1000"):
        await read(backend, blob)


@pytest.mark.parametrize(
    "status, said",
    [
        (206, "bytes 0-99/1048576"),
        (206, "bytes 10-15/1048576"),
        (206, "bytes 10-19/*"),
        (206, "elephants 10-19/1048576"),
        (206, ""),
        (416, ""),
        (416, "bytes */1048576"),
    ],
)
async def test_another_range_than_the_one_asked_for_is_an_error(
    backend: RegistryBackend, registry: FakeRegistry, blob: BlobName, status: int, said: str
) -> None:
    @registry.hook
    async def wrong(_: web.Request) -> web.StreamResponse | None:
        return web.Response(status=status, body=b"0123456789", headers={"Content-Range": said})

    with pytest.raises(Rejected):
        await read(backend, blob, 10, 20)


async def test_a_range_that_nobody_asked_for_is_an_error(
    backend: RegistryBackend, registry: FakeRegistry, blob: BlobName
) -> None:
    @registry.hook
    async def partial(_: web.Request) -> web.StreamResponse | None:
        headers = {"Content-Range": f"bytes 0-9/{len(CONTENT)}"}
        return web.Response(status=206, body=CONTENT[:10], headers=headers)

    with pytest.raises(Rejected):
        await read(backend, blob)


async def test_a_blob_in_another_encoding_is_refused(
    backend: RegistryBackend, registry: FakeRegistry, blob: BlobName
) -> None:
    @registry.hook
    async def gzipped(_: web.Request) -> web.StreamResponse | None:
        return web.Response(body=b"zipped", headers={"Content-Encoding": "gzip"})

    with pytest.raises(Rejected, match="gzip"):
        await read(backend, blob)


async def test_a_blob_without_a_length_is_refused(
    backend: RegistryBackend, registry: FakeRegistry, blob: BlobName
) -> None:
    @registry.hook
    async def chunked(request: web.Request) -> web.StreamResponse | None:
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        await response.write(CONTENT[:10])
        return response

    with pytest.raises(Unreachable, match="how many bytes"):
        await read(backend, blob)


async def test_a_body_that_drips_is_given_up(
    registry: FakeRegistry, blob: BlobName, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_body, "RESUMPTIONS", 0)
    gone = asyncio.Event()

    @registry.hook
    async def drip(request: web.Request) -> web.StreamResponse | None:
        response = web.StreamResponse()
        response.content_length = len(CONTENT)
        await response.prepare(request)
        try:
            for number in range(1000):
                await response.write(CONTENT[number : number + 1])
                await asyncio.sleep(0.02)
        finally:
            gone.set()
        return response

    async with upstream_of(registry, timeout=0.3) as backend:
        with pytest.raises(Unreachable, match="too slowly"):
            await read(backend, blob)
    await asyncio.wait_for(gone.wait(), 10)


async def test_a_body_that_stalls_is_given_up(
    registry: FakeRegistry, blob: BlobName, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_body, "RESUMPTIONS", 0)
    release = asyncio.Event()

    @registry.hook
    async def stall(request: web.Request) -> web.StreamResponse | None:
        response = web.StreamResponse()
        response.content_length = len(CONTENT)
        await response.prepare(request)
        await response.write(CONTENT[:1000])
        await release.wait()
        return response

    async with upstream_of(registry, timeout=0.2) as backend:
        with pytest.raises(Unreachable, match=r"paused for more than 0\.2 s"):
            await read(backend, blob)
    release.set()


async def test_a_slow_reader_is_not_taken_for_a_slow_registry(
    registry: FakeRegistry, blob: BlobName
) -> None:
    async with (
        upstream_of(registry, timeout=0.1) as backend,
        backend.get(blob, deadline=soon()) as content,
    ):
        received = b""
        async for chunk in content.chunks():
            if len(received) < 3 * len(chunk):
                await asyncio.sleep(0.15)  # longer than the registry may pause
            received += chunk
    assert received == CONTENT


# -- failures and rate limits -----------------------------------------------------------------


async def test_failures_have_their_types(
    backend: RegistryBackend, registry: FakeRegistry, blob: BlobName
) -> None:
    answer = [0]

    @registry.hook
    async def fail(_: web.Request) -> web.StreamResponse | None:
        return error(answer[0], "DENIED")

    for status, kind in ((403, Rejected), (418, Rejected), (500, Overloaded), (503, Overloaded)):
        answer[0] = status
        with pytest.raises(kind, match=r"team/app.* answered"):
            await read(backend, blob)
        with pytest.raises(kind):
            await backend.stat(blob, deadline=soon())


async def test_nobody_there_is_unreachable(blob: BlobName) -> None:
    registry = FakeRegistry()
    async with registry.running():
        pass
    async with upstream_of(registry) as backend:
        with pytest.raises(Unreachable):
            await backend.stat(blob, deadline=soon())


async def test_an_answer_that_does_not_come_is_unreachable(
    registry: FakeRegistry, blob: BlobName
) -> None:
    release = asyncio.Event()

    @registry.hook
    async def silent(_: web.Request) -> web.StreamResponse | None:
        await release.wait()
        return None

    async with upstream_of(registry, timeout=0.2) as backend:
        with pytest.raises(Unreachable, match="no answer"):
            await backend.stat(blob, deadline=soon())
    release.set()


async def test_a_registry_that_limits_our_rate_is_left_alone(
    backend: RegistryBackend, registry: FakeRegistry, blob: BlobName
) -> None:
    @registry.hook
    async def busy(_: web.Request) -> web.StreamResponse | None:
        return error(429, "TOOMANYREQUESTS", {"Retry-After": "30"})

    with pytest.raises(Overloaded) as first:
        await read(backend, blob)
    assert first.value.retry_after == pytest.approx(30, abs=1)
    with no_requests(registry), pytest.raises(Overloaded, match="limits our rate") as later:
        await backend.head_tag(HERE, "v1", soon())
    assert later.value.retry_after == pytest.approx(30, abs=1)


# -- listings ---------------------------------------------------------------------------------


async def test_tags_come_in_pages(backend: RegistryBackend, registry: FakeRegistry) -> None:
    tags = sorted(f"t{number}" for number in range(25))
    registry.tags[THERE] = dict.fromkeys(tags, str(Digest.of(BODY)))
    found: list[str] = []
    after: str | None = ""
    while after is not None:
        page = await backend.list(TagsOf(HERE), after=after, limit=10, deadline=soon())
        assert len(page.names) <= 10
        found += page.names
        after = page.last
    assert found == tags
    assert (await backend.list(TagsOf("up.example.com/no/such"), deadline=soon())).names == ()


async def test_a_registry_that_ignores_paging_and_order_is_put_in_order(
    backend: RegistryBackend, registry: FakeRegistry
) -> None:
    pages = {"": ["c", "a", "e"], "2": ["b", "d"]}

    @registry.hook
    async def unordered(request: web.Request) -> web.StreamResponse | None:
        token = request.query.get("token", "")
        headers = {} if token else {"Link": '</v2/team/app/tags/list?token=2>; rel="next"'}
        return web.json_response({"name": "x", "tags": pages[token]}, headers=headers)

    page = await backend.list(TagsOf(HERE), limit=3, deadline=soon())
    assert (page.names, page.last) == (("a", "b", "c"), "c")
    page = await backend.list(TagsOf(HERE), after="c", limit=3, deadline=soon())
    assert (page.names, page.last) == (("d", "e"), None)


async def test_repositories_have_their_names_in_shoal(
    backend: RegistryBackend, registry: FakeRegistry
) -> None:
    registry.tags["other"] = {"x": "y"}
    page = await backend.list(Repositories(), deadline=soon())
    assert page.names == ("up.example.com/other", HERE)


async def test_links_in_a_circle_end(backend: RegistryBackend, registry: FakeRegistry) -> None:
    @registry.hook
    async def circle(_: web.Request) -> web.StreamResponse | None:
        headers = {"Link": '</v2/team/app/tags/list?n=1&last=x>; rel="next"'}
        return web.json_response({"tags": []}, headers=headers)

    with pytest.raises(Rejected, match="circle"):
        await backend.list(TagsOf(HERE), deadline=soon())


async def test_links_without_end_end(backend: RegistryBackend, registry: FakeRegistry) -> None:
    @registry.hook
    async def endless(request: web.Request) -> web.StreamResponse | None:
        number = int(request.query.get("page", "0")) + 1
        headers = {"Link": f'</v2/team/app/tags/list?page={number}>; rel="next"'}
        return web.json_response({"tags": []}, headers=headers)

    with pytest.raises(Rejected, match="does not end"):
        await backend.list(TagsOf(HERE), deadline=soon(60))
    assert len(registry.seen) == MAX_PAGES


async def test_a_next_page_at_another_host_is_not_asked_for(
    backend: RegistryBackend, registry: FakeRegistry
) -> None:
    async with FakeRegistry().running() as other:

        @registry.hook
        async def away(_: web.Request) -> web.StreamResponse | None:
            headers = {"Link": f'<{other.base}/v2/team/app/tags/list?x>; rel="next"'}
            return web.json_response({"tags": ["a"]}, headers=headers)

        with no_requests(other), pytest.raises(Rejected, match="another host"):
            await backend.list(TagsOf(HERE), deadline=soon())


async def test_blobs_cannot_be_listed(backend: RegistryBackend) -> None:
    with pytest.raises(Rejected, match="cannot list"):
        await backend.list(Blobs(HERE), deadline=soon())


async def test_an_upstream_is_not_written(
    backend: RegistryBackend, registry: FakeRegistry, blob: BlobName
) -> None:
    assert backend.read_only
    with no_requests(registry):
        with pytest.raises(Rejected, match="only read"):
            await backend.put(blob, CONTENT, deadline=soon())
        with pytest.raises(Rejected, match="only read"):
            await backend.delete(blob, deadline=soon())
