# SPDX-License-Identifier: Apache-2.0
"""A sweep removes what nobody needs, and never what somebody relies on while it runs."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as Waiting
from pathlib import Path

import pytest

from shoal.model.digest import Digest
from shoal.model.errors import BadRequest
from shoal.origin import sweep as sweep_module
from shoal.origin.client import OriginCluster
from shoal.origin.local import KEPT, METAINFO, LocalBlobs
from shoal.origin.messages import SweepReport
from shoal.origin.receiving import Receiver
from shoal.origin.retention import Copy, Reason, stays
from shoal.origin.service import OriginService
from shoal.origin.sweep import Sweeper
from shoal.ring.config import OriginsConfig
from shoal.store.blobs import BlobStore
from shoal.swarm.metainfo import metainfo_of
from shoal.web.client import HttpClient
from shoal.web.deadline import Deadline
from shoal.web.failures import Unreachable
from tests.unit.origin.no_backends import no_write_back

GRACE = 3600.0
START = 1_000_000.0
NAME = "127.0.0.1:5002"
DATA = b"a layer that somebody may need"
DIGEST = Digest.of(DATA)


class Clock:
    """Epoch seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


class Origin:
    """One origin's disk and its sweeper; the build-indexes are a function."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.store = BlobStore(folder)
        self.local = LocalBlobs(self.store, clock=self.clock)
        self.asked: list[list[Digest]] = []
        self.forgotten: list[Digest] = []
        self.wanted: set[Digest] = set()
        self.meanwhile: Callable[[], Awaitable[object]] | None = None
        self.sweeper = Sweeper(
            NAME, self.local, self._ask, self.forgotten.append, grace=GRACE, clock=self.clock
        )

    async def _ask(self, digests: Sequence[Digest], _: Deadline) -> Collection[Digest]:
        self.asked.append(list(digests))
        if self.meanwhile is not None:
            await self.meanwhile()
        return self.wanted & set(digests)

    def put(self, data: bytes = DATA, *, kept: bool = False, age: float = 2 * GRACE) -> Digest:
        temp = self.store.temp()
        temp.write_bytes(data)
        os.utime(temp, (self.clock.now - age, self.clock.now - age))
        now, self.clock.now = self.clock.now, self.clock.now - age
        blob = self.local.keep(temp, metainfo_of(data), kept=kept)
        self.clock.now = now
        return blob.digest

    def files(self, digest: Digest = DIGEST) -> list[str]:
        return sorted(path.name for path in self.store.path(digest).parent.glob("*"))

    def has(self, digest: Digest = DIGEST) -> bool:
        return self.store.path(digest).exists()

    async def sweep(self, *, dry_run: bool = False, grace: float | None = None) -> SweepReport:
        late = Deadline.after(10)
        return await self.sweeper.sweep(dry_run=dry_run, deadline=late, grace=grace)


@pytest.fixture
def origin(tmp_path: Path) -> Origin:
    return Origin(tmp_path)


async def body(data: bytes = DATA) -> AsyncIterator[bytes]:
    yield data


# -- the decision -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "copy, expected",
    [
        (Copy(DIGEST, 1, 99.9), None),
        (Copy(DIGEST, 1, 100.0), "young"),
        (Copy(DIGEST, 1, 0.0, kept=True), "kept"),
        (Copy(DIGEST, 1, 0.0, in_use=True), "in_use"),
    ],
)
def test_why_a_copy_stays(copy: Copy, expected: Reason | None) -> None:
    assert stays(copy, cutoff=100.0) == expected


# -- one sweep ----------------------------------------------------------------------------------


async def test_what_is_old_and_unwanted_goes_with_its_sidecars(origin: Origin) -> None:
    origin.put()
    assert origin.files() == sorted([DIGEST.hex, f"{DIGEST.hex}.{METAINFO}"])
    report = await origin.sweep()
    assert origin.files() == []
    assert origin.forgotten == [DIGEST]
    assert (report.examined, report.removed, report.freed) == (1, 1, len(DATA))
    assert [(item.digest, item.size) for item in report.items] == [(str(DIGEST), len(DATA))]
    assert report.stopped == ""


async def test_what_is_wanted_young_or_kept_stays(origin: Origin) -> None:
    wanted = origin.put(b"wanted")
    young = origin.put(b"young", age=GRACE - 1)
    kept = origin.put(b"kept", kept=True)
    origin.wanted = {wanted}
    report = await origin.sweep()
    assert all(map(origin.has, (wanted, young, kept)))
    assert (report.wanted, report.young, report.kept, report.removed) == (1, 1, 1, 0)
    assert origin.asked == [[wanted]]


async def test_a_dry_run_says_what_a_real_run_then_removes(origin: Origin) -> None:
    for n in range(5):
        origin.put(f"blob {n}".encode())
    origin.wanted = {Digest.of(b"blob 3")}
    dry = await origin.sweep(dry_run=True)
    assert origin.has(Digest.of(b"blob 0"))
    assert origin.forgotten == []
    real = await origin.sweep()
    assert dry.removed == real.removed == 4
    assert (dry.freed, set(dry.items)) == (real.freed, set(real.items))
    assert origin.has(Digest.of(b"blob 3"))
    assert not origin.has(Digest.of(b"blob 0"))


async def test_a_dry_run_counts_what_the_build_indexes_would_release(origin: Origin) -> None:
    origin.put()
    origin.wanted = {DIGEST}
    late = Deadline.after(10)
    report = await origin.sweeper.sweep(dry_run=True, deadline=late, released=[DIGEST])
    assert (report.removed, report.wanted) == (1, 0)
    with pytest.raises(BadRequest, match="dry run"):
        await origin.sweeper.sweep(dry_run=False, deadline=late, released=[DIGEST])
    assert origin.has()


async def test_nothing_goes_when_a_build_index_cannot_be_asked(origin: Origin) -> None:
    origin.put()

    async def fails() -> None:
        raise Unreachable("POST", "http://127.0.0.1:5006/internal/wanted", "refused")

    origin.meanwhile = fails
    report = await origin.sweep()
    assert origin.has()
    assert report.removed == 0
    assert "127.0.0.1:5006" in report.stopped


async def test_nothing_goes_after_the_deadline(origin: Origin) -> None:
    origin.put()
    report = await origin.sweeper.sweep(dry_run=False, deadline=Deadline.after(0))
    assert origin.has()
    assert "deadline" in report.stopped


async def test_many_blobs_are_asked_about_in_batches(
    origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_module, "BATCH", 3)
    digests = {origin.put(f"blob {n}".encode()) for n in range(7)}
    report = await origin.sweep()
    assert [len(batch) for batch in origin.asked] == [3, 3, 1]
    assert {digest for batch in origin.asked for digest in batch} == digests
    assert report.removed == 7


# -- sweeps that nobody asked for ---------------------------------------------------------------


async def test_a_sweep_by_itself_removes_what_is_unwanted(origin: Origin) -> None:
    origin.put()
    report = await origin.sweeper.sweep_unless_suspicious(Deadline.after(10))
    assert (report.dry_run, report.removed) == (False, 1)
    assert not origin.has()


async def test_a_sweep_by_itself_does_not_empty_an_origin(
    origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a build-index came back with an empty database."""
    monkeypatch.setattr(sweep_module, "SUSPICIOUS_FROM", 3)
    digests = [origin.put(f"blob {n}".encode()) for n in range(8)]
    report = await origin.sweeper.sweep_unless_suspicious(Deadline.after(10))
    assert (report.dry_run, report.removed) == (True, 8)
    assert all(map(origin.has, digests))
    origin.wanted = set(digests[:4])
    report = await origin.sweeper.sweep_unless_suspicious(Deadline.after(10))
    assert (report.dry_run, report.removed) == (False, 4)


