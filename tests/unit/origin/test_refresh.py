# SPDX-License-Identifier: Apache-2.0
"""Blobs that only a backend has: fetched once, verified, and never a "not there" by mistake."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from shoal.model.digest import Digest
from shoal.model.errors import BlobUnknown, InsufficientStorage, StillFetching, TooLarge
from shoal.origin.backends import BlobBackends
from shoal.origin.config import RefreshConfig
from shoal.origin.growing import Growing
from shoal.origin.local import LocalBlobs
from shoal.origin.receiving import Received, Receiver
from shoal.origin.refresh import Refresh
from shoal.store.blobs import BlobStore
from shoal.swarm.metainfo import Metainfo, metainfo_of
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, NotFound, Overloaded, Rejected, Unreachable
from tests.unit.origin.counting_backend import REPOSITORY, STORAGE, Backends, CountingBackend

A, B, C = HOSTS = ["a:1", "b:1", "c:1"]
DATA = os.urandom(200_000)
DIGEST = Digest.of(DATA)


@dataclass
class Ring:
    """The other origins, and what they answer when they are to fetch."""

    order: list[str] = field(default_factory=lambda: list(HOSTS))
    answers: dict[str, int | CallFailed] = field(default_factory=dict)
    unhealthy: set[str] = field(default_factory=set)
    led: list[str] = field(default_factory=list)
    copied: list[tuple[Digest, tuple[str, ...]]] = field(default_factory=list)

    def owners(self, digest: Digest) -> list[str]:
        return self.order

    def healthy(self, host: str) -> bool:
        return host not in self.unhealthy

    async def refresh_at(
        self, host: str, digest: Digest, namespace: str, *, deadline: Deadline, begun: bool
    ) -> int:
        assert namespace == REPOSITORY
        self.led.append(host)
        answer = self.answers[host]
        if isinstance(answer, CallFailed):
            raise answer
        return answer

    async def stat_backend_at(
        self, host: str, digest: Digest, namespace: str, *, deadline: Deadline
    ) -> int:
        return await self.refresh_at(host, digest, namespace, deadline=deadline, begun=False)

    async def spread(self, digest: Digest, hosts: Sequence[str], deadline: Deadline) -> None:
        self.copied.append((digest, tuple(hosts)))


@dataclass
class Peers:
    """What peers are shown of a blob that grows."""

    metainfos: list[Metainfo] = field(default_factory=list)
    whole: bool = False

    def arrived(self, metainfo: Metainfo) -> None:
        self.metainfos.append(metainfo)

    def settled(self) -> None:
        self.whole = True


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


class Origin:
    """The refresh of ``a:1``."""

    def __init__(self, folder: Path, backend: CountingBackend, ring: Ring, max_blob: int) -> None:
        self.backend = backend
        self.ring = ring
        self.clock = Clock()
        self.folder = folder
        self.full = False
        self.peers = Peers()
        self.unshown: list[Digest] = []
        store = BlobStore(folder)
        self.local = LocalBlobs(store)
        self.refresh = Refresh(
            A,
            self.local,
            Receiver(store, idle_timeout=2.0, max_blob=max_blob),
            ring,
            BlobBackends(Backends(backend), ["team/.*"]),
            config=RefreshConfig(),
            keep=self.keep,
            spread=ring.spread,
            show=self.show,
            unshow=self.unshown.append,
            clock=self.clock,
        )

    async def show(self, growing: Growing) -> Peers:
        self.peers.metainfos.append(growing.metainfo)
        return self.peers

    async def keep(self, received: Received, repository: str) -> None:
        if self.full:
            raise InsufficientStorage("no room on this origin's disk")
        self.local.keep(received.file, received.metainfo, backed=[f"bucket|{repository}"])

    async def bring(self, repository: str = REPOSITORY, seconds: float = 20) -> int:
        return await self.refresh.bring(DIGEST, repository, Deadline.after(seconds))

    def leftovers(self) -> list[str]:
        return os.listdir(self.folder / "incoming")


@asynccontextmanager
async def an_origin(
    folder: Path,
    backend: CountingBackend | None = None,
    ring: Ring | None = None,
    max_blob: int = 0,
) -> AsyncIterator[Origin]:
    backend = backend or CountingBackend({DIGEST: DATA})
    origin = Origin(folder, backend, ring or Ring(), max_blob)
    try:
        yield origin
    finally:
        await origin.refresh.close()


async def test_a_hundred_that_want_a_blob_make_one_transfer(tmp_path: Path) -> None:
    gate = asyncio.Event()
    async with an_origin(tmp_path, CountingBackend({DIGEST: DATA}, gate=gate)) as origin:
        asking = [asyncio.create_task(origin.bring()) for _ in range(100)]
        # Another repository whose blobs are in the same place waits for the same transfer.
        asking.append(asyncio.create_task(origin.bring("team/other")))
        while not origin.backend.gets:  # noqa: ASYNC110
            await asyncio.sleep(0)
        gate.set()
        assert set(await asyncio.gather(*asking)) == {len(DATA)}
        assert origin.backend.gets == 1
        whole = origin.local.find(DIGEST)
        assert whole is not None
        assert whole.metainfo == metainfo_of(DATA)
        assert origin.local.backing.entries(DIGEST) == {f"bucket|{REPOSITORY}"}
        assert origin.leftovers() == []
        async with asyncio.timeout(5):
            while not origin.ring.copied:  # noqa: ASYNC110
                await asyncio.sleep(0)
        assert origin.ring.copied == [(DIGEST, (B, C))]
        assert await origin.bring() == len(DATA)
        assert origin.backend.gets == 1


async def test_what_arrives_can_be_had_before_it_is_whole(tmp_path: Path) -> None:
    data = os.urandom(6_000_000)
    digest, metainfo = Digest.of(data), metainfo_of(data)
    pause = asyncio.Event()
    async with an_origin(tmp_path, CountingBackend({digest: data}, pause=pause)) as origin:
        deadline = Deadline.after(20)
        size = await origin.refresh.bring(digest, REPOSITORY, deadline, begun=True)
        assert size == len(data)
        growing = origin.refresh.growing(digest)
        assert growing is not None
        async with asyncio.timeout(10):
            half = await growing.beyond(0)
        assert 8 <= half.known < metainfo.count
        assert metainfo.grown_from(half)
        content = growing.file.read_bytes()
        assert half.span(half.known - 1)[1] <= len(content) < len(data)
        assert data.startswith(content)
        assert origin.peers.metainfos[-1].known == half.known
        waiting = asyncio.create_task(growing.beyond(half.known))
        pause.set()
        assert await origin.refresh.bring(digest, REPOSITORY, deadline) == len(data)
        last = await waiting
        while not last.whole:
            last = await growing.beyond(last.known)
        assert last == metainfo
        assert origin.peers.metainfos[-1] == metainfo
        assert origin.peers.whole
        assert origin.refresh.growing(digest) is None
        assert not origin.unshown
        assert origin.backend.gets == 1


async def test_what_turns_out_to_be_damaged_is_taken_away_from_peers(tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    digest = Digest.of(b"something else")
    async with an_origin(tmp_path, CountingBackend({digest: data})) as origin:
        with pytest.raises(Rejected, match="damaged"):
            await origin.refresh.bring(digest, REPOSITORY, Deadline.after(20))
        assert origin.unshown == [digest]
        assert not origin.peers.whole
        assert not origin.leftovers()


async def test_who_runs_out_of_time_is_told_to_come_back_while_it_goes_on(tmp_path: Path) -> None:
    gate = asyncio.Event()
    async with an_origin(tmp_path, CountingBackend({DIGEST: DATA}, gate=gate)) as origin:
        with pytest.raises(StillFetching) as told:
            await origin.bring(seconds=0.05)
        assert told.value.headers["Retry-After"] == "1"
        gate.set()
        assert await origin.bring() == len(DATA)
        assert origin.backend.gets == 1


async def test_not_there_is_remembered_for_a_short_time(tmp_path: Path) -> None:
    async with an_origin(tmp_path, CountingBackend()) as origin:
        for _ in range(5):
            with pytest.raises(BlobUnknown, match=STORAGE):
                await origin.bring()
            with pytest.raises(BlobUnknown):
                await origin.refresh.stat(DIGEST, REPOSITORY, Deadline.after(5))
        assert (origin.backend.gets, origin.backend.stats) == (1, 0)
        origin.backend.blobs[DIGEST] = DATA
        origin.clock.now = 10.0
        assert await origin.refresh.stat(DIGEST, REPOSITORY, Deadline.after(5)) == len(DATA)
        assert origin.backend.gets == 1
        assert await origin.bring() == len(DATA)


async def test_a_repository_without_a_backend_has_nothing_there(tmp_path: Path) -> None:
    async with an_origin(tmp_path) as origin:
        with pytest.raises(BlobUnknown, match="other/app has no backend"):
            await origin.bring("other/app")
        assert origin.backend.gets == 0
        # One that another repository's backend has is fetched for that repository alone.
        assert await origin.bring("docker.io/library/alpine") == len(DATA)


async def test_could_not_ask_is_not_not_there(tmp_path: Path) -> None:
    async with an_origin(tmp_path, CountingBackend(failure="down")) as origin:
        for _ in range(2):
            with pytest.raises(Unreachable, match="down"):
                await origin.bring()
        with pytest.raises(Unreachable, match="down"):
            await origin.refresh.stat(DIGEST, REPOSITORY, Deadline.after(5))
        assert origin.backend.gets == 2
        origin.backend.failure = None
        origin.backend.blobs[DIGEST] = DATA
        assert await origin.bring() == len(DATA)


async def test_what_breaks_off_is_not_kept(tmp_path: Path) -> None:
    async with an_origin(tmp_path, CountingBackend({DIGEST: DATA}, cut=100_000)) as origin:
        with pytest.raises(Unreachable, match="ended after"):
            await origin.bring()
        assert origin.local.find(DIGEST) is None
        assert origin.leftovers() == []


@pytest.mark.parametrize("data", [DATA[:-1], DATA[:-1] + b"?", b""], ids=["short", "other", "none"])
async def test_wrong_content_is_not_kept_and_names_the_storage(tmp_path: Path, data: bytes) -> None:
    async with an_origin(tmp_path, CountingBackend({DIGEST: data})) as origin:
        for _ in range(3):
            with pytest.raises(Rejected, match=rf"{DIGEST}.*damaged") as told:
                await origin.bring()
            assert told.value.url == STORAGE
        assert origin.backend.gets == 1
        assert origin.local.find(DIGEST) is None
        assert origin.leftovers() == []


async def test_a_full_disk_is_said_to_be_full(tmp_path: Path) -> None:
    async with an_origin(tmp_path) as origin:
        origin.full = True
        with pytest.raises(InsufficientStorage):
            await origin.bring()
        assert origin.leftovers() == []
        origin.full = False
        assert await origin.bring() == len(DATA)


async def test_a_blob_that_is_too_large_for_origins_is_not_called_damaged(tmp_path: Path) -> None:
    async with an_origin(tmp_path, max_blob=1000) as origin:
        with pytest.raises(TooLarge):
            await origin.bring()


async def test_the_first_owner_that_can_be_reached_fetches(tmp_path: Path) -> None:
    ring = Ring([B, C, A], {B: Unreachable("POST", B, "refused"), C: 7})
    async with an_origin(tmp_path, ring=ring) as origin:
        assert await origin.bring() == 7
        assert ring.led == [B, C]
        assert origin.backend.gets == 0
        # One that has no room leaves it to the next; nobody asks the unhealthy.
        ring.answers[C] = Overloaded("POST", C, "full", status=507)
        ring.unhealthy.add(B)
        assert await origin.bring() == len(DATA)
        assert ring.led == [B, C, C]
        assert origin.backend.gets == 1


async def test_who_is_led_fetches_itself(tmp_path: Path) -> None:
    async with an_origin(tmp_path, ring=Ring([B, C, A])) as origin:
        size = await origin.refresh.bring(DIGEST, REPOSITORY, Deadline.after(20), led=True)
        assert size == len(DATA)
        assert origin.ring.led == []


async def test_the_leaders_answer_is_everybodys(tmp_path: Path) -> None:
    ring = Ring([B, C, A], {B: NotFound("POST", B, "not there")})
    async with an_origin(tmp_path, ring=ring) as origin:
        with pytest.raises(BlobUnknown):
            await origin.bring()
        body = {"errors": [{"code": "STILL_FETCHING", "message": "later"}]}
        ring.answers[B] = Overloaded("POST", B, "later", status=503, body=body)
        with pytest.raises(StillFetching):
            await origin.bring()
        ring.answers[B] = Overloaded("POST", B, "the backend is down", status=503)
        with pytest.raises(Overloaded):
            await origin.bring()
        assert origin.backend.gets == 0


async def test_no_more_transfers_run_at_once_than_are_allowed(tmp_path: Path) -> None:
    contents = [os.urandom(100) for _ in range(30)]
    gate = asyncio.Event()
    backend = CountingBackend({Digest.of(data): data for data in contents}, gate=gate)
    async with an_origin(tmp_path, backend) as origin:
        asking = [
            asyncio.create_task(origin.refresh.bring(digest, REPOSITORY, Deadline.after(20)))
            for digest in backend.blobs
        ]
        async with asyncio.timeout(10):
            while backend.gets < RefreshConfig().concurrency:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        await asyncio.sleep(0.02)
        assert backend.gets == RefreshConfig().concurrency
        gate.set()
        await asyncio.gather(*asking)
        assert backend.gets == 30
