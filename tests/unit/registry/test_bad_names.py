# SPDX-License-Identifier: Apache-2.0
"""Names, tags and digests that nobody should send, over a socket and without a client's polish."""

from __future__ import annotations

import pytest

from shoal.model.media_types import OCI_MANIFEST
from tests.unit.registry_http import (
    BLOB,
    DIGEST,
    NAME,
    Client,
    Registry,
    assert_alive,
    get,
    holding,
    image,
    push_image,
    raw,
)

RESTS = [
    ("GET", "tags/list"),
    ("GET", "manifests/v1"),
    ("PUT", "manifests/v1"),
    ("DELETE", "manifests/v1"),
    ("GET", f"referrers/{DIGEST}"),
    ("GET", f"blobs/{DIGEST}"),
    ("DELETE", f"blobs/{DIGEST}"),
    ("POST", "blobs/uploads/"),
    ("PATCH", "blobs/uploads/x"),
]


async def refused(
    client: Client, registry: Registry, request: bytes, status: int, why: str
) -> None:
    """The request is refused with this error, and has changed nothing."""
    before = holding(registry)
    answer = await raw(client, request)
    assert (answer.status, answer.code) == (status, why)
    assert answer.headers["content-type"].startswith("application/json")
    assert holding(registry) == before
    await assert_alive(client)


async def bad_name(client: Client, registry: Registry, name: str) -> None:
    await push_image(client, registry)
    for method, rest in RESTS:
        request = get(f"/v2/{name}/{rest}", method=method)
        await refused(client, registry, request, 400, "NAME_INVALID")


async def test_a_name_that_climbs_by_dots(client: Client, registry: Registry) -> None:
    for name in ("..", "../etc", "team/../team/app", "team/app/..", "."):
        await bad_name(client, registry, name)


async def test_a_name_that_climbs_by_encoded_dots(client: Client, registry: Registry) -> None:
    for name in ("%2e%2e", "%2E%2E/etc", "team/%2e%2e/app", "team/%252e%252e"):
        await bad_name(client, registry, name)


async def test_a_name_with_an_encoded_slash(client: Client, registry: Registry) -> None:
    for name in ("team%2Fapp", "team%2fapp", "te%61m%2Fapp", "..%2f..%2fetc", "team%252Fapp"):
        await bad_name(client, registry, name)


async def test_a_name_with_an_empty_component(client: Client, registry: Registry) -> None:
    for name in ("team//app", "/team", "", "/"):
        await bad_name(client, registry, name)


async def test_a_name_of_256_characters(client: Client, registry: Registry) -> None:
    await bad_name(client, registry, "a" * 256)
    longest = "/".join(["abc"] * 64)
    assert len(longest) == 255
    await bad_name(client, registry, f"{longest}d")
    assert (await raw(client, get(f"/v2/{longest}/tags/list"))).code == "NAME_UNKNOWN"


async def test_a_name_in_upper_case(client: Client, registry: Registry) -> None:
    for name in ("Team/app", "team/APP", "tEam"):
        await bad_name(client, registry, name)


async def test_a_name_with_a_slash_at_its_end(client: Client, registry: Registry) -> None:
    await bad_name(client, registry, "team/app/")


async def test_a_name_with_nul(client: Client, registry: Registry) -> None:
    for name in ("%00", "team/app%00", "te%00am/app"):
        await bad_name(client, registry, name)


async def test_a_name_of_look_alikes(client: Client, registry: Registry) -> None:
    for name in ("t%D0%B5am/app", "team%E2%88%95app", "%EF%BD%94eam/app", "team/app%E2%80%8B"):
        await bad_name(client, registry, name)


async def test_bytes_that_are_no_text_in_a_name(client: Client, registry: Registry) -> None:
    for name in ("%ff%fe", "team/%c3%28"):
        await bad_name(client, registry, name)


@pytest.mark.parametrize("word", ["blobs", "uploads", "tags", "manifests", "referrers", "list"])
async def test_a_repository_called_like_a_word_of_the_api(
    client: Client, registry: Registry, word: str
) -> None:
    for name in (word, f"{word}/{word}", f"team/{word}", f"{word}/blobs/uploads"):
        registry.hold(BLOB, name)
        registry.hold(b"{}", name)
        put = await client.put(
            f"/v2/{name}/manifests/v1",
            data=image(OCI_MANIFEST, BLOB),
            headers={"Content-Type": OCI_MANIFEST},
        )
        assert put.status == 201
        assert (await raw(client, get(f"/v2/{name}/blobs/{DIGEST}"))).body == BLOB
        assert (await raw(client, get(f"/v2/{name}/tags/list"))).status == 200
        assert (await raw(client, get(f"/v2/{name}/referrers/{DIGEST}"))).status == 200


