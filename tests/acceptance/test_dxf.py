# SPDX-License-Identifier: Apache-2.0
"""python-dxf, which uses a registry as a store of blobs, with names for lists of them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from dxf import DXF, DXFBase
from requests import HTTPError

from tests.acceptance import raw
from tests.acceptance.clients import Reference
from tests.acceptance.images import DOCKER
from tests.cluster import RunningCluster

pytestmark = pytest.mark.usefixtures("library_home")


def dxf_at(registry: str, repository: str) -> DXF:
    return DXF(registry.removeprefix("http://"), repository, insecure=True)


def write(path: Path, data: bytes) -> tuple[Path, str]:
    path.write_bytes(data)
    return path, f"sha256:{hashlib.sha256(data).hexdigest()}"


def read(client: DXF, digest: str) -> bytes:
    chunks = client.pull_blob(digest)
    assert not isinstance(chunks, tuple)
    return b"".join(chunks)


def test_blobs_and_aliases_come_back_from_every_agent(
    cluster: RunningCluster, tmp_path: Path
) -> None:
    proxy = dxf_at(cluster.proxy, "dxf/blobs")
    first, first_digest = write(tmp_path / "first", b"first" * 50_000)
    second, second_digest = write(tmp_path / "second", b"second")

    assert proxy.push_blob(str(first)) == first_digest
    assert proxy.push_blob(str(first)) == first_digest, "found, not sent again"
    # From an iterator, whose length nobody knows.
    chunks = iter([second.read_bytes()[:3], second.read_bytes()[3:]])
    assert proxy.push_blob(data=chunks, digest=second_digest) == second_digest
    made = proxy.set_alias("both", first_digest, second_digest)

    for registry in (cluster.proxy, *(agent.registry for agent in cluster.agents)):
        client = dxf_at(registry, "dxf/blobs")
        assert client.get_alias("both") == [first_digest, second_digest]
        assert client.get_manifest("both") == made
        assert json.loads(made)["mediaType"] == DOCKER.manifest
        assert client.blob_size(first_digest) == first.stat().st_size
        assert read(client, first_digest) == first.read_bytes()
        assert read(client, second_digest) == second.read_bytes()


def test_aliases_and_repositories_are_listed_in_pages(
    cluster: RunningCluster, tmp_path: Path
) -> None:
    repositories = [f"dxf/listed-{number}" for number in range(3)]
    aliases = [f"v{number}" for number in range(5)]
    path, digest = write(tmp_path / "blob", b"listed")
    for repository in repositories:
        client = dxf_at(cluster.proxy, repository)
        client.push_blob(str(path))
        for alias in aliases:
            client.set_alias(alias, digest)

    for registry in (cluster.proxy, cluster.agents[0].registry):
        assert dxf_at(registry, repositories[0]).list_aliases(batch_size=2) == aliases
        base = DXFBase(registry.removeprefix("http://"), insecure=True)
        found = list(base.list_repos(batch_size=2))
        assert [name for name in found if name in repositories] == repositories
        assert found == sorted(found)


def test_a_blob_is_mounted_from_another_repository(cluster: RunningCluster, tmp_path: Path) -> None:
    source = dxf_at(cluster.proxy, "dxf/source")
    target = dxf_at(cluster.proxy, "dxf/target")
    path, digest = write(tmp_path / "blob", b"mounted by dxf")
    source.push_blob(str(path))
    with pytest.raises(HTTPError, match="404"):
        target.blob_size(digest)

    assert target.mount_blob("dxf/source", digest) == digest

    for agent in cluster.agents:
        assert read(dxf_at(agent.registry, "dxf/target"), digest) == path.read_bytes()


def test_a_deleted_alias_is_gone_and_then_its_blob_can_go(
    cluster: RunningCluster, tmp_path: Path
) -> None:
    client = dxf_at(cluster.proxy, "dxf/deleted")
    other = dxf_at(cluster.proxy, "dxf/deleted/other")
    path, digest = write(tmp_path / "blob", b"deleted by dxf")
    client.push_blob(str(path))
    client.set_alias("named", digest)
    other.mount_blob("dxf/deleted", digest)
    with pytest.raises(HTTPError, match="405"):
        client.del_blob(digest)

    assert client.del_alias("named") == [digest]
    reference = Reference(cluster.proxy, "dxf/deleted", "named")
    for agent in cluster.agents:
        assert raw.manifest(reference.at(agent.registry)).status == 404
        with pytest.raises(HTTPError, match="404"):  # a repository with nothing named is unknown
            dxf_at(agent.registry, "dxf/deleted").list_aliases()

    client.del_blob(digest)
    for registry in (cluster.proxy, *(agent.registry for agent in cluster.agents)):
        assert raw.blob(reference.at(registry), digest).status == 404
        assert read(dxf_at(registry, "dxf/deleted/other"), digest) == path.read_bytes()
    with pytest.raises(HTTPError, match="404"):
        client.del_blob(digest)
