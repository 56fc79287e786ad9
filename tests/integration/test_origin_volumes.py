# SPDX-License-Identifier: Apache-2.0
"""An origin with several disks: blobs on all of them, and a start that misses none."""

from __future__ import annotations

import os
import signal
import urllib.request
from pathlib import Path

from shoal.model.digest import Digest
from tests.integration.origin_ring import Origin, running_ring

KIB = 1024


def upload_in_chunks(origin: Origin, data: bytes) -> None:
    digest = Digest.of(data)
    start = origin.url(f"/namespace/files/blobs/{digest}/uploads")
    with urllib.request.urlopen(urllib.request.Request(start, method="POST")) as answer:
        upload = origin.url(answer.headers["Location"])
    for method, part in (("PATCH", data[: len(data) // 2]), ("PUT", data[len(data) // 2 :])):
        request = urllib.request.Request(upload, data=part, method=method)
        with urllib.request.urlopen(request, timeout=20) as answer:
            assert answer.status in {201, 202}


def read(origin: Origin, data: bytes) -> bytes:
    with urllib.request.urlopen(origin.url(f"/internal/blobs/{Digest.of(data)}")) as answer:
        return bytes(answer.read())


def test_blobs_lie_on_all_disks_and_a_missing_one_stops_the_start(tmp_path: Path) -> None:
    disks = [tmp_path / "disk-a", tmp_path / "disk-b"]
    for disk in disks:
        disk.mkdir()
    volumes = [{"path": str(disks[0])}, {"path": str(disks[1]), "weight": 2}]
    with running_ring(
        tmp_path / "ring", origins=1, replicas=1, write_quorum=1, volumes=volumes
    ) as ring:
        [origin] = ring.origins
        blobs = [os.urandom(300 * KIB) for _ in range(24)]
        for number, data in enumerate(blobs):
            if number % 2:
                upload_in_chunks(origin, data)
                continue
            url = origin.url(f"/internal/blobs/{Digest.of(data)}")
            request = urllib.request.Request(url, data=data, method="PUT")
            with urllib.request.urlopen(request, timeout=20) as answer:
                assert answer.status == 201
        for folder in (origin.data, *disks):
            assert any(len(path.name) == 64 for path in (folder / "blobs").rglob("*"))
            assert os.listdir(folder / "incoming") == []
            assert os.listdir(folder / "uploads") == []
        assert [read(origin, data) for data in blobs] == blobs

        assert origin.end(signal.SIGTERM) == 0
        disks[1].rename(tmp_path / "unmounted")
        origin.start()
        assert origin.ended() == 1
        said = origin.log.read_text().strip().splitlines()[-1]
        assert "volumes" in said
        assert str(disks[1]) in said

        (tmp_path / "unmounted").rename(disks[1])
        origin.start()
        origin.wait_ready()
        assert [read(origin, data) for data in blobs] == blobs
