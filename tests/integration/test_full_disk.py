# SPDX-License-Identifier: Apache-2.0
"""A disk without room: pushes are told so, pulls go on, nothing is damaged, and it heals."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from shoal.model.digest import Digest
from tests.cluster import RunningCluster
from tests.integration.origin_ring import Origin, Ring, running_ring, until
from tests.small_disk import as_seen_by, fill, needs_small_disk, on_small_disk

MIB = 1024 * 1024


def ask(
    method: str, url: str, data: bytes | Iterable[bytes] | None = None
) -> tuple[int, bytes, Any]:
    """Status, body and headers."""
    request = urllib.request.Request(url, data=data, method=method)
    request.add_header("Content-Type", "application/octet-stream")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read(), error.headers


def no_room(answer: tuple[int, bytes, Any]) -> None:
    status, body, headers = answer
    assert status == 507, body
    [error] = json.loads(body)["errors"]
    assert error["code"] == "INSUFFICIENT_STORAGE"
    assert int(headers["Retry-After"]) >= 30


# -- an origin ------------------------------------------------------------------------------------


@pytest.fixture
def ring(tmp_path: Path) -> Iterator[Ring]:
    needs_small_disk()
    with running_ring(tmp_path, origins=1, replicas=1, write_quorum=1) as started:
        [origin] = started.origins
        origin.kill()
        origin.prefix = on_small_disk(origin.data, 48 * MIB)
        origin.start()
        origin.wait_ready()
        yield started


def disk_of(origin: Origin) -> Path:
    assert origin.process is not None
    return as_seen_by(origin.process.pid, origin.data)


def put(origin: Origin, data: bytes, *, announced: bool = True) -> tuple[int, bytes, Any]:
    url = origin.url(f"/internal/blobs/{Digest.of(data)}")
    return ask(
        "PUT", url, data if announced else (data[n : n + MIB] for n in range(0, len(data), MIB))
    )


@pytest.mark.parametrize("announced", [True, False])
def test_an_origin_without_room_refuses_pushes_and_serves_pulls(
    ring: Ring, *, announced: bool
) -> None:
    [origin] = ring.origins
    disk = disk_of(origin)
    before, more = os.urandom(10 * MIB), os.urandom(10 * MIB)
    assert put(origin, before)[0] == 201
    # An announced size is refused at once; without it the disk itself says so in the middle.
    filler = fill(disk, leave=4 * MIB)
    no_room(put(origin, more, announced=announced))
    assert os.listdir(disk / "incoming") == []
    status, body, _ = ask("GET", origin.url(f"/internal/blobs/{Digest.of(before)}"))
    assert (status, body) == (200, before)
    assert ask("GET", origin.url(f"/internal/blobs/{Digest.of(more)}"))[0] == 404
    filler.unlink()
    assert put(origin, more, announced=announced)[0] == 201
    status, body, _ = ask("GET", origin.url(f"/internal/blobs/{Digest.of(more)}"))
    assert (status, body) == (200, more)


def test_an_upload_in_chunks_is_refused_and_may_go_on(ring: Ring) -> None:
    [origin] = ring.origins
    data = os.urandom(8 * MIB)
    digest = Digest.of(data)
    status, _, headers = ask("POST", origin.url(f"/namespace/files/blobs/{digest}/uploads"))
    assert status == 202
    upload = origin.url(headers["Location"])
    assert ask("PATCH", upload, data[: 4 * MIB])[0] == 202
    filler = fill(disk_of(origin), leave=2 * MIB)
    no_room(ask("PATCH", upload, data[4 * MIB :]))
    filler.unlink()
    status, _, headers = ask("PATCH", upload, b"")
    received = int(headers["Range"].rpartition("-")[2]) + 1
    assert received >= 4 * MIB
    assert ask("PUT", upload, data[received:])[0] == 201
    assert ask("GET", origin.url(f"/internal/blobs/{digest}"))[1] == data


# -- proxy and agent ------------------------------------------------------------------------------


@contextmanager
def moved_to_small_disk(cluster: RunningCluster, service: str, size: int) -> Iterator[Path]:
    """The service, started anew with an empty folder on a small disk; yields that folder."""
    cluster.kill(service)
    role = service.rpartition("-")[0]
    folder = cluster.data_dir(service)
    argv = [*on_small_disk(folder, size), sys.executable, "-m", "shoal", role]
    argv += ["--config", str(cluster.config_path(service))]
    with cluster.log_path(service).open("ab") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log)
    try:
        yield as_seen_by(process.pid, folder)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def ready(url: str) -> bool:
    try:
        return ask("GET", f"{url}/readiness")[0] == 200
    except OSError:
        return False


def push_blob(proxy: str, data: bytes) -> tuple[int, bytes, Any]:
    status, _, headers = ask("POST", f"{proxy}/v2/team/app/blobs/uploads/")
    assert status == 202
    where = headers["Location"]
    where = where if where.startswith("http") else f"{proxy}{where}"
    join = "&" if "?" in where else "?"
    return ask("PUT", f"{where}{join}digest={Digest.of(data)}", data)


async def test_a_proxy_without_room_says_so_and_goes_on(tmp_path: Path) -> None:
    needs_small_disk()
    with (
        RunningCluster.start(tmp_path / "cluster", origins=1, agents=0) as cluster,
        moved_to_small_disk(cluster, "proxy-0", 16 * MIB) as disk,
    ):
        await until(lambda: ready(cluster.proxy), within=30)
        no_room(push_blob(cluster.proxy, os.urandom(24 * MIB)))
        assert os.listdir(disk / "uploads") == []
        small = os.urandom(4 * MIB)
        assert push_blob(cluster.proxy, small)[0] == 201
        url = f"{cluster.proxy}/v2/team/app/blobs/{Digest.of(small)}"
        assert ask("GET", url)[1] == small


async def test_a_registry_whose_origins_have_no_room_answers_507(tmp_path: Path) -> None:
    needs_small_disk()
    with (
        RunningCluster.start(tmp_path / "cluster", origins=1, agents=0) as cluster,
        moved_to_small_disk(cluster, "origin-0", 24 * MIB) as disk,
    ):
        await until(lambda: ready(cluster.origins[0]), within=30)
        before = os.urandom(4 * MIB)
        assert push_blob(cluster.proxy, before)[0] == 201
        filler = fill(disk, leave=2 * MIB)
        more = os.urandom(4 * MIB)
        no_room(push_blob(cluster.proxy, more))
        assert ask("GET", f"{cluster.proxy}/v2/team/app/blobs/{Digest.of(before)}")[1] == before
        filler.unlink()
        assert push_blob(cluster.proxy, more)[0] == 201


async def test_an_agent_without_room_evicts_and_passes_through(tmp_path: Path) -> None:
    needs_small_disk()
    with (
        RunningCluster.start(tmp_path / "cluster", origins=1, agents=1) as cluster,
        moved_to_small_disk(cluster, "agent-0", 32 * MIB) as disk,
    ):
        agent = cluster.agents[0]
        await until(lambda: ready(agent.admin), within=30)
        blobs = [os.urandom(8 * MIB) for _ in range(5)]
        large = os.urandom(40 * MIB)
        for data in (*blobs, large):
            assert push_blob(cluster.proxy, data)[0] == 201

        def pull(data: bytes) -> None:
            url = f"{agent.registry}/v2/team/app/blobs/{Digest.of(data)}"
            status, body, _ = ask("GET", url)
            assert (status, Digest.of(body)) == (200, Digest.of(data))

        def cached() -> set[Digest]:
            found = (path.name for path in (disk / "blobs").rglob("*") if path.is_file())
            return {Digest.parse(f"sha256:{name}") for name in found if "." not in name}

        for data in blobs:
            await asyncio.to_thread(pull, data)
        await until(lambda: Digest.of(blobs[-1]) in cached())
        assert Digest.of(blobs[0]) not in cached()
        assert len(cached()) >= 2
        await asyncio.to_thread(pull, large)
        assert Digest.of(large) not in cached()
        metrics = ask("GET", f"{agent.admin}/metrics")[1].decode()
        assert "shoal_agent_passed_through_total 1.0" in metrics
        assert 'shoal_cache_evicted_blobs_total{why="free_space"}' in metrics
        # What was evicted comes again, and a disk that something else fills is no obstacle.
        filler = fill(disk)
        await asyncio.to_thread(pull, blobs[0])
        filler.unlink()
        await asyncio.to_thread(pull, blobs[1])
        await until(lambda: Digest.of(blobs[1]) in cached())
