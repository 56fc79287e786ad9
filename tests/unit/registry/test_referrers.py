# SPDX-License-Identifier: Apache-2.0
"""``/v2/<name>/referrers/<digest>`` (OCI distribution-spec, "Listing referrers")."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shoal.model.digest import Digest
from shoal.model.media_types import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST
from shoal.registry.referrers import PAGE_BYTES
from tests.unit.registry_http import (
    ABSENT,
    NAME,
    Client,
    Registry,
    code,
    entry,
    image,
    index,
    push,
)

SUBJECT = b"a manifest that need not be here"
PATH = f"/v2/{NAME}/referrers/{Digest.of(SUBJECT)}"


async def refer(client: Client, registry: Registry, **more: Any) -> bytes:
    """Push an image that refers to the subject."""
    registry.hold(b"{}", NAME)
    body = image(subject=entry(OCI_MANIFEST, SUBJECT), **more)
    answer = await push(client, body, str(Digest.of(body)))
    assert answer.status == 201
    assert answer.headers["OCI-Subject"] == str(Digest.of(SUBJECT))
    return body


async def listed(client: Client, path: str = PATH) -> tuple[list[dict[str, Any]], str | None]:
    answer = await client.get(path)
    assert answer.status == 200
    assert answer.headers["Content-Type"] == OCI_INDEX
    document = json.loads(await answer.read())
    assert (document["schemaVersion"], document["mediaType"]) == (2, OCI_INDEX)
    link = answer.headers.get("Link")
    if link is not None:
        assert link.endswith('>; rel="next"')
        link = link[1:].partition(">")[0]
    return document["manifests"], link


async def test_nobody_refers_to_what_nobody_knows(client: Client, agent: Client) -> None:
    for server in (client, agent):
        for name in (NAME, "no/such/name"):
            for digest in (ABSENT, Digest.of(b"x", "sha512")):
                assert await listed(server, f"/v2/{name}/referrers/{digest}") == ([], None)


async def test_a_referrer_is_described(client: Client, registry: Registry) -> None:
    body = await refer(client, registry, artifactType="a/sbom", annotations={"org.x": "ä\n"})
    (found,), link = await listed(client)
    assert link is None
    assert found == {
        "mediaType": OCI_MANIFEST,
        "digest": str(Digest.of(body)),
        "size": len(body),
        "artifactType": "a/sbom",
        "annotations": {"org.x": "ä\n"},
    }


async def test_an_image_without_artifact_type_is_of_its_configs_type(
    client: Client, registry: Registry
) -> None:
    await refer(client, registry)
    (found,), _ = await listed(client)
    assert found["artifactType"] == OCI_CONFIG
    assert "annotations" not in found


async def test_an_index_refers_too_and_may_have_no_type(client: Client) -> None:
    body = index(subject=entry(OCI_MANIFEST, SUBJECT))
    assert (await push(client, body, "v1")).headers["OCI-Subject"] == str(Digest.of(SUBJECT))
    (found,), _ = await listed(client)
    assert found == {"mediaType": OCI_INDEX, "digest": str(Digest.of(body)), "size": len(body)}
    assert (await listed(client, f"{PATH}?artifactType="))[0] == [found]


async def test_a_push_without_subject_names_none(client: Client, registry: Registry) -> None:
    registry.hold(b"{}", NAME)
    assert "OCI-Subject" not in (await push(client, image(), "v1")).headers


async def test_the_filter_leaves_one_type_and_says_so(client: Client, registry: Registry) -> None:
    bodies = {kind: await refer(client, registry, artifactType=kind) for kind in ("a/b", "a/b+c")}
    for kind, body in bodies.items():
        answer = await client.get(PATH, params={"artifactType": kind})
        assert answer.headers["OCI-Filters-Applied"] == "artifactType"
        (found,) = json.loads(await answer.read())["manifests"]
        assert found["digest"] == str(Digest.of(body))
    answer = await client.get(PATH, params={"artifactType": "other/type"})
    assert answer.headers["OCI-Filters-Applied"] == "artifactType"
    assert json.loads(await answer.read())["manifests"] == []
    assert "OCI-Filters-Applied" not in (await client.get(PATH)).headers


@pytest.mark.parametrize("n", [1, 2, 3, 6, 7, 100])
async def test_pages_hold_every_referrer_once(client: Client, registry: Registry, n: int) -> None:
    bodies = [await refer(client, registry, artifactType=f"a/{i % 2}", x=i) for i in range(12)]
    wanted = sorted(str(Digest.of(body)) for body in bodies[1::2])
    path: str | None = f"{PATH}?n={n}&artifactType=a%2F1&ns=example.test"
    seen: list[str] = []
    while path is not None:
        entries, path = await listed(client, path)
        assert len(entries) == min(n, 6 - len(seen))
        seen += [it["digest"] for it in entries]
    assert seen == wanted


async def test_large_annotations_make_small_pages(client: Client, registry: Registry) -> None:
    for number in range(7):
        await refer(client, registry, annotations={"x": str(number) * (PAGE_BYTES // 3)})
    await refer(client, registry, annotations={"x": "y" * (PAGE_BYTES + 1000)})
    path: str | None = PATH
    pages = []
    while path is not None:
        entries, path = await listed(client, path)
        pages.append([it["digest"] for it in entries])
    seen = [digest for page in pages for digest in page]
    assert seen == sorted(seen)
    assert len(set(seen)) == 8
    assert all(len(page) <= 2 for page in pages)


async def test_an_empty_filter_is_none(client: Client, registry: Registry) -> None:
    await refer(client, registry)
    answer = await client.get(PATH, params={"artifactType": ""})
    assert len(json.loads(await answer.read())["manifests"]) == 1
    assert "OCI-Filters-Applied" not in answer.headers


async def test_a_few_hundred_referrers_fit_into_one_page(
    client: Client, registry: Registry
) -> None:
    for number in range(300):
        await refer(client, registry, x=number)
    entries, link = await listed(client)
    assert (len(entries), link) == (300, None)


@pytest.mark.parametrize("digest", ["latest", "sha256:x", "sha256:", "md5:00", "%00"])
async def test_a_malformed_digest_is_refused(client: Client, digest: str) -> None:
    answer = await client.get(f"/v2/{NAME}/referrers/{digest}")
    assert await code(answer) == (400, "DIGEST_INVALID")


async def test_a_deleted_referrer_is_gone(client: Client, registry: Registry) -> None:
    body = await refer(client, registry)
    assert (await client.delete(f"/v2/{NAME}/manifests/{Digest.of(body)}")).status == 202
    assert await listed(client) == ([], None)
