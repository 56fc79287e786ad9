# SPDX-License-Identifier: Apache-2.0
"""A blob that another repository has is not sent again.

Shoal's blobs belong to no repository, so a client that asks first finds the blob in the second one,
too, and need not mount it; one that mounts without asking gets its 201.
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import quote_plus, urljoin
from urllib.request import Request, urlopen

import pytest

from tests.acceptance.clients import Ctr, Reference, Skopeo, content_of
from tests.acceptance.images import BOTH, build
from tests.acceptance.relay import Recorded, Relay
from tests.cluster import RunningCluster


def quote_nothing(value: str) -> str:
    return value


@pytest.mark.client("skopeo")
def test_skopeo_copies_between_repositories_without_sending_blobs(
    skopeo: Skopeo, cluster: RunningCluster
) -> None:
    image = build("mounted by skopeo", platforms=BOTH)
    with Relay.to(cluster.proxy) as relay:
        source = Reference(relay.url, "mount/skopeo/from")
        target = Reference(relay.url, "mount/skopeo/to")
        skopeo.push(image, source)
        before = len(relay.requests())
        skopeo.copy(source, target)
        requests = relay.requests()[before:]

    assert _found_or_mounted(requests) == {blob.digest for blob in image.blobs()}
    assert _sent(requests) == set()
    folder = skopeo.pull_all(target.at(cluster.agents[0].registry))
    assert (folder / "manifest.json").read_bytes() == image.top.data


@pytest.mark.client("ctr")
def test_containerd_pushes_to_a_second_repository_without_sending_blobs(
    ctr: Ctr, cluster: RunningCluster
) -> None:
    image = build("mounted by ctr")
    with Relay.to(cluster.proxy) as relay:
        source = Reference(relay.url, "mount/ctr/from")
        target = Reference(relay.url, "mount/ctr/to")
        ctr.push(image, source)
        # containerd remembers the repository that it pulled a blob from, and mounts from there.
        namespace = ctr.pull_into_new(source, "--plain-http")
        before = len(relay.requests())
        ctr.push_from(namespace, target, str(source))
        requests = relay.requests()[before:]

    assert _found_or_mounted(requests) == {blob.digest for blob in image.blobs()}
    assert _sent(requests) == set()
    at_agent = target.at(cluster.agents[1].registry)
    pulled = ctr.pull_into_new(at_agent, "--plain-http")
    assert ctr.digests(pulled) == content_of(image)


@pytest.mark.client("skopeo")
@pytest.mark.parametrize("quote", [quote_nothing, quote_plus], ids=["raw", "encoded"])
def test_a_mount_is_answered_with_the_blob(
    quote: Callable[[str], str], skopeo: Skopeo, cluster: RunningCluster
) -> None:
    """As containerd writes the query, and as the others do."""
    image = build("mounted without asking", layer_size=1000)
    skopeo.push(image, Reference(cluster.proxy, "mount/raw/from"))
    for blob in image.blobs():
        query = f"mount={quote(blob.digest)}&from={quote('mount/raw/from')}"
        uploads = f"{cluster.proxy}/v2/mount/raw/to/blobs/uploads/"
        with urlopen(Request(f"{uploads}?{query}", method="POST"), timeout=30) as answer:
            assert answer.status == 201
            assert answer.headers["Docker-Content-Digest"] == blob.digest
            location = urljoin(uploads, answer.headers["Location"])
        with urlopen(location, timeout=30) as answer:
            assert answer.read() == blob.data


def _found_or_mounted(requests: list[Recorded]) -> set[str]:
    found = {r.blob for r in requests if r.method == "HEAD" and r.blob and r.status == 200}
    mounted = {
        r.query["mount"]
        for r in requests
        if r.method == "POST" and "mount" in r.query and r.status == 201
    }
    return found | mounted


def _sent(requests: list[Recorded]) -> set[str]:
    return {
        request.query["digest"]
        for request in requests
        if request.method == "PUT" and "digest" in request.query
    }
