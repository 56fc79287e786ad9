# SPDX-License-Identifier: Apache-2.0
"""Kraken's scenario of certificates, by its name, and clients that push and pull over TLS."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.acceptance.clients import Reference, Skopeo
from tests.acceptance.images import build
from tests.acceptance.raw import ask
from tests.acceptance.sandbox import CommandFailed
from tests.acceptance.stage import NAMESPACE, random_blob
from tests.authority import Authority
from tests.cluster import RunningCluster

ROLES = ("origin", "tracker", "build-index", "agent")


@pytest.fixture(scope="module")
def authority(folder: Path) -> Authority:
    certificates = folder / "certificates"
    certificates.mkdir()
    return Authority(certificates)


@pytest.fixture(scope="module")
def secured(folder: Path, authority: Authority) -> Iterator[RunningCluster]:
    """A cluster with certificates.

    Of its two proxies the second demands them of its clients; the registry of its second agent
    speaks TLS, too.
    """
    config = {role: authority.tls() for role in ROLES}
    config["proxy-0"] = authority.tls()
    config["proxy-1"] = {"tls": authority.files() | {"clients": "required"}}
    config["agent-1"] = {"tls": {"registry": True}}
    with RunningCluster.start(
        folder / "secured", agents=2, config=config, options=["--proxies", "2"]
    ) as cluster:
        yield cluster


def test_origin_upload_no_client_cert(secured: RunningCluster, authority: Authority) -> None:
    content = random_blob()
    blob = f"{secured.origins[0]}/namespace/{quote(NAMESPACE, safe='')}/blobs/{content.digest}"
    stranger, member = authority.client(), authority.client(host="client.example")

    refused = ask(f"{blob}/uploads", "POST", tls=stranger)
    assert refused.status == 403
    (error,) = refused.document["errors"]
    assert error["code"] == "DENIED"
    assert ask(blob, "PUT", body=content.data, tls=stranger).status == 403
    assert ask(blob, tls=member).status == 404

    started = ask(f"{blob}/uploads", "POST", tls=member)
    assert started.status == 202, started.body
    upload = f"{secured.origins[0]}{started.headers['Location']}"
    assert ask(upload, "PATCH", body=content.data, tls=stranger).status == 403
    assert ask(upload, "PATCH", body=content.data, tls=member).status == 202
    assert ask(upload, "PUT", body=b"", tls=stranger).status == 403
    assert ask(upload, "PUT", body=b"", tls=member).status == 201

    # To read it needs no certificate.
    read = ask(blob, tls=stranger)
    assert (read.status, read.body) == (200, content.data)


@pytest.fixture
def certificates(tmp_path: Path, authority: Authority) -> Path:
    """What a client is given to know the cluster by."""
    (tmp_path / "ca.crt").write_bytes(authority.file.read_bytes())
    return tmp_path


@pytest.mark.client("skopeo")
def test_an_image_is_pushed_over_tls_and_pulled_from_agents(
    secured: RunningCluster, skopeo: Skopeo, certificates: Path
) -> None:
    image = build("over tls")
    reference = Reference(secured.proxy, "secured/image")

    digest = skopeo.push(image, reference, certificates=certificates)

    assert [agent.registry.partition(":")[0] for agent in secured.agents] == ["http", "https"]
    for agent in secured.agents:
        pulled = skopeo.pull(reference.at(agent.registry))
        assert (pulled.digest, pulled.diff_ids) == (digest, image.host.diff_ids)


@pytest.mark.client("skopeo")
def test_a_proxy_that_requires_certificates_takes_pushes_of_those_who_have_one(
    secured: RunningCluster, skopeo: Skopeo, certificates: Path, authority: Authority
) -> None:
    image = build("over tls, with a certificate")
    reference = Reference(secured.proxies[1], "secured/closed")
    with pytest.raises(CommandFailed, match="needs a client certificate"):
        skopeo.push(image, reference, certificates=certificates)

    authority.issue(certificates / "client.cert", certificates / "client.key", "ci.example")
    digest = skopeo.push(image, reference, certificates=certificates)

    assert skopeo.pull(reference.at(secured.agents[0].registry)).digest == digest


@pytest.mark.client("skopeo")
def test_a_client_does_not_push_to_a_proxy_that_it_does_not_trust(
    secured: RunningCluster, skopeo: Skopeo, certificates: Path
) -> None:
    strange = Authority(certificates, "strange")
    (certificates / "ca.crt").write_bytes(strange.file.read_bytes())
    with pytest.raises(CommandFailed, match="certificate"):
        skopeo.push(
            build("to whom?"), Reference(secured.proxy, "secured/no"), certificates=certificates
        )
