# SPDX-License-Identifier: Apache-2.0
"""Kraken's scenarios of origins, agents and backends (its `test_core.py`), by their names.

Blobs are uploaded to an origin as Kraken's clients do, and downloaded from an agent's registry.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.acceptance.images import Content
from tests.acceptance.raw import Answer
from tests.acceptance.stage import NAMESPACE, ORIGINS, Stage, random_blob, until
from tests.cluster import AgentUrls

BOUND = 20.0
"""Seconds within which an agent must say that it cannot say anything."""

Way = Callable[[Stage, AgentUrls, Content], Answer]


@pytest.fixture(
    params=[
        pytest.param(Stage.download, id="registry"),
        pytest.param(Stage.download_generic, id="generic"),
    ]
)
def way(request: pytest.FixtureRequest) -> Way:
    """Both ways to get a blob from an agent: what a repository has, and any blob by its digest."""
    chosen: Way = request.param
    return chosen


def everywhere(stage: Stage, content: Content) -> None:
    """Several clients of each agent download the blob at the same time."""
    agents = stage.cluster.agents * 3
    with ThreadPoolExecutor(len(agents)) as threads:
        list(threads.map(lambda agent: stage.check_download(agent, content), agents))


def test_concurrent_agent_downloads(stage: Stage) -> None:
    content = random_blob()
    stage.upload(content)

    everywhere(stage, content)


def test_blob_distribution_resilient_to_remote_backend_unavailability(stage: Stage) -> None:
    content = random_blob()
    stage.storage.stop()
    stage.upload(content)
    stage.check_download(stage.cluster.agents[0], content)

    # What the backend missed, it gets when it is back.
    stage.storage.start()
    stage.wait_stored(content.digest)


def test_agent_download_after_remote_backend_upload(stage: Stage) -> None:
    content = random_blob()
    stage.storage.put_blob(NAMESPACE, content.digest, content.data)
    fetched = stage.metric('shoal_refreshes_total{outcome="fetched"}')
    assert stage.holders(content.digest) == set()

    # To be told of it needs no download.
    head = stage.download_generic(stage.cluster.agents[0], content, "HEAD")
    assert (head.status, head.headers["Content-Length"]) == (200, str(len(content.data)))
    assert stage.holders(content.digest) == set()

    # However many ask at once, it comes from the backend one time.
    everywhere(stage, content)
    assert stage.metric('shoal_refreshes_total{outcome="fetched"}') == fetched + 1
    until(lambda: len(stage.holders(content.digest)) == 2, "both owners have what was fetched")


def test_origin_prefetch(stage: Stage) -> None:
    """Whichever origin is asked, and however often, it is told, and fetched once."""
    content = random_blob()
    stage.storage.put_blob(NAMESPACE, content.digest, content.data)
    fetched = stage.metric('shoal_refreshes_total{outcome="fetched"}')

    with ThreadPoolExecutor(12) as threads:
        answers = list(
            threads.map(lambda origin: stage.prefetch(origin, content), stage.cluster.origins * 4)
        )
    assert {answer.status for answer in answers} <= {200, 202}
    assert answers[0].status == 202, "it was only in the backend"
    until(
        lambda: all(
            stage.prefetch(origin, content).status == 200 for origin in stage.cluster.origins
        ),
        "an origin has it",
    )
    assert stage.metric('shoal_refreshes_total{outcome="fetched"}') == fetched + 1
    until(lambda: len(stage.holders(content.digest)) == 2, "both owners have what was fetched")

    stage.storage.stop()
    assert stage.prefetch(stage.cluster.origins[0], content).status == 200
    unknown = random_blob()
    answer = stage.prefetch(stage.cluster.origins[0], unknown)
    assert answer.status == 503, answer.body
    assert unknown.digest in answer.document["errors"][0]["message"]
    assert stage.download_generic(stage.cluster.agents[0], content).body == content.data


def test_origin_prefetch_404(stage: Stage) -> None:
    unknown = random_blob()

    answer = stage.prefetch(stage.cluster.origins[0], unknown)

    assert answer.status == 404, answer.body
    (error,) = answer.document["errors"]
    assert (error["code"], error["detail"]) == ("BLOB_UNKNOWN", {"digest": unknown.digest})


def test_agent_download_after_origin_data_loss_after_origin_upload(stage: Stage) -> None:
    content = random_blob()
    stage.upload(content)
    stage.wait_stored(content.digest)
    stage.wipe(*ORIGINS)
    assert stage.holders(content.digest) == set()

    stage.check_download(stage.cluster.agents[1], content)


@pytest.mark.parametrize("backend", ["stopped", "hanging"])
def test_agent_download_returns_500_when_remote_backend_unavailable(
    stage: Stage, way: Way, backend: str
) -> None:
    """Nobody may take "cannot tell" for "not there": a 404 would make clients go elsewhere."""
    if backend == "stopped":
        stage.storage.stop()
    else:
        stage.storage.freeze()
    agent, unknown = stage.cluster.agents[0], random_blob()
    began = time.monotonic()

    answer = way(stage, agent, unknown)

    assert 500 <= answer.status < 600, answer.body
    assert answer.document["errors"]
    assert time.monotonic() - began < BOUND
    stage.storage.mend()
    until(lambda: way(stage, agent, unknown).status == 404, "the backend is asked again")


def test_agent_download_404(stage: Stage, way: Way) -> None:
    unknown = random_blob()

    answer = way(stage, stage.cluster.agents[0], unknown)

    assert answer.status == 404, answer.body
    (error,) = answer.document["errors"]
    assert error["code"] == "BLOB_UNKNOWN"
    assert error["detail"] == {"digest": unknown.digest}


def test_agent_download_resilient_to_invalid_tracker_cache(stage: Stage) -> None:
    """The tracker goes on telling of origins that had the blob, and have it no more."""
    content = random_blob()
    stage.upload(content)
    stage.wait_stored(content.digest)
    stage.check_download(stage.cluster.agents[2], content)
    stage.wipe(*ORIGINS, "agent-2")
    assert stage.holders(content.digest) == set()

    stage.check_download(stage.cluster.agents[2], content)


@pytest.mark.parametrize("place", [0, 1], ids=["first owner", "second owner"])
def test_agent_download_resilient_to_offline_origin(stage: Stage, place: int) -> None:
    content = random_blob()
    stage.upload(content)
    stage.kill(stage.owners(content)[place])

    stage.check_download(stage.cluster.agents[0], content)


def test_agent_download_resilient_to_initial_offline_origin(stage: Stage) -> None:
    """Kraken expects its agents to fail here: an origin is down before their first contact."""
    before, during = random_blob(), random_blob()
    stage.upload(before)
    offline = stage.owners(before)[0]
    while stage.owners(during)[0] != offline:
        during = random_blob()
    stage.kill(offline)
    stage.upload(during)
    assert len(stage.holders(during.digest)) == 2
    stage.wipe("agent-3")

    for content in (before, during):
        stage.check_download(stage.cluster.agents[3], content)
