# SPDX-License-Identifier: Apache-2.0
"""Upload sessions that several requests want at once, that are gone, or that never were."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
from aiohttp import ClientResponse
from yarl import URL

from shoal.model.digest import Digest
from shoal.model.errors import BlobUploadUnknown
from shoal.proxy.upload_ids import UploadId
from shoal.proxy.uploads import Uploads
from shoal.registry.ports import Chunk
from shoal.store.uploads import UploadSessions
from tests.unit.proxy.memory_proxy import Proxy
from tests.unit.registry_http import (
    ABSENT,
    BLOB,
    DIGEST,
    UPLOADS,
    Client,
    code,
    open_upload,
)

CONFLICT = (409, "BLOB_UPLOAD_INVALID")
UNKNOWN = (404, "BLOB_UPLOAD_UNKNOWN")
ME = "p1.example:5000"


class SlowBody:
    """A body whose second half waits to be told."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.go_on = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        middle = len(self._content) // 2
        yield self._content[:middle]
        await self.go_on.wait()
        yield self._content[middle:]


async def half_sent(client: Client, location: str) -> None:
    """Wait until a session holds the first half of a `SlowBody` of `BLOB`."""
    half = f"0-{len(BLOB) // 2 - 1}"
    async with asyncio.timeout(5):
        while (await client.get(location)).headers["Range"] != half:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "method, query", [("PATCH", ""), ("PUT", f"?digest={DIGEST}"), ("DELETE", "")]
)
async def test_while_one_request_writes_another_is_refused(
    client: Client, proxy: Proxy, method: str, query: str
) -> None:
    location = await open_upload(client)
    body = SlowBody(BLOB)
    first = asyncio.create_task(client.patch(location, data=body))
    await half_sent(client, location)
    assert await code(await client.request(method, location + query)) == CONFLICT
    body.go_on.set()
    answer = await first
    assert answer.headers["Range"] == f"0-{len(BLOB) - 1}"
    assert (await client.put(f"{location}?digest={DIGEST}")).status == 201
    assert proxy.origins.blobs[DIGEST] == BLOB


async def test_while_a_put_brings_the_last_chunk_a_patch_is_refused(client: Client) -> None:
    location = await open_upload(client)
    body = SlowBody(BLOB)
    first = asyncio.create_task(client.put(f"{location}?digest={DIGEST}", data=body))
    await half_sent(client, location)
    assert await code(await client.patch(location, data=b"more")) == CONFLICT
    body.go_on.set()
    assert (await first).status == 201


async def test_a_put_may_be_repeated_but_only_as_it_was(client: Client) -> None:
    location = await open_upload(client)
    await client.patch(location, data=BLOB)
    for _ in range(2):
        assert (await client.put(f"{location}?digest={DIGEST}")).status == 201
    assert await code(await client.put(f"{location}?digest={ABSENT}")) == UNKNOWN
    assert await code(await client.patch(location, data=b"more")) == UNKNOWN


async def test_two_puts_at_once_store_the_blob_once(client: Client, proxy: Proxy) -> None:
    location = await open_upload(client)
    await client.patch(location, data=BLOB)
    proxy.origins.gate = asyncio.Event()
    puts = [
        asyncio.create_task(client.put(f"{location}?digest={DIGEST}")),
        asyncio.create_task(client.put(f"{location}?digest={DIGEST}")),
    ]
    await proxy.origins.uploading.wait()
    proxy.origins.gate.set()
    assert [(await put).status for put in puts] == [201, 201]
    assert len(proxy.origins.deadlines) == 1
    assert list(proxy.folder.iterdir()) == []


async def answers_of_all_methods(client: Client, url: str | URL) -> list[tuple[int, str]]:
    answers: list[ClientResponse] = [
        await client.get(url),
        await client.patch(url, data=b"more"),
        await client.put(URL(f"{url}?digest={DIGEST}", encoded=True), data=BLOB),
        await client.delete(url),
    ]
    return [await code(answer) for answer in answers]


