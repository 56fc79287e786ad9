# SPDX-License-Identifier: Apache-2.0
"""A transfer that was cut goes on where it ended."""

from __future__ import annotations

import pytest

from tests.acceptance.clients import Client, Reference
from tests.acceptance.images import build
from tests.acceptance.relay import Relay
from tests.cluster import RunningCluster

LAYER = 4_000_000
CUT = 1_000_000


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.client(name)) for name in ("ctr", "docker")]
)
def test_a_client_resumes_a_cut_pull(
    name: str, cluster: RunningCluster, request: pytest.FixtureRequest
) -> None:
    client: Client = request.getfixturevalue(name)
    image = build(f"cut for {name}", layer_size=LAYER)
    reference = Reference(cluster.proxy, f"cut/{name}")
    digest = client.push(image, reference)

    with Relay.to(cluster.agents[0].registry, cut_after=CUT) as relay:
        pulled = client.pull(reference.at(relay.url))
        requests = relay.requests()

    assert relay.was_cut
    assert pulled.digest == digest
    assert pulled.diff_ids == image.host.diff_ids
    resumed = [r for r in requests if "range: bytes=" in r.headers.lower()]
    assert [r.status for r in resumed] == [206] * len(resumed)
    assert resumed, "the client started over instead of resuming"
