# SPDX-License-Identifier: Apache-2.0
"""A pull that was cut goes on where it ended, with the clients that can."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.clients import Client, Ctr, Reference
from tests.acceptance.images import build
from tests.acceptance.relay import Recorded, Relay
from tests.cluster import RunningCluster

LAYER = 4_000_000
CUT = 1_500_000
"""Bytes; more than the layer with busybox has."""


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
    _check_resumed(requests)


@pytest.mark.client("ctr")
def test_containerd_resumes_a_cut_pull_from_a_mirror(
    ctr: Ctr, cluster: RunningCluster, tmp_path: Path
) -> None:
    image = build("cut at the mirror", layer_size=LAYER)
    repository = "cut/mirror"
    digest = ctr.push(image, Reference(cluster.proxy, repository))
    name = f"registry.example.test/{repository}:v1"
    folder = tmp_path / "_default"
    folder.mkdir()

    with Relay.to(cluster.agents[1].registry, cut_after=CUT) as relay:
        (folder / "hosts.toml").write_text(
            f'[host."{relay.url}"]\n  capabilities = ["pull", "resolve"]\n'
        )
        namespace = ctr.pull_into_new(name, "--hosts-dir", str(tmp_path))
        requests = relay.requests()

    assert relay.was_cut
    assert ctr.pulled(namespace, name).digest == digest
    assert {r.query["ns"] for r in _check_resumed(requests)} == {"registry.example.test"}


def _check_resumed(requests: list[Recorded]) -> list[Recorded]:
    resumed = [r for r in requests if "range: bytes=" in r.headers.lower()]
    assert resumed, "the client started over instead of resuming"
    assert [r.status for r in resumed] == [206] * len(resumed)
    return resumed