async def bad_tag(client: Client, registry: Registry, tag: str, status: int, why: str) -> None:
    await push_image(client, registry)
    body = image(OCI_MANIFEST, BLOB)
    request = get(
        f"/v2/{NAME}/manifests/{tag}",
        f"Content-Type: {OCI_MANIFEST}",
        f"Content-Length: {len(body)}",
        method="PUT",
    )
    await refused(client, registry, request + body, status, why)
    for method in ("GET", "DELETE"):
        answer = await raw(client, get(f"/v2/{NAME}/manifests/{tag}", method=method))
        assert answer.status in {400, 404}


async def test_a_tag_of_129_characters(client: Client, registry: Registry) -> None:
    await bad_tag(client, registry, "t" * 129, 400, "TAG_INVALID")


async def test_a_tag_with_a_colon(client: Client, registry: Registry) -> None:
    for tag in ("v1:2", "v1%3A2", ":v1", f"v1@{DIGEST}"):
        await bad_tag(client, registry, tag, 400, "DIGEST_INVALID")


async def test_a_tag_with_a_newline(client: Client, registry: Registry) -> None:
    for tag in ("v1%0A", "v1%0d%0aSet-Cookie:%20a", "%0av1"):
        await bad_tag(client, registry, tag, 400, "DIGEST_INVALID" if ":" in tag else "TAG_INVALID")


async def test_a_tag_with_a_slash_or_dots(client: Client, registry: Registry) -> None:
    for tag in ("..%2f..%2fetc", "%2e%2e", ".."):
        await bad_tag(client, registry, tag, 400, "TAG_INVALID")


async def bad_digest(client: Client, registry: Registry, digest: str) -> None:
    await push_image(client, registry)
    for method in ("GET", "DELETE"):
        for resource in ("blobs", "manifests"):
            request = get(f"/v2/{NAME}/{resource}/{digest}", method=method)
            await refused(client, registry, request, 400, "DIGEST_INVALID")
    await refused(client, registry, get(f"/v2/{NAME}/referrers/{digest}"), 400, "DIGEST_INVALID")
    for query in (f"digest={digest}", f"mount={digest}"):
        request = get(f"/v2/{NAME}/blobs/uploads/?{query}", method="POST")
        await refused(client, registry, request, 400, "DIGEST_INVALID")


async def test_a_digest_that_is_a_path(client: Client, registry: Registry) -> None:
    for digest in ("sha256:..%2f..%2fx", "sha256:%2e%2e%2f" + "a" * 58, "..%2fsha256:aa"):
        await bad_digest(client, registry, digest)


async def test_a_digest_that_is_too_short_or_too_long(client: Client, registry: Registry) -> None:
    for digest in ("sha256:", "sha256:abc", f"{DIGEST}0", str(DIGEST)[:-1], "sha512:" + "0" * 64):
        await bad_digest(client, registry, digest)


async def test_a_digest_in_upper_case(client: Client, registry: Registry) -> None:
    for digest in (f"sha256:{DIGEST.hex.upper()}", f"SHA256:{DIGEST.hex}"):
        await bad_digest(client, registry, digest)


async def test_a_digest_of_an_unknown_algorithm(client: Client, registry: Registry) -> None:
    for digest in ("md5:" + "0" * 32, "sha1:" + "0" * 40, f"blake3:{DIGEST.hex}", f":{DIGEST.hex}"):
        await bad_digest(client, registry, digest)


async def test_a_digest_with_a_newline_or_other_digits(client: Client, registry: Registry) -> None:
    arabic = "%D9%A1" * 64
    for digest in (f"{DIGEST}%0a", f"sha256:{arabic}", f"sha256:{'0' * 63}%00"):
        await bad_digest(client, registry, digest)


async def test_one_blob_by_the_digests_of_two_algorithms(
    client: Client, registry: Registry
) -> None:
    for algorithm in ("sha256", "sha512"):
        digest = registry.hold(BLOB, NAME, algorithm=algorithm)
        assert digest.algorithm == algorithm
        answer = await raw(client, get(f"/v2/{NAME}/blobs/{digest}"))
        assert (answer.status, answer.body) == (200, BLOB)
        assert answer.headers["docker-content-digest"] == str(digest)


async def test_line_breaks_reach_no_header(client: Client, registry: Registry) -> None:
    registry.hold(BLOB, NAME)
    breaks = "%0d%0aX-Injected:%20yes"
    for target in (
        f"/v2/team{breaks}/tags/list",
        f"/v2/{NAME}/manifests/v1{breaks}",
        f"/v2/{NAME}/tags/list?last=v1{breaks}&n=1",
        f"/v2/{NAME}/tags/list?ns=a{breaks}",
        f"/v2/{NAME}/blobs/{DIGEST}?ns=example.test{breaks}",
        f"/v2/{NAME}/referrers/{DIGEST}?artifactType=a{breaks}",
        f"/v2/_catalog?n=1&x=y{breaks}",
    ):
        answer = await raw(client, get(target))
        assert "x-injected" not in answer.headers
        assert answer.headers.get("oci-namespace") is None
    await assert_alive(client)
