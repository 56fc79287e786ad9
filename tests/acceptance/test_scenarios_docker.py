# SPDX-License-Identifier: Apache-2.0
"""Kraken's scenarios of pushes and pulls (its `test_docker.py`), by their names."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from urllib.parse import urlencode

import pytest

from tests.acceptance.clients import Client, Ctr, Docker, Pulled, Reference, Skopeo, content_of
from tests.acceptance.docker_api import PulledImages
from tests.acceptance.images import Image, build
from tests.acceptance.raw import Answer, ask
from tests.acceptance.stage import ORIGINS, Stage, until
from tests.cluster import AgentUrls, RunningCluster

LAYER = 5_000_000
FETCHED = 'shoal_refreshes_total{outcome="fetched"}'
HELD_UP = 8.0
"""Seconds; two answers of a backend that hangs take longer (`ObjectStore.backend`)."""

EACH_CLIENT = [pytest.param(name, marks=pytest.mark.client(name)) for name in ("skopeo", "docker")]


@dataclass(frozen=True)
class Pushed:
    """An image as a client has pushed it."""

    image: Image
    reference: Reference
    digest: str
    client: Client

    def check_pull(self, registry: str) -> None:
        """Pull it there."""
        pulled = self.client.pull(self.reference.at(registry))
        assert pulled == Pulled(self.digest, self.image.host.diff_ids)


def preload(agent: AgentUrls, reference: Reference, **query: str) -> Answer:
    """Have an agent tell a runtime to pull."""
    image = f"{reference.repository}:{reference.tag}"
    return ask(f"{agent.admin}/preload/tags/{image}?{urlencode(query)}")


def code(answer: Answer) -> str:
    """The code of an error."""
    return str(answer.document["errors"][0]["code"])


@pytest.fixture(scope="module", params=EACH_CLIENT)
def pushed(request: pytest.FixtureRequest, cluster: RunningCluster) -> Pushed:
    """An image that was pushed to the proxy."""
    client: Client = request.getfixturevalue(request.param)
    image = build(f"scenario with {request.param}", layer_size=LAYER)
    reference = Reference(cluster.proxy, f"test/scenario/{request.param}")
    return Pushed(image, reference, client.push(image, reference), client)


def test_proxy_push_and_pull(pushed: Pushed, cluster: RunningCluster) -> None:
    pushed.check_pull(cluster.proxy)


def test_proxy_pull_after_data_loss(pushed: Pushed, cluster: RunningCluster) -> None:
    cluster.kill("proxy-0")
    shutil.rmtree(cluster.data_dir("proxy-0"))
    cluster.restart("proxy-0")

    pushed.check_pull(cluster.proxy)


def test_agent_pull(pushed: Pushed, cluster: RunningCluster) -> None:
    pushed.check_pull(cluster.agents[0].registry)


@pytest.mark.client("docker")
def test_agent_preload(docker: Docker, cluster: RunningCluster) -> None:
    image = build("preloaded", layer_size=LAYER)
    reference = Reference(cluster.proxy, "test/preloaded/by/docker")
    digest = docker.push(image, reference)

    done = preload(cluster.agents[0], reference)

    assert done.status == 200, done.body
    local = reference.at(cluster.agents[0].registry)
    assert (done.document["image"], done.document["digest"]) == (str(local), digest)
    assert docker.has(local) == image.host.diff_ids


@pytest.mark.client("skopeo")
def test_agent_preload_by_dockers_api(
    skopeo: Skopeo, docker_api: PulledImages, cluster: RunningCluster
) -> None:
    image = build("preloaded by docker's API", layer_size=LAYER)
    reference = Reference(cluster.proxy, "test/preloaded/by/api")
    skopeo.push(image, reference)
    agent = cluster.agents[1]

    done = preload(agent, reference)

    assert done.status == 200, done.body
    local = reference.at(agent.registry)
    assert (done.document["image"], done.document["digest"]) == (str(local), image.digest)
    assert docker_api.images == {str(local): image.digest}
    layers = {layer.digest: layer.data for layer in image.host.layers}
    assert layers.items() <= docker_api.contents.items()


@pytest.mark.client("skopeo", "ctr")
def test_agent_preload_by_containerd(skopeo: Skopeo, ctr: Ctr, cluster: RunningCluster) -> None:
    image = build("preloaded by containerd", layer_size=LAYER)
    reference = Reference(cluster.proxy, "test/preloaded/by/containerd")
    skopeo.push(image, reference)
    local = reference.at(cluster.agents[0].registry)

    done = preload(cluster.agents[0], reference, runtime="containerd", namespace="k8s.io")

    assert done.status == 200, done.body
    assert (done.document["image"], done.document["digest"]) == (str(local), image.digest)
    assert ctr.pulled("k8s.io", local) == Pulled(image.digest, image.host.diff_ids)


@pytest.mark.client("ctr")
def test_agent_preload_that_fails(ctr: Ctr, cluster: RunningCluster) -> None:
    """An image that is nowhere; a runtime that does not answer; one that it may not tell."""
    nowhere = Reference(cluster.proxy, "test/preloaded/nowhere")
    absent = preload(cluster.agents[0], nowhere, runtime="containerd")
    assert (absent.status, code(absent)) == (404, "MANIFEST_UNKNOWN")

    image = build("preloaded nowhere", layer_size=1000)
    there = Reference(cluster.proxy, "test/preloaded/there")
    ctr.push(image, there)
    silent = preload(cluster.agents[1], there)
    assert (silent.status, code(silent)) == (503, "UNAVAILABLE")
    assert "docker-api.sock" in silent.document["errors"][0]["message"]
    closed = preload(cluster.agents[1], there, runtime="containerd")
    assert (closed.status, code(closed)) == (405, "UNSUPPORTED")
    assert "preload.containerd_socket" in closed.document["errors"][0]["message"]


@pytest.mark.client("skopeo")
def test_proxy_list_repository_tags(skopeo: Skopeo, cluster: RunningCluster) -> None:
    reference = Reference(cluster.proxy, "test/listed/one")
    image = build("listed", layer_size=1000)
    tags = ["0001", "0002", "0003"]
    for tag in tags:
        skopeo.push(image, reference.tagged(tag))
    for neighbour in ("test/listed", "test/listed/one/more", "test/listed/one-more"):
        skopeo.push(image, Reference(cluster.proxy, neighbour, "0004"))

    listed = ask(f"{cluster.proxy}/v2/test/listed/one/tags/list")
    assert listed.status == 200
    assert listed.document == {"name": "test/listed/one", "tags": tags}
    assert skopeo.tags(reference) == tags
    of_index = ask(f"{cluster.build_indexes[0]}/repositories/test%2Flisted%2Fone/tags")
    assert of_index.document == {"tags": tags, "more": False}


@pytest.mark.client("skopeo")
def test_proxy_catalog(skopeo: Skopeo, cluster: RunningCluster) -> None:
    image = build("catalogued", layer_size=1000)
    names = ["test/catalogued/one", "test/catalogued/two"]
    for name in names:
        for tag in ("0001", "0002", "0003"):
            skopeo.push(image, Reference(cluster.proxy, name, tag))

    # From just before them on, as others have pushed to this registry, too.
    listed = ask(f"{cluster.proxy}/v2/_catalog?last=test/catalogued&n=2")

    assert listed.status == 200
    assert listed.document == {"repositories": names}


@pytest.mark.client("skopeo")
@pytest.mark.parametrize("form", ["shoal", "command", "kraken"])
def test_proxy_prefetch(stage: Stage, skopeo: Skopeo, form: str) -> None:
    """What only the backend has is on the origins before any agent asks for it."""
    cluster = stage.cluster
    image = build(f"prefetched by the request of {form}", layer_size=LAYER)
    reference = Reference(cluster.proxy, f"test/prefetched/by/{form}")
    assert skopeo.push(image, reference) == image.digest
    contents = content_of(image)
    until(lambda: all(map(stage.storage.has_blob, contents)), "the backend has the image")
    stage.wipe(*ORIGINS)
    assert not any(map(stage.holders, contents))
    fetched = stage.metric(FETCHED)

    shoal = f"{cluster.proxy}/prefetch/{reference.repository}:{reference.tag}"
    if form == "shoal":
        begun = ask(shoal, "POST")
        assert begun.status == 202, begun.body
        assert begun.document["contents"] == len(contents)
        assert begun.document["coming"] > 0
    elif form == "command":
        argv = [sys.executable, "-m", "shoal", "prefetch", str(reference)]
        argv += ["--proxy", cluster.proxy, "--wait", "30s"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
        assert f"{image.digest}: ready, {len(contents)} blobs and manifests" in done.stdout
    else:
        asked = json.dumps({"tag": str(reference), "trace_id": "rollout-7"}).encode()
        begun = ask(f"{cluster.proxy}/proxy/v2/registry/prefetch", "POST", body=asked)
        assert begun.status == 200, begun.body
        assert (begun.document["status"], begun.document["prefetched"]) == ("success", True)
        assert begun.document["trace_id"] == "rollout-7"
    until(lambda: ask(shoal, "POST").status == 200, "all is on the origins")
    assert all(map(stage.holders, contents))
    assert stage.metric(FETCHED) == fetched + len(contents)

    stage.storage.stop()
    stage.wipe("agent-0")
    pulled = skopeo.pull(reference.at(cluster.agents[0].registry))
    assert pulled == Pulled(image.digest, image.host.diff_ids)


def test_proxy_prefetch_of_what_is_not_there(stage: Stage) -> None:
    nothing = ask(f"{stage.cluster.proxy}/prefetch/test/prefetched/nowhere:v1", "POST")

    assert nothing.status == 404, nothing.body
    assert nothing.document["errors"][0]["code"] == "MANIFEST_UNKNOWN"


@pytest.mark.client("skopeo")
def test_docker_image_distribution_high_availability(stage: Stage, skopeo: Skopeo) -> None:
    cluster = stage.cluster
    image = build("highly available", layer_size=LAYER)
    reference = Reference(cluster.proxy, "test/highly/available")
    expected = Pulled(image.digest, image.host.diff_ids)

    # The backend is down: the cluster alone holds what was pushed, also when it starts anew.
    stage.storage.stop()
    assert skopeo.push(image, reference) == image.digest
    stage.kill(*ORIGINS, "build-index-0")
    stage.restart(*ORIGINS, "build-index-0")
    stage.wipe("agent-0")
    assert skopeo.pull(reference.at(cluster.agents[0].registry)) == expected

    # It comes back and gets all of it: then the cluster may lose everything.
    stage.storage.start()
    contents = content_of(image)
    until(
        lambda: (
            all(map(stage.storage.has_blob, contents))
            and stage.storage.links(reference.repository) >= contents
            and stage.storage.has_tag(reference.repository, reference.tag)
        ),
        "the backend has the image",
    )
    stage.wipe(*ORIGINS, "build-index-0", "agent-1")
    assert skopeo.pull(reference.at(cluster.agents[1].registry)) == expected


@pytest.mark.client("skopeo")
def test_a_backend_that_hangs_holds_up_no_image(stage: Stage, skopeo: Skopeo) -> None:
    """The worse way to be unavailable: everything that would wait for an answer waits."""
    image = build("pushed while the backend hangs", layer_size=LAYER)
    reference = Reference(stage.cluster.proxy, "test/held/up")
    stage.storage.freeze()
    began = time.monotonic()

    assert skopeo.push(image, reference) == image.digest
    pulled = skopeo.pull(reference.at(stage.cluster.agents[2].registry))

    assert pulled == Pulled(image.digest, image.host.diff_ids)
    assert time.monotonic() - began < HELD_UP
