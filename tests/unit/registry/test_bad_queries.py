# SPDX-License-Identifier: Apache-2.0
"""Parameters of requests that are wrong, twice there, or not meant for Shoal."""

from __future__ import annotations

from typing import Any

import pytest

from shoal.model.digest import Digest
from shoal.model.media_types import OCI_MANIFEST
from tests.unit.registry_http import (
    ABSENT,
    BLOB,
    DIGEST,
    NAME,
    UPLOADS,
    Client,
    Registry,
    assert_alive,
    code,
    entry,
    image,
    open_upload,
    push,
    push_image,
)

LISTINGS = ["/v2/_catalog", f"/v2/{NAME}/tags/list", f"/v2/{NAME}/referrers/{DIGEST}"]


@pytest.mark.parametrize("path", LISTINGS)
@pytest.mark.parametrize("n", ["-1", "x", "1.5", "", "²", "1e3", "0x10", " 1", "NaN", "+1"])
async def test_a_number_that_is_none(client: Client, registry: Registry, path: str, n: str) -> None:
    await push_image(client, registry)
    assert await code(await client.get(path, params={"n": n})) == (400, "BAD_REQUEST")
    await assert_alive(client)


@pytest.mark.parametrize("path", LISTINGS)
async def test_zero_entries_are_an_empty_page_without_a_link(
    client: Client, registry: Registry, path: str
) -> None:
    await push_image(client, registry)
    answer = await client.get(f"{path}?n=0")
    assert answer.status == 200
    assert [value for value in (await answer.json()).values() if isinstance(value, list)] == [[]]
    assert "Link" not in answer.headers


@pytest.mark.parametrize("path", LISTINGS)
async def test_a_huge_number_is_clamped(client: Client, registry: Registry, path: str) -> None:
    await push_image(client, registry)
    for n in (10**18, 10**4000, "0" * 4000 + "1"):
        assert (await client.get(f"{path}?n={n}")).status == 200


async def test_a_last_that_is_not_there_begins_behind_it(
    client: Client, registry: Registry
) -> None:
    await push_image(client, registry, "v5")
    listed = f"/v2/{NAME}/tags/list"
    assert (await (await client.get(f"{listed}?last=v4")).json())["tags"] == ["v5"]
    assert (await (await client.get(f"{listed}?last=v6")).json())["tags"] == []
    assert (await (await client.get(f"{listed}?last=%ff%00")).json())["tags"] == []
    answer = await client.get(f"/v2/{NAME}/referrers/{DIGEST}?last={ABSENT}")
    assert (await answer.json())["manifests"] == []
    answer = await client.get(f"/v2/{NAME}/referrers/{DIGEST}?last=v1")
    assert await code(answer) == (400, "DIGEST_INVALID")


async def test_an_artifact_type_given_twice_must_be_one(client: Client) -> None:
    path = f"/v2/{NAME}/referrers/{DIGEST}"
    answer = await client.get(f"{path}?artifactType=a/b&artifactType=c/d")
    assert await code(answer) == (400, "BAD_REQUEST")
    assert (await client.get(f"{path}?artifactType=a/b&artifactType=a/b")).status == 200


async def test_a_digest_given_twice_must_be_one(client: Client, registry: Registry) -> None:
    answer = await client.post(f"{UPLOADS}?digest={DIGEST}&digest={ABSENT}", data=BLOB)
    assert await code(answer) == (400, "BAD_REQUEST")
    assert not registry.uploads
    location = await open_upload(client)
    answer = await client.put(f"{location}?digest={DIGEST}&digest={ABSENT}", data=BLOB)
    assert await code(answer) == (400, "BAD_REQUEST")
    assert (await client.put(f"{location}?digest={DIGEST}", data=BLOB)).status == 201


async def test_a_mount_without_from_takes_any_repository(
    client: Client, registry: Registry
) -> None:
    registry.hold(BLOB, "other/name")
    assert (await client.post(f"{UPLOADS}?mount={DIGEST}")).status == 201
    assert (await client.post(f"{UPLOADS}?mount={ABSENT}")).status == 202


async def test_a_mount_of_a_malformed_digest(client: Client, registry: Registry) -> None:
    for digest in ("", "sha256:x", "latest", f"{DIGEST},{DIGEST}"):
        answer = await client.post(f"{UPLOADS}?mount={digest}&from=a/b")
        assert await code(answer) == (400, "DIGEST_INVALID")
    assert not registry.uploads


async def test_a_mount_from_a_name_that_is_none(client: Client, registry: Registry) -> None:
    for name in ("", "A", "../x", "a//b", "a" * 256):
        answer = await client.post(UPLOADS, params={"mount": str(DIGEST), "from": name})
        assert await code(answer) == (400, "NAME_INVALID")
    assert not registry.uploads


async def test_a_mount_from_a_repository_without_it_tells_no_more_than_an_upload(
    client: Client, registry: Registry
) -> None:
    registry.hold(BLOB, "secret/name")
    answers = [
        await client.post(f"{UPLOADS}?mount={digest}&from=another/name")
        for digest in (DIGEST, ABSENT)
    ]
    assert [answer.status for answer in answers] == [202, 202]
    assert [set(answer.headers) for answer in answers] == [set(answers[0].headers)] * 2


