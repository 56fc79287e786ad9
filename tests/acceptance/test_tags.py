# SPDX-License-Identifier: Apache-2.0
"""A tag may move: whoever pulls afterwards, from any agent, gets the newer image."""

from __future__ import annotations

import pytest

from tests.acceptance.clients import Client, Reference, Skopeo
from tests.acceptance.images import build
from tests.cluster import RunningCluster

EACH_CLIENT = [
    pytest.param(name, marks=pytest.mark.client(name))
    for name in ("skopeo", "podman", "ctr", "docker")
]


@pytest.mark.parametrize("name", EACH_CLIENT)
def test_a_moved_tag_is_seen_by_the_next_pull(
    name: str, cluster: RunningCluster, request: pytest.FixtureRequest
) -> None:
    client: Client = request.getfixturevalue(name)
    reference = Reference(cluster.proxy, f"moved/{name}", "latest")
    pushed = set()
    for version in ("first", "second"):
        image = build(f"moved/{name}/{version}", layer_size=50_000)
        digest = client.push(image, reference)
        pushed.add(digest)
        for agent in cluster.agents:
            pulled = client.pull(reference.at(agent.registry))

            assert pulled.digest == digest
            assert pulled.diff_ids == image.host.diff_ids
    assert len(pushed) == 2


@pytest.mark.client("skopeo")
def test_every_tag_of_a_repository_is_listed(skopeo: Skopeo, cluster: RunningCluster) -> None:
    image = build("listed", layer_size=1000)
    tags = ["1.0", "1.1", "latest"]
    for tag in tags:
        skopeo.push(image, Reference(cluster.proxy, "listed/app", tag))

    for registry in (cluster.proxy, cluster.agents[0].registry):
        assert skopeo.tags(Reference(registry, "listed/app")) == tags
