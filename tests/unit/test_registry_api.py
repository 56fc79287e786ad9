# SPDX-License-Identifier: Apache-2.0
"""The OCI distribution API over HTTP; behind it the proxy's service with origins in memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import ClientResponse, web
from aiohttp.test_utils import TestClient, TestServer
from yarl import URL

from shoal.model.digest import Digest
from shoal.model.manifest import MAX_MANIFEST_BYTES
from shoal.model.media_types import DOCKER_MANIFEST, OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST
from shoal.proxy.service import ProxyService
from shoal.proxy.uploads import Uploads
from shoal.registry.app import registry_routes
from shoal.store.uploads import UploadSessions
from shoal.web.server import application
from tests.unit.registry_fakes import QUORUM, MemoryIndex, MemoryOrigins

BLOB = bytes(range(256)) * 16
DIGEST = Digest.of(BLOB)
ABSENT = Digest.of(b"nobody has this")
UPLOADS = "/v2/team/app/blobs/uploads/"

Client = TestClient[web.Request, web.Application]


class Registry:
    """A registry to talk to, and what is behind it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.origins = MemoryOrigins()
        self.index = MemoryIndex(self.origins)
        self.service = ProxyService(
            origins=self.origins,
            index=self.index,
            uploads=Uploads(UploadSessions(folder), idle_timeout=5),
            write_quorum=QUORUM,
        )

    def application(self, *, pulls_only: bool = False) -> web.Application:
        async def ready() -> list[str]:
            return []

        app = application("test", readiness=ready)
        registry_routes(app, self.service, None if pulls_only else self.service)
        return app


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "uploads")


@pytest.fixture
async def client(registry: Registry) -> AsyncIterator[Client]:
    async with TestClient(TestServer(registry.application())) as running:
        yield running


@pytest.fixture
async def agent(registry: Registry) -> AsyncIterator[Client]:
    async with TestClient(TestServer(registry.application(pulls_only=True))) as running:
        yield running


async def code(answer: ClientResponse) -> tuple[int, str]:
    """Status and error code, from a body that has the spec's form."""
    assert answer.content_type == "application/json"
    document = await answer.json()
    (error,) = document["errors"]
    assert error["message"]
    return answer.status, error["code"]


async def open_upload(client: Client, path: str = UPLOADS) -> str:
    answer = await client.post(path)
    assert answer.status == 202
    return answer.headers["Location"]


def image(kind: str = OCI_MANIFEST, *layers: bytes) -> bytes:
    def entry(media_type: str, content: bytes) -> dict[str, object]:
        digest = str(Digest.of(content))
        return {"mediaType": media_type, "digest": digest, "size": len(content)}

    document = {
        "schemaVersion": 2,
        "mediaType": kind,
        "config": entry(OCI_CONFIG, b"{}"),
        "layers": [entry(OCI_LAYER, layer) for layer in layers],
    }
    # Spaces and all: what is pushed must come back byte for byte.
    return json.dumps(document, indent=3).encode() + b"\n"


async def push_image(client: Client, registry: Registry, tag: str = "v1") -> bytes:
    registry.origins.hold(BLOB)
    registry.origins.hold(b"{}")
    body = image(OCI_MANIFEST, BLOB)
    answer = await client.put(
        f"/v2/team/app/manifests/{tag}", data=body, headers={"Content-Type": OCI_MANIFEST}
    )
    assert answer.status == 201
    return body


# -- the version check, and what every answer has ---------------------------------------------


@pytest.mark.parametrize("path", ["/v2/", "/v2"])
async def test_the_version_check_answers(client: Client, path: str) -> None:
    answer = await client.get(path)
    assert (answer.status, await answer.json()) == (200, {})


@pytest.mark.parametrize(
    "path", ["/v2/", "/v2/none", "/v2/a/manifests/x", "/v2/A/tags/list", UPLOADS]
)
async def test_every_answer_under_v2_names_the_api(client: Client, path: str) -> None:
    answer = await client.get(path)
    assert answer.headers["Docker-Distribution-Api-Version"] == "registry/2.0"


