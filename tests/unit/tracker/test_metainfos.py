# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio

import msgspec
import pytest

from shoal.model.digest import Digest
from shoal.model.errors import BlobUnknown, StillFetching, Unavailable
from shoal.origin.client import Located
from shoal.swarm.metainfo import HASH_BYTES, MIN_PIECE, Metainfo, metainfo_of
from shoal.swarm.peers import PeerInfo
from shoal.tracker.metainfos import MAX_PREPARING, OVERHEAD, RETRY, Entry, Metainfos
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, Overloaded, Unreachable

ORIGINS = [PeerInfo(f"{n:032x}", f"origin-{n}", 5003, origin=True) for n in range(3)]
BLOB = metainfo_of(b"blob")
DIGEST = Digest.parse(BLOB.digest)
DOWN = Unreachable("GET", "http://origin-0/", "refused")


class FakeOrigins:
    """Answers each question with the next outcome, once `release` is called for it."""

    def __init__(self) -> None:
        self.digests: list[Digest] = []
        self.namespaces: list[str] = []
        self.known: list[int] = []
        self._questions: asyncio.Queue[asyncio.Future[Located | None]] = asyncio.Queue()

    @property
    def asked(self) -> int:
        return len(self.digests)

    async def metainfo(
        self, digest: Digest, *, deadline: Deadline, namespace: str = "", known: int = 0
    ) -> Located | None:
        self.known.append(known)
        self.namespaces.append(namespace)
        self.digests.append(digest)
        question: asyncio.Future[Located | None] = asyncio.get_running_loop().create_future()
        self._questions.put_nowait(question)
        async with asyncio.timeout(deadline.remaining()):
            return await question

    async def answer(self, outcome: Located | CallFailed | None) -> None:
        """Answer the oldest open question; waits until there is one."""
        async with asyncio.timeout(5):
            question = await self._questions.get()
        if isinstance(outcome, CallFailed):
            question.set_exception(outcome)
        else:
            question.set_result(outcome)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def located(metainfo: Metainfo = BLOB, origins: int = 3) -> Located:
    return Located(metainfo, ORIGINS[:origins])


@pytest.fixture
def origins() -> FakeOrigins:
    return FakeOrigins()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def metainfos(origins: FakeOrigins, clock: Clock) -> Metainfos:
    return Metainfos(
        origins, max_bytes=1024 * 1024, timeout=5.0, refresh=30.0, owners=3, clock=clock
    )


def soon() -> Deadline:
    return Deadline.after(5.0)


async def known(metainfos: Metainfos, origins: FakeOrigins, what: Located | None = None) -> None:
    getting = asyncio.create_task(metainfos.get(DIGEST, deadline=soon()))
    await origins.answer(what or located())
    await getting


