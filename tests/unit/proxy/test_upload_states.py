# SPDX-License-Identifier: Apache-2.0
"""Upload requests in any order: what is stored is what came in order, and was verified."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from shoal.model.digest import Digest
from shoal.model.errors import (
    BlobUploadUnknown,
    DigestInvalid,
    SizeInvalid,
    Unavailable,
    UploadOutOfOrder,
)
from shoal.proxy.service import ProxyService
from shoal.proxy.uploads import Uploads
from shoal.registry.ports import Chunk, ClientGone
from shoal.store.uploads import UploadSessions
from shoal.web.deadline import Deadline
from tests.unit.registry_fakes import QUORUM, MemoryIndex, MemoryOrigins

T = TypeVar("T")
NAME = "a/b"
BODIES = st.lists(st.binary(max_size=40), max_size=4)


async def _arriving(parts: list[bytes], error: Exception | None = None) -> AsyncIterator[bytes]:
    for part in parts:
        yield part
    if error is not None:
        raise error


class UploadRequests(RuleBasedStateMachine):
    """Requests to one proxy, and what each upload must hold after them."""

    uploads = Bundle("uploads")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="shoal-uploads-"))
        self.runner = asyncio.Runner()
        self.origins = MemoryOrigins()
        self.service = self._process()
        self.received: dict[str, bytes] = {}
        self.stored: set[Digest] = set()

    def teardown(self) -> None:
        self.runner.close()
        shutil.rmtree(self.folder)

    def _process(self) -> ProxyService:
        return ProxyService(
            origins=self.origins,
            index=MemoryIndex(self.origins),
            uploads=Uploads(UploadSessions(self.folder), idle_timeout=10, name="proxy:1"),
            write_quorum=QUORUM,
        )

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def send(self, upload: str, chunk: Chunk) -> None:
        self.run(self.service.append(NAME, upload, chunk))

    def finish(self, upload: str, digest: Digest, chunk: Chunk | None) -> None:
        self.run(self.service.finish(NAME, upload, digest, chunk, Deadline.after(20)))

    @rule(target=uploads)
    def post(self) -> str:
        upload = self.run(self.service.start_upload(NAME))
        self.received[upload] = b""
        return upload

    @rule(upload=uploads, parts=BODIES, placed=st.booleans())
    def patch(self, upload: str, parts: list[bytes], placed: bool) -> None:
        body = b"".join(parts)
        offset = len(self.received.get(upload, b"")) if placed else None
        chunk = Chunk(_arriving(parts), offset=offset, size=len(body) if placed else None)
        try:
            self.send(upload, chunk)
        except BlobUploadUnknown:
            assert upload not in self.received
        else:
            self.received[upload] += body

    @rule(upload=uploads, off=st.integers(-50, 50).filter(bool), parts=BODIES)
    def patch_elsewhere(self, upload: str, off: int, parts: list[bytes]) -> None:
        with contextlib.suppress(BlobUploadUnknown):
            try:
                offset = len(self.received.get(upload, b"")) + off
                self.send(upload, Chunk(_arriving(parts), offset=offset))
            except UploadOutOfOrder:
                assert upload in self.received
            else:
                raise AssertionError("a chunk out of order was taken")

    @rule(upload=uploads, parts=BODIES)
    def patch_too_short(self, upload: str, parts: list[bytes]) -> None:
        body = b"".join(parts)
        with contextlib.suppress(BlobUploadUnknown):
            try:
                self.send(upload, Chunk(_arriving(parts), size=len(body) + 1))
            except SizeInvalid:
                self.received[upload] += body

    @rule(upload=uploads, parts=BODIES)
    def patch_and_vanish(self, upload: str, parts: list[bytes]) -> None:
        with contextlib.suppress(BlobUploadUnknown):
            try:
                self.send(upload, Chunk(_arriving(parts, ClientGone("reset"))))
            except ClientGone:
                self.received[upload] += b"".join(parts)

    @rule(upload=uploads, parts=BODIES, quorum=st.booleans())
    def put(self, upload: str, parts: list[bytes], quorum: bool) -> None:
        body = b"".join(parts)
        content = self.received.get(upload, b"") + body
        digest = Digest.of(content)
        self.origins.failure = None if quorum else "refused"
        try:
            self.finish(upload, digest, Chunk(_arriving(parts)) if parts else None)
        except Unavailable:
            assert not quorum
            self.received[upload] = content
        except BlobUploadUnknown:
            assert upload not in self.received
        else:
            assert quorum
            self.received.pop(upload, None)
            self.stored.add(digest)
        finally:
            self.origins.failure = None

    @rule(upload=uploads, other=st.binary(min_size=1, max_size=8))
    def put_with_a_wrong_digest(self, upload: str, other: bytes) -> None:
        digest = Digest.of(self.received.get(upload, b"") + other)
        try:
            self.finish(upload, digest, None)
        except DigestInvalid:
            del self.received[upload]
        except BlobUploadUnknown:
            assert upload not in self.received
        else:
            assert upload not in self.received
            assert digest in self.stored

    @rule(upload=consumes(uploads))
    def delete(self, upload: str) -> None:
        try:
            self.run(self.service.cancel(NAME, upload))
        except BlobUploadUnknown:
            assert upload not in self.received
        else:
            del self.received[upload]

    @rule()
    def restart(self) -> None:
        self.service = self._process()

    @invariant()
    def every_upload_holds_what_came_in_order(self) -> None:
        for upload, content in self.received.items():
            assert self.run(self.service.upload_size(NAME, upload)) == len(content)

    @invariant()
    def exactly_the_open_uploads_are_on_disk(self) -> None:
        held = sorted(path.read_bytes() for path in self.folder.iterdir())
        assert held == sorted(self.received.values())

    @invariant()
    def the_origins_have_what_was_acknowledged_and_nothing_else(self) -> None:
        assert self.origins.blobs.keys() == self.stored
        for digest, content in self.origins.blobs.items():
            assert Digest.of(content) == digest


UploadRequests.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestUploadRequests = UploadRequests.TestCase
