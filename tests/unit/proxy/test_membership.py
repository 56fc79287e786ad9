# SPDX-License-Identifier: Apache-2.0
"""What a repository may read, mount and delete at the proxy: what belongs to it, and no more."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from shoal.model.digest import Digest
from shoal.model.errors import (
    ApiError,
    BlobUnknown,
    BlobUploadUnknown,
    Denied,
    ManifestBlobUnknown,
    ManifestUnknown,
    Unavailable,
    Unsupported,
)
from shoal.model.media_types import OCI_MANIFEST
from shoal.proxy.service import ProxyService
from shoal.registry.ports import StoredManifest
from shoal.web.failures import Unreachable
from tests.unit.proxy.memory_proxy import CONTENT, NAME, Proxy, chunk, image, soon

OTHER = "other/app"
DIGEST = Digest.of(CONTENT)

Read = Callable[[ProxyService, str, Digest], Awaitable[object]]


async def _stat(service: ProxyService, name: str, digest: Digest) -> object:
    return await service.stat_blob(name, digest, soon())


async def _open(service: ProxyService, name: str, digest: Digest) -> object:
    return await service.open_blob(name, digest, soon())


READS = pytest.mark.parametrize("read", [_stat, _open])


async def refusal(read: Read, proxy: Proxy, name: str, digest: Digest) -> tuple[object, ...]:
    """All of a refusal that a client sees, without the digest and the name that it sent."""
    with pytest.raises(ApiError) as refused:
        await read(proxy.service, name, digest)
    error = refused.value
    told = str(error.body()).replace(str(digest), "DIGEST").replace(name, "NAME")
    return error.status, told, error.headers


async def put(proxy: Proxy, body: bytes, tag: str = "v1", name: str = NAME) -> StoredManifest:
    return await proxy.service.put_manifest(name, tag, body, OCI_MANIFEST, soon())


async def tagged(proxy: Proxy) -> tuple[bytes, Digest]:
    """An image that was pushed, and its digest."""
    await proxy.push(CONTENT)
    await proxy.push(b"{}")
    body = image(CONTENT)
    return body, (await put(proxy, body)).digest


@READS
async def test_a_pushed_blob_is_read_by_its_repository(proxy: Proxy, read: Read) -> None:
    await proxy.push(CONTENT)
    assert await read(proxy.service, NAME, DIGEST)


@READS
async def test_a_foreign_blob_is_answered_as_one_that_nobody_has(proxy: Proxy, read: Read) -> None:
    await proxy.push(CONTENT, OTHER)
    foreign = await refusal(read, proxy, NAME, DIGEST)
    nowhere = await refusal(read, proxy, NAME, Digest.of(b"nobody has this"))
    assert foreign == nowhere
    assert foreign[0] == 404


@READS
async def test_a_foreign_blob_is_told_apart_by_no_failure_of_the_origins(
    proxy: Proxy, read: Read
) -> None:
    await proxy.push(CONTENT, OTHER)
    before = await refusal(read, proxy, NAME, DIGEST)
    proxy.origins.failure = "down"
    assert await refusal(read, proxy, NAME, DIGEST) == before


@READS
async def test_a_link_without_content_is_answered_as_one_that_nobody_has(
    proxy: Proxy, read: Read
) -> None:
    nowhere = await refusal(read, proxy, NAME, DIGEST)
    await proxy.index.link_blob(NAME, DIGEST, deadline=soon())
    assert await refusal(read, proxy, NAME, DIGEST) == nowhere


@READS
async def test_nothing_is_read_while_no_build_index_answers(proxy: Proxy, read: Read) -> None:
    await proxy.push(CONTENT)
    proxy.index.down = True
    with pytest.raises(Unreachable):
        await read(proxy.service, NAME, DIGEST)
    assert all(blob.closed for blob in proxy.origins.opened)


async def test_a_manifest_is_found_in_its_own_repository_alone(proxy: Proxy) -> None:
    _, digest = await tagged(proxy)
    for reference in ("v1", digest):
        with pytest.raises(ManifestUnknown):
            await proxy.service.find_manifest(OTHER, reference, soon())
    proxy.index.down = True
    with pytest.raises(Unreachable):
        await proxy.service.find_manifest(NAME, digest, soon())


async def test_a_manifest_cannot_take_in_what_belongs_to_others(proxy: Proxy) -> None:
    await proxy.push(CONTENT, OTHER)
    await proxy.push(b"{}")
    with pytest.raises(ManifestBlobUnknown):
        await put(proxy, image(CONTENT))


# -- mounts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("copies, mounted", [(0, False), (1, False), (2, True), (3, True)])
@pytest.mark.parametrize("source", [OTHER, None])
async def test_a_mount_needs_the_write_quorum(
    proxy: Proxy, source: str | None, copies: int, mounted: bool
) -> None:
    proxy.hold(CONTENT, OTHER, copies=copies)
    assert await proxy.service.mount(NAME, DIGEST, source, soon()) is mounted


async def test_what_is_mounted_is_read_by_both(proxy: Proxy) -> None:
    await proxy.push(CONTENT, OTHER)
    assert await proxy.service.mount(NAME, DIGEST, OTHER, soon())
    for name in (NAME, OTHER):
        assert await proxy.service.stat_blob(name, DIGEST, soon()) == len(CONTENT)


async def test_a_mount_from_who_does_not_have_it_is_as_from_nowhere(proxy: Proxy) -> None:
    await proxy.push(CONTENT, OTHER)
    assert not await proxy.service.mount(NAME, DIGEST, "third/app", soon())
    assert not await proxy.service.mount(NAME, Digest.of(b"nobody has this"), OTHER, soon())
    with pytest.raises(BlobUnknown):
        await proxy.service.stat_blob(NAME, DIGEST, soon())


async def test_content_that_belongs_to_nobody_cannot_be_mounted(proxy: Proxy) -> None:
    proxy.origins.hold(CONTENT)
    assert not await proxy.service.mount(NAME, DIGEST, None, soon())


async def test_of_a_mount_and_a_deletion_at_the_source_either_comes_first(proxy: Proxy) -> None:
    await proxy.push(CONTENT, OTHER)
    mounting = proxy.service.mount(NAME, DIGEST, OTHER, soon())
    deleting = proxy.service.delete_blob(OTHER, DIGEST, soon())
    mounted, _ = await asyncio.gather(mounting, deleting)
    if mounted:
        assert await proxy.service.stat_blob(NAME, DIGEST, soon()) == len(CONTENT)
    else:
        with pytest.raises(BlobUnknown):
            await proxy.service.stat_blob(NAME, DIGEST, soon())
    with pytest.raises(BlobUnknown):
        await proxy.service.stat_blob(OTHER, DIGEST, soon())


# -- the end of an upload ---------------------------------------------------------------------


async def test_nothing_is_linked_before_it_is_verified(proxy: Proxy) -> None:
    await proxy.push(CONTENT, OTHER)
    upload = await proxy.service.start_upload(NAME)
    with pytest.raises(ApiError):
        await proxy.service.finish(NAME, upload, DIGEST, chunk(b"guessed"), soon())
    with pytest.raises(BlobUnknown):
        await proxy.service.open_blob(NAME, DIGEST, soon())


async def test_a_blob_that_cannot_be_linked_is_not_acknowledged(proxy: Proxy) -> None:
    proxy.index.refusing_links = True
    upload = await proxy.service.start_upload(NAME)
    with pytest.raises(Unavailable, match=r"index-1:5003.*push it again"):
        await proxy.service.finish(NAME, upload, DIGEST, chunk(CONTENT), soon())
    with pytest.raises(BlobUnknown):
        await proxy.service.stat_blob(NAME, DIGEST, soon())
    proxy.index.refusing_links = False
    await proxy.service.finish(NAME, upload, DIGEST, None, soon())
    assert await proxy.service.stat_blob(NAME, DIGEST, soon()) == len(CONTENT)
    assert proxy.files() == []


async def test_a_blob_that_cannot_be_stored_is_not_read_although_it_is_linked(proxy: Proxy) -> None:
    proxy.origins.failure = "origin-1:5002 refused"
    with pytest.raises(Unavailable):
        await proxy.push(CONTENT)
    proxy.origins.failure = None
    with pytest.raises(BlobUnknown):
        await proxy.service.stat_blob(NAME, DIGEST, soon())


async def test_an_upload_that_never_was_is_not_finished_by_what_others_have(proxy: Proxy) -> None:
    await proxy.push(CONTENT, OTHER)
    upload = await proxy.service.start_upload(NAME)
    await proxy.service.cancel(NAME, upload)
    with pytest.raises(BlobUploadUnknown):
        await proxy.service.finish(NAME, upload, DIGEST, None, soon())


# -- deletions --------------------------------------------------------------------------------


async def test_a_deleted_tag_is_gone_at_once_and_its_manifest_is_not(proxy: Proxy) -> None:
    _, digest = await tagged(proxy)
    await proxy.service.delete_tag(NAME, "v1", soon())
    with pytest.raises(ManifestUnknown):
        await proxy.service.find_manifest(NAME, "v1", soon())
    assert (await proxy.service.find_manifest(NAME, digest, soon())).digest == digest
    with pytest.raises(ManifestUnknown):
        await proxy.service.delete_tag(NAME, "v1", soon())


async def test_a_deleted_manifest_is_gone_at_once_with_its_tags(proxy: Proxy) -> None:
    _, digest = await tagged(proxy)
    await proxy.service.manifest(
        NAME, await proxy.service.find_manifest(NAME, digest, soon()), soon()
    )
    await proxy.service.delete_manifest(NAME, digest, soon())
    for reference in ("v1", digest):
        with pytest.raises(ManifestUnknown):
            await proxy.service.find_manifest(NAME, reference, soon())
    with pytest.raises(ManifestUnknown):
        await proxy.service.delete_manifest(NAME, digest, soon())


async def test_a_deleted_blob_is_gone_at_once_from_its_repository_alone(proxy: Proxy) -> None:
    await proxy.push(CONTENT)
    await proxy.push(CONTENT, OTHER)
    await proxy.service.delete_blob(NAME, DIGEST, soon())
    for read in (_stat, _open):
        with pytest.raises(BlobUnknown):
            await read(proxy.service, NAME, DIGEST)
        assert await read(proxy.service, OTHER, DIGEST)
    with pytest.raises(BlobUnknown):
        await proxy.service.delete_blob(NAME, DIGEST, soon())


async def test_a_blob_that_a_manifest_needs_is_not_deleted(proxy: Proxy) -> None:
    _, digest = await tagged(proxy)
    with pytest.raises(Unsupported, match=str(digest)):
        await proxy.service.delete_blob(NAME, DIGEST, soon())
    await proxy.service.delete_manifest(NAME, digest, soon())
    await proxy.service.delete_blob(NAME, DIGEST, soon())


async def test_what_only_a_backend_has_is_told_to_members_alone(proxy: Proxy) -> None:
    proxy.origins.backed[NAME, DIGEST] = len(CONTENT)
    with pytest.raises(BlobUnknown):
        await proxy.service.stat_blob(NAME, DIGEST, soon())
    await proxy.index.link_blob(NAME, DIGEST, deadline=soon())
    assert await proxy.service.stat_blob(NAME, DIGEST, soon()) == len(CONTENT)


async def test_a_push_that_the_origins_would_refuse_is_not_begun(proxy: Proxy) -> None:
    proxy.origins.denied.add(NAME)
    with pytest.raises(Denied):
        await proxy.service.start_upload(NAME)
    await proxy.push(CONTENT, OTHER)
    assert proxy.origins.namespaces == [(DIGEST, OTHER)]
