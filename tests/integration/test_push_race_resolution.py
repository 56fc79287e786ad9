# SPDX-License-Identifier: Apache-2.0
"""A real build-index over origins that fail: what is tried again, what is not, and what is said.

Each test names the open end of the old repair (four attempts at the download of the manifest, and
nothing else) that it closes.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from shoal.buildindex.client import BuildIndexClient
from shoal.model.digest import Digest
from shoal.model.errors import ManifestBlobUnknown, ManifestInvalid
from shoal.ring.config import HostsConfig
from shoal.web.client import HttpClient
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, Overloaded
from tests.integration.faulty_origins import (
    Fault,
    FaultyRing,
    faulty_ring,
    half,
    other_bytes,
    reset,
    status,
)

QUICK = {"initial": "100ms", "attempts": 4}
NAME = "team/app"


@pytest.fixture
async def ring(tmp_path: Path) -> AsyncIterator[FaultyRing]:
    async with faulty_ring(tmp_path, resolver={"manifest": QUICK, "existence": QUICK}) as ring:
        yield ring


@pytest.fixture
async def http() -> AsyncIterator[HttpClient]:
    http = HttpClient(user_agent="test")
    yield http
    await http.close()


@pytest.fixture
def index(ring: FaultyRing, http: HttpClient) -> BuildIndexClient:
    return BuildIndexClient(http, HostsConfig(hosts=[ring.index_host]))


def soon() -> Deadline:
    return Deadline.after(20.0)


def image(ring: FaultyRing, name: str = "") -> bytes:
    """Put config and layer of an image on all origins; the manifest, large enough to be cut."""

    def descriptor(content: bytes) -> dict[str, Any]:
        digest = ring.put(content)
        return {"mediaType": "application/x", "digest": str(digest), "size": len(content)}

    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor(b"config" + name.encode()),
            "layers": [descriptor(b"layer" + name.encode())],
            "annotations": {"padding": "." * 200_000},
        }
    ).encode()


async def tag(
    index: BuildIndexClient, digest: Digest, manifest: bytes | None = None, name: str = "v1"
) -> Digest | None:
    await index.put_tag(NAME, name, digest, manifest, None, deadline=soon())
    return await index.get_tag(NAME, name, deadline=soon())


async def metric(ring: FaultyRing, http: HttpClient, name: str) -> float:
    answer = await http.call("GET", f"{ring.index}/metrics", deadline=soon())
    match = re.search(rf"^{re.escape(name)} (\S+)$", answer.body.decode(), re.MULTILINE)
    assert match is not None, name
    return float(match[1])


AFTER_RETRY = 'shoal_manifest_downloads_total{outcome="after_retry"}'
SAVED = "shoal_pushes_saved_by_retry_total"


@pytest.mark.parametrize("fault", [status(404), status(429), status(500), status(503), reset, half])
async def test_a_manifest_download_that_fails_once_everywhere_is_tried_again(
    ring: FaultyRing, index: BuildIndexClient, http: HttpClient, fault: Fault
) -> None:
    """Only "not found" was ever retried: network errors and 5xx were hidden in other errors."""
    digest = ring.put(image(ring))
    # The HTTP library itself repeats a GET whose connection is dropped, once.
    ring.fail(read=[fault, fault] if fault is reset else [fault])
    assert await tag(index, digest) == digest
    assert max(ring.reads(digest)) == (3 if fault is reset else 2)
    assert await metric(ring, http, AFTER_RETRY) == 1
    assert await metric(ring, http, SAVED) == 1
    (line,) = ring.log_lines("will retry")
    assert (line["tag"], line["digest"], line["attempt"]) == (f"{NAME}:v1", str(digest), 1)
    assert line["wait_s"] == pytest.approx(0.1, rel=0.06)
    assert line["error"]


@pytest.mark.parametrize(
    "fault",
    [status(404), status(401), status(503), reset, half, other_bytes],
)
async def test_every_owner_is_asked_before_anything_is_tried_again(
    ring: FaultyRing, index: BuildIndexClient, http: HttpClient, fault: Fault
) -> None:
    """Only the first owner was asked; and half a body of one was joined to the whole of another."""
    digest = ring.put(image(ring))
    for origin in ring.origins:
        # The origins are asked in turn: whoever is last has an answer.
        origin.read_faults += [fault_but_for_the_last(ring, digest, fault)] * 4
    assert await tag(index, digest) == digest
    assert min(ring.reads(digest)) == 1
    assert await metric(ring, http, 'shoal_manifest_downloads_total{outcome="first_try"}') == 1


def fault_but_for_the_last(ring: FaultyRing, digest: Digest, fault: Fault) -> Fault:
    async def answer(request: web.Request, content: bytes) -> web.StreamResponse:
        if all(ring.reads(digest)):
            return web.Response(body=content)
        return await fault(request, content)

    return answer


async def test_origins_that_are_down_at_first_are_asked_again(
    ring: FaultyRing, index: BuildIndexClient
) -> None:
    digest = ring.put(image(ring))
    for origin in ring.origins:
        await origin.stop()
    push = asyncio.create_task(tag(index, digest))
    async with asyncio.timeout(10):
        while not ring.log_lines("will retry"):  # noqa: ASYNC110 another process writes it
            await asyncio.sleep(0.02)
    for origin in ring.origins:
        await origin.start()
    assert await push == digest


async def test_retry_after_is_honoured(ring: FaultyRing, index: BuildIndexClient) -> None:
    digest = ring.put(image(ring))
    ring.fail(read=[status(503, Retry_After="1")])
    assert await tag(index, digest) == digest
    times = [at for origin in ring.origins for at, _ in origin.reads]
    assert max(times) - min(times) >= 1.0


@pytest.mark.parametrize("body", [True, False])
async def test_a_refusal_is_exactly_one_attempt(
    ring: FaultyRing, index: BuildIndexClient, http: HttpClient, body: bool
) -> None:
    manifest = image(ring)
    digest = ring.put(manifest)
    for origin in ring.origins:
        origin.always = status(401)
    with pytest.raises(Overloaded, match="as the test says"):
        await tag(index, digest, manifest if body else None)
    if body:
        assert [len(origin.stats) for origin in ring.origins] == [1, 1, 1]
        name = 'shoal_dependency_checks_total{outcome="permanent"}'
    else:
        assert ring.reads(digest) == [1, 1, 1]
        name = 'shoal_manifest_downloads_total{outcome="permanent"}'
    assert await metric(ring, http, name) == 1
    assert ring.log_lines("will retry") == []
    assert len(ring.log_lines("failed for good, not tried again")) == 1


async def test_a_malformed_manifest_is_refused_without_a_retry(
    ring: FaultyRing, index: BuildIndexClient
) -> None:
    digest = ring.put(b'{"schemaVersion": 2')
    with pytest.raises(ManifestInvalid):
        await tag(index, digest)
    assert sum(ring.reads(digest)) == 1
    assert ring.log_lines("will retry") == []


async def test_a_dependency_that_appears_within_the_retries_saves_the_push(
    ring: FaultyRing, index: BuildIndexClient, http: HttpClient
) -> None:
    """The checks of the other dependencies were not retried."""
    manifest = image(ring)
    digest = ring.put(manifest)
    layer = Digest.of(b"layer")
    ring.remove(layer)
    push = asyncio.create_task(tag(index, digest, manifest))
    await ring.origins[0].until(lambda: len(ring.origins[0].stats) == 2)
    ring.put(b"layer")
    assert await push == digest
    # One request to each owner for all, and then only for what was missing.
    asked = [digests for _, digests in ring.origins[0].stats]
    assert (len(asked[0]), asked[1:]) == (3, [[str(layer)]] * (len(asked) - 1))
    assert await metric(ring, http, SAVED) == 1
    assert await metric(ring, http, 'shoal_dependency_checks_total{outcome="after_retry"}') == 1


async def test_a_dependency_that_never_comes_is_a_404_that_says_what_was_tried(
    ring: FaultyRing, index: BuildIndexClient, http: HttpClient
) -> None:
    """It was a 500 after retries of the manifest alone; and nobody counted them."""
    old = image(ring, "old")
    assert await tag(index, ring.put(old), old) == Digest.of(old)
    manifest = image(ring)
    digest = ring.put(manifest)
    ring.remove(Digest.of(b"layer"))
    with pytest.raises(ManifestBlobUnknown, match=r"after 4 attempts in \d+\.\d s") as caught:
        await tag(index, digest, manifest)
    assert caught.value.detail == {"missing": [str(Digest.of(b"layer"))], "attempts": 4}
    # A push that fails leaves the old tag in place.
    assert await index.get_tag(NAME, "v1", deadline=soon()) == Digest.of(old)
    assert await metric(ring, http, 'shoal_dependency_checks_total{outcome="exhausted"}') == 1
    assert [line["attempt"] for line in ring.log_lines("will retry")] == [1, 2, 3]
    assert [line["attempts"] for line in ring.log_lines("gave up")] == [4]


async def test_nothing_is_retried_beyond_the_callers_deadline(
    tmp_path: Path, http: HttpClient
) -> None:
    """The caller gave up after 30 s, and the attempts went on for minutes."""
    endless = {"initial": "200ms", "factor": 1, "attempts": 1000}
    async with faulty_ring(tmp_path, resolver={"manifest": endless}) as ring:
        digest = Digest.of(b"never")
        url = f"{ring.index}/tags/{NAME}:v1/digest/{digest}"
        deadline = Deadline.after(1.5)
        with pytest.raises(CallFailed, match="attempts in 1") as caught:
            await http.call("PUT", url, deadline=deadline)
        assert caught.value.code == "MANIFEST_BLOB_UNKNOWN"
        assert not deadline.expired


async def test_nobody_retries_for_a_caller_that_has_gone(tmp_path: Path, http: HttpClient) -> None:
    endless = {"initial": "300ms", "factor": 1, "attempts": 1000}
    async with faulty_ring(tmp_path, resolver={"manifest": endless}) as ring:
        digest = Digest.of(b"never")
        url = f"{ring.index}/tags/{NAME}:v1/digest/{digest}"
        push = asyncio.create_task(http.call("PUT", url, deadline=soon()))
        await ring.origins[0].until(lambda: len(ring.origins[0].reads) >= 2)
        push.cancel()
        await asyncio.gather(push, return_exceptions=True)
        async with asyncio.timeout(5):
            while not [line for line in ring.log_lines("request") if line["status"] == 499]:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        asked = sum(ring.reads(digest))
        # Longer than the wait between two attempts: nothing comes any more.
        await asyncio.sleep(0.5)
        assert sum(ring.reads(digest)) == asked


async def test_an_origin_that_hangs_does_not_use_up_the_callers_time(
    tmp_path: Path, http: HttpClient
) -> None:
    async def hang(_: Any, __: bytes) -> Any:
        await asyncio.Event().wait()

    config = {"manifest": QUICK, "existence": QUICK, "attempt_timeout": "500ms"}
    async with faulty_ring(tmp_path, resolver=config) as ring:
        index = BuildIndexClient(http, HostsConfig(hosts=[ring.index_host]))
        digest = ring.put(image(ring))
        ring.fail(read=[hang])
        assert await asyncio.wait_for(tag(index, digest), 5.0) == digest


@pytest.mark.parametrize(
    "query, message",
    [
        ("replicate=yes", "replicate must be one of true, false, got 'yes'"),
        ("replicate=", "replicate must be"),
        ("replicate=true&replicate=false", "replicate is given 2 times"),
        ("index_children=some", "index_children must be one of required, present, ignore"),
    ],
)
async def test_parameters_that_nobody_knows_are_refused(
    ring: FaultyRing, http: HttpClient, query: str, message: str
) -> None:
    url = f"{ring.index}/tags/{NAME}:v1/digest/{Digest.of(b'x')}?{query}"
    with pytest.raises(CallFailed, match=re.escape(message)) as caught:
        await http.call("PUT", url, deadline=soon())
    assert (caught.value.status, caught.value.code) == (
        400,
        "BAD_REQUEST",
    )


async def test_what_an_index_needs_of_its_children_is_up_to_the_request(
    ring: FaultyRing, http: HttpClient
) -> None:
    """Children were not checked at all; and when they were, those pushed elsewhere failed."""
    child = image(ring)
    ring.put(child)
    oci = "application/vnd.oci.image"
    children = [
        {"mediaType": f"{oci}.manifest.v1+json", "digest": str(digest), "size": 1}
        for digest in (Digest.of(child), Digest.of(b"elsewhere"))
    ]
    root = json.dumps(
        {"schemaVersion": 2, "mediaType": f"{oci}.index.v1+json", "manifests": children}
    ).encode()
    url = f"{ring.index}/tags/{NAME}:all/digest/{ring.put(root)}"

    async def put(query: str) -> None:
        await http.call("PUT", url + query, data=root, deadline=soon())

    for refused in ("", "?index_children=required&replicate=true"):
        with pytest.raises(CallFailed, match=str(Digest.of(b"elsewhere"))):
            await put(refused)
    await put("?index_children=present&replicate=false")
    ring.remove(Digest.of(b"layer"))
    with pytest.raises(CallFailed, match=str(Digest.of(b"layer"))):
        await put("?index_children=present")
    await put("?index_children=ignore")