async def test_other_paths_do_not_name_the_api(client: Client) -> None:
    answer = await client.get("/health")
    assert answer.status == 200
    assert "Docker-Distribution-Api-Version" not in answer.headers


async def test_a_path_that_is_none_is_told_so(client: Client) -> None:
    assert (await client.get("/v2/nothing")).status == 404
    assert (await code(await client.get("/v2/nothing")))[0] == 404


# -- pushing blobs ----------------------------------------------------------------------------


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
    assert list(registry.folder.iterdir()) == []


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
    assert list(registry.folder.iterdir()) == []


async def test_a_post_that_cannot_be_stored_keeps_nothing(
    client: Client, registry: Registry
) -> None:
    registry.origins.failure = "refused"
    answer = await client.post(f"{UPLOADS}?digest={DIGEST}", data=BLOB)
    assert await code(answer) == (503, "UNAVAILABLE")
    assert list(registry.folder.iterdir()) == []


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
    assert list(registry.folder.iterdir()) == []
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
    registry.origins.hold(BLOB)
    mount, source = f"mount={DIGEST}", "from=some/where"
    if encoded:
        mount, source = f"mount={quote(str(DIGEST), safe='')}", "from=some%2Fwhere"
    for query in (f"{mount}&{source}", f"{source}&ns=up.example.test&{mount}&origin=x"):
        answer = await client.post(URL(f"{UPLOADS}?{query}", encoded=True))
        await assert_created(answer, registry, DIGEST)


async def test_a_mount_below_the_quorum_becomes_an_upload(
    client: Client, registry: Registry
) -> None:
    for copies in (0, 1):
        if copies:
            registry.origins.hold(BLOB, copies=copies)
        answer = await client.post(f"{UPLOADS}?mount={DIGEST}&from=a/b")
        assert answer.status == 202
        answer = await client.put(f"{answer.headers['Location']}?digest={DIGEST}", data=BLOB)
        assert answer.status == 201
        registry.origins.blobs.clear()


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
    assert list(registry.folder.iterdir()) == []


async def test_a_client_that_vanishes_can_resume(client: Client, registry: Registry) -> None:
    location = await open_upload(client)
    _, writer = await asyncio.open_connection(client.host, client.port)
    head = f"PATCH {location} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BLOB)}\r\n\r\n"
    writer.write(head.encode() + BLOB[:1000])
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    async with asyncio.timeout(10):
        # The proxy notices the end of the connection in its own time.
        while (answer := await client.patch(location, data=b"")).status == 409:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    received = int(answer.headers["Range"].removeprefix("0-")) + 1
    start = received if received > 1 else 0
    assert start in {0, 1000}
    answer = await client.put(f"{location}?digest={DIGEST}", data=BLOB[start:])
    await assert_created(answer, registry, DIGEST)


# -- pulling blobs ----------------------------------------------------------------------------


async def test_a_blob_is_described_and_sent_whole(client: Client, registry: Registry) -> None:
    registry.origins.hold(BLOB)
    for method in ("HEAD", "GET"):
        answer = await client.request(method, f"/v2/team/app/blobs/{DIGEST}")
        assert answer.status == 200
        assert answer.headers["Content-Length"] == str(len(BLOB))
        assert answer.headers["Docker-Content-Digest"] == str(DIGEST)
        assert answer.headers["Accept-Ranges"] == "bytes"
        assert answer.headers["ETag"] == f'"{DIGEST}"'
        assert answer.content_type == "application/octet-stream"
        assert await answer.read() == (BLOB if method == "GET" else b"")
    (blob,) = registry.origins.opened  # HEAD opens none
    assert blob.closed


@pytest.mark.parametrize(
    "header, start, stop",
    [("bytes=10-19", 10, 20), ("bytes=4000-", 4000, 4096), ("bytes=-6", 4090, 4096)],
)
async def test_a_part_of_a_blob(
    client: Client, registry: Registry, header: str, start: int, stop: int
) -> None:
    registry.origins.hold(BLOB)
    answer = await client.get(f"/v2/team/app/blobs/{DIGEST}", headers={"Range": header})
    assert answer.status == 206
    assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(BLOB)}"
    assert await answer.read() == BLOB[start:stop]