async def test_an_upload_that_was_cancelled_is_unknown(client: Client) -> None:
    location = await open_upload(client)
    await client.patch(location, data=BLOB)
    assert (await client.delete(location)).status == 204
    assert await answers_of_all_methods(client, location) == [UNKNOWN] * 4


async def test_an_upload_that_expired_is_unknown(client: Client, proxy: Proxy) -> None:
    location = await open_upload(client)
    await client.patch(location, data=BLOB)
    expired = UploadSessions(proxy.folder).expire(time.time() + 100, 60)
    assert len(expired) == 1
    assert list(proxy.folder.iterdir()) == []
    fresh = Proxy(proxy.folder)
    with pytest.raises(BlobUploadUnknown):
        await fresh.service.upload_size("team/app", location.rpartition("/")[2])


async def test_an_upload_is_of_one_repository(client: Client) -> None:
    location = await open_upload(client)
    await client.patch(location, data=BLOB)
    for other in ("team/other", "team/app/blobs", "app"):
        elsewhere = location.replace("team/app", other)
        assert await answers_of_all_methods(client, elsewhere) == [UNKNOWN] * 4
    assert (await client.put(f"{location}?digest={DIGEST}")).status == 201


async def test_an_id_that_was_tampered_with_is_unknown(client: Client, proxy: Proxy) -> None:
    location = await open_upload(client)
    await client.patch(location, data=BLOB)
    upload = location.rpartition("/")[2]
    file = next(proxy.folder.iterdir()).name
    places = (0, 31, 32, 33, 48, 49, 50, len(upload) - 1)
    tampered = [
        f"{upload[:place]}{'0' if upload[place] != '0' else '1'}{upload[place + 1 :]}"
        for place in places
    ]
    paths = [file, f"..%2F{file}", f"%2e%2e%2f{file}", "..%2F..%2Fetc%2Fpasswd", f"{upload}%00"]
    for wrong in [*tampered, *paths, upload[:-1], f"{upload}0", upload[:32], "x" * 2000]:
        url = URL(f"{UPLOADS}{wrong}", encoded=True)
        assert await answers_of_all_methods(client, url) == [UNKNOWN] * 4, wrong
    assert (await client.get(location)).headers["Range"] == f"0-{len(BLOB) - 1}"


async def arriving(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def test_an_upload_is_hashed_in_the_algorithm_it_was_started_with(tmp_path: Path) -> None:
    def process() -> Uploads:
        return Uploads(UploadSessions(tmp_path), idle_timeout=5, name=ME)

    uploads = process()
    upload = await uploads.start("a/b", "sha512")
    async with uploads.exclusive("a/b", upload) as session:
        await uploads.append(session, Chunk(arriving(BLOB[:100])))
    uploads = process()
    async with uploads.exclusive("a/b", upload) as session:
        await uploads.append(session, Chunk(arriving(BLOB[100:])))
        assert session.writer.algorithm == "sha512"
        await uploads.verify(session, Digest.of(BLOB, "sha512"))
        await uploads.verify(session, DIGEST)


async def test_an_upload_of_another_proxy_is_not_looked_for_here(tmp_path: Path) -> None:
    uploads = Uploads(UploadSessions(tmp_path), idle_timeout=5, name=ME)
    upload = UploadId.parse(await uploads.start("a/b"))
    assert upload is not None
    foreign = UploadId.of(upload.session, "a/b", "p2.example:5000")
    with pytest.raises(BlobUploadUnknown, match="none of this one's neighbours"):
        await uploads.get("a/b", str(foreign))
    assert await uploads.find("a/b", str(upload)) is not None


async def test_abandoned_uploads_are_removed_whoever_brought_their_bytes(tmp_path: Path) -> None:
    sessions = UploadSessions(tmp_path)
    uploads = Uploads(sessions, idle_timeout=5, name=ME)
    upload = await uploads.start("a/b")
    session = await uploads.get("a/b", upload)
    old = time.time() - 100
    os.utime(session.path, (old, old))
    task = asyncio.create_task(uploads.expire(0.01))
    async with asyncio.timeout(5):
        while await uploads.find("a/b", upload) is not None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert not await asyncio.to_thread(lambda: list(tmp_path.iterdir()))
