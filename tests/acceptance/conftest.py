# SPDX-License-Identifier: Apache-2.0
"""One cluster and one of each client for all acceptance tests."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.acceptance import daemons
from tests.acceptance.clients import Buildah, Ctr, Docker, Podman, Skopeo
from tests.acceptance.daemons import DaemonFailed
from tests.acceptance.docker_api import PulledImages
from tests.acceptance.docker_api import docker_api as serving_docker_api
from tests.acceptance.sandbox import Sandbox
from tests.acceptance.stage import Stage
from tests.cluster import RunningCluster
from tests.missing_clients import unavailable
from tests.places import open_folder


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    # pytest's own folders have paths too long for the sockets that the daemons make in theirs.
    path = Path(tempfile.mkdtemp(prefix="shoal-", dir=open_folder()))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def cluster(folder: Path) -> Iterator[RunningCluster]:
    """Its first agent may tell our own daemons to pull, the second one what stands for docker."""
    preload = {
        "docker_socket": str(daemons.docker_socket(folder / "dockerd")),
        "containerd_socket": str(daemons.containerd_socket(folder / "containerd")),
    }
    config = {
        "agent-0": {"preload": preload},
        "agent-1": {"preload": {"docker_socket": str(folder / "docker-api.sock")}},
    }
    with RunningCluster.start(folder / "cluster", origins=3, agents=2, config=config) as running:
        yield running


@pytest.fixture
def docker_api(folder: Path) -> Iterator[PulledImages]:
    """What stands for docker at the second agent."""
    socket = folder / "docker-api.sock"
    with serving_docker_api(socket) as pulled:
        yield pulled
    socket.unlink()


@pytest.fixture(scope="session")
def built_stage(folder: Path) -> Iterator[Stage]:
    with Stage.build(folder / "stage") as stage:
        yield stage


@pytest.fixture
def stage(built_stage: Stage) -> Iterator[Stage]:
    """A cluster with a backend, of which a test may stop and wipe what it wants."""
    yield built_stage
    built_stage.mend()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put the ends of the services' logs into the report of a test that failed."""
    report = yield
    arguments = getattr(item, "funcargs", {})
    clusters = [arguments["cluster"]] if "cluster" in arguments else []
    clusters += [arguments["stage"].cluster] if "stage" in arguments else []
    if report.failed:
        report.sections.extend(("the services' logs", cluster.tails()) for cluster in clusters)
    return report


@pytest.fixture(scope="session")
def skopeo(folder: Path) -> Skopeo:
    return Skopeo(Sandbox(folder / "skopeo"))


@pytest.fixture(scope="session")
def podman(folder: Path) -> Podman:
    return Podman(Sandbox(folder / "podman"))


@pytest.fixture(scope="session")
def buildah(folder: Path) -> Buildah:
    return Buildah(Sandbox(folder / "buildah"))


@pytest.fixture
def library_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home for the clients that are Python packages: no one's credentials, and no HTTP proxy."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "*")
    return tmp_path


@pytest.fixture(scope="session")
def ctr(folder: Path) -> Iterator[Ctr]:
    sandbox = Sandbox(folder / "containerd")
    try:
        with daemons.containerd(sandbox) as socket:
            yield Ctr(sandbox, socket)
    except DaemonFailed as failure:
        unavailable(f"ctr: containerd does not run here: {failure}")


@pytest.fixture(scope="session")
def docker(folder: Path, cluster: RunningCluster) -> Iterator[Docker]:
    """Docker, whose mirror of Docker Hub is the first agent."""
    sandbox = Sandbox(folder / "dockerd")
    try:
        with daemons.dockerd(sandbox, mirror=cluster.agents[0].registry) as address:
            yield Docker(sandbox, address)
    except DaemonFailed as failure:
        unavailable(f"docker: dockerd does not run here: {failure}")
