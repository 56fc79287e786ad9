# SPDX-License-Identifier: Apache-2.0
"""The part of docker's API that pulls images, on a UNIX socket, for where no docker engine runs.

It pulls for real, by the registry API: the manifest, of an index the child for linux/amd64, and
every blob of it, each checked against its digest.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from shoal.model.media_types import MANIFEST_TYPES
from tests.acceptance.raw import Answer, ask

_ACCEPT = ", ".join(sorted(MANIFEST_TYPES))


@dataclass
class PulledImages:
    """What was pulled: by image, the digest of the manifest that its name stands for."""

    images: dict[str, str] = field(default_factory=dict)
    contents: dict[str, bytes] = field(default_factory=dict)
    """By digest."""

    def pull(self, repository: str, tag: str) -> Iterator[dict[str, str]]:
        """Pull an image, and say what is done."""
        registry, _, name = repository.partition("/")
        base = f"http://{registry}/v2/{name}"
        yield {"status": f"Pulling from {name}", "id": tag}
        digest, manifest = self._manifest(f"{base}/manifests/{tag}")
        top = digest
        for child in manifest.get("manifests", ()):
            if (child["platform"]["os"], child["platform"]["architecture"]) == ("linux", "amd64"):
                digest, manifest = self._manifest(f"{base}/manifests/{child['digest']}")
        for entry in (manifest["config"], *manifest["layers"]):
            wanted = entry["digest"]
            self._keep(wanted, _get(f"{base}/blobs/{wanted}").body)
            yield {"status": "Pull complete", "id": wanted[7:19]}
        self.images[f"{repository}:{tag}"] = top
        yield {"status": f"Digest: {top}"}

    def _manifest(self, url: str) -> tuple[str, Any]:
        answer = _get(url)
        digest = answer.headers["Docker-Content-Digest"]
        self._keep(digest, answer.body)
        return digest, answer.document

    def _keep(self, digest: str, content: bytes) -> None:
        if f"sha256:{hashlib.sha256(content).hexdigest()}" != digest:
            raise _Refused(f"{digest} does not match what came")
        self.contents[digest] = content


class _Refused(Exception):
    """What is told as an error in the middle of the progress."""


def _get(url: str) -> Answer:
    answer = ask(url, headers={"Accept": _ACCEPT})
    if answer.status != 200:
        raise _Refused(f"GET {url} answered {answer.status}")
    return answer


class _Server(ThreadingMixIn, UnixStreamServer):
    pass


@contextmanager
def docker_api(socket: Path) -> Iterator[PulledImages]:
    """Serve it there, and give what it pulls."""
    pulled = PulledImages()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            path = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(path.query).items()}
            assert path.path == "/images/create", self.path
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            try:
                for progress in pulled.pull(query["fromImage"], query["tag"]):
                    self._tell(progress)
            except _Refused as error:
                self._tell({"errorDetail": {"message": str(error)}, "error": str(error)})
            self.wfile.write(b"0\r\n\r\n")

        def _tell(self, progress: dict[str, Any]) -> None:
            line = json.dumps(progress).encode() + b"\r\n"
            self.wfile.write(b"%x\r\n%b\r\n" % (len(line), line))

        def log_message(self, *_: object) -> None:
            pass

    with _Server(str(socket), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield pulled
        finally:
            server.shutdown()
            thread.join()