async def test_a_sweep_by_itself_removes_nothing_before_it_has_seen_all(
    origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_module, "BATCH", 3)
    digests = [origin.put(f"blob {n}".encode()) for n in range(8)]

    async def fails_at_the_second_batch() -> None:
        if len(origin.asked) == 2:
            raise Unreachable("POST", "http://127.0.0.1:5006/internal/wanted", "refused")

    origin.meanwhile = fails_at_the_second_batch
    report = await origin.sweeper.sweep_unless_suspicious(Deadline.after(10))
    assert report.dry_run
    assert "127.0.0.1:5006" in report.stopped
    assert all(map(origin.has, digests))


async def test_an_operator_may_empty_an_origin(
    origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_module, "SUSPICIOUS_FROM", 3)
    for n in range(8):
        origin.put(f"blob {n}".encode())
    assert (await origin.sweep()).removed == 8


# -- what comes between the decision and the removal --------------------------------------------


async def test_a_stat_that_keeps_saves_a_blob_that_was_about_to_go(origin: Origin) -> None:
    origin.put()

    async def stat() -> None:
        assert origin.local.sizes([DIGEST], rely=True) == {DIGEST: len(DATA)}

    origin.meanwhile = stat
    report = await origin.sweep()
    assert origin.has()
    assert (report.removed, report.relied_on) == (0, 1)
    assert origin.forgotten == []


async def test_a_stat_that_only_asks_saves_nothing(origin: Origin) -> None:
    origin.put()

    async def stat() -> None:
        assert origin.local.sizes([DIGEST]) == {DIGEST: len(DATA)}

    origin.meanwhile = stat
    assert (await origin.sweep()).removed == 1


