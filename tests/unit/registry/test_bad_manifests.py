# SPDX-License-Identifier: Apache-2.0
"""Manifests that no client should push, over HTTP: refused by name, and nothing is stored."""

from __future__ import annotations

import base64
import json
from io import BytesIO
from typing import Any

import pytest

from shoal.model.digest import Digest
from shoal.model.manifest import MAX_BRACKETS, MAX_ENTRIES, MAX_MANIFEST_BYTES
from shoal.model.media_types import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
)
from tests.unit.registry_http import (
    BLOB,
    NAME,
    Client,
    Registry,
    assert_alive,
    code,
    entry,
    holding,
    image,
    index,
    push,
)

PATH = f"/v2/{NAME}/manifests"


@pytest.fixture(autouse=True)
def blobs(registry: Registry) -> None:
    """What an image needs is there, so that only the manifest itself is at fault."""
    registry.hold(BLOB, NAME)
    registry.hold(b"{}", NAME)


def document(**changes: Any) -> bytes:
    return json.dumps(json.loads(image(OCI_MANIFEST, BLOB)) | changes).encode()


async def put(client: Client, body: bytes, kind: str = OCI_MANIFEST, to: str = "v1") -> Any:
    headers = {"Content-Type": kind}
    return await client.put(f"{PATH}/{to}", data=BytesIO(body), headers=headers)


async def refused(
    client: Client, registry: Registry, body: bytes, why: str, *, kind: str = OCI_MANIFEST
) -> None:
    before = holding(registry)
    for reference in ("v1", str(Digest.of(body))):
        answer = await put(client, body, kind, reference)
        assert await code(answer) == (400, "MANIFEST_INVALID")
        message = (await answer.json())["errors"][0]["message"]
        assert why in message
        assert len(message) < 1000
    assert holding(registry) == before
    await assert_alive(client)


async def test_just_below_and_just_above_four_mebibytes(client: Client, registry: Registry) -> None:
    body = image(OCI_MANIFEST, BLOB)
    for size in (MAX_MANIFEST_BYTES - 1, MAX_MANIFEST_BYTES):
        assert (await put(client, body.ljust(size))).status == 201
        assert len(await (await client.get(f"{PATH}/v1")).read()) == size
    before = holding(registry)
    answer = await put(client, body.ljust(MAX_MANIFEST_BYTES + 1))
    assert await code(answer) == (413, "SIZE_INVALID")
    assert holding(registry) == before


async def test_a_byte_order_mark(client: Client, registry: Registry) -> None:
    await refused(client, registry, b"\xef\xbb\xbf" + document(), "byte order mark")
    await refused(client, registry, document().decode().encode("utf-16"), "not a manifest")


@pytest.mark.parametrize(
    "old, new",
    [
        (b'"schemaVersion"', b'"schemaVersion": 2, "schemaVersion"'),
        (b'"mediaType"', b'"mediaType": "x", "mediaType"'),
        (b'"layers"', b'"layers": [], "layers"'),
        (b'"config"', b'"config": null, "config"'),
        (b'"size": 2', b'"size": 2, "size": 2'),
        (b'"size": 2', b'"size": 2, "\\u0073ize": 2'),
        (b'"layers"', b'"annotations": {"a": "1", "a": "2"}, "layers"'),
        (b'"layers"', b'"unknown": {"deep": [{"a": 1, "a": 1}]}, "layers"'),
    ],
)
async def test_a_key_that_is_there_twice(
    client: Client, registry: Registry, old: bytes, new: bytes
) -> None:
    body = document().replace(old, new, 1)
    await refused(client, registry, body, "is there twice")


@pytest.mark.parametrize(
    "old, new",
    [
        (b'"layers"', b'"Layers": [], "layers"'),
        (b'"layers"', b'"MANIFESTS": [], "layers"'),
        (b'"size": 2', b'"size": 2, "SIZE": 3'),
        (b'"schemaVersion"', b'"\xc5\xbfchemaVersion": 1, "schemaVersion"'),
    ],
)
async def test_a_field_in_another_case(
    client: Client, registry: Registry, old: bytes, new: bytes
) -> None:
    body = document().replace(old, new, 1)
    await refused(client, registry, body, "is to be written")


async def test_annotations_in_any_case_are_no_fields(client: Client) -> None:
    body = document(annotations={"Size": "1", "size": "2", "LAYERS": "3"})
    assert (await put(client, body)).status == 201


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"2.5", b"true"])
async def test_a_number_that_is_none(client: Client, registry: Registry, number: bytes) -> None:
    body = document().replace(b'"size": 2', b'"size": ' + number)
    await refused(client, registry, body, "not a manifest")
    body = document().replace(b'"layers"', b'"x": NaN, "layers"')
    await refused(client, registry, body, "not a manifest")


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
async def test_a_depth_of_many_thousands(
    client: Client, registry: Registry, opening: bytes
) -> None:
    await refused(client, registry, opening * 90_000, "not a manifest")
    body = b'{"schemaVersion": 2, "x": ' + opening * 90_000
    await refused(client, registry, body, "not a manifest")


