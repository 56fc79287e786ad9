# SPDX-License-Identifier: Apache-2.0
"""Whatever client pushed an image to the proxy, every client pulls it from an agent."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.acceptance.clients import Client, Reference
from tests.acceptance.images import Image, build
from tests.cluster import RunningCluster

CLIENTS = ("skopeo", "podman", "buildah", "ctr", "docker")
EACH_CLIENT = [pytest.param(name, marks=pytest.mark.client(name)) for name in CLIENTS]


@dataclass(frozen=True)
class Pushed:
    image: Image
    reference: Reference
    digest: str


@pytest.fixture(scope="module", params=EACH_CLIENT)
def pushed(request: pytest.FixtureRequest, cluster: RunningCluster) -> Pushed:
    """An image that one of the clients has pushed to the proxy."""
    name: str = request.param
    pusher: Client = request.getfixturevalue(name)
    image = build(f"pushed by {name}")
    reference = Reference(cluster.proxy, f"matrix/by-{name}")
    return Pushed(image, reference, pusher.push(image, reference))


@pytest.fixture(params=EACH_CLIENT)
def puller(request: pytest.FixtureRequest) -> Client:
    client: Client = request.getfixturevalue(request.param)
    return client


def test_an_agent_serves_it_to_every_client(
    pushed: Pushed, puller: Client, cluster: RunningCluster
) -> None:
    for agent in cluster.agents:
        pulled = puller.pull(pushed.reference.at(agent.registry))

        assert pulled.digest == pushed.digest
        assert pulled.diff_ids == pushed.image.host.diff_ids


def test_the_proxy_serves_it_to_every_client(pushed: Pushed, puller: Client) -> None:
    pulled = puller.pull(pushed.reference)

    assert pulled.digest == pushed.digest
    assert pulled.diff_ids == pushed.image.host.diff_ids


@pytest.mark.client("skopeo")
def test_a_client_that_keeps_manifests_finds_its_own_digest(
    request: pytest.FixtureRequest, cluster: RunningCluster
) -> None:
    pusher: Client = request.getfixturevalue("skopeo")
    image = build("kept as it is")

    assert pusher.push(image, Reference(cluster.proxy, "matrix/kept")) == image.digest
