# SPDX-License-Identifier: Apache-2.0
"""Refresh: a blob that no origin has comes from its backend, or from upstream, once per cluster.

All that want it are led to its first owner that can be reached, and wait there for one transfer.
What came is verified, kept as durably as a push, noted as backed, and copied to the other owners.
Peers are given the pieces while they come (`shoal.origin.growing`).
A request that runs out of time is told to come back, while the transfer goes on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from shoal.backend.base import BlobName, Content
from shoal.model.digest import Digest
from shoal.model.errors import (
    ApiError,
    BlobUnknown,
    DigestInvalid,
    SizeInvalid,
    StillFetching,
    TooLarge,
)
from shoal.origin import metrics
from shoal.origin.backends import BlobBackends, Matched
from shoal.origin.config import RefreshConfig
from shoal.origin.growing import Growing, Shown
from shoal.origin.local import LocalBlobs
from shoal.origin.receiving import Arriving, Received, Receiver
from shoal.store.ingest import Stalled
from shoal.store.threads import in_thread, submit
from shoal.swarm.metainfo import Metainfo
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, NotFound, Overloaded, Rejected, Unreachable
from shoal.web.flights import Flights, Memory

MARGIN = 0.1
"""Share of a request's time that is left for its answer to arrive."""

COME_BACK = 1
"""Seconds after which those should come back whose time was over."""

COPY_TIMEOUT = 60.0
"""Seconds for copying a blob to the other owners, besides the time for its bytes."""

SIZE_FOR = 5.0
"""Seconds for which a size that a backend said is answered without asking it again."""

_MAX_REMEMBERED = 100_000
"""Answers of backends that are remembered."""

_MAX_SIZES = 10_000
"""Sizes that are remembered."""

log = structlog.get_logger()

Keep = Callable[[Received, str], Awaitable[None]]
"""Moves a received blob into place, as one that the backend of a repository has."""


class Ring(Protocol):
    """The other origins (`shoal.origin.client.OriginCluster`)."""

    def owners(self, digest: Digest) -> list[str]: ...

    def healthy(self, host: str) -> bool: ...

    async def refresh_at(
        self, host: str, digest: Digest, namespace: str, *, deadline: Deadline, begun: bool
    ) -> int: ...

    async def stat_backend_at(
        self, host: str, digest: Digest, namespace: str, *, deadline: Deadline
    ) -> int: ...


Show = Callable[[Growing], Awaitable[Shown]]
"""Gives peers the pieces of a blob that is still coming."""

Unshow = Callable[[Digest], None]
"""Takes a blob that was given up away from peers."""

Spread = Callable[[Digest, Sequence[str], Deadline], Awaitable[object]]
"""Copies a blob of this origin to other members."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A blob as a repository's backend has it."""

    name: BlobName
    matched: Matched

    @property
    def key(self) -> tuple[str, str, Digest]:
        return (self.matched.key, self.name.repository, self.name.digest)

    def __str__(self) -> str:
        return f"{self.name.digest} of {self.name.repository} in {self.matched.key}"


