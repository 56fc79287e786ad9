# SPDX-License-Identifier: Apache-2.0
"""A peer that falls silent in the middle of a download: nothing is reset, and nothing comes."""

from __future__ import annotations

import asyncio
import io
import os
import signal
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import pytest

from shoal.model.digest import Digest
from shoal.swarm.peers import PeerInfo
from shoal.swarm.pieces import PieceFile
from shoal.swarm.view import swarm_view
from tests.cluster import RunningCluster
from tests.integration.swarm_hosts import PATIENCE, Host, Stage, pieces, until

RATE = 12_000_000
"""Bytes/s at most that who fetches receives: what it takes without silence is known."""

BEARABLE = 4.0
"""Seconds that a silent peer may cost: one or two, and more on a machine that is busy."""


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncGenerator[Stage]:
    async with Stage(tmp_path) as it:
        yield it


class Line:
    """The only way to a host. Once held, it stays up and carries nothing any more."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._pumps: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.peer = host.peer

    @classmethod
    @asynccontextmanager
    async def to(cls, host: Host) -> AsyncIterator[Line]:
        line = cls(host)
        server = await asyncio.start_server(line._accept, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        line.peer = PeerInfo(host.peer.id, "127.0.0.1", port, origin=host.peer.origin)
        try:
            yield line
        finally:
            server.close()
            for pump in line._pumps:
                pump.cancel()
            await asyncio.gather(*line._pumps, return_exceptions=True)
            for writer in line._writers:
                writer.close()
                with suppress(OSError):
                    await writer.wait_closed()

    def hold(self) -> None:
        self._flowing.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, onward = await asyncio.open_connection(self._host.peer.host, self._host.peer.port)
        self._writers |= {writer, onward}
        for source, sink in ((reader, onward), (there, writer)):
            self._pumps.add(asyncio.create_task(self._pump(source, sink)))

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(64 * 1024):
                await self._flowing.wait()
                sink.write(data)
                await sink.drain()


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("origin", [True, False], ids=["origins", "agents"])
async def test_a_seeder_that_falls_silent_costs_a_second_or_two(
    stage: Stage, origin: bool, share: float
) -> None:
    content = pieces(80, piece_size=256 * 1024)
    seeds = [
        await stage.seed(content, origin=(rank, 3) if origin else None)
        for rank in range(3 if origin else 2)
    ]
    leecher = await stage.host(ingress=RATE)
    loop = asyncio.get_running_loop()
    async with Line.to(seeds[0]) as line:
        blob = leecher.leech(content, [])
        reading = asyncio.create_task(read(blob.pieces))
        began = loop.time()
        blob.add_peers([line.peer, *(seed.peer for seed in seeds[1:])])
        await until(lambda: blob.pieces.verified.bit_count() >= share * content.count)
        await until(lambda: leecher.received_from(seeds[0]))
        line.hold()
        await leecher.whole(content)
        took = loop.time() - began
        longest = await reading
    assert took - content.metainfo.size / RATE < BEARABLE
    assert longest < BEARABLE


async def test_an_agent_whose_process_is_stopped_costs_a_second_or_two(tmp_path: Path) -> None:
    size = 2 * RATE
    config = {"agent-2": {"peer": {"ingress": f"{RATE}B/s"}}}
    timeout = aiohttp.ClientTimeout(total=60)
    with RunningCluster.start(tmp_path, agents=3, config=config) as cluster:
        async with aiohttp.ClientSession(timeout=timeout) as http:
            data = os.urandom(size)
            digest = Digest.of(data)
            where = f"namespace/team%2Fblobs/blobs/{digest}"
            async with http.put(f"{cluster.origins[0]}/{where}", data=io.BytesIO(data)) as answer:
                assert answer.status == 201, await answer.text()
            for agent in cluster.agents[:2]:
                async with http.get(f"{agent.admin}/{where}") as answer:
                    assert await answer.read() == data
            await seeded(http, cluster, digest, 2)
            victim = cluster.pids["agent-0"]
            clock = asyncio.get_running_loop().time
            body, began = bytearray(), clock()
            try:
                async with http.get(f"{cluster.agents[2].admin}/{where}") as answer:
                    async for chunk in answer.content.iter_any():
                        body += chunk
                        if len(body) >= size // 2 and victim:
                            assert await received(http, cluster, 0) > 0
                            os.kill(victim, signal.SIGSTOP)
                            victim = 0
                took = clock() - began
            finally:
                os.kill(cluster.pids["agent-0"], signal.SIGCONT)
    assert body == data
    assert took - size / RATE < BEARABLE


async def seeded(
    http: aiohttp.ClientSession, cluster: RunningCluster, digest: Digest, seeds: int
) -> None:
    """Wait until the tracker knows of so many agents that have the blob."""
    async with asyncio.timeout(PATIENCE):
        while True:
            async with http.get(f"{cluster.trackers[0]}/blobs/{digest}/peers") as answer:
                if len((await answer.json())["seeds"]) == seeds:
                    return


async def received(http: aiohttp.ClientSession, cluster: RunningCluster, agent: int) -> int:
    """Bytes that the last agent has received from this one."""
    async with http.get(f"{cluster.agents[agent].admin}/swarm") as answer:
        giver = (await answer.json())["peer"]["id"]
    async with http.get(f"{cluster.agents[-1].admin}/swarm") as answer:
        links = (await answer.json())["links"]
    return sum(link["received"] for link in links if link["id"] == giver)


async def test_a_peer_that_sends_nothing_of_what_is_due_is_shown_as_slow(stage: Stage) -> None:
    content = pieces(120, piece_size=256 * 1024)
    giving, silent = await stage.seed(content), await stage.seed(content)
    leecher = await stage.host(ingress=RATE)

    def shown(host: Host) -> tuple[bool, bool]:
        """Whether a peer is slow, and whether pieces are due from it."""
        [link] = [it for it in swarm_view(leecher.node)["links"] if it["id"] == host.peer.id]
        return link["slow"], link["bytes_asked_for"] > 0

    async with Line.to(silent) as line:
        leecher.leech(content, []).add_peers([line.peer, giving.peer])
        await until(lambda: all(map(leecher.received_from, (giving, silent))))
        assert [shown(giving)[0], shown(silent)[0]] == [False, False]
        line.hold()
        await until(lambda: shown(silent) == (True, True))
        await until(lambda: shown(silent) == (True, False))
        assert shown(giving)[0] is False
        await leecher.whole(content)


async def test_all_that_is_shown_is_described(stage: Stage) -> None:
    content = pieces(9)
    seed, leecher = await stage.seed(content), await stage.host()
    await leecher.fetch(content, [seed])
    view = swarm_view(leecher.node)
    page = (Path(__file__).parents[2] / "docs" / "operations" / "slow-pulls.md").read_text()
    table = page.partition("`GET /swarm`")[2]
    for key in [*view, *view["limits"], *view["peer"], *view["links"][0], *view["blobs"][0]]:
        assert f"`{key}`" in table or f"[].{key}`" in table, key


async def read(pieces: PieceFile) -> float:
    """Read all of a blob as a client does; the longest time in seconds without a byte."""
    clock = asyncio.get_running_loop().time
    size, longest, last = pieces.metainfo.size, 0.0, clock()
    pieces.readers.set("client", 0, size)
    async for _, end in pieces.readable(0, size):
        longest, last = max(longest, clock() - last), clock()
        pieces.readers.set("client", end, size)
    pieces.readers.remove("client")
    return longest
