# SPDX-License-Identifier: Apache-2.0
"""What an origin does. Knows nothing of HTTP."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

import structlog

from shoal.model.digest import Digest
from shoal.model.errors import ApiError, BadRequest, BlobUnknown
from shoal.origin.client import OriginCluster, UploadResult
from shoal.origin.held_blob import HeldBlob, Opened, opened
from shoal.origin.local import LocalBlobs, Whole
from shoal.origin.messages import MAX_NAMESPACES, Owing, PrefetchAnswer
from shoal.origin.receiving import Received, Receiver, refusing_when_full
from shoal.origin.remote_blob import RemoteBlob
from shoal.origin.writeback import WriteBack
from shoal.store.full import is_unreadable
from shoal.store.memory import SMALL, MemoryCache
from shoal.store.threads import in_thread, open_file, submit
from shoal.swarm.metainfo import Metainfo
from shoal.web.bodies import FileBlob, MemoryBlob
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, NotFound, Overloaded, Unreachable

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class BackendTerms:
    """Repositories by whether their backend has a blob."""

    pending: tuple[str, ...]
    """It is still to be given it: who has a copy sees to that."""

    backed: tuple[str, ...]
    """It has it."""

    unbacked: bool
    """There are others that have none: for them the origins' copies are all there is."""


class Fetcher(Protocol):
    """Fetches what no origin has (`shoal.origin.refresh.Refresh`)."""

    async def bring(self, digest: Digest, repository: str, deadline: Deadline) -> int: ...


