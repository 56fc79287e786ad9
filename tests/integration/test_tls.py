# SPDX-License-Identifier: Apache-2.0
"""A whole cluster whose services have certificates: what goes through, and who is kept out."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.client import HTTPSConnection, RemoteDisconnected
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
import yaml

from shoal.config.model import TlsConfig
from shoal.model.media_types import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST
from shoal.web.tls import Tls
from tests.authority import Authority
from tests.cluster import RunningCluster

ROLES = ("proxy", "origin", "tracker", "build-index", "agent")
NAME = "team/secured"
"""A repository."""
LAYER = os.urandom(9_000_000)
"""Of several pieces, so that peers are asked for it."""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def secured(
    authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningCluster]:
    config = {role: authority.tls() for role in ROLES}
    folder = tmp_path_factory.mktemp("secured")
    with RunningCluster.start(
        folder, config=config, options=("--proxies", "2", "--build-indexes", "2")
    ) as cluster:
        yield cluster


class Client:
    """Asks over TLS, with a certificate or without."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context

    def ask(
        self, method: str, url: str, body: bytes | None = None, kind: str = ""
    ) -> tuple[int, dict[str, str], bytes]:
        target = urlsplit(url)
        assert target.hostname is not None
        connection = HTTPSConnection(
            target.hostname, target.port, context=self._context, timeout=30
        )
        try:
            path = target.path + (f"?{target.query}" if target.query else "")
            connection.request(method, path, body, {"Content-Type": kind} if kind else {})
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        finally:
            connection.close()


@pytest.fixture
def stranger(authority: Authority) -> Client:
    return Client(authority.client())


@pytest.fixture
def member(authority: Authority) -> Client:
    return Client(authority.client(host="admin.example"))


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@pytest.fixture(scope="module")
def pushed(secured: RunningCluster, authority: Authority) -> str:
    """An image's digest, pushed as ``v1`` by a client that has no certificate.

    Its uploads begin at one proxy and end at the other one, which hands them on.
    """
    client = Client(authority.client())
    first, second = secured.proxies

    def push(content: bytes) -> dict[str, object]:
        digest = sha256(content)
        status, headers, body = client.ask("POST", f"{first}/v2/{NAME}/blobs/uploads/", b"")
        assert status == 202, body
        upload = f"{second}{headers['location']}"
        mark = "&" if "?" in upload else "?"
        status, _, body = client.ask("PUT", f"{upload}{mark}digest={digest}", content)
        assert status == 201, body
        return {"digest": digest, "size": len(content)}

    config = json.dumps({"architecture": "amd64", "os": "linux"}).encode()
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, **push(config)},
            "layers": [{"mediaType": OCI_LAYER, **push(LAYER)}],
        }
    ).encode()
    url = f"{first}/v2/{NAME}/manifests/v1"
    status, _, body = client.ask("PUT", url, manifest, OCI_MANIFEST)
    assert status == 201, body
    return sha256(manifest)


def test_what_was_pushed_over_tls_is_pulled_from_every_agent(
    secured: RunningCluster, pushed: str, stranger: Client
) -> None:
    for agent in secured.agents:
        # For the runtime of the agent's own host, which has no certificate to check.
        assert agent.registry.startswith("http://")
        with urlopen(f"{agent.registry}/v2/{NAME}/manifests/v1", timeout=30) as answer:
            assert answer.headers["Docker-Content-Digest"] == pushed
        with urlopen(f"{agent.registry}/v2/{NAME}/blobs/{sha256(LAYER)}", timeout=30) as answer:
            assert answer.read() == LAYER
        url = f"{agent.admin}/namespace/{NAME}/blobs/{sha256(LAYER)}"
        assert stranger.ask("GET", url)[::2] == (200, LAYER)


def test_peers_speak_tls_with_the_certificates_of_the_cluster(
    secured: RunningCluster, authority: Authority
) -> None:
    for service in ("agent-0", "origin-0"):
        config = yaml.safe_load(secured.config_path(service).read_text())
        host, _, port = config["peer"]["listen"].rpartition(":")
        context = authority.client(host="127.0.0.1")
        with (
            socket.create_connection((host, int(port)), timeout=10) as sock,
            context.wrap_socket(sock, server_hostname=host) as peer,
        ):
            assert peer.version() == "TLSv1.3"


CHANGES = (
    ("origin-0", "POST", f"/namespace/{NAME}/blobs/{sha256(b'x')}/uploads"),
    ("origin-0", "PUT", f"/namespace/{NAME}/blobs/{sha256(b'x')}"),
    ("origin-0", "GET", "/internal/peer"),
    ("origin-0", "POST", "/internal/gc"),
    ("build-index-0", "PUT", f"/repositories/{NAME}/blobs/{sha256(b'x')}"),
    ("build-index-0", "DELETE", f"/repositories/{NAME}/tags/v1"),
    ("build-index-0", "POST", "/internal/lookup"),
    ("tracker-0", "POST", "/announce"),
    ("tracker-0", "POST", "/join"),
    ("proxy-0", "POST", "/internal/deliver"),
    ("agent-0", "DELETE", f"/blobs/{sha256(b'x')}"),
)


@pytest.mark.parametrize("change", CHANGES, ids=" ".join)
def test_nobody_changes_anything_without_a_certificate_of_the_cluster(
    secured: RunningCluster, stranger: Client, member: Client, change: tuple[str, str, str]
) -> None:
    service, method, path = change
    url = secured.base_url(service) + path
    body = None if method == "GET" else b""

    status, _, said = stranger.ask(method, url, body)
    assert status == 403
    (error,) = json.loads(said)["errors"]
    assert error["code"] == "DENIED"

    if method != "DELETE":
        assert member.ask(method, url, body)[0] != 403


