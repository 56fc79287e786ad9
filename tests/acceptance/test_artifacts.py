# SPDX-License-Identifier: Apache-2.0
"""Artifacts by oras-py: files pushed and pulled, and manifests that refer to an image."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from oras.client import OrasClient
from oras.oci import Subject

from tests.acceptance import raw
from tests.acceptance.clients import Reference, Skopeo
from tests.acceptance.images import OCI, Content, build
from tests.cluster import RunningCluster

pytestmark = pytest.mark.usefixtures("library_home")

SBOM = "application/vnd.example.sbom.v1+json"
SIGNATURE = "application/vnd.example.signature.v1+json"


def oras_at(registry: str) -> OrasClient:
    return OrasClient(hostname=registry.removeprefix("http://"), insecure=True)


def push(
    reference: Reference,
    path: Path,
    *,
    artifact_type: str | None = None,
    subject: Subject | None = None,
    chunk_size: int | None = None,
) -> str:
    """Push a file as an artifact and return the digest that the registry gave its manifest."""
    chunks = {"do_chunked": True, "chunk_size": chunk_size} if chunk_size else {}
    config = None
    if artifact_type is not None:
        # oras-py has no artifactType: the config's media type stands for it.
        (path.parent / "config.json").write_text("{}")
        config = f"{path.parent / 'config.json'}:{artifact_type}"
    answer = oras_at(reference.registry).push(
        target=str(reference),
        files=[str(path)],
        manifest_config=config,
        manifest_annotations={"org.example.name": path.name},
        subject=subject,
        disable_path_validation=True,
        quiet=True,
        **chunks,
    )
    return str(answer.headers["Docker-Content-Digest"])


def subject_of(content: Content) -> Subject:
    return Subject(content.media_type, content.digest, len(content.data))


@pytest.mark.parametrize("chunk_size", [None, 100_000], ids=["in one piece", "in chunks"])
def test_oras_pushes_and_pulls_files(
    chunk_size: int | None, cluster: RunningCluster, tmp_path: Path
) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(f"{chunk_size}".encode() * 100_000)
    reference = Reference(cluster.proxy, "artifacts/files", f"chunks-{chunk_size}".lower())
    push(reference, path, chunk_size=chunk_size)

    for number, agent in enumerate(cluster.agents):
        outdir = tmp_path / f"pulled-{number}"
        outdir.mkdir()
        at_agent = reference.at(agent.registry)
        (pulled,) = oras_at(agent.registry).pull(target=str(at_agent), outdir=str(outdir))
        assert Path(pulled).name == path.name
        assert Path(pulled).read_bytes() == path.read_bytes()


def test_oras_lists_and_deletes_tags(cluster: RunningCluster, tmp_path: Path) -> None:
    reference = Reference(cluster.proxy, "artifacts/tags")
    tags = [f"v{number}" for number in range(5)]
    for tag in tags:
        path = tmp_path / tag
        path.write_text(tag)
        push(reference.tagged(tag), path)
    for registry in (cluster.proxy, cluster.agents[0].registry):
        client, name = oras_at(registry), reference.at(registry).name
        assert client.get_tags(name) == tags
        assert client.get_tags(name, N=2) == tags[:2]

    assert oras_at(cluster.proxy).delete_tags(reference.name, ["v1", "v3"]) == ["v1", "v3"]

    for agent in cluster.agents:
        at_agent = reference.at(agent.registry)
        assert oras_at(agent.registry).get_tags(at_agent.name) == ["v0", "v2", "v4"]
        assert raw.manifest(at_agent.tagged("v1")).status == 404


@pytest.mark.client("skopeo")
def test_artifacts_are_found_by_their_subject(
    skopeo: Skopeo, cluster: RunningCluster, tmp_path: Path
) -> None:
    image = build("signed", layer_size=1000)
    reference = Reference(cluster.proxy, "artifacts/signed")
    (tmp_path / "sbom").write_text("what is in it")
    (tmp_path / "signature").write_text("who made it")
    # One comes before its subject, one after it.
    sbom = push(
        reference.tagged("sbom"),
        tmp_path / "sbom",
        artifact_type=SBOM,
        subject=subject_of(image.top),
    )
    skopeo.push(image, reference)
    signature = push(
        reference.tagged("signature"),
        tmp_path / "signature",
        artifact_type=SIGNATURE,
        subject=subject_of(image.top),
    )

    for registry in (cluster.proxy, *(agent.registry for agent in cluster.agents)):
        here = reference.at(registry)
        found = raw.referrers(here, image.digest)
        assert found.status == 200
        assert found.headers["Content-Type"] == OCI.index
        entries = {entry["digest"]: entry for entry in found.document["manifests"]}
        assert entries.keys() == {sbom, signature}
        assert entries[sbom]["artifactType"] == SBOM
        assert entries[sbom]["annotations"] == {"org.example.name": "sbom"}
        filtered = raw.referrers(here, image.digest, SIGNATURE)
        assert filtered.headers["OCI-Filters-Applied"] == "artifactType"
        assert [entry["digest"] for entry in filtered.document["manifests"]] == [signature]
        outdir = tmp_path / registry.rpartition(":")[2]
        outdir.mkdir()
        by_digest = f"{here.name}@{sbom}"
        (pulled,) = oras_at(registry).pull(target=by_digest, outdir=str(outdir))
        assert Path(pulled).read_text() == "what is in it"

    oras_at(cluster.proxy).delete_tags(reference.name, ["sbom"])
    for agent in cluster.agents:
        left = raw.referrers(reference.at(agent.registry), image.digest).document["manifests"]
        assert [entry["digest"] for entry in left] == [signature]


@pytest.mark.client("skopeo")
def test_skopeo_copies_an_artifact_with_its_subject(
    skopeo: Skopeo, cluster: RunningCluster, tmp_path: Path
) -> None:
    image = build("copied with what is said of it", layer_size=1000)
    source = Reference(cluster.proxy, "artifacts/source")
    target = Reference(cluster.proxy, "artifacts/target")
    (tmp_path / "sbom").write_text("what is in it")
    skopeo.push(image, source)
    digest = push(
        source.tagged("sbom"),
        tmp_path / "sbom",
        artifact_type=SBOM,
        subject=subject_of(image.top),
    )
    for tag in (source.tag, "sbom"):
        skopeo.copy(source.tagged(tag), target.tagged(tag))

    for agent in cluster.agents:
        here = target.at(agent.registry)
        (entry,) = raw.referrers(here, image.digest).document["manifests"]
        assert entry["digest"] == digest
        assert raw.manifest(here, digest).body == raw.manifest(source.tagged("sbom")).body


@pytest.mark.client("skopeo")
def test_referrers_that_an_older_client_listed_under_a_tag_are_found(
    skopeo: Skopeo, cluster: RunningCluster, tmp_path: Path
) -> None:
    """Before there was an API for it, clients kept an index under the tag `sha256-<hex>`."""
    image = build("referred to by a tag", layer_size=1000)
    reference = Reference(cluster.proxy, "artifacts/fallback")
    skopeo.push(image, reference)
    path = tmp_path / "note"
    path.write_text("a note")
    digest = push(reference.tagged("note"), path, artifact_type=SBOM)
    note = raw.manifest(reference.tagged("note"))
    index = {
        "schemaVersion": 2,
        "mediaType": OCI.index,
        "manifests": [{"mediaType": OCI.manifest, "digest": digest, "size": len(note.body)}],
    }
    fallback = reference.tagged(image.digest.replace(":", "-"))
    assert raw.put_manifest(fallback, json.dumps(index).encode(), OCI.index).status == 201

    for agent in cluster.agents:
        (entry,) = raw.referrers(reference.at(agent.registry), image.digest).document["manifests"]
        assert entry["digest"] == digest