async def test_without_grace_what_is_used_while_the_sweep_runs_stays(origin: Origin) -> None:
    origin.put(age=1.0)

    async def stat() -> None:
        origin.local.sizes([DIGEST], rely=True)

    origin.meanwhile = stat
    report = await origin.sweep(grace=0.0)
    assert origin.has()
    assert report.relied_on == 1


def service(origin: Origin) -> OriginService:
    receiver = Receiver(origin.store, idle_timeout=5.0, max_blob=0)
    cluster = OriginCluster(HttpClient(user_agent="test"), OriginsConfig(hosts=[NAME]))
    return OriginService(
        NAME, origin.local, receiver, cluster, no_write_back(NAME, origin.local, cluster)
    )


async def test_a_put_saves_a_blob_that_was_about_to_go(origin: Origin) -> None:
    origin.put()

    async def put() -> None:
        fresh = await service(origin).store(DIGEST, body(), len(DATA))
        assert not fresh

    origin.meanwhile = put
    report = await origin.sweep()
    assert origin.has()
    assert (report.removed, report.relied_on) == (0, 1)


async def test_a_copy_stays_while_a_put_of_it_is_under_way(origin: Origin) -> None:
    """Even without grace: the writer was not yet told that the blob is here."""
    origin.put()
    swept: list[SweepReport] = []

    async def slow() -> AsyncIterator[bytes]:
        yield DATA[:5]
        origin.clock.now += 10 * GRACE
        swept.append(await origin.sweep(grace=0.0))
        yield DATA[5:]

    await service(origin).store(DIGEST, slow(), len(DATA))
    assert origin.has()
    assert (swept[0].in_use, swept[0].removed) == (1, 0)


async def test_whoever_is_told_that_a_blob_is_here_finds_it_here(
    origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The removal waits for one who is about to rely on the copy, and then leaves it."""
    origin.put()
    touching, go_on = threading.Event(), threading.Event()
    touch = LocalBlobs._touch

    def slowly(local: LocalBlobs, digest: Digest, path: Path, used: float | None) -> None:
        touching.set()
        assert go_on.wait(10)
        touch(local, digest, path, used)

    monkeypatch.setattr(LocalBlobs, "_touch", slowly)
    with ThreadPoolExecutor(2) as threads:
        relying = threads.submit(origin.local.rely, DIGEST)
        assert touching.wait(10)
        removing: Future[int | None] = threads.submit(origin.local.give_up, DIGEST, START - GRACE)
        with pytest.raises(Waiting):
            removing.result(0.1)
        go_on.set()
        assert relying.result(10) is not None
        assert removing.result(10) is None
    assert origin.has()


def test_one_who_comes_after_the_removal_is_told_that_the_blob_is_gone(origin: Origin) -> None:
    origin.put()
    assert origin.local.give_up(DIGEST, START - GRACE) == len(DATA)
    assert origin.local.rely(DIGEST) is None
    assert origin.local.give_up(DIGEST, START) is None


# -- marks on copies ----------------------------------------------------------------------------


def test_relying_on_a_copy_leaves_the_time_of_its_writing(origin: Origin) -> None:
    origin.put()
    before = origin.store.path(DIGEST).stat()
    origin.clock.now += 50
    whole = origin.local.rely(DIGEST)
    assert whole is not None
    assert origin.local.is_as_written(whole)
    after = origin.store.path(DIGEST).stat()
    assert after.st_atime == START + 50
    assert after.st_mtime_ns == before.st_mtime_ns


def test_a_chunked_upload_that_took_long_is_young_when_it_is_kept(origin: Origin) -> None:
    temp = origin.store.temp()
    temp.write_bytes(DATA)
    os.utime(temp, (START - 9 * GRACE, START - 9 * GRACE))
    origin.local.keep(temp, metainfo_of(DATA))
    [copy] = origin.local.copies()
    assert copy.last_used == START


def test_a_copy_that_is_here_can_be_marked_to_stay(origin: Origin) -> None:
    origin.put()
    assert not origin.local.is_kept(DIGEST)
    assert origin.local.sizes([DIGEST], kept=True) == {DIGEST: len(DATA)}
    assert origin.local.is_kept(DIGEST)
    assert origin.local.give_up(DIGEST, START) is None


def test_a_damaged_mark_is_a_mark(origin: Origin) -> None:
    origin.put(kept=True)
    path = origin.store.path(DIGEST)
    path.with_name(f"{path.name}.{KEPT}").write_bytes(b"")
    assert origin.local.is_kept(DIGEST)


def test_a_later_put_without_the_mark_does_not_take_it_away(origin: Origin) -> None:
    origin.put(kept=True)
    origin.put()
    assert origin.local.is_kept(DIGEST)
