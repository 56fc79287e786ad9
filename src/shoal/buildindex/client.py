# SPDX-License-Identifier: Apache-2.0
"""How other services call the build-index."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from urllib.parse import quote, urlencode

import msgspec

from shoal.buildindex.hosts import IndexHosts, may_have_arrived
from shoal.buildindex.lookups import (
    LOOKUP,
    Known,
    Open,
    Question,
    digest_in,
    lookup_answers,
    lookup_request,
)
from shoal.buildindex.messages import MAX_QUESTIONS, WantedAnswer, WantedRequest
from shoal.buildindex.records import Page, ReferrerEntry, ReferrersPage
from shoal.model.digest import Digest
from shoal.model.errors import (
    BlobUnknown,
    ManifestUnknown,
    NameUnknown,
)
from shoal.model.manifest import LARGE_REFERRERS, FoundManifest, IndexChildren, Referrer
from shoal.queue.retry import RetryPolicy
from shoal.ring.config import HostsConfig
from shoal.web.batching import Batches
from shoal.web.client import Answer, HttpClient
from shoal.web.deadline import Deadline
from shoal.web.failures import (
    CallFailed,
    NotFound,
    Unreachable,
    combined,
)
from shoal.web.probe import silent

READ_TIMEOUT = 5.0
"""Seconds for one build-index to answer what needs no others; then the next one is asked."""

WRITE_TIMEOUT = 8.0
"""Seconds for one build-index to write a record, and to wait for its neighbours twice; then the
next one is asked. A push of a manifest or tag has no such limit: it waits for what it needs."""

READINESS_TIMEOUT = 2.0

_NOT_THERE = frozenset({BlobUnknown.code, ManifestUnknown.code, NameUnknown.code})
"""Answers to a mount or a deletion: what it is about is not there."""

_DONE = (200, 201, 202)
_WANTED = "/internal/wanted"


class BuildIndexClient:
    """All build-indexes of the cluster as one. The first that answers is asked; it has all tags.

    Every method raises `shoal.web.failures.CallFailed` when no build-index could answer within the
    deadline: `Unreachable` or `Overloaded` of the last one tried.
    """

    def __init__(
        self,
        http: HttpClient,
        config: HostsConfig,
        *,
        retry: RetryPolicy | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`retry` is for writes and checks that no build-index took; None: the default policy."""
        self._http = http
        self._hosts = IndexHosts(http, config, retry=retry or RetryPolicy(), clock=clock)
        self._hosts.listed.watch(self._moved)
        self._lookups: dict[tuple[str, bool], Batches[Question, Known | Open]] = {}

    async def start(self) -> None:
        """Look up and follow the list of build-indexes; a written list needs no start."""
        await self._hosts.listed.start()

    async def close(self) -> None:
        """Follow the list no longer."""
        await self._hosts.listed.close()

    def _moved(self, before: Sequence[str], now: Sequence[str]) -> None:
        for host in set(before) - set(now):
            for rely in (False, True):
                self._lookups.pop((host, rely), None)

    async def put_tag(
        self,
        repository: str,
        tag: str,
        digest: Digest,
        manifest: bytes | None,
        media_type: str | None,
        *,
        deadline: Deadline,
        index_children: IndexChildren | None = None,
    ) -> None:
        """Point the tag to the manifest; all that it needs becomes part of the repository.

        Without its bytes, the build-index reads them itself. `index_children` says what an index
        needs of its children (`shoal.buildindex.dependencies`); None: what the build-index is
        configured for. Build-indexes that cannot be reached are tried again within the deadline;
        one that answers has itself waited for what was missing. Raises `ManifestBlobUnknown`,
        `ManifestInvalid` or `DigestInvalid`; the tag is then as it was.
        """
        path = f"/tags/{_escape(f'{repository}:{tag}')}/digest/{digest}"
        await self._send("PUT", path, manifest, media_type, index_children, deadline=deadline)

    async def get_tag(self, repository: str, tag: str, *, deadline: Deadline) -> Digest | None:
        """The digest that the tag points to, or None: there is no such tag."""
        found = await self.find_manifest(repository, tag, deadline=deadline)
        return None if found is None else found.digest

    # -- lookups ------------------------------------------------------------------------------

    async def find_manifest(
        self,
        repository: str,
        reference: Digest | str,
        *,
        deadline: Deadline,
        rely: bool = False,
        through: bool = True,
    ) -> FoundManifest | None:
        """The repository's manifest of a tag or digest, or None: it has none.

        The answer is never older than the question, and before it is None the other build-indexes
        that are not known to be down are asked. A tag may point to something of which there is no
        manifest record: the media type is then empty and the size 0.

        With `rely` the caller is about to push: what a backend does not tell soon counts as absent.
        Without `through` neither backends nor upstreams are asked: None may be what they have.
        """
        question = Question("manifest", repository, str(reference))
        found = await self._look_up(question, deadline, rely=rely, through=through)
        return found if isinstance(found, FoundManifest) else None

    async def has_blob(
        self, repository: str, digest: Digest, *, deadline: Deadline, rely: bool = False
    ) -> bool:
        """Whether the blob belongs to the repository; asked as in `find_manifest`.

        With `rely`, the blob is then safe from garbage collection for the grace time.
        """
        question = Question("blob", repository, str(digest))
        return bool(await self._look_up(question, deadline, rely=rely))

    async def _look_up(
        self, question: Question, deadline: Deadline, *, rely: bool, through: bool = True
    ) -> FoundManifest | bool | None:
        async def ask(host: str, within: Deadline) -> FoundManifest | Open | bool | None:
            lookups = self._lookups_at(host, rely=rely)
            answer: FoundManifest | Open | bool = await lookups.ask(
                question, within.at_most(READ_TIMEOUT)
            )
            return answer or None

        known: FoundManifest | Open | bool | None = await self._hosts.first_to_have_it(
            "POST", LOOKUP, ask, deadline
        )
        if isinstance(known, Open):
            return await self._look_through(question, deadline, rely=rely) if through else None
        return known

    async def _look_through(
        self, question: Question, deadline: Deadline, *, rely: bool
    ) -> FoundManifest | bool | None:
        """Have a build-index ask a backend or an upstream; what the first one answers is so.

        All clients ask the same one first, so that it is asked once, however many want to know.
        """
        request = lookup_request([question], rely=rely, through=True)

        async def ask(host: str, within: Deadline) -> Known | Open:
            answer = await self._hosts.call(host, "POST", LOOKUP, within, json=request)
            return lookup_answers([question], answer)[0]

        known = await self._hosts.first_to_answer(str(question), "POST", LOOKUP, ask, deadline)
        return None if isinstance(known, Open) else known or None

    def _lookups_at(self, host: str, *, rely: bool) -> Batches[Question, Known | Open]:
        lookups = self._lookups.get((host, rely))
        if lookups is None:
            lookups = self._lookups[host, rely] = self._new_lookups(host, rely=rely)
        return lookups

    def _new_lookups(self, host: str, *, rely: bool) -> Batches[Question, Known | Open]:
        async def send(questions: Sequence[Question], deadline: Deadline) -> list[Known | Open]:
            request = lookup_request(questions, rely=rely)
            answer = await self._hosts.call(host, "POST", LOOKUP, deadline, json=request)
            return lookup_answers(questions, answer)

        return Batches(send, self._http.url(host, LOOKUP), most=MAX_QUESTIONS, timeout=READ_TIMEOUT)

    # -- membership of blobs and manifests ----------------------------------------------------

    async def link_blob(self, repository: str, digest: Digest, *, deadline: Deadline) -> None:
        """Make the blob belong to the repository."""
        path = _path(repository, "blobs", digest)

        async def link(host: str, within: Deadline) -> bool | None:
            await self._hosts.call(host, "PUT", path, within.at_most(WRITE_TIMEOUT), expect=_DONE)
            return True

        async def attempt(within: Deadline) -> bool | None:
            return await self._hosts.first_to_have_it("PUT", path, link, within)

        await self._hosts.persistently("PUT", path, attempt, deadline)

    async def mount_blob(
        self, repository: str, digest: Digest, source: str | None, *, deadline: Deadline
    ) -> bool:
        """Make the blob belong to the repository if it belongs to `source` (None: to any).

        False when it does not; other build-indexes are asked before that, as in `find_manifest`.
        """
        path = _path(repository, "blobs", digest)
        params = {"mount": "any"} if source is None else {"from": source}

        async def mount(host: str, within: Deadline) -> bool | None:
            return await self._done_at(host, "PUT", path, within, params=params)

        async def attempt(within: Deadline) -> bool:
            return bool(await self._hosts.first_to_have_it("PUT", path, mount, within))

        return await self._hosts.persistently("PUT", path, attempt, deadline)

    async def put_manifest(
        self,
        repository: str,
        digest: Digest,
        body: bytes | None,
        media_type: str | None,
        *,
        tags: Sequence[str],
        deadline: Deadline,
        index_children: IndexChildren | None = None,
    ) -> None:
        """Make the manifest, and the tags that point to it, part of the repository, all or nothing.

        Without its bytes, the build-index reads them itself. Retries and errors are those of
        `put_tag`, but all that the manifest references must belong to the repository.
        """
        path = _path(repository, "manifests", digest)
        if tags:
            path += "?" + urlencode([("tag", tag) for tag in tags])
        await self._send("PUT", path, body, media_type, index_children, deadline=deadline)

    async def delete_tag(self, repository: str, tag: str, *, deadline: Deadline) -> bool:
        """Delete the tag, not what it points to; False: there is no such tag."""
        return await self._delete(_path(repository, "tags", tag), deadline)

    async def delete_manifest(self, repository: str, digest: Digest, *, deadline: Deadline) -> bool:
        """Delete the manifest and the tags that point to it; False: there is no such manifest."""
        return await self._delete(_path(repository, "manifests", digest), deadline)

    async def delete_blob(self, repository: str, digest: Digest, *, deadline: Deadline) -> bool:
        """Remove the blob from the repository; False: it does not belong to it.

        Raises `Unsupported` while a manifest of the repository references it.
        """
        return await self._delete(_path(repository, "blobs", digest), deadline)

    async def _delete(self, path: str, deadline: Deadline) -> bool:
        """False only when nobody had it, and no earlier try of this call can have deleted it."""
        lost = False

        async def delete(host: str, within: Deadline) -> bool | None:
            nonlocal lost
            try:
                deleted = await self._done_at(host, "DELETE", path, within)
            except Unreachable as error:
                lost = lost or may_have_arrived(error)
                raise
            return deleted or lost or None

        async def attempt(within: Deadline) -> bool:
            return bool(await self._hosts.first_to_have_it("DELETE", path, delete, within))

        return await self._hosts.persistently("DELETE", path, attempt, deadline)

    async def _done_at(
        self, host: str, method: str, path: str, deadline: Deadline, **request: Any
    ) -> bool | None:
        """True: the build-index did it; None: there is nothing to do it to."""
        try:
            within = deadline.at_most(WRITE_TIMEOUT)
            await self._hosts.call(host, method, path, within, expect=_DONE, **request)
        except NotFound as error:
            if error.code in _NOT_THERE:
                return None
            raise
        return True

    # -- lists --------------------------------------------------------------------------------

    async def referrers(
        self,
        repository: str,
        subject: Digest,
        *,
        artifact_type: str | None,
        n: int,
        last: str,
        deadline: Deadline,
    ) -> list[Referrer]:
        """At most `n` manifests whose subject is `subject`, sorted by digest, those after `last`.

        With `artifact_type`, only those of that type. `last` is the text of a digest, or empty.
        Fewer than `n` also when their annotations have `LARGE_REFERRERS` characters or more.
        """
        path = _path(repository, "referrers", subject)
        found: list[Referrer] = []
        characters = 0
        while len(found) < n and characters < LARGE_REFERRERS:
            params = {"n": str(n - len(found)), "last": last}
            if artifact_type is not None:
                params["artifact_type"] = artifact_type
            answer = await self._hosts.ask_any(
                "GET", path, deadline, within=READ_TIMEOUT, params=params
            )
            page = answer.decode(ReferrersPage)
            entries = [_referrer(entry, answer) for entry in page.referrers]
            found += entries
            characters += sum(entry.characters() for entry in entries)
            if not page.more or not page.referrers:
                break
            last = page.referrers[-1].digest
        return found

    async def tags(
        self, repository: str, n: int | None = None, last: str = "", *, deadline: Deadline
    ) -> list[str]:
        """At most `n` tags (None: all) after `last`, in ASCII order; raises `NameUnknown`."""
        path = f"/repositories/{_escape(repository)}/tags"
        names = await self._list(path, n, last, deadline)
        if names is None:
            raise NameUnknown(f"there is no tag in the repository {repository}")
        return names

    async def repositories(
        self, n: int | None = None, last: str = "", *, deadline: Deadline
    ) -> list[str]:
        """At most `n` repositories that have a tag (None: all) after `last`, in ASCII order."""
        return await self._list("/repositories", n, last, deadline) or []

    async def _list(
        self, path: str, n: int | None, last: str, deadline: Deadline
    ) -> list[str] | None:
        """The names; None when there is no such list at any build-index not known to be down."""
        names: list[str] = []
        while n is None or len(names) < n:
            params = {"last": last}
            if n is not None:
                params["n"] = str(n - len(names))
            answer = await self._hosts.first_to_have_it(
                "GET", path, partial(self._page_at, path, params), deadline
            )
            if answer is None:
                return names or None
            names += answer.names
            if not answer.more or not answer.names:
                break
            last = answer.names[-1]
        return names

    async def _page_at(
        self, path: str, params: dict[str, str], host: str, deadline: Deadline
    ) -> Page | None:
        try:
            within = deadline.at_most(READ_TIMEOUT)
            answer = await self._hosts.call(host, "GET", path, within, params=params)
        except NotFound as error:
            if error.code in _NOT_THERE:
                return None
            raise
        page = answer.decode(_Names)
        return Page(page.tags or page.repositories, page.more)

    async def wanted(self, digests: Sequence[Digest], *, deadline: Deadline) -> set[Digest]:
        """Those that any repository needs, as any build-index knows it.

        All build-indexes are asked: what one of them wants, the others may not know of yet. Raises
        `CallFailed` when one of them cannot be asked.
        """

        async def ask(host: str) -> set[str]:
            wanted: set[str] = set()
            for start in range(0, len(digests), MAX_QUESTIONS):
                part = [str(digest) for digest in digests[start : start + MAX_QUESTIONS]]
                answer = await self._hosts.call(
                    host, "POST", _WANTED, deadline, json=WantedRequest(part)
                )
                wanted.update(answer.decode(WantedAnswer).wanted)
            return wanted

        if missing := self._hosts.listed.missing():
            raise Unreachable("POST", _WANTED, "; ".join(missing))
        answers = await asyncio.gather(*map(ask, self._hosts.hosts), return_exceptions=True)
        wanted: set[str] = set()
        causes: list[CallFailed] = []
        for answer in answers:
            if isinstance(answer, CallFailed):
                causes.append(answer)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                wanted |= answer
        if causes:
            detail = f"not every build-index says what is wanted: {'; '.join(map(str, causes))}"
            raise combined("POST", _WANTED, detail, causes) from causes[0]
        return {digest for digest in digests if str(digest) in wanted}

    # -- health -------------------------------------------------------------------------------

    async def alive(self) -> list[str]:
        """Nothing if a build-index answers; else each of them and why it does not."""
        return await self._silent("/health")

    async def readiness(self) -> list[str]:
        """Nothing if a build-index can take a push; else each of them and why it cannot."""
        return await self._silent("/readiness")

    async def _silent(self, path: str) -> list[str]:
        if missing := self._hosts.listed.missing():
            return missing
        hosts = await silent(
            self._http, self._hosts.hosts, path, enough=1, timeout=READINESS_TIMEOUT
        )
        return [f"build-index {host}: {why}" for host, why in hosts.items()]

    # -- calls --------------------------------------------------------------------------------

    async def _send(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        media_type: str | None = None,
        index_children: IndexChildren | None = None,
        *,
        deadline: Deadline,
    ) -> None:
        request: dict[str, Any] = {"data": body, "expect": _DONE}
        if media_type and body is not None:
            request["headers"] = {"Content-Type": media_type}
        if index_children is not None:
            request["params"] = {"index_children": index_children}

        async def attempt(within: Deadline) -> Answer:
            return await self._hosts.ask_any(method, path, within, **request)

        await self._hosts.persistently(method, path, attempt, deadline)


class _Names(msgspec.Struct):
    more: bool
    tags: list[str] = []
    repositories: list[str] = []


def _referrer(entry: ReferrerEntry, answer: Answer) -> Referrer:
    return Referrer(
        digest_in(entry.digest, answer),
        entry.media_type,
        entry.size,
        entry.artifact_type,
        entry.annotations,
    )


def _path(repository: str, kind: str, name: Digest | str) -> str:
    return f"/repositories/{_escape(repository)}/{kind}/{_escape(str(name))}"


def _escape(text: str) -> str:
    return quote(text, safe="")
