# SPDX-License-Identifier: Apache-2.0
"""Tags move, and are listed: whoever asks afterwards, at any agent, gets what is there now."""

from __future__ import annotations

import pytest

from tests.acceptance.clients import Client, Docker, Podman, Reference, Skopeo
from tests.acceptance.images import build
from tests.cluster import RunningCluster

EACH_CLIENT = [
    pytest.param(name, marks=pytest.mark.client(name))
    for name in ("skopeo", "podman", "buildah", "ctr", "docker")
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


TAGS = ["1.0", "1.1", "latest"]


@pytest.fixture(scope="module")
def listed(skopeo: Skopeo, cluster: RunningCluster) -> Reference:
    """A repository with `TAGS`."""
    reference = Reference(cluster.proxy, "listed/app", TAGS[-1])
    for tag in TAGS:
        skopeo.push(build(f"listed as {tag}", layer_size=1000), reference.tagged(tag))
    return reference


@pytest.fixture(params=["proxy", "agent"])
def at(request: pytest.FixtureRequest, cluster: RunningCluster) -> str:
    """Base URL of the proxy, then of an agent."""
    return cluster.proxy if request.param == "proxy" else cluster.agents[1].registry


@pytest.mark.client("skopeo")
def test_skopeo_lists_tags_and_inspects(listed: Reference, at: str, skopeo: Skopeo) -> None:
    assert skopeo.tags(listed.at(at)) == TAGS
    inspected = skopeo.inspect(listed.at(at))
    image = build("listed as latest", layer_size=1000)
    assert inspected["Digest"] == image.digest
    assert inspected["RepoTags"] == TAGS
    assert inspected["Layers"] == [layer.digest for layer in image.host.layers]


@pytest.mark.client("skopeo", "podman")
def test_podman_lists_tags_and_repositories(listed: Reference, at: str, podman: Podman) -> None:
    assert podman.tags(listed.at(at)) == TAGS
    assert podman.repositories(listed.at(at)) == [listed.at(at).name]


@pytest.mark.client("skopeo", "docker")
def test_docker_pulls_all_tags(listed: Reference, at: str, docker: Docker) -> None:
    assert sorted(docker.pull_all_tags(listed.at(at))) == TAGS


@pytest.mark.client("skopeo")
def test_skopeo_syncs_every_tag(listed: Reference, skopeo: Skopeo, cluster: RunningCluster) -> None:
    target = Reference(cluster.proxy, "synced/app")
    below = f"{target.name.rpartition('/')[0]}"

    skopeo.sync(listed.at(cluster.agents[0].registry), below)

    assert skopeo.tags(target) == TAGS
    for tag in TAGS:
        assert skopeo.raw(target.tagged(tag)) == skopeo.raw(listed.tagged(tag))
