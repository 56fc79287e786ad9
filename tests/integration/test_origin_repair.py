# SPDX-License-Identifier: Apache-2.0
"""Origins that lose disks, hosts and bits: every blob gets its copies back."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from shoal.cli.origin_status import ask_all, is_whole
from shoal.model.digest import Digest
from shoal.origin.client import OriginCluster
from shoal.origin.status import OriginStatus
from shoal.ring.rendezvous import owners
from shoal.web.client import HttpClient
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, NotFound
from tests.integration.origin_ring import Ring, running_ring, until

REPLICAS = 3
QUICK = {"interval": "2s", "takeover": "2s", "spare_grace": "1s", "disk_check": "500ms"}
PATIENCE = 40.0


@pytest.fixture
async def http() -> AsyncIterator[HttpClient]:
    client = HttpClient(user_agent="test")
    yield client
    await client.close()


def soon(seconds: float = 20) -> Deadline:
    return Deadline.after(seconds)


@dataclass
class Pushed:
    """Blobs that were acknowledged."""

    cluster: OriginCluster
    folder: Path
    blobs: dict[Digest, bytes]

    @classmethod
    async def some(
        cls, count: int, ring: Ring, http: HttpClient, folder: Path, *, size: int = 100_000
    ) -> Pushed:
        pushed = cls(OriginCluster(http, ring.config), folder, {})
        await pushed.more(count, size)
        return pushed

    async def more(self, count: int, size: int = 100_000) -> list[Digest]:
        new = []
        for _ in range(count):
            data = os.urandom(size)
            digest = Digest.of(data)
            path = self.folder / digest.hex
            path.write_bytes(data)
            await self.cluster.upload(digest, path, len(data), deadline=soon())
            self.blobs[digest] = data
            new.append(digest)
        return new


def own(ring: Ring, digest: Digest) -> set[str]:
    return set(owners(digest, ring.config.hosts, REPLICAS))


def complete(ring: Ring, digests: Iterable[Digest]) -> Callable[[], bool]:
    """Whether every owner of each blob has its file."""
    wanted = {digest: own(ring, digest) for digest in digests}
    return lambda: all(ring.holders(digest) >= hosts for digest, hosts in wanted.items())


def check_content(ring: Ring, pushed: Pushed) -> None:
    """What lies under a blob's name has its bytes."""
    for digest, data in pushed.blobs.items():
        for host in ring.holders(digest):
            assert ring.origin(host).path(digest).read_bytes() == data


@dataclass
class Load:
    """Clients that push and pull all the time; what they were told counts."""

    pushed: Pushed
    refused: int = 0
    """Pushes that were not acknowledged: nothing was promised."""
    reads: int = 0
    unanswered: int = 0
    """Reads for which nobody could be asked in time."""

    async def write(self) -> None:
        while True:
            try:
                await self.pushed.more(1)
            except CallFailed:
                self.refused += 1
            await asyncio.sleep(0.05)

    async def read(self) -> None:
        """Read what was acknowledged, whenever: it is never "not there", and has its bytes."""
        pushed = self.pushed
        while True:
            digest, data = random.choice([*pushed.blobs.items()])
            try:
                read = await pushed.cluster.read(digest, deadline=soon(), limit=len(data))
            except NotFound:
                raise
            except CallFailed:
                self.unanswered += 1
            else:
                assert read == data
                self.reads += 1
            await asyncio.sleep(0.02)


@asynccontextmanager
async def under_load(pushed: Pushed) -> AsyncIterator[Load]:
    """Two that push and two that pull, until the end; what one of them finds wrong is raised."""
    load = Load(pushed)
    async with asyncio.TaskGroup() as group:
        work = [group.create_task(step()) for step in (load.write, load.read) * 2]
        yield load
        for task in work:
            task.cancel()


