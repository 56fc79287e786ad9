# SPDX-License-Identifier: Apache-2.0
"""Pushes that the proxy acknowledges itself: what was acknowledged arrives, whatever dies."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shoal.model.digest import Digest
from shoal.model.media_types import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST
from shoal.registry.client import RegistryClient
from shoal.web.client import HttpClient
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, NotFound, Overloaded, Unreachable
from tests.cluster import RunningCluster

NAME = "fast/app"
ORIGINS = ("origin-0", "origin-1", "origin-2")
CONFIG = b"{}"
PUSH: dict[str, Any] = {
    "push": [
        {"pattern": "^fast/", "mode": "write_back"},
        {"pattern": "^careless/", "mode": "write_back", "await_delivery": False},
        {"pattern": "fast", "mode": "write_through"},
    ],
    "delivery": {"retry": {"initial": "50ms", "cap": "1s"}},
}


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    folder = tmp_path_factory.mktemp("write-back")
    with RunningCluster.start(folder, agents=0, config={"proxy": PUSH}) as running:
        yield running


@pytest.fixture
async def http() -> AsyncIterator[HttpClient]:
    client = HttpClient(user_agent="test")
    yield client
    await client.close()


def soon() -> Deadline:
    return Deadline.after(30)


def image(*layers: bytes) -> bytes:
    def entry(media_type: str, content: bytes) -> dict[str, object]:
        digest = str(Digest.of(content))
        return {"mediaType": media_type, "digest": digest, "size": len(content)}

    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": entry(OCI_CONFIG, CONFIG),
        "layers": [entry(OCI_LAYER, layer) for layer in layers],
    }
    return json.dumps(document).encode()


async def push(registry: RegistryClient, *contents: bytes, name: str = NAME) -> list[Digest]:
    digests = [Digest.of(content) for content in contents]
    for digest, content in zip(digests, contents, strict=True):
        await registry.push_blob(name, digest, content, way="put")
    return digests


async def pulled(
    registry: RegistryClient,
    digest: Digest,
    start: int = 0,
    stop: int | None = None,
    *,
    name: str = NAME,
) -> bytes:
    async with registry.stream_blob(name, digest, start=start, stop=stop) as answer:
        return b"".join([chunk async for chunk in answer.chunks()])


async def kill(cluster: RunningCluster, *services: str) -> None:
    for service in services:
        await asyncio.to_thread(cluster.kill, service)


async def restart(cluster: RunningCluster, *services: str) -> None:
    for service in services:
        await asyncio.to_thread(cluster.restart, service)


async def copies(http: HttpClient, cluster: RunningCluster, digest: Digest) -> int:
    """How many origins have the blob themselves."""
    present = 0
    for origin in cluster.origins:
        try:
            await http.call("HEAD", f"{origin}/internal/blobs/{digest}", deadline=soon())
        except (NotFound, Unreachable):
            continue
        present += 1
    return present


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 60) -> None:
    """Look until it holds: what other processes do is told by nobody."""
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def until_delivered(
    http: HttpClient, cluster: RunningCluster, digests: list[Digest], proxy: str = "proxy-0"
) -> None:
    """Return when the write quorum has all of them and the proxy keeps nothing."""

    async def delivered() -> bool:
        if kept(cluster, proxy):
            return False
        return min([await copies(http, cluster, digest) for digest in digests]) >= 2

    await until(delivered)


def kept(cluster: RunningCluster, proxy: str = "proxy-0") -> list[str]:
    """The blobs that lie on the proxy."""
    folder = cluster.data_dir(proxy) / "custody"
    return [path.name for path in folder.rglob("*") if path.is_file()]


def shoal_queue(cluster: RunningCluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    where = ["--config", str(cluster.config_path("proxy-0"))]
    command = [sys.executable, "-m", "shoal", "queue", *arguments, *where]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


async def queue(
    cluster: RunningCluster, *arguments: str, status: int = 0
) -> subprocess.CompletedProcess[str]:
    done = await asyncio.to_thread(shoal_queue, cluster, *arguments)
    assert done.returncode == status, done.stderr
    return done


async def listed(cluster: RunningCluster) -> list[dict[str, Any]]:
    tasks: list[dict[str, Any]] = json.loads((await queue(cluster, "list", "--json")).stdout)
    return tasks


async def metric(http: HttpClient, base: str, name: str) -> float:
    answer = await http.call("GET", f"{base}/metrics", deadline=soon())
    for line in answer.body.decode().splitlines():
        if line.startswith(f"{name} "):
            return float(line.split()[1])
    raise AssertionError(f"no {name} in the metrics")


async def test_blobs_are_acknowledged_while_the_origins_are_down_and_arrive_when_they_are_back(
    cluster: RunningCluster, http: HttpClient
) -> None:
    registry = RegistryClient(http, cluster.proxy)
    await kill(cluster, *ORIGINS)
    layer = os.urandom(1_000_000)
    digests = await push(registry, layer, CONFIG)

    # Until they are delivered, the proxy answers for them itself.
    assert await registry.stat_blob(NAME, digests[0]) == len(layer)
    assert await pulled(registry, digests[0]) == layer
    assert await pulled(registry, digests[0], 1000, 900_001) == layer[1000:900_001]
    assert await registry.push_blob("fast/other", digests[0], layer, mount_from=NAME) is False
    await push(registry, layer)
    assert len(await listed(cluster)) == 2

    # The manifest waits for them; when that is in vain it says for which.
    with pytest.raises(Overloaded) as refused:
        await http.call(
            "PUT",
            f"{cluster.proxy}/v2/{NAME}/manifests/v1",
            data=image(layer),
            headers={"Content-Type": OCI_MANIFEST},
            deadline=Deadline.after(3),
            expect=(201,),
        )
    assert (refused.value.status, refused.value.code) == (503, "UNAVAILABLE")
    assert refused.value.retry_after is not None
    assert refused.value.body["errors"][0]["detail"] == {"waiting": sorted(map(str, digests))}

    # A push that begins while they are down is done when they are back.
    pushing = asyncio.create_task(registry.put_manifest(NAME, "v1", image(layer), OCI_MANIFEST))
    await restart(cluster, *ORIGINS)
    await pushing
    assert (await registry.get_manifest(NAME, "v1")).body == image(layer)
    await until_delivered(http, cluster, digests)
    assert await listed(cluster) == []
    assert await pulled(registry, digests[0]) == layer
    assert (
        await metric(
            http, cluster.proxy, 'shoal_queue_attempts_total{outcome="done",queue="delivery"}'
        )
        == 2
    )


async def test_a_manifest_that_follows_its_layers_at_once_never_loses_the_race(
    cluster: RunningCluster, http: HttpClient
) -> None:
    registry = RegistryClient(http, cluster.proxy)

    async def push_image(number: int) -> None:
        layers = [os.urandom(200_000) for _ in range(3)]
        await push(registry, *layers, CONFIG)
        await registry.put_manifest(NAME, f"v{number}", image(*layers), OCI_MANIFEST)

    await asyncio.gather(*map(push_image, range(20)))
    assert len(await registry.tags(NAME)) == 20


@pytest.mark.parametrize("name", [NAME, "safe/app"], ids=["write_back", "write_through"])
async def test_what_was_acknowledged_survives_kills_of_the_proxy_at_any_moment(
    cluster: RunningCluster, http: HttpClient, name: str
) -> None:
    registry = RegistryClient(http, cluster.proxy, timeout=20)
    acknowledged: dict[Digest, bytes] = {}

    async def push_until_it_dies() -> None:
        try:
            while True:
                content = os.urandom(150_000)
                await registry.push_blob(name, Digest.of(content), content, way="put")
                acknowledged[Digest.of(content)] = content
        except CallFailed:
            return

    for moment in (0.0, 0.02, 0.05, 0.1, 0.3):
        pushers = [asyncio.create_task(push_until_it_dies()) for _ in range(4)]
        await asyncio.sleep(moment)
        await kill(cluster, "proxy-0")
        await asyncio.gather(*pushers)
        await restart(cluster, "proxy-0")
    assert acknowledged
    await until_delivered(http, cluster, list(acknowledged))
    for digest, content in acknowledged.items():
        assert await pulled(registry, digest, name=name) == content
    assert await listed(cluster) == []


async def test_a_kill_right_after_the_answer_loses_nothing(
    cluster: RunningCluster, http: HttpClient
) -> None:
    registry = RegistryClient(http, cluster.proxy)
    await kill(cluster, *ORIGINS)
    contents = [os.urandom(100_000) for _ in range(5)]
    digests = await push(registry, *contents)
    await kill(cluster, "proxy-0")
    # What nobody was promised: a file whose task was never committed.
    orphan = cluster.data_dir("proxy-0") / "custody" / "blobs" / "sha256" / "ab" / f"{'ab' * 32}"
    orphan.parent.mkdir(parents=True, exist_ok=True)
    orphan.write_bytes(b"half")
    assert {task["key"] for task in await listed(cluster)} == set(map(str, digests))
    await restart(cluster, "origin-0", "origin-1")
    await restart(cluster, "proxy-0")
    await until_delivered(http, cluster, digests)
    for digest, content in zip(digests, contents, strict=True):
        assert await pulled(registry, digest) == content
    assert not orphan.exists()


async def test_the_mode_is_that_of_the_first_pattern_that_matches(
    cluster: RunningCluster, http: HttpClient
) -> None:
    registry = RegistryClient(http, cluster.proxy)
    await kill(cluster, *ORIGINS)
    content = os.urandom(1000)
    for name in ("other/app", "fast", "not/fast/app"):
        with pytest.raises(Overloaded):
            await push(registry, content, name=name)
    await push(registry, content)
    # A mount into a write_through repository promises the quorum, which has nothing yet.
    opened = await http.call(
        "POST",
        f"{cluster.proxy}/v2/other/app/blobs/uploads/",
        params={"mount": str(Digest.of(content)), "from": NAME},
        deadline=soon(),
        expect=(201, 202),
    )
    assert opened.status == 202


async def test_without_await_delivery_the_tag_loses_the_race(
    cluster: RunningCluster, http: HttpClient
) -> None:
    """What Shoal's other modes are compared with."""
    registry = RegistryClient(http, cluster.proxy, timeout=15)
    name = "careless/app"
    # Its bytes wait at the proxy, where they cannot leave: the owners that could take them are two.
    layer = os.urandom(1000)
    await kill(cluster, "origin-1", "origin-2")
    await push(registry, layer, CONFIG, name=name)
    with pytest.raises(CallFailed) as refused:
        await registry.put_manifest(name, "v1", image(layer), OCI_MANIFEST)
    assert "waiting" not in str(refused.value.body)


