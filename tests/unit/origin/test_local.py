# SPDX-License-Identifier: Apache-2.0
"""Only a whole copy is a copy."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from shoal.model.digest import Digest
from shoal.origin.local import METAINFO, LocalBlobs, damaged
from shoal.origin.measuring import measure
from shoal.origin.seeding import OwnersShare
from shoal.store.blobs import BlobStore
from shoal.store.volumes import Volumes
from shoal.swarm.metainfo import MIN_PIECE, metainfo_of

DATA = os.urandom(3 * MIN_PIECE + 17)
METAINFO_OF_DATA = metainfo_of(DATA)
DIGEST = Digest.parse(METAINFO_OF_DATA.digest)


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "data")


@pytest.fixture
def local(store: BlobStore) -> LocalBlobs:
    return LocalBlobs(store)


def keep(store: BlobStore, local: LocalBlobs, data: bytes = DATA) -> Path:
    temp = store.temp()
    temp.write_bytes(data)
    return local.keep(temp, metainfo_of(data)).path


@pytest.mark.parametrize("size", [0, 1, MIN_PIECE, 2 * MIN_PIECE + 1])
def test_measuring_a_file_gives_its_metainfo(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(DATA[:size])
    with path.open("rb", buffering=0) as file:
        assert measure(file, "sha256") == metainfo_of(DATA[:size])


def test_what_was_kept_is_found(store: BlobStore, local: LocalBlobs) -> None:
    assert local.find(DIGEST) is None
    path = keep(store, local)
    whole = local.find(DIGEST)
    assert whole is not None
    assert (whole.blob.path, whole.metainfo) == (path, METAINFO_OF_DATA)
    other = Digest.of(b"other")
    assert local.sizes([DIGEST, other]) == {DIGEST: len(DATA)}


@pytest.mark.parametrize("size", [0, len(DATA) - 1, len(DATA) + 1])
def test_a_copy_of_another_size_is_set_aside(
    store: BlobStore, local: LocalBlobs, size: int
) -> None:
    path = keep(store, local)
    os.truncate(path, size)
    assert local.find(DIGEST) is None
    assert not path.exists()
    assert damaged(path).stat().st_size == size
    assert list(store.digests()) == []
    keep(store, local)
    assert local.find(DIGEST) is not None


@pytest.mark.parametrize("sidecar", [None, b"", b"x" * 100])
def test_a_lost_or_damaged_metainfo_is_made_anew(
    store: BlobStore, local: LocalBlobs, sidecar: bytes | None
) -> None:
    path = keep(store, local)
    beside = path.with_name(f"{path.name}.{METAINFO}")
    beside.unlink() if sidecar is None else beside.write_bytes(sidecar)
    whole = local.find(DIGEST)
    assert whole is not None
    assert whole.metainfo == METAINFO_OF_DATA
    assert store.sidecar(DIGEST, METAINFO) == METAINFO_OF_DATA.encode()


def test_a_metainfo_of_another_blob_is_not_believed(store: BlobStore, local: LocalBlobs) -> None:
    keep(store, local)
    other = metainfo_of(b"other").encode()
    store.write_sidecar(DIGEST, METAINFO, other, durable=False)
    whole = local.find(DIGEST)
    assert whole is not None
    assert whole.metainfo == METAINFO_OF_DATA


def test_rechecking_finds_bytes_that_changed(store: BlobStore, local: LocalBlobs) -> None:
    path = keep(store, local)
    assert local.recheck(DIGEST)
    path.write_bytes(bytes(len(DATA)))
    assert local.find(DIGEST) is not None
    assert not local.recheck(DIGEST)
    assert local.find(DIGEST) is None
    assert damaged(path).exists()


def test_rechecking_what_is_not_here(local: LocalBlobs) -> None:
    assert not local.recheck(DIGEST)


def test_owners_share_the_seeding_by_their_place() -> None:
    hosts = ["a:1", "b:1", "c:1"]
    ranks = [OwnersShare(name, lambda _: hosts).rank(DIGEST) for name in (*hosts, "former:1")]
    assert ranks == [(0, 3), (1, 3), (2, 3), (3, 4)]


def test_a_copy_that_is_set_aside_on_one_volume_stays_kept_when_it_comes_to_another(
    tmp_path: Path,
) -> None:
    store = BlobStore(Volumes([tmp_path / "a", tmp_path / "b"]))
    local = LocalBlobs(store)
    [other] = [path for path in store.volumes.paths if path != store.volumes.choose(str(DIGEST))]
    temp = other / "incoming" / "upload"
    temp.write_bytes(DATA)
    path = local.keep(temp, METAINFO_OF_DATA, kept=True, unbacked=True).path
    path.write_bytes(DATA[:-1] + bytes([DATA[-1] ^ 1]))
    assert not local.recheck(DIGEST)
    assert store.path(DIGEST) != path
    assert local.is_kept(DIGEST)
    assert local.backing.is_unbacked(DIGEST)


def test_a_volume_that_fails_says_nothing_of_copies_on_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = BlobStore(Volumes([tmp_path / "a", tmp_path / "b"]))
    local = LocalBlobs(store)
    path = keep(store, local)
    failed = next(volume for volume in store.volumes.paths if volume != store.volumes.of(path))
    stat = Path.stat

    def broken(self: Path, **options: bool) -> os.stat_result:
        if failed in self.parents:
            raise OSError(errno.EIO, "Input/output error")
        return stat(self, **options)

    monkeypatch.setattr(Path, "stat", broken)
    [copy] = local.copies()
    assert copy.digest == DIGEST
    assert not copy.kept
    assert local.find(DIGEST) is not None


def unreadable(monkeypatch: pytest.MonkeyPatch, *paths: Path) -> None:
    """The disk gives neither the content nor the inode of these."""
    stat, read_bytes = Path.stat, Path.read_bytes

    def check(path: Path) -> None:
        if path in paths:
            raise OSError(errno.EIO, "Input/output error")

    def stat_of(self: Path, **options: bool) -> os.stat_result:
        check(self)
        return stat(self, **options)

    def bytes_of(self: Path) -> bytes:
        check(self)
        return read_bytes(self)

    monkeypatch.setattr(Path, "stat", stat_of)
    monkeypatch.setattr(Path, "read_bytes", bytes_of)


def test_a_metainfo_that_the_disk_does_not_give_is_made_anew(
    store: BlobStore, local: LocalBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = keep(store, local)
    beside = path.with_name(f"{path.name}.{METAINFO}")
    before = beside.stat().st_ino
    with monkeypatch.context() as patched:
        read_bytes = Path.read_bytes

        def broken(self: Path) -> bytes:
            if self == beside and os.stat(self).st_ino == before:
                raise OSError(errno.EIO, "Input/output error")
            return read_bytes(self)

        patched.setattr(Path, "read_bytes", broken)
        whole = local.find(DIGEST)
    assert whole is not None
    assert whole.metainfo == METAINFO_OF_DATA
    assert store.sidecar(DIGEST, METAINFO) == METAINFO_OF_DATA.encode()


def test_a_copy_that_the_disk_does_not_give_hides_no_others(
    store: BlobStore, local: LocalBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = keep(store, local)
    good = Digest.of(b"good")
    keep(store, local, b"good")
    with monkeypatch.context() as patched:
        unreadable(patched, bad)
        assert local.sizes([DIGEST, good]) == {good: 4}
        assert local.hold([DIGEST, good], 60.0) == {good: 4}
        assert [copy.digest for copy in local.copies()] == [good]
        with pytest.raises(OSError, match="Input/output"):
            local.sizes([DIGEST])
    assert local.sizes([DIGEST, good]) == {DIGEST: len(DATA), good: 4}


def test_what_can_only_be_read_is_read(
    store: BlobStore, local: LocalBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system with an error is often mounted anew as read-only."""
    path = keep(store, local)
    os.utime(path, (1, 1))

    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "utime", read_only)
    whole = local.find(DIGEST)
    assert whole is not None
    local.note_use(whole)
