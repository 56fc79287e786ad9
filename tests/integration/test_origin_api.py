# SPDX-License-Identifier: Apache-2.0
"""The origin's HTTP API, against real origin processes."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from yarl import URL

from shoal.model.digest import Digest
from shoal.swarm.metainfo import metainfo_of
from tests.integration.origin_ring import Origin, Ring, running_ring, until

KIB = 1024
MIB = 1024 * KIB


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ring]:
    """Four origins that keep three copies, so that each blob has one member that is no owner."""
    with running_ring(tmp_path_factory.mktemp("ring"), origins=4) as ring:
        yield ring


@pytest.fixture
def ring(four: Ring) -> Ring:
    four.revive()
    return four


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=30)
    # No keep-alive: origins are restarted between requests.
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, auto_decompress=False
    ) as session:
        yield session


def blob(size: int = 900 * KIB + 17) -> tuple[bytes, Digest]:
    data = os.urandom(size)
    return data, Digest.of(data)


def code(body: bytes) -> str:
    return str(json.loads(body)["errors"][0]["code"])


async def chunked(data: bytes) -> AsyncIterator[bytes]:
    """A body without Content-Length."""
    for start in range(0, len(data), 100_000):
        yield data[start : start + 100_000]


async def put_internal(http: aiohttp.ClientSession, origin: Origin, data: bytes) -> Digest:
    digest = Digest.of(data)
    async with http.put(origin.url(f"/internal/blobs/{digest}"), data=data) as answer:
        assert answer.status == 201, await answer.text()
    return digest


class TestInternalPut:
    async def test_stores_the_blob_with_its_metainfo(
        self, ring: Ring, http: aiohttp.ClientSession
    ) -> None:
        data, _ = blob()
        origin = ring.origins[0]
        digest = await put_internal(http, origin, data)
        assert origin.path(digest).read_bytes() == data
        async with http.get(origin.url(f"/internal/blobs/{digest}/metainfo")) as answer:
            told = json.loads(await answer.read())
        assert told["metainfo"] == json.loads(metainfo_of(data).encode())
        async with http.get(origin.url("/internal/peer")) as answer:
            assert told["peer"] == json.loads(await answer.read())
        assert told["peer"]["origin"] is True
        await until(lambda: origin.leftovers() == [])

    async def test_a_blob_that_is_here_answers_200(
        self, ring: Ring, http: aiohttp.ClientSession
    ) -> None:
        data, _ = blob()
        digest = await put_internal(http, ring.origins[0], data)
        url = ring.origins[0].url(f"/internal/blobs/{digest}")
        async with http.put(url, data=data) as answer:
            assert answer.status == 200
        async with http.put(url, data=chunked(data)) as answer:
            assert answer.status == 200

    @pytest.mark.parametrize("size", [0, 1, 5 * MIB])
    async def test_a_body_without_length_is_taken(
        self, ring: Ring, http: aiohttp.ClientSession, size: int
    ) -> None:
        data, digest = blob(size)
        origin = ring.origins[0]
        async with http.put(origin.url(f"/internal/blobs/{digest}"), data=chunked(data)) as answer:
            # The empty blob may be there from another test.
            assert answer.status in ({200, 201} if size == 0 else {201})
        async with http.get(origin.url(f"/internal/blobs/{digest}/metainfo")) as answer:
            told = json.loads(await answer.read())
        assert told["metainfo"] == json.loads(metainfo_of(data).encode())

    async def test_sha512_is_a_digest_like_any_other(
        self, ring: Ring, http: aiohttp.ClientSession
    ) -> None:
        data = os.urandom(900 * KIB)
        digest = Digest("sha512", hashlib.sha512(data).hexdigest())
        url = ring.origins[0].url(f"/internal/blobs/{digest}")
        async with http.put(url, data=data) as answer:
            assert answer.status == 201
        async with http.get(url) as answer:
            assert await answer.read() == data

    @pytest.mark.parametrize("announced", [True, False])
    async def test_a_wrong_digest_is_refused_and_nothing_kept(
        self, ring: Ring, http: aiohttp.ClientSession, announced: bool
    ) -> None:
        data, _ = blob()
        _, other = blob(1)
        origin = ring.origins[0]
        body: Any = data if announced else chunked(data)
        async with http.put(origin.url(f"/internal/blobs/{other}"), data=body) as answer:
            assert answer.status == 400
            assert code(await answer.read()) == "DIGEST_INVALID"
        assert not origin.path(other).exists()
        await until(lambda: origin.leftovers() == [])

    async def test_a_client_that_vanishes_leaves_nothing(
        self, ring: Ring, http: aiohttp.ClientSession
    ) -> None:
        data, digest = blob()
        origin = ring.origins[0]
        host, port = origin.host.split(":")
        with socket.create_connection((host, int(port))) as sock:
            sock.sendall(
                f"PUT /internal/blobs/{digest} HTTP/1.1\r\nHost: x\r\n"
                f"Content-Length: {len(data)}\r\n\r\n".encode()
            )
            sock.sendall(data[: len(data) // 2])
            await until(lambda: origin.leftovers() != [])
        await until(lambda: origin.leftovers() == [])
        assert not origin.path(digest).exists()
        assert "Traceback" not in origin.log.read_text()
        await put_internal(http, origin, data)

    async def test_uploads_of_one_digest_at_the_same_time_all_succeed(
        self, ring: Ring, http: aiohttp.ClientSession
    ) -> None:
        data, digest = blob(8 * MIB)
        url = ring.origins[0].url(f"/internal/blobs/{digest}")

        async def put() -> int:
            async with http.put(url, data=BytesIO(data)) as answer:
                return answer.status

        statuses = await asyncio.gather(*(put() for _ in range(4)))
        assert set(statuses) <= {200, 201}
        assert 201 in statuses
        assert ring.origins[0].path(digest).read_bytes() == data
        await until(lambda: ring.origins[0].leftovers() == [])

    async def test_a_full_disk_is_told_and_nothing_kept(
        self, ring: Ring, http: aiohttp.ClientSession
    ) -> None:
        data, digest = blob()
        origin = ring.origins[0]
        assert origin.process is not None
        process = psutil.Process(origin.process.pid)
        unlimited = process.rlimit(resource.RLIMIT_FSIZE)
        process.rlimit(resource.RLIMIT_FSIZE, (100 * KIB, unlimited[1]))
        try:
            async with http.put(origin.url(f"/internal/blobs/{digest}"), data=data) as answer:
                assert answer.status == 507
                assert "Retry-After" in answer.headers
                body = await answer.text()
        finally:
            process.rlimit(resource.RLIMIT_FSIZE, unlimited)
        assert "no room" in body
        assert str(digest) in body
        await until(lambda: origin.leftovers() == [])
        await put_internal(http, origin, data)


class TestInternalGet:
    async def test_whole_part_and_head(self, ring: Ring, http: aiohttp.ClientSession) -> None:
        data, _ = blob()
        digest = await put_internal(http, ring.origins[0], data)
        url = ring.origins[0].url(f"/internal/blobs/{digest}")
        async with http.get(url) as answer:
            assert answer.status == 200
            assert await answer.read() == data
        async with http.get(url, headers={"Range": "bytes=1000-1999"}) as answer:
            assert answer.status == 206
            assert answer.headers["Content-Range"] == f"bytes 1000-1999/{len(data)}"
            assert await answer.read() == data[1000:2000]
        async with http.head(url) as answer:
            assert answer.headers["Content-Length"] == str(len(data))
        async with http.get(url, headers={"Range": f"bytes={len(data)}-"}) as answer:
            assert answer.status == 416

    async def test_answers_for_this_host_alone(
        self, ring: Ring, http: aiohttp.ClientSession
    ) -> None:
        data, _ = blob()
        digest = await put_internal(http, ring.origins[0], data)
        for path in (f"/internal/blobs/{digest}", f"/internal/blobs/{digest}/metainfo"):
            async with http.get(ring.origins[1].url(path)) as answer:
                assert answer.status == 404
                assert code(await answer.read()) == "BLOB_UNKNOWN"

    async def test_stat_tells_which_are_here(self, ring: Ring, http: aiohttp.ClientSession) -> None:
        data, _ = blob()
        digest = await put_internal(http, ring.origins[0], data)
        _, absent = blob(1)
        asked = {"digests": [str(digest), str(absent)]}
        async with http.post(ring.origins[0].url("/internal/blobs/stat"), json=asked) as answer:
            assert json.loads(await answer.read()) == {"present": {str(digest): len(data)}}

    @pytest.mark.parametrize("body", [b"", b"[]", b'{"digests": 1}', b'{"digests": ["x"]}', b"{"])
    async def test_stat_of_nonsense_is_a_bad_request(
        self, ring: Ring, http: aiohttp.ClientSession, body: bytes
    ) -> None:
        async with http.post(ring.origins[0].url("/internal/blobs/stat"), data=body) as answer:
            assert answer.status == 400

    async def test_stat_takes_a_thousand_digests_and_not_more(
        self, ring: Ring, http: aiohttp.ClientSession
    ) -> None:
        url = ring.origins[0].url("/internal/blobs/stat")
        digests = [str(Digest.of(str(n).encode())) for n in range(1001)]
        async with http.post(url, json={"digests": digests[:1000]}) as answer:
            assert answer.status == 200
        async with http.post(url, json={"digests": digests}) as answer:
            assert answer.status == 400


class TestDamage:
    async def test_a_truncated_copy_is_set_aside(
        self, ring: Ring, http: aiohttp.ClientSession
    ) -> None:
        data, _ = blob()
        origin = ring.origins[0]
        digest = await put_internal(http, origin, data)
        path = origin.path(digest)
        os.truncate(path, len(data) - 1)
        async with http.get(origin.url(f"/internal/blobs/{digest}")) as answer:
            assert answer.status == 404
        assert not path.exists()
        assert path.with_name(path.name + ".damaged").stat().st_size == len(data) - 1
        await put_internal(http, origin, data)
        async with http.get(origin.url(f"/internal/blobs/{digest}")) as answer:
            assert await answer.read() == data

    async def test_a_lost_metainfo_is_made_anew(
        self, ring: Ring, http: aiohttp.ClientSession
    ) -> None:
        data, _ = blob()
        origin = ring.origins[0]
        digest = await put_internal(http, origin, data)
        sidecar(origin, digest).unlink()
        async with http.get(origin.url(f"/internal/blobs/{digest}/metainfo")) as answer:
            told = json.loads(await answer.read())
        assert told["metainfo"] == json.loads(metainfo_of(data).encode())
        assert sidecar(origin, digest).exists()

    async def test_other_bytes_without_a_metainfo_are_set_aside(
        self, ring: Ring, http: aiohttp.ClientSession
    ) -> None:
        data, _ = blob()
        origin = ring.origins[0]
        digest = await put_internal(http, origin, data)
        sidecar(origin, digest).write_bytes(b"damaged, too")
        origin.path(digest).write_bytes(os.urandom(len(data)))
        async with http.head(origin.url(f"/internal/blobs/{digest}")) as answer:
            assert answer.status == 404
        assert not origin.path(digest).exists()


def sidecar(origin: Origin, digest: Digest) -> Path:
    path = origin.path(digest)
    return path.with_name(path.name + ".metainfo")


class TestPublicPut:
    @pytest.mark.parametrize("member", range(4))
    async def test_any_origin_gives_the_blob_to_its_owners(
        self, ring: Ring, http: aiohttp.ClientSession, member: int
    ) -> None:
        data, digest = blob()
        origin = ring.in_order(digest)[member]
        async with http.put(origin.url(f"/namespace/library/blobs/{digest}"), data=data) as answer:
            assert answer.status == 201, await answer.text()
            assert len(ring.holders(digest)) >= 2
        owners = ring.in_order(digest)[:3]
        await until(lambda: len(ring.holders(digest)) == 3)
        assert ring.holders(digest) == {owner.host for owner in owners}
        assert all(owner.path(digest).read_bytes() == data for owner in owners)
        await until(lambda: not any(o.leftovers() for o in ring.origins))

    @pytest.mark.parametrize("size", [0, 3 * MIB])
    async def test_a_body_without_length_is_taken(
        self, ring: Ring, http: aiohttp.ClientSession, size: int
    ) -> None:
        data, digest = blob(size)
        url = ring.origins[0].url(f"/namespace/a/blobs/{digest}")
        async with http.put(url, data=chunked(data)) as answer:
            assert answer.status == 201
        async with http.get(url) as answer:
            assert await answer.read() == data

    async def test_a_wrong_digest_is_refused_and_nothing_kept(
        self, ring: Ring, http: aiohttp.ClientSession
    ) -> None:
        data, _ = blob()
        _, other = blob(1)
        url = ring.origins[0].url(f"/namespace/a/blobs/{other}")
        async with http.put(url, data=data) as answer:
            assert answer.status == 400
            assert code(await answer.read()) == "DIGEST_INVALID"
        assert ring.holders(other) == set()
        await until(lambda: not any(origin.leftovers() for origin in ring.origins))

    async def test_fewer_copies_than_the_quorum_is_503_and_says_who_failed(
        self, ring: Ring, http: aiohttp.ClientSession
    ) -> None:
        data, digest = blob()
        first, *others = ring.in_order(digest)
        for other in others:
            other.kill()
        async with http.put(first.url(f"/namespace/a/blobs/{digest}"), data=data) as answer:
            assert answer.status == 503
            body = await answer.text()
        assert all(other.host in body for other in others)


class TestNamespaces:
    @pytest.mark.parametrize("namespace", ["a", "a/b", "a%2Fb", "library%2fredis", "a%2Fb/c"])
    async def test_plain_and_escaped(
        self, ring: Ring, http: aiohttp.ClientSession, namespace: str
    ) -> None:
        data, digest = blob(100)
        url = URL(ring.origins[0].url(f"/namespace/{namespace}/blobs/{digest}"), encoded=True)
        async with http.put(url, data=data) as answer:
            assert answer.status == 201, await answer.text()
        async with http.get(url) as answer:
            assert await answer.read() == data

    @pytest.mark.parametrize("namespace", ["A", "a%20b", "a//b", "..%2F..", "a%252Fb", "-a"])
    async def test_what_is_no_name_is_refused(
        self, ring: Ring, http: aiohttp.ClientSession, namespace: str
    ) -> None:
        _, digest = blob(100)
        url = URL(ring.origins[0].url(f"/namespace/{namespace}/blobs/{digest}"), encoded=True)
        async with http.get(url) as answer:
            assert answer.status == 400
            assert code(await answer.read()) == "NAME_INVALID"

    @pytest.mark.parametrize("digest", ["sha256:abc", "md5:" + "0" * 32, "x", "sha256:" + "G" * 64])
    async def test_what_is_no_digest_is_refused(
        self, ring: Ring, http: aiohttp.ClientSession, digest: str
    ) -> None:
        for path in (f"/namespace/a/blobs/{digest}", f"/internal/blobs/{digest}"):
            async with http.get(ring.origins[0].url(path)) as answer:
                assert answer.status == 400
                assert code(await answer.read()) == "DIGEST_INVALID"


class TestPublicGet:
    async def test_streams_from_whoever_has_it(
        self, ring: Ring, http: aiohttp.ClientSession
    ) -> None:
        data, _ = blob()
        digest = await put_internal(http, ring.origins[0], data)
        for origin in ring.origins:
            url = origin.url(f"/namespace/a/blobs/{digest}")
            async with http.get(url) as answer:
                assert answer.status == 200
                assert await answer.read() == data
            async with http.get(url, headers={"Range": "bytes=-100"}) as answer:
                assert answer.status == 206
                assert await answer.read() == data[-100:]
            async with http.head(url) as answer:
                assert answer.headers["Content-Length"] == str(len(data))

    async def test_says_not_there_when_everyone_was_asked(
        self, ring: Ring, http: aiohttp.ClientSession
    ) -> None:
        _, digest = blob(1)
        url = ring.origins[0].url(f"/namespace/a/blobs/{digest}")
        async with http.get(url) as answer:
            assert answer.status == 404
            assert code(await answer.read()) == "BLOB_UNKNOWN"

    async def test_does_not_say_so_when_somebody_could_not_be_asked(
        self, ring: Ring, http: aiohttp.ClientSession
    ) -> None:
        _, digest = blob(1)
        ring.origins[3].kill()
        url = ring.origins[0].url(f"/namespace/a/blobs/{digest}")
        async with http.get(url) as answer:
            assert answer.status == 503
            assert ring.origins[3].host in await answer.text()

    async def test_locations_are_the_owners_in_ring_order(
        self, ring: Ring, http: aiohttp.ClientSession
    ) -> None:
        _, digest = blob(1)
        owners = [origin.host for origin in ring.in_order(digest)[:3]]
        async with http.get(ring.origins[0].url(f"/blobs/{digest}/locations")) as answer:
            assert json.loads(await answer.read()) == {"owners": owners}
            assert answer.headers["Origin-Locations"] == ",".join(owners)


class TestChunkedUpload:
    async def start(self, ring: Ring, http: aiohttp.ClientSession, digest: Digest) -> str:
        url = ring.origins[0].url(f"/namespace/a%2Fb/blobs/{digest}/uploads")
        async with http.post(URL(url, encoded=True)) as answer:
            assert answer.status == 202
            return ring.origins[0].url(answer.headers["Location"])

    async def test_chunks_become_the_blob(self, ring: Ring, http: aiohttp.ClientSession) -> None:
        data, digest = blob()
        url = URL(await self.start(ring, http, digest), encoded=True)
        async with http.patch(
            url, data=data[: 300 * KIB], headers={"Content-Range": f"0-{300 * KIB - 1}"}
        ) as answer:
            assert answer.status == 202
            assert answer.headers["Range"] == f"0-{300 * KIB - 1}"
        async with http.patch(url, data=data[300 * KIB : 600 * KIB]) as answer:
            assert answer.headers["Range"] == f"0-{600 * KIB - 1}"
        async with http.put(url, data=data[600 * KIB :]) as answer:
            assert answer.status == 201, await answer.text()
        async with http.get(ring.origins[1].url(f"/namespace/a/blobs/{digest}")) as answer:
            assert await answer.read() == data
        await until(lambda: len(ring.holders(digest)) == 3)
        await until(lambda: not any(origin.leftovers() for origin in ring.origins))

    async def test_it_survives_a_restart_of_the_origin(
        self, ring: Ring, http: aiohttp.ClientSession
    ) -> None:
        data, digest = blob()
        url = URL(await self.start(ring, http, digest), encoded=True)
        async with http.patch(url, data=data[: 300 * KIB]) as answer:
            assert answer.status == 202
        ring.origins[0].kill()
        ring.revive()
        async with http.patch(
            url, data=data[300 * KIB :], headers={"Content-Range": f"{300 * KIB}-{len(data) - 1}"}
        ) as answer:
            assert answer.status == 202
        async with http.put(url) as answer:
            assert answer.status == 201

    async def test_a_chunk_out_of_order_is_refused_and_says_where_to_go_on(
        self, ring: Ring, http: aiohttp.ClientSession
    ) -> None:
        data, digest = blob(100)
        url = URL(await self.start(ring, http, digest), encoded=True)
        async with http.patch(url, data=data[:10]) as answer:
            assert answer.status == 202
        async with http.patch(url, data=data[20:30], headers={"Content-Range": "20-29"}) as answer:
            assert answer.status == 416
            assert answer.headers["Range"] == "0-9"

    @pytest.mark.parametrize("span", ["x", "0-", "5-4", "0-10"])
    async def test_a_content_range_that_makes_no_sense_is_refused(
        self, ring: Ring, http: aiohttp.ClientSession, span: str
    ) -> None:
        data, digest = blob(10)
        url = URL(await self.start(ring, http, digest), encoded=True)
        async with http.patch(url, data=data, headers={"Content-Range": span}) as answer:
            assert answer.status == 400

    async def test_a_wrong_digest_ends_the_session_and_keeps_nothing(
        self, ring: Ring, http: aiohttp.ClientSession
    ) -> None:
        data, _ = blob(100)
        _, other = blob(100)
        url = URL(await self.start(ring, http, other), encoded=True)
        async with http.put(url, data=data) as answer:
            assert answer.status == 400
            assert code(await answer.read()) == "DIGEST_INVALID"
        async with http.put(url, data=data) as answer:
            assert answer.status == 404
            assert code(await answer.read()) == "BLOB_UPLOAD_UNKNOWN"
        assert ring.holders(other) == set()

    @pytest.mark.parametrize("upload", ["x", "0" * 32, "..%2F..%2Fetc"])
    async def test_an_unknown_session_is_404(
        self, ring: Ring, http: aiohttp.ClientSession, upload: str
    ) -> None:
        data, digest = blob(100)
        path = f"/namespace/a/blobs/{digest}/uploads/{upload}"
        url = URL(ring.origins[0].url(path), encoded=True)
        async with http.patch(url, data=data) as answer:
            assert answer.status == 404
            assert code(await answer.read()) == "BLOB_UPLOAD_UNKNOWN"