class OriginService:
    """One member of the ring: its own copies, and the way to those of the others."""

    def __init__(
        self,
        name: str,
        local: LocalBlobs,
        receiver: Receiver,
        cluster: OriginCluster,
        writeback: WriteBack,
        *,
        memory: MemoryCache | None = None,
    ) -> None:
        """`name` is what the list of members calls this origin (``host:port``).

        `memory`: keeps small blobs that are read; none by default.
        """
        self._memory = memory or MemoryCache(0)
        self.name = name
        self._writeback = writeback
        self._fetcher: Fetcher
        self._local = local
        self._receiver = receiver
        self._cluster = cluster
        self._ending: set[asyncio.Future[None]] = set()
        self._on_copy: Callable[[], None] = lambda: None

    def watch_copies(self, callback: Callable[[], None]) -> None:
        """Call it for each copy that a repair made here from now on."""
        self._on_copy = callback

    def connect(self, fetcher: Fetcher) -> None:
        """Give it what fetches blobs, which in turn needs this service to keep them."""
        self._fetcher = fetcher

    # -- own copies -----------------------------------------------------------------------------

    async def store(
        self,
        digest: Digest,
        source: AsyncIterator[bytes],
        size: int | None,
        *,
        kept: bool = False,
        used: float | None = None,
        namespaces: Sequence[str] = (),
        backed: Sequence[str] = (),
        unbacked: bool = False,
    ) -> bool:
        """Make a copy on this host alone, from the whole blob; False when it was here already.

        On return the copy is verified and on stable storage. `kept`: garbage collection leaves it
        alone for good; `used` (epoch seconds): otherwise it is as old as that, not new.
        `namespaces`: repositories whose backends are to get it, which is noted as durably;
        `backed`: those whose backends have it; `unbacked`: there are others that have none, so that
        it is not evicted. On any error nothing is kept; raises what
        `Receiver.receive` and `WriteBack.taking` raise.
        """
        self._writeback.check(namespaces)
        with self._local.in_use(digest):
            whole = await in_thread(self._local.rely, digest, kept=kept, used=used)
            if whole is not None and size in (None, whole.metainfo.size):
                await self._rely([digest], namespaces, backed, unbacked=unbacked)
                await self._receiver.skip(source)
                return False
            # What repair copies of a blob that a backend has must not drive others out: they would
            # be given to this host again, too.
            spare = used is not None and bool(backed) and not namespaces and not unbacked
            received = await self._receiver.receive(digest, source, size, evict=not spare)
            try:
                await self._keep(
                    received,
                    kept=kept,
                    used=used,
                    namespaces=namespaces,
                    backed=backed,
                    unbacked=unbacked,
                )
            except BaseException:
                await asyncio.shield(submit(received.discard))
                raise
        log.info("blob stored", digest=str(digest), size=received.size)
        if used is not None:
            self._on_copy()
        return True

    async def sizes(
        self,
        digests: Iterable[Digest],
        *,
        keep: bool = False,
        kept: bool = False,
        namespaces: Sequence[str] = (),
        backed: Sequence[str] = (),
        unbacked: bool = False,
    ) -> dict[Digest, int]:
        """Sizes of those blobs that are on this host.

        `keep`: the caller relies on them, their grace time begins anew; `kept`: garbage collection
        leaves them alone for good; the others as in `store`.
        """
        self._writeback.check(namespaces)
        if not namespaces and not backed and not unbacked:
            return await in_thread(self._local.sizes, digests, rely=keep, kept=kept)
        with ExitStack() as stack:
            asked = list(digests)
            for digest in asked:
                # Until it is pinned, or it could be evicted under a task for another backend.
                stack.enter_context(self._local.in_use(digest))
            sizes = await in_thread(self._local.sizes, asked, rely=keep, kept=kept)
            await self._rely(sizes, namespaces, backed, unbacked=unbacked)
        return sizes

    async def _rely(
        self,
        digests: Iterable[Digest],
        namespaces: Sequence[str],
        backed: Sequence[str],
        *,
        unbacked: bool,
    ) -> None:
        entries = self._writeback.entries(backed)
        unbacked = unbacked or self._writeback.are_unbacked(namespaces)
        for digest in digests:
            if unbacked:
                await in_thread(self._local.note_unbacked, digest)
            if entries:
                await in_thread(self._local.note_backed, digest, entries)
            async with self._writeback.taking(digest, namespaces):
                pass  # it is here already

    async def metainfo(self, digest: Digest) -> Metainfo:
        """The pieces of a blob on this host; raises `BlobUnknown`."""
        whole = await in_thread(self._local.find, digest)
        if whole is None:
            raise self._unknown(digest)
        return whole.metainfo

    async def open_own(self, digest: Digest) -> FileBlob | MemoryBlob:
        """The copy on this host; raises `BlobUnknown`."""
        blob = await self._open_here(digest)
        if blob is None:
            raise self._unknown(digest)
        return blob

    async def _open_here(self, digest: Digest) -> FileBlob | MemoryBlob | None:
        hot = self._memory.get(digest)
        if hot is not None:
            return MemoryBlob(hot)
        with ExitStack() as held:
            held.enter_context(self._local.in_use(digest))
            match await opened(submit(self._open, digest)):
                case None:
                    return None
                case bytes() as data:
                    self._memory.keep(digest, data)
                    return MemoryBlob(data)
                case file, size:
                    return HeldBlob(file, size, held.pop_all())

    def _open(self, digest: Digest) -> Opened:
        """The copy's file; of a small one the content, and nothing if it is damaged."""
        whole = self._local.find(digest)
        if whole is None:
            return None
        try:
            if whole.metainfo.size <= SMALL:
                data = whole.blob.path.read_bytes()
                if Digest.of(data, digest.algorithm) != digest:
                    self._local.recheck(digest)
                    return None
                self._local.note_use(whole)
                return data
            file = os.open(whole.blob.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            if not is_unreadable(error):
                raise
            self._local.set_aside(digest)
            if self._local.find(digest) is not None:
                raise  # it was an error of a moment: it cannot be said that it is not here
            return None
        self._local.note_use(whole)
        return file, whole.metainfo.size

    async def keep_fetched(self, received: Received, repository: str) -> None:
        """Keep a blob that the repository's backend gave; raises `InsufficientStorage`."""
        await self._keep(received, kept=False, backed=[repository])

    async def _keep(
        self,
        received: Received,
        *,
        kept: bool,
        used: float | None = None,
        namespaces: Sequence[str] = (),
        backed: Sequence[str] = (),
        unbacked: bool = False,
    ) -> None:
        """Move a received blob into place; when cancelled, wait until that has come to its end."""
        digest = Digest.parse(received.metainfo.digest)
        with self._local.in_use(digest):  # an older copy whose notes count is not evicted now
            async with self._writeback.taking(digest, namespaces):
                with refusing_when_full(digest):
                    keeping = submit(
                        self._local.keep,
                        received.file,
                        received.metainfo,
                        kept=kept,
                        used=used,
                        backed=self._writeback.entries(backed),
                        unbacked=unbacked or self._writeback.are_unbacked(namespaces),
                    )
                    try:
                        await asyncio.wait([keeping])
                    except asyncio.CancelledError:
                        await asyncio.wait([keeping])
                        raise
                    keeping.result()

    def _unknown(self, digest: Digest) -> BlobUnknown:
        return BlobUnknown(f"{digest} is not on {self.name}", detail={"digest": str(digest)})

    # -- the ring -------------------------------------------------------------------------------

    def owners(self, digest: Digest) -> list[str]:
        """The hosts that should have the blob, best first."""
        return self._cluster.owners(digest)

    async def open(
        self, digest: Digest, namespace: str, deadline: Deadline
    ) -> FileBlob | MemoryBlob | RemoteBlob:
        """The blob from wherever it is: this host first, the repository's backend last.

        Raises `BlobUnknown` when all members and the backend answered that it is not there,
        `CallFailed` when some could not be asked, and what `Refresh.bring` raises.
        """
        own = await self._open_here(digest)
        if own is not None:
            return own
        soon = deadline.at_most(deadline.remaining() / 2)  # a member that hangs takes no more
        try:
            return await self._cluster.open(digest, deadline=soon, besides=self.name)
        except (NotFound, Unreachable) as error:
            try:
                await self._fetcher.bring(digest, namespace, deadline)
            except BlobUnknown as absent:
                if isinstance(error, Unreachable):
                    raise error from absent
                raise
        # Where it was fetched to: here, or on the owner that fetches for all.
        own = await self._open_here(digest)
        return own or await self._cluster.open(digest, deadline=deadline, besides=self.name)

    async def prefetch(self, digest: Digest, namespace: str, deadline: Deadline) -> PrefetchAnswer:
        """Have the blob fetched to the origins, by the one that would fetch it for a pull.

        Raises `BlobUnknown`, and what `OriginCluster.prefetch` raises.
        """
        answer = await self._cluster.prefetch(digest, namespace, deadline=deadline)
        if answer is None:
            raise BlobUnknown(
                f"no origin has {digest}, and neither has the backend of {namespace}",
                detail={"digest": str(digest)},
            )
        return answer

    def check_push(self, namespace: str) -> None:
        """Raise `Denied` when a push to the repository could not be written to a backend."""
        self._writeback.check([namespace])

    async def settle(self, digest: Digest, namespace: str, deadline: Deadline) -> int:
        """Return the size once the repository's backend has the blob of this host.

        Raises what `WriteBack.settle` raises.
        """
        await self._writeback.settle(digest, namespace, deadline)
        return (await self.metainfo(digest)).size

    async def owed(self, asked: Sequence[tuple[str, Digest]]) -> list[Owing | None]:
        """Whether this host is still to write the blobs to these repositories' backends."""
        return await self._writeback.owed(asked)

    async def upload(
        self,
        digest: Digest,
        source: AsyncIterator[bytes],
        size: int | None,
        budget: float,
        *,
        namespace: str,
        through: bool = False,
    ) -> UploadResult:
        """Take a whole blob and give it to its owners, to stay; returns at the write quorum.

        `budget`: seconds from when the blob is here, besides those that its transfer takes.
        `through`: return when the namespace's backend has it, too. Raises what `Receiver.receive`
        raises, `QuorumFailed`, `Denied` and what `WriteBack.settle` raises.
        """
        self.check_push(namespace)
        received = await self._receiver.receive(digest, source, size)
        return await self.distribute(received, budget, namespace=namespace, through=through)

    async def distribute(
        self, received: Received, budget: float, *, namespace: str, through: bool = False
    ) -> UploadResult:
        """Give a received blob to its owners; this host keeps the file if it is one of them.

        Garbage collection leaves it alone for good: no repository says how long it is needed.
        `budget`: seconds, besides those that the transfer takes. Returns at the write quorum, or
        (`through`) when the namespace's backend has it, too; raises `QuorumFailed`. The temp file
        is gone in the end.
        """
        digest = Digest.parse(received.metainfo.digest)
        file = await in_thread(os.open, received.file, os.O_RDONLY | os.O_CLOEXEC)
        deadline = Deadline.after(budget).with_transfer(received.size)

        async def copy(host: str) -> None:
            if host != self.name:
                await self._cluster.send(
                    host,
                    digest,
                    file,
                    received.size,
                    deadline=deadline,
                    kept=True,
                    namespaces=[namespace],
                )
                return
            try:
                await self._keep(received, kept=True, namespaces=[namespace])
            except (ApiError, OSError) as error:
                status = error.status if isinstance(error, ApiError) else None
                raise Overloaded(
                    "PUT", f"{host}/internal/blobs/{digest}", str(error), status=status
                ) from error

        def finished() -> None:
            os.close(file)
            self._ending.add(ending := submit(received.discard))
            ending.add_done_callback(self._ending.discard)

        result = await self._cluster.place(digest, copy, deadline=deadline, finished=finished)
        log.info("blob placed", digest=str(digest), size=received.size, hosts=result.hosts)
        if through:
            late = Deadline.after(budget).with_transfer(received.size)
            await self._settle_somewhere(digest, namespace, result.hosts, late)
        return result

    async def _settle_somewhere(
        self, digest: Digest, namespace: str, hosts: Sequence[str], deadline: Deadline
    ) -> None:
        """Have the first host with a copy that can be asked write it to the backend now."""
        ring = [host for host in self.owners(digest) if host in hosts]
        in_turn = ring + [host for host in hosts if host not in ring]
        for host in in_turn:
            try:
                if host == self.name:
                    await self._writeback.settle(digest, namespace, deadline)
                else:
                    await self._cluster.settle_at(host, digest, namespace, deadline=deadline)
            except Unreachable:
                if host == in_turn[-1]:
                    raise
            else:
                return

    async def replicate(
        self, digest: Digest, hosts: Sequence[str], deadline: Deadline
    ) -> tuple[list[str], dict[str, str]]:
        """Copy a blob of this host to other members: those that have it now, and why others do not.

        Raises `BlobUnknown` when it is not here, `BadRequest` for a host that is not a member.
        """
        if not set(hosts) <= set(self._cluster.members):
            # Whoever asks may know of one that has joined since this origin looked.
            await self._cluster.listed.refresh()
        strangers = sorted(set(hosts) - set(self._cluster.members))
        if strangers:
            raise BadRequest(f"not members of the ring: {', '.join(strangers)}")
        with self._local.in_use(digest):
            whole = await in_thread(self._local.rely, digest)
            if whole is None:
                raise self._unknown(digest)
            targets = [host for host in dict.fromkeys(hosts) if host != self.name]
            outcomes = await self._send_own(whole, targets, deadline)
        copied, failed = [], {}
        for host, outcome in zip(targets, outcomes, strict=True):
            match outcome:
                case None:
                    copied.append(host)
                case CallFailed():
                    failed[host] = outcome.detail
                case _:
                    raise outcome
        log.info("blob replicated", digest=str(digest), copied=copied, failed=failed)
        return copied, failed

    async def backend_terms(self, digest: Digest) -> BackendTerms:
        """What whoever gets a copy of this host's blob is to be told of backends."""
        backing = self._local.backing
        pending = tuple(self._writeback.pending(digest)[:MAX_NAMESPACES])
        if await in_thread(backing.is_unbacked, digest):
            # What backends have is no reason to give the copy up: nothing is said of them.
            return BackendTerms(pending, (), unbacked=True)
        entries = await in_thread(backing.entries, digest)
        backed = sorted({entry.rpartition("|")[2] for entry in entries})
        return BackendTerms(pending, tuple(backed[:MAX_NAMESPACES]), unbacked=False)

    async def _send_own(
        self, whole: Whole, targets: Sequence[str], deadline: Deadline
    ) -> list[BaseException | None]:
        """Send this host's copy to the targets; per target None, or what went wrong."""
        digest, size = whole.blob.digest, whole.metainfo.size
        kept = await in_thread(self._local.is_kept, digest)
        try:
            file = await open_file(whole.blob.path)
        except FileNotFoundError as error:
            raise self._unknown(digest) from error
        late = deadline.with_transfer(size)
        try:
            terms = await self.backend_terms(digest)
            return await asyncio.gather(
                *(
                    self._cluster.send(
                        host,
                        digest,
                        file,
                        size,
                        deadline=late,
                        kept=kept,
                        namespaces=terms.pending,
                        backed=terms.backed,
                        unbacked=terms.unbacked,
                    )
                    for host in targets
                ),
                return_exceptions=True,
            )
        finally:
            await in_thread(os.close, file)