async def settle() -> None:
    """Let every task that can go on do so."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_thousand_that_ask_at_once_are_one_question(
    metainfos: Metainfos, origins: FakeOrigins
) -> None:
    getting = [asyncio.create_task(metainfos.get(DIGEST, deadline=soon())) for _ in range(1000)]
    await settle()
    await origins.answer(located())
    entries = await asyncio.gather(*getting)
    assert origins.asked == 1
    assert {entry.encoded for entry in entries} == {BLOB.encode()}
    assert entries[0].origins == tuple(ORIGINS)
    await metainfos.get(DIGEST, deadline=soon())
    assert origins.asked == 1


async def test_a_blob_that_all_origins_lack_is_unknown_and_asked_for_again(
    metainfos: Metainfos, origins: FakeOrigins
) -> None:
    getting = asyncio.create_task(metainfos.get(DIGEST, deadline=soon()))
    await origins.answer(None)
    with pytest.raises(BlobUnknown, match=str(DIGEST)):
        await getting
    await known(metainfos, origins)
    assert origins.asked == 2


async def test_who_comes_after_the_question_does_not_take_its_no_for_an_answer(
    metainfos: Metainfos, origins: FakeOrigins
) -> None:
    first = asyncio.create_task(metainfos.get(DIGEST, deadline=soon()))
    await settle()
    second = asyncio.create_task(metainfos.get(DIGEST, deadline=soon()))
    await settle()
    await origins.answer(None)
    await origins.answer(located())
    with pytest.raises(BlobUnknown):
        await first
    assert (await second).encoded == BLOB.encode()
    assert origins.asked == 2


async def test_origins_that_could_not_be_asked_are_not_a_no(
    metainfos: Metainfos, origins: FakeOrigins
) -> None:
    getting = asyncio.create_task(metainfos.get(DIGEST, deadline=soon()))
    await origins.answer(DOWN)
    with pytest.raises(Unavailable, match="refused"):
        await getting


async def test_nobody_waits_beyond_the_own_deadline_and_the_others_get_their_answer(
    metainfos: Metainfos, origins: FakeOrigins
) -> None:
    patient = asyncio.create_task(metainfos.get(DIGEST, deadline=soon()))
    with pytest.raises(Unavailable, match="in time"):
        await metainfos.get(DIGEST, deadline=Deadline.after(0.01))
    await origins.answer(located())
    assert (await patient).encoded == BLOB.encode()


async def test_origins_are_asked_again_behind_the_callers_back(
    metainfos: Metainfos, origins: FakeOrigins, clock: Clock
) -> None:
    await known(metainfos, origins, located(origins=3))
    clock.now = 29.0
    await metainfos.get(DIGEST, deadline=soon())
    assert origins.asked == 1
    clock.now = 31.0
    assert (await metainfos.get(DIGEST, deadline=soon())).origins == tuple(ORIGINS)
    await origins.answer(located(origins=1))
    await settle()
    assert (await metainfos.get(DIGEST, deadline=soon())).origins == tuple(ORIGINS[:1])


async def test_an_owner_that_was_missing_is_asked_for_sooner(
    metainfos: Metainfos, origins: FakeOrigins, clock: Clock
) -> None:
    await known(metainfos, origins, located(origins=2))
    clock.now = RETRY + 0.1
    await metainfos.get(DIGEST, deadline=soon())
    await origins.answer(located(origins=3))
    await settle()
    assert (await metainfos.get(DIGEST, deadline=soon())).origins == tuple(ORIGINS)


async def test_origins_that_cannot_be_asked_leave_what_is_known(
    metainfos: Metainfos, origins: FakeOrigins, clock: Clock
) -> None:
    await known(metainfos, origins)
    clock.now = 31.0
    metainfos.peek(DIGEST)
    await origins.answer(DOWN)
    await settle()
    assert (await metainfos.get(DIGEST, deadline=soon())).origins == tuple(ORIGINS)


async def test_a_blob_that_the_origins_lost_is_had_from_agents_or_not_at_all(
    metainfos: Metainfos, origins: FakeOrigins, clock: Clock
) -> None:
    await known(metainfos, origins)
    clock.now = 31.0
    metainfos.peek(DIGEST)
    await origins.answer(None)
    await settle()
    entry = await metainfos.get(DIGEST, deadline=soon(), elsewhere=True)
    assert entry.encoded == BLOB.encode()
    assert entry.origins == ()
    alone = asyncio.create_task(metainfos.get(DIGEST, deadline=soon()))
    await origins.answer(None)
    with pytest.raises(BlobUnknown):
        await alone


async def test_what_was_used_longest_ago_goes_first(origins: FakeOrigins) -> None:
    blobs = [metainfo_of(bytes([n]) * 300_000) for n in range(3)]
    room = sum(len(blob.encode()) + OVERHEAD for blob in blobs[:2])
    cache = Metainfos(origins, max_bytes=room, timeout=5.0, refresh=30.0, owners=3)
    digests = [Digest.parse(blob.digest) for blob in blobs]
    for blob, digest in zip(blobs[:2], digests[:2], strict=True):
        getting = asyncio.create_task(cache.get(digest, deadline=soon()))
        await origins.answer(located(blob))
        await getting
    cache.peek(digests[0])
    getting = asyncio.create_task(cache.get(digests[2], deadline=soon()))
    await origins.answer(located(blobs[2]))
    await getting
    assert [cache.peek(digest) is not None for digest in digests] == [True, False, True]
    assert cache.bytes <= room


async def test_announces_of_many_unknown_blobs_ask_about_few_at_a_time(
    metainfos: Metainfos, origins: FakeOrigins
) -> None:
    for number in range(1000):
        metainfos.prepare(Digest.of(number.to_bytes(2)))
    await settle()
    assert origins.asked == MAX_PREPARING
    await metainfos.close()


async def test_what_agents_have_and_nobody_joined_for_is_asked_about_once_in_a_while(
    metainfos: Metainfos, origins: FakeOrigins, clock: Clock
) -> None:
    for _ in range(3):
        metainfos.learn(DIGEST)
    await origins.answer(None)
    await settle()
    metainfos.learn(DIGEST)
    await settle()
    assert origins.asked == 1
    clock.now = 30.1
    metainfos.learn(DIGEST)
    await origins.answer(located())
    await settle()
    assert metainfos.peek(DIGEST) is not None
    clock.now = 31.0 + 30.0
    metainfos.learn(DIGEST)
    await settle()
    assert origins.asked == 2


async def test_each_repository_is_asked_for_and_a_fetch_under_way_is_told() -> None:
    origins = FakeOrigins()
    metainfos = Metainfos(origins, max_bytes=10_000, timeout=5, refresh=30, owners=1)
    first = asyncio.create_task(
        metainfos.get(DIGEST, deadline=Deadline.after(5), namespace="team/app")
    )
    second = asyncio.create_task(
        metainfos.get(DIGEST, deadline=Deadline.after(5), namespace="other/app")
    )
    body = {"errors": [{"code": "STILL_FETCHING", "message": "later"}]}
    await origins.answer(Overloaded("POST", "http://origin-0/", "later", status=503, body=body))
    await origins.answer(None)
    with pytest.raises(StillFetching):
        await first
    with pytest.raises(BlobUnknown):
        await second
    assert origins.namespaces == ["team/app", "other/app"]


# -- blobs that an origin still fetches


def grown(known: int) -> Located:
    """What the origin says when it has so many pieces."""
    pieces = LARGE.pieces[: known * HASH_BYTES]
    return Located(msgspec.structs.replace(LARGE, pieces=pieces), ORIGINS[:1])


LARGE = metainfo_of(bytes(10 * MIN_PIECE))


async def test_a_growing_metainfo_is_followed_until_it_is_whole(
    metainfos: Metainfos, origins: FakeOrigins
) -> None:
    digest = Digest.parse(LARGE.digest)

    async def more(known: int) -> Entry:
        deadline = Deadline.after(5)
        return await metainfos.more(
            digest, known=known, deadline=deadline, namespace="team/app", elsewhere=False
        )

    first = asyncio.create_task(more(0))
    await origins.answer(grown(0))
    many = [asyncio.create_task(more(0)) for _ in range(100)]
    await origins.answer(grown(4))
    assert {(await it).known for it in (first, *many)} == {4}
    rest = asyncio.create_task(more(4))
    await origins.answer(grown(10))
    assert (await rest).whole
    assert (await more(10)).encoded == LARGE.encode()
    assert origins.known == [0, 0, 4]
    assert set(origins.namespaces) == {"team/app"}
    await metainfos.close()


async def test_a_growing_metainfo_that_is_given_up_is_asked_for_anew(
    metainfos: Metainfos, origins: FakeOrigins
) -> None:
    digest = Digest.parse(LARGE.digest)
    getting = asyncio.create_task(metainfos.get(digest, deadline=Deadline.after(5)))
    await origins.answer(grown(3))
    assert not (await getting).whole
    await origins.answer(DOWN)
    async with asyncio.timeout(5):
        while metainfos.peek(digest) is not None:  # noqa: ASYNC110
            await asyncio.sleep(0)
    again = asyncio.create_task(metainfos.get(digest, deadline=Deadline.after(5)))
    await origins.answer(grown(10))
    assert (await again).whole
    await metainfos.close()


async def test_a_whole_metainfo_replaces_a_growing_one_of_what_was_not_the_blob(
    metainfos: Metainfos, origins: FakeOrigins
) -> None:
    """The backend had something longer under this name, and then the blob was pushed."""
    digest = Digest.parse(LARGE.digest)
    longer = Metainfo(LARGE.digest, 100 * MIN_PIECE, MIN_PIECE, bytes(50 * HASH_BYTES))
    getting = asyncio.create_task(metainfos.get(digest, deadline=Deadline.after(5)))
    await origins.answer(located(longer, 1))
    assert (await getting).known == 50
    await origins.answer(located(LARGE))
    await settle()
    entry = metainfos.peek(digest)
    assert entry is not None
    assert entry.whole
    assert entry.encoded == LARGE.encode()
    assert len(origins.digests) == 2, "it is followed no more"
    await metainfos.close()


async def test_a_growing_metainfo_does_not_replace_a_whole_one(
    metainfos: Metainfos, origins: FakeOrigins, clock: Clock
) -> None:
    digest = Digest.parse(LARGE.digest)
    getting = asyncio.create_task(metainfos.get(digest, deadline=Deadline.after(5)))
    await origins.answer(located(LARGE))
    assert (await getting).whole
    clock.now += 100
    assert metainfos.peek(digest) is not None
    longer = Metainfo(LARGE.digest, 100 * MIN_PIECE, MIN_PIECE, bytes(50 * HASH_BYTES))
    await origins.answer(located(longer, 1))
    await settle()
    entry = metainfos.peek(digest)
    assert entry is not None
    assert entry.encoded == LARGE.encode()
    await metainfos.close()
