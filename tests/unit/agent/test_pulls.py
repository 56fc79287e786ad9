# SPDX-License-Identifier: Apache-2.0

"""What an agent lets its host pull, while the build-index answers and while it does not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from shoal.agent.membership import Membership, Said
from shoal.agent.pulls import PATIENCE, SILENT_PATIENCE, Pulls
from shoal.agent.timeline import Journal
from shoal.model.digest import Digest
from shoal.model.errors import ApiError, BlobUnknown, ManifestUnknown
from shoal.model.manifest import MAX_MANIFEST_BYTES, FoundManifest
from shoal.model.media_types import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST
from shoal.store.memory import MemoryCache
from shoal.web.deadline import Deadline
from shoal.web.failures import Unreachable
from tests.unit.registry_fakes import MemoryBlob, MemoryIndex, MemoryOrigins

NAME, OTHER = "team/app", "other/app"
LAYER, CONFIG = bytes(range(256)) * 20, b"{}"
DIGEST = Digest.of(LAYER)
LONG = 20.0


def soon() -> Deadline:
    return Deadline.after(LONG)


@dataclass
class Index(MemoryIndex):
    """A build-index that cannot be asked when a test says so, and that is slow when it is held."""

    down: bool = False
    gate: asyncio.Event | None = None
    patience: list[float] = field(default_factory=list)
    """Seconds that were left for each answer."""

    async def find_manifest(
        self,
        repository: str,
        reference: Digest | str,
        *,
        deadline: Deadline,
        rely: bool = False,
        through: bool = True,
    ) -> FoundManifest | None:
        await self._ask(deadline)
        return await super().find_manifest(
            repository, reference, deadline=deadline, rely=rely, through=through
        )

    async def has_blob(
        self, repository: str, digest: Digest, *, deadline: Deadline, rely: bool = False
    ) -> bool:
        await self._ask(deadline)
        return await super().has_blob(repository, digest, deadline=deadline, rely=rely)

    async def get_tag(self, repository: str, tag: str, *, deadline: Deadline) -> Digest | None:
        await self._ask(deadline)
        return self.entries.get((repository, tag))

    async def _ask(self, deadline: Deadline) -> None:
        self.patience.append(deadline.remaining())
        if self.gate is not None:
            await self.gate.wait()
        if self.down:
            raise Unreachable("POST", "http://index-1:5003/internal/lookup", "refused")


@dataclass
class Disk:
    """Manifests on the disk."""

    files: dict[Digest, bytes] = field(default_factory=dict)
    full: bool = False

    def read_small(self, digest: Digest) -> bytes | None:
        return self.files.get(digest)


@dataclass
class Blobs:
    """The blobs that the swarm has: all that the origins have, and what other hosts have."""

    origins: MemoryOrigins
    disk: Disk
    hosts: dict[Digest, bytes] = field(default_factory=dict)
    begun: list[tuple[Digest, Said | None]] = field(default_factory=list)
    fetching: asyncio.Event = field(default_factory=asyncio.Event)
    opened: list[MemoryBlob] = field(default_factory=list)

    async def size(self, digest: Digest, deadline: Deadline, namespace: str = "") -> int | None:
        return await self.origins.stat(digest, deadline=deadline)

    async def fetch(self, digest: Digest, namespace: str, said: Said | None = None) -> None:
        self.begun.append((digest, said))
        self.fetching.set()

    async def open_blob(self, digest: Digest, namespace: str, deadline: Deadline) -> MemoryBlob:
        content = self.origins.blobs.get(digest, self.hosts.get(digest))
        if content is None:
            raise BlobUnknown(f"no origin has blob {digest}")
        blob = MemoryBlob(content)
        self.opened.append(blob)
        return blob

    async def keep_small(self, digest: Digest, data: bytes) -> None:
        if self.disk.full:
            raise OSError(28, "No space left on device")
        self.disk.files[digest] = data


class Agent:
    """An agent and the cluster that it asks."""

    def __init__(self, manifest_cache: int = 1024 * 1024) -> None:
        self.origins = MemoryOrigins()
        self.index = Index(self.origins)
        self.disk = Disk()
        self.blobs = Blobs(self.origins, self.disk)
        self.journal = Journal(0.0)
        self.pulls = Pulls(
            index=self.index,
            blobs=self.blobs,
            origins=self.origins,
            disk=self.disk,
            membership=Membership(),
            manifests=MemoryCache(manifest_cache),
            journal=self.journal,
        )

    def hold(self, content: bytes, *names: str) -> Digest:
        """Have a blob that belongs to repositories."""
        digest = self.origins.hold(content)
        self.index.links |= {(name, digest) for name in names}
        return digest

    async def push(self, body: bytes, tag: str = "v1", name: str = NAME) -> Digest:
        """Have a manifest whose parts are there, and a tag for it."""
        digest = self.origins.hold(body)
        await self.index.put_manifest(
            name, digest, body, None, tags=[tag], deadline=soon(), index_children="ignore"
        )
        return digest

    async def push_image(self, name: str = NAME) -> Digest:
        """Have an image of one layer."""
        self.hold(LAYER, name)
        self.hold(CONFIG, name)
        return await self.push(IMAGE, name=name)

    async def get_manifest(self, reference: Digest | str, name: str = NAME) -> bytes:
        """What GET of a manifest asks."""
        found = await self.pulls.find_manifest(name, reference, soon())
        return await self.pulls.manifest(name, found, soon())

    async def get_blob(self, digest: Digest, name: str = NAME) -> bytes:
        """What GET of a blob asks."""
        blob = await self.pulls.open_blob(name, digest, soon())
        content = b""
        async for part in blob.segments(0, blob.size):
            assert isinstance(part, bytes)
            content += part
        return content


def descriptor(kind: str, content: bytes) -> dict[str, object]:
    return {"mediaType": kind, "digest": str(Digest.of(content)), "size": len(content)}


def image(layer: bytes) -> bytes:
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(OCI_CONFIG, CONFIG),
        "layers": [descriptor(OCI_LAYER, layer)],
    }
    return json.dumps(document).encode()


def index_of(*children: bytes) -> bytes:
    entries = [descriptor(OCI_MANIFEST, child) for child in children]
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    return json.dumps(document).encode()


IMAGE = image(LAYER)

Read = Callable[[Agent, str, Digest], Awaitable[object]]


async def _stat(agent: Agent, name: str, digest: Digest) -> object:
    return await agent.pulls.stat_blob(name, digest, soon())


async def _open(agent: Agent, name: str, digest: Digest) -> object:
    return await agent.pulls.open_blob(name, digest, soon())


READS = pytest.mark.parametrize("read", [_stat, _open])


@pytest.fixture
def agent() -> Agent:
    return Agent()


async def refusal(read: Read, agent: Agent, name: str, digest: Digest) -> tuple[object, ...]:
    """All of a refusal that a client sees, without the digest and the name that it sent."""
    with pytest.raises(ApiError) as refused:
        await read(agent, name, digest)
    error = refused.value
    told = str(error.body()).replace(str(digest), "DIGEST").replace(name, "NAME")
    return error.status, told, error.headers


# -- while the build-index answers ------------------------------------------------------------


async def test_an_image_is_pulled_by_tag_and_by_digest(agent: Agent) -> None:
    digest = await agent.push_image()
    found = await agent.pulls.find_manifest(NAME, "v1", soon())
    assert found == FoundManifest(digest, OCI_MANIFEST, len(IMAGE))
    assert await agent.get_manifest("v1") == await agent.get_manifest(digest) == IMAGE
    assert await agent.pulls.stat_blob(NAME, DIGEST, soon()) == len(LAYER)
    assert await agent.get_blob(DIGEST) == LAYER
    assert await agent.pulls.resolve(NAME, "v1", soon()) == digest
    with pytest.raises(ManifestUnknown):
        await agent.pulls.resolve(NAME, "v2", soon())


@READS
async def test_a_foreign_blob_is_answered_as_one_that_nobody_has(agent: Agent, read: Read) -> None:
    agent.hold(LAYER, OTHER)
    foreign = await refusal(read, agent, NAME, DIGEST)
    nowhere = await refusal(read, agent, NAME, Digest.of(b"nobody has this"))
    agent.origins.failure = "down"
    unasked = await refusal(read, agent, NAME, DIGEST)
    agent.origins.failure = None
    agent.origins.blobs.clear()
    agent.index.links.add((NAME, DIGEST))
    linked = await refusal(read, agent, NAME, DIGEST)
    assert foreign == nowhere == unasked == linked
    assert foreign[0] == 404


async def test_nobody_has_the_agent_fetch_what_is_foreign(agent: Agent) -> None:
    agent.hold(LAYER, OTHER)
    with pytest.raises(BlobUnknown):
        await agent.get_blob(DIGEST)
    assert (agent.blobs.begun, agent.blobs.opened) == ([], [])


async def test_the_blobs_of_a_manifest_are_fetched_before_they_are_confirmed_and_sent_after(
    agent: Agent,
) -> None:
    image = await agent.push_image()
    await agent.get_manifest("v1")
    agent.index.gate = asyncio.Event()
    pulling = asyncio.create_task(agent.get_blob(DIGEST))
    async with asyncio.timeout(10):
        await agent.blobs.fetching.wait()
    assert agent.blobs.begun == [(DIGEST, Said(len(LAYER), image, 1))]
    assert agent.blobs.opened == []
    agent.index.gate.set()
    assert await pulling == LAYER


async def test_what_was_deleted_is_gone_at_once(agent: Agent) -> None:
    digest = await agent.push_image()
    await agent.get_manifest("v1")
    await agent.get_blob(DIGEST)
    await agent.index.delete_manifest(NAME, digest, deadline=soon())
    await agent.index.delete_blob(NAME, DIGEST, deadline=soon())
    for reference in ("v1", digest):
        with pytest.raises(ManifestUnknown):
            await agent.get_manifest(reference)
    for read in (_stat, _open):
        with pytest.raises(BlobUnknown):
            await read(agent, NAME, DIGEST)
    # And it does not come back when the build-index goes.
    agent.index.down = True
    with pytest.raises(Unreachable):
        await agent.get_manifest(digest)
    with pytest.raises(Unreachable):
        await agent.get_blob(DIGEST)


async def test_a_manifest_is_read_from_the_origins_once_and_then_from_memory(agent: Agent) -> None:
    await agent.push_image()
    await agent.get_manifest("v1")
    agent.origins.failure = "down"
    agent.disk.files.clear()
    assert await agent.get_manifest("v1") == IMAGE


async def test_without_memory_a_manifest_is_read_from_the_disk() -> None:
    agent = Agent(manifest_cache=0)
    await agent.push_image()
    await agent.get_manifest("v1")
    agent.origins.failure = "down"
    assert await agent.get_manifest("v1") == IMAGE


async def test_a_full_disk_does_not_keep_a_manifest_from_being_pulled(agent: Agent) -> None:
    agent.disk.full = True
    await agent.push_image()
    assert await agent.get_manifest("v1") == IMAGE


async def test_a_manifest_that_no_origin_has_is_unknown(agent: Agent) -> None:
    digest = await agent.push_image()
    del agent.origins.blobs[digest]
    with pytest.raises(ManifestUnknown):
        await agent.get_manifest("v1")


async def test_a_manifest_that_no_origin_gives_comes_from_hosts_that_have_it(agent: Agent) -> None:
    digest = await agent.push_image()
    agent.origins.failure = "down"
    agent.blobs.hosts[digest] = agent.origins.blobs.pop(digest)
    assert await agent.get_manifest("v1") == IMAGE
    assert [blob.closed for blob in agent.blobs.opened] == [True]


@pytest.mark.parametrize("content", [IMAGE + b" ", b"x" * (MAX_MANIFEST_BYTES + 1), None])
async def test_where_no_host_has_it_either_the_silence_of_the_origins_is_told(
    agent: Agent, content: bytes | None
) -> None:
    digest = await agent.push_image()
    agent.origins.failure = "down"
    del agent.origins.blobs[digest]
    if content is not None:
        agent.blobs.hosts[digest] = content
    with pytest.raises(Unreachable, match="down"):
        await agent.get_manifest("v1")


async def test_what_is_tagged_and_no_manifest_is_served_all_the_same(agent: Agent) -> None:
    digest = agent.origins.hold(b"a model, not an image")
    found = FoundManifest(digest, "application/octet-stream", 21)
    assert await agent.pulls.manifest(NAME, found, soon()) == b"a model, not an image"


async def test_listings_are_those_of_the_build_index(agent: Agent) -> None:
    digest = await agent.push_image()
    assert await agent.pulls.tags(NAME, 10, "", soon()) == ["v1"]
    assert await agent.pulls.repositories(10, "", soon()) == [NAME]
    assert await agent.pulls.referrers(NAME, digest, None, 10, "", soon()) == []


# -- while it does not ------------------------------------------------------------------------


async def test_a_pull_that_has_begun_goes_on(agent: Agent) -> None:
    digest = await agent.push_image()
    await agent.get_manifest("v1")
    agent.index.down = True
    assert await agent.pulls.stat_blob(NAME, DIGEST, soon()) == len(LAYER)
    assert await agent.get_blob(DIGEST) == LAYER
    assert await agent.get_blob(Digest.of(CONFIG)) == CONFIG
    assert await agent.get_manifest(digest) == IMAGE


async def test_a_pull_that_has_begun_with_an_index_goes_on_with_a_child(agent: Agent) -> None:
    child = await agent.push_image()
    await agent.push(index_of(IMAGE), "multi")
    await agent.get_manifest("multi")
    agent.index.down = True
    assert await agent.get_manifest(child) == IMAGE
    assert await agent.get_blob(DIGEST) == LAYER


async def test_an_index_vouches_for_no_child_that_the_repository_does_not_have(
    agent: Agent,
) -> None:
    child = await agent.push_image(OTHER)
    await agent.push(index_of(IMAGE), "sparse")
    await agent.get_manifest("sparse")
    agent.index.down = True
    with pytest.raises(Unreachable):
        await agent.get_manifest(child)


async def test_what_was_pulled_here_before_is_pulled_again_by_digest(agent: Agent) -> None:
    digest = await agent.push_image()
    agent.hold(b"pulled by itself", NAME)
    await agent.get_manifest("v1")
    await agent.get_blob(Digest.of(b"pulled by itself"))
    agent.index.down = True
    assert await agent.get_manifest(digest) == IMAGE
    assert await agent.get_blob(Digest.of(b"pulled by itself")) == b"pulled by itself"


async def test_a_tag_is_not_answered_from_memory(agent: Agent) -> None:
    await agent.push_image()
    await agent.get_manifest("v1")
    agent.index.down = True
    with pytest.raises(Unreachable):
        await agent.get_manifest("v1")


@READS
async def test_what_was_never_confirmed_is_refused_as_could_not_ask(
    agent: Agent, read: Read
) -> None:
    digest = await agent.push_image()
    agent.index.down = True
    with pytest.raises(Unreachable):
        await read(agent, NAME, DIGEST)
    with pytest.raises(Unreachable):
        await agent.get_manifest(digest)


@READS
async def test_what_was_confirmed_for_one_repository_holds_for_no_other(
    agent: Agent, read: Read
) -> None:
    await agent.push_image()
    await agent.get_manifest("v1")
    await read(agent, NAME, DIGEST)
    agent.index.down = True
    with pytest.raises(Unreachable):
        await read(agent, OTHER, DIGEST)


async def test_with_an_older_answer_at_hand_a_silent_build_index_is_not_waited_for(
    agent: Agent,
) -> None:
    digest = await agent.push_image()
    await agent.get_manifest("v1")
    await agent.get_blob(DIGEST)
    agent.index.patience.clear()
    await agent.get_manifest(digest)
    await agent.get_blob(DIGEST)
    await agent.pulls.stat_blob(NAME, DIGEST, soon())
    assert max(agent.index.patience) <= PATIENCE < LONG
    agent.index.patience.clear()
    await agent.get_manifest("v1")
    assert min(agent.index.patience) > PATIENCE


async def test_a_pull_of_many_layers_waits_for_a_silent_build_index_but_once(agent: Agent) -> None:
    await agent.push_image()
    await agent.get_manifest("v1")
    agent.index.down = True
    await agent.get_blob(DIGEST)
    agent.index.patience.clear()
    await agent.get_blob(Digest.of(CONFIG))
    assert max(agent.index.patience) <= SILENT_PATIENCE < PATIENCE
    agent.index.down = False
    await agent.get_blob(DIGEST)
    agent.index.patience.clear()
    await agent.get_blob(DIGEST)
    assert min(agent.index.patience) > SILENT_PATIENCE


async def test_children_that_could_not_be_looked_up_are_looked_up_with_the_next_pull(
    agent: Agent,
) -> None:
    child = await agent.push_image()
    multi = await agent.push(index_of(IMAGE), "multi")
    found = await agent.pulls.find_manifest(NAME, multi, soon())
    agent.index.down = True
    assert await agent.pulls.manifest(NAME, found, soon()) == index_of(IMAGE)
    agent.index.down = False
    await agent.get_manifest("multi")
    agent.index.down = True
    assert await agent.get_manifest(child) == IMAGE


# -- what is remembered for `shoal why`


async def test_the_journal_has_the_lookup_the_manifest_and_its_blobs() -> None:
    agent = Agent()
    image = await agent.push_image()
    found = await agent.pulls.find_manifest(NAME, "v1", soon())
    await agent.pulls.manifest(NAME, found, soon())
    lookup, record = agent.journal.lookup(NAME, "v1"), agent.journal.manifest(NAME, image)
    assert lookup is not None
    assert lookup.digest == image
    assert record is not None
    assert (set(record.blobs), record.source) == ({DIGEST, Digest.of(CONFIG)}, "origins")
    await agent.pulls.manifest(NAME, found, soon())
    again = agent.journal.manifest(NAME, image)
    assert again is not None
    assert (again.blobs, again.source) == (record.blobs, "memory")


async def test_the_journal_has_how_long_the_build_index_took_for_members_alone() -> None:
    agent = Agent()
    member, foreign = agent.hold(LAYER, NAME), agent.hold(CONFIG, OTHER)
    await agent.pulls.open_blob(NAME, member, soon())
    with pytest.raises(BlobUnknown):
        await agent.pulls.open_blob(NAME, foreign, soon())
    record = agent.journal.blob(member)
    assert record is not None
    assert record.membership is not None
    assert agent.journal.blob(foreign) is None
