# SPDX-License-Identifier: Apache-2.0
"""What was pulled from an agent runs."""

from __future__ import annotations

import pytest

from tests.acceptance.clients import Ctr, Docker, Reference, Skopeo
from tests.acceptance.images import BOTH, Image, build
from tests.cluster import RunningCluster

pytestmark = pytest.mark.client("skopeo", "busybox")


@pytest.fixture(scope="module")
def image() -> Image:
    return build("to be run", platforms=BOTH)


@pytest.fixture(scope="module")
def reference(image: Image, skopeo: Skopeo, cluster: RunningCluster) -> Reference:
    """A multi-platform image in the registry."""
    pushed = Reference(cluster.proxy, "run/greeter")
    skopeo.push(image, pushed)
    return pushed


@pytest.mark.client("docker")
def test_docker_runs_what_an_agent_served(
    image: Image, reference: Reference, docker: Docker, cluster: RunningCluster
) -> None:
    at_agent = reference.at(cluster.agents[0].registry)
    docker.pull(at_agent)

    assert docker.run(at_agent) == image.greeting


@pytest.mark.client("ctr")
def test_containerd_runs_what_an_agent_served(
    image: Image, reference: Reference, ctr: Ctr, cluster: RunningCluster
) -> None:
    at_agent = reference.at(cluster.agents[1].registry)
    namespace = ctr.pull_into_new(at_agent, "--plain-http")

    assert ctr.run(namespace, at_agent) == image.greeting
