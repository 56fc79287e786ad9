# SPDX-License-Identifier: Apache-2.0
"""The client of the ring, against real origins that die, freeze and lose their data."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from shoal.model.digest import Digest
from shoal.origin.client import OriginCluster
from shoal.origin.local import KEPT
from shoal.origin.quorum import QuorumFailed
from shoal.origin.remote_blob import RemoteBlob
from shoal.swarm.metainfo import metainfo_of
from shoal.web.client import HttpClient
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, NotFound, Rejected, Unreachable
from tests.integration.origin_ring import Ring, running_ring, until

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ring]:
    with running_ring(tmp_path_factory.mktemp("ring")) as ring:
        yield ring


@pytest.fixture
def ring(three: Ring) -> Ring:
    three.revive()
    return three


@pytest.fixture
async def cluster(ring: Ring) -> AsyncIterator[OriginCluster]:
    http = HttpClient(user_agent="test")
    cluster = OriginCluster(http, ring.config)
    yield cluster
    await cluster.drain(10)
    await http.close()


def soon() -> Deadline:
    return Deadline.after(20)


class Source:
    """A blob in a file."""

    def __init__(self, folder: Path, size: int = 3 * MIB + 17) -> None:
        self.data = os.urandom(size)
        self.digest = Digest.of(self.data)
        self.path = folder / self.digest.hex
        self.path.write_bytes(self.data)

    async def put(self, cluster: OriginCluster) -> None:
        await cluster.upload(self.digest, self.path, len(self.data), deadline=soon())


async def everything(blob: RemoteBlob) -> bytes:
    return b"".join([bytes(part) async for part in blob.segments(0, blob.size)])


class TestUpload:
    async def test_all_owners_get_it_and_the_quorum_is_reported(
        self, ring: Ring, cluster: OriginCluster, tmp_path: Path
    ) -> None:
        source = Source(tmp_path)
        result = await cluster.upload(source.digest, source.path, len(source.data), deadline=soon())
        assert result.copies >= 2
        assert set(result.hosts) <= ring.holders(source.digest)
        await cluster.drain(10)
        assert ring.holders(source.digest) == set(ring.config.hosts)

    async def test_the_source_may_go_once_it_returned(
        self, ring: Ring, cluster: OriginCluster, tmp_path: Path
    ) -> None:
        source = Source(tmp_path)
        with source.path.open("rb") as file:
            source.path.unlink()
            await cluster.upload(source.digest, file.fileno(), len(source.data), deadline=soon())
        await cluster.drain(10)
        for origin in ring.origins:
            assert origin.path(source.digest).read_bytes() == source.data

    async def test_a_dead_origin_does_not_stop_it(
        self, ring: Ring, cluster: OriginCluster, tmp_path: Path
    ) -> None:
        source = Source(tmp_path)
        dead = ring.in_order(source.digest)[0]
        dead.kill()
        result = await cluster.upload(source.digest, source.path, len(source.data), deadline=soon())
        assert result.copies == 2
        assert dead.host not in result.hosts

    async def test_a_frozen_origin_does_not_hold_it_up(
        self, ring: Ring, cluster: OriginCluster, tmp_path: Path
    ) -> None:
        source = Source(tmp_path)
        frozen = ring.in_order(source.digest)[0]
        frozen.freeze()
        try:
            async with asyncio.timeout(5):
                result = await cluster.upload(
                    source.digest, source.path, len(source.data), deadline=soon()
                )
            assert frozen.host not in result.hosts
        finally:
            frozen.thaw()
        await cluster.drain(10)
        assert ring.holders(source.digest) == set(ring.config.hosts)

    async def test_two_dead_origins_fail_it_with_every_reason(
        self, ring: Ring, cluster: OriginCluster, tmp_path: Path
    ) -> None:
        source = Source(tmp_path)
        first, second, _ = ring.in_order(source.digest)
        first.kill()
        second.kill()
        with pytest.raises(QuorumFailed) as failed:
            await source.put(cluster)
        assert {failure.host for failure in failed.value.failures} == {first.host, second.host}
        assert first.host in str(failed.value)
        assert second.host in str(failed.value)

    async def test_a_file_that_is_not_the_digest_is_refused_by_all(
        self, ring: Ring, cluster: OriginCluster, tmp_path: Path
    ) -> None:
        source = Source(tmp_path)
        source.path.write_bytes(os.urandom(len(source.data)))
        with pytest.raises(QuorumFailed, match="DIGEST_INVALID"):
            await source.put(cluster)
        assert ring.holders(source.digest) == set()
        await until(lambda: not any(origin.leftovers() for origin in ring.origins))

    async def test_what_a_host_has_is_not_sent_again(
        self, ring: Ring, cluster: OriginCluster, tmp_path: Path
    ) -> None:
        source = Source(tmp_path)
        await source.put(cluster)
        await cluster.drain(10)
        before = [origin.path(source.digest).stat().st_ino for origin in ring.origins]
        await source.put(cluster)
        await cluster.drain(10)
        assert before == [origin.path(source.digest).stat().st_ino for origin in ring.origins]

    async def test_killing_one_origin_at_any_moment_loses_nothing_acknowledged(
        self, ring: Ring, cluster: OriginCluster, tmp_path: Path
    ) -> None:
        sources = [Source(tmp_path, random.randrange(1, 4 * MIB)) for _ in range(24)]
        victim = random.choice(ring.origins)
        halfway = asyncio.Event()
        acknowledged: list[Source] = []
        slots = asyncio.Semaphore(6)

        async def push(source: Source) -> None:
            async with slots:
                await source.put(cluster)
            acknowledged.append(source)
            if len(acknowledged) == len(sources) // 3:
                halfway.set()

        async def kill() -> None:
            await halfway.wait()
            victim.kill()

        await asyncio.gather(kill(), *(push(source) for source in sources))
        await cluster.drain(10)
        assert len(acknowledged) == len(sources)
        for source in sources:
            read = await cluster.read(source.digest, deadline=soon(), limit=8 * MIB)
            assert read == source.data
        ring.revive()
        for source in sources:
            holders = ring.holders(source.digest)
            assert len(holders) >= 2
            for host in holders:
                assert ring.origin(host).path(source.digest).read_bytes() == source.data


class TestStat:
    async def test_the_size_or_none(self, cluster: OriginCluster, tmp_path: Path) -> None:
        source = Source(tmp_path)
        assert await cluster.stat(source.digest, deadline=soon()) is None
        await source.put(cluster)
        assert await cluster.stat(source.digest, deadline=soon()) == len(source.data)

    async def test_one_dead_origin_leaves_no_doubt(
        self, ring: Ring, cluster: OriginCluster, tmp_path: Path
    ) -> None:
        source = Source(tmp_path)
        ring.origins[0].kill()
        assert await cluster.stat(source.digest, deadline=soon()) is None

    async def test_one_frozen_origin_costs_little_time(
        self, ring: Ring, cluster: OriginCluster, tmp_path: Path
    ) -> None:
        source = Source(tmp_path)
        ring.origins[0].freeze()
        try:
            async with asyncio.timeout(2):
                assert await cluster.stat(source.digest, deadline=soon()) is None
        finally:
            ring.origins[0].thaw()

    async def test_two_dead_origins_are_no_answer(
        self, ring: Ring, cluster: OriginCluster, tmp_path: Path
    ) -> None:
        source = Source(tmp_path)
        for origin in ring.origins[:2]:
            origin.kill()
        with pytest.raises(Unreachable) as failed:
            await cluster.stat(source.digest, deadline=soon())
        assert all(origin.host in str(failed.value) for origin in ring.origins)

    async def test_many_at_once(self, ring: Ring, cluster: OriginCluster, tmp_path: Path) -> None:
        sources = [Source(tmp_path, 1000) for _ in range(5)]
        for source in sources:
            await source.put(cluster)
        await cluster.drain(10)
        absent = [Digest.of(f"absent {n}".encode()) for n in range(1200)]
        digests = [*(source.digest for source in sources), *absent]
        presence = await cluster.stat_many(digests, deadline=soon())
        assert presence.sizes == {source.digest: 1000 for source in sources}
        assert all(presence.copies[source.digest] == set(ring.config.hosts) for source in sources)
        assert presence.unasked == {}
        ring.origins[0].kill()
        presence = await cluster.stat_many(digests, deadline=soon())
        assert set(presence.sizes) == {source.digest for source in sources}
        assert list(presence.unasked) == [ring.origins[0].host]

    async def test_many_do_not_wait_for_a_frozen_origin_when_enough_others_have_them(
        self, ring: Ring, cluster: OriginCluster, tmp_path: Path
    ) -> None:
        source = Source(tmp_path, 1000)
        await source.put(cluster)
        await cluster.drain(10)
        ring.origins[0].freeze()
        try:
            async with asyncio.timeout(2):
                presence = await cluster.stat_many([source.digest], deadline=soon())
        finally:
            ring.origins[0].thaw()
        assert presence.sizes == {source.digest: 1000}
        assert presence.copies[source.digest] == {origin.host for origin in ring.origins[1:]}
        assert list(presence.unasked) == [ring.origins[0].host]


class TestRead:
    async def test_a_damaged_body_is_never_returned(
        self, ring: Ring, cluster: OriginCluster, tmp_path: Path
    ) -> None:
        source = Source(tmp_path, 10_000)
        await source.put(cluster)
        await cluster.drain(10)
        for origin in ring.in_order(source.digest)[:2]:
            path = origin.path(source.digest)
            path.write_bytes(source.data[:-1] + bytes([source.data[-1] ^ 1]))
        read = await cluster.read(source.digest, deadline=soon(), limit=10_000)
        assert read == source.data

    async def test_one_copy_is_found_wherever_it_is(
        self, ring: Ring, cluster: OriginCluster, tmp_path: Path
    ) -> None:
        for place in range(3):
            source = Source(tmp_path, 10_000)
            await source.put(cluster)
            await cluster.drain(10)
            order = ring.in_order(source.digest)
            for origin in order[:place] + order[place + 1 :]:
                origin.path(source.digest).unlink()
            assert await cluster.read(source.digest, deadline=soon(), limit=10_000) == source.data
            assert await everything(await cluster.open(source.digest, deadline=soon())) == (
                source.data
            )

    async def test_a_frozen_origin_does_not_hold_it_up(
        self, ring: Ring, cluster: OriginCluster, tmp_path: Path
    ) -> None:
        source = Source(tmp_path, 10_000)
        await source.put(cluster)
        await cluster.drain(10)
        frozen = ring.in_order(source.digest)[0]
        frozen.freeze()
        try:
            async with asyncio.timeout(3):
                read = await cluster.read(source.digest, deadline=soon(), limit=10_000)
            assert read == source.data
        finally:
            frozen.thaw()

    async def test_not_there_and_could_not_ask_are_different(
        self, ring: Ring, cluster: OriginCluster, tmp_path: Path
    ) -> None:
        digest = Source(tmp_path, 100).digest
        with pytest.raises(NotFound):
            await cluster.read(digest, deadline=soon(), limit=1000)
        with pytest.raises(NotFound):
            await cluster.open(digest, deadline=soon())
        assert await cluster.metainfo(digest, deadline=soon()) is None
        ring.origins[0].kill()
        with pytest.raises(Unreachable):
            await cluster.read(digest, deadline=soon(), limit=1000)
        with pytest.raises(Unreachable):
            await cluster.open(digest, deadline=soon())
        with pytest.raises(Unreachable):
            await cluster.metainfo(digest, deadline=soon())

    async def test_more_than_the_limit_is_not_read(
        self, cluster: OriginCluster, tmp_path: Path
    ) -> None:
        source = Source(tmp_path, 10_000)
        await source.put(cluster)
        with pytest.raises(CallFailed, match="more than 9999 bytes"):
            await cluster.read(source.digest, deadline=soon(), limit=9999)


class TestOpen:
    @pytest.mark.parametrize("span", [(0, None), (0, 1), (12345, 3 * MIB), (3 * MIB, None), (7, 7)])
    async def test_any_part(
        self, cluster: OriginCluster, tmp_path: Path, span: tuple[int, int | None]
    ) -> None:
        source = Source(tmp_path)
        await source.put(cluster)
        blob = await cluster.open(source.digest, deadline=soon())
        start, stop = span[0], blob.size if span[1] is None else span[1]
        parts = [part async for part in blob.segments(start, stop)]
        assert b"".join(parts) == source.data[start:stop]

    async def test_another_origin_continues_when_one_dies_midway(
        self, ring: Ring, cluster: OriginCluster, tmp_path: Path
    ) -> None:
        source = Source(tmp_path, 64 * MIB)
        await source.put(cluster)
        await cluster.drain(20)
        blob = await cluster.open(source.digest, deadline=soon())
        received = bytearray()
        parts = blob.segments(0, blob.size)
        received += await anext(parts)
        ring.origin(blob._hosts[0]).kill()
        async for part in parts:
            received += part
        assert received == source.data

    async def test_a_copy_of_another_size_never_continues_a_body(
        self, ring: Ring, cluster: OriginCluster, tmp_path: Path
    ) -> None:
        source = Source(tmp_path)
        await source.put(cluster)
        await cluster.drain(10)
        blob = await cluster.open(source.digest, deadline=soon())
        for origin in ring.origins:
            os.truncate(origin.path(source.digest), 100)
        with pytest.raises(Unreachable, match="no origin could go on from byte 0"):
            await everything(blob)


class TestMetainfo:
    async def test_pieces_and_the_origins_that_have_them(
        self, ring: Ring, cluster: OriginCluster, tmp_path: Path
    ) -> None:
        source = Source(tmp_path)
        await source.put(cluster)
        await cluster.drain(10)
        ring.in_order(source.digest)[0].path(source.digest).unlink()
        located = await cluster.metainfo(source.digest, deadline=soon())
        assert located is not None
        assert located.metainfo == metainfo_of(source.data)
        assert len(located.peers) == 2
        assert all(peer.origin for peer in located.peers)

    async def test_a_frozen_origin_does_not_hold_it_up(
        self, ring: Ring, cluster: OriginCluster, tmp_path: Path
    ) -> None:
        source = Source(tmp_path)
        await source.put(cluster)
        await cluster.drain(10)
        ring.origins[1].freeze()
        try:
            async with asyncio.timeout(2):
                located = await cluster.metainfo(source.digest, deadline=soon())
        finally:
            ring.origins[1].thaw()
        assert located is not None
        assert len(located.peers) == 2


class TestEnsureCopies:
    async def test_owners_that_lack_a_blob_get_it(
        self, ring: Ring, cluster: OriginCluster, tmp_path: Path
    ) -> None:
        source = Source(tmp_path)
        await source.put(cluster)
        await cluster.drain(10)
        keeper, *others = ring.origins
        for origin in others:
            origin.path(source.digest).unlink()
        copies = await cluster.ensure_copies(source.digest, {keeper.host}, deadline=soon())
        assert copies == 3
        for origin in others:
            assert origin.path(source.digest).read_bytes() == source.data

    async def test_a_dead_owner_does_not_stop_it(
        self, ring: Ring, cluster: OriginCluster, tmp_path: Path
    ) -> None:
        source = Source(tmp_path)
        await source.put(cluster)
        await cluster.drain(10)
        keeper, lacking, dead = ring.origins
        lacking.path(source.digest).unlink()
        dead.kill()
        copies = await cluster.ensure_copies(source.digest, {keeper.host}, deadline=soon())
        assert copies == 2
        assert lacking.path(source.digest).exists()

    async def test_only_members_of_the_ring_are_copied_to(
        self, ring: Ring, tmp_path: Path, cluster: OriginCluster
    ) -> None:
        source = Source(tmp_path)
        await source.put(cluster)
        http = HttpClient(user_agent="test")
        with pytest.raises(Exception, match=r"not members of the ring: 127\.0\.0\.1:1"):
            await http.call(
                "POST",
                ring.in_order(source.digest)[0].url(f"/internal/blobs/{source.digest}/replicate"),
                deadline=soon(),
                json={"to": ["127.0.0.1:1"]},
            )
        await http.close()


class TestKeep:
    """Of garbage collection: who relies on a copy, and what is marked to stay."""

    @staticmethod
    def age(ring: Ring, digest: Digest) -> None:
        """Make all copies look as if nobody had used them for two days."""
        for host in ring.holders(digest):
            path = ring.origin(host).path(digest)
            written = time.time() - 2 * 86400
            os.utime(path, (written, written))

    @staticmethod
    def used_lately(ring: Ring, digest: Digest) -> set[str]:
        since = time.time() - 3600
        return {
            origin.host for origin in ring.origins if origin.path(digest).stat().st_atime > since
        }

    async def test_asking_leaves_the_age_and_relying_begins_it_anew(
        self, ring: Ring, cluster: OriginCluster, tmp_path: Path
    ) -> None:
        source = Source(tmp_path)
        await source.put(cluster)
        await cluster.drain(10)
        self.age(ring, source.digest)
        assert await cluster.stat(source.digest, deadline=soon()) == len(source.data)
        await cluster.stat_many([source.digest], deadline=soon())
        assert self.used_lately(ring, source.digest) == set()
        assert await cluster.stat(source.digest, deadline=soon(), keep=True) == len(source.data)
        assert len(self.used_lately(ring, source.digest)) >= 2
        self.age(ring, source.digest)
        presence = await cluster.stat_many([source.digest], deadline=soon(), keep=True)
        assert self.used_lately(ring, source.digest) >= presence.copies[source.digest]

    async def test_a_second_upload_begins_the_age_anew(
        self, ring: Ring, cluster: OriginCluster, tmp_path: Path
    ) -> None:
        source = Source(tmp_path)
        await source.put(cluster)
        await cluster.drain(10)
        self.age(ring, source.digest)
        await source.put(cluster)
        await cluster.drain(10)
        assert self.used_lately(ring, source.digest) == set(ring.config.hosts)

    async def test_a_copy_of_a_blob_that_stays_for_good_stays_for_good(
        self, ring: Ring, cluster: OriginCluster, tmp_path: Path
    ) -> None:
        source, plain = Source(tmp_path), Source(tmp_path)
        keeper, *others = ring.origins
        hosts = {keeper.host}
        for blob, kept in ((source, True), (plain, False)):
            size = len(blob.data)
            await cluster.send(
                keeper.host, blob.digest, blob.path, size, deadline=soon(), kept=kept
            )
            assert await cluster.ensure_copies(blob.digest, hosts, deadline=soon()) == 3

        def marked(digest: Digest) -> list[bool]:
            paths = [origin.path(digest) for origin in (keeper, *others)]
            return [path.with_name(f"{path.name}.{KEPT}").exists() for path in paths]

        assert marked(source.digest) == [True] * 3
        assert marked(plain.digest) == [False] * 3

    async def test_without_build_indexes_there_is_no_sweep(self, ring: Ring) -> None:
        http = HttpClient(user_agent="test")
        with pytest.raises(Rejected, match=r"set build_index\.hosts") as refused:
            await http.call("POST", ring.origins[0].url("/internal/gc"), deadline=soon())
        assert refused.value.status == 405
        await http.close()
