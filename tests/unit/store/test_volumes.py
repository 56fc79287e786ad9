# SPDX-License-Identifier: Apache-2.0
"""A store over several disks: where files go, and what a missing or a failing disk does."""

from __future__ import annotations

import errno
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest

from shoal.model.digest import Digest
from shoal.store import blobs, durable, volumes
from shoal.store.blobs import BlobStore
from shoal.store.uploads import UploadSessions
from shoal.store.volumes import MARKER, Volumes, VolumesUnusable, open_volumes

CONTENT = [f"blob {number}".encode() for number in range(60)]


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return [tmp_path / name for name in ("a", "b", "c")]


@pytest.fixture
def store(paths: list[Path]) -> BlobStore:
    return BlobStore(Volumes(paths))


def put(store: BlobStore, content: bytes, sidecars: dict[str, bytes] | None = None) -> Path:
    digest = Digest.of(content)
    temp = store.temp(digest)
    temp.write_bytes(content)
    return store.adopt(temp, digest, sidecars or {"note": b"n"}, durable=True).path


def test_blobs_are_spread_by_weight_and_found_again(paths: list[Path]) -> None:
    spread = Volumes(paths, {paths[0]: 4.0, paths[1]: 1.0, paths[2]: 0.0})
    store = BlobStore(spread)
    used = {spread.of(put(store, content)) for content in CONTENT}
    assert used == {paths[0], paths[1]}
    # Where it goes depends on the folders' names, too: few blobs would be a lottery.
    count = Counter(spread.choose(str(number)) for number in range(2000))
    assert count[paths[0]] > 3 * count[paths[1]] > 0
    assert count[paths[2]] == 0
    again = BlobStore(Volumes(paths))
    for content in CONTENT:
        digest = Digest.of(content)
        assert again.path(digest).read_bytes() == content
        assert again.sidecar(digest, "note") == b"n"
    assert list(again.digests()) == sorted(map(Digest.of, CONTENT), key=str)


def test_a_temp_file_lies_where_the_blob_will(store: BlobStore, paths: list[Path]) -> None:
    for content in CONTENT:
        digest = Digest.of(content)
        temp = store.temp(digest)
        assert store.volumes.of(temp) == store.volumes.of(store.path(digest))
        assert store.volumes.of(store.temp(beside=temp)) == store.volumes.of(temp)
    assert {store.volumes.of(store.temp(Digest.of(content))) for content in CONTENT} == set(paths)


def test_digests_come_in_order_from_a_point_on(store: BlobStore) -> None:
    for content in CONTENT:
        put(store, content)
    everything = list(map(str, store.digests()))
    for position in (0, 17, len(everything) - 1):
        rest = list(map(str, store.digests(after=everything[position])))
        assert rest == everything[position + 1 :]


def test_files_beside_blobs_are_listed_by_their_suffix(store: BlobStore) -> None:
    path = put(store, CONTENT[0])
    put(store, CONTENT[1])
    path.rename(path.with_name(f"{path.name}.damaged"))
    assert list(store.digests(suffix=".damaged")) == [Digest.of(CONTENT[0])]
    assert list(store.digests()) == [Digest.of(CONTENT[1])]


def test_a_copy_that_comes_to_another_volume_takes_the_place_of_the_older_one(
    store: BlobStore, paths: list[Path]
) -> None:
    content, digest = CONTENT[0], Digest.of(CONTENT[0])
    older = put(store, content, {"note": b"old", "kept": b""})
    other = next(path for path in paths if path != store.volumes.of(older))
    temp = store.temp(beside=other / "incoming" / "x")
    temp.write_bytes(content)
    newer = store.adopt(temp, digest, {"note": b"new"}, durable=True).path
    assert store.volumes.of(newer) == other
    assert store.path(digest) == newer
    assert not older.exists()
    assert (store.sidecar(digest, "note"), store.sidecar(digest, "kept")) == (b"new", b"")
    assert store.delete(digest)
    assert list(store.digests()) == []


