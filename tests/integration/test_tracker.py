# SPDX-License-Identifier: Apache-2.0
"""Two trackers over three origins: joins, announces, bad input, and hosts that die."""

from __future__ import annotations

import asyncio
import itertools
import json
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from shoal.model.digest import Digest
from shoal.model.errors import BlobUnknown
from shoal.origin.client import OriginCluster
from shoal.ring.config import HostsConfig, OriginsConfig
from shoal.ring.rendezvous import owners
from shoal.swarm.metainfo import metainfo_of
from shoal.swarm.peers import PeerInfo, new_peer_id
from shoal.tracker.client import TrackerClient
from shoal.tracker.messages import AnnouncedBlob, Joined
from shoal.web.client import HttpClient
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, NotFound, Overloaded
from tests.cluster import RunningCluster

_ports = itertools.count(20_000)


@pytest.fixture(scope="module")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    options = ["--proxies", "0", "--trackers", "2"]
    folder = tmp_path_factory.mktemp("cluster")
    with RunningCluster.start(folder, agents=0, options=options) as running:
        yield running


@pytest.fixture
def cluster(shared_cluster: RunningCluster) -> Iterator[RunningCluster]:
    """The cluster; what a test kills is started again after it."""
    yield shared_cluster
    for service, pid in list(shared_cluster.pids.items()):
        if not psutil.pid_exists(pid):
            shared_cluster.restart(service)


class Swarm:
    """What agents do with trackers, for the tests of the latter."""

    def __init__(self, cluster: RunningCluster, http: HttpClient, folder: Path) -> None:
        self._folder = folder
        self.http = http
        self.origin_hosts = [url.removeprefix("http://") for url in cluster.origins]
        self.tracker_hosts = [url.removeprefix("http://") for url in cluster.trackers]
        self._origins = OriginCluster(http, OriginsConfig(hosts=self.origin_hosts))
        self.trackers = TrackerClient(http, HostsConfig(hosts=self.tracker_hosts))

    async def store(self, content: bytes) -> Digest:
        """Store a blob on all origins."""
        digest = Digest.of(content)
        path = self._folder / digest.hex
        await asyncio.to_thread(path.write_bytes, content)
        await self._origins.upload(digest, path, len(content), deadline=soon())
        await self._origins.drain(10.0)
        return digest

    async def blob(self) -> Digest:
        """Store a blob that nobody knows yet."""
        return await self.store(secrets.token_bytes(1000))

    async def on_all_origins(self, me: PeerInfo, size: int = 1000) -> tuple[bytes, Joined]:
        """Store blobs until the first join of one hands out all three origins.

        One that is slow to answer is left out of that hand-out, and asked again later.
        """
        async with asyncio.timeout(20.0):
            while True:
                content = secrets.token_bytes(size)
                joined = await self.join(await self.store(content), me)
                if sum(peer.origin for peer in joined.peers) == 3:
                    return content, joined

    async def join(self, digest: Digest, peer: PeerInfo, *, complete: bool = False) -> Joined:
        return await self.trackers.join(digest, peer, complete=complete, deadline=soon())

    async def peers(self, digest: Digest, host: str) -> dict[str, Any]:
        url = f"http://{host}/blobs/{digest}/peers"
        answer = await self.http.call("GET", url, deadline=soon())
        found: dict[str, Any] = json.loads(answer.body)
        return found

    def tracker_of(self, digest: Digest) -> int:
        """The number of the tracker that the digest belongs to."""
        return self.tracker_hosts.index(owners(digest, self.tracker_hosts, 1)[0])


@pytest.fixture
async def swarm(cluster: RunningCluster, tmp_path: Path) -> AsyncIterator[Swarm]:
    http = HttpClient(user_agent="test")
    yield Swarm(cluster, http, tmp_path)
    await http.close()


def soon() -> Deadline:
    return Deadline.after(20.0)


def agent(host: str = "127.0.0.1", port: int | None = None) -> PeerInfo:
    return PeerInfo(new_peer_id(), host, port or next(_ports))


def agents_of(joined: Joined) -> list[PeerInfo]:
    return [peer for peer in joined.peers if not peer.origin]


async def until(joining: Callable[[], Any], wanted: Callable[[Joined], bool]) -> Joined:
    """Join again and again until the answer is as wanted; for what the tracker finds out itself."""
    async with asyncio.timeout(20.0):
        while True:
            joined: Joined = await joining()
            if wanted(joined):
                return joined
            await asyncio.sleep(0.2)


async def test_a_join_gives_the_metainfo_and_the_origins(swarm: Swarm) -> None:
    content, joined = await swarm.on_all_origins(agent(), 600_000)
    assert joined.metainfo == metainfo_of(content)
    assert joined.interval_s == 30.0