async def test_a_range_beyond_the_blob(client: Client, registry: Registry) -> None:
    registry.origins.hold(BLOB)
    answer = await client.get(f"/v2/team/app/blobs/{DIGEST}", headers={"Range": "bytes=5000-"})
    assert await code(answer) == (416, "RANGE_INVALID")
    assert answer.headers["Content-Range"] == f"bytes */{len(BLOB)}"


async def test_a_blob_is_never_encoded(client: Client, registry: Registry) -> None:
    registry.origins.hold(BLOB)
    headers = {"Accept-Encoding": "zstd,gzip,deflate"}
    answer = await client.get(f"/v2/team/app/blobs/{DIGEST}", headers=headers)
    assert "Content-Encoding" not in answer.headers
    assert answer.headers["Content-Length"] == str(len(BLOB))


async def test_content_that_the_client_has_is_not_sent(client: Client, registry: Registry) -> None:
    body = await push_image(client, registry)
    for path, digest in (("blobs", DIGEST), ("manifests", Digest.of(body))):
        for method in ("HEAD", "GET"):
            answer = await client.request(
                method,
                f"/v2/team/app/{path}/{digest}",
                headers={"If-None-Match": f'"{ABSENT}", "{digest}"'},
            )
            assert answer.status == 304
            assert answer.headers["ETag"] == f'"{digest}"'
            assert await answer.read() == b""


async def test_a_blob_that_is_nowhere(client: Client) -> None:
    assert (await client.head(f"/v2/team/app/blobs/{ABSENT}")).status == 404
    answer = await client.get(f"/v2/team/app/blobs/{ABSENT}")
    assert await code(answer) == (404, "BLOB_UNKNOWN")


async def test_origins_that_cannot_be_asked_are_not_a_404(
    client: Client, registry: Registry
) -> None:
    registry.origins.failure = "refused"
    answer = await client.get(f"/v2/team/app/blobs/{ABSENT}")
    assert answer.status in {502, 503, 504}
    assert (await code(answer))[1] == "UNAVAILABLE"


# -- manifests --------------------------------------------------------------------------------


async def test_a_manifest_comes_back_byte_for_byte(client: Client, registry: Registry) -> None:
    body = await push_image(client, registry)
    digest = Digest.of(body)
    for reference in ("v1", str(digest), quote(str(digest), safe="")):
        for method in ("HEAD", "GET"):
            url = URL(f"/v2/team/app/manifests/{reference}", encoded=True)
            answer = await client.request(method, url)
            assert answer.status == 200
            assert answer.content_type == OCI_MANIFEST
            assert answer.headers["Docker-Content-Digest"] == str(digest)
            assert answer.headers["Content-Length"] == str(len(body))
            assert answer.headers["ETag"] == f'"{digest}"'
            assert await answer.read() == (body if method == "GET" else b"")


@pytest.mark.parametrize("kind", [OCI_MANIFEST, DOCKER_MANIFEST])
async def test_a_pushed_manifest_is_created_under_its_reference(
    client: Client, registry: Registry, kind: str
) -> None:
    registry.origins.hold(BLOB)
    registry.origins.hold(b"{}")
    body = image(kind, BLOB)
    digest = Digest.of(body)
    for reference in ("v1", str(digest), str(Digest.of(body, "sha512"))):
        path = f"/v2/team/app/manifests/{reference}"
        answer = await client.put(path, data=body, headers={"Content-Type": kind})
        assert answer.status == 201
        assert answer.headers["Location"] == path
        pulled = await client.get(path)
        assert pulled.content_type == kind
        assert pulled.headers["Docker-Content-Digest"] == answer.headers["Docker-Content-Digest"]
        assert await pulled.read() == body


