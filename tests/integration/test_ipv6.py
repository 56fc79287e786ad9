# SPDX-License-Identifier: Apache-2.0
"""A whole cluster on IPv6 loopback: pushes and pulls through the swarm."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from shoal.cluster.layout import BLOCK
from shoal.cluster.ports import reserve
from shoal.model.digest import Digest

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
READY_WITHIN = 30.0


pytestmark = pytest.mark.machine("ipv6")


def call(method: str, url: str, body: bytes | None = None, kind: str = "") -> tuple[int, bytes]:
    headers = {"Content-Type": kind} if kind else {}
    request = urllib.request.Request(url, data=body, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


class Cluster:
    """One of each service and two agents, on ``[::1]``."""

    def __init__(self, folder: Path, first_port: int) -> None:
        self._folder = folder
        self._ports = iter(range(first_port + 1, first_port + BLOCK))
        self._processes: list[tuple[subprocess.Popen[bytes], Path, str]] = []
        origin, build_index, tracker = self.address(), self.address(), self.address()
        ring = {"origins": {"hosts": [origin], "replicas": 1, "write_quorum": 1}}
        indexes = {"build_index": {"hosts": [build_index]}}
        self.start("origin", origin, {"peer": {"listen": self.address()}, **ring})
        self.start("build-index", build_index, ring)
        self.start("tracker", tracker, ring)
        self.proxy = self.start("proxy", self.address(), {**ring, **indexes})
        self.agents = []
        for n in range(2):
            admin = self.address()
            peer = self.address()
            config = {
                "admin": admin,
                "peer": {"listen": peer, "advertise": peer},
                "tracker": {"hosts": [tracker]},
                **ring,
                **indexes,
            }
            listen = self.start("agent", self.address(), config, name=f"agent-{n}", ready=admin)
            self.agents.append((listen, f"http://{admin}"))

    def address(self) -> str:
        return f"[::1]:{next(self._ports)}"

    def start(
        self, role: str, listen: str, config: dict[str, Any], *, name: str = "", ready: str = ""
    ) -> str:
        folder = self._folder / (name or role)
        folder.mkdir()
        config = {"listen": listen, **config}
        if role != "tracker":
            config["data_dir"] = str(folder / "data")
        path, log = folder / "config.yaml", folder / "log"
        path.write_text(yaml.safe_dump(config))
        with log.open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "shoal", role, "--config", str(path)], stdout=out, stderr=out
            )
        self._processes.append((process, log, f"http://{ready or listen}/readiness"))
        return f"http://{listen}"

    def wait_ready(self) -> None:
        until = time.monotonic() + READY_WITHIN
        for process, log, url in self._processes:
            while True:
                with contextlib.suppress(OSError):
                    if call("GET", url)[0] == 200:
                        break
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.05)

    def stop(self) -> None:
        for process, _, _ in self._processes:
            process.kill()
            process.wait()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with reserve(BLOCK) as ports:
        started = Cluster(tmp_path, ports.first)
        try:
            started.wait_ready()
            yield started
        finally:
            started.stop()


def push(proxy: str, repository: str, tag: str, layer: bytes) -> Digest:
    """Push an image of one layer; the layer's digest."""
    config = b"{}"
    for body in (config, layer):
        url = f"{proxy}/v2/{repository}/blobs/uploads/?digest={Digest.of(body)}"
        status, said = call("POST", url, body, "application/octet-stream")
        assert status == 201, said
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": str(Digest.of(config)),
                "size": len(config),
            },
            "layers": [
                {
                    "mediaType": "application/vnd.oci.image.layer.v1.tar",
                    "digest": str(Digest.of(layer)),
                    "size": len(layer),
                }
            ],
        }
    ).encode()
    status, said = call("PUT", f"{proxy}/v2/{repository}/manifests/{tag}", manifest, MANIFEST)
    assert status == 201, said
    return Digest.of(layer)


async def test_images_go_through_a_cluster_on_ipv6(cluster: Cluster) -> None:
    layer = os.urandom(9 * 1024 * 1024)
    digest = await asyncio.to_thread(push, cluster.proxy, "team/app", "v1", layer)
    for registry, admin in cluster.agents:
        status, _ = await asyncio.to_thread(call, "GET", f"{registry}/v2/team/app/manifests/v1")
        assert status == 200
        url = f"{registry}/v2/team/app/blobs/{digest}"
        status, body = await asyncio.to_thread(call, "GET", url)
        assert (status, body == layer) == (200, True)
        status, said = await asyncio.to_thread(call, "GET", f"{admin}/why/team/app:v1")
        # The pieces came from peers that are named as an IPv6 address is written.
        assert b"[::1]:" in said, said
