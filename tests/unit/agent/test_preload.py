# SPDX-License-Identifier: Apache-2.0
"""Runtimes that are told to pull: what they are told, how they fail, and what bounds them."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web

from shoal.agent.config import PreloadConfig
from shoal.agent.preload import Preload, Preloaded, PreloadTimeout, registry_of
from shoal.agent.runtimes import MAX_LINE, Containerd, Docker, PullFailed, Runtime
from shoal.model.digest import Digest
from shoal.model.errors import BadRequest, ManifestUnknown, Unavailable, Unsupported
from shoal.model.manifest import FoundManifest
from shoal.model.media_types import OCI_MANIFEST
from shoal.web.deadline import Deadline

REGISTRY = "127.0.0.1:5010"
DIGEST = Digest.of(b"a manifest")
IMAGE = f"{REGISTRY}/team/app"


class Manifests:
    async def find_manifest(
        self, repository: str, reference: Digest | str, deadline: Deadline
    ) -> FoundManifest:
        if repository != "team/app":
            raise ManifestUnknown(f"{repository} has no tag {reference}")
        return FoundManifest(DIGEST, OCI_MANIFEST, 10)


@dataclass
class FakeRuntime:
    """Pulls when the test says so."""

    name: str = "docker"
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    told: list[tuple[str, object, str]] = field(default_factory=list)
    under_way: int = 0
    most: int = 0
    cancelled: int = 0

    async def pull(self, repository: str, reference: Digest | str, namespace: str) -> None:
        self.told.append((repository, reference, namespace))
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.under_way -= 1


def preload_by(*runtimes: Runtime, timeout: float = 20.0, concurrency: int = 2) -> Preload:
    config = PreloadConfig(timeout=timeout, concurrency=concurrency)
    return Preload(REGISTRY, {one.name: one for one in runtimes}, Manifests(), config)


async def pull(preload: Preload, runtime: str = "docker", **more: str) -> Preloaded:
    repository = more.pop("repository", "team/app")
    return await preload.image(repository, "v1", Deadline.after(20), runtime=runtime, **more)


# -- who may be told what -------------------------------------------------------------------------


async def test_the_runtime_is_told_to_pull_from_this_agent() -> None:
    docker = FakeRuntime()
    docker.gate.set()
    done = await pull(preload_by(docker))
    assert docker.told == [(IMAGE, "v1", "default")]
    assert (done.runtime, done.image, done.digest) == ("docker", f"{IMAGE}:v1", str(DIGEST))


async def test_no_runtime_is_told_anything_unless_the_config_names_its_socket() -> None:
    for runtime in ("docker", "containerd"):
        with pytest.raises(Unsupported, match=f"set preload.{runtime}_socket"):
            await pull(preload_by(), runtime)


@pytest.mark.parametrize(
    "more",
    [{"runtime": "podman"}, {"namespace": "-x"}, {"namespace": "a/b"}, {"namespace": "n" * 77}],
)
async def test_what_is_no_runtime_or_no_namespace_is_refused(more: dict[str, str]) -> None:
    docker = FakeRuntime()
    with pytest.raises(BadRequest):
        await pull(preload_by(docker), **more)
    assert docker.told == []


async def test_an_image_that_is_not_there_is_no_matter_for_the_runtime() -> None:
    docker = FakeRuntime()
    with pytest.raises(ManifestUnknown):
        await pull(preload_by(docker), repository="team/other")
    assert docker.told == []


async def test_a_runtime_that_takes_too_long_is_stopped() -> None:
    docker = FakeRuntime()
    with pytest.raises(PreloadTimeout, match=r"raise preload\.timeout"):
        await pull(preload_by(docker, timeout=0.05))
    assert (docker.cancelled, docker.under_way) == (1, 0)


async def test_only_some_are_pulled_at_the_same_time() -> None:
    docker = FakeRuntime()
    preload = preload_by(docker, concurrency=2)
    pulling = [asyncio.create_task(pull(preload)) for _ in range(5)]
    async with asyncio.timeout(10):
        while docker.under_way < 2:  # noqa: ASYNC110
            await asyncio.sleep(0)
    docker.gate.set()
    await asyncio.gather(*pulling)
    assert (docker.most, len(docker.told)) == (2, 5)


@pytest.mark.parametrize(
    "listen, expected",
    [
        ("127.0.0.1:5010", "127.0.0.1:5010"),
        ("0.0.0.0:5010", "127.0.0.1:5010"),
        ("localhost:5010", "127.0.0.1:5010"),
        ("[::]:5010", "[::1]:5010"),
        ("[::1]:5010", "[::1]:5010"),
        ("10.0.0.7:5010", "10.0.0.7:5010"),
    ],
)
def test_runtimes_call_the_agent_by_loopback_where_they_can(listen: str, expected: str) -> None:
    assert registry_of(listen) == expected


# -- docker ---------------------------------------------------------------------------------------

Answers = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def engine(folder: Path, answer: Answers) -> AsyncIterator[Docker]:
    """Docker's API on a UNIX socket."""
    app = web.Application()
    app.router.add_post("/images/create", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.UnixSite(runner, str(folder / "d.sock")).start()
        yield Docker(folder / "d.sock")
    finally:
        await runner.cleanup()


def progress(*lines: bytes) -> Answers:
    """An answer that comes in parts which are not lines."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        text = b"\r\n".join(lines)
        for start in range(0, len(text), 7000):
            await response.write(text[start : start + 7000])
        return response

    return answer


def told(**fields: object) -> bytes:
    return json.dumps(fields).encode()


async def test_docker_is_asked_as_its_api_wants_it(tmp_path: Path) -> None:
    asked: list[dict[str, str]] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append(dict(request.query))
        return await progress(told(status="Pulling"), told(status="Pulled"))(request)

    async with engine(tmp_path, answer) as docker:
        await docker.pull(IMAGE, "v1", "default")
        await docker.pull(IMAGE, DIGEST, "default")
    assert asked == [
        {"fromImage": IMAGE, "tag": "v1"},
        {"fromImage": IMAGE, "tag": str(DIGEST)},
    ]


@pytest.mark.parametrize(
    "lines, said",
    [
        ([told(status="Pulling"), told(error="no space left on device")], "no space left"),
        ([told(status="Pulling"), b"<html>"], "is no JSON"),
        ([b'{"status":"' + b"x" * 3 * MAX_LINE], "has a line of over"),
    ],
)
async def test_an_error_in_the_middle_of_dockers_answer_is_one(
    tmp_path: Path, lines: list[bytes], said: str
) -> None:
    async with engine(tmp_path, progress(*lines)) as docker:
        with pytest.raises(PullFailed, match=said) as raised:
            await docker.pull(IMAGE, "v1", "default")
    assert f"{IMAGE}:v1" in raised.value.message


async def test_what_docker_refuses_is_told_in_its_words(tmp_path: Path) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response({"message": f"manifest for {IMAGE}:v1 not found"}, status=404)

    async with engine(tmp_path, answer) as docker:
        with pytest.raises(PullFailed, match=r"manifest for .* not found") as raised:
            await docker.pull(IMAGE, "v1", "default")
    assert raised.value.status == 502


async def test_an_answer_that_breaks_off_is_no_success(tmp_path: Path) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(told(status="Pulling") + b"\n")
        assert request.transport is not None
        request.transport.abort()
        return response

    async with engine(tmp_path, answer) as docker:
        with pytest.raises(Unavailable):
            await docker.pull(IMAGE, "v1", "default")


async def test_a_docker_that_is_not_there_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"preload\.docker_socket") as raised:
        await Docker(tmp_path / "none.sock").pull(IMAGE, "v1", "default")
    assert raised.value.status == 503
    assert f"{tmp_path}/none.sock" in raised.value.message
    assert "No such file" in raised.value.message


async def test_docker_is_no_longer_listened_to_when_time_is_up(tmp_path: Path) -> None:
    gone = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        transport = request.transport
        assert transport is not None
        while not transport.is_closing():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        gone.set()
        return response

    async with engine(tmp_path, answer) as docker:
        with pytest.raises(PreloadTimeout):
            await pull(preload_by(docker, timeout=0.1))
        async with asyncio.timeout(10):
            await gone.wait()


# -- containerd -----------------------------------------------------------------------------------


def command(folder: Path, script: str) -> Containerd:
    """A `ctr` that does what a test says."""
    path = folder / "ctr"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return Containerd(Path("/run/c.sock"), str(path))


async def test_ctr_is_called_as_it_wants_it(tmp_path: Path) -> None:
    containerd = command(tmp_path, f'printf "%s\\n" "$@" > {tmp_path}/told')
    await containerd.pull(IMAGE, "v1", "k8s.io")
    arguments = "--address /run/c.sock --connect-timeout 5s --namespace k8s.io images pull"
    expected = [*arguments.split(), "--plain-http", f"{IMAGE}:v1"]
    assert (tmp_path / "told").read_text().splitlines() == expected


async def test_ctr_is_told_whose_certificate_the_registry_has(tmp_path: Path) -> None:
    command(tmp_path, f'printf "%s\\n" "$@" > {tmp_path}/told')
    ca = Path("/etc/shoal/ca.pem")
    secured = Containerd(Path("/run/c.sock"), str(tmp_path / "ctr"), ca=ca)
    await secured.pull(IMAGE, "v1", "default")
    told = (tmp_path / "told").read_text().splitlines()
    assert told[-3:] == ["--tlscacert", str(ca), f"{IMAGE}:v1"]
    assert "--plain-http" not in told


async def test_what_ctr_complains_of_last_is_told(tmp_path: Path) -> None:
    script = 'echo progress; echo noise >&2; echo "ctr: no such host" >&2; exit 3'
    with pytest.raises(PullFailed, match=r"ctr: no such host \(exit status 3") as raised:
        await command(tmp_path, script).pull(IMAGE, "v1", "k8s.io")
    assert "namespace k8s.io" in raised.value.message
    assert "noise" not in raised.value.message


async def test_a_ctr_that_says_much_fills_no_memory(tmp_path: Path) -> None:
    script = f"head -c {20 * MAX_LINE} /dev/zero >&2; head -c {20 * MAX_LINE} /dev/zero; exit 1"
    with pytest.raises(PullFailed) as raised:
        await command(tmp_path, script).pull(IMAGE, "v1", "default")
    assert len(raised.value.message) < 2000


async def test_a_ctr_that_is_not_there_is_named_with_what_to_do(tmp_path: Path) -> None:
    containerd = Containerd(Path("/run/c.sock"), str(tmp_path / "ctr"))
    with pytest.raises(Unavailable, match=r"set preload\.ctr") as raised:
        await containerd.pull(IMAGE, "v1", "default")
    assert raised.value.status == 503


async def test_a_ctr_that_takes_too_long_is_killed_with_all_that_it_started(
    tmp_path: Path,
) -> None:
    os.mkfifo(tmp_path / "alive")
    # The child keeps the pipe open: its end is seen when it is dead, too.
    containerd = command(tmp_path, f"sleep 1000 > {tmp_path}/alive & wait")
    timed = asyncio.create_task(pull(preload_by(containerd, timeout=1.0), "containerd"))
    reader = await asyncio.to_thread((tmp_path / "alive").open, "rb")
    with reader:
        with pytest.raises(PreloadTimeout):
            await timed
        async with asyncio.timeout(10):
            assert await asyncio.to_thread(reader.read) == b""