async def test_parameters_that_are_not_known_are_left_alone(
    client: Client, registry: Registry
) -> None:
    body = await push_image(client, registry)
    for path in (
        "/v2/",
        "/v2/_catalog",
        f"/v2/{NAME}/tags/list",
        f"/v2/{NAME}/manifests/v1",
        f"/v2/{NAME}/blobs/{DIGEST}",
        f"/v2/{NAME}/referrers/{Digest.of(body)}",
    ):
        assert (await client.get(f"{path}?origin=x&%00=%ff&=&a&a=1&a=2")).status == 200


# -- ns: the registry that a mirror stands for ------------------------------------------------


@pytest.mark.parametrize("namespace", ["docker.io", "registry.example.test:5000", "[::1]:5000"])
async def test_reads_name_the_namespace_they_were_asked_for(
    client: Client, agent: Client, registry: Registry, namespace: str
) -> None:
    await push_image(client, registry)
    for server in (client, agent):
        for path in ("manifests/v1", f"blobs/{DIGEST}", "tags/list", f"referrers/{DIGEST}"):
            for method in ("GET", "HEAD"):
                answer = await server.request(
                    method, f"/v2/{NAME}/{path}", params={"ns": namespace}
                )
                assert answer.status == 200
                assert answer.headers["OCI-Namespace"] == namespace
    assert "OCI-Namespace" not in (await client.get("/v2/")).headers
    answer = await client.post(UPLOADS, params={"ns": namespace})
    assert answer.status == 202
    assert "OCI-Namespace" not in answer.headers


@pytest.mark.parametrize("namespace", ["", "a b", "a\r\nb", "a/b", "-", "ä.test", "x" * 300])
async def test_a_namespace_that_is_no_host_is_left_alone(
    client: Client, registry: Registry, namespace: str
) -> None:
    await push_image(client, registry)
    answer = await client.get(f"/v2/{NAME}/manifests/v1", params={"ns": namespace})
    assert answer.status == 200
    assert "OCI-Namespace" not in answer.headers


# -- tag: more names for what is pushed -------------------------------------------------------


async def put_with_tags(client: Client, registry: Registry, *tags: str, **more: Any) -> Any:
    registry.hold(BLOB, NAME)
    registry.hold(b"{}", NAME)
    body = image(OCI_MANIFEST, BLOB)
    reference = more.get("reference", str(Digest.of(body)))
    return await push(client, body, reference, params=[("tag", tag) for tag in tags])


async def test_a_push_by_digest_can_set_tags(client: Client, registry: Registry) -> None:
    answer = await put_with_tags(client, registry, "v1", "v1.2", "latest", "v1")
    assert answer.status == 201
    assert answer.headers.getall("OCI-Tag") == ["v1", "v1.2", "latest"]
    for tag in ("v1", "v1.2", "latest"):
        pulled = await client.get(f"/v2/{NAME}/manifests/{tag}")
        digest = answer.headers["Docker-Content-Digest"]
        assert pulled.headers["Docker-Content-Digest"] == digest


async def test_tags_keep_the_algorithm_of_the_push(client: Client, registry: Registry) -> None:
    digest = Digest.of(image(OCI_MANIFEST, BLOB), "sha512")
    answer = await put_with_tags(client, registry, "v1", reference=str(digest))
    assert answer.headers["OCI-Tag"] == "v1"
    pulled = await client.head(f"/v2/{NAME}/manifests/v1")
    assert pulled.headers["Docker-Content-Digest"] == str(digest)


@pytest.mark.parametrize(
    "tags, reference, expected",
    [
        (["v1", ".v2"], None, (400, "TAG_INVALID")),
        (["v1", "t" * 129], None, (400, "TAG_INVALID")),
        (["v1\r\nX: y"], None, (400, "TAG_INVALID")),
        ([""], None, (400, "TAG_INVALID")),
        (["v1"], "v2", (400, "BAD_REQUEST")),
        ([f"v{number}" for number in range(65)], None, (414, "BAD_REQUEST")),
    ],
)
async def test_tags_that_cannot_be_set_set_nothing(
    client: Client,
    registry: Registry,
    tags: list[str],
    reference: str | None,
    expected: tuple[int, str],
) -> None:
    more = {} if reference is None else {"reference": reference}
    assert await code(await put_with_tags(client, registry, *tags, **more)) == expected
    assert not registry.index.entries
    assert not registry.index.manifests


# -- what a push is told beside its success ---------------------------------------------------


async def test_a_push_with_layers_that_live_elsewhere_is_warned(
    client: Client, registry: Registry
) -> None:
    registry.hold(b"{}", NAME)
    foreign = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
    layer = entry(foreign, BLOB, urls=["https://example.test/layer"])
    answer = await push(client, image(layers=[layer]), "v1")
    assert answer.status == 201
    assert answer.headers["Warning"].startswith('299 - "1 of 1 layers live elsewhere')
    assert str(DIGEST) in answer.headers["Warning"]


async def test_an_ordinary_push_is_not_warned(client: Client, registry: Registry) -> None:
    registry.hold(b"{}", NAME)
    answer = await push(client, image(), "v1")
    assert answer.status == 201
    assert "Warning" not in answer.headers
