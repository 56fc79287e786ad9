# SPDX-License-Identifier: Apache-2.0
"""One origin of three is gone: what was pushed is there, and pushing goes on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.acceptance.clients import Reference, Skopeo
from tests.acceptance.images import Image, build
from tests.cluster import RunningCluster

pytestmark = pytest.mark.client("skopeo")


@pytest.fixture(params=["origin-0", "origin-1", "origin-2"])
def lost(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def pushed_before(lost: str, skopeo: Skopeo, cluster: RunningCluster) -> Iterator[Image]:
    """An image that was pushed while all origins were there, of which one is killed then."""
    image = build(f"before {lost} was lost")
    skopeo.push(image, Reference(cluster.proxy, "lost/before", lost))
    cluster.kill(lost)
    yield image
    cluster.restart(lost)


def test_a_cluster_without_one_origin_serves_and_takes_images(
    lost: str, pushed_before: Image, skopeo: Skopeo, cluster: RunningCluster
) -> None:
    at_agent = Reference(cluster.agents[0].registry, "lost/before", lost)
    assert skopeo.pull(at_agent).digest == pushed_before.digest

    image = build(f"after {lost} was lost")
    pushed = Reference(cluster.proxy, "lost/after", lost)
    assert skopeo.push(image, pushed) == image.digest
    assert skopeo.pull(pushed.at(cluster.agents[1].registry)).digest == image.digest