async def test_a_tag_can_be_moved(client: Client, registry: Registry) -> None:
    await push_image(client, registry, "latest")
    second = image(OCI_MANIFEST)
    headers = {"Content-Type": OCI_MANIFEST}
    await client.put("/v2/team/app/manifests/latest", data=second, headers=headers)
    assert await (await client.get("/v2/team/app/manifests/latest")).read() == second


async def test_an_index_is_served_as_one(client: Client, registry: Registry) -> None:
    child = await push_image(client, registry)
    entry = {"mediaType": OCI_MANIFEST, "digest": str(Digest.of(child)), "size": len(child)}
    body = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}).encode()
    headers = {"Content-Type": OCI_INDEX}
    answer = await client.put("/v2/team/app/manifests/multi", data=body, headers=headers)
    assert answer.status == 201
    assert (await client.get("/v2/team/app/manifests/multi")).content_type == OCI_INDEX


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["application/json", OCI_INDEX, OCI_MANIFEST, DOCKER_MANIFEST],
        [f"{OCI_INDEX}, {OCI_MANIFEST}, */*"],
        [OCI_INDEX],
    ],
)
async def test_accept_never_hides_a_manifest(
    client: Client, registry: Registry, lines: list[str]
) -> None:
    body = await push_image(client, registry)
    headers = [("Accept", line) for line in lines]
    answer = await client.get("/v2/team/app/manifests/v1", headers=headers)
    assert answer.content_type == OCI_MANIFEST
    assert await answer.read() == body


async def test_a_manifest_whose_blobs_are_missing_is_refused_by_name(client: Client) -> None:
    body = image(OCI_MANIFEST, BLOB)
    headers = {"Content-Type": OCI_MANIFEST}
    for reference in ("v1", str(Digest.of(body))):
        answer = await client.put(f"/v2/team/app/manifests/{reference}", data=body, headers=headers)
        assert await code(answer) == (404, "MANIFEST_BLOB_UNKNOWN")
        (error,) = (await answer.json())["errors"]
        assert error["detail"]["missing"] == sorted([str(DIGEST), str(Digest.of(b"{}"))])


@pytest.mark.parametrize(
    "reference, body, content_type, expected",
    [
        ("v1", b"", OCI_MANIFEST, (400, "MANIFEST_INVALID")),
        ("v1", b"not json", OCI_MANIFEST, (400, "MANIFEST_INVALID")),
        ("v1", b"[" * 100_000, OCI_MANIFEST, (400, "MANIFEST_INVALID")),
        ("v1", image(), OCI_INDEX, (400, "MANIFEST_INVALID")),
        ("v1", image(), "text/html", (400, "MANIFEST_INVALID")),
        ("v1", image() + b" " * MAX_MANIFEST_BYTES, OCI_MANIFEST, (413, "SIZE_INVALID")),
        (str(ABSENT), image(), OCI_MANIFEST, (400, "DIGEST_INVALID")),
        ("sha256:baddigeststring", image(), OCI_MANIFEST, (400, "DIGEST_INVALID")),
        (".v1", image(), OCI_MANIFEST, (400, "TAG_INVALID")),
        ("t" * 129, image(), OCI_MANIFEST, (400, "TAG_INVALID")),
        ("v1%0aX", image(), OCI_MANIFEST, (400, "TAG_INVALID")),
    ],
)
async def test_a_bad_manifest_is_refused(  # noqa: PLR0917 -- the names of the parameters
    client: Client,
    registry: Registry,
    reference: str,
    body: bytes,
    content_type: str,
    expected: tuple[int, str],
) -> None:
    url = URL(f"/v2/team/app/manifests/{reference}", encoded=True)
    answer = await client.put(url, data=BytesIO(body), headers={"Content-Type": content_type})
    assert await code(answer) == expected
    assert not registry.origins.blobs
    assert not registry.index.entries


async def test_a_manifest_of_unknown_length_is_bounded_too(client: Client) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(64 * 1024)

    answer = await client.put(
        "/v2/team/app/manifests/v1", data=endless(), headers={"Content-Type": OCI_MANIFEST}
    )
    assert await code(answer) == (413, "SIZE_INVALID")


