# SPDX-License-Identifier: Apache-2.0
"""Chunks of one blob, asked for side by side, of an agent to which the blob only now comes.

containerd 2.1 and newer pulls a large layer so: each connection asks for all from its offset on
(`bytes=N-`), reads its chunk, and hangs up. These tests do the same, as Debian's containerd cannot.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Final
from urllib.parse import urljoin, urlsplit

import pytest

from shoal.swarm.metainfo import MIN_PIECE
from tests.acceptance.raw import ask
from tests.cluster import RunningCluster

CHUNK: Final = 4 * MIN_PIECE + 13
"""No chunk but the first begins where a piece does."""
CHUNKS: Final = 12
SIZE: Final = CHUNK * CHUNKS - 777
REPOSITORY: Final = "ranges/app"
TIMEOUT: Final = 30.0


@pytest.fixture(scope="module")
def small_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    folder = tmp_path_factory.mktemp("ranges")
    with RunningCluster.start(folder, origins=1, agents=1) as cluster:
        yield cluster


def push(cluster: RunningCluster, seed: str) -> tuple[bytes, str]:
    """Push a blob and return its bytes and its digest."""
    data = random.Random(seed).randbytes(SIZE)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    uploads = f"{cluster.proxy}/v2/{REPOSITORY}/blobs/uploads/"
    location = urljoin(uploads, ask(uploads, "POST").headers["Location"])
    headers = {"Content-Type": "application/octet-stream"}
    pushed = ask(f"{location}?digest={digest}", "PUT", headers=headers, body=data)
    assert pushed.status == 201
    return data, digest


def chunk_from(registry: str, digest: str, offset: int) -> bytes:
    """Ask for all from the offset on, read one chunk, and hang up."""
    netloc = urlsplit(registry).netloc
    connection = HTTPConnection(netloc, timeout=TIMEOUT)
    try:
        headers = {"Range": f"bytes={offset}-"}
        connection.request("GET", f"/v2/{REPOSITORY}/blobs/{digest}", headers=headers)
        answer = connection.getresponse()
        assert answer.status == 206
        assert answer.headers["Content-Range"] == f"bytes {offset}-{SIZE - 1}/{SIZE}"
        assert answer.headers["Content-Length"] == str(SIZE - offset)
        return answer.read(CHUNK)
    finally:
        connection.close()


def test_chunks_of_a_blob_that_still_arrives_make_it_whole(cluster: RunningCluster) -> None:
    data, digest = push(cluster, "comes in chunks")
    registry = cluster.agents[0].registry
    # The last first: what arrives in order must not hold up the others.
    offsets = list(reversed(range(0, SIZE, CHUNK)))

    with ThreadPoolExecutor(CHUNKS) as pool:
        chunks = list(pool.map(lambda offset: chunk_from(registry, digest, offset), offsets))

    assert b"".join(reversed(chunks)) == data
    assert ask(f"{registry}/v2/{REPOSITORY}/blobs/{digest}").body == data


def test_chunks_are_served_before_the_blob_is_whole(small_cluster: RunningCluster) -> None:
    """The origin's last piece is damaged, so that the agent never has the whole blob."""
    data, digest = push(small_cluster, "never whole")
    (at_origin,) = _files(small_cluster, "origin-0", digest)
    with at_origin.open("r+b") as file:
        file.seek(SIZE - 1)
        file.write(bytes([data[-1] ^ 0xFF]))
    registry = small_cluster.agents[0].registry
    # The last chunk needs the last piece.
    offsets = list(range(0, SIZE - CHUNK, CHUNK))

    with ThreadPoolExecutor(CHUNKS) as pool:
        chunks = list(pool.map(lambda offset: chunk_from(registry, digest, offset), offsets))

    assert b"".join(chunks) == data[: CHUNK * len(offsets)]
    assert not _files(small_cluster, "agent-0", digest)


def _files(cluster: RunningCluster, service: str, digest: str) -> list[Path]:
    """The service's file of a whole blob."""
    return list(cluster.data_dir(service).glob(f"blobs/sha256/*/{digest.partition(':')[2]}"))