async def test_operators_list_show_retry_and_drop(
    cluster: RunningCluster, http: HttpClient
) -> None:
    registry = RegistryClient(http, cluster.proxy)
    await kill(cluster, *ORIGINS)
    kept_one, dropped = await push(registry, b"kept", b"dropped")
    lines = (await queue(cluster, "list")).stdout.splitlines()
    assert len(lines) == 2
    assert NAME in lines[0]
    shown = json.loads((await queue(cluster, "show", str(dropped))).stdout)
    assert shown["payload"] == {"repository": NAME, "size": len(b"dropped")}

    async def is_marked() -> bool:
        # The proxy may be trying it this very moment, and then it cannot be dropped.
        return (await asyncio.to_thread(shoal_queue, cluster, "drop", str(dropped))).returncode == 0

    async def is_gone() -> bool:
        return dropped.hex not in kept(cluster)

    await until(is_marked)
    await until(is_gone)
    missing = await queue(cluster, "show", str(dropped), status=1)
    assert "no task" in missing.stderr
    # With the proxy down: the file is all that is needed.
    await kill(cluster, "proxy-0")
    assert f"due now: {kept_one}" in (await queue(cluster, "retry", str(kept_one))).stdout
    await queue(cluster, "drop", str(dropped), status=1)
    await restart(cluster, *ORIGINS, "proxy-0")
    await until_delivered(http, cluster, [kept_one])


