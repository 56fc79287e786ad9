# SPDX-License-Identifier: Apache-2.0
"""Upload requests in any order, over HTTP: the answers are those of a model of the spec."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import ClientResponse, web
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from shoal.model.digest import Digest
from shoal.proxy.service import ProxyService
from shoal.proxy.uploads import Uploads
from shoal.registry.app import registry_routes
from shoal.store.uploads import UploadSessions
from shoal.web.server import application
from tests.unit.registry_fakes import QUORUM
from tests.unit.registry_http import NAME, UPLOADS, Client, Registry

T = TypeVar("T")
BODIES = st.binary(max_size=30)
ALGORITHMS = st.sampled_from(["sha256", "sha512"])


class UploadRequests(RuleBasedStateMachine):
    """One registry behind a socket; `open` is what each upload must hold."""

    uploads = Bundle("uploads")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.registry = Registry()
        self.client: Client = self.run(self._started())
        self.open: dict[str, bytes] = {}
        self.stored: dict[Digest, bytes] = {}

    def application(self) -> web.Application:
        return self.registry.application()

    async def _started(self) -> Client:
        client = TestClient(TestServer(self.application()))
        await client.start_server()
        return client

    def teardown(self) -> None:
        self.run(self.client.close())
        self.runner.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def ask(self, method: str, path: str, **more: Any) -> ClientResponse:
        return self.run(self.client.request(method, path, **more))

    def resumable(self, answer: ClientResponse, location: str, status: int) -> None:
        """The answer says where the upload is and how much of it has come."""
        assert answer.status == status
        assert answer.headers["Location"] == location
        assert answer.headers["Range"] == f"0-{max(len(self.open[location]) - 1, 0)}"

    @rule(target=uploads)
    def post(self) -> str:
        answer = self.ask("POST", UPLOADS)
        location = answer.headers["Location"]
        assert location not in self.open
        self.open[location] = b""
        self.resumable(answer, location, 202)
        return location

    @rule(body=BODIES, algorithm=ALGORITHMS, right=st.booleans())
    def post_whole(self, body: bytes, algorithm: str, right: bool) -> None:
        digest = Digest.of(body if right else body + b"!", algorithm)
        answer = self.ask("POST", f"{UPLOADS}?digest={digest}", data=body)
        assert answer.status == (201 if right else 400)
        if right:
            self.stored[digest] = body

    @rule(algorithm=ALGORITHMS, body=BODIES, source=st.sampled_from(["", f"&from={NAME}"]))
    def mount(self, algorithm: str, body: bytes, source: str) -> None:
        digest = Digest.of(body, algorithm)
        answer = self.ask("POST", f"{UPLOADS}?mount={digest}{source}")
        assert answer.status == (201 if digest in self.stored else 202)
        if answer.status == 202:
            self.open[answer.headers["Location"]] = b""

    @rule(location=uploads, body=BODIES, placed=st.booleans(), streamed=st.booleans())
    def patch(self, location: str, body: bytes, placed: bool, streamed: bool) -> None:
        async def stream() -> AsyncIterator[bytes]:
            for start in range(0, len(body), 7):
                yield body[start : start + 7]

        headers = {}
        if placed and body:
            start = len(self.open.get(location, b""))
            headers["Content-Range"] = f"{start}-{start + len(body) - 1}"
        data = stream() if streamed else body
        answer = self.ask("PATCH", location, data=data, headers=headers)
        if location not in self.open:
            assert answer.status == 404
        else:
            self.open[location] += body
            self.resumable(answer, location, 202)

    @rule(
        location=uploads,
        off=st.integers(-40, 40).filter(bool),
        body=BODIES.filter(bool),
        method=st.sampled_from(["PATCH", "PUT"]),
    )
    def send_elsewhere(self, location: str, off: int, body: bytes, method: str) -> None:
        start = len(self.open.get(location, b"")) + off
        if start < 0:
            return
        headers = {"Content-Range": f"{start}-{start + len(body) - 1}"}
        url = f"{location}?digest={Digest.of(b'never stored')}"
        answer = self.ask(method, url, data=body, headers=headers)
        if location in self.open:
            self.resumable(answer, location, 416)
        else:
            assert answer.status == 404

    @rule(location=uploads, last=BODIES, algorithm=ALGORITHMS, right=st.booleans())
    def put(self, location: str, last: bytes, algorithm: str, right: bool) -> None:
        content = self.open.get(location, b"") + last
        digest = Digest.of(content if right else content + b"!", algorithm)
        answer = self.ask("PUT", f"{location}?digest={digest}", data=last)
        if location not in self.open:
            assert answer.status == (201 if digest in self.stored else 404)
            return
        del self.open[location]
        assert answer.status == (201 if right else 400)
        if right:
            self.stored[digest] = content
            assert answer.headers["Location"] == f"/v2/{NAME}/blobs/{digest}"

    @rule(location=uploads)
    def status(self, location: str) -> None:
        answer = self.ask("GET", location)
        if location in self.open:
            self.resumable(answer, location, 204)
        else:
            assert answer.status == 404

    @rule(location=uploads)
    def cancel(self, location: str) -> None:
        known = self.open.pop(location, None) is not None
        assert self.ask("DELETE", location).status == (204 if known else 404)

    @rule(data=st.data())
    def delete_blob(self, data: st.DataObject) -> None:
        if self.stored:
            digest = data.draw(st.sampled_from(sorted(self.stored)))
            del self.stored[digest]
            assert self.ask("DELETE", f"/v2/{NAME}/blobs/{digest}").status == 202
            assert self.ask("GET", f"/v2/{NAME}/blobs/{digest}").status == 404

    @invariant()
    def what_is_stored_is_what_was_verified(self) -> None:
        assert self.registry.index.links == {(NAME, digest) for digest in self.stored}
        for digest, content in self.stored.items():
            assert self.registry.origins.blobs[digest] == content
        assert self.received() == sorted(self.open.values())

    def received(self) -> list[bytes]:
        """What the sessions hold that are under way."""
        return sorted(bytes(session.content) for session in self.registry.uploads.values())


class UploadRequestsToTheProxy(UploadRequests):
    """The same with the proxy's service, whose sessions are files."""

    def application(self) -> web.Application:
        async def ready() -> list[str]:
            return []

        self.folder = Path(tempfile.mkdtemp(prefix="shoal-uploads-"))
        service = ProxyService(
            origins=self.registry.origins,
            index=self.registry.index,
            uploads=Uploads(UploadSessions(self.folder), idle_timeout=5, name="127.0.0.1:5000"),
            write_quorum=QUORUM,
        )
        app = application("proxy", readiness=ready)
        registry_routes(app, service, service)
        return app

    def teardown(self) -> None:
        super().teardown()
        shutil.rmtree(self.folder)

    def received(self) -> list[bytes]:
        return sorted(file.read_bytes() for file in self.folder.iterdir())


_SETTINGS = settings(max_examples=25, stateful_step_count=25, deadline=None)
UploadRequests.TestCase.settings = _SETTINGS
UploadRequestsToTheProxy.TestCase.settings = _SETTINGS
TestUploadRequests = UploadRequests.TestCase
TestUploadRequestsToTheProxy = UploadRequestsToTheProxy.TestCase
