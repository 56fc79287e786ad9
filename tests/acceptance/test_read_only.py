# SPDX-License-Identifier: Apache-2.0
"""An agent serves; it takes nothing and deletes nothing, and clients understand that."""

from __future__ import annotations

import pytest

from tests.acceptance.clients import Client, Reference, Skopeo
from tests.acceptance.images import build
from tests.acceptance.sandbox import CommandFailed
from tests.cluster import RunningCluster

EACH_CLIENT = [
    pytest.param(name, marks=pytest.mark.client(name))
    for name in ("skopeo", "podman", "ctr", "docker")
]


@pytest.mark.parametrize("name", EACH_CLIENT)
def test_a_push_to_an_agent_fails(
    name: str, cluster: RunningCluster, request: pytest.FixtureRequest
) -> None:
    client: Client = request.getfixturevalue(name)
    image = build(f"pushed to an agent by {name}", layer_size=1000)

    with pytest.raises(CommandFailed, match=r"(?i)unsupported|405"):
        client.push(image, Reference(cluster.agents[0].registry, f"read-only/{name}"))


@pytest.mark.client("skopeo")
def test_a_deletion_at_an_agent_fails(skopeo: Skopeo, cluster: RunningCluster) -> None:
    image = build("not to be deleted at an agent", layer_size=1000)
    reference = Reference(cluster.proxy, "read-only/app")
    skopeo.push(image, reference)
    at_agent = reference.at(cluster.agents[0].registry)

    with pytest.raises(CommandFailed, match=r"(?i)unsupported|405"):
        skopeo.delete(at_agent)

    assert skopeo.raw(at_agent) == image.top.data
