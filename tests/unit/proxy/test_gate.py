# SPDX-License-Identifier: Apache-2.0
"""Pushes that the origins would refuse are refused before anything is sent."""

from __future__ import annotations

import pytest

from shoal.model.digest import Digest
from shoal.model.errors import Denied
from shoal.origin.client import QuorumFailed
from shoal.origin.quorum import Failure
from shoal.proxy.gate import REMEMBERED, UNASKED, PushGate, refusal
from shoal.web.failures import Rejected, Unreachable
from tests.unit.registry_fakes import MemoryOrigins

DIGEST = Digest.of(b"blob")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_what_is_taken_is_remembered_and_what_is_refused_is_asked_again() -> None:
    origins, clock = MemoryOrigins(denied={"other/app"}), Clock()
    gate = PushGate(origins, clock=clock)
    for _ in range(3):
        await gate.check("team/app")
        with pytest.raises(Denied):
            await gate.check("other/app")
    assert origins.checked.count("team/app") == 1
    assert origins.checked.count("other/app") == 3
    clock.now = REMEMBERED
    await gate.check("team/app")
    assert origins.checked.count("team/app") == 2


async def test_origins_that_are_down_stop_nobody_and_are_asked_again_soon() -> None:
    origins, clock = MemoryOrigins(failure="down"), Clock()
    gate = PushGate(origins, clock=clock)
    await gate.check("team/app")
    await gate.check("team/app")
    assert len(origins.checked) == 1
    clock.now = UNASKED
    origins.denied.add("team/app")
    with pytest.raises(Denied):
        await gate.check("team/app")


def test_a_quorum_that_refused_says_why() -> None:
    body = {"errors": [{"code": "DENIED", "message": "no backend", "detail": {"patterns": []}}]}
    refused = Rejected("PUT", "a", "no", status=403, body=body)
    down = Unreachable("PUT", "b", "refused")
    failed = QuorumFailed(DIGEST, 2, [], [Failure("b", down), Failure("a", refused)], "none left")
    said = refusal(failed)
    assert said is not None
    assert (said.status, said.message, said.detail) == (403, "no backend", {"patterns": []})
    assert refusal(QuorumFailed(DIGEST, 2, [], [Failure("b", down)], "none left")) is None
    assert refusal(down) is None