async def test_those_who_join_learn_of_each_other_until_they_leave(swarm: Swarm) -> None:
    digest = await swarm.blob()
    first, second, third = agent(), agent(), agent()
    assert agents_of(await swarm.join(digest, first)) == []
    assert agents_of(await swarm.join(digest, second, complete=True)) == []
    assert set(agents_of(await swarm.join(digest, third))) == {first, second}
    await swarm.trackers.leave(second.id, [digest], deadline=soon())
    assert agents_of(await swarm.join(digest, third)) == [first]
    await swarm.trackers.leave(first.id, deadline=soon())
    assert agents_of(await swarm.join(digest, third)) == []


async def test_one_announce_covers_blobs_of_all_trackers(swarm: Swarm) -> None:
    digests: list[Digest] = []
    while {swarm.tracker_of(digest) for digest in digests} != {0, 1}:
        digests.append(await swarm.blob())
    seeder, leecher = agent(), agent()
    await swarm.trackers.announce(
        seeder, [AnnouncedBlob(str(digest), complete=True) for digest in digests], deadline=soon()
    )
    answer = await swarm.trackers.announce(
        leecher,
        [AnnouncedBlob(str(d), complete=number == 0) for number, d in enumerate(digests)],
        deadline=soon(),
    )
    assert answer.interval_s == 30.0
    assert set(answer.peers) == {str(digest) for digest in digests[1:]}
    assert all(seeder in peers for peers in answer.peers.values())


async def test_two_hundred_joins_at_once_all_get_an_answer(swarm: Swarm) -> None:
    digest = await swarm.blob()
    joined = await asyncio.gather(*(swarm.join(digest, agent()) for _ in range(200)))
    assert all(len(answer.peers) <= 10 for answer in joined)
    assert all(any(peer.origin for peer in answer.peers) for answer in joined)
    assert max(len(agents_of(answer)) for answer in joined) == 9


async def test_a_blob_is_unknown_until_it_is_pushed_and_known_from_then_on(swarm: Swarm) -> None:
    content = secrets.token_bytes(100)
    digest = Digest.of(content)
    with pytest.raises(BlobUnknown, match=str(digest)):
        await swarm.join(digest, agent())
    await swarm.store(content)
    assert (await swarm.join(digest, agent())).metainfo.size == 100


async def test_a_metainfo_is_had_without_joining(swarm: Swarm) -> None:
    digest = await swarm.blob()
    assert (await swarm.trackers.metainfo(digest, deadline=soon())).digest == str(digest)
    assert agents_of(await swarm.join(digest, agent())) == []
    with pytest.raises(BlobUnknown):
        await swarm.trackers.metainfo(Digest.of(b"nowhere"), deadline=soon())


async def test_an_empty_blob_is_joined(swarm: Swarm) -> None:
    joined = await swarm.join(await swarm.store(b""), agent())
    assert (joined.metainfo.size, joined.metainfo.count) == (0, 0)


PEER = {"id": "0" * 32, "host": "127.0.0.1", "port": 5012}
DIGEST = f"sha256:{'0' * 64}"


@pytest.mark.parametrize(
    "path, body, status, code",
    [
        ("/join", b"", 400, "BAD_REQUEST"),
        ("/join", b"[]", 400, "BAD_REQUEST"),
        ("/join", {"digest": DIGEST}, 400, "BAD_REQUEST"),
        ("/join", {"digest": "sha256:1", "peer": PEER}, 400, "DIGEST_INVALID"),
        ("/join", {"digest": DIGEST, "peer": {**PEER, "id": "me"}}, 400, "BAD_REQUEST"),
        ("/join", {"digest": DIGEST, "peer": {**PEER, "port": 0}}, 400, "BAD_REQUEST"),
        ("/join", {"digest": DIGEST, "peer": {**PEER, "port": 65536}}, 400, "BAD_REQUEST"),
        ("/join", {"digest": DIGEST, "peer": {**PEER, "host": "a b"}}, 400, "BAD_REQUEST"),
        ("/join", {"digest": DIGEST, "peer": {**PEER, "host": "0.0.0.0"}}, 400, "BAD_REQUEST"),
        ("/join", {"digest": DIGEST, "peer": {**PEER, "host": "1.2.3.400"}}, 400, "BAD_REQUEST"),
        ("/join", {"digest": DIGEST, "peer": {**PEER, "host": ""}}, 400, "BAD_REQUEST"),
        ("/join", {"digest": DIGEST, "peer": PEER}, 404, "BLOB_UNKNOWN"),
        ("/announce", {"peer": PEER, "blobs": [{"digest": "x"}]}, 400, "DIGEST_INVALID"),
        ("/announce", {"peer": {**PEER, "host": "::"}, "blobs": []}, 400, "BAD_REQUEST"),
        ("/leave", {"peer_id": "x"}, 400, "BAD_REQUEST"),
        ("/leave", {"peer_id": "0" * 32, "digests": ["*"]}, 400, "DIGEST_INVALID"),
        ("/elsewhere", {}, 404, "NOT_FOUND"),
    ],
)
async def test_bad_requests_get_error_bodies(
    swarm: Swarm, path: str, body: bytes | dict[str, Any], status: int, code: str
) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(CallFailed) as caught:
        await swarm.http.call(
            "POST", f"http://{swarm.tracker_hosts[0]}{path}", data=data, deadline=soon()
        )
    assert (caught.value.status, caught.value.code) == (status, code)