@pytest.mark.parametrize(
    "reference, expected",
    [
        ("nowhere", (404, "MANIFEST_UNKNOWN")),
        (str(ABSENT), (404, "MANIFEST_UNKNOWN")),
        (".no-tag", (404, "MANIFEST_UNKNOWN")),
        ("sha256:baddigeststring", (400, "DIGEST_INVALID")),
        (str(DIGEST), (404, "MANIFEST_UNKNOWN")),  # a blob that is no manifest
    ],
)
async def test_a_manifest_that_is_not_there(
    client: Client, registry: Registry, reference: str, expected: tuple[int, str]
) -> None:
    registry.origins.hold(BLOB)
    assert await code(await client.get(f"/v2/team/app/manifests/{reference}")) == expected
    assert (await client.head(f"/v2/team/app/manifests/{reference}")).status == expected[0]


# -- names ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "A",
        "a//b",
        "a/",
        "-a",
        "a_-b",
        "%2e%2e/b",
        "a%00b",
        "\u0430",
        "a" * 256,
        "a%0d%0ab",
    ],
)
@pytest.mark.parametrize(
    "method, rest",
    [
        ("GET", "tags/list"),
        ("GET", "manifests/v1"),
        ("PUT", "manifests/v1"),
        ("GET", f"blobs/{DIGEST}"),
        ("POST", "blobs/uploads/"),
        ("PATCH", "blobs/uploads/x"),
    ],
)
async def test_a_malformed_name_is_refused(
    client: Client, name: str, method: str, rest: str
) -> None:
    url = URL(f"/v2/{quote(name, safe='%/')}/{rest}", encoded=True)
    answer = await client.request(method, url)
    assert await code(answer) == (400, "NAME_INVALID")


@pytest.mark.parametrize("name", ["..", "a/../b", "%2e%2e/b", "a/%2e%2e", "/etc"])
async def test_a_path_does_not_climb(client: Client, name: str) -> None:
    # By hand, because the client's library would resolve the dots.
    reader, writer = await asyncio.open_connection(client.host, client.port)
    writer.write(f"GET /v2/{name}/tags/list HTTP/1.0\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.0 400 ")
    assert b"NAME_INVALID" in answer


@pytest.mark.parametrize("digest", ["sha256:", "sha256:../../x", f"SHA256:{DIGEST.hex}", "x"])
async def test_a_malformed_digest_is_refused(client: Client, digest: str) -> None:
    for method in ("GET", "HEAD"):
        answer = await client.request(method, f"/v2/a/blobs/{quote(digest, safe='')}")
        assert answer.status == 400
    assert await code(await client.get(f"/v2/a/blobs/{quote(digest, safe='')}")) == (
        400,
        "DIGEST_INVALID",
    )


@pytest.mark.parametrize(
    "name", ["blobs", "uploads", "tags", "manifests/tags/list", "blobs/uploads"]
)
async def test_a_name_may_be_made_of_the_words_of_the_api(
    client: Client, registry: Registry, name: str
) -> None:
    location = await open_upload(client, f"/v2/{name}/blobs/uploads/")
    assert (await client.put(f"{location}?digest={DIGEST}", data=BLOB)).status == 201
    assert (await client.get(f"/v2/{name}/blobs/{DIGEST}")).status == 200
    registry.origins.hold(b"{}")
    headers = {"Content-Type": OCI_MANIFEST}
    body = image(OCI_MANIFEST, BLOB)
    assert (
        await client.put(f"/v2/{name}/manifests/list", data=body, headers=headers)
    ).status == 201
    assert (await client.get(f"/v2/{name}/manifests/list")).status == 200
    answer = await client.get(f"/v2/{name}/tags/list")
    assert await answer.json() == {"name": name, "tags": ["list"]}


# -- listings ---------------------------------------------------------------------------------


