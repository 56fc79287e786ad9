# SPDX-License-Identifier: Apache-2.0
"""A blob that another repository has is mounted, not sent again."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import quote_plus, urljoin

import pytest

from tests.acceptance import raw
from tests.acceptance.clients import Client, Ctr, Reference, Skopeo, content_of
from tests.acceptance.images import BOTH, build
from tests.acceptance.relay import Recorded, Relay
from tests.cluster import RunningCluster

EACH_CLIENT = [
    pytest.param(name, marks=pytest.mark.client(name))
    for name in ("skopeo", "podman", "buildah", "ctr", "docker")
]


def quote_nothing(value: str) -> str:
    return value


@pytest.mark.parametrize("name", EACH_CLIENT)
def test_a_client_mounts_the_layers_when_it_copies_between_repositories(
    name: str, cluster: RunningCluster, request: pytest.FixtureRequest
) -> None:
    """What each client mounts is its own choice: only containerd mounts configs, too."""
    client: Client = request.getfixturevalue(name)
    image = build(f"mounted by {name}")
    with Relay.to(cluster.proxy) as relay:
        source = Reference(relay.url, f"mount/{name}/from")
        target = Reference(relay.url, f"mount/{name}/to")
        client.push(image, source)
        client.copy(source, target)
        requests = _writes_to(target, relay.requests())

    layers = {
        layer["digest"] for layer in raw.manifest(source.at(cluster.proxy)).document["layers"]
    }
    mounts = [r for r in requests if r.method == "POST" and "mount" in r.query]
    assert {r.query["mount"] for r in mounts} >= layers
    assert {r.query["from"] for r in mounts} == {source.repository}
    assert {r.status for r in mounts} == {201}
    assert _sent(requests).isdisjoint(r.query["mount"] for r in mounts)
    at_agent = target.at(cluster.agents[0].registry)
    assert client.pull(at_agent).diff_ids == image.host.diff_ids


@pytest.mark.client("ctr")
def test_containerd_sends_no_blob_to_a_second_repository(ctr: Ctr, cluster: RunningCluster) -> None:
    image = build("mounted whole", platforms=BOTH)
    with Relay.to(cluster.proxy) as relay:
        source = Reference(relay.url, "mount/whole/from")
        target = Reference(relay.url, "mount/whole/to")
        ctr.push(image, source)
        ctr.copy(source, target)
        requests = _writes_to(target, relay.requests())

    mounted = {r.query["mount"] for r in requests if "mount" in r.query and r.status == 201}
    assert mounted == {blob.digest for blob in image.blobs()}
    assert _sent(requests) == set()
    at_agent = target.at(cluster.agents[1].registry)
    namespace = ctr.pull_into_new(at_agent, "--plain-http", "--all-platforms")
    assert ctr.digests(namespace) == content_of(image)


@pytest.mark.client("skopeo")
@pytest.mark.parametrize("quote", [quote_nothing, quote_plus], ids=["raw", "encoded"])
@pytest.mark.parametrize("named", [True, False], ids=["from a repository", "from anywhere"])
def test_a_mount_is_answered_with_the_blob(
    quote: Callable[[str], str], named: bool, skopeo: Skopeo, cluster: RunningCluster
) -> None:
    """As containerd writes the query, and as the others do."""
    image = build("mounted without asking", layer_size=1000)
    source = Reference(cluster.proxy, "mount/raw/from")
    target = Reference(cluster.proxy, f"mount/raw/{quote.__name__}-{named}".lower())
    skopeo.push(image, source)
    for content in image.blobs():
        assert raw.blob(target, content.digest).status == 404
        query = f"mount={quote(content.digest)}"
        if named:
            query += f"&from={quote(source.repository)}"
        uploads = f"{target.registry}/v2/{target.repository}/blobs/uploads/"
        mounted = raw.ask(f"{uploads}?{query}", "POST")
        assert mounted.status == 201
        assert mounted.headers["Docker-Content-Digest"] == content.digest
        assert raw.ask(urljoin(uploads, mounted.headers["Location"])).body == content.data


def _writes_to(target: Reference, requests: list[Recorded]) -> list[Recorded]:
    prefix = f"/v2/{target.repository}/blobs/uploads/"
    return [request for request in requests if request.target.startswith(prefix)]


def _sent(requests: list[Recorded]) -> set[str]:
    return {
        request.query["digest"]
        for request in requests
        if request.method == "PUT" and "digest" in request.query
    }