class Refresh:
    """The fetches of one origin."""

    def __init__(
        self,
        name: str,
        local: LocalBlobs,
        receiver: Receiver,
        ring: Ring,
        backends: BlobBackends,
        *,
        config: RefreshConfig,
        keep: Keep,
        spread: Spread,
        show: Show,
        unshow: Unshow,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` gives seconds, for what is remembered."""
        self._name = name
        self._local = local
        self._receiver = receiver
        self._ring = ring
        self._backends = backends
        self._config = config
        self._keep = keep
        self._spread = spread
        self._show = show
        self._unshow = unshow
        self._clock = clock
        self._slots = asyncio.Semaphore(config.concurrency)
        self._fetching: dict[Digest, tuple[_Wanted, asyncio.Task[int]]] = {}
        self._growing: dict[Digest, Growing] = {}
        self._begun: dict[Digest, asyncio.Event] = {}
        self._copying: set[asyncio.Task[None]] = set()
        self._remembered: dict[tuple[str, str, Digest], tuple[float, Exception]] = {}
        self._asking: Flights[str, int] = Flights()
        self._sizes: Memory[str, int] = Memory(_MAX_SIZES)

    async def close(self) -> None:
        """End what is under way; the temp files go."""
        tasks = [*(task for _, task in self._fetching.values()), *self._copying]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._asking.stop()

    def growing(self, digest: Digest) -> Growing | None:
        """A blob that this origin is fetching, as far as it is here."""
        return self._growing.get(digest)

    # -- asking -------------------------------------------------------------------------------

    async def stat(
        self, digest: Digest, repository: str, deadline: Deadline, *, led: bool = False
    ) -> int:
        """The size that the repository's backend says it has; nothing is fetched.

        All that ask at the same time, of whichever origin, cause one question to the backend; what
        it answers holds for `SIZE_FOR` seconds. `led` as in `bring`. Raises `BlobUnknown` when
        there is none or it was asked and has not got it, `CallFailed` and `SourceFailed` when it
        could not be asked.
        """
        wanted = self._wanted(digest, repository)
        self._recall(wanted)
        size = self._sizes.get(str(wanted), self._clock())
        if size is not None:
            return size
        if led:
            return await self._asking.join(str(wanted), lambda: self._ask(wanted), deadline)
        leading = f"{wanted}, at its first owner"
        return await self._asking.join(leading, lambda: self._ask_leader(wanted), deadline)

    async def _ask_leader(self, wanted: _Wanted) -> int:
        soon = Deadline.after(self._config.timeout)

        async def ask(host: str) -> int:
            # One that hangs leaves time for the next.
            late = soon.at_most(soon.remaining() / 2)
            return await self._ring.stat_backend_at(
                host, wanted.name.digest, wanted.name.repository, deadline=late
            )

        size = await self._at_leader(wanted, ask)
        if size is None:
            return await self._asking.join(str(wanted), lambda: self._ask(wanted), soon)
        return self._remember_size(wanted, size)

    async def _ask(self, wanted: _Wanted) -> int:
        soon = Deadline.after(self._config.timeout)
        size = await wanted.matched.backend.stat(wanted.name, deadline=soon)
        if size is None:
            raise self._absent(wanted)
        return self._remember_size(wanted, size)

    def _remember_size(self, wanted: _Wanted, size: int) -> int:
        self._sizes.keep(str(wanted), size, self._clock() + SIZE_FOR)
        return size

    async def bring(
        self,
        digest: Digest,
        repository: str,
        deadline: Deadline,
        *,
        led: bool = False,
        begun: bool = False,
    ) -> int:
        """Return the blob's size when an origin has it, from where `OriginCluster` finds it.

        `led`: another member says that this one is the first that can be reached. `begun`: return
        when pieces of it can be had, at the latest. Raises
        `BlobUnknown` when no backend is the repository's or it has not got the blob,
        `StillFetching` when that takes longer than the deadline, `CallFailed` when the backend
        could not be asked or gave something else, `InsufficientStorage` when the disk is full.
        """
        wanted = self._wanted(digest, repository)
        here = await in_thread(self._local.rely, digest)
        if here is not None:
            return here.metainfo.size

        async def refresh(host: str) -> int:
            return await self._ring.refresh_at(
                host, digest, repository, deadline=deadline, begun=begun
            )

        if not led and (size := await self._at_leader(wanted, refresh)) is not None:
            return size
        return await self._own(wanted, deadline, begun)

    async def _at_leader(
        self, wanted: _Wanted, question: Callable[[str], Awaitable[int]]
    ) -> int | None:
        """What the first owner that can be reached answers; None when that is this origin."""
        for host in self._ring.owners(wanted.name.digest):
            if host == self._name:
                break
            if not self._ring.healthy(host):
                continue
            try:
                return await question(host)
            except NotFound as error:
                raise self._remember(wanted, _unknown(wanted, error.detail)) from error
            except Unreachable as error:
                log.info("an owner cannot be asked to lead", host=host, error=str(error))
            except Overloaded as error:
                if error.status != 507:  # a full disk: the next owner may have room
                    if error.code == StillFetching.code:
                        raise _come_back(wanted) from error
                    raise
        return None

    def _wanted(self, digest: Digest, repository: str) -> _Wanted:
        matched = self._backends.source(repository)
        if matched is None:
            raise BlobUnknown(
                f"no origin has {digest}, and {repository} has no backend",
                detail={"digest": str(digest)},
            )
        return _Wanted(BlobName(repository, digest), matched)

    # -- what backends did not have -----------------------------------------------------------

    def _recall(self, wanted: _Wanted) -> None:
        """Raise what the backend answered a short time ago."""
        remembered = self._remembered.get(wanted.key)
        if remembered is None:
            return
        until, error = remembered
        if self._clock() < until:
            raise error.with_traceback(None)
        del self._remembered[wanted.key]

    def _remember(self, wanted: _Wanted, error: Exception) -> Exception:
        if self._config.negative:
            self._remembered.pop(wanted.key, None)
            self._remembered[wanted.key] = (self._clock() + self._config.negative, error)
            if len(self._remembered) > _MAX_REMEMBERED:
                del self._remembered[next(iter(self._remembered))]
        return error

    def _absent(self, wanted: _Wanted) -> Exception:
        metrics.REFRESHES.labels("absent").inc()
        storage = wanted.matched.backend.description
        return self._remember(wanted, _unknown(wanted, f"{storage} has not got it either"))

    # -- fetching -----------------------------------------------------------------------------

    async def _own(self, wanted: _Wanted, deadline: Deadline, begun: bool) -> int:
        """Fetch it here, once for all that want it."""
        digest = wanted.name.digest
        patience = Deadline.after(deadline.remaining() * (1 - MARGIN))
        while True:
            self._recall(wanted)
            current = self._fetching.get(digest)
            if current is None:
                task = asyncio.create_task(self._fetch(wanted), name=f"fetch of {digest}")
                task.add_done_callback(lambda task: self._fetched(digest, task))
                current = self._fetching[digest] = (wanted, task)
                self._begun[digest] = asyncio.Event()
            first, task = current
            await self._wait(digest, task, patience, begun=begun)
            if not task.done():
                growing = self._growing.get(digest)
                if begun and growing is not None:
                    return growing.metainfo.size
                raise _come_back(wanted)
            if first.key == wanted.key or (not task.cancelled() and task.exception() is None):
                return task.result()
            # Another repository's backend had not got it: ask this one's.

    async def _wait(
        self, digest: Digest, task: asyncio.Task[int], patience: Deadline, *, begun: bool
    ) -> None:
        """Until it is fetched, or some of it can be had."""
        waiting: set[asyncio.Task[Any]] = {task}
        if begun:
            waiting.add(asyncio.create_task(self._begun[digest].wait()))
        try:
            await asyncio.wait(
                waiting, timeout=patience.remaining(), return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            for other in waiting - {task}:
                other.cancel()

    def _fetched(self, digest: Digest, task: asyncio.Task[int]) -> None:
        del self._fetching[digest], self._begun[digest]
        if not task.cancelled():
            task.exception()  # Those who waited may all have gone.

    async def _fetch(self, wanted: _Wanted) -> int:
        digest, backend = wanted.name.digest, wanted.matched.backend
        began = time.monotonic()
        async with self._slots:
            # It may have been pushed while this waited for its turn.
            here = await in_thread(self._local.rely, digest)
            if here is not None:
                return here.metainfo.size
            try:
                received = await self._receive(wanted)
            except NotFound as error:
                raise self._absent(wanted) from error
            except (ApiError, CallFailed, OSError) as error:
                wrong = isinstance(error, Rejected)
                metrics.REFRESHES.labels("wrong" if wrong else "failed").inc()
                log.warning(
                    "fetch from a backend failed",
                    digest=str(digest),
                    repository=wanted.name.repository,
                    storage=backend.description,
                    error=str(error),
                )
                raise
        metrics.REFRESHES.labels("fetched").inc()
        metrics.FETCHED_BYTES.inc(received.size)
        log.info(
            "fetched from the backend",
            digest=str(digest),
            repository=wanted.name.repository,
            size=received.size,
            storage=backend.description,
            seconds=round(time.monotonic() - began, 3),
        )
        copying = asyncio.create_task(self._copy(digest, received.size), name=f"copies of {digest}")
        self._copying.add(copying)
        copying.add_done_callback(self._copying.discard)
        return received.size

    async def _receive(self, wanted: _Wanted) -> Received:
        """Take in what the backend has; nothing is kept unless it has the digest."""
        digest, backend = wanted.name.digest, wanted.matched.backend
        soon = Deadline.after(self._config.timeout)
        arriving: list[Arriving] = []
        kept: Received | None = None
        try:
            async with (
                backend.get(wanted.name, deadline=soon) as content,
                aclosing(self._following(_exactly(content), arriving)) as chunks,
            ):
                received = await self._receiver.receive(
                    digest, chunks, content.size, watch=arriving.append
                )
            await self._keep_verified(received, wanted.name.repository)
            kept = received
            return received
        except (DigestInvalid, SizeInvalid) as error:
            if isinstance(error, TooLarge) and not isinstance(error, _TooMuch):
                raise  # This origin takes no such blob; nothing is wrong with it.
            wrong = Rejected(
                "GET",
                backend.description,
                f"{digest} of {wanted.name.repository} is damaged in this storage: "
                f"{error.message}. Nothing of it was kept; push the blob again, or delete it there",
                status=200,
            )
            raise self._remember(wanted, wrong) from error
        except Stalled as error:
            raise Unreachable(
                "GET", backend.description, f"{digest} of {wanted.name.repository}: {error}"
            ) from error
        finally:
            self._ended(digest, None if kept is None else kept.metainfo)

    async def _following(
        self, chunks: AsyncGenerator[bytes], arriving: list[Arriving]
    ) -> AsyncGenerator[bytes]:
        """The chunks; what they bring is shown to peers by and by."""
        growing: Growing | None = None
        async with aclosing(chunks):
            async for chunk in chunks:
                if growing is None:
                    growing = await self._begin(arriving[0])
                yield chunk
                growing.progressed()

    async def _begin(self, arriving: Arriving) -> Growing:
        growing = Growing(arriving)
        if growing.metainfo.count > 1:  # A blob of one piece is there as soon as its piece is.
            growing.show(await self._show(growing))
            self._growing[arriving.digest] = growing
            self._begun[arriving.digest].set()
        return growing

    def _ended(self, digest: Digest, metainfo: Metainfo | None) -> None:
        growing = self._growing.pop(digest, None)
        if growing is not None:
            growing.end(metainfo)
            if metainfo is None:
                self._unshow(digest)

    async def _keep_verified(self, received: Received, repository: str) -> None:
        try:
            await self._keep(received, repository)
        except BaseException:
            await asyncio.shield(submit(received.discard))
            raise

    async def _copy(self, digest: Digest, size: int) -> None:
        """Copy it to the other owners; what fails is the repair's to make up for."""
        others = [host for host in self._ring.owners(digest) if host != self._name]
        if not others:
            return
        deadline = Deadline.after(COPY_TIMEOUT).with_transfer(size)
        try:
            await self._spread(digest, others, deadline)
        except (ApiError, CallFailed, OSError) as error:
            log.warning("a fetched blob was not copied", digest=str(digest), error=str(error))


class _TooMuch(TooLarge):
    """More bytes came than the size that was announced."""


async def _exactly(content: Content) -> AsyncGenerator[bytes]:
    """The content's chunks; raises `_TooMuch` instead of taking more than its size."""
    received = 0
    async for chunk in content.chunks():
        received += len(chunk)
        if received > content.size:
            raise _TooMuch(f"{content.size} bytes announced, and more came")
        yield chunk


def _unknown(wanted: _Wanted, why: str) -> BlobUnknown:
    digest = wanted.name.digest
    return BlobUnknown(f"no origin has {digest}: {why}", detail={"digest": str(digest)})


def _come_back(wanted: _Wanted) -> StillFetching:
    return StillFetching(
        f"{wanted.name.digest} is being fetched from {wanted.matched.backend.description}, which "
        "takes longer than this request waits; send it again",
        detail={"digest": str(wanted.name.digest)},
        retry_after=COME_BACK,
    )
