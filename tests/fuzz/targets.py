# SPDX-License-Identifier: Apache-2.0
"""One function per parser of what strangers send: it returns, whatever the bytes, or it is a bug.

What a parser refuses, it must refuse by its own error; what it takes must obey the laws that are
asserted here. `EXAMPLES` has well-formed inputs of each, from which others are bred.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import cast

from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from yarl import URL

from shoal.config.units import (
    format_bytes,
    format_duration,
    join_address,
    parse_bytes,
    parse_duration,
    split_address,
)
from shoal.model.digest import ALGORITHMS, Digest, InvalidDigest
from shoal.model.errors import BlobUploadInvalid, NameInvalid, RangeInvalid, SizeInvalid
from shoal.model.manifest import InvalidManifest, parse_manifest
from shoal.model.media_types import MANIFEST_TYPES, OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST
from shoal.model.names import (
    InvalidName,
    InvalidTag,
    reference,
    repository_name,
    split_host,
    split_image,
    split_tag,
)
from shoal.model.platforms import InvalidPlatform, Platform, platforms_of
from shoal.registry.app import registry_routes
from shoal.registry.base import repository
from shoal.registry.chunks import parse_chunk_range
from shoal.registry.ports import Reader, Writer
from shoal.swarm.metainfo import InvalidMetainfo, Metainfo, metainfo_of
from shoal.swarm.peers import PeerInfo
from shoal.swarm.wire import (
    VERSION,
    Decoder,
    Have,
    Hello,
    Message,
    Open,
    Piece,
    Ping,
    ProtocolError,
    Request,
    encode,
)
from shoal.web.ranges import MAX_RANGES, parse_ranges

DIGEST = Digest.of(b"content")


def _is_short(error: Exception) -> None:
    """What was sent is not sent back whole."""
    assert len(str(error)) < 4000


def digest(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    try:
        parsed = Digest.parse(text)
    except InvalidDigest as error:
        _is_short(error)
        return
    assert str(parsed) == text
    assert len(parsed.hex) == ALGORITHMS[parsed.algorithm]
    assert text.isascii()


def names(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    try:
        name = repository_name(text)
    except InvalidName:
        pass
    else:
        assert name == text
        assert len(name) <= 255
        assert {"", ".", ".."}.isdisjoint(name.split("/"))
    try:
        named = reference(text)
    except (InvalidTag, InvalidDigest):
        pass
    else:
        assert str(named) == text
        assert "/" not in text
    with suppress(InvalidName, InvalidTag):
        assert ":".join(split_tag(text)) == text
    with suppress(InvalidName, InvalidTag, InvalidDigest):
        name, named = split_image(split_host(text)[1])
        assert split_image(f"{name}{'@' if isinstance(named, Digest) else ':'}{named}") == (
            name,
            named,
        )
    with suppress(InvalidPlatform):
        assert str(Platform.parse(text)) == text


def manifest(data: bytes) -> None:
    kinds = (None, "", *sorted(MANIFEST_TYPES))
    kind, body = (kinds[data[0] % len(kinds)], data[1:]) if data else (None, data)
    try:
        parsed = parse_manifest(body, kind)
    except InvalidManifest as error:
        _is_short(error)
        return
    document = json.loads(body)
    assert parsed.media_type == (document.get("mediaType") or kind or parsed.media_type)
    assert parsed.is_index == ("manifests" in document and document["manifests"] is not None)
    assert not (parsed.children and parsed.blobs())
    named = json.dumps(document)
    assert all(str(it) in named for it in parsed.references())
    sizes = {(it.digest, it.size) for it in (*parsed.layers, *parsed.children)}
    assert len({it for it, _ in sizes}) == len(sizes)
    assert parse_manifest(body, parsed.media_type) == parsed
    assert set(platforms_of(body)) <= {it.digest for it in parsed.children}


def ranges(data: bytes) -> None:
    size, header = data[0] * 7 if data else 0, data[1:].decode("latin-1")
    try:
        parts = parse_ranges(header, size)
    except RangeInvalid as error:
        _is_short(error)
        return
    if parts is not None:
        assert 0 < len(parts) <= MAX_RANGES
        assert all(0 <= part.start < part.stop <= size for part in parts)
        assert sum(part.stop - part.start for part in parts) <= size


def chunk_range(data: bytes) -> None:
    announced, header = (data[0] or None) if data else None, data[1:].decode("latin-1")
    try:
        offset, size = parse_chunk_range(header, announced)
    except (BlobUploadInvalid, SizeInvalid):
        return
    assert offset >= 0
    assert size > 0
    assert announced in {None, size}


def wire(data: bytes) -> None:
    decoder, left = Decoder(), data
    messages: list[Message] = []
    try:
        while left:
            room = decoder.buffer()
            part, left = left[: len(room)], left[len(room) :]
            room[: len(part)] = part
            message = decoder.received(len(part))
            if isinstance(message, Piece) and decoder.payload_due:
                if message.length > len(left):
                    break
                decoder.take_payload(memoryview(bytearray(message.length)))
            elif message is not None:
                messages.append(message)
    except ProtocolError:
        pass
    for message in messages:
        assert decoded(encode(message)) == message


def decoded(frame: bytes) -> Message | None:
    """The message of one whole frame."""
    decoder, message = Decoder(), None
    while frame:
        room = decoder.buffer()
        part, frame = frame[: len(room)], frame[len(room) :]
        room[: len(part)] = part
        message = decoder.received(len(part))
    return message


def metainfo(data: bytes) -> None:
    try:
        parsed = Metainfo.decode(data)
    except InvalidMetainfo:
        return
    assert Metainfo.decode(parsed.encode()) == parsed
    if parsed.count:
        assert parsed.span(parsed.count - 1)[1] == parsed.size
        assert len(parsed.piece_hash(parsed.count - 1)) == 32


def units(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    try:
        size = parse_bytes(text)
    except ValueError:
        pass
    else:
        assert size >= 0
        assert parse_bytes(format_bytes(size)) == size
    try:
        seconds = parse_duration(text)
    except ValueError:
        pass
    else:
        assert seconds >= 0
        format_duration(seconds)
    try:
        host, port = split_address(text)
    except ValueError:
        pass
    else:
        assert 0 <= port < 65536
        assert split_address(join_address(host, port)) == (host, port)


def registry_path(data: bytes) -> None:
    path = "/v2/" + data.decode("latin-1")
    rel_url = URL.build(path=path.partition("?")[0].partition("#")[0], encoded=True)
    request = make_mocked_request("GET", "/").clone(rel_url=rel_url)
    match = _resolved(request)
    if "name" not in match:
        return
    request._match_info = match
    try:
        name = repository(request)
    except NameInvalid:
        return
    # What decides by the beginning of the path in front of the registry sees the same name.
    assert repository_name(name) == name
    assert "%2f" not in path.lower() or path.startswith(f"/v2/{name}/")


def _router() -> web.UrlDispatcher:
    app = web.Application()
    registry_routes(app, cast("Reader", object()), cast("Writer", object()))
    return app.router


_ROUTER = _router()


def _resolved(request: web.Request) -> web.UrlMappingMatchInfo:
    resolving = _ROUTER.resolve(request)
    try:
        resolving.send(None)
    except StopIteration as end:
        return cast("web.UrlMappingMatchInfo", end.value)
    raise AssertionError("routing waits for something")


Target = Callable[[bytes], None]

TARGETS: dict[str, Target] = {
    "digest": digest,
    "names": names,
    "manifest": manifest,
    "ranges": ranges,
    "chunk-range": chunk_range,
    "wire": wire,
    "metainfo": metainfo,
    "units": units,
    "registry-path": registry_path,
}


def _manifests() -> list[bytes]:
    layer = {"mediaType": OCI_LAYER, "digest": str(DIGEST), "size": 7, "data": "Y29udGVudA=="}
    config = layer | {"mediaType": OCI_CONFIG, "urls": ["https://example.test"]}
    platform = {"os": "linux", "architecture": "arm", "variant": "v7"}
    both = {"schemaVersion": 2, "subject": config, "annotations": {"a": "b"}, "artifactType": "a/b"}
    documents = [
        both | {"mediaType": OCI_MANIFEST, "config": config, "layers": [layer, layer]},
        both
        | {
            "mediaType": OCI_INDEX,
            "manifests": [layer | {"mediaType": OCI_MANIFEST, "platform": platform}],
        },
    ]
    return [b"\0" + json.dumps(document).encode() for document in documents]


def _frames() -> list[bytes]:
    peer = PeerInfo(id="ab" * 16, host="host", port=1, zone="", origin=False)
    messages: list[Message] = [
        Hello(VERSION, peer),
        Open(1, DIGEST, 9, b"\xff\x80"),
        Have(1, 2),
        Request(1, 2),
        Ping(),
    ]
    frames = [encode(message) for message in messages]
    return [*frames, b"".join(frames), encode(Piece(1, 2, 5)) + b"bytes"]


EXAMPLES: dict[str, list[bytes]] = {
    "digest": [str(DIGEST).encode(), str(Digest.of(b"", "sha512")).encode()],
    "names": [
        b"team/app",
        b"a.b_c__d--e",
        b"v1.2_3-4",
        b"team/app:v1",
        b"a.example:1/b/c@" + str(DIGEST).encode(),
        b"linux/arm/v7",
        str(DIGEST).encode(),
    ],
    "manifest": _manifests(),
    "ranges": [b"\x40bytes=0-1,5-,-3", b"\x40bytes=2-", b"\x05bytes=-1"],
    "chunk-range": [b"\x000-9", b"\x0abytes 0-9/10", b"\x01bytes=5-5/*"],
    "wire": _frames(),
    "metainfo": [metainfo_of(b"").encode(), metainfo_of(bytes(600_000)).encode()],
    "units": [b"1.5GiB", b"10 MB", b"500ms", b"2h", b"[::1]:5000", b"host:80", b"0"],
    "registry-path": [
        f"team/app/{rest}".encode()
        for rest in (
            "tags/list",
            "manifests/v1",
            f"blobs/{DIGEST}",
            "blobs/uploads/x",
            "a%2Fb/../c",
        )
    ],
}
