# SPDX-License-Identifier: Apache-2.0
"""What counts as a manifest, and what it references."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.model.digest import Digest
from shoal.model.manifest import (
    MAX_BRACKETS,
    MAX_ENTRIES,
    MAX_MANIFEST_BYTES,
    InvalidManifest,
    parse_manifest,
)
from shoal.model.media_types import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    IMAGE_TYPES,
    INDEX_TYPES,
    MANIFEST_TYPES,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
)

DIGEST = str(Digest.of(b"content"))


def descriptor(media_type: str = OCI_LAYER, content: bytes = b"x", **more: Any) -> dict[str, Any]:
    return {
        "mediaType": media_type,
        "digest": str(Digest.of(content)),
        "size": len(content),
        **more,
    }


def image(**changes: Any) -> dict[str, Any]:
    return without_none(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": descriptor(OCI_CONFIG, b"config"),
            "layers": [descriptor(content=b"one"), descriptor(content=b"two")],
        }
        | changes
    )


def index(**changes: Any) -> dict[str, Any]:
    return without_none(
        {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": [descriptor(OCI_MANIFEST, b"amd64"), descriptor(OCI_MANIFEST, b"arm64")],
        }
        | changes
    )


def without_none(document: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if value is not None}


def encode(document: Any) -> bytes:
    return json.dumps(document).encode()


# -- what is taken


@pytest.mark.parametrize("media_type", sorted(IMAGE_TYPES))
def test_an_image_names_its_config_and_layers(media_type: str) -> None:
    manifest = parse_manifest(encode(image(mediaType=media_type)), media_type)
    assert manifest.media_type == media_type
    assert not manifest.is_index
    assert [it.digest for it in manifest.blobs()] == [
        Digest.of(content) for content in (b"config", b"one", b"two")
    ]
    assert manifest.children == ()


@pytest.mark.parametrize("media_type", sorted(INDEX_TYPES))
def test_an_index_names_its_children(media_type: str) -> None:
    manifest = parse_manifest(encode(index(mediaType=media_type)), media_type)
    assert manifest.is_index
    assert [it.digest for it in manifest.children] == [Digest.of(b"amd64"), Digest.of(b"arm64")]
    assert manifest.blobs() == ()


@pytest.mark.parametrize("document", [image(mediaType=None), index(mediaType=None)])
def test_without_media_type_the_shape_decides(document: dict[str, Any]) -> None:
    expected = OCI_INDEX if "manifests" in document else OCI_MANIFEST
    for header in (None, "", "application/json", "application/octet-stream"):
        assert parse_manifest(encode(document), header).media_type == expected


def test_without_media_type_the_header_decides_when_the_shape_allows() -> None:
    assert parse_manifest(encode(image(mediaType=None)), DOCKER_MANIFEST).media_type == (
        DOCKER_MANIFEST
    )
    assert parse_manifest(encode(index(mediaType=None)), DOCKER_LIST).media_type == DOCKER_LIST


def test_parameters_and_case_of_the_header_do_not_matter() -> None:
    header = f" {OCI_MANIFEST.upper()} ; charset=utf-8"
    assert parse_manifest(encode(image()), header).media_type == OCI_MANIFEST


@pytest.mark.parametrize("document", [image(), index()])
def test_a_subject_is_named(document: dict[str, Any]) -> None:
    document = document | {"subject": descriptor(OCI_MANIFEST, b"subject")}
    subject = parse_manifest(encode(document)).subject
    assert subject is not None
    assert subject.digest == Digest.of(b"subject")
    assert subject.media_type == OCI_MANIFEST


def test_an_artifact_may_have_no_layers() -> None:
    assert parse_manifest(encode(image(layers=[]))).layers == ()
    assert parse_manifest(encode(image(layers=None))).layers == ()


def test_an_index_may_be_empty() -> None:
    assert parse_manifest(encode(index(manifests=[]))).children == ()


def test_unknown_fields_do_not_matter() -> None:
    document = image(annotations={"a": "b"}, artifactType="x/y", somethingNew=[1, {"a": None}])
    assert len(parse_manifest(encode(document)).blobs()) == 3


@pytest.mark.parametrize(
    "layer",
    [
        descriptor("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"),
        descriptor("application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"),
        descriptor(urls=["https://example.com/layer"]),
    ],
)
def test_layers_that_live_elsewhere_need_not_be_here(layer: dict[str, Any]) -> None:
    manifest = parse_manifest(encode(image(layers=[layer, descriptor(content=b"ours")])))
    assert [it.digest for it in manifest.blobs()] == [Digest.of(b"config"), Digest.of(b"ours")]
    assert [it.foreign for it in manifest.layers] == [True, False]


def test_the_limits_are_taken() -> None:
    layers = [descriptor(content=b"x")] * MAX_ENTRIES
    body = encode(image(layers=layers))
    assert len(parse_manifest(body).layers) == MAX_ENTRIES
    padded = encode(image()).ljust(MAX_MANIFEST_BYTES)
    assert parse_manifest(padded).media_type == OCI_MANIFEST


def test_an_artifact_is_of_its_own_type_or_its_configs() -> None:
    assert parse_manifest(encode(image(artifactType="a/b"))).artifact_type == "a/b"
    assert parse_manifest(encode(image())).artifact_type == OCI_CONFIG
    assert parse_manifest(encode(image(artifactType=""))).artifact_type == OCI_CONFIG
    assert parse_manifest(encode(index(artifactType="a/b"))).artifact_type == "a/b"
    assert parse_manifest(encode(index())).artifact_type == ""


@pytest.mark.parametrize("document", [image, index])
def test_annotations_are_read(document: Callable[..., dict[str, Any]]) -> None:
    assert parse_manifest(encode(document(annotations={"a": "b"}))).annotations == {"a": "b"}
    assert parse_manifest(encode(document())).annotations == {}
    assert parse_manifest(encode({**document(), "annotations": None})).annotations == {}


def test_references_are_named_once_and_without_what_lives_elsewhere() -> None:
    one = descriptor(content=b"one")
    foreign = descriptor(content=b"foreign", urls=["https://example.com/layer"])
    manifest = parse_manifest(encode(image(layers=[one, foreign, one])))
    assert manifest.references() == (Digest.of(b"config"), Digest.of(b"one"))
    both = [descriptor(OCI_MANIFEST, content) for content in (b"a", b"b", b"a")]
    manifest = parse_manifest(encode(index(manifests=both, subject=descriptor(content=b"s"))))
    assert manifest.references() == (Digest.of(b"a"), Digest.of(b"b"))


def test_layers_that_live_elsewhere_are_warned_of() -> None:
    foreign = [descriptor(content=bytes([i]), urls=["https://example.com"]) for i in range(9)]
    (warning,) = parse_manifest(encode(image(layers=[*foreign, descriptor()]))).warnings()
    assert warning.startswith("9 of 10 layers live elsewhere")
    assert len(warning) < 500
    assert parse_manifest(encode(image())).warnings() == ()


@pytest.mark.parametrize("content", [b"", b"{}", b"config" * 1000])
def test_content_may_be_embedded(content: bytes) -> None:
    config = descriptor(OCI_CONFIG, content, data=base64.b64encode(content).decode())
    assert parse_manifest(encode(image(config=config))).config is not None


# -- what is refused


@pytest.mark.parametrize(
    "document, message",
    [
        (image(mediaType=OCI_INDEX), "shape"),
        (image(mediaType=DOCKER_LIST), "shape"),
        (index(mediaType=OCI_MANIFEST), "shape"),
        (index(mediaType=DOCKER_MANIFEST), "shape"),
        (index(layers=[]), "not both"),
        (index(config=descriptor()), "not both"),
        (image(manifests=[]), "not both"),
        (image(mediaType="text/plain"), "text/plain"),
        (image(mediaType=OCI_LAYER), "is not one of"),
        (image(config=None), "needs a config"),
        (image(mediaType=DOCKER_MANIFEST, config=None), "needs a config"),
        (image(mediaType=DOCKER_MANIFEST, layers=None), "needs layers"),
        (image(schemaVersion=1), "schema 1"),
        (image(schemaVersion=3), "schemaVersion must be 2"),
        (image(schemaVersion=None), "schemaVersion"),
        (image(schemaVersion="2"), "schemaVersion"),
        (image(fsLayers=[]), "schema 1"),
        (image(layers=[descriptor(size=-1)]), r"layers\[0\]: size is negative"),
        (image(layers=[descriptor(digest="sha256:x")]), r"layers\[0\]"),
        (image(layers=[descriptor(), descriptor(digest="md5:" + "0" * 32)]), r"layers\[1\]"),
        (image(config=descriptor(digest="")), "config"),
        (image(subject=descriptor(digest="latest")), "subject"),
        (index(manifests=[descriptor(size=-5)]), r"manifests\[0\]"),
        (image(layers=[{"digest": DIGEST}]), "mediaType"),
        (image(layers=[descriptor(size="1")]), "size"),
        (image(layers=[descriptor(size=1.5)]), "size"),
        (image(layers=[7]), "layers"),
        (image(layers={}), "layers"),
        (image(config=[]), "config"),
        (image(layers=[descriptor()] * (MAX_ENTRIES + 1)), "at most"),
        (index(manifests=[descriptor()] * (MAX_ENTRIES + 1)), "at most"),
        ([], "not a manifest"),
        (None, "not a manifest"),
        (2, "not a manifest"),
        ({}, "not a manifest"),
    ],
)
def test_a_document_of_another_shape_is_refused(document: Any, message: str) -> None:
    with pytest.raises(InvalidManifest, match=message):
        parse_manifest(encode(document))


@pytest.mark.parametrize("header", sorted(MANIFEST_TYPES - {OCI_MANIFEST}))
def test_a_header_of_another_manifest_type_is_refused(header: str) -> None:
    with pytest.raises(InvalidManifest, match="Content-Type"):
        parse_manifest(encode(image()), header)


@pytest.mark.parametrize("header", [OCI_INDEX, DOCKER_LIST])
def test_a_header_cannot_turn_an_image_into_an_index(header: str) -> None:
    with pytest.raises(InvalidManifest):
        parse_manifest(encode(image(mediaType=None)), header)


def test_a_header_that_is_not_of_a_manifest_is_refused() -> None:
    with pytest.raises(InvalidManifest, match="text/html"):
        parse_manifest(encode(image()), "text/html")


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x1f\x8b\x08\x00", id="gzip"),
        pytest.param(encode(image())[:-1], id="truncated"),
        pytest.param(encode(image()) + b"{}", id="two documents"),
        pytest.param(b"\xff\xfe", id="not UTF-8"),
        pytest.param(b'{"schemaVersion": 2, "mediaType": "\xff"}', id="text not UTF-8"),
        pytest.param(b'{"schemaVersion": 1e999}', id="number out of range"),
        pytest.param(b"[" * 1_000_000, id="nested lists"),
        pytest.param(b'{"x":' * 500_000, id="nested objects"),
        pytest.param(b'{"fsLayers":' + b"[" * 1_000_000, id="nested where anything goes"),
        pytest.param(b" " * (MAX_MANIFEST_BYTES + 1), id="too long"),
    ],
)
def test_garbage_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidManifest) as caught:
        parse_manifest(body)
    assert len(str(caught.value)) < 1000


def test_a_manifest_of_very_many_parts_is_refused_before_it_is_read() -> None:
    body = b'{"x":[' + b"[]," * MAX_BRACKETS + b"1]}"
    with pytest.raises(InvalidManifest, match=f"at most {MAX_BRACKETS} opening brackets"):
        parse_manifest(body)


@settings(max_examples=200)
@given(st.sampled_from([image(), index(mediaType=DOCKER_LIST)]), st.data())
def test_a_damaged_manifest_is_refused_or_consistent(
    document: dict[str, Any], data: st.DataObject
) -> None:
    body = bytearray(encode(document))
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        manifest = parse_manifest(bytes(body))
    except InvalidManifest:
        return
    assert manifest.media_type in MANIFEST_TYPES
    assert not (manifest.children and manifest.blobs())


@given(
    st.sampled_from([*sorted(MANIFEST_TYPES), "", "text/plain"]),
    st.sampled_from([*sorted(MANIFEST_TYPES), "", "application/json", "text/plain", None]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_whatever_is_taken_is_either_an_image_or_an_index(
    media_type: str, header: str | None, has_config: bool, has_layers: bool, has_children: bool
) -> None:
    document: dict[str, Any] = {"schemaVersion": 2}
    if media_type:
        document["mediaType"] = media_type
    if has_config:
        document["config"] = descriptor()
    if has_layers:
        document["layers"] = [descriptor()]
    if has_children:
        document["manifests"] = [descriptor()]
    try:
        manifest = parse_manifest(encode(document), header)
    except InvalidManifest:
        return
    assert manifest.is_index == has_children
    assert (manifest.config is not None) == has_config == (not has_children)
    assert media_type in ("", manifest.media_type)
    assert header not in MANIFEST_TYPES or header == manifest.media_type