def test_anybody_may_read_what_is_public(
    secured: RunningCluster, pushed: str, stranger: Client
) -> None:
    for service in ("proxy-0", "origin-0", "tracker-0", "build-index-0", "agent-0"):
        for path in ("/health", "/readiness", "/metrics"):
            assert stranger.ask("GET", secured.base_url(service) + path)[0] == 200
    blob = f"{secured.origins[0]}/namespace/{NAME}/blobs/{sha256(LAYER)}"
    assert stranger.ask("GET", blob)[::2] == (200, LAYER)
    tag = f"{secured.build_indexes[0]}/tags/{NAME}%3Av1"
    assert stranger.ask("GET", tag)[::2] == (200, pushed.encode())


def test_a_certificate_of_another_authority_opens_nothing(
    secured: RunningCluster, authority: Authority, tmp_path: Path
) -> None:
    context = authority.client()
    Authority(tmp_path, "strange").ca.issue_cert("127.0.0.1").configure_cert(context)
    with pytest.raises(OSError, match=r"(?i)unknown.ca|reset|closed"):
        Client(context).ask("GET", f"{secured.origins[0]}/health")


def test_plain_http_is_not_answered(secured: RunningCluster) -> None:
    plain = secured.origins[0].replace("https://", "http://")
    with pytest.raises((OSError, RemoteDisconnected)):
        urlopen(f"{plain}/health", timeout=10)


def shoal(*argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "shoal", *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_commands_call_the_cluster_as_the_config_says(secured: RunningCluster, pushed: str) -> None:
    assert pushed
    proxy = str(secured.config_path("proxy-0"))
    agent = str(secured.config_path("agent-0"))
    status = shoal("origin", "status", "--config", proxy, "--json")
    assert json.loads(status.stdout)["total"]["answering"] == 3, status.stderr
    collected = shoal("gc", "--config", proxy, "--dry-run")
    assert collected.returncode == 0, collected.stderr
    told = shoal("why", f"{NAME}:v1", "--config", agent)
    assert told.returncode == 0, told.stderr
    assert sha256(LAYER)[:19] in told.stdout
    ready = shoal("prefetch", f"{NAME}:v1", "--proxy", secured.proxy, "--config", proxy)
    assert ready.returncode == 0, ready.stderr
    assert ": ready, 3 blobs and manifests" in ready.stdout


def test_a_service_does_not_start_with_a_file_that_is_of_no_use(
    authority: Authority, tmp_path: Path
) -> None:
    config = tmp_path / "tracker.yaml"
    gone = str(tmp_path / "gone.pem")
    settings = {"origins": {"hosts": ["127.0.0.1:1"]}, "listen": "127.0.0.1:0"}
    config.write_text(yaml.safe_dump(settings | {"tls": authority.files() | {"ca": gone}}))

    ended = shoal("tracker", "--config", str(config))

    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == (
        f'cannot use {gone} (config key "tls.ca"): No such file or directory'
    )
    assert "Traceback" not in ended.stderr


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[tuple[str, Path, Path]]:
    """A web server with a certificate of a public authority: its URL, its folder, and the CA."""
    public = Authority(tmp_path, "public")
    folder = tmp_path / "served"
    folder.mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        public.ca.issue_cert("127.0.0.1").configure_cert(context)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"https://127.0.0.1:{server.server_port}", folder, public.file
        finally:
            server.shutdown()
            thread.join()


def test_a_backend_is_checked_as_everywhere_and_not_by_the_ca_of_the_cluster(
    authority: Authority,
    elsewhere: tuple[str, Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, folder, ca = elsewhere
    # What OpenSSL takes for the system's CAs.
    monkeypatch.setenv("SSL_CERT_FILE", str(ca))
    content = os.urandom(100_000)
    file = folder / sha256(content).replace(":", "/")
    file.parent.mkdir()
    file.write_bytes(content)
    config = {role: authority.tls() for role in ROLES}
    backend = {"match": ".*", "kind": "http", "url": url, "blob_path": "{algorithm}/{hex}"}
    config["origin"] |= {"backends": [backend]}
    with RunningCluster.start(tmp_path / "behind", origins=1, agents=0, config=config) as cluster:
        blob = f"{cluster.origins[0]}/namespace/{NAME}/blobs/{sha256(content)}"
        status, _, body = Client(authority.client()).ask("GET", blob)
        assert (status, body) == (200, content)


PAGE = (Path(__file__).parents[2] / "docs" / "operations" / "tls.md").read_text()


@pytest.mark.client("openssl")
def test_the_certificates_of_the_recipe_are_taken(tmp_path: Path) -> None:
    recipe = "\n".join(re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL))
    subprocess.run(
        ["bash", "-euc", recipe], cwd=tmp_path, check=True, capture_output=True, timeout=60
    )
    host = tmp_path / "o1.example"
    files = {"ca": tmp_path / "ca.pem", "certificate": f"{host}.pem", "key": f"{host}.key"}

    tls = Tls(TlsConfig.model_validate(files))

    # Also by those who are as strict as clients come.
    strict = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    strict.verify_flags |= ssl.VERIFY_X509_STRICT
    assert tls.server is not None
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = strict.wrap_bio(back, there, server_hostname="o1.example")
    server = tls.server.wrap_bio(there, back, server_side=True)
    for side in (client, server, client, server):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    assert ("DNS", "o1.example") in (client.getpeercert() or {})["subjectAltName"]