async def test_under_load_every_blob_has_its_copies_again_after_each_origin_in_turn_lost_all_it_had(
    tmp_path: Path, http: HttpClient
) -> None:
    with running_ring(tmp_path / "ring", origins=4, replicas=REPLICAS, repair=QUICK) as ring:
        pushed = await Pushed.some(12, ring, http, tmp_path)
        async with under_load(pushed) as load:
            for origin in ring.origins:
                origin.kill()
                shutil.rmtree(origin.data)
                # Pushes and pulls go on meanwhile: another host takes the copies.
                enough = len(pushed.blobs) + 5, load.reads + 5
                await until(
                    lambda enough=enough: (
                        len(pushed.blobs) >= enough[0] and load.reads >= enough[1]
                    ),  # type: ignore[misc]
                    PATIENCE,
                )
                await asyncio.to_thread(ring.revive)
                # A loss at a time: all that was acknowledged by now has its copies again.
                await until(complete(ring, list(pushed.blobs)), PATIENCE)
        await until(complete(ring, pushed.blobs), PATIENCE)
        assert len(pushed.blobs) >= 12 + 4 * 5
        assert load.refused <= len(pushed.blobs) // 4
        assert load.unanswered <= load.reads // 4
        check_content(ring, pushed)
        # What was handed over is in excess then, and goes.
        await until(
            lambda: all(ring.holders(digest) == own(ring, digest) for digest in pushed.blobs),
            PATIENCE,
        )
        check_content(ring, pushed)
        command = [sys.executable, "-m", "shoal", "origin", "status"]
        command += ["--origins", ",".join(ring.config.hosts)]
        async with asyncio.timeout(PATIENCE):
            while not all(  # noqa: ASYNC110 -- another process makes it true
                map(is_whole, (await ask_all(ring.config.hosts)).values())
            ):
                await asyncio.sleep(0.2)
        said = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, timeout=30, check=False
        )
        assert said.returncode == 0, said.stdout + said.stderr
        assert "4 of 4 origins answer; 0 copies missing" in said.stdout


async def test_what_a_stopped_origin_missed_is_handed_over_when_it_goes_on(
    tmp_path: Path, http: HttpClient
) -> None:
    """It was not started anew, so that it calls for nothing itself."""
    health = {"interval": "200ms", "timeout": "500ms", "fails": 2, "passes": 2}
    repair = {**QUICK, "interval": "1h", "spare_grace": "500ms"}
    with running_ring(
        tmp_path / "ring", origins=4, replicas=REPLICAS, health=health, repair=repair
    ) as ring:
        pushed = await Pushed.some(4, ring, http, tmp_path)
        await until(complete(ring, pushed.blobs), PATIENCE)
        stopped = ring.origins[1]
        await pushed.cluster.start()
        try:
            stopped.freeze()
            await until(lambda: not pushed.cluster.healthy(stopped.host), PATIENCE)
            missed: list[Digest] = []
            while len(missed) < 6:
                [digest] = await pushed.more(1)
                missed += [digest] if stopped.host in own(ring, digest) else []
            # Somebody else took its copy of each.
            await until(
                lambda: all(len(ring.holders(digest)) == REPLICAS for digest in missed), PATIENCE
            )
            assert not any(stopped.path(digest).exists() for digest in missed)
            stopped.thaw()
            await until(complete(ring, pushed.blobs), PATIENCE)
        finally:
            await pushed.cluster.close()
        check_content(ring, pushed)

        async def look_again() -> None:
            for origin in ring.origins:
                url = origin.url("/internal/repair")
                await http.call("POST", url, deadline=soon(), expect=(202,))

        async with asyncio.timeout(PATIENCE):
            while any(ring.holders(digest) != own(ring, digest) for digest in pushed.blobs):
                await look_again()
                await asyncio.sleep(0.5)
        check_content(ring, pushed)


async def test_the_folder_of_the_blobs_is_made_anew_and_filled_when_it_is_lost_at_run_time(
    tmp_path: Path, http: HttpClient
) -> None:
    with running_ring(tmp_path / "ring", repair=QUICK) as ring:
        pushed = await Pushed.some(6, ring, http, tmp_path)
        await until(complete(ring, pushed.blobs), PATIENCE)
        # Not removed file by file: the origin writes there meanwhile.
        (ring.origins[1].data / "blobs").rename(tmp_path / "lost")
        await until(complete(ring, pushed.blobs), PATIENCE)
        check_content(ring, pushed)


