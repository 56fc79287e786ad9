# SPDX-License-Identifier: Apache-2.0
"""What the proxy does with uploads and manifests, over origins and a build-index in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shoal.model.digest import Digest
from shoal.model.errors import (
    BlobUnknown,
    BlobUploadUnknown,
    DigestInvalid,
    ManifestBlobUnknown,
    ManifestInvalid,
    ManifestUnknown,
    SizeInvalid,
    Unavailable,
    UploadConflict,
    UploadOutOfOrder,
)
from shoal.model.manifest import FoundManifest
from shoal.model.media_types import OCI_MANIFEST
from shoal.proxy.uploads import Uploads
from shoal.registry.ports import Chunk, ClientGone, ClientStalled, StoredManifest
from shoal.store.uploads import UploadSessions
from shoal.web.deadline import Deadline
from shoal.web.failures import Unreachable
from tests.unit.proxy.memory_proxy import CONTENT, NAME, Proxy, chunk, image, soon
from tests.unit.registry_fakes import QUORUM


async def test_a_blob_is_handed_to_the_origins_and_nothing_stays(proxy: Proxy) -> None:
    upload = await proxy.service.start_upload(NAME)
    assert await proxy.service.append(NAME, upload, chunk(CONTENT[:100], CONTENT[100:300])) == 300
    assert await proxy.service.upload_size(NAME, upload) == 300
    digest = Digest.of(CONTENT)
    await proxy.service.finish(NAME, upload, digest, chunk(CONTENT[300:]), soon())
    assert proxy.origins.blobs[digest] == CONTENT
    assert proxy.files() == []
    with pytest.raises(BlobUploadUnknown):
        await proxy.service.upload_size(NAME, upload)


async def test_a_sha512_digest_is_verified(proxy: Proxy) -> None:
    upload = await proxy.service.start_upload(NAME)
    digest = Digest.of(CONTENT, "sha512")
    await proxy.service.finish(NAME, upload, digest, chunk(CONTENT), soon())
    assert proxy.origins.blobs[digest] == CONTENT
    other = await proxy.service.start_upload(NAME)
    with pytest.raises(DigestInvalid):
        await proxy.service.finish(NAME, other, digest, chunk(CONTENT[1:]), soon())


async def test_an_empty_blob_is_a_blob(proxy: Proxy) -> None:
    upload = await proxy.service.start_upload(NAME)
    await proxy.service.finish(NAME, upload, Digest.of(b""), None, soon())
    assert proxy.origins.blobs[Digest.of(b"")] == b""


async def test_a_wrong_digest_keeps_nothing(proxy: Proxy) -> None:
    upload = await proxy.service.start_upload(NAME)
    with pytest.raises(DigestInvalid) as refused:
        await proxy.service.finish(NAME, upload, Digest.of(b"other"), chunk(CONTENT), soon())
    assert str(Digest.of(CONTENT)) in refused.value.message
    assert proxy.files() == []
    assert not proxy.origins.blobs


async def test_a_failed_quorum_keeps_the_upload_for_another_put(proxy: Proxy) -> None:
    upload = await proxy.service.start_upload(NAME)
    proxy.origins.failure = "origin-1:5002 refused"
    digest = Digest.of(CONTENT)
    with pytest.raises(Unavailable, match="origin-1:5002 refused"):
        await proxy.service.finish(NAME, upload, digest, chunk(CONTENT), soon())
    assert await proxy.service.upload_size(NAME, upload) == len(CONTENT)
    proxy.origins.failure = None
    await proxy.service.finish(NAME, upload, digest, None, soon())
    assert proxy.origins.blobs[digest] == CONTENT


async def test_a_put_repeated_after_its_answer_was_lost_succeeds(proxy: Proxy) -> None:
    upload = await proxy.service.start_upload(NAME)
    digest = Digest.of(CONTENT)
    await proxy.service.finish(NAME, upload, digest, chunk(CONTENT), soon())
    await proxy.service.finish(NAME, upload, digest, None, soon())


async def test_a_put_to_no_upload_fails_when_the_blob_is_below_the_quorum(proxy: Proxy) -> None:
    digest = proxy.hold(CONTENT, copies=QUORUM - 1)
    with pytest.raises(BlobUploadUnknown):
        await proxy.service.finish(NAME, "0" * 32 + "-" + "0" * 16, digest, None, soon())


async def test_a_repeated_put_is_to_be_sent_again_while_origins_cannot_say_what_they_have(
    proxy: Proxy,
) -> None:
    upload = await proxy.service.start_upload(NAME)
    digest = Digest.of(CONTENT)
    await proxy.service.finish(NAME, upload, digest, chunk(CONTENT), soon())
    proxy.origins.copies[digest], proxy.origins.silent = QUORUM - 1, {"b:1"}
    with pytest.raises(Unavailable, match=r"1 of 2 copies were found: .*b:1.*send .* again"):
        await proxy.service.finish(NAME, upload, digest, None, soon())
    proxy.origins.copies[digest], proxy.origins.silent = QUORUM, {"c:1"}
    await proxy.service.finish(NAME, upload, digest, None, soon())


async def test_a_put_sent_again_while_the_first_still_stores_waits_for_it(proxy: Proxy) -> None:
    upload = await proxy.service.start_upload(NAME)
    await proxy.service.append(NAME, upload, chunk(CONTENT))
    proxy.origins.gate = asyncio.Event()
    digest = Digest.of(CONTENT)
    first = asyncio.create_task(proxy.service.finish(NAME, upload, digest, None, soon()))
    await proxy.origins.uploading.wait()
    second = asyncio.create_task(proxy.service.finish(NAME, upload, digest, None, soon()))
    with pytest.raises(UploadConflict):
        await proxy.service.append(NAME, upload, chunk(b"more"))
    with pytest.raises(UploadConflict):
        await proxy.service.finish(NAME, upload, digest, None, Deadline.after(0))
    proxy.origins.gate.set()
    await asyncio.gather(first, second)


async def test_two_chunks_at_the_same_time_conflict(proxy: Proxy) -> None:
    upload = await proxy.service.start_upload(NAME)
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield CONTENT[:10]
        begun.set()
        await go_on.wait()
        yield CONTENT[10:20]

    first = asyncio.create_task(proxy.service.append(NAME, upload, Chunk(slow())))
    await begun.wait()
    with pytest.raises(UploadConflict):
        await proxy.service.append(NAME, upload, chunk(b"intruder"))
    with pytest.raises(UploadConflict):
        await proxy.service.cancel(NAME, upload)
    go_on.set()
    assert await first == 20
    await proxy.service.finish(NAME, upload, Digest.of(CONTENT), chunk(CONTENT[20:]), soon())


async def test_the_time_the_client_takes_is_not_the_time_of_storing(proxy: Proxy) -> None:
    upload = await proxy.service.start_upload(NAME)
    deadline = Deadline.after(0.05)

    async def slower_than_the_deadline() -> AsyncIterator[bytes]:
        await asyncio.sleep(deadline.remaining() + 0.01)
        yield CONTENT

    body = Chunk(slower_than_the_deadline())
    await proxy.service.finish(NAME, upload, Digest.of(CONTENT), body, deadline)
    assert proxy.origins.deadlines[0] > 0


@pytest.mark.parametrize("offset", [0, 99, 101, 10**15])
async def test_a_chunk_out_of_order_is_not_appended(proxy: Proxy, offset: int) -> None:
    upload = await proxy.service.start_upload(NAME)
    await proxy.service.append(NAME, upload, chunk(CONTENT[:100], offset=0, size=100))
    with pytest.raises(UploadOutOfOrder):
        await proxy.service.append(NAME, upload, chunk(b"x" * 10, offset=offset, size=10))
    with pytest.raises(UploadOutOfOrder):
        await proxy.service.finish(
            NAME, upload, Digest.of(CONTENT), chunk(b"x", offset=offset, size=1), soon()
        )
    assert await proxy.service.upload_size(NAME, upload) == 100
    rest = chunk(CONTENT[100:], offset=100, size=len(CONTENT) - 100)
    await proxy.service.finish(NAME, upload, Digest.of(CONTENT), rest, soon())


async def test_a_chunk_must_have_the_size_it_names(proxy: Proxy) -> None:
    upload = await proxy.service.start_upload(NAME)
    with pytest.raises(SizeInvalid):
        await proxy.service.append(NAME, upload, chunk(CONTENT[:50], size=60))
    assert await proxy.service.upload_size(NAME, upload) == 50
    with pytest.raises(SizeInvalid):
        await proxy.service.append(NAME, upload, chunk(CONTENT[50:100], b"surplus", size=50))
    assert await proxy.service.upload_size(NAME, upload) == 100


async def test_what_came_before_the_client_vanished_is_kept(proxy: Proxy) -> None:
    upload = await proxy.service.start_upload(NAME)

    async def vanishing() -> AsyncIterator[bytes]:
        yield CONTENT[:70]
        raise ClientGone("connection reset")

    with pytest.raises(ClientGone):
        await proxy.service.append(NAME, upload, Chunk(vanishing(), size=500))
    assert await proxy.service.upload_size(NAME, upload) == 70
    await proxy.service.finish(NAME, upload, Digest.of(CONTENT), chunk(CONTENT[70:]), soon())


async def test_a_client_that_stalls_is_let_go_and_may_resume(tmp_path: Path) -> None:
    proxy = Proxy(tmp_path / "uploads", idle_timeout=0.05)
    upload = await proxy.service.start_upload(NAME)

    async def stalling() -> AsyncIterator[bytes]:
        yield CONTENT[:70]
        await asyncio.Event().wait()

    with pytest.raises(ClientStalled):
        await proxy.service.append(NAME, upload, Chunk(stalling()))
    await proxy.service.finish(NAME, upload, Digest.of(CONTENT), chunk(CONTENT[70:]), soon())


async def test_an_upload_goes_on_after_a_restart(proxy: Proxy) -> None:
    upload = await proxy.service.start_upload(NAME)
    await proxy.service.append(NAME, upload, chunk(CONTENT[:1000]))
    service = proxy.start()
    assert await service.upload_size(NAME, upload) == 1000
    await service.finish(NAME, upload, Digest.of(CONTENT), chunk(CONTENT[1000:]), soon())
    assert proxy.origins.blobs[Digest.of(CONTENT)] == CONTENT


async def test_an_upload_belongs_to_its_repository(proxy: Proxy) -> None:
    upload = await proxy.service.start_upload(NAME)
    with pytest.raises(BlobUploadUnknown):
        await proxy.service.append("other/app", upload, chunk(CONTENT))
    with pytest.raises(BlobUploadUnknown):
        await proxy.service.cancel("other/app", upload)
    assert await proxy.service.upload_size(NAME, upload) == 0


@pytest.mark.parametrize("upload", ["", "x", "../../etc/passwd", "0" * 32, "0" * 32 + "-"])
async def test_an_id_that_was_never_given_is_unknown(proxy: Proxy, upload: str) -> None:
    with pytest.raises(BlobUploadUnknown):
        await proxy.service.upload_size(NAME, upload)


async def test_an_upload_that_nobody_continues_expires(proxy: Proxy) -> None:
    sessions = UploadSessions(proxy.folder)
    uploads = Uploads(sessions, idle_timeout=10, name="proxy:1")
    upload = await uploads.start(NAME)
    expiry = asyncio.create_task(uploads.expire(ttl=0.02))
    async with asyncio.timeout(10):
        while proxy.files():  # noqa: ASYNC110 -- a file goes without telling
            await asyncio.sleep(0.005)
    assert await uploads.find(NAME, upload) is None
    expiry.cancel()


async def test_a_cancelled_upload_is_gone(proxy: Proxy) -> None:
    upload = await proxy.service.start_upload(NAME)
    await proxy.service.append(NAME, upload, chunk(CONTENT))
    await proxy.service.cancel(NAME, upload)
    assert proxy.files() == []
    with pytest.raises(BlobUploadUnknown):
        await proxy.service.cancel(NAME, upload)


async def test_a_tag_names_the_manifest_once_all_it_needs_is_there(proxy: Proxy) -> None:
    body = image(CONTENT)
    with pytest.raises(ManifestBlobUnknown):
        await proxy.service.put_manifest(NAME, "v1", body, OCI_MANIFEST, soon())
    with pytest.raises(ManifestUnknown):
        await proxy.service.find_manifest(NAME, "v1", soon())
    proxy.hold(CONTENT)
    proxy.hold(b"{}")
    stored = await proxy.service.put_manifest(NAME, "v1", body, OCI_MANIFEST, soon())
    assert stored == StoredManifest(Digest.of(body))
    found = await proxy.service.find_manifest(NAME, "v1", soon())
    assert found == FoundManifest(Digest.of(body), OCI_MANIFEST, len(body))
    assert await proxy.service.manifest(NAME, found, soon()) == body
    assert await proxy.service.tags(NAME, 10, "", soon()) == ["v1"]
    assert proxy.files() == []


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
async def test_a_manifest_pushed_by_digest_gets_no_tag(proxy: Proxy, algorithm: str) -> None:
    body = image(CONTENT)
    digest = Digest.of(body, algorithm)
    with pytest.raises(ManifestBlobUnknown):
        await proxy.service.put_manifest(NAME, digest, body, OCI_MANIFEST, soon())
    proxy.hold(CONTENT)
    proxy.hold(b"{}")
    stored = await proxy.service.put_manifest(NAME, digest, body, OCI_MANIFEST, soon())
    assert stored.digest == digest
    found = await proxy.service.find_manifest(NAME, digest, soon())
    assert await proxy.service.manifest(NAME, found, soon()) == body
    assert await proxy.service.tags(NAME, 10, "", soon()) == []


async def test_a_manifest_pushed_by_digest_gets_the_tags_that_come_with_it(proxy: Proxy) -> None:
    proxy.hold(CONTENT)
    proxy.hold(b"{}")
    body, subject = image(CONTENT, subject=b"pushed later"), Digest.of(b"pushed later")
    digest = Digest.of(body)
    stored = await proxy.service.put_manifest(
        NAME, digest, body, OCI_MANIFEST, soon(), tags=["v1", "latest"]
    )
    assert stored == StoredManifest(digest, subject, ("v1", "latest"))
    assert await proxy.service.tags(NAME, 10, "", soon()) == ["latest", "v1"]
    referrers = await proxy.service.referrers(NAME, subject, None, 10, "", soon())
    assert [referrer.digest for referrer in referrers] == [digest]
    assert await proxy.service.referrers(NAME, subject, "text/sbom", 10, "", soon()) == []
    assert await proxy.service.referrers(NAME, subject, None, 10, str(digest), soon()) == []


async def test_a_manifest_must_have_the_digest_it_is_pushed_by(proxy: Proxy) -> None:
    with pytest.raises(DigestInvalid):
        await proxy.service.put_manifest(
            NAME, Digest.of(b"other"), image(CONTENT), OCI_MANIFEST, soon()
        )
    assert not proxy.origins.blobs


async def test_what_is_no_manifest_is_not_stored(proxy: Proxy) -> None:
    with pytest.raises(ManifestInvalid):
        await proxy.service.put_manifest(NAME, "v1", b"[]", OCI_MANIFEST, soon())
    assert not proxy.origins.blobs


async def test_a_manifest_whose_quorum_failed_gets_no_tag(proxy: Proxy) -> None:
    proxy.hold(CONTENT)
    proxy.hold(b"{}")
    proxy.origins.failure = "all origins are down"
    with pytest.raises(Unavailable, match="all origins are down"):
        await proxy.service.put_manifest(NAME, "v1", image(CONTENT), OCI_MANIFEST, soon())
    assert not proxy.index.entries
    assert proxy.files() == []


async def test_not_there_and_could_not_ask_are_different_answers(proxy: Proxy) -> None:
    digest = Digest.of(CONTENT)
    found = FoundManifest(digest, OCI_MANIFEST, len(CONTENT))
    proxy.index.links.add((NAME, digest))
    with pytest.raises(BlobUnknown):
        await proxy.service.stat_blob(NAME, digest, soon())
    with pytest.raises(BlobUnknown):
        await proxy.service.open_blob(NAME, digest, soon())
    with pytest.raises(ManifestUnknown):
        await proxy.service.manifest(NAME, found, soon())
    proxy.origins.failure = "refused"
    with pytest.raises(Unreachable):
        await proxy.service.stat_blob(NAME, digest, soon())
    with pytest.raises(Unreachable):
        await proxy.service.open_blob(NAME, digest, soon())
    with pytest.raises(Unreachable):
        await proxy.service.manifest(NAME, found, soon())


async def test_a_manifest_is_read_from_the_origins_once(proxy: Proxy) -> None:
    body = image(CONTENT)
    digest = proxy.origins.hold(body)
    found = FoundManifest(digest, OCI_MANIFEST, len(body))
    assert await proxy.service.manifest(NAME, found, soon()) == body
    proxy.origins.failure = "down"
    assert await proxy.service.manifest(NAME, found, soon()) == body