async def listed(client: Client, path: str, field: str) -> tuple[list[str], str | None]:
    answer = await client.get(path)
    assert answer.status == 200
    link = answer.headers.get("Link")
    if link is not None:
        assert link.endswith('>; rel="next"')
        link = link.removeprefix("<").partition(">")[0]
    document: dict[str, Any] = await answer.json()
    return document[field], link


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
async def test_pages_hold_every_tag_once(client: Client, registry: Registry, n: int) -> None:
    tags = ["a", "b.1", "b_2", "c"]
    for tag in tags:
        registry.index.entries["team/app", tag] = DIGEST
    path: str | None = f"/v2/team/app/tags/list?n={n}"
    seen: list[str] = []
    while path is not None:
        page, path = await listed(client, path, "tags")
        assert len(page) == min(n, len(tags) - len(seen))
        seen += page
    assert seen == tags


async def test_repositories_are_paged_too(client: Client, registry: Registry) -> None:
    for name in ("a/b", "a/c", "d"):
        registry.index.entries[name, "v1"] = DIGEST
    page, link = await listed(client, "/v2/_catalog?n=2", "repositories")
    assert (page, link) == (["a/b", "a/c"], "/v2/_catalog?n=2&last=a%2Fc")
    assert link is not None
    answer = await client.get(URL(link, encoded=True))
    assert await answer.json() == {"repositories": ["d"]}
    assert "Link" not in answer.headers


async def test_the_edges_of_a_listing(client: Client, registry: Registry) -> None:
    registry.index.entries["team/app", "v1"] = DIGEST
    path = "/v2/team/app/tags/list"
    assert await listed(client, f"{path}?n=0", "tags") == ([], None)
    assert await listed(client, f"{path}?n=1", "tags") == (["v1"], None)
    assert await listed(client, f"{path}?n={10**30}", "tags") == (["v1"], None)
    assert await listed(client, f"{path}?last=a", "tags") == (["v1"], None)
    for bad in ("-1", "x", "1.5", "", "²"):
        assert (await client.get(path, params={"n": bad})).status == 400
    assert await code(await client.get("/v2/no/such/tags/list")) == (404, "NAME_UNKNOWN")
    assert await code(await client.get("/v2/no/such/tags/list?n=0")) == (404, "NAME_UNKNOWN")


async def test_a_page_is_clamped(client: Client, registry: Registry) -> None:
    for number in range(1001):
        registry.index.entries["team/app", f"v{number:04}"] = DIGEST
    page, link = await listed(client, "/v2/team/app/tags/list?n=5000", "tags")
    assert len(page) == 1000
    assert link == "/v2/team/app/tags/list?n=1000&last=v0999"


# -- what is not done -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path, allow",
    [(f"/v2/a/blobs/{DIGEST}", "GET, HEAD"), ("/v2/a/manifests/v1", "GET, HEAD, PUT")],
)
async def test_nothing_is_deleted(client: Client, path: str, allow: str) -> None:
    answer = await client.delete(path)
    assert await code(answer) == (405, "UNSUPPORTED")
    assert answer.headers["Allow"] == allow


async def test_an_agent_serves_pulls_and_refuses_pushes(
    client: Client, agent: Client, registry: Registry
) -> None:
    body = await push_image(client, registry)
    assert await (await agent.get("/v2/team/app/manifests/v1")).read() == body
    assert await (await agent.get(f"/v2/team/app/blobs/{DIGEST}")).read() == BLOB
    for method, path in (
        ("POST", UPLOADS),
        ("PATCH", f"{UPLOADS}x"),
        ("PUT", f"{UPLOADS}x"),
        ("DELETE", f"{UPLOADS}x"),
        ("PUT", "/v2/team/app/manifests/v1"),
        ("DELETE", "/v2/team/app/manifests/v1"),
        ("DELETE", f"/v2/team/app/blobs/{DIGEST}"),
    ):
        answer = await agent.request(method, path, data=b"x")
        assert await code(answer) == (405, "UNSUPPORTED")
        assert answer.headers["Allow"] == "GET, HEAD"
        assert "push to the proxy" in (await answer.json())["errors"][0]["message"]
