# SPDX-License-Identifier: Apache-2.0
"""Pull-through with all processes: one cluster is the upstream of another one."""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from shoal.model.media_types import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST
from tests.cluster import RunningCluster
from tests.unit.backend.registry_server import FakeRegistry

LAYER = b"a layer of the upstream" * 10_000
CONFIG = b"{}"


def digest_of(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def manifest_of(layer: bytes) -> bytes:
    def entry(kind: str, content: bytes) -> dict[str, object]:
        return {"mediaType": kind, "digest": digest_of(content), "size": len(content)}

    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": entry(OCI_CONFIG, CONFIG),
        "layers": [entry(OCI_LAYER, layer)],
    }
    return json.dumps(document).encode()


def call(
    method: str, url: str, body: bytes | None = None, kind: str = "application/octet-stream"
) -> tuple[int, bytes, dict[str, str]]:
    request = urllib.request.Request(url, body, headers={"Content-Type": kind}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=40) as answer:
            return answer.status, answer.read(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read(), dict(error.headers)


def push(registry: str, repository: str, tag: str, layer: bytes = LAYER) -> str:
    for blob in (layer, CONFIG):
        _, _, headers = call("POST", f"{registry}/v2/{repository}/blobs/uploads/", b"")
        location = headers["Location"]
        url = location if location.startswith("http") else registry + location
        joint = "&" if "?" in url else "?"
        assert call("PUT", f"{url}{joint}digest={digest_of(blob)}", blob)[0] == 201
    body = manifest_of(layer)
    url = f"{registry}/v2/{repository}/manifests/{tag}"
    assert call("PUT", url, body, OCI_MANIFEST)[0] == 201
    return digest_of(body)


@pytest.fixture(scope="module")
def clusters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningCluster, ...]]:
    folder: Path = tmp_path_factory.mktemp("upstreams")
    with RunningCluster.start(folder / "up", origins=1, agents=0) as upstream:
        settings = {"up.example.com": {"url": upstream.proxy, "allow_private": True, "fresh": "0s"}}
        config = {
            "origin": {"upstreams": settings},
            "build-index": {"upstreams": settings},
            "agent": {"upstreams": ["up.example.com"]},
            "proxy": {"upstreams": ["up.example.com"]},
        }
        with RunningCluster.start(folder / "down", origins=1, agents=1, config=config) as cluster:
            yield upstream, cluster


def test_an_image_of_an_upstream_is_prefetched_under_the_name_by_which_it_is_pulled(
    clusters: tuple[RunningCluster, ...],
) -> None:
    upstream, cluster = clusters
    layer = LAYER + b"prefetched"
    digest = push(upstream.proxy, "team/ahead", "v1", layer)
    prefetch = f"{cluster.proxy}/prefetch/up.example.com/team/ahead:v1"

    status, body, _ = call("POST", prefetch, b"")
    assert status in {200, 202}, body
    assert json.loads(body)["digest"] == digest
    patience = time.monotonic() + 30
    while status != 200:
        assert time.monotonic() < patience, body
        status, body, _ = call("POST", prefetch, b"")
    for content in (manifest_of(layer), layer, CONFIG):
        own = f"{cluster.origins[0]}/internal/blobs/{digest_of(content)}"
        assert call("HEAD", own)[0] == 200


def test_an_image_is_pulled_through_by_ns_and_by_prefix_and_goes_on_while_the_upstream_is_down(
    clusters: tuple[RunningCluster, ...],
) -> None:
    upstream, cluster = clusters
    agent = cluster.agents[0].registry
    first = push(upstream.proxy, "team/app", "v1")

    for path, query in (("team/app", "?ns=up.example.com"), ("up.example.com/team/app", "")):
        status, body, headers = call("GET", f"{agent}/v2/{path}/manifests/v1{query}")
        assert (status, digest_of(body)) == (200, first)
        assert headers["Docker-Content-Digest"] == first
        status, body, _ = call("GET", f"{agent}/v2/{path}/blobs/{digest_of(LAYER)}{query}")
        assert (status, body) == (200, LAYER)

    # A blob belongs to the repositories whose manifests need it, and to no other.
    for path in ("up.example.com/team/other", "team/app"):
        assert call("GET", f"{agent}/v2/{path}/blobs/{digest_of(LAYER)}")[0] == 404

    moved = push(upstream.proxy, "team/app", "v1", LAYER + b"more")
    _, body, _ = call("GET", f"{agent}/v2/team/app/manifests/v1?ns=up.example.com")
    assert digest_of(body) == moved

    url = f"{cluster.proxy}/v2/up.example.com/team/app/manifests/v1"
    status, body, _ = call("PUT", url, manifest_of(LAYER), OCI_MANIFEST)
    assert (status, json.loads(body)["errors"][0]["code"]) == (403, "DENIED")

    upstream.kill("proxy-0", signal.SIGKILL)
    _, body, _ = call("GET", f"{agent}/v2/team/app/manifests/v1?ns=up.example.com")
    assert digest_of(body) == moved
    status, _, _ = call("GET", f"{agent}/v2/team/app/manifests/unseen?ns=up.example.com")
    assert status == 503


async def test_a_registry_that_no_config_names_is_pulled_through_by_default(tmp_path: Path) -> None:
    authority = trustme.CA()
    ca = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca))
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(tls)
    # It is on this host: elsewhere `_default` needs no more than its name.
    settings = {"_default": {"allow_private": True, "ca": str(ca)}}
    names: dict[str, object] = {"upstreams": ["_default"]}
    config: dict[str, dict[str, object]] = {
        "origin": {"upstreams": settings},
        "build-index": {"upstreams": settings},
        "agent": names,
        "proxy": names,
    }
    async with FakeRegistry().running(tls) as registry:
        for blob in (LAYER, CONFIG):
            registry.add_blob("team/app", blob)
        registry.add_manifest("team/app", manifest_of(LAYER), "v1")

        def pull() -> None:
            folder = tmp_path / "cluster"
            with RunningCluster.start(folder, origins=1, agents=1, config=config) as cluster:
                url = f"{cluster.agents[0].registry}/v2/team/app"
                ns = f"?ns=localhost:{registry.base_port}"
                status, body, _ = call("GET", f"{url}/manifests/v1{ns}")
                assert (status, body) == (200, manifest_of(LAYER))
                status, body, _ = call("GET", f"{url}/blobs/{digest_of(LAYER)}{ns}")
                assert (status, body) == (200, LAYER)

        await asyncio.to_thread(pull)
