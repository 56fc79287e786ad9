# SPDX-License-Identifier: Apache-2.0
"""Faults come from the seed alone, and an origin without ``--faults`` knows nothing of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from shoal.model.digest import Digest
from shoal.origin import faults
from shoal.origin.api import origin_application
from shoal.origin.client import OriginCluster
from shoal.origin.faults import PATH, FaultPlan, FaultReport, Faults
from shoal.origin.local import LocalBlobs
from shoal.origin.prefetch import Prefetcher
from shoal.origin.receiving import Receiver
from shoal.origin.service import OriginService
from shoal.origin.uploads import ChunkedUploads
from shoal.ring.config import OriginsConfig
from shoal.store.blobs import BlobStore
from shoal.store.uploads import UploadSessions
from shoal.swarm.peers import PeerInfo, new_peer_id
from shoal.web.client import HttpClient
from shoal.web.deadline import Deadline
from shoal.web.serving import listening
from tests.unit.origin.no_backends import no_refresh, no_write_back

LATE = FaultPlan(seed=7, origin="origin-0", late_share=1.0, max_delay=10.0)
BODY = b"a blob that was acknowledged"
DIGEST = Digest.of(BODY)
DIGESTS = [str(Digest.of(str(number).encode())) for number in range(2000)]


# -- draws ----------------------------------------------------------------------------------------


def test_the_same_seed_draws_the_same_delays() -> None:
    plan = FaultPlan(seed=3, origin="origin-1", late_share=0.5, max_delay=4.0)
    first, second = Faults(plan), Faults(plan)
    delays = [first.delay(digest) for digest in DIGESTS]
    assert delays == [second.delay(digest) for digest in reversed(DIGESTS)][::-1]
    assert delays != [
        Faults(msgspec.structs.replace(plan, seed=4)).delay(digest) for digest in DIGESTS
    ]


def test_the_share_and_the_longest_delay_are_kept() -> None:
    plan = FaultPlan(seed=3, origin="origin-1", late_share=0.25, max_delay=4.0)
    late = [delay for digest in DIGESTS if (delay := Faults(plan).delay(digest))]
    assert 0.2 < len(late) / len(DIGESTS) < 0.3
    assert 3.5 < max(late) <= 4.0
    assert 1.7 < sum(late) / len(late) < 2.3


def test_origins_agree_on_which_blobs_are_late_but_not_on_how_late() -> None:
    plans = [FaultPlan(origin=f"origin-{n}", late_share=0.3, max_delay=4.0) for n in range(2)]
    one, other = ([Faults(plan).delay(digest) for digest in DIGESTS] for plan in plans)
    assert [delay > 0 for delay in one] == [delay > 0 for delay in other]
    assert one != other


def test_only_the_blobs_that_are_named_are_late() -> None:
    drawn = Faults(msgspec.structs.replace(LATE, only=frozenset(DIGESTS[:3])))
    assert [digest for digest in DIGESTS if drawn.delay(digest)] == DIGESTS[:3]


def test_requests_fail_at_the_rate_and_in_both_ways_whatever_their_order() -> None:
    plan = FaultPlan(seed=1, origin="origin-0", fail_rate=0.1)
    requests = [f"GET /internal/blobs/{digest}" for digest in DIGESTS]
    forward, backward = Faults(plan), Faults(plan)
    outcomes = [forward.fails(request) for request in requests]
    assert outcomes == [backward.fails(request) for request in reversed(requests)][::-1]
    assert 0.07 < forward.failed / len(requests) < 0.13
    assert {"503", "reset"} < set(outcomes)


def test_the_same_request_fails_sometimes_and_not_always() -> None:
    drawn = Faults(FaultPlan(seed=1, fail_rate=0.5))
    assert len({drawn.fails("POST /internal/blobs/stat") for _ in range(50)}) == 3


# -- what is visible ------------------------------------------------------------------------------


def test_a_copy_is_hidden_from_its_arrival_until_its_delay_has_passed() -> None:
    drawn, digest = Faults(LATE), DIGESTS[0]
    assert not drawn.hides(digest, 0.0)
    assert drawn.receiving(digest)
    assert drawn.hides(digest, 1e9)
    drawn.acknowledged(digest, 100.0)
    delay = drawn.delay(digest)
    assert drawn.hides(digest, 100.0 + 0.99 * delay)
    assert not drawn.hides(digest, 100.0 + delay)
    assert drawn.report() == FaultReport(late=1, hidden=2, failed=0)


def test_a_second_copy_does_not_hide_the_first() -> None:
    drawn, digest = Faults(LATE), DIGESTS[0]
    assert drawn.receiving(digest)
    drawn.acknowledged(digest, 0.0)
    assert not drawn.receiving(digest)


def test_a_copy_that_was_refused_may_come_again() -> None:
    drawn, digest = Faults(LATE), DIGESTS[0]
    assert drawn.receiving(digest)
    drawn.refused(digest)
    assert not drawn.hides(digest, 0.0)
    assert drawn.receiving(digest)


# -- an origin over HTTP --------------------------------------------------------------------------


class Clock:
    """Time that passes when the test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


