# SPDX-License-Identifier: Apache-2.0
"""An origin gives up only what a backend has, and nobody uses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shoal.model.digest import Digest
from shoal.origin.eviction import BackedCopies
from shoal.origin.local import LocalBlobs
from shoal.store.blobs import BlobStore
from shoal.store.volumes import Volumes
from shoal.swarm.metainfo import metainfo_of

DATA = os.urandom(1000)
DIGEST = Digest.of(DATA)


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(Volumes([tmp_path / "a", tmp_path / "b"]))


class Host:
    def __init__(self, store: BlobStore) -> None:
        self.store = store
        self.local = LocalBlobs(store, clock=lambda: self.now)
        self.now = 1e9
        self.busy: set[Digest] = set()
        self.forgotten: list[Digest] = []
        self.copies = BackedCopies(
            store, self.local, lambda digest: digest in self.busy, self.forgotten.append
        )

    def keep(self, *, backed: bool) -> Path:
        temp = self.store.temp(DIGEST)
        temp.write_bytes(DATA)
        entries = ["files|team/app"] if backed else []
        return self.local.keep(temp, metainfo_of(DATA), backed=entries).path


@pytest.fixture
def host(store: BlobStore) -> Host:
    return Host(store)


async def test_a_copy_that_a_backend_has_may_go(host: Host) -> None:
    path = host.keep(backed=True)
    [copy] = host.copies.blobs()
    assert (copy.digest, copy.size, copy.protected) == (DIGEST, len(DATA), False)
    assert host.store.volumes.paths[copy.volume] == host.store.volumes.of(path)
    assert await host.copies.evict(DIGEST)
    assert host.local.find(DIGEST) is None
    assert host.forgotten == [DIGEST]
    assert list(path.parent.iterdir()) == []


async def stays(host: Host) -> bool:
    [copy] = host.copies.blobs()
    evicted = await host.copies.evict(DIGEST)
    return copy.protected and not evicted and host.local.find(DIGEST) is not None


async def test_the_only_copy_stays(host: Host) -> None:
    host.keep(backed=False)
    assert await stays(host)


async def test_a_copy_in_use_stays(host: Host) -> None:
    host.keep(backed=True)
    with host.local.in_use(DIGEST):
        assert await stays(host)
    assert await host.copies.evict(DIGEST)


async def test_a_copy_that_waits_for_a_backend_stays(host: Host) -> None:
    host.keep(backed=True)
    host.local.pinned_by(lambda digest: digest == DIGEST)
    assert await stays(host)


async def test_a_copy_that_is_sent_to_a_peer_stays(host: Host) -> None:
    host.keep(backed=True)
    host.busy = {DIGEST}
    assert await stays(host)
    assert host.forgotten == []


async def test_a_damaged_note_is_no_proof_of_a_backend(host: Host) -> None:
    path = host.keep(backed=True)
    path.with_name(f"{path.name}.backed").write_bytes(b"?")
    assert not await host.copies.evict(DIGEST)
    assert host.local.find(DIGEST) is not None


async def test_what_is_gone_already_is_not_evicted(host: Host) -> None:
    assert not await host.copies.evict(DIGEST)


def test_use_is_noted_once_a_minute(host: Host) -> None:
    path = host.keep(backed=True)
    whole = host.local.find(DIGEST)
    assert whole is not None
    host.now += 59
    host.local.note_use(whole)
    assert path.stat().st_atime == 1e9
    host.now += 2
    modified = path.stat().st_mtime_ns
    host.local.note_use(whole)
    assert path.stat().st_atime == host.now
    assert path.stat().st_mtime_ns == modified
    path.unlink()
    host.local.note_use(whole)


async def confirmed(_: Digest) -> bool:
    return True


async def test_what_a_repository_without_a_backend_has_stays(host: Host) -> None:
    """Its base layer was pulled through from an upstream before: only there it would come back."""
    path = host.keep(backed=True)
    host.local.note_unbacked(DIGEST)
    assert await stays(host)
    path.with_name(f"{path.name}.unbacked").write_bytes(b"")  # damaged
    assert await stays(host)


async def test_a_push_without_a_backend_protects_the_copy_that_it_replaces(host: Host) -> None:
    host.keep(backed=True)
    temp = host.store.temp(DIGEST)
    temp.write_bytes(DATA)
    host.local.keep(temp, metainfo_of(DATA), unbacked=True)
    assert await stays(host)


async def test_a_backend_that_the_config_does_not_have_any_more_brings_nothing_back(
    host: Host,
) -> None:
    host.keep(backed=True)
    host.local.backing.known_by(lambda entry: entry != "files|team/app", confirmed)
    assert await stays(host)


async def test_all_that_have_the_blob_must_get_it_back(host: Host) -> None:
    host.keep(backed=True)
    host.local.note_backed(DIGEST, ["gone|other/app"])
    host.local.backing.known_by(lambda entry: entry == "files|team/app", confirmed)
    assert await stays(host)


async def test_a_spare_copy_that_has_no_backend_is_not_left_to_ones_that_may_be_evicted(
    host: Host,
) -> None:
    host.keep(backed=True)
    host.local.note_unbacked(DIGEST)
    assert host.local.give_up_spare(DIGEST, host.now + 1) is None
