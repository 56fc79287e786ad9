# SPDX-License-Identifier: Apache-2.0
"""What the store and the caches built on it do while the disk fails (see `tests.faults`)."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from shoal.agent.library import Library
from shoal.model.digest import Digest
from shoal.origin.local import KEPT, METAINFO, LocalBlobs
from shoal.store import blobs
from shoal.store.blobs import BlobStore
from shoal.store.uploads import UploadSessions
from shoal.store.writer import BlobWriter
from shoal.swarm.metainfo import MIN_PIECE, metainfo_of
from shoal.swarm.pieces import PieceFile
from tests.faults import Scenario

CONTENT = bytes(range(256)) * 1024
OF_CONTENT = metainfo_of(CONTENT)
DIGEST = Digest.parse(OF_CONTENT.digest)
OTHER = Digest.parse("sha512:" + "0" * 128)
SIDECARS = {"note": b"n" * 1000, "mark": b""}


def reopened(root: Path) -> BlobStore:
    """The store as a process sees it that starts now."""
    blobs._STARTED = time.time() + 1
    return BlobStore(root)


def write(path: Path, data: bytes = CONTENT) -> None:
    writer = BlobWriter(path)
    half = len(data) // 2
    try:
        writer.append([data[:half]])
        writer.append([data[half:]])
        writer.sync()
        writer.close()
    except OSError:
        writer.discard()
        raise


def check_tree(root: Path, store: BlobStore, here: bool, sidecars: set[str]) -> None:
    """The blob is wholly here and right, or nothing of it is."""
    assert list((root / "incoming").iterdir()) == [], "leftovers"
    files = {path.name for path in (root / "blobs").rglob("*") if path.is_file()}
    names = {f"{DIGEST.hex}.{name}" for name in sidecars}
    assert files == ({DIGEST.hex, *names} if here else set())
    assert list(store.digests()) == ([DIGEST] if here else [])
    if here:
        assert store.path(DIGEST).read_bytes() == CONTENT


def _nothing(_: Path) -> None: ...


# -- a store that is opened for the first time


def _open(root: Path, _: None) -> bool:
    return list(BlobStore(root / "deep" / "data").digests()) == []


def _opened(root: Path, _: bool | None) -> None:
    store = reopened(root / "deep" / "data")
    temp = store.temp()
    write(temp)
    store.adopt(temp, DIGEST, SIDECARS, durable=True)
    check_tree(root / "deep" / "data", store, here=True, sidecars=set(SIDECARS))


opening = Scenario(_nothing, _nothing, _open, _opened)


# -- a blob that is pushed


def _adopt(_: Path, store: BlobStore) -> bool:
    temp = store.temp()
    write(temp)
    try:
        store.adopt(temp, DIGEST, SIDECARS, durable=True)
    except OSError:
        assert store.stat(DIGEST) is None
        temp.unlink()
        raise
    return True


def _adopted(root: Path, acknowledged: bool | None) -> None:
    store = reopened(root)
    here = store.stat(DIGEST) is not None
    assert here or not acknowledged, "an acknowledged blob is lost"
    check_tree(root, store, here, set(SIDECARS))
    if here:
        assert {name: store.sidecar(DIGEST, name) for name in SIDECARS} == SIDECARS


adopting = Scenario(_nothing, BlobStore, _adopt, _adopted)


def _adopt_other(_: Path, store: BlobStore) -> bool:
    temp = store.temp()
    write(temp)
    store.adopt(temp, OTHER, {}, durable=True)  # its folder is yet to be made
    return True


def _adopted_other(root: Path, acknowledged: bool | None) -> None:
    store = reopened(root)
    stored = store.stat(OTHER)
    assert stored is not None or not acknowledged
    assert stored is None or stored.path.read_bytes() == CONTENT
    assert list((root / "incoming").iterdir()) == []


adopting_in_a_new_folder = Scenario(_nothing, BlobStore, _adopt_other, _adopted_other)


# -- the same blob once more: the copy that is here stays, whatever happens


def _with_blob(root: Path) -> None:
    store = BlobStore(root)
    temp = store.temp()
    write(temp)
    store.adopt(temp, DIGEST, SIDECARS, durable=True)


def _adopted_again(root: Path, _: bool | None) -> None:
    store = reopened(root)
    check_tree(root, store, here=True, sidecars=set(SIDECARS))
    assert {name: store.sidecar(DIGEST, name) for name in SIDECARS} == SIDECARS


def _adopt_again(_: Path, store: BlobStore) -> bool:
    temp = store.temp()
    write(temp)
    store.adopt(temp, DIGEST, SIDECARS, durable=True)
    return True


adopting_again = Scenario(_with_blob, BlobStore, _adopt_again, _adopted_again)


# -- a sidecar that is added


def _mark(_: Path, store: BlobStore) -> bool:
    store.write_sidecar(DIGEST, "mark", b"new", durable=True)
    return True


def _marked(root: Path, acknowledged: bool | None) -> None:
    store = reopened(root)
    check_tree(root, store, here=True, sidecars=set(SIDECARS))
    assert store.sidecar(DIGEST, "mark") in ({b"new"} if acknowledged else {b"", b"new"})
    assert store.sidecar(DIGEST, "note") == SIDECARS["note"]


marking = Scenario(_with_blob, BlobStore, _mark, _marked)


# -- a blob that is deleted


def _delete(_: Path, store: BlobStore) -> bool:
    return store.delete(DIGEST)


def _deleted(root: Path, acknowledged: bool | None) -> None:
    store = reopened(root)
    if store.stat(DIGEST) is None:
        check_tree(root, store, here=False, sidecars=set())
    else:
        assert not acknowledged
        assert store.path(DIGEST).read_bytes() == CONTENT


deleting = Scenario(_with_blob, BlobStore, _delete, _deleted)


# -- an upload in chunks that goes on after an error, or after a restart


def _chunks(_: Path, sessions: UploadSessions) -> list[object]:
    upload = sessions.start()
    session = sessions.open(upload)
    assert session is not None
    acknowledged = 0
    for start in (0, 100_000):
        try:
            with session.exclusive() as writer:
                writer.append([CONTENT[start : start + 100_000]])
                writer.sync()
                acknowledged = writer.size
        except OSError:
            assert session.size <= session.path.stat().st_size
    return [upload, acknowledged]


def _continued(root: Path, done: list[object] | None) -> None:
    sessions = UploadSessions(root / "uploads")
    if done is None:
        begun = [path.stem for path in (root / "uploads").iterdir()]
        if not begun:
            return
        [upload] = begun
    else:
        upload = str(done[0])
    session = sessions.open(upload)
    assert session is not None
    if done is not None:
        assert session.size >= int(str(done[1])), "acknowledged bytes are lost"
    with session.exclusive() as writer:
        held = writer.path.read_bytes()
        assert len(held) == writer.size
        assert writer.digest() == Digest.of(held), "what was hashed is not what is there"
    assert sessions.discard(upload)
    assert list((root / "uploads").iterdir()) == []


uploading = Scenario(_nothing, lambda root: UploadSessions(root / "uploads"), _chunks, _continued)


# -- a copy on an origin


def _keep(_: Path, store: BlobStore) -> bool:
    temp = store.temp()
    write(temp)
    try:
        LocalBlobs(store).keep(temp, OF_CONTENT, kept=True)
    except OSError:
        temp.unlink(missing_ok=True)
        raise
    return True


def _is_kept(root: Path, acknowledged: bool | None) -> None:
    store = reopened(root)
    local = LocalBlobs(store)
    whole = local.find(DIGEST)
    assert whole is not None or not acknowledged
    check_tree(root, store, whole is not None, {METAINFO, KEPT})
    if whole is not None:
        assert whole.metainfo == OF_CONTENT
        assert local.is_kept(DIGEST)
        assert local.recheck(DIGEST)


keeping = Scenario(_nothing, BlobStore, _keep, _is_kept)


# -- a download on an agent


def _library(root: Path) -> Library:
    return Library(root, ThreadPoolExecutor(1))


def _download(_: Path, library: Library) -> bool:
    async def fetch() -> None:
        pieces = library.partial(OF_CONTENT)
        try:
            for index in range(OF_CONTENT.count):
                start, stop = OF_CONTENT.span(index)
                await pieces.store(index, memoryview(CONTENT)[start:stop])
            library.finish(pieces)
        finally:
            pieces.close()

    asyncio.run(fetch())
    return True


def _downloaded(root: Path, acknowledged: bool | None) -> None:
    blobs._STARTED = time.time() + 1
    with ThreadPoolExecutor(1) as executor:
        library = Library(root, executor)

        async def look() -> None:
            pieces = library.complete(DIGEST)
            assert pieces is not None or not acknowledged
            goes_on = pieces is None
            pieces = pieces or library.partial(OF_CONTENT)
            for index in range(OF_CONTENT.count):
                start, stop = OF_CONTENT.span(index)
                if await pieces.ensure(index):
                    assert _read(pieces, start, stop) == CONTENT[start:stop]
                else:
                    assert goes_on, "a cached blob is damaged"
            pieces.close()

        asyncio.run(look())
    assert list((root / "incoming").iterdir()) == []


def _read(pieces: PieceFile, start: int, stop: int) -> bytes:
    with open(pieces.file.fd, "rb", closefd=False) as file:
        file.seek(start)
        return file.read(stop - start)


assert OF_CONTENT.piece_size == MIN_PIECE


downloading = Scenario(_nothing, _library, _download, _downloaded)


# -- a manifest in an agent's cache


def _keep_small(_: Path, library: Library) -> bool:
    library.keep_small(DIGEST, CONTENT)
    return True


def _small_kept(root: Path, acknowledged: bool | None) -> None:
    store = reopened(root)
    with ThreadPoolExecutor(1) as executor:
        found = Library(root, executor).read_small(DIGEST)
    assert found == CONTENT or (found is None and not acknowledged)
    check_tree(root, store, found is not None, {"metainfo"})


caching_a_manifest = Scenario(_nothing, _library, _keep_small, _small_kept)