async def test_a_depth_that_is_closed_again(client: Client, registry: Registry) -> None:
    deep = b"[" * 90_000 + b"]" * 90_000
    await refused(client, registry, document()[:-1] + b', "x": ' + deep + b"}", "not a manifest")


async def test_a_million_layers(client: Client, registry: Registry) -> None:
    many = b"{}," * 1_000_000
    body = document().replace(b'"layers": [', b'"layers": [' + many)
    assert len(body) < MAX_MANIFEST_BYTES
    await refused(client, registry, body, f"at most {MAX_BRACKETS}")
    layers = [entry(OCI_LAYER, BLOB)] * (MAX_ENTRIES + 1)
    await refused(client, registry, document(layers=layers), f"at most {MAX_ENTRIES}")


@pytest.mark.parametrize("size", [-1, -(2**63), 2**63, 10**30])
async def test_a_size_that_cannot_be(client: Client, registry: Registry, size: int) -> None:
    layer = entry(OCI_LAYER, BLOB) | {"size": size}
    await refused(client, registry, document(layers=[layer]), "size")


async def test_one_digest_with_two_sizes(client: Client, registry: Registry) -> None:
    layers = [entry(OCI_LAYER, BLOB), entry(OCI_LAYER, BLOB) | {"size": 7}]
    await refused(client, registry, document(layers=layers), "7 bytes here")
    same = [entry(OCI_LAYER, BLOB)] * 3
    assert (await put(client, document(layers=same))).status == 201


@pytest.mark.parametrize("kind", [OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST])
async def test_a_media_type_other_than_the_content_type(
    client: Client, registry: Registry, kind: str
) -> None:
    await refused(client, registry, document(), "Content-Type", kind=kind)


async def test_a_content_type_with_parameters_or_none_at_all(client: Client) -> None:
    for kind in (f"{OCI_MANIFEST}; charset=utf-8", "application/json"):
        assert (await put(client, document(), kind)).status == 201
        assert (await client.get(f"{PATH}/v1")).headers["Content-Type"] == OCI_MANIFEST
    answer = await client.put(f"{PATH}/v1", data=document(), skip_auto_headers=["Content-Type"])
    assert answer.status == 201


async def test_a_document_that_is_both_manifest_and_index(
    client: Client, registry: Registry
) -> None:
    for kind in (OCI_MANIFEST, OCI_INDEX):
        body = document(manifests=[], mediaType=kind)
        await refused(client, registry, body, "not both", kind=kind)


async def test_docker_schema_1(client: Client, registry: Registry) -> None:
    kind = "application/vnd.docker.distribution.manifest.v1+prettyjws"
    body = json.dumps({"schemaVersion": 1, "name": "a", "tag": "b", "fsLayers": []}).encode()
    await refused(client, registry, body, "schema 1", kind=kind)
    await refused(client, registry, document(fsLayers=[]), "schema 1")


@pytest.mark.parametrize("kind", ["text/html", "application/vnd.example+json", OCI_LAYER])
async def test_a_type_that_is_not_a_manifests(
    client: Client, registry: Registry, kind: str
) -> None:
    await refused(client, registry, document(mediaType=kind), "media type", kind=OCI_MANIFEST)
    await refused(client, registry, document(), "not that of a manifest", kind=kind)


async def test_a_subject_that_can_only_be_guessed_is_another_manifest(client: Client) -> None:
    # No document can hold its own digest; one that says so refers to something that is not there.
    body = document(subject=entry(OCI_MANIFEST, document()))
    digest = Digest.of(body)
    answer = await push(client, body, str(digest))
    assert answer.headers["OCI-Subject"] != str(digest)
    found = await client.get(f"/v2/{NAME}/referrers/{digest}")
    assert (await found.json())["manifests"] == []


async def test_an_index_cannot_be_its_own_child_by_a_tag(
    client: Client, registry: Registry
) -> None:
    # Children are named by digest, so moving a tag while they are pushed closes no circle.
    child = image(OCI_MANIFEST, BLOB)
    assert (await push(client, child, "v1")).status == 201
    parent = index(child)
    assert (await push(client, parent, "v1")).status == 201
    pulled = await client.get(f"{PATH}/{Digest.of(child)}")
    assert await pulled.read() == child
    assert registry.index.entries[NAME, "v1"] == Digest.of(parent)


async def test_an_index_bomb_is_pushed_and_pulled_like_any_other(client: Client) -> None:
    # 2^30 paths lead through thirty nodes; nobody walks them when one of them is pushed.
    body = image(OCI_MANIFEST, BLOB)
    assert (await push(client, body, "v0")).status == 201
    for level in range(30):
        child = entry(OCI_MANIFEST if level == 0 else OCI_INDEX, body)
        body = index(manifests=[child, child])
        assert (await push(client, body, "bomb")).status == 201
    assert await (await client.get(f"{PATH}/bomb")).read() == body


