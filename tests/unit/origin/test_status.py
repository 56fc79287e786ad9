# SPDX-License-Identifier: Apache-2.0
"""The status says that all is there only when that is known."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import msgspec
from aiohttp import web
from aiohttp.test_utils import TestServer

from shoal.cli.origin_status import STATUS, ask_all, document, is_whole, lines
from shoal.model.digest import Digest
from shoal.origin import repair
from shoal.origin.bandwidth import Bandwidth
from shoal.origin.config import RepairConfig
from shoal.origin.repair import BATCH, Repairer
from shoal.origin.retention import Copy
from shoal.origin.status import OriginStatus, StatusReport
from shoal.origin.upkeep_metrics import LACKING
from shoal.web.failures import Unreachable

A, B = HOSTS = ["a:1", "b:1"]
COUNT = 2 * BATCH + BATCH // 2


class Copies:
    """The disk of ``a:1``."""

    def __init__(self) -> None:
        digests = (Digest.of(b"%d" % number) for number in range(COUNT))
        self.digests = sorted(digests, key=str)

    def copies(self) -> Iterator[Copy]:
        now = time.time()
        return (Copy(digest, 10, now) for digest in self.digests)

    def count(self) -> int:
        return len(self.digests)


class Peers:
    """``b:1``, which has lost all it had, and is watched at each question and each copy."""

    replicas = 2

    def __init__(self) -> None:
        self.has: set[Digest] = set()
        self.silent = False
        self.watched: list[Callable[[], None]] = []

    def rings(self, digests: Iterable[Digest]) -> dict[Digest, list[str]]:
        return {digest: list(HOSTS) for digest in digests}

    async def sizes(self, host: str, digests: Sequence[Digest]) -> dict[Digest, int]:
        if self.silent:
            raise Unreachable("POST", host, "refused")
        for look in self.watched:
            look()
        return {digest: 10 for digest in digests if digest in self.has}

    async def send(self, host: str, copy: Copy) -> bool:
        self.has.add(copy.digest)
        if len(self.has) % 100 == 0:
            for look in self.watched:
                look()
        return True


class Nothing:
    """Neither refetches nor scrubs."""

    lacking: frozenset[Digest] = frozenset()
    lost: frozenset[Digest] = frozenset()
    enabled = False
    position = last = None
    total = 0

    def measured(self) -> float:
        return 0.0


class Host:
    """``a:1``, the first holder of all blobs."""

    def __init__(self) -> None:
        self.peers = Peers()
        self.repairer = Repairer(
            A,
            cast("Any", Copies()),
            cast("Any", self.peers),
            RepairConfig(),
            forget=lambda _: None,
            pinned=lambda _: False,
            wanted=None,
            young=0.0,
        )
        nothing = cast("Any", Nothing())
        self.report = StatusReport(
            A,
            lambda: HOSTS,
            repairer=self.repairer,
            refetcher=nothing,
            scrubber=nothing,
            bandwidth=Bandwidth(0),
            volumes=[],
            pending=lambda: 0,
        )

    async def status(self) -> OriginStatus:
        return await self.report.status()


async def test_what_no_look_has_seen_is_not_said_to_be_there() -> None:
    host = Host()
    said = await host.status()
    assert not is_whole(said)
    assert "since it was started" in "\n".join(lines({A: said}))
    assert "at least 0 copies missing" in "\n".join(lines({A: said}))
    await host.repairer.look_now()
    said = await host.status()
    assert is_whole(said)
    assert "; 0 copies missing" in "\n".join(lines({A: said}))
    assert '"unsure":0' in document({A: said})


async def test_while_a_pass_sends_what_is_missing_nobody_is_told_that_all_is_there() -> None:
    host = Host()
    await host.repairer.look_now()
    host.peers.has.clear()  # and nobody was told: the next pass at the interval finds it
    seen: list[tuple[int, bool, int, float]] = []

    def look() -> None:
        missing = sum(host.repairer.missing().values())
        unsure = bool(host.repairer.unsure())
        seen.append((len(host.peers.has), unsure, missing, LACKING._value.get()))

    host.peers.watched.append(look)
    done = await host.repairer.look_now()
    assert done.sent == COUNT
    found = seen[1:]  # at the first question nothing had happened that anybody could know of
    assert len(found) >= COUNT // 100
    for has, unsure, missing, gauge in found:
        assert unsure, f"sure with {COUNT - has} copies missing"
        assert missing <= COUNT - has + 1
        assert gauge == missing
    assert max(missing for _, _, missing, _ in found) >= BATCH - 100
    assert is_whole(await host.status())
    assert LACKING._value.get() == 0


async def test_what_a_pass_could_not_make_up_for_is_missing_until_another_has() -> None:
    host = Host()
    await host.repairer.look_now()
    host.peers.silent = True
    await host.repairer.look_now()
    assert not is_whole(await host.status())
    host.peers.silent = False
    said: list[bool] = []
    host.peers.watched.append(lambda: said.append(bool(host.repairer.unsure())))
    await host.repairer.look_now(frozenset())
    assert host.repairer.unsure()
    await host.repairer.look_now()
    assert said
    assert all(said)
    assert is_whole(await host.status())


@asynccontextmanager
async def at_work(host: Host) -> AsyncIterator[None]:
    running = asyncio.create_task(host.repairer.run())
    try:
        yield
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 -- the repairer's threads make it true
            await asyncio.sleep(0.005)


async def test_what_happens_to_members_is_in_doubt_until_a_pass_has_told() -> None:
    host = Host()
    async with at_work(host):
        await until(lambda: not host.repairer.unsure())
        host.repairer.look({B}, why="b was away")
        assert not is_whole(await host.status())
        await until(lambda: not host.repairer.unsure())
        host.repairer.ring_changed()
        assert "members have joined or left" in host.repairer.unsure()
        await until(lambda: not host.repairer.unsure())


async def test_copies_that_others_made_here_are_counted_soon(monkeypatch: Any) -> None:
    monkeypatch.setattr(repair, "SETTLED", 0.02)
    host = Host()
    copies = cast("Copies", host.repairer._copies)
    digests, copies.digests = copies.digests, []
    async with at_work(host):
        await until(lambda: not host.repairer.unsure())
        assert (await host.status()).owned == 0
        copies.digests = digests
        host.peers.has.update(digests)
        for _ in digests:
            host.repairer.arrived()
        last = host.repairer.last
        await until(lambda: host.repairer.last is not last)
        assert (await host.status()).owned == COUNT
        assert is_whole(await host.status())


async def test_a_member_that_is_told_of_a_loss_between_two_answers_is_asked_again() -> None:
    """As `a:1` answers just before it is told, and the one that lost its disk just after."""
    host = Host()
    await host.repairer.look_now()

    async def before_it_is_told(_: web.Request) -> web.Response:
        said = msgspec.json.encode(await host.status())
        host.repairer.look({B}, why=f"{B} lost a disk")
        return web.Response(body=said, content_type="application/json")

    app = web.Application()
    app.router.add_get(STATUS, before_it_is_told)
    async with TestServer(app) as server:
        answers = await ask_all([f"{server.host}:{server.port}"])
    assert not any(map(is_whole, answers.values()))
