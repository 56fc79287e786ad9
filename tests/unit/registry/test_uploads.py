# SPDX-License-Identifier: Apache-2.0
"""Uploads and mounts over HTTP (OCI distribution-spec, "Pushing blobs")."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from urllib.parse import quote

import pytest
from aiohttp import ClientResponse
from yarl import URL

from shoal.model.digest import Digest
from tests.unit.registry_http import (
    ABSENT,
    BLOB,
    DIGEST,
    NAME,
    UPLOADS,
    Client,
    Registry,
    code,
    open_upload,
)


async def test_an_opened_upload_tells_all_the_client_needs(client: Client) -> None:
    answer = await client.post(UPLOADS)
    assert answer.status == 202
    location = answer.headers["Location"]
    assert location.startswith(UPLOADS)
    assert location.endswith(answer.headers["Docker-Upload-UUID"])
    assert answer.headers["Range"] == "0-0"
    assert int(answer.headers["OCI-Chunk-Min-Length"]) > 0
    assert await answer.read() == b""


async def assert_created(answer: ClientResponse, registry: Registry, digest: Digest) -> None:
    assert answer.status == 201
    assert answer.headers["Location"] == f"/v2/team/app/blobs/{digest}"
    assert answer.headers["Docker-Content-Digest"] == str(digest)
    assert registry.origins.blobs[digest] == BLOB
    assert not registry.uploads


async def test_one_patch_with_content_length(client: Client, registry: Registry) -> None:
    location = await open_upload(client)
    answer = await client.patch(location, data=BLOB)
    assert answer.status == 202
    assert answer.headers["Range"] == f"0-{len(BLOB) - 1}"
    assert answer.headers["Location"] == location
    answer = await client.put(f"{location}?digest={DIGEST}")
    await assert_created(answer, registry, DIGEST)


async def test_one_patch_in_chunked_encoding_without_a_type(
    client: Client, registry: Registry
) -> None:
    async def body() -> AsyncIterator[bytes]:
        for start in range(0, len(BLOB), 1000):
            yield BLOB[start : start + 1000]

    location = await open_upload(client)
    answer = await client.patch(location, data=body(), skip_auto_headers=["Content-Type"])
    assert answer.status == 202
    assert answer.request_info.headers.get("Content-Type") is None
    assert answer.request_info.headers["Transfer-Encoding"] == "chunked"
    answer = await client.put(answer.headers["Location"], params={"digest": str(DIGEST)})
    await assert_created(answer, registry, DIGEST)


async def test_one_put_with_the_body(client: Client, registry: Registry) -> None:
    location = await open_upload(client)
    answer = await client.put(f"{location}?digest={DIGEST}", data=BLOB)
    await assert_created(answer, registry, DIGEST)


async def test_a_client_that_waits_to_be_asked_for_the_body(
    client: Client, registry: Registry
) -> None:
    location = await open_upload(client)
    answer = await client.put(f"{location}?digest={DIGEST}", data=BLOB, expect100=True)
    await assert_created(answer, registry, DIGEST)


async def test_one_post_with_the_body(client: Client, registry: Registry) -> None:
    answer = await client.post(f"{UPLOADS}?digest={DIGEST}", data=BLOB)
    await assert_created(answer, registry, DIGEST)


async def test_a_post_of_other_bytes_keeps_nothing(client: Client, registry: Registry) -> None:
    answer = await client.post(f"{UPLOADS}?digest={ABSENT}", data=BLOB)
    assert await code(answer) == (400, "DIGEST_INVALID")
    assert not registry.uploads


async def test_a_post_that_cannot_be_stored_keeps_nothing(
    client: Client, registry: Registry
) -> None:
    registry.origins.failure = "refused"
    answer = await client.post(f"{UPLOADS}?digest={DIGEST}", data=BLOB)
    assert await code(answer) == (503, "UNAVAILABLE")
    assert not registry.uploads


async def test_chunks_in_order_the_last_with_the_put(client: Client, registry: Registry) -> None:
    location = await open_upload(client)
    for start, stop in ((0, 1000), (1000, 3000)):
        headers = {"Content-Range": f"{start}-{stop - 1}"}
        answer = await client.patch(location, data=BLOB[start:stop], headers=headers)
        assert answer.status == 202
        assert answer.headers["Range"] == f"0-{stop - 1}"
    headers = {"Content-Range": f"3000-{len(BLOB) - 1}"}
    answer = await client.put(f"{location}?digest={DIGEST}", data=BLOB[3000:], headers=headers)
    await assert_created(answer, registry, DIGEST)


@pytest.mark.parametrize("sent", ["0-999", "999-1998", "1001-2000"])
async def test_a_chunk_out_of_order_is_told_where_to_go_on(client: Client, sent: str) -> None:
    location = await open_upload(client)
    await client.patch(location, data=BLOB[:1000], headers={"Content-Range": "0-999"})
    for method, url in (("PATCH", location), ("PUT", f"{location}?digest={DIGEST}")):
        headers = {"Content-Range": sent}
        answer = await client.request(method, url, data=BLOB[:1000], headers=headers)
        assert await code(answer) == (416, "BLOB_UPLOAD_INVALID")
        assert answer.headers["Range"] == "0-999"
        assert answer.headers["Location"] == location
    answer = await client.get(location)
    assert answer.status == 204
    assert answer.headers["Range"] == "0-999"
    assert answer.headers["Location"] == location


@pytest.mark.parametrize(
    "header, expected",
    [
        ("nonsense", "BLOB_UPLOAD_INVALID"),
        ("9-0", "BLOB_UPLOAD_INVALID"),
        ("0-98", "SIZE_INVALID"),
    ],
)
async def test_a_range_that_is_wrong_is_refused(client: Client, header: str, expected: str) -> None:
    location = await open_upload(client)
    answer = await client.patch(location, data=BLOB[:100], headers={"Content-Range": header})
    assert await code(answer) == (400, expected)
    assert (await client.get(location)).headers["Range"] == "0-0"


async def test_a_cancelled_upload_is_unknown(client: Client) -> None:
    location = await open_upload(client)
    assert (await client.delete(location)).status == 204
    for method in ("GET", "PATCH", "DELETE"):
        answer = await client.request(method, location)
        assert await code(answer) == (404, "BLOB_UPLOAD_UNKNOWN")
    answer = await client.put(f"{location}?digest={DIGEST}")
    assert await code(answer) == (404, "BLOB_UPLOAD_UNKNOWN")


async def test_an_upload_of_another_repository_is_unknown(client: Client) -> None:
    location = await open_upload(client)
    other = location.replace("team/app", "team/other")
    assert await code(await client.patch(other, data=BLOB)) == (404, "BLOB_UPLOAD_UNKNOWN")


async def test_a_wrong_digest_ends_the_upload(client: Client, registry: Registry) -> None:
    location = await open_upload(client)
    await client.patch(location, data=BLOB)
    answer = await client.put(f"{location}?digest={ABSENT}")
    assert await code(answer) == (400, "DIGEST_INVALID")
    assert await code(await client.get(location)) == (404, "BLOB_UPLOAD_UNKNOWN")
    assert not registry.uploads
    assert not registry.origins.blobs


@pytest.mark.parametrize("query", ["", "?digest=", "?digest=sha256:abc", "?digest=md5:00", "?n=1"])
async def test_a_put_needs_a_digest_and_may_be_repeated(client: Client, query: str) -> None:
    location = await open_upload(client)
    await client.patch(location, data=BLOB)
    assert await code(await client.put(location + query)) == (400, "DIGEST_INVALID")
    assert (await client.put(f"{location}?digest={DIGEST}")).status == 201


async def test_a_digest_given_twice_must_be_one(client: Client) -> None:
    location = await open_upload(client)
    answer = await client.put(f"{location}?digest={DIGEST}&digest={ABSENT}", data=BLOB)
    assert answer.status == 400
    answer = await client.put(f"{location}?digest={DIGEST}&digest={DIGEST}", data=BLOB)
    assert answer.status == 201


async def test_a_failed_quorum_can_be_tried_again(client: Client, registry: Registry) -> None:
    location = await open_upload(client)
    registry.origins.failure = "origin-1:5002: connection refused"
    answer = await client.put(f"{location}?digest={DIGEST}", data=BLOB)
    assert await code(answer) == (503, "UNAVAILABLE")
    assert "origin-1:5002" in await answer.text()
    assert int(answer.headers["Retry-After"]) >= 1
    registry.origins.failure = None
    answer = await client.put(f"{location}?digest={DIGEST}")
    await assert_created(answer, registry, DIGEST)
    assert (await client.put(f"{location}?digest={DIGEST}")).status == 201


@pytest.mark.parametrize("encoded", [False, True])
async def test_queries_come_raw_and_encoded_in_any_order(
    client: Client, registry: Registry, encoded: bool
) -> None:
    registry.hold(BLOB, "some/where")
    mount, source = f"mount={DIGEST}", "from=some/where"
    if encoded:
        mount, source = f"mount={quote(str(DIGEST), safe='')}", "from=some%2Fwhere"
    for query in (f"{mount}&{source}", f"{source}&ns=up.example.test&{mount}&origin=x"):
        answer = await client.post(URL(f"{UPLOADS}?{query}", encoded=True))
        await assert_created(answer, registry, DIGEST)


@pytest.mark.parametrize("query", [f"mount={DIGEST}&from=a/b", f"mount={DIGEST}"])
async def test_a_mount_of_what_is_not_there_becomes_an_upload(
    client: Client, registry: Registry, query: str
) -> None:
    answer = await client.post(f"{UPLOADS}?{query}")
    assert answer.status == 202
    answer = await client.put(f"{answer.headers['Location']}?digest={DIGEST}", data=BLOB)
    await assert_created(answer, registry, DIGEST)


async def test_a_mount_without_a_source_takes_any_repository(
    client: Client, registry: Registry
) -> None:
    registry.hold(BLOB, "other/name")
    assert (await client.head(f"/v2/{NAME}/blobs/{DIGEST}")).status == 404
    await assert_created(await client.post(f"{UPLOADS}?mount={DIGEST}"), registry, DIGEST)
    assert (await client.head(f"/v2/{NAME}/blobs/{DIGEST}")).status == 200


async def test_a_mount_from_a_repository_without_the_blob_becomes_an_upload(
    client: Client, registry: Registry
) -> None:
    registry.hold(BLOB, "other/name")
    assert (await client.post(f"{UPLOADS}?mount={DIGEST}&from=third/name")).status == 202
    assert (await client.head(f"/v2/{NAME}/blobs/{DIGEST}")).status == 404


@pytest.mark.parametrize(
    "query, algorithm",
    [
        ("", "sha256"),
        ("?digest-algorithm=sha256", "sha256"),
        ("?digest-algorithm=sha512", "sha512"),
        (f"?mount=sha512:{'0' * 128}&from=a/b", "sha512"),
    ],
)
async def test_the_algorithm_of_the_digest_may_be_announced(
    client: Client, registry: Registry, query: str, algorithm: str
) -> None:
    digest = Digest.of(BLOB, algorithm)
    answer = await client.post(UPLOADS + query)
    assert answer.status == 202
    (session,) = registry.uploads.values()
    assert session.algorithm == algorithm
    answer = await client.put(f"{answer.headers['Location']}?digest={digest}", data=BLOB)
    await assert_created(answer, registry, digest)


@pytest.mark.parametrize("algorithm", ["", "md5", "SHA256", "sha256:", "blake3", "sha256%00"])
async def test_an_algorithm_that_is_not_known_is_refused(
    client: Client, registry: Registry, algorithm: str
) -> None:
    answer = await client.post(URL(f"{UPLOADS}?digest-algorithm={algorithm}", encoded=True))
    assert await code(answer) == (400, "DIGEST_INVALID")
    assert not registry.uploads


@pytest.mark.parametrize(
    "query, expected",
    [
        ("mount=sha256:abc&from=a/b", "DIGEST_INVALID"),
        (f"mount={DIGEST}&from=A//b", "NAME_INVALID"),
        ("digest=nonsense", "DIGEST_INVALID"),
    ],
)
async def test_a_malformed_mount_opens_nothing(
    client: Client, registry: Registry, query: str, expected: str
) -> None:
    assert await code(await client.post(f"{UPLOADS}?{query}")) == (400, expected)
    assert not registry.uploads


async def test_a_client_that_vanishes_can_resume(client: Client, registry: Registry) -> None:
    location = await open_upload(client)
    _, writer = await asyncio.open_connection(client.host, client.port)
    head = f"PATCH {location} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BLOB)}\r\n\r\n"
    writer.write(head.encode() + BLOB[:1000])
    await registry.receiving.wait()
    writer.close()
    await writer.wait_closed()
    await released(registry)
    answer = await client.get(location)
    assert answer.headers["Range"] == "0-999"
    answer = await client.put(f"{location}?digest={DIGEST}", data=BLOB[1000:])
    await assert_created(answer, registry, DIGEST)


async def released(registry: Registry) -> None:
    """Return when no request holds an upload any more."""
    async with asyncio.timeout(10):
        while any(session.held for session in registry.uploads.values()):  # noqa: ASYNC110
            await asyncio.sleep(0.001)  # what notices is in the server, and tells nobody
