# SPDX-License-Identifier: Apache-2.0
"""An origin as a process: starting, readiness, stopping, seeding, and what it takes of its host."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from shoal.model.digest import Digest
from shoal.origin.client import OriginCluster
from shoal.swarm.config import PeerConfig
from shoal.swarm.node import SwarmNode
from shoal.swarm.peers import PeerInfo, new_peer_id
from shoal.swarm.pieces import PieceFile, SharedFile
from shoal.web.client import HttpClient
from shoal.web.deadline import Deadline
from tests.integration.origin_ring import Ring, running_ring, until

MIB = 1024 * 1024


@pytest.fixture
def alone(tmp_path: Path) -> Any:
    with running_ring(tmp_path / "ring", origins=1, replicas=1, write_quorum=1) as ring:
        yield ring


def get(url: str) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def start_with(folder: Path, config: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """Start an origin that is expected to end by itself."""
    file = folder / "bad.yaml"
    file.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "shoal", "origin", "--config", str(file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)


def config_for(folder: Path, listen: str, peer: str) -> dict[str, Any]:
    return {
        "listen": listen,
        "peer": {"listen": peer},
        "data_dir": str(folder / "data"),
        "origins": {"hosts": [listen], "replicas": 1, "write_quorum": 1},
    }


def test_readiness_says_what_is_missing(alone: Ring) -> None:
    origin = alone.origins[0]
    assert get(origin.url("/readiness")) == (200, {"ready": True})
    # Not removed file by file: the origin writes there meanwhile.
    origin.data.rename(origin.data.with_name("lost"))
    status, answer = get(origin.url("/readiness"))
    assert status == 503
    assert answer["ready"] is False
    assert str(origin.data) in answer["missing"][0]


def test_a_ring_smaller_than_its_quorum_is_not_ready(tmp_path: Path) -> None:
    with pytest.raises(AssertionError), running_ring(tmp_path, origins=1, ready_within=2.0):
        pass


@pytest.mark.parametrize("key", ["listen", "peer.listen"])
def test_a_port_in_use_is_one_clear_line(tmp_path: Path, key: str) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        socket.create_server(("127.0.0.1", 0)) as other,
    ):
        used = f"127.0.0.1:{taken.getsockname()[1]}"
        free = f"127.0.0.1:{other.getsockname()[1]}"
        other.close()
        listen, peer = (used, free) if key == "listen" else (free, used)
        ended = start_with(tmp_path, config_for(tmp_path, listen, peer))
    assert ended.returncode == 1
    last = ended.stderr.strip().splitlines()[-1]
    assert used in last
    assert f'"{key}"' in last
    assert "Traceback" not in ended.stderr


def test_an_origin_that_is_not_in_its_ring_does_not_start(tmp_path: Path) -> None:
    config = config_for(tmp_path, "127.0.0.1:1", "127.0.0.1:2")
    config["name"] = "origin-7:5002"
    ended = start_with(tmp_path, config)
    assert ended.returncode != 0
    assert "origin-7:5002" in ended.stderr
    assert "set name" in ended.stderr


def test_sigterm_drains_and_stops(alone: Ring) -> None:
    """An upload under way may end; the process stops with status 0 all the same."""
    origin = alone.origins[0]
    data = os.urandom(MIB)
    digest = Digest.of(data)
    host, port = origin.host.split(":")
    with socket.create_connection((host, int(port))) as sock:
        sock.sendall(
            f"PUT /internal/blobs/{digest} HTTP/1.1\r\nHost: x\r\n"
            f"Content-Length: {len(data)}\r\n\r\n".encode()
        )
        sock.sendall(data[: MIB // 2])
        wait_for(lambda: os.listdir(origin.data / "incoming") != [])
        assert origin.process is not None
        origin.process.send_signal(signal.SIGTERM)
        wait_for(lambda: "stopping" in origin.log.read_text())
        sock.sendall(data[MIB // 2 :])
        assert sock.recv(1000).startswith(b"HTTP/1.1 201 ")
    assert origin.ended() == 0
    assert origin.path(digest).read_bytes() == data


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait for something that another process does."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_sigterm_ends_an_upload_that_stands_still(tmp_path: Path) -> None:
    with running_ring(
        tmp_path, origins=1, replicas=1, write_quorum=1, shutdown_grace="500ms"
    ) as ring:
        origin = ring.origins[0]
        digest = Digest.of(b"never comes")
        host, port = origin.host.split(":")
        with socket.create_connection((host, int(port))) as sock:
            sock.sendall(
                f"PUT /internal/blobs/{digest} HTTP/1.1\r\nHost: x\r\n"
                "Content-Length: 1000000\r\n\r\n".encode()
            )
            wait_for(lambda: os.listdir(origin.data / "incoming") != [])
            began = time.monotonic()
            assert origin.end(signal.SIGTERM) == 0
            assert time.monotonic() - began < 8
        assert origin.leftovers() == []


def test_a_client_that_sends_nothing_is_dropped(tmp_path: Path) -> None:
    with running_ring(
        tmp_path, origins=1, replicas=1, write_quorum=1, idle_timeout="300ms"
    ) as ring:
        origin = ring.origins[0]
        digest = Digest.of(b"never comes")
        host, port = origin.host.split(":")
        with socket.create_connection((host, int(port)), timeout=10) as sock:
            sock.sendall(
                f"PUT /internal/blobs/{digest} HTTP/1.1\r\nHost: x\r\n"
                "Content-Length: 1000000\r\n\r\n".encode()
            )
            assert b" 408 " in sock.recv(1000).splitlines()[0]
        assert origin.leftovers() == []


def test_an_idle_origin_is_small(alone: Ring) -> None:
    process = alone.origins[0].process
    assert process is not None
    assert psutil.Process(process.pid).memory_info().rss < 80 * MIB


class NoBlobs:
    """A peer that has nothing to give."""

    async def open(self, digest: Digest) -> PieceFile | None:
        return None

    def damaged(self, digest: Digest, index: int) -> None: ...


async def test_it_seeds_its_blobs_and_sets_a_damaged_one_aside(alone: Ring, tmp_path: Path) -> None:
    origin = alone.origins[0]
    data = os.urandom(5 * MIB + 1)
    digest = Digest.of(data)
    source = tmp_path / "source"
    source.write_bytes(data)
    http = HttpClient(user_agent="test")
    cluster = OriginCluster(http, alone.config)
    await cluster.upload(digest, source, len(data), deadline=Deadline.after(10))
    located = await cluster.metainfo(digest, deadline=Deadline.after(10))
    assert located is not None

    me = PeerInfo(new_peer_id(), "127.0.0.1", 1)
    with ThreadPoolExecutor(2) as executor, socket.create_server(("127.0.0.1", 0)) as free:
        listen = f"127.0.0.1:{free.getsockname()[1]}"
        free.close()
        node = SwarmNode(PeerConfig(listen=listen), me, NoBlobs())
        await node.start()
        target = tmp_path / "target"
        file = SharedFile(target, create=len(data))
        pieces = PieceFile(located.metainfo, file, executor, present=0, verified=0)
        node.leech(pieces, located.peers)
        async with asyncio.timeout(15):
            for index in range(located.metainfo.count):
                await pieces.wait(index)
        assert target.read_bytes() == data
        node.remove(digest)

        path = origin.path(digest)
        damaged = bytearray(data)
        damaged[3 * MIB] ^= 1
        path.write_bytes(damaged)
        # Changed under the running process: what was checked before is checked again when touched.
        other = SharedFile(tmp_path / "other", create=len(data))
        pieces = PieceFile(located.metainfo, other, executor, present=0, verified=0)
        node.leech(pieces, located.peers)
        await until(lambda: not path.exists())
        await node.stop()
    await http.close()
