# SPDX-License-Identifier: Apache-2.0
"""Kraken's scenarios of the memory cache (its `test_memory_cache.py`), by their names.

The caches are not the same. Kraken's is a buffer in front of the disk: what comes from a backend
lies in memory alone until a worker has written it out, and its time to live bounds how long that
may take. Shoal's origins write a blob to stable storage before they answer with it; in memory are
copies of small blobs that are asked for often, and its time to live says when those that nobody
reads give their place up. So the scenarios hold in the form of what they stand for: reads come from
memory, memory is bounded and given back, and no blob depends on it.
"""

from __future__ import annotations

from tests.acceptance.images import Content
from tests.acceptance.stage import MEMORY, NAMESPACE, ORIGINS, Stage, random_blob, until

ADDED = "shoal_memory_cache_entries_added_total"
HIT = 'shoal_memory_cache_requests_total{outcome="hit"}'
BYTES = "shoal_memory_cache_bytes"


def in_backend(stage: Stage, size: int) -> Content:
    """A blob that only the backend has."""
    content = random_blob(size)
    stage.storage.put_blob(NAMESPACE, content.digest, content.data)
    return content


def test_write_and_read(stage: Stage) -> None:
    content = in_backend(stage, 10_000)
    added = stage.metric(ADDED)
    stage.check_download(stage.cluster.agents[0], content)
    assert stage.metric(ADDED) > added

    hits = stage.metric(HIT)
    others = iter(stage.cluster.agents[1:])  # the next comes in time when the machine is slow
    while stage.metric(HIT) == hits:
        stage.check_download(next(others), content)


def test_drain_to_disk(stage: Stage) -> None:
    """When a blob was served, it is on disk: the memory empties, and origins die, without loss."""
    content = in_backend(stage, 10_000)
    stage.check_download(stage.cluster.agents[0], content)
    stage.storage.stop()
    until(lambda: stage.metric(BYTES) == 0, "the memory is empty")
    stage.kill(*ORIGINS)
    stage.restart(*ORIGINS)

    stage.check_download(stage.cluster.agents[1], content)


def test_large_blob_fallback(stage: Stage) -> None:
    content = in_backend(stage, 2 * MEMORY)
    added, used = stage.metric(ADDED), stage.metric(BYTES)
    for agent in stage.cluster.agents:
        stage.check_download(agent, content)

    assert stage.metric(ADDED) == added
    assert stage.metric(BYTES) <= used


def test_ttl_expiration(stage: Stage) -> None:
    """What nobody reads any more leaves the memory, though nobody asks; it is there still."""
    content = in_backend(stage, 5_000)
    added = stage.metric(ADDED)
    stage.check_download(stage.cluster.agents[0], content)
    assert stage.metric(ADDED) > added

    until(lambda: stage.metric(BYTES) == 0, "the memory is empty")

    stage.storage.stop()
    stage.check_download(stage.cluster.agents[1], content)


def test_more_than_the_memory_holds(stage: Stage) -> None:
    """Those asked for last push the others out, which are there still, on disk."""
    contents = [in_backend(stage, 200_000) for _ in range(3 * 2 * MEMORY // 200_000)]
    added = stage.metric(ADDED)
    for content in contents:
        stage.check_download(stage.cluster.agents[0], content)
        for origin in ORIGINS:
            assert stage.metric(BYTES, (origin,)) <= MEMORY
    assert stage.metric(ADDED) >= added + len(contents)

    stage.storage.stop()
    for content in contents:
        stage.check_download(stage.cluster.agents[1], content)
