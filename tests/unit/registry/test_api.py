# SPDX-License-Identifier: Apache-2.0
"""The OCI distribution API over HTTP: pulls, manifests, names, lists, and what is not done."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from io import BytesIO
from typing import Any
from urllib.parse import quote

import pytest
from yarl import URL

from shoal.model.digest import Digest
from shoal.model.manifest import MAX_MANIFEST_BYTES
from shoal.model.media_types import DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from tests.unit.registry_http import (
    ABSENT,
    BLOB,
    DIGEST,
    NAME,
    UPLOADS,
    Client,
    Registry,
    code,
    image,
    open_upload,
    push,
    push_image,
)

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


# -- pulling blobs ----------------------------------------------------------------------------


async def test_a_blob_is_described_and_sent_whole(client: Client, registry: Registry) -> None:
    registry.hold(BLOB, NAME)
    for method in ("HEAD", "GET"):
        answer = await client.request(method, f"/v2/team/app/blobs/{DIGEST}")
        assert answer.status == 200
        assert answer.headers["Content-Length"] == str(len(BLOB))
        assert answer.headers["Docker-Content-Digest"] == str(DIGEST)
        assert answer.headers["Accept-Ranges"] == "bytes"
        assert answer.headers["ETag"] == f'"{DIGEST}"'
        assert answer.content_type == "application/octet-stream"
        assert await answer.read() == (BLOB if method == "GET" else b"")
    assert registry.origins.opened[-1].closed


@pytest.mark.parametrize(
    "header, start, stop",
    [("bytes=10-19", 10, 20), ("bytes=4000-", 4000, 4096), ("bytes=-6", 4090, 4096)],
)
async def test_a_part_of_a_blob(
    client: Client, registry: Registry, header: str, start: int, stop: int
) -> None:
    registry.hold(BLOB, NAME)
    answer = await client.get(f"/v2/team/app/blobs/{DIGEST}", headers={"Range": header})
    assert answer.status == 206
    assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(BLOB)}"
    assert await answer.read() == BLOB[start:stop]


async def test_a_range_beyond_the_blob(client: Client, registry: Registry) -> None:
    registry.hold(BLOB, NAME)
    answer = await client.get(f"/v2/team/app/blobs/{DIGEST}", headers={"Range": "bytes=5000-"})
    assert await code(answer) == (416, "RANGE_INVALID")
    assert answer.headers["Content-Range"] == f"bytes */{len(BLOB)}"


async def test_a_blob_is_never_encoded(client: Client, registry: Registry) -> None:
    registry.hold(BLOB, NAME)
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
    registry.hold(BLOB, NAME)
    registry.hold(b"{}", NAME)
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
    registry.hold(BLOB, NAME)
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
    registry.hold(b"{}", name)
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


# -- deleting ---------------------------------------------------------------------------------


async def test_a_deleted_tag_leaves_its_manifest(client: Client, registry: Registry) -> None:
    body = await push_image(client, registry)
    answer = await client.delete(f"/v2/{NAME}/manifests/v1")
    assert (answer.status, await answer.read()) == (202, b"")
    for method in ("get", "head", "delete"):
        assert (await client.request(method, f"/v2/{NAME}/manifests/v1")).status == 404
    answer = await client.get(f"/v2/{NAME}/manifests/{Digest.of(body)}")
    assert await answer.read() == body


async def test_a_deleted_manifest_takes_its_tags_along(client: Client, registry: Registry) -> None:
    body = await push_image(client, registry)
    await push(client, body, "v2")
    path = f"/v2/{NAME}/manifests/{Digest.of(body)}"
    assert (await client.delete(path)).status == 202
    for reference in ("v1", "v2", Digest.of(body)):
        answer = await client.get(f"/v2/{NAME}/manifests/{reference}")
        assert await code(answer) == (404, "MANIFEST_UNKNOWN")
    assert await code(await client.delete(path)) == (404, "MANIFEST_UNKNOWN")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_tag_of_what_is_no_manifest_is_not_served_as_one(
    client: Client, registry: Registry, method: str
) -> None:
    digest = registry.hold(b"HTTP/1.1 200 OK\r\n\r\n", NAME)
    registry.index.entries[NAME, "file"] = digest
    answer = await client.request(method, f"/v2/{NAME}/manifests/file")
    assert answer.status == 404
    if method == "GET":
        assert await code(answer) == (404, "MANIFEST_UNKNOWN")


async def test_a_blob_is_deleted_when_no_manifest_needs_it(
    client: Client, registry: Registry
) -> None:
    body = await push_image(client, registry)
    path = f"/v2/{NAME}/blobs/{DIGEST}"
    refused = await client.delete(path)
    assert await code(refused) == (405, "UNSUPPORTED")
    assert refused.headers["Allow"] == "GET, HEAD"
    assert (await client.get(path)).status == 200
    assert (await client.delete(f"/v2/{NAME}/manifests/{Digest.of(body)}")).status == 202
    assert (await client.delete(path)).status == 202
    assert (await client.get(path)).status == 404
    assert await code(await client.delete(path)) == (404, "BLOB_UNKNOWN")


async def test_a_blob_is_deleted_from_one_repository(client: Client, registry: Registry) -> None:
    registry.hold(BLOB, NAME, "other/name")
    assert (await client.delete(f"/v2/{NAME}/blobs/{DIGEST}")).status == 202
    assert (await client.head(f"/v2/other/name/blobs/{DIGEST}")).status == 200


@pytest.mark.parametrize(
    "path, expected",
    [
        ("manifests/sha256:bad", (400, "DIGEST_INVALID")),
        ("manifests/.x", (404, "MANIFEST_UNKNOWN")),
        ("blobs/sha256:bad", (400, "DIGEST_INVALID")),
        ("blobs/latest", (400, "DIGEST_INVALID")),
    ],
)
async def test_only_what_has_a_name_can_be_deleted(
    client: Client, path: str, expected: tuple[int, str]
) -> None:
    assert await code(await client.delete(f"/v2/{NAME}/{path}")) == expected


# -- what is not done -------------------------------------------------------------------------

READS = "GET, HEAD"
ROUTES = {
    "/v2/": (READS, READS),
    "/v2/_catalog": (READS, READS),
    "/v2/a/tags/list": (READS, READS),
    f"/v2/a/referrers/{DIGEST}": (READS, READS),
    "/v2/a/manifests/v1": ("DELETE, GET, HEAD, PUT", READS),
    "/v2/a/blobs/uploads/": ("POST", READS),
    "/v2/a/blobs/uploads/x": ("DELETE, GET, PATCH, PUT", READS),
    f"/v2/a/blobs/{DIGEST}": ("DELETE, GET, HEAD", READS),
}


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    "method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "LINK", "PROPFIND"]
)
async def test_what_a_route_does_not_do_is_refused_with_what_it_does(
    client: Client, agent: Client, path: str, method: str
) -> None:
    for server, allow in zip((client, agent), ROUTES[path], strict=True):
        answer = await server.request(method, path)
        if method in allow.split(", ") and not (server is agent and "uploads" in path):
            assert answer.status != 405
        else:
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
