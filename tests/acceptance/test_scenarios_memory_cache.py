# SPDX-License-Identifier: Apache-2.0
"""Kraken's scenarios of the memory cache (its `test_memory_cache.py`), by their names.

The caches are not the same. Kraken's is a buffer in front of the disk: what comes from a backend
lies in memory alone until a worker has written it out, and its time to live bounds how long that
may take. Shoal's origins write a blob to stable storage before they answer with it; in memory are
copies of small blobs that are asked for often. So the scenarios hold in the form of what they
stand for: reads come from memory, memory is bounded, and no blob depends on it.
"""

from __future__ import annotations

from tests.acceptance.images import Content
from tests.acceptance.stage import MEMORY, NAMESPACE, ORIGINS, Stage, random_blob

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
    stage.check_download(stage.cluster.agents[1], content)
    assert stage.metric(HIT) > hits


def test_drain_to_disk(stage: Stage) -> None:
    """When a blob was served, it is on disk: origins that die at once still have it.

    In Kraken the memory is empty within 10 s, and until then is all there is.
    """
    content = in_backend(stage, 10_000)
    stage.check_download(stage.cluster.agents[0], content)
    stage.storage.stop()
    stage.kill(*ORIGINS)
    stage.restart(*ORIGINS)
    assert stage.metric(BYTES) == 0

    stage.check_download(stage.cluster.agents[1], content)


def test_large_blob_fallback(stage: Stage) -> None:
    content = in_backend(stage, 2 * MEMORY)
    added, used = stage.metric(ADDED), stage.metric(BYTES)
    for agent in stage.cluster.agents:
        stage.check_download(agent, content)

    assert stage.metric(ADDED) == added
    assert stage.metric(BYTES) <= used


def test_ttl_expiration(stage: Stage) -> None:
    """What has left the memory is there still, on disk.

    In Kraken it leaves after its time to live; here, in the first place, as others are asked for:
    these are more than fit.
    """
    contents = [in_backend(stage, 200_000) for _ in range(3 * 2 * MEMORY // 200_000)]
    added = stage.metric(ADDED)
    for content in contents:
        stage.check_download(stage.cluster.agents[0], content)
        for origin in ORIGINS:
            assert stage.metric(BYTES, (origin,)) <= MEMORY
    assert stage.metric(ADDED) >= added + len(contents)
    assert stage.metric(BYTES) < sum(len(content.data) for content in contents)

    stage.storage.stop()
    for content in contents:
        stage.check_download(stage.cluster.agents[1], content)
