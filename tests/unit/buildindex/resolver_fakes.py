# SPDX-License-Identifier: Apache-2.0
"""What a resolution asks, in memory; and manifests to resolve."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable

from shoal.buildindex.config import ResolverConfig, TagTypeConfig
from shoal.buildindex.resolver import Candidate, Resolved, Resolver
from shoal.buildindex.tag_types import TagTypes
from shoal.model.digest import Digest
from shoal.model.manifest import IndexChildren
from shoal.model.media_types import OCI_INDEX, OCI_MANIFEST
from shoal.origin.client import Presence
from shoal.queue.retry import RetryPolicy
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, NotFound, Unreachable, combined

HOSTS = ("o1", "o2", "o3")
DOWN = Unreachable("GET", "http://o3/", "connection refused")


class FakeOrigins:
    """Blobs in memory, on hosts that can be down, or late to show what they have."""

    members = HOSTS

    def __init__(self) -> None:
        self.backed: dict[Digest, int] = {}
        """Sizes of what the backend has."""

        self.blobs: dict[Digest, tuple[bytes, set[str]]] = {}
        self.down: set[str] = set()
        self.repaired: list[Digest] = []
        self.repair_fails = False
        self.batches: list[list[Digest]] = []
        self.kept: set[Digest] = set()
        self.reads: list[Digest] = []
        self.hidden: dict[Digest, int] = {}
        """How often each blob is still said not to be there."""
        self.refusal: CallFailed | None = None
        """What all hosts answer."""

    def put(self, content: bytes, hosts: Collection[str] = HOSTS) -> Digest:
        self.blobs[Digest.of(content)] = (content, set(hosts))
        return Digest.of(content)

    async def read(
        self, digest: Digest, *, deadline: Deadline, limit: int, namespace: str = ""
    ) -> bytes:
        assert not deadline.expired
        self.reads.append(digest)
        if self.refusal is not None:
            raise combined("GET", f"/{digest}", "refused", [self.refusal] * len(HOSTS))
        content, hosts = self.blobs.get(digest, (b"", set()))
        if self._hidden(digest):
            raise NotFound("GET", f"http://o1/{digest}", "not there")
        if hosts - self.down:
            assert len(content) <= limit
            return content
        raise DOWN if self.down else NotFound("GET", f"http://o1/{digest}", "not there")

    async def stat(
        self, digest: Digest, *, deadline: Deadline, keep: bool = False, namespace: str = ""
    ) -> int | None:
        assert not deadline.expired
        assert not keep
        return self.backed.get(digest)

    async def stat_many(
        self, digests: Iterable[Digest], *, deadline: Deadline, keep: bool = False
    ) -> Presence:
        assert not deadline.expired
        wanted = list(digests)
        self.kept.update(wanted if keep else ())
        self.batches.append(wanted)
        if self.refusal is not None:
            return Presence({}, {}, dict.fromkeys(HOSTS, self.refusal))
        copies = {
            digest: frozenset(hosts)
            for digest in wanted
            if not self._hidden(digest)
            and (hosts := self.blobs.get(digest, (b"", set[str]()))[1] - self.down)
        }
        sizes = {digest: len(self.blobs[digest][0]) for digest in copies}
        unasked: dict[str, CallFailed] = dict.fromkeys(self.down, DOWN)
        return Presence(sizes, copies, unasked)

    def _hidden(self, digest: Digest) -> bool:
        left = self.hidden.get(digest, 0)
        self.hidden[digest] = left - 1
        return left > 0

    async def ensure_copies(
        self, digest: Digest, holders: Collection[str], *, deadline: Deadline
    ) -> int:
        assert holders
        assert not deadline.expired
        self.repaired.append(digest)
        if self.repair_fails:
            raise DOWN
        self.blobs[digest][1].update(set(HOSTS) - self.down)
        return len(self.blobs[digest][1])


class FakeMembership:
    """Everything is in every repository, but for what is outside, for ever or for a while."""

    def __init__(self) -> None:
        self.no_blobs: set[Digest] = set()
        self.no_manifests: set[Digest] = set()
        self.late: dict[Digest, int] = {}
        """How often each digest is still said not to be there."""
        self.failure: Exception | None = None
        self.questions: list[tuple[str, set[Digest], set[Digest]]] = []

    async def absent(
        self, repository: str, blobs: Collection[Digest], manifests: Collection[Digest]
    ) -> set[Digest]:
        self.questions.append((repository, set(blobs), set(manifests)))
        if self.failure is not None:
            raise self.failure
        late = {digest for digest in {*blobs, *manifests} if self.late.get(digest, 0) > 0}
        for digest in late:
            self.late[digest] -= 1
        return late | (set(blobs) & self.no_blobs) | (set(manifests) & self.no_manifests)


def descriptor(digest: Digest, media_type: str = "application/x") -> dict[str, object]:
    return {"mediaType": media_type, "digest": str(digest), "size": 1}


def image(origins: FakeOrigins, name: bytes = b"", hosts: Collection[str] = HOSTS) -> bytes:
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": descriptor(origins.put(b"config" + name, hosts)),
            "layers": [descriptor(origins.put(b"layer" + name, hosts))],
        }
    ).encode()


def index(*children: Digest) -> bytes:
    manifests = [descriptor(child, OCI_MANIFEST) for child in children]
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}).encode()


QUICK = RetryPolicy(initial=0.001, attempts=4)
CONFIG = ResolverConfig(manifest=QUICK, existence=QUICK)


async def resolve(
    origins: FakeOrigins,
    manifest: bytes,
    *,
    body: bool = True,
    content_type: str | None = None,
    children: IndexChildren | None = None,
    config: ResolverConfig = CONFIG,
    tag_types: Collection[TagTypeConfig] = (),
    within: float = 5.0,
    membership: FakeMembership | None = None,
    adopt: bool = False,
    has_backend: bool = False,
) -> Resolved:
    resolver = Resolver(
        origins,
        membership or FakeMembership(),
        2,
        config,
        TagTypes(list(tag_types)),
        has_backend=lambda _: has_backend,
    )
    return await resolver.resolve(
        Candidate(
            name="team/app:v1",
            repository="team/app",
            digest=Digest.of(manifest),
            body=manifest if body else None,
            content_type=content_type,
            index_children=children,
            adopt=adopt,
        ),
        deadline=Deadline.after(within),
    )
