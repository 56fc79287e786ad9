# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from shoal.model.digest import Digest
from shoal.store import blobs, durable
from shoal.store.blobs import BlobStore

CONTENT = b"a layer"
DIGEST = Digest.of(CONTENT)


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path)


def put(store: BlobStore, content: bytes = CONTENT, *, durable: bool = False) -> Digest:
    digest = Digest.of(content)
    writer = store.writer()
    writer.append([content])
    writer.close()
    store.adopt(writer.path, digest, {"pieces": b"p" + content}, durable=durable)
    return digest


def test_a_blob_lies_under_its_digest_with_its_sidecars(store: BlobStore, tmp_path: Path) -> None:
    put(store)
    path = tmp_path / "blobs" / "sha256" / DIGEST.hex[:2] / DIGEST.hex
    assert store.path(DIGEST) == path
    assert path.read_bytes() == CONTENT
    stored = store.stat(DIGEST)
    assert stored is not None
    assert (stored.digest, stored.path, stored.size) == (DIGEST, path, len(CONTENT))
    assert store.sidecar(DIGEST, "pieces") == b"p" + CONTENT
    assert list((tmp_path / "incoming").iterdir()) == []


def test_what_is_not_here_is_none(store: BlobStore) -> None:
    assert store.stat(DIGEST) is None
    assert store.sidecar(DIGEST, "pieces") is None
    assert store.delete(DIGEST) is False
    assert list(store.digests()) == []


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "check"])
def test_a_damaged_sidecar_reads_as_none(store: BlobStore, damage: str) -> None:
    put(store)
    path = store.path(DIGEST).with_name(f"{DIGEST.hex}.pieces")
    raw = bytearray(path.read_bytes())
    if damage == "cut":
        del raw[-1]
    elif damage == "flip":
        raw[0] ^= 1
    elif damage == "check":
        raw[-1] ^= 1
    path.write_bytes(b"" if damage == "empty" else raw)
    assert store.sidecar(DIGEST, "pieces") is None
    store.write_sidecar(DIGEST, "pieces", b"again", durable=True)
    assert store.sidecar(DIGEST, "pieces") == b"again"


def test_a_sidecar_has_a_plain_name(store: BlobStore) -> None:
    with pytest.raises(ValueError, match="not the name of a sidecar"):
        store.write_sidecar(DIGEST, "../x", b"", durable=False)


def test_delete_takes_the_sidecars_too(store: BlobStore) -> None:
    put(store)
    other = put(store, b"other")
    assert store.delete(DIGEST) is True
    assert list(store.path(DIGEST).parent.glob(f"{DIGEST.hex}*")) == []
    assert list(store.digests()) == [other]


def test_digests_skips_sidecars_and_strangers(store: BlobStore) -> None:
    put(store)
    (store.path(DIGEST).parent / "notes.txt").write_text("x")
    (store.path(DIGEST).parent / ".tmp").write_text("x")
    assert list(store.digests()) == [DIGEST]


def test_leftovers_of_an_earlier_process_go_and_those_of_this_one_stay(tmp_path: Path) -> None:
    incoming = tmp_path / "incoming"
    incoming.mkdir()
    (incoming / "old").write_text("x")
    os.utime(incoming / "old", (1, 1))
    (incoming / "new").write_text("x")
    BlobStore(tmp_path)
    assert [entry.name for entry in incoming.iterdir()] == ["new"]


class Journal:
    """What reaches the disk, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
        self.events: list[str] = []
        self._root = root
        fsync, replace = os.fsync, Path.replace

        def recorded_fsync(descriptor: int) -> None:
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            self.events.append(f"fsync {self._name(path)}")
            fsync(descriptor)

        def recorded_replace(path: Path, target: Any) -> Path:
            self.events.append(f"rename {self._name(target)}")
            return replace(path, target)

        monkeypatch.setattr(os, "fsync", recorded_fsync)
        monkeypatch.setattr(Path, "replace", recorded_replace)

    def _name(self, path: object) -> str:
        relative = os.path.relpath(str(path), self._root)
        if relative.startswith("incoming"):
            return "temp"
        return relative.replace(DIGEST.hex, "BLOB")


def test_a_durable_adopt_syncs_content_and_names_in_the_right_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = BlobStore(tmp_path)
    journal = Journal(monkeypatch, tmp_path)
    put(store, durable=True)
    folder = f"blobs/sha256/{DIGEST.hex[:2]}"
    assert journal.events == [
        "fsync temp",
        "rename temp",
        f"rename {folder}/BLOB.pieces",
        f"rename {folder}/BLOB",
        f"fsync {folder}",
    ]


def test_a_start_syncs_folders_that_an_earlier_process_may_not_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(BlobStore(tmp_path), durable=False)
    journal = Journal(monkeypatch, tmp_path)
    BlobStore(tmp_path)
    assert journal.events == ["fsync blobs/sha256", "fsync blobs"]


def test_a_folder_of_the_other_algorithm_is_made_durably_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = BlobStore(tmp_path)
    journal = Journal(monkeypatch, tmp_path)
    digest = Digest.of(CONTENT, "sha512")
    for _ in range(2):
        writer = store.writer("sha512")
        writer.append([CONTENT])
        writer.close()
        store.adopt(writer.path, digest, {}, durable=True)
    above = [event for event in journal.events if event in {"fsync blobs/sha512", "fsync blobs"}]
    assert above == ["fsync blobs/sha512", "fsync blobs"]


def test_a_sidecar_that_is_added_later_is_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = BlobStore(tmp_path)
    put(store, durable=True)
    journal = Journal(monkeypatch, tmp_path)
    store.write_sidecar(DIGEST, "pieces", b"anew", durable=True)
    folder = f"blobs/sha256/{DIGEST.hex[:2]}"
    renamed = f"rename {folder}/BLOB.pieces"
    assert journal.events == ["fsync temp", renamed, f"fsync {folder}"]


def test_an_adopt_for_a_cache_syncs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = BlobStore(tmp_path)
    journal = Journal(monkeypatch, tmp_path)
    put(store, durable=False)
    assert [event for event in journal.events if event.startswith("fsync")] == []


def test_a_failed_adopt_leaves_no_blob(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(blobs, "fsync_file", full)
    with pytest.raises(OSError, match="No space left"):
        put(store, durable=True)
    assert store.stat(DIGEST) is None


def test_folders_are_made_durably_each_with_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(monkeypatch, tmp_path)
    durable.make_dirs_durably(tmp_path / "a" / "b")
    assert journal.events == ["fsync .", "fsync a"]


def test_a_durable_write_is_whole_or_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "state"
    durable.write_durably(target, b"old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        durable.write_durably(target, b"new")
    assert target.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]


def test_replacing_durably_syncs_the_file_before_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "new").write_bytes(b"new")
    journal = Journal(monkeypatch, tmp_path)
    durable.replace_durably(tmp_path / "new", tmp_path / "state")
    assert journal.events == ["fsync new", "rename state", "fsync ."]
    assert (tmp_path / "state").read_bytes() == b"new"
