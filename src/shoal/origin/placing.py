# SPDX-License-Identifier: Apache-2.0
"""Making copies on the origins: an upload to the owners of a blob, and replication among them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import structlog

from shoal.model.digest import Digest
from shoal.origin.members import Members
from shoal.origin.messages import ReplicateAnswer, ReplicateRequest, StatRequest
from shoal.origin.quorum import Attempt, Placement, QuorumFailed
from shoal.store.threads import in_thread
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed
from shoal.web.file_request import Pace

PROBE_FROM = 1024 * 1024
"""Bytes from which an upload first asks whether the host has the blob already."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class UploadResult:
    """How many copies were safe when the upload returned, and where."""

    copies: int
    hosts: tuple[str, ...]


class Placing:
    """The writing half of `shoal.origin.client.OriginCluster`."""

    def __init__(self, members: Members) -> None:
        self._members = members
        self._stragglers: set[asyncio.Task[None]] = set()

    async def upload(
        self,
        digest: Digest,
        source: Path | int,
        size: int,
        *,
        deadline: Deadline,
        namespace: str = "",
    ) -> UploadResult:
        """Send a file (path or descriptor) to the owners; return when the write quorum is safe.

        The deadline must leave time for the transfer. The path may be unlinked, and the descriptor
        closed, once this returns: the copies still being made hold the file open. `namespace` is
        the repository whose backend is to have it. Raises `QuorumFailed`.
        """
        file = await in_thread(_hold, source)

        async def send(host: str) -> None:
            await self.send(
                host, digest, file, size, deadline=deadline, namespaces=_named(namespace)
            )

        try:
            return await self.place(
                digest, send, deadline=deadline, finished=lambda: os.close(file)
            )
        except QuorumFailed as failure:
            log.warning("write quorum failed", digest=str(digest), size=size, error=failure.detail)
            raise

    async def place(
        self,
        digest: Digest,
        attempt: Attempt,
        *,
        deadline: Deadline,
        finished: Callable[[], None] = lambda: None,
    ) -> UploadResult:
        """Make a copy on each owner by `attempt`; return at the write quorum.

        The place of an unhealthy owner is taken by the next healthy host; it gets its copy by
        repair once it is back.

        `finished` is called once no attempt is or will be running. Raises `QuorumFailed`.
        """
        placement = Placement(
            digest,
            self._members.ring(digest),
            attempt,
            self._members.config,
            healthy=self._members.healthy,
        )
        try:
            rest = await placement.until_quorum(deadline)
        except BaseException:
            finished()
            raise
        result = UploadResult(len(placement.made), tuple(placement.made))
        self._stragglers.add(rest)
        rest.add_done_callback(lambda task: self._placed(task, digest, placement, finished))
        return result

    def _placed(
        self,
        task: asyncio.Task[None],
        digest: Digest,
        placement: Placement,
        finished: Callable[[], None],
    ) -> None:
        self._stragglers.discard(task)
        finished()
        copies = len(placement.made)
        if copies < min(self._members.config.replicas, len(self._members.hosts)):
            error = None if task.cancelled() else task.exception()
            log.warning(
                "under-replicated",
                digest=str(digest),
                copies=copies,
                wanted=self._members.config.replicas,
                failures=[str(failure) for failure in placement.failures],
                error=None if error is None else repr(error),
            )

    async def send(
        self,
        host: str,
        digest: Digest,
        source: Path | int,
        size: int,
        *,
        deadline: Deadline,
        kept: bool = False,
        used: float | None = None,
        pace: Pace | None = None,
        namespaces: Sequence[str] = (),
        backed: Sequence[str] = (),
        unbacked: bool = False,
    ) -> None:
        """Make sure that this one host has the blob, verified and on stable storage.

        `kept`: garbage collection leaves that copy alone for good. `used` (epoch seconds): the copy
        is as old as that, and its grace time does not begin anew. `pace` is waited for before each
        part of the body. `namespaces`: repositories whose backends the host is to see to that they
        get it; `backed`: those whose backends have it; `unbacked`: others have none, so that the
        copy must not be evicted. Raises `CallFailed`.
        """
        if size >= PROBE_FROM:
            question = StatRequest(
                [str(digest)],
                keep=used is None,
                kept=kept,
                namespaces=list(namespaces),
                backed=list(backed),
                unbacked=unbacked,
            )
            present = await self._members.stat(host, question, deadline)
            if present.get(str(digest)) == size:
                return
        query = [("namespace", name) for name in namespaces]
        query += [("backed", name) for name in backed]
        if kept:
            query.append(("kept", "true"))
        if unbacked:
            query.append(("unbacked", "true"))
        if used is not None:
            query.append(("used", f"{used:.3f}"))
        http = self._members.http
        url = http.url(host, f"/internal/blobs/{digest}?{urlencode(query)}".rstrip("?"))
        await self._members.noting(
            host, http.upload(url, source, size, deadline=deadline, pace=pace)
        )

    async def drain(self, timeout: float) -> None:
        """Wait for the copies still being made; end those that take longer."""
        if not self._stragglers:
            return
        _, late = await asyncio.wait(self._stragglers, timeout=timeout)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    async def ensure_copies(
        self, digest: Digest, holders: Collection[str], *, deadline: Deadline
    ) -> int:
        """Have holders copy the blob to the owners that lack it; the number of copies after that.

        The next healthy hosts stand in for unhealthy owners. When that leaves it below the write
        quorum, other members take it.
        Raises `CallFailed` when no holder could be asked to copy it.
        """
        copies = set(holders)
        if not copies:
            return 0
        replicas, quorum = self._members.config.replicas, self._members.config.write_quorum
        ring = self._members.ring(digest)
        well = [host for host in ring if self._members.healthy(host)]
        unwell = [host for host in ring if host not in well]
        lacking = [host for host in well[:replicas] if host not in copies]
        if lacking:
            copies |= await self._replicate(digest, holders, lacking, deadline)
        spare = [host for host in well[replicas:] + unwell if host not in copies]
        missing = quorum - len(copies)
        if spare and missing > 0:
            copies |= await self._replicate(digest, holders, spare[:missing], deadline)
        return len(copies)

    async def _replicate(
        self, digest: Digest, holders: Collection[str], to: list[str], deadline: Deadline
    ) -> set[str]:
        """Have the first holder that can be asked copy the blob; the hosts that it is on now."""
        body = ReplicateRequest(to)
        path = f"/internal/blobs/{digest}/replicate"
        failures: list[CallFailed] = []
        for holder in self._members.healthy_first(sorted(holders)):
            try:
                answer = await self._members.call(holder, "POST", path, deadline, body)
            except CallFailed as error:
                failures.append(error)
                continue
            replicated = answer.decode(ReplicateAnswer)
            if replicated.failed:
                log.warning("replication failed", digest=str(digest), failed=replicated.failed)
            return set(replicated.copied)
        raise failures[-1]


def _named(namespace: str) -> tuple[str, ...]:
    return (namespace,) if namespace else ()


def _hold(source: Path | int) -> int:
    """A descriptor of our own, so that the caller may unlink or close what it gave."""
    return (
        os.dup(source) if isinstance(source, int) else os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    )
