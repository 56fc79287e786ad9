# SPDX-License-Identifier: Apache-2.0
"""Real clients push and pull while the backend of the repositories is away."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.acceptance.clients import Client, Ctr, Pulled, Reference, Skopeo
from tests.acceptance.images import build
from tests.acceptance.object_store import ObjectStore
from tests.acceptance.stage import NAMESPACE, Stage

_GOES_ON_WITHIN = 10.0
"""Seconds; a client that waits for the backend gives up after more, or never."""


@pytest.mark.client("skopeo", "ctr")
@pytest.mark.parametrize("outage", [ObjectStore.freeze, ObjectStore.stop])
def test_pushes_and_pulls_of_them_go_on_while_the_backend_is_away(
    outage: Callable[[ObjectStore], None], stage: Stage, skopeo: Skopeo, ctr: Ctr
) -> None:
    """containerd looks for the tag before it pushes, and takes nothing but 200 and 404."""
    clients: list[Client] = [ctr, skopeo]
    outage(stage.storage)
    for client in clients:
        name = type(client).__name__.lower()
        image = build(f"{outage.__name__} {name}")
        pushed = Reference(stage.cluster.proxy, NAMESPACE, f"{outage.__name__}-{name}")

        began = time.monotonic()
        client.push(image, pushed)
        took = time.monotonic() - began

        assert took < _GOES_ON_WITHIN
        for agent in stage.cluster.agents[:2]:
            pulled = client.pull(pushed.at(agent.registry))
            assert pulled == Pulled(image.digest, image.host.diff_ids)