async def test_people_can_look_at_a_swarm(swarm: Swarm) -> None:
    leecher, seeder = agent(), agent()
    content, _ = await swarm.on_all_origins(leecher)
    digest = Digest.of(content)
    await swarm.join(digest, seeder, complete=True)
    found = await swarm.peers(digest, swarm.tracker_hosts[swarm.tracker_of(digest)])
    assert [peer["id"] for peer in found["leechers"]] == [leecher.id]
    assert [peer["id"] for peer in found["seeds"]] == [seeder.id]
    assert len(found["origins"]) == 3
    with pytest.raises(CallFailed) as caught:
        await swarm.http.call(
            "GET", f"http://{swarm.tracker_hosts[0]}/blobs/md5:1/peers", deadline=soon()
        )
    assert caught.value.code == "DIGEST_INVALID"


async def test_the_metrics_count_swarms_and_peers(swarm: Swarm) -> None:
    digest = await swarm.blob()
    await swarm.join(digest, agent())
    host = swarm.tracker_hosts[swarm.tracker_of(digest)]
    answer = await swarm.http.call("GET", f"http://{host}/metrics", deadline=soon())
    metrics = dict(
        line.split(" ", 1) for line in answer.body.decode().splitlines() if line[0] != "#"
    )
    assert float(metrics["shoal_tracker_peers"]) >= 1
    assert float(metrics["shoal_tracker_swarms"]) >= 1
    assert float(metrics["shoal_tracker_metainfo_bytes"]) > 100


async def test_a_dead_tracker_is_replaced_by_the_next_and_filled_by_announces(
    cluster: RunningCluster, swarm: Swarm
) -> None:
    digest = await swarm.blob()
    first, second = agent(), agent()
    await swarm.join(digest, first)
    name = f"tracker-{swarm.tracker_of(digest)}"
    await asyncio.to_thread(cluster.kill, name)
    assert agents_of(await swarm.join(digest, second)) == []
    answer = await swarm.trackers.announce(first, [AnnouncedBlob(str(digest))], deadline=soon())
    assert second in answer.peers[str(digest)]
    await asyncio.to_thread(cluster.restart, name)
    fresh = TrackerClient(swarm.http, HostsConfig(hosts=swarm.tracker_hosts))
    answer = await fresh.announce(first, [AnnouncedBlob(str(digest))], deadline=soon())
    assert agents_of(await fresh.join(digest, second, deadline=soon())) == [first]


async def test_an_origin_that_died_is_not_handed_out_and_one_that_is_back_is(
    cluster: RunningCluster, swarm: Swarm
) -> None:
    me = agent()
    content, joined = await swarm.on_all_origins(me)
    digest = Digest.of(content)
    before = set(joined.peers)

    def origin_count(count: int) -> Callable[[Joined], bool]:
        return lambda joined: sum(peer.origin for peer in joined.peers) == count

    await asyncio.to_thread(cluster.kill, "origin-0")
    joined = await until(lambda: swarm.join(digest, me), origin_count(2))
    assert set(joined.peers) < before
    await asyncio.to_thread(cluster.restart, "origin-0")
    joined = await until(lambda: swarm.join(digest, me), origin_count(3))
    assert {(peer.host, peer.port) for peer in joined.peers} == {
        (peer.host, peer.port) for peer in before
    }


async def test_without_origins_what_is_known_is_served_and_the_rest_is_unavailable(
    cluster: RunningCluster, swarm: Swarm
) -> None:
    known = await swarm.blob()
    first = agent()
    await swarm.join(known, first)
    for number in range(3):
        await asyncio.to_thread(cluster.kill, f"origin-{number}")
    assert first in (await swarm.join(known, agent())).peers
    with pytest.raises(Overloaded) as caught:
        await swarm.join(Digest.of(b"not known"), agent())
    assert (caught.value.status, caught.value.code) == (503, "UNAVAILABLE")
    assert not isinstance(caught.value, NotFound)

    async def missing() -> str:
        while True:
            try:
                url = f"http://{swarm.tracker_hosts[0]}/readiness"
                await swarm.http.call("GET", url, deadline=soon())
            except Overloaded as error:
                return " ".join(error.body["missing"])
            await asyncio.sleep(0.1)

    named = await asyncio.wait_for(missing(), 20.0)
    assert all(f"origin {host}" in named for host in swarm.origin_hosts)
