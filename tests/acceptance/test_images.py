# SPDX-License-Identifier: Apache-2.0
"""Indexes of several platforms, and both families of media types, arrive byte for byte."""

from __future__ import annotations

import pytest

from tests.acceptance.clients import Client, Ctr, Reference, Skopeo, content_of
from tests.acceptance.images import BOTH, DOCKER, OCI, MediaTypes, build
from tests.cluster import RunningCluster

EACH_FAMILY = [pytest.param(OCI, id="oci"), pytest.param(DOCKER, id="docker")]


@pytest.mark.client("skopeo")
@pytest.mark.parametrize("types", EACH_FAMILY)
def test_skopeo_copies_every_platform(
    types: MediaTypes, skopeo: Skopeo, cluster: RunningCluster
) -> None:
    image = build("all by skopeo", platforms=BOTH, types=types)
    reference = Reference(cluster.proxy, "multi/by-skopeo", types.index[12:15])

    assert skopeo.push(image, reference) == image.digest
    folder = skopeo.pull_all(reference.at(cluster.agents[0].registry))

    assert (folder / "manifest.json").read_bytes() == image.top.data
    names = {path.name.partition(".")[0] for path in folder.iterdir()}
    assert names >= {digest.partition(":")[2] for digest in content_of(image) - {image.digest}}


@pytest.mark.client("ctr")
@pytest.mark.parametrize("types", EACH_FAMILY)
def test_containerd_copies_every_platform(
    types: MediaTypes, ctr: Ctr, cluster: RunningCluster
) -> None:
    image = build("all by ctr", platforms=BOTH, types=types)
    reference = Reference(cluster.proxy, "multi/by-ctr", types.index[12:15])

    assert ctr.push(image, reference) == image.digest
    at_agent = reference.at(cluster.agents[1].registry)
    namespace = ctr.pull_into_new(at_agent, "--plain-http", "--all-platforms")

    assert ctr.digest(namespace, at_agent) == image.digest
    assert ctr.digests(namespace) == content_of(image)


@pytest.mark.client("skopeo")
@pytest.mark.parametrize("types", EACH_FAMILY)
@pytest.mark.parametrize(
    "puller_name",
    [pytest.param(name, marks=pytest.mark.client(name)) for name in ("podman", "docker")],
)
def test_a_client_finds_its_platform_in_an_index(
    types: MediaTypes,
    puller_name: str,
    skopeo: Skopeo,
    cluster: RunningCluster,
    request: pytest.FixtureRequest,
) -> None:
    puller: Client = request.getfixturevalue(puller_name)
    image = build("one of two", platforms=BOTH, types=types)
    reference = Reference(cluster.proxy, f"multi/for-{puller_name}", types.index[12:15])
    skopeo.push(image, reference)

    pulled = puller.pull(reference.at(cluster.agents[0].registry))

    assert pulled.digest in {image.digest, image.host.manifest.digest}
    assert pulled.diff_ids == image.host.diff_ids


@pytest.mark.client("skopeo")
@pytest.mark.parametrize("types", EACH_FAMILY)
@pytest.mark.parametrize(
    "puller_name",
    [pytest.param(name, marks=pytest.mark.client(name)) for name in ("podman", "ctr", "docker")],
)
def test_every_client_takes_both_families(
    types: MediaTypes,
    puller_name: str,
    skopeo: Skopeo,
    cluster: RunningCluster,
    request: pytest.FixtureRequest,
) -> None:
    puller: Client = request.getfixturevalue(puller_name)
    image = build("either family", types=types)
    reference = Reference(cluster.proxy, f"family/for-{puller_name}", types.index[12:15])
    skopeo.push(image, reference)
    at_agent = reference.at(cluster.agents[1].registry)

    pulled = puller.pull(at_agent)

    assert skopeo.raw(at_agent) == image.top.data
    assert pulled.digest == image.digest
    assert pulled.diff_ids == image.host.diff_ids