async def test_a_blob_that_finds_no_room_is_refused_and_leaves_nothing(
    tmp_path: Path, http: HttpClient
) -> None:
    with RunningCluster.start(tmp_path / "cluster", agents=0, config={"proxy": PUSH}) as cluster:
        registry = RegistryClient(http, cluster.proxy)
        await kill(cluster, "proxy-0")
        config = cluster.config_path("proxy-0")
        # A file cannot grow beyond what RLIMIT_FSIZE allows: a disk that is full, for one process.
        argv = ["prlimit", "--fsize=1000000", sys.executable, "-m", "shoal", "proxy"]
        limited = begin([*argv, "--config", str(config)], cluster.log_path("proxy-0"))
        try:
            await until(lambda: answers(http, cluster.proxy))
            large = os.urandom(1_040_000)
            with pytest.raises(Overloaded, match="nothing of it was kept"):
                await push(registry, large)
            assert kept(cluster) == []
            assert list((cluster.data_dir("proxy-0") / "uploads").iterdir()) == []
            await until_delivered(http, cluster, await push(registry, b"a small one"))
        finally:
            await asyncio.to_thread(end, limited)


def begin(argv: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(argv, stdout=output, stderr=output)


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(20)


async def answers(http: HttpClient, base: str) -> bool:
    try:
        await http.call("GET", f"{base}/health", deadline=soon())
    except CallFailed:
        return False
    return True


def free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


async def test_layers_through_one_proxy_and_the_manifest_through_another(
    tmp_path: Path, http: HttpClient
) -> None:
    hosts = [f"127.0.0.1:{port}" for port in free_ports(2)]
    config: dict[str, Any] = {
        "proxy": {**PUSH, "neighbours": hosts},
        "proxy-0": {"listen": hosts[0]},
        "proxy-1": {"listen": hosts[1]},
    }
    with RunningCluster.start(
        tmp_path / "cluster", agents=0, options=["--proxies", "2"], config=config
    ) as cluster:
        first, second = (RegistryClient(http, base) for base in cluster.proxies)
        layers = [os.urandom(400_000), os.urandom(400_000)]
        await kill(cluster, *ORIGINS)
        await push(first, layers[0], CONFIG)
        await push(second, layers[1])
        body = image(*layers)
        pushing = asyncio.create_task(second.put_manifest(NAME, "v1", body, OCI_MANIFEST))
        await restart(cluster, *ORIGINS)
        await pushing
        assert (await first.get_manifest(NAME, "v1")).body == body
        await until_delivered(http, cluster, [Digest.of(layer) for layer in layers])

        # What is nowhere is missing at once; what may be at a proxy that is down is not known.
        nowhere = image(os.urandom(10))
        with pytest.raises(NotFound) as refused:
            await second.put_manifest(NAME, "v2", nowhere, OCI_MANIFEST)
        assert refused.value.code == "MANIFEST_BLOB_UNKNOWN"
        await kill(cluster, "proxy-0")
        with pytest.raises(Overloaded) as unsure:
            await second.put_manifest(NAME, "v2", nowhere, OCI_MANIFEST)
        assert hosts[0] in unsure.value.detail