def test_a_volume_that_fails_gets_nothing_new_and_is_still_read(
    store: BlobStore, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [put(store, content) for content in CONTENT[:20]]
    broken = store.volumes.of(before[0])
    fsync = durable.fsync_file

    def failing(path: Path) -> None:
        if broken in path.parents:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(path)

    monkeypatch.setattr(blobs, "fsync_file", failing)
    failed = 0
    for content in CONTENT[20:]:
        try:
            assert store.volumes.of(put(store, content)) != broken
        except OSError:
            failed += 1
    assert failed == 1
    assert store.volumes.failures() == [f"{broken}: Input/output error"]
    assert all(path.exists() for path in before)
    assert store.stat(Digest.of(CONTENT[0])) is not None
    assert broken in paths


def test_with_all_volumes_failed_it_says_why(store: BlobStore, paths: list[Path]) -> None:
    for path in paths:
        store.volumes.failed(path / "x", OSError(errno.EROFS, "Read-only file system"))
    with pytest.raises(OSError, match="Read-only file system"):
        store.temp(Digest.of(b"x"))


def test_a_full_disk_is_not_a_broken_one(store: BlobStore, paths: list[Path]) -> None:
    store.volumes.failed(paths[0] / "x", OSError(errno.ENOSPC, "No space left on device"))
    assert store.volumes.failures() == []


def test_a_lookup_goes_on_past_a_volume_that_cannot_be_read(
    store: BlobStore, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    on = {store.volumes.of(put(store, content)): Digest.of(content) for content in CONTENT}
    stat = Path.stat

    def failing(self: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        if paths[0] in self.parents:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return stat(self, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(Path, "stat", failing)
    assert store.stat(on[paths[2]]) is not None
    assert store.stat(on[paths[0]]) is None
    assert store.volumes.failures() == [f"{paths[0]}: Input/output error"]


def test_sessions_are_spread_and_found_after_a_restart(paths: list[Path]) -> None:
    spread = Volumes(paths)
    sessions = UploadSessions(spread.under("uploads"))
    ids = [sessions.start() for _ in range(30)]
    assert all(any((path / "uploads").iterdir()) for path in paths)
    again = UploadSessions(Volumes(paths).under("uploads"))
    assert all(again.open(upload) is not None for upload in ids)
    assert sorted(again.expire(now=2e10, ttl=1.0)) == sorted(ids)


def test_spaces_are_those_of_the_disks(paths: list[Path], tmp_path: Path) -> None:
    BlobStore(Volumes(paths))
    free = shutil.disk_usage(tmp_path).free
    for space in Volumes(paths).spaces():
        assert space.free <= space.total
        assert abs(space.free - free) < 1 << 30
    [gone] = Volumes([tmp_path / "gone"]).spaces()
    assert (gone.total, gone.free) == (0, 0)


def test_checking_finds_a_volume_that_is_read_only(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    BlobStore(Volumes(paths))

    def probe(folder: Path) -> None:
        if folder == paths[1]:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(volumes, "_try_write", probe)
    checked = Volumes(paths)
    checked.check()
    assert checked.failures() == [f"{paths[1]}: Read-only file system"]


# -- at the start


def test_one_folder_needs_no_marks(tmp_path: Path) -> None:
    assert open_volumes(tmp_path / "data", {}).paths == (tmp_path / "data",)
    assert list((tmp_path / "data").iterdir()) == []


def test_volumes_are_known_again_when_they_are_mounted(tmp_path: Path, paths: list[Path]) -> None:
    data, *more = paths
    for path in more:
        path.mkdir()
    weights = dict.fromkeys(more, 2.0)
    assert open_volumes(data, weights).paths == tuple(paths)
    assert open_volumes(data, weights).paths == tuple(paths)
    more[0].rename(tmp_path / "unmounted")
    with pytest.raises(VolumesUnusable, match="no such folder"):
        open_volumes(data, weights)
    more[0].mkdir()
    with pytest.raises(VolumesUnusable, match="mount its disk"):
        open_volumes(data, weights)
    # Given up: a start without it forgets it, and the folder is a new volume after that.
    assert open_volumes(data, {more[1]: 2.0}).paths == (data, more[1])
    assert open_volumes(data, weights).paths == tuple(paths)


def test_another_disk_in_a_volume_s_place_is_refused(paths: list[Path]) -> None:
    data, one, two = paths
    for path in (one, two):
        path.mkdir()
    open_volumes(data, {one: 1.0, two: 1.0})
    (one / MARKER).write_text("another")
    with pytest.raises(VolumesUnusable, match="the mark another"):
        open_volumes(data, {one: 1.0, two: 1.0})


def test_the_same_folder_twice_is_refused(paths: list[Path]) -> None:
    data, one, link = paths
    one.mkdir()
    link.symlink_to(one)
    with pytest.raises(VolumesUnusable, match="the same folder"):
        open_volumes(data, {one: 1.0, link: 1.0})


def test_a_volume_that_cannot_be_written_stops_the_start(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, one, _ = paths
    one.mkdir()

    def probe(folder: Path) -> None:
        if folder == one:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(volumes, "_try_write", probe)
    with pytest.raises(VolumesUnusable, match="Read-only"):
        open_volumes(data, {one: 1.0})