async def test_repair_sends_no_faster_than_it_may(tmp_path: Path, http: HttpClient) -> None:
    """Bytes over a time that is measured: a machine that is slow makes it no less true."""
    rate, burst, size = 1_000_000, 1024 * 1024, 250_000
    slow = {**QUICK, "bandwidth": "1MB/s", "concurrency": 1}
    with running_ring(tmp_path / "ring", origins=2, replicas=2, repair=slow) as ring:
        pushed = await Pushed.some(28, ring, http, tmp_path, size=size)
        await until(complete(ring, pushed.blobs), PATIENCE)
        lost = ring.origins[1]
        lost.kill()
        shutil.rmtree(lost.data)
        await asyncio.to_thread(ring.revive)

        def copies() -> int:
            return sum(lost.path(digest).exists() for digest in pushed.blobs)

        clock = time.monotonic
        before = clock()
        while not (had := copies()):
            before = clock()
            await asyncio.sleep(0.02)
        await until(complete(ring, pushed.blobs), PATIENCE)
        took = clock() - before
        # The first of them may have been on its way before.
        sent = (len(pushed.blobs) - had - 1) * size
        assert had < len(pushed.blobs) // 2
        assert sent <= burst + rate * took
        check_content(ring, pushed)


async def test_a_scrub_finds_what_has_rotted_sets_it_aside_and_has_it_replaced(
    tmp_path: Path, http: HttpClient
) -> None:
    scrub = {"bandwidth": "500MB/s", "interval": "1s"}
    with running_ring(tmp_path / "ring", repair=QUICK, scrub=scrub) as ring:
        pushed = await Pushed.some(6, ring, http, tmp_path)
        await until(complete(ring, pushed.blobs), PATIENCE)
        digest, data = next(iter(pushed.blobs.items()))
        victim = ring.origins[0].path(digest)
        before = victim.stat()
        with victim.open("r+b") as file:
            file.seek(len(data) // 2)
            file.write(b"rot")
        os.utime(victim, ns=(before.st_atime_ns, before.st_mtime_ns))
        await until(lambda: victim.exists() and victim.read_bytes() == data, PATIENCE)
        assert "damaged" in ring.origins[0].log.read_text()
        # Nobody used the others meanwhile: a scrub does not make a copy look younger.
        check_content(ring, pushed)


async def test_the_status_never_says_that_all_is_there_while_a_wiped_origin_is_filled(
    tmp_path: Path, http: HttpClient
) -> None:
    slow = {**QUICK, "bandwidth": "1MB/s", "interval": "1h"}
    with running_ring(tmp_path / "ring", repair=slow) as ring:
        pushed = await Pushed.some(24, ring, http, tmp_path, size=250_000)
        filled = complete(ring, pushed.blobs)
        await until(filled, PATIENCE)
        wiped = ring.origins[0]
        wiped.kill()
        shutil.rmtree(wiped.data)
        await asyncio.to_thread(ring.revive)
        looks = 0
        async with asyncio.timeout(PATIENCE):
            while True:
                answers = await ask_all(ring.config.hosts)
                if filled():
                    break
                assert not all(map(is_whole, answers.values())), answers
                looks += 1
        assert looks, "it was filled before anybody could look"
        async with asyncio.timeout(PATIENCE):
            while not all(  # noqa: ASYNC110 -- other processes make it true
                is_whole(answer)
                and isinstance(answer, OriginStatus)
                and answer.owned == len(pushed.blobs)
                for answer in (await ask_all(ring.config.hosts)).values()
            ):
                await asyncio.sleep(0.2)


async def test_the_status_names_what_is_missing_and_who_is_silent(
    tmp_path: Path, http: HttpClient
) -> None:
    with running_ring(tmp_path / "ring", repair=QUICK) as ring:
        pushed = await Pushed.some(4, ring, http, tmp_path)
        await until(complete(ring, pushed.blobs), PATIENCE)
        ring.origins[2].kill()
        answers = await ask_all(ring.config.hosts)
        silent = [host for host, answer in answers.items() if not isinstance(answer, OriginStatus)]
        assert silent == [ring.origins[2].host]
        assert not all(map(is_whole, answers.values()))
        command = [sys.executable, "-m", "shoal", "origin", "status", "--json"]
        command += ["--origins", ",".join(ring.config.hosts)]
        said = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, timeout=30, check=False
        )
        assert said.returncode == 1
        assert '"answering":2,"origins":3' in said.stdout