Ask = Callable[..., Awaitable[tuple[int, Any]]]


@asynccontextmanager
async def an_origin(folder: Path, clock: Clock | None) -> AsyncIterator[Ask]:
    """An origin's application; with a clock, it has the fault hook."""
    http = HttpClient(user_agent="test")
    store = BlobStore(folder)
    receiver = Receiver(store, idle_timeout=5, max_blob=0)
    ring = OriginCluster(http, OriginsConfig(hosts=["127.0.0.1:1"], replicas=1, write_quorum=1))
    local = LocalBlobs(store)
    writeback = no_write_back("127.0.0.1:1", local, ring)
    service = OriginService("127.0.0.1:1", local, receiver, ring, writeback)
    refresh = no_refresh(service, local, receiver, ring)
    uploads = ChunkedUploads(UploadSessions(folder / "uploads"), receiver, service)

    async def ready() -> list[str]:
        return []

    peer = PeerInfo(new_peer_id(), "127.0.0.1", 1, "", origin=True)
    app = origin_application(
        service,
        uploads,
        refresh,
        peer,
        None,
        prefetcher=Prefetcher(ring, refresh, concurrency=1),
        readiness=ready,
        request_timeout=5,
    )
    if clock is not None:
        faults.add_to(app, clock)
    async with (
        listening([(app, "127.0.0.1:0")], grace=1) as [address],
        aiohttp.ClientSession() as session,
    ):

        async def ask(method: str, path: str, body: bytes | None = None) -> tuple[int, Any]:
            if path == "/address":
                return 200, address
            async with session.request(method, f"http://{address}{path}", data=body) as answer:
                text = await answer.read()
                return answer.status, text

        yield ask
    await http.close()


async def visible(ask: Ask) -> list[bool]:
    """Whether stat, GET and metainfo have the blob."""
    _, present = await ask("POST", "/internal/blobs/stat", json_of({"digests": [str(DIGEST)]}))
    blob, _ = await ask("GET", f"/internal/blobs/{DIGEST}")
    metainfo, _ = await ask("GET", f"/internal/blobs/{DIGEST}/metainfo")
    listed = json.loads(present)["present"] == {str(DIGEST): len(BODY)}
    return [listed, blob == 200, metainfo == 200]


def json_of(document: object) -> bytes:
    return msgspec.json.encode(document)


