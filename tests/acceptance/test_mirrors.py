# SPDX-License-Identifier: Apache-2.0
"""An agent as the mirror of registries that clients know by other names."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.clients import Ctr, Docker, Podman, Pulled, Reference, Skopeo
from tests.acceptance.images import BOTH, Image, build
from tests.acceptance.raw import ask
from tests.acceptance.relay import Relay
from tests.cluster import RunningCluster

pytestmark = pytest.mark.client("skopeo")

REPOSITORY = "mirrored/app"


@pytest.fixture(scope="module")
def image(skopeo: Skopeo, cluster: RunningCluster) -> Image:
    """An image in the registry, under the name that it has upstream."""
    made = build("mirrored", platforms=BOTH)
    skopeo.push(made, Reference(cluster.proxy, REPOSITORY))
    return made


@pytest.mark.client("ctr")
@pytest.mark.parametrize("folder_name", ["registry.example.test", "_default"])
def test_containerd_pulls_other_registries_names_from_an_agent(
    folder_name: str, image: Image, ctr: Ctr, cluster: RunningCluster, tmp_path: Path
) -> None:
    upstream = "registry.example.test"
    name = f"{upstream}/{REPOSITORY}:v1"
    with Relay.to(cluster.agents[0].registry) as relay:
        _write_hosts(tmp_path / folder_name, server=f"https://{upstream}", mirrors=[relay.url])
        namespace = ctr.pull_into_new(name, "--hosts-dir", str(tmp_path))
        requests = relay.requests()

    _check(ctr, namespace, name, image)
    assert requests
    assert {r.query.get("ns") for r in requests} == {upstream}
    assert {r.status for r in requests} == {200}


@pytest.mark.client("ctr")
def test_containerd_goes_on_to_the_next_agent_when_one_is_not_there(
    image: Image, ctr: Ctr, cluster: RunningCluster, tmp_path: Path
) -> None:
    name = f"registry.example.test/{REPOSITORY}:v1"
    with Relay.to(cluster.agents[0].registry) as gone:
        dead = gone.url
    mirrors = [dead, cluster.agents[1].registry]
    _write_hosts(tmp_path / "_default", server=dead, mirrors=mirrors)

    namespace = ctr.pull_into_new(name, "--hosts-dir", str(tmp_path))

    _check(ctr, namespace, name, image)


@pytest.mark.client("ctr")
def test_what_no_agent_has_comes_from_the_upstream(
    image: Image, ctr: Ctr, skopeo: Skopeo, cluster: RunningCluster, tmp_path: Path
) -> None:
    """A tag that the cluster lacks is a fast 404, after which containerd asks the server itself."""
    name = "registry.example.test/mirrored/elsewhere:v1"
    # The upstream of this test is the proxy behind a path that the agent does not know.
    with Relay.to(cluster.agents[0].registry) as agent:
        folder = tmp_path / "_default"
        folder.mkdir()
        (folder / "hosts.toml").write_text(
            f'server = "{cluster.proxy}/v2/mirrored/app"\n'
            f'[host."{agent.url}"]\n  capabilities = ["pull", "resolve"]\n'
            f'[host."{cluster.proxy}/v2/{REPOSITORY}"]\n'
            '  capabilities = ["pull", "resolve"]\n  override_path = true\n'
        )
        skopeo.push(image, Reference(cluster.proxy, f"{REPOSITORY}/mirrored/elsewhere"))
        namespace = ctr.pull_into_new(name, "--hosts-dir", str(tmp_path))
        requests = agent.requests()

    _check(ctr, namespace, name, image)
    assert requests[0].status == 404


@pytest.mark.client("docker")
def test_docker_hub_names_come_from_an_agent(image: Image, docker: Docker) -> None:
    pulled = docker.pull(f"{REPOSITORY}:v1")

    assert pulled == Pulled(image.digest, image.host.diff_ids)


@pytest.mark.client("podman")
def test_podman_pulls_other_registries_names_from_an_agent(
    image: Image, podman: Podman, cluster: RunningCluster, tmp_path: Path
) -> None:
    mirror = cluster.agents[1].registry.removeprefix("http://")
    config = tmp_path / "registries.conf"
    config.write_text(
        '[[registry]]\nlocation = "registry.example.test"\n'
        f'[[registry.mirror]]\nlocation = "{mirror}"\ninsecure = true\n'
    )

    pulled = podman.pull(f"registry.example.test/{REPOSITORY}:v1", registries=config)

    assert pulled.diff_ids == image.host.diff_ids


def test_an_agent_says_for_which_registry_it_answers(image: Image, cluster: RunningCluster) -> None:
    for agent in cluster.agents:
        url = f"{agent.registry}/v2/{REPOSITORY}/manifests/v1"
        assert ask(f"{url}?ns=registry.example.test").headers["OCI-Namespace"] == (
            "registry.example.test"
        )
        assert ask(url).body == image.top.data


def _write_hosts(folder: Path, *, server: str, mirrors: list[str]) -> None:
    folder.mkdir()
    lines = [f'server = "{server}"']
    for mirror in mirrors:
        lines += [f'[host."{mirror}"]', '  capabilities = ["pull", "resolve"]']
    (folder / "hosts.toml").write_text("\n".join(lines) + "\n")


def _check(ctr: Ctr, namespace: str, name: str, image: Image) -> None:
    assert ctr.digest(namespace, name) == image.digest
    wanted = {image.digest, image.host.manifest.digest, image.host.config.digest}
    wanted |= {layer.digest for layer in image.host.layers}
    assert ctr.digests(namespace) >= wanted
