# SPDX-License-Identifier: Apache-2.0
"""What holds for every backend: subclasses name what they are capable of, and give a `place`.

Every kind runs the same classes, those that fit what it holds and where it is:

* `ReadContract` or `WriteContract` where it has blobs, `ReadOnlyContract` where it is not written;
* `TagContract` where it holds tags that are written, `BlobListingContract` where it lists blobs;
* `DeadlineContract`; `RemoteContract` where it is a server (`DeadContract` is its part for those
  of databases); `BodyContract` where its answers have bodies that are streamed, and
  `DeniedContract` where it has credentials.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import pytest

from shoal.backend.base import (
    Backend,
    BlobName,
    Blobs,
    LinkName,
    Listing,
    Name,
    Repositories,
    TagName,
    TagsOf,
)
from shoal.model.digest import Digest
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, NotFound, Rejected, Unreachable

PART = 5 * 1024 * 1024
"""Bytes of a part, for backends that send in parts."""

REPOSITORY = "team/app"
SOON = 1.0
"""Seconds of a deadline that is to pass."""


class Faults(Protocol):
    """Stands between a backend and its storage."""

    cut_after: int | None
    """Bytes of an answer after which the connection is closed."""

    stalled: bool
    """Nothing is answered any more."""


@dataclass(frozen=True)
class Place:
    """A backend, and the same kind where it cannot work."""

    backend: Backend
    faults: Faults | None = None
    dead: Backend | None = None
    """Its address is one where nothing listens."""

    denied: Backend | None = None
    """Its credentials are wrong."""

    secret: str = "not given"
    """What no error of `denied` may show."""


def deadline(seconds: float = 20.0) -> Deadline:
    return Deadline.after(seconds)


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def blob(content: bytes, repository: str = REPOSITORY) -> BlobName:
    return BlobName(repository, Digest.of(content))


async def store(backend: Backend, content: bytes) -> BlobName:
    name = blob(content)
    await backend.put(name, content, deadline=deadline())
    return name


async def read(backend: Backend, name: Name, start: int = 0, stop: int | None = None) -> bytes:
    async with backend.get(name, start, stop, deadline=deadline()) as content:
        return b"".join([bytes(chunk) async for chunk in content.chunks()])


async def every_page(backend: Backend, listing: Listing, limit: int) -> list[str]:
    found: list[str] = []
    after = ""
    for _ in range(100):
        page = await backend.list(listing, after=after, limit=limit, deadline=deadline())
        assert len(page.names) <= limit
        found += page.names
        if page.last is None:
            return found
        assert page.last == page.names[-1]
        after = page.last
    raise AssertionError(f"more than 100 pages: {found}")


class Failing:
    """A source that breaks off."""

    size = 3 * PART

    async def chunks(self) -> AsyncIterator[bytes]:
        for _ in range(2 * PART // (1024 * 1024)):
            yield bytes(1024 * 1024)
        raise Rejected("READ", "the source", "it broke off")


class Stored:
    """How what is read gets there; subclasses do it where the backend itself cannot."""

    asked: Name = blob(b"asked for")
    """What is asked for where nothing comes of it."""

    async def stored(self, place: Place, content: bytes) -> BlobName:
        return await store(place.backend, content)

    def questions(self, backend: Backend, until: Deadline) -> list[Callable[[], Awaitable[Any]]]:
        """Each kind of question that the backend answers."""
        name = self.asked
        source = noise(1000) if isinstance(name, BlobName) else str(Digest.of(b"it")).encode()

        async def get() -> bytes:
            async with backend.get(name, deadline=until) as content:
                return b"".join([chunk async for chunk in content.chunks()])

        asked: list[Callable[[], Awaitable[Any]]] = [
            lambda: backend.stat(name, deadline=until),
            get,
        ]
        if not backend.read_only:
            asked += [
                lambda: backend.put(name, source, deadline=until),
                lambda: backend.list(TagsOf(REPOSITORY), deadline=until),
                lambda: backend.delete(name, deadline=until),
            ]
        return asked


class ReadContract(Stored):
    """What is read."""

    async def test_stat_says_the_size_or_that_it_is_not_there(self, place: Place) -> None:
        content = noise(1234)
        name = await self.stored(place, content)
        assert await place.backend.stat(name, deadline=deadline()) == 1234
        missing = blob(b"never stored")
        assert await place.backend.stat(missing, deadline=deadline()) is None

    async def test_what_is_stored_is_read(self, place: Place) -> None:
        content = noise(300_000)
        name = await self.stored(place, content)
        async with place.backend.get(name, deadline=deadline()) as got:
            assert got.size == len(content)
            chunks = [chunk async for chunk in got.chunks()]
        assert b"".join(chunks) == content

    async def test_a_blob_larger_than_a_part_is_read_whole(self, place: Place) -> None:
        content = noise(2 * PART + 2 * 1024 * 1024 + 7)
        name = await self.stored(place, content)
        assert await place.backend.stat(name, deadline=deadline()) == len(content)
        assert await read(place.backend, name) == content
        assert await read(place.backend, name, PART - 3, PART + 4) == content[PART - 3 : PART + 4]

    async def test_a_range_is_that_part_of_the_blob(self, place: Place) -> None:
        content = noise(100_000)
        name = await self.stored(place, content)
        size = len(content)
        parts: list[tuple[int, int | None]] = [
            (0, 1),
            (5, 20),
            (size - 1, size),
            (size // 2, None),
            (0, size + 5),
            (size, None),
            (7, 7),
        ]
        for start, stop in parts:
            async with place.backend.get(name, start, stop, deadline=deadline()) as got:
                assert got.size == size, (start, stop)
                found = b"".join([chunk async for chunk in got.chunks()])
            assert found == content[start:stop], (start, stop)

    async def test_an_empty_blob_is_a_blob(self, place: Place) -> None:
        name = await self.stored(place, b"")
        assert await place.backend.stat(name, deadline=deadline()) == 0
        assert await read(place.backend, name) == b""

    async def test_what_is_not_there_is_not_found(self, place: Place) -> None:
        with pytest.raises(NotFound):
            await read(place.backend, blob(b"never stored"))

    async def test_many_readers_at_once_each_get_the_whole(self, place: Place) -> None:
        content = noise(PART // 2)
        name = await self.stored(place, content)
        found = await asyncio.gather(*(read(place.backend, name) for _ in range(8)))
        assert all(one == content for one in found)


class WriteContract(ReadContract):
    """What is written, too."""

    async def test_it_says_that_it_can_be_written(self, place: Place) -> None:
        assert not place.backend.read_only
        assert place.backend.description

    async def test_a_file_is_stored(self, place: Place, tmp_path: Path) -> None:
        content = noise(2 * PART + 7)
        path = tmp_path / "blob"
        path.write_bytes(content)
        await place.backend.put(blob(content), path, deadline=deadline())
        assert await read(place.backend, blob(content)) == content

    async def test_a_file_that_is_not_there_is_no_fault_of_the_storage(
        self, place: Place, tmp_path: Path
    ) -> None:
        with pytest.raises(Rejected, match="no-such-file"):
            await place.backend.put(blob(b"none"), tmp_path / "no-such-file", deadline=deadline())

    async def test_a_source_that_breaks_off_stores_nothing(self, place: Place) -> None:
        name = blob(b"broken off")
        with pytest.raises(CallFailed):
            await place.backend.put(name, Failing(), deadline=deadline())
        assert await place.backend.stat(name, deadline=deadline()) is None

    async def test_a_blob_that_is_deleted_is_not_there(self, place: Place) -> None:
        name = await store(place.backend, noise(77))
        assert await place.backend.delete(name, deadline=deadline())
        assert await place.backend.stat(name, deadline=deadline()) is None
        # Deleting again is no failure; not every storage says what was there.
        await place.backend.delete(name, deadline=deadline())

    async def test_deleting_one_blob_leaves_the_others(self, place: Place) -> None:
        gone, kept = await store(place.backend, b"gone"), await store(place.backend, b"kept")
        await place.backend.delete(gone, deadline=deadline())
        assert await read(place.backend, kept) == b"kept"


class TagContract:
    """Tags and links; `named` makes what they may name where the storage insists on it."""

    async def named(
        self, place: Place, repository: str, what: bytes, kind: Literal["manifest", "blob"]
    ) -> Digest:
        return Digest.of(what)

    async def test_a_tag_moves(self, place: Place) -> None:
        name = TagName(REPOSITORY, "latest")
        assert await place.backend.stat(name, deadline=deadline()) is None
        for content in (b"one", b"two"):
            digest = str(await self.named(place, REPOSITORY, content, "manifest")).encode()
            await place.backend.put(name, digest, deadline=deadline())
            assert await read(place.backend, name) == digest

    async def test_a_reader_sees_the_old_tag_or_the_new_one_whole(self, place: Place) -> None:
        name = TagName(REPOSITORY, "moving")
        texts = [
            str(await self.named(place, REPOSITORY, one, "manifest")).encode()
            for one in (b"old", b"new")
        ]
        await place.backend.put(name, texts[0], deadline=deadline())
        done = asyncio.Event()

        async def move() -> None:
            for text in itertools.islice(itertools.cycle(texts), 20):
                await place.backend.put(name, text, deadline=deadline())
            done.set()

        async def watch() -> int:
            seen = 0
            while not done.is_set():
                assert await read(place.backend, name) in texts
                seen += 1
            return seen

        moving = asyncio.create_task(move())
        seen = await asyncio.gather(watch(), watch())
        await moving
        assert all(seen)

    async def test_links_are_kept_by_kind(self, place: Place) -> None:
        digest = await self.named(place, REPOSITORY, b"layer", "blob")
        link = LinkName(REPOSITORY, digest, "blob")
        await place.backend.put(link, str(digest).encode(), deadline=deadline())
        assert await read(place.backend, link) == str(digest).encode()
        other = LinkName(REPOSITORY, digest, "manifest")
        assert await place.backend.stat(other, deadline=deadline()) is None

    async def test_tags_are_listed_in_lexical_order_page_by_page(self, place: Place) -> None:
        # "-" and "." sort before "/", which storages put behind a tag.
        tags = ["1", "1-a", "1.0", "1.0-alpine", "1.0.1", "1.0_x", "Z", "latest", "v10", "v9"]
        for tag in reversed(tags):
            await self.tag(place, REPOSITORY, tag)
        await self.tag(place, "team/other", "elsewhere")
        for limit in (1, 3, 10, 100):
            assert await every_page(place.backend, TagsOf(REPOSITORY), limit) == sorted(tags)

    async def test_a_page_begins_after_a_tag_that_need_not_exist(self, place: Place) -> None:
        for tag in ("a", "b", "d"):
            await self.tag(place, REPOSITORY, tag)
        page = await place.backend.list(TagsOf(REPOSITORY), after="c", limit=5, deadline=deadline())
        assert (page.names, page.last) == (("d",), None)

    async def test_a_repository_without_tags_has_none(self, place: Place) -> None:
        page = await place.backend.list(TagsOf("no/such"), deadline=deadline())
        assert (page.names, page.last) == ((), None)

    async def test_repositories_are_listed_in_lexical_order_page_by_page(
        self, place: Place
    ) -> None:
        repositories = ["a", "a-b", "a/b", "a/b/c", "a0", "docker.io/library/alpine", "team/app"]
        for repository in repositories:
            await self.tag(place, repository, "latest")
        layer = await self.named(place, "untagged", b"layer", "blob")
        untagged = LinkName("untagged", layer, "blob")
        await place.backend.put(untagged, str(layer).encode(), deadline=deadline())
        for limit in (1, 3, 7, 100):
            assert await every_page(place.backend, Repositories(), limit) == sorted(repositories)

    async def test_a_deleted_tag_is_not_listed(self, place: Place) -> None:
        for tag in ("gone", "kept"):
            await self.tag(place, REPOSITORY, tag)
        await place.backend.delete(TagName(REPOSITORY, "gone"), deadline=deadline())
        assert await every_page(place.backend, TagsOf(REPOSITORY), 10) == ["kept"]
        assert await place.backend.stat(TagName(REPOSITORY, "gone"), deadline=deadline()) is None

    async def tag(self, place: Place, repository: str, tag: str) -> None:
        digest = await self.named(place, repository, tag.encode(), "manifest")
        name = TagName(repository, tag)
        await place.backend.put(name, str(digest).encode(), deadline=deadline())


class BlobListingContract:
    """The listing of blobs."""

    async def test_blobs_are_listed_in_lexical_order_page_by_page(self, place: Place) -> None:
        contents = [noise(10, seed) for seed in range(7)]
        names = [await store(place.backend, content) for content in contents]
        long = BlobName(REPOSITORY, Digest.of(b"long", "sha512"))
        await place.backend.put(long, b"long", deadline=deadline())
        digests = sorted(str(name.digest) for name in [*names, long])
        for limit in (1, 3, 8, 100):
            assert await every_page(place.backend, Blobs(REPOSITORY), limit) == digests


class DeadlineContract(Stored):
    """Nobody waits longer than the one who asked."""

    async def test_nothing_is_asked_after_the_deadline(self, place: Place) -> None:
        for ask in self.questions(place.backend, Deadline.after(-1)):
            with pytest.raises(Unreachable, match="deadline"):
                await ask()


class DeadContract(Stored):
    """An address where nothing listens."""

    async def test_a_dead_endpoint_is_not_an_answer(self, place: Place) -> None:
        assert place.dead is not None
        for ask in self.questions(place.dead, deadline()):
            with pytest.raises(Unreachable):
                await ask()


class RemoteContract(DeadlineContract, DeadContract):
    """What may happen on the way to a storage that is not in this process."""

    async def test_a_storage_that_stalls_is_given_up_at_the_deadline(self, place: Place) -> None:
        assert place.faults is not None
        place.faults.stalled = True
        began = time.monotonic()
        results = await asyncio.gather(
            *(ask() for ask in self.questions(place.backend, Deadline.after(SOON))),
            return_exceptions=True,
        )
        assert all(type(result) is Unreachable for result in results), results
        assert time.monotonic() - began < SOON + 2


class BodyContract(Stored):
    """What is streamed from a server."""

    async def test_a_body_that_ends_early_is_an_error(self, place: Place) -> None:
        assert place.faults is not None
        content = noise(2 * PART)
        name = await self.stored(place, content)
        # Every answer is cut, so that no retry of a library helps.
        place.faults.cut_after = PART
        with pytest.raises(Unreachable):
            await read(place.backend, name)


class DeniedContract(Stored):
    """Credentials."""

    refusal: type[CallFailed] = Rejected

    async def test_wrong_credentials_are_said_without_showing_them(self, place: Place) -> None:
        assert place.denied is not None
        for ask in self.questions(place.denied, deadline()):
            with pytest.raises(self.refusal) as failed:
                await ask()
            shown = "".join(traceback.format_exception(failed.value)) + repr(failed.value)
            assert place.secret not in shown
            assert "credentials" in str(failed.value) or "user" in str(failed.value)


class ReadOnlyContract:
    """What cannot be written."""

    async def test_it_refuses_to_be_written(self, place: Place) -> None:
        assert place.backend.read_only
        with pytest.raises(Rejected):
            await place.backend.put(blob(b"x"), b"x", deadline=deadline())
        with pytest.raises(Rejected):
            await place.backend.delete(blob(b"x"), deadline=deadline())