async def test_an_acknowledged_copy_becomes_visible_when_its_delay_has_passed(
    tmp_path: Path,
) -> None:
    clock = Clock()
    async with an_origin(tmp_path, clock) as ask:
        assert (await ask("PUT", PATH, json_of(LATE)))[0] == 204
        assert (await ask("PUT", f"/internal/blobs/{DIGEST}", BODY))[0] == 201
        assert await visible(ask) == [False, False, False]
        clock.now = LATE.max_delay
        assert await visible(ask) == [True, True, True]
        report = json.loads((await ask("GET", PATH))[1])
        assert report == {"late": 1, "hidden": 3, "failed": 0}


async def test_requests_about_blobs_fail_and_no_others(tmp_path: Path) -> None:
    async with an_origin(tmp_path, Clock()) as ask:
        await ask("PUT", PATH, json_of(FaultPlan(fail_rate=1.0)))
        outcomes = set()
        for number in range(20):
            try:
                outcomes.add((await ask("GET", f"/internal/blobs/{DIGESTS[number]}"))[0])
            except aiohttp.ClientError:
                outcomes.add(0)
        assert outcomes == {0, 503}
        assert (await ask("GET", "/health"))[0] == 200
        assert (await ask("GET", "/readiness"))[0] == 200
        # A client asks once more when a connection that it kept is reset.
        assert json.loads((await ask("GET", PATH))[1])["failed"] >= 20


async def test_a_client_asks_again_for_what_could_not_be_decided(tmp_path: Path) -> None:
    """An origin that has no time now is not one that lacks the blob."""
    request = "POST /internal/blobs/stat"
    plans = (FaultPlan(seed=seed, fail_rate=0.5) for seed in range(100))
    plan = next(plan for plan in plans if outcomes_of(plan, request) == ["503", None])
    http = HttpClient(user_agent="test")
    async with an_origin(tmp_path, Clock()) as ask:
        await ask("PUT", PATH, json_of(plan))
        address = (await ask("GET", "/address"))[1]
        ring = OriginCluster(http, OriginsConfig(hosts=[address], replicas=1, write_quorum=1))
        assert await ring.stat(DIGEST, deadline=Deadline.after(5)) is None
    await http.close()


def outcomes_of(plan: FaultPlan, request: str) -> list[str | None]:
    drawn = Faults(plan)
    return [drawn.fails(request) for _ in range(2)]


async def test_an_empty_plan_ends_all_faults(tmp_path: Path) -> None:
    async with an_origin(tmp_path, Clock()) as ask:
        await ask("PUT", PATH, json_of(LATE))
        await ask("PUT", f"/internal/blobs/{DIGEST}", BODY)
        await ask("PUT", PATH, b"{}")
        assert await visible(ask) == [True, True, True]


@pytest.mark.parametrize("plan", [b'{"late_share": 2}', b'{"max_dealy": 1}', b"no JSON"])
async def test_a_plan_that_cannot_be_followed_is_refused(tmp_path: Path, plan: bytes) -> None:
    async with an_origin(tmp_path, Clock()) as ask:
        assert (await ask("PUT", PATH, plan))[0] == 400


async def test_without_the_hook_there_is_no_route_and_nothing_is_late(tmp_path: Path) -> None:
    async with an_origin(tmp_path, None) as ask:
        for method in ("GET", "PUT", "POST"):
            assert (await ask(method, PATH, json_of(LATE)))[0] == 404
        assert (await ask("PUT", f"/internal/blobs/{DIGEST}", BODY))[0] == 201
        assert await visible(ask) == [True, True, True]


def test_only_the_hidden_option_opens_the_route() -> None:
    """No config key and no environment variable does, and only origins have the option."""
    environment = os.environ | {"SHOAL_ORIGIN__FAULTS": "true"}
    ended = shoal("origin", environment=environment)
    assert ended.returncode == 2
    assert "SHOAL_ORIGIN__FAULTS" in ended.stderr
    assert "--faults" not in shoal("origin", "--help").stdout
    for role in ("proxy", "build-index", "tracker", "agent"):
        assert "No such option" in shoal(role, "--faults").stderr


def shoal(
    *arguments: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "shoal", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=20, check=False, env=environment
    )
