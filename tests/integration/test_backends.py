# SPDX-License-Identifier: Apache-2.0
"""Origins with a backend behind them: what is pushed gets there, and comes back from there."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from shoal.model.digest import Digest
from shoal.model.media_types import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST
from shoal.origin.client import OriginCluster
from shoal.registry.client import RegistryClient
from shoal.web.client import HttpClient
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, NotFound, Overloaded, Rejected
from shoal.web.serving import listening
from tests.cluster import RunningCluster
from tests.integration.origin_ring import Origin, Ring, running_ring, until

NAME = "team/app"
QUICK = {"stagger": "2s", "retry": {"initial": "50ms", "cap": "500ms"}}


@pytest.fixture
async def http() -> AsyncIterator[HttpClient]:
    client = HttpClient(user_agent="test")
    yield client
    await client.close()


def soon(seconds: float = 20) -> Deadline:
    return Deadline.after(seconds)


def local(folder: Path, match: str = "team/.*") -> list[dict[str, Any]]:
    return [{"kind": "local", "path": str(folder), "match": match}]


def files_of(folder: Path, digest: Digest) -> list[Path]:
    return [path for path in folder.rglob("*") if digest.hex in str(path) and path.is_file()]


@dataclass
class Source:
    """A blob to push."""

    folder: Path
    data: bytes = field(default_factory=lambda: os.urandom(2_000_000))

    def __post_init__(self) -> None:
        self.digest = Digest.of(self.data)
        self.path = self.folder / self.digest.hex
        self.path.write_bytes(self.data)

    async def push(self, cluster: OriginCluster, namespace: str = NAME) -> None:
        size = len(self.data)
        await cluster.upload(self.digest, self.path, size, deadline=soon(), namespace=namespace)


def wipe(ring: Ring) -> None:
    """All origins lose their disks, and start anew."""
    for origin in ring.origins:
        origin.kill()
        shutil.rmtree(origin.data)
    ring.revive()


def logged(ring: Ring, what: str) -> int:
    return sum(origin.log.read_text().count(what) for origin in ring.origins)


def wrote(origin: Origin) -> bool:
    return "written to the backend" in origin.log.read_text()


async def test_a_push_is_written_to_the_backend_once_and_survives_the_loss_of_all_origins(
    tmp_path: Path, http: HttpClient
) -> None:
    bucket = tmp_path / "bucket"
    with running_ring(tmp_path / "ring", backends=local(bucket), writeback=QUICK) as ring:
        cluster = OriginCluster(http, ring.config)
        source = Source(tmp_path)
        await source.push(cluster)
        await until(lambda: bool(files_of(bucket, source.digest)))
        # The other owners look after it when it is their turn, and find it.
        queues = [str(origin.data) for origin in ring.origins]
        async with asyncio.timeout(30):
            while any([await tasks_of("--data-dir", data) for data in queues]):  # noqa: ASYNC110
                await asyncio.sleep(0.2)
        assert logged(ring, "written to the backend") == 1

        await asyncio.to_thread(wipe, ring)
        assert await cluster.stat(source.digest, deadline=soon()) is None
        asked = await cluster.stat(source.digest, deadline=soon(), namespace=NAME)
        assert asked == len(source.data)
        assert ring.holders(source.digest) == set()
        located = await cluster.metainfo(source.digest, deadline=soon(), namespace=NAME)
        assert located is not None
        await until(lambda: len(ring.holders(source.digest)) == 3)
        limit = len(source.data)
        assert await cluster.read(source.digest, deadline=soon(), limit=limit) == source.data
        # What came from the backend is not written to it.
        assert logged(ring, "written to the backend") == 1


async def tasks_of(*where: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "shoal", "queue", "list", "--json", *where]
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    tasks: list[dict[str, Any]] = json.loads(done.stdout)
    return tasks


async def test_a_backend_that_is_down_gets_what_was_pushed_meanwhile(
    tmp_path: Path, http: HttpClient
) -> None:
    # A file where the folder should be: nothing can be written below it.
    bucket = tmp_path / "bucket"
    bucket.write_text("not a folder")
    with running_ring(
        tmp_path / "ring", backends=local(bucket / "inside"), writeback=QUICK
    ) as ring:
        cluster = OriginCluster(http, ring.config)
        source = Source(tmp_path)
        await source.push(cluster)
        [first, *_] = ring.in_order(source.digest)
        config = first.data.parent / "origin.yaml"
        async with asyncio.timeout(20):
            while not (tasks := await tasks_of("--config", str(config))) or (  # noqa: ASYNC110
                not tasks[0]["failures"]
            ):
                await asyncio.sleep(0.1)
        assert tasks[0]["queue"] == "writeback"
        assert tasks[0]["payload"]["repository"] == NAME
        answer = await http.call("GET", first.url("/metrics"), deadline=soon())
        assert b'shoal_queue_tasks{queue="writeback",state="waiting"}' in answer.body
        bucket.unlink()
        await until(lambda: bool(files_of(bucket, source.digest)), within=20)


async def test_after_an_outage_longer_than_the_stagger_each_blob_is_written_once(
    tmp_path: Path, http: HttpClient
) -> None:
    bucket = tmp_path / "bucket"
    bucket.write_text("not a folder")
    settings = {**QUICK, "stagger": "500ms"}
    with running_ring(
        tmp_path / "ring", backends=local(bucket / "inside"), writeback=settings
    ) as ring:
        cluster = OriginCluster(http, ring.config)
        sources = [Source(tmp_path) for _ in range(6)]
        await asyncio.gather(*(source.push(cluster) for source in sources))

        def failed(origin: Origin, digest: Digest) -> bool:
            lines = origin.log.read_text().splitlines()
            return any("task failed" in line and digest.hex in line for line in lines)

        digests = [source.digest for source in sources]
        await until(lambda: all(failed(o, d) for o in ring.origins for d in digests), within=30)
        bucket.unlink()
        queues = [str(origin.data) for origin in ring.origins]
        async with asyncio.timeout(40):
            while any([await tasks_of("--data-dir", data) for data in queues]):  # noqa: ASYNC110
                await asyncio.sleep(0.2)
        assert all(files_of(bucket, digest) for digest in digests)
        assert logged(ring, "written to the backend") == len(sources)
        assert logged(ring, "waits for nobody silent") == 0


async def test_the_second_owner_writes_when_the_first_one_died(
    tmp_path: Path, http: HttpClient
) -> None:
    bucket = tmp_path / "bucket"
    bucket.write_text("not a folder")
    with running_ring(
        tmp_path / "ring", backends=local(bucket / "inside"), writeback=QUICK
    ) as ring:
        cluster = OriginCluster(http, ring.config)
        source = Source(tmp_path)
        await source.push(cluster)
        [first, *others] = ring.in_order(source.digest)
        await until(lambda: len(ring.holders(source.digest)) == 3)
        first.kill()
        bucket.unlink()
        await until(lambda: bool(files_of(bucket, source.digest)), within=20)
        await until(lambda: any(wrote(origin) for origin in others))
        assert not wrote(first)


async def test_what_was_acknowledged_is_written_after_all_origins_were_killed(
    tmp_path: Path, http: HttpClient
) -> None:
    bucket = tmp_path / "bucket"
    bucket.write_text("not a folder")
    with running_ring(
        tmp_path / "ring", backends=local(bucket / "inside"), writeback=QUICK
    ) as ring:
        cluster = OriginCluster(http, ring.config)
        sources = [Source(tmp_path, os.urandom(100_000)) for _ in range(20)]
        await asyncio.gather(*(source.push(cluster) for source in sources))
        for origin in ring.origins:
            origin.kill()
        bucket.unlink()
        await asyncio.to_thread(ring.revive)
        digests = [source.digest for source in sources]
        await until(lambda: all(files_of(bucket, digest) for digest in digests), within=30)


async def test_a_mount_into_a_repository_of_another_backend_is_written_there(
    tmp_path: Path, http: HttpClient
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    backends = local(here, "team/.*") + local(there, "mirror/.*")
    with running_ring(tmp_path / "ring", backends=backends, writeback=QUICK) as ring:
        cluster = OriginCluster(http, ring.config)
        source = Source(tmp_path)
        await source.push(cluster)
        await until(lambda: bool(files_of(here, source.digest)))
        assert files_of(there, source.digest) == []
        presence = await cluster.stat_many(
            [source.digest], deadline=soon(), keep=True, namespace="mirror/app"
        )
        assert len(presence.copies[source.digest]) >= 2
        await until(lambda: bool(files_of(there, source.digest)))
        refused = await cluster.stat_many(
            [source.digest], deadline=soon(), keep=True, namespace="other/app"
        )
        assert not refused.copies


async def test_a_push_that_no_backend_would_get_is_refused(
    tmp_path: Path, http: HttpClient
) -> None:
    with running_ring(tmp_path / "ring", backends=local(tmp_path / "bucket")) as ring:
        source = Source(tmp_path)
        cluster = OriginCluster(http, ring.config)
        with pytest.raises(CallFailed, match=r"other/app.*team/\.\*"):
            await source.push(cluster, "other/app")
        url = ring.origins[0].url(f"/namespace/other%2Fapp/blobs/{source.digest}/uploads")
        with pytest.raises(Rejected) as refused:
            await http.call("POST", url, deadline=soon(), expect=(202,))
        assert (refused.value.status, refused.value.code) == (403, "DENIED")
        assert ring.holders(source.digest) == set()


async def test_through_answers_when_the_backend_has_it(tmp_path: Path, http: HttpClient) -> None:
    bucket = tmp_path / "bucket"
    # Nobody would write before an hour has passed, were it not asked for.
    with running_ring(
        tmp_path / "ring", backends=local(bucket), writeback={"stagger": "1h"}
    ) as ring:
        for member in ring.origins:
            source = Source(tmp_path, os.urandom(300_000))
            url = member.url(f"/namespace/team%2Fapp/blobs/{source.digest}")
            await http.call(
                "PUT",
                url,
                params={"through": "true"},
                data=source.data,
                deadline=soon(),
                expect=(201,),
            )
            [file] = files_of(bucket, source.digest)
            assert file.read_bytes() == source.data


async def test_through_at_the_end_of_an_upload_in_chunks_answers_when_the_backend_has_it(
    tmp_path: Path, http: HttpClient
) -> None:
    bucket = tmp_path / "bucket"
    # The last owner alone is asked: it would write by itself after hours.
    with running_ring(
        tmp_path / "ring", backends=local(bucket), writeback={"stagger": "1h"}
    ) as ring:
        source = Source(tmp_path, os.urandom(300_000))
        asked = ring.in_order(source.digest)[-1]
        path = f"/namespace/team%2Fapp/blobs/{source.digest}/uploads"
        started = await http.call("POST", asked.url(path), deadline=soon(), expect=(202,))
        upload = asked.url(started.headers["Location"])
        for start in (0, 200_000):
            chunk = source.data[start : start + 200_000]
            span = {"Content-Range": f"{start}-{start + len(chunk) - 1}"}
            await http.call(
                "PATCH", upload, headers=span, data=chunk, deadline=soon(), expect=(202,)
            )
        await http.call("PUT", upload, params={"through": "true"}, deadline=soon(), expect=(201,))
        [file] = files_of(bucket, source.digest)
        assert file.read_bytes() == source.data


async def test_a_task_that_an_operator_drops_no_longer_pins_the_copy(
    tmp_path: Path, http: HttpClient
) -> None:
    dead = {"kind": "webhdfs", "name_nodes": ["127.0.0.1:1"], "match": "team/.*"}
    with running_ring(
        tmp_path / "ring", origins=1, replicas=1, write_quorum=1, backends=[dead]
    ) as ring:
        [origin] = ring.origins
        source = Source(tmp_path)
        await source.push(OriginCluster(http, ring.config))

        async def owing() -> int:
            status = await http.call("GET", origin.url("/internal/status"), deadline=soon())
            return int(json.loads(status.body)["pending"])

        assert await owing() == 1
        where = ["--data-dir", str(origin.data)]
        [task] = await tasks_of(*where)
        command = [sys.executable, "-m", "shoal", "queue", "drop", task["key"], *where]
        dropping = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, check=False
        )
        assert dropping.returncode == 0, dropping.stderr
        async with asyncio.timeout(20):
            while await owing():  # noqa: ASYNC110 another process does it
                await asyncio.sleep(0.05)
        assert await tasks_of(*where) == []


@dataclass
class WebServer:
    """A backend over plain HTTP, as the layout of distribution has it; counts and misbehaves."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    requests: Counter[str] = field(default_factory=Counter)
    status: int = 200
    cut: bool = False
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        hexadecimal = request.path.rsplit("/", 2)[-2]
        self.requests[f"{request.method} {hexadecimal}"] += 1
        if self.status != 200:
            return web.Response(status=self.status)
        data = self.blobs.get(hexadecimal)
        if data is None:
            return web.Response(status=404)
        if request.method == "HEAD":
            return web.Response(headers={"Content-Length": str(len(data))})
        await self.gate.wait()
        response = web.StreamResponse(headers={"Content-Length": str(len(data))})
        await response.prepare(request)
        if self.cut:
            await response.write(data[: len(data) // 2])
            assert request.transport is not None
            request.transport.abort()
            return response
        await response.write(data)
        return response

    def hold(self, data: bytes) -> Digest:
        digest = Digest.of(data)
        self.blobs[digest.hex] = data
        return digest


@asynccontextmanager
async def web_server() -> AsyncIterator[tuple[WebServer, list[dict[str, Any]]]]:
    server = WebServer()
    server.gate.set()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.answer)
    async with listening([(app, "127.0.0.1:0")], grace=1) as [address]:
        yield server, [{"kind": "http", "url": f"http://{address}", "match": ".*"}]


@asynccontextmanager
async def behind_web_server(folder: Path, **more: Any) -> AsyncIterator[tuple[WebServer, Ring]]:
    """Origins whose backend is a web server of this process."""
    async with web_server() as (server, backends):
        starting = running_ring(folder / "ring", backends=backends, **more)
        ring = await asyncio.to_thread(starting.__enter__)
        try:
            yield server, ring
        finally:
            await asyncio.to_thread(starting.__exit__, None, None, None)


async def test_what_only_the_backend_has_is_fetched_once_however_many_ask(
    tmp_path: Path, http: HttpClient
) -> None:
    async with behind_web_server(tmp_path) as (server, ring):
        data = os.urandom(5_000_000)
        digest = server.hold(data)
        clusters = [OriginCluster(http, ring.config) for _ in range(10)]
        located = await asyncio.gather(
            *(
                clusters[number % 10].metainfo(digest, deadline=soon(), namespace=NAME)
                for number in range(100)
            )
        )
        assert all(one is not None and one.metainfo.size == len(data) for one in located)
        assert server.requests[f"GET {digest.hex}"] == 1
        # Copied to the other owners, who know as well that the backend has it.
        await until(lambda: all(is_backed(origin, digest) for origin in ring.origins))
        assert len(ring.holders(digest)) == 3


async def test_a_herd_of_heads_is_one_question_to_the_backend(
    tmp_path: Path, http: HttpClient
) -> None:
    async with behind_web_server(tmp_path) as (server, ring):
        there, absent = server.hold(os.urandom(1000)), Digest.of(os.urandom(10))

        async def head(number: int, digest: Digest) -> int | None:
            host = ring.origins[number % 3]
            url = host.url(f"/internal/blobs/{digest}/backend?namespace=team%2Fapp")
            try:
                answer = await http.call("GET", url, deadline=soon())
            except NotFound:
                return None
            return int(json.loads(answer.body)["size"])

        for digest, size in ((there, 1000), (absent, None)):
            asked = await asyncio.gather(*(head(number, digest) for number in range(60)))
            assert set(asked) == {size}
            assert server.requests[f"HEAD {digest.hex}"] == 1


def is_backed(origin: Origin, digest: Digest) -> bool:
    return origin.path(digest).with_name(f"{digest.hex}.backed").exists()


async def test_not_there_is_404_and_could_not_ask_is_not(tmp_path: Path, http: HttpClient) -> None:
    async with behind_web_server(tmp_path, refresh={"negative": "1h"}) as (server, ring):
        cluster = OriginCluster(http, ring.config)
        absent = Digest.of(os.urandom(10))
        for origin in ring.origins:
            url = origin.url(f"/namespace/team%2Fapp/blobs/{absent}")
            with pytest.raises(NotFound):
                await http.call("GET", url, deadline=soon())
        assert await cluster.stat(absent, deadline=soon(), namespace=NAME) is None
        assert sum(server.requests.values()) <= 3
        server.status = 500
        unknown = Digest.of(os.urandom(10))
        for origin in ring.origins:
            url = origin.url(f"/namespace/team%2Fapp/blobs/{unknown}")
            with pytest.raises(Overloaded):
                await http.call("GET", url, deadline=soon())
        with pytest.raises(CallFailed) as told:
            await cluster.stat(unknown, deadline=soon(), namespace=NAME)
        assert not isinstance(told.value, NotFound)


async def test_a_truncated_answer_is_not_kept_and_the_next_one_is(
    tmp_path: Path, http: HttpClient
) -> None:
    async with behind_web_server(tmp_path) as (server, ring):
        cluster = OriginCluster(http, ring.config)
        data = os.urandom(2_000_000)
        digest = server.hold(data)
        server.cut = True
        with pytest.raises(CallFailed) as told:
            await cluster.read(digest, deadline=soon(), limit=len(data), namespace=NAME)
        assert str(digest) in str(told.value)
        assert ring.holders(digest) == set()
        assert [left for origin in ring.origins for left in origin.leftovers()] == []
        server.cut = False
        read = await cluster.read(digest, deadline=soon(), limit=len(data), namespace=NAME)
        assert read == data


async def test_a_slow_backend_is_waited_for_by_those_who_come_back(
    tmp_path: Path, http: HttpClient
) -> None:
    async with behind_web_server(tmp_path) as (server, ring):
        server.gate.clear()
        digest = server.hold(b"at last")
        cluster = OriginCluster(http, ring.config)
        with pytest.raises(Overloaded) as told:
            await cluster.metainfo(digest, deadline=soon(1), namespace=NAME)
        assert told.value.code == "STILL_FETCHING"
        assert told.value.retry_after == 1
        server.gate.set()
        assert await cluster.metainfo(digest, deadline=soon(), namespace=NAME) is not None
        assert server.requests[f"GET {digest.hex}"] == 1


async def test_an_image_comes_back_from_the_backend_to_an_agent(
    tmp_path: Path, http: HttpClient
) -> None:
    bucket = tmp_path / "bucket"
    config = {"origin": {"backends": local(bucket), "writeback": QUICK}}
    with RunningCluster.start(tmp_path / "cluster", agents=1, config=config) as cluster:
        registry = RegistryClient(http, cluster.proxy)
        layer, settings = os.urandom(3_000_000), b"{}"
        for content in (layer, settings):
            await registry.push_blob(NAME, Digest.of(content), content, way="put")
        manifest = image(settings, layer)
        await registry.put_manifest(NAME, "v1", manifest, OCI_MANIFEST)
        digests = [Digest.of(content) for content in (layer, settings, manifest)]
        await until(lambda: all(files_of(bucket, digest) for digest in digests), within=30)

        with pytest.raises(Rejected) as refused:
            await registry.push_blob("other/app", digests[0], layer, way="put")
        assert (refused.value.status, refused.value.code) == (403, "DENIED")

        for number in range(3):
            await asyncio.to_thread(cluster.kill, f"origin-{number}")
            shutil.rmtree(cluster.data_dir(f"origin-{number}"))
        for number in range(3):
            await asyncio.to_thread(cluster.restart, f"origin-{number}")
        agent = RegistryClient(http, cluster.agents[0].registry)
        assert (await agent.get_manifest(NAME, "v1")).body == manifest
        async with agent.stream_blob(NAME, digests[0]) as answer:
            assert b"".join([chunk async for chunk in answer.chunks()]) == layer
        # Proxies see what only the backend has, too.
        assert await registry.stat_blob(NAME, digests[1]) == len(settings)


def image(settings: bytes, *layers: bytes) -> bytes:
    def entry(media_type: str, content: bytes) -> dict[str, object]:
        digest = str(Digest.of(content))
        return {"mediaType": media_type, "digest": digest, "size": len(content)}

    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": entry(OCI_CONFIG, settings),
        "layers": [entry(OCI_LAYER, layer) for layer in layers],
    }
    return json.dumps(document).encode()
