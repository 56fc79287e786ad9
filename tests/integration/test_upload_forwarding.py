# SPDX-License-Identifier: Apache-2.0
"""One upload through two proxies, as a load balancer spreads it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest

from tests.cluster import RunningCluster

UPLOADS = "/v2/team/app/blobs/uploads/"
PART = 256 * 1024


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    """A cluster with two proxies, which this file's tests kill and start again."""
    folder = tmp_path_factory.mktemp("two-proxies")
    with RunningCluster.start(folder, agents=0, options=["--proxies", "2"]) as running:
        yield running


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
        yield session


def random_blob(size: int) -> tuple[bytes, str]:
    content = os.urandom(size)
    return content, f"sha256:{hashlib.sha256(content).hexdigest()}"


async def begin(http: aiohttp.ClientSession, proxy: str) -> str:
    async with http.post(proxy + UPLOADS) as answer:
        assert answer.status == 202
        return answer.headers["Location"]


async def fetched(http: aiohttp.ClientSession, proxy: str, digest: str) -> bytes:
    async with http.get(f"{proxy}/v2/team/app/blobs/{digest}") as answer:
        assert answer.status == 200
        return await answer.read()


async def in_parts(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), PART):
        yield content[start : start + PART]


async def test_post_at_one_patch_at_the_other_put_at_the_first(
    cluster: RunningCluster, http: aiohttp.ClientSession
) -> None:
    first, second = cluster.proxies
    content, digest = random_blob(3 * 1024 * 1024 + 12_345)
    middle = 3 * 1024 * 1024
    location = await begin(http, first)
    async with http.patch(second + location, data=in_parts(content[:middle])) as answer:
        assert answer.status == 202
        assert answer.headers["Range"] == f"0-{middle - 1}"
        assert answer.headers["Location"] == location
    async with http.get(second + location) as answer:
        assert answer.status == 204
        assert answer.headers["Range"] == f"0-{middle - 1}"
    span = {"Content-Range": f"{middle}-{len(content) - 1}"}
    async with http.patch(second + location, data=content[middle:], headers=span) as answer:
        assert answer.status == 202
    async with http.put(f"{first}{location}?digest={digest}") as answer:
        assert answer.status == 201
    for proxy in (first, second):
        assert await fetched(http, proxy, digest) == content


async def test_the_owner_is_down_and_comes_back(
    cluster: RunningCluster, http: aiohttp.ClientSession
) -> None:
    first, second = cluster.proxies
    content, digest = random_blob(2 * 1024 * 1024)
    middle = len(content) // 2
    location = await begin(http, first)
    async with http.patch(second + location, data=content[:middle]) as answer:
        assert answer.status == 202

    cluster.kill("proxy-0")
    async with http.patch(second + location, data=content[middle:]) as answer:
        assert answer.status == 503
        assert int(answer.headers["Retry-After"]) > 0
        (error,) = (await answer.json())["errors"]
    assert error["code"] == "UNAVAILABLE"
    assert first.removeprefix("http://") in error["message"]
    assert "start the upload again" in error["message"]

    cluster.restart("proxy-0")
    async with http.get(second + location) as answer:
        assert answer.headers["Range"] == f"0-{middle - 1}"
    async with http.put(
        f"{second}{location}?digest={digest}", data=in_parts(content[middle:])
    ) as answer:
        assert answer.status == 201
    assert await fetched(http, second, digest) == content


async def test_the_owner_is_killed_in_the_middle_of_a_body(
    cluster: RunningCluster, http: aiohttp.ClientSession
) -> None:
    first, second = cluster.proxies
    content, digest = random_blob(4 * 1024 * 1024)
    location = await begin(http, first)

    async def killing() -> AsyncIterator[bytes]:
        yield content[:PART]
        cluster.kill("proxy-0")
        async for part in in_parts(content[PART:]):
            yield part

    async with http.patch(second + location, data=killing()) as answer:
        assert answer.status == 503
        assert first.removeprefix("http://") in (await answer.json())["errors"][0]["message"]

    cluster.restart("proxy-0")
    async with http.get(second + location) as answer:
        assert answer.status == 204
        last = int(answer.headers["Range"].removeprefix("0-"))
    received = last + 1 if last else 0
    assert received <= len(content)
    async with http.put(
        f"{second}{location}?digest={digest}", data=in_parts(content[received:])
    ) as answer:
        assert answer.status == 201
    assert await fetched(http, first, digest) == content


async def test_a_proxy_that_is_restarted_does_not_disturb_the_uploads_of_the_other(
    cluster: RunningCluster, http: aiohttp.ClientSession
) -> None:
    first, second = cluster.proxies
    content, digest = random_blob(100_000)
    location = await begin(http, first)
    async with http.patch(second + location, data=content[:1000]) as answer:
        assert answer.status == 202
    cluster.kill("proxy-1")
    async with http.patch(first + location, data=content[1000:2000]) as answer:
        assert answer.status == 202
    cluster.restart("proxy-1")
    async with http.put(f"{second}{location}?digest={digest}", data=content[2000:]) as answer:
        assert answer.status == 201
    assert await fetched(http, second, digest) == content
