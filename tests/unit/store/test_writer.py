# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.model.digest import Digest
from shoal.store.writer import BlobWriter, Chunk


class Seen:
    def __init__(self) -> None:
        self.data = bytearray()

    def update(self, data: Chunk) -> None:
        self.data += data


@given(batches=st.lists(st.lists(st.binary(max_size=50), max_size=5), max_size=5))
def test_file_digest_size_and_pieces_agree_however_the_bytes_are_batched(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[bytes]]
) -> None:
    path = tmp_path_factory.mktemp("w") / "blob"
    pieces = Seen()
    writer = BlobWriter(path, pieces=pieces)
    for batch in batches:
        writer.append([memoryview(chunk) for chunk in batch])
    writer.sync()
    writer.close()
    content = b"".join(b"".join(batch) for batch in batches)
    assert path.read_bytes() == content == bytes(pieces.data)
    assert writer.size == len(content)
    assert writer.digest() == Digest.of(content)
    assert writer.digest("sha512") == Digest.of(content, "sha512")


def test_more_chunks_than_one_system_call_takes(tmp_path: Path) -> None:
    writer = BlobWriter(tmp_path / "blob")
    chunks = [bytes([n % 251]) for n in range(5000)]
    writer.append(chunks)
    assert (tmp_path / "blob").read_bytes() == b"".join(chunks)
    writer.close()


def test_short_writes_are_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.writev

    def short(descriptor: int, views: Sequence[memoryview]) -> int:
        return real(descriptor, [views[0][:3]])

    monkeypatch.setattr(os, "writev", short)
    writer = BlobWriter(tmp_path / "blob")
    writer.append([b"0123456", b"", b"789"])
    writer.close()
    assert (tmp_path / "blob").read_bytes() == b"0123456789"


def test_a_full_disk_leaves_the_writer_as_it_was_before_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = BlobWriter(tmp_path / "blob")
    writer.append([b"first"])
    real = os.writev
    calls = 0

    def full(descriptor: int, views: Sequence[Any]) -> int:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, [views[0][:2]])

    monkeypatch.setattr(os, "writev", full)
    with pytest.raises(OSError, match="No space left"):
        writer.append([b"second"])
    monkeypatch.undo()
    assert (tmp_path / "blob").read_bytes() == b"first"
    writer.append([b"third"])
    writer.close()
    assert writer.digest() == Digest.of(b"firstthird")
    assert (tmp_path / "blob").read_bytes() == b"firstthird"


def test_a_closed_writer_goes_on_where_it_was(tmp_path: Path) -> None:
    writer = BlobWriter(tmp_path / "blob")
    writer.append([b"one"])
    writer.close()
    writer.close()
    writer.sync()
    writer.append([b"two"])
    writer.close()
    assert (tmp_path / "blob").read_bytes() == b"onetwo"


def test_a_resumed_writer_knows_what_the_file_holds(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(b"before the restart, ")
    writer = BlobWriter.resume(path)
    assert writer.size == 20
    writer.append([b"after"])
    writer.close()
    assert writer.digest() == Digest.of(b"before the restart, after")
    assert path.read_bytes() == b"before the restart, after"


def test_a_new_writer_never_takes_over_a_file(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"x")
    with pytest.raises(FileExistsError):
        BlobWriter(tmp_path / "blob")


def test_discard_removes_the_file_and_forgives_one_that_was_moved(tmp_path: Path) -> None:
    writer = BlobWriter(tmp_path / "blob")
    writer.discard()
    assert not (tmp_path / "blob").exists()
    writer.discard()


def test_after_a_sync_that_failed_nothing_is_vouched_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system tells of a lost write once; the next sync of the file succeeds."""
    writer = BlobWriter(tmp_path / "blob")
    writer.append([b"first"])

    def failing(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", failing)
    with pytest.raises(OSError, match="Input/output"):
        writer.sync()
    monkeypatch.undo()
    with pytest.raises(OSError, match="Input/output"):
        writer.append([b"second"])
    with pytest.raises(OSError, match="Input/output"):
        writer.digest()
