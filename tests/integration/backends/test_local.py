# SPDX-License-Identifier: Apache-2.0
"""A local folder, two of them as a shadow, and one behind limits."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from shoal.backend.bandwidth import LimitedBackend, Meter
from shoal.backend.base import Backend, TagName
from shoal.backend.local import LocalBackend
from shoal.backend.paths import Layout
from shoal.backend.shadow import ShadowBackend
from shoal.web.failures import NotFound, Overloaded, Rejected, Unreachable
from tests.integration.backends.contract import (
    PART,
    REPOSITORY,
    BlobListingContract,
    DeadlineContract,
    Place,
    TagContract,
    WriteContract,
    blob,
    deadline,
    noise,
    read,
    store,
)


def opened(folder: Path, layout: Layout | None = None) -> LocalBackend:
    return LocalBackend(folder, layout or Layout(), timeout=10)


class TestLocal(WriteContract, TagContract, BlobListingContract, DeadlineContract):
    @pytest.fixture
    def place(self, tmp_path: Path) -> Place:
        return Place(opened(tmp_path / "made" / "by it"))

    async def test_a_put_is_on_stable_storage_when_it_returns(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        synced: list[str] = []
        real = os.fsync

        def fsync(descriptor: int) -> None:
            synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
            real(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)
        backend = opened(tmp_path)
        name = await store(backend, b"safe")
        final = tmp_path / Layout().path(name)
        assert any("/.incoming/" in path for path in synced), "the content"
        # Its name, and those of the folders that were made for it.
        for folder in (final.parent, final.parent.parent, final.parent.parent.parent):
            assert str(folder) in synced
        assert synced.index(str(final.parent)) > next(
            number for number, path in enumerate(synced) if "/.incoming/" in path
        )

    async def test_what_a_crash_left_is_removed_and_what_is_written_now_is_not(
        self, tmp_path: Path
    ) -> None:
        incoming = tmp_path / ".incoming"
        incoming.mkdir()
        (incoming / "old").write_bytes(b"x")
        os.utime(incoming / "old", (1, 1))
        (incoming / "new").write_bytes(b"x")
        await store(opened(tmp_path), b"content")
        assert [path.name for path in incoming.iterdir()] == ["new"]

    async def test_a_file_that_shrinks_while_it_is_read_is_an_error(self, tmp_path: Path) -> None:
        backend = opened(tmp_path)
        name = await store(backend, noise(2 * PART))
        async with backend.get(name, deadline=deadline()) as content:
            os.truncate(tmp_path / Layout().path(name), PART)
            chunks = content.chunks()
            with pytest.raises(Unreachable, match="ended after"):
                assert [chunk async for chunk in chunks] == []

    async def test_a_folder_that_is_gone_is_not_an_empty_one(self, tmp_path: Path) -> None:
        folder = tmp_path / "mount"
        backend = opened(folder)
        assert await backend.stat(blob(b"x"), deadline=deadline()) is None
        folder.rmdir()
        with pytest.raises(Unreachable, match="mounted"):
            await backend.stat(blob(b"x"), deadline=deadline())

    @pytest.mark.parametrize(
        "code, kind",
        [("ENOSPC", Overloaded), ("EDQUOT", Overloaded), ("EROFS", Rejected), ("EIO", Unreachable)],
    )
    async def test_a_disk_that_fails_leaves_what_was_there(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, kind: type[Exception]
    ) -> None:
        backend = opened(tmp_path)
        name = TagName(REPOSITORY, "latest")
        await backend.put(name, b"old", deadline=deadline())

        def fail(_: int, __: object) -> int:
            number = getattr(errno, code)
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patched:
            patched.setattr(os, "write", fail)
            with pytest.raises(kind):
                await backend.put(name, b"new", deadline=deadline())
        assert await read(backend, name) == b"old"
        assert list((tmp_path / ".incoming").iterdir()) == []

    async def test_each_repository_may_have_its_own_copies(self, tmp_path: Path) -> None:
        backend = opened(tmp_path, Layout("", "teams/{repository}/{algorithm}/{hex}"))
        await backend.put(blob(b"x", "a/b"), b"x", deadline=deadline())
        assert await backend.stat(blob(b"x", "a/b"), deadline=deadline()) == 1
        assert await backend.stat(blob(b"x", "a"), deadline=deadline()) is None

    async def test_a_name_that_is_none_makes_no_path(self, tmp_path: Path) -> None:
        backend = opened(tmp_path / "inside")
        for name in (blob(b"x", "../outside"), TagName("../outside", "a"), TagName("a", "../b")):
            if isinstance(name, TagName):
                with pytest.raises(Rejected):
                    await backend.put(name, b"x", deadline=deadline())
        assert not (tmp_path / "outside").exists()


class TestShadow(WriteContract, TagContract, BlobListingContract, DeadlineContract):
    @pytest.fixture
    def place(self, tmp_path: Path) -> Place:
        return Place(ShadowBackend(opened(tmp_path / "active"), opened(tmp_path / "mirror")))


class TestLimited(WriteContract, TagContract, BlobListingContract, DeadlineContract):
    @pytest.fixture
    def place(self, tmp_path: Path) -> Place:
        meter = Meter(1e9)
        return Place(LimitedBackend(opened(tmp_path), read=meter, write=meter))


class Down:
    """A backend in the place of one that cannot be asked."""

    def __init__(self, inner: Backend) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> object:
        if name in ("description", "read_only"):
            return getattr(self._inner, name)
        raise Unreachable("ASK", "the storage", "it is down")


@pytest.fixture
def sides(tmp_path: Path) -> tuple[LocalBackend, LocalBackend]:
    return opened(tmp_path / "active"), opened(tmp_path / "mirror")


async def test_a_shadow_stores_in_both(sides: tuple[LocalBackend, LocalBackend]) -> None:
    name = await store(ShadowBackend(*sides), b"twice")
    for side in sides:
        assert await read(side, name) == b"twice"


async def test_a_shadow_reads_what_only_its_mirror_has(
    sides: tuple[LocalBackend, LocalBackend],
) -> None:
    name = await store(sides[1], b"only there")
    shadow = ShadowBackend(*sides)
    assert await shadow.stat(name, deadline=deadline()) == 10
    assert await read(shadow, name) == b"only there"


async def test_a_shadow_completes_what_one_side_lacks(
    sides: tuple[LocalBackend, LocalBackend],
) -> None:
    name = await store(sides[0], b"old")
    await store(ShadowBackend(*sides), b"old")
    assert await read(sides[1], name) == b"old"


async def test_a_put_into_a_shadow_fails_when_one_side_does(
    sides: tuple[LocalBackend, LocalBackend],
) -> None:
    down: Backend = Down(sides[1])  # type: ignore[assignment]  # every question fails
    with pytest.raises(Unreachable):
        await store(ShadowBackend(sides[0], down), b"half")


async def test_a_shadow_says_not_there_only_when_both_do(
    sides: tuple[LocalBackend, LocalBackend],
) -> None:
    name = await store(sides[1], b"kept")
    down: Backend = Down(sides[0])  # type: ignore[assignment]  # every question fails
    shadow = ShadowBackend(down, sides[1])
    assert await read(shadow, name) == b"kept"
    with pytest.raises(Unreachable):
        await shadow.stat(blob(b"nowhere"), deadline=deadline())
    with pytest.raises(NotFound):
        await read(ShadowBackend(*sides), blob(b"nowhere"))