async def test_foreign_layers_need_not_be_here(client: Client) -> None:
    layer = entry(OCI_LAYER, b"elsewhere", urls=["https://example.test/layer"])
    assert (await put(client, document(layers=[layer]))).status == 201


@pytest.mark.parametrize(
    "data, why",
    [
        (base64.b64encode(b"[]").decode(), "digest"),
        (base64.b64encode(b"{} ").decode(), "data has 3 bytes"),
        ("", "data has 0 bytes"),
        ("!!", "not a manifest"),
        (7, "not a manifest"),
    ],
)
async def test_embedded_data_that_is_not_what_its_descriptor_says(
    client: Client, registry: Registry, data: Any, why: str
) -> None:
    config = entry(OCI_CONFIG, b"{}", data=data)
    await refused(client, registry, document(config=config), why)


async def test_embedded_data_that_is_right(client: Client) -> None:
    config = entry(OCI_CONFIG, b"{}", data=base64.b64encode(b"{}").decode())
    assert (await put(client, document(config=config))).status == 201


async def test_annotations_of_nearly_four_megabytes(client: Client) -> None:
    body = document(annotations={"x": "y" * 3_900_000}, subject=entry(OCI_MANIFEST, b"s"))
    assert (await put(client, body)).status == 201
    assert await (await client.get(f"{PATH}/v1")).read() == body
    listed = await client.get(f"/v2/{NAME}/referrers/{Digest.of(b's')}")
    (found,) = (await listed.json())["manifests"]
    assert len(found["annotations"]["x"]) == 3_900_000


@pytest.mark.parametrize("annotations", [{"a": 1}, {"a": None}, {"a": {}}, [], "x"])
async def test_annotations_that_are_no_texts(
    client: Client, registry: Registry, annotations: Any
) -> None:
    await refused(client, registry, document(annotations=annotations), "not a manifest")


async def test_a_layer_that_is_missing(client: Client, registry: Registry) -> None:
    before = holding(registry)
    absent = entry(OCI_LAYER, b"never pushed")
    answer = await put(client, document(layers=[absent]))
    assert await code(answer) == (404, "MANIFEST_BLOB_UNKNOWN")
    (error,) = (await answer.json())["errors"]
    assert error["detail"]["missing"] == [absent["digest"]]
    assert holding(registry) == before


async def test_a_layer_of_another_repository_is_missing_here(
    client: Client, registry: Registry
) -> None:
    digest = registry.hold(b"theirs", "secret/name")
    answer = await put(client, document(layers=[entry(OCI_LAYER, b"theirs")]))
    assert await code(answer) == (404, "MANIFEST_BLOB_UNKNOWN")
    assert (await client.post(f"/v2/{NAME}/blobs/uploads/?mount={digest}")).status == 201
    assert (await put(client, document(layers=[entry(OCI_LAYER, b"theirs")]))).status == 201


async def test_a_layer_deleted_before_the_push(client: Client) -> None:
    assert (await client.delete(f"/v2/{NAME}/blobs/{Digest.of(BLOB)}")).status == 202
    assert await code(await put(client, document())) == (404, "MANIFEST_BLOB_UNKNOWN")


@pytest.mark.parametrize(
    "body, kind",
    [
        (index(), OCI_INDEX),
        (index(artifactType="a/b"), OCI_INDEX),
        (image(), OCI_MANIFEST),
        (document(layers=None), OCI_MANIFEST),
        (document(**{"org.example.custom": {"a": [1, None]}}), OCI_MANIFEST),
        (document(artifactType="a/b", annotations=None), OCI_MANIFEST),
        (document(config=entry("application/vnd.example.config.v1", b"{}")), OCI_MANIFEST),
        (document(mediaType=DOCKER_MANIFEST), DOCKER_MANIFEST),
        (index(kind=DOCKER_LIST), DOCKER_LIST),
    ],
)
async def test_what_is_unusual_but_right_is_taken(client: Client, body: bytes, kind: str) -> None:
    assert (await put(client, body, kind)).status == 201
    pulled = await client.get(f"{PATH}/v1")
    assert (await pulled.read(), pulled.headers["Content-Type"]) == (body, kind)


async def test_describing_a_manifest_does_not_read_it(client: Client, registry: Registry) -> None:
    body = document()
    await put(client, body)
    for reference in ("v1", str(Digest.of(body))):
        answer = await client.head(f"{PATH}/{reference}")
        assert answer.headers["Content-Length"] == str(len(body))
    assert registry.contents_read == 0
    await client.get(f"{PATH}/v1")
    assert registry.contents_read == 1
