# SPDX-License-Identifier: Apache-2.0
"""WebHDFS, against a small server that redirects to a data node."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from shoal.backend.base import TagName
from shoal.backend.config import WebHdfsBackendConfig
from shoal.backend.webhdfs import WebHdfsBackend
from shoal.web.client import HttpClient
from shoal.web.failures import Rejected, Unreachable
from tests.integration.backends.contract import (
    REPOSITORY,
    BlobListingContract,
    BodyContract,
    DeniedContract,
    Place,
    RemoteContract,
    TagContract,
    WriteContract,
    blob,
    deadline,
    read,
    store,
)
from tests.integration.backends.webhdfs_server import Hdfs


@pytest.fixture
async def hdfs() -> AsyncIterator[Hdfs]:
    async with Hdfs.start() as hdfs:
        yield hdfs


def opened(http: HttpClient, *name_nodes: str, user: str = "shoal") -> WebHdfsBackend:
    config = WebHdfsBackendConfig(
        kind="webhdfs", name_nodes=name_nodes, user=user, root="user/shoal"
    )
    return WebHdfsBackend(config, http)


class TestWebHdfs(
    WriteContract, TagContract, BlobListingContract, RemoteContract, BodyContract, DeniedContract
):
    @pytest.fixture
    def place(self, hdfs: Hdfs, http: HttpClient) -> Place:
        return Place(
            opened(http, *hdfs.name_nodes),
            faults=hdfs,
            dead=opened(http, "127.0.0.1:1", "127.0.0.1:2"),
            denied=opened(http, *hdfs.name_nodes, user="stranger"),
        )

    async def test_the_next_name_node_is_asked_when_the_first_stands_by(
        self, place: Place, hdfs: Hdfs
    ) -> None:
        hdfs.standby = True
        name = await store(place.backend, b"kept")
        assert await read(place.backend, name) == b"kept"

    async def test_the_next_name_node_is_asked_when_the_first_is_down(
        self, hdfs: Hdfs, http: HttpClient
    ) -> None:
        backend = opened(http, "127.0.0.1:1", hdfs.name_nodes[1])
        name = await store(backend, b"kept")
        assert await read(backend, name) == b"kept"

    async def test_what_a_data_node_did_not_keep_whole_is_not_stored(
        self, place: Place, hdfs: Hdfs
    ) -> None:
        hdfs.loses = 1
        with pytest.raises(Unreachable, match="only 4 of 5 bytes"):
            await store(place.backend, b"whole")
        await place.backend.close()
        assert hdfs.files == {}

    async def test_readers_never_see_a_file_that_is_being_written(
        self, place: Place, hdfs: Hdfs
    ) -> None:
        await store(place.backend, b"content")
        created = [path for operation, path in hdfs.asked if operation == "CREATE"]
        assert all(path.startswith("user/shoal/_uploads/") for path in created)
        assert created
        assert [path for path in hdfs.files if "_uploads" in path] == []

    async def test_a_server_that_cannot_replace_at_once_is_said_to(
        self, place: Place, hdfs: Hdfs
    ) -> None:
        hdfs.knows_options = False
        name = TagName(REPOSITORY, "latest")
        await place.backend.put(name, b"old", deadline=deadline())
        with pytest.raises(Rejected, match="renameoptions"):
            await place.backend.put(name, b"new", deadline=deadline())
        assert await read(place.backend, name) == b"old"

    async def test_a_path_that_is_no_webhdfs_is_not_an_empty_one(
        self, hdfs: Hdfs, http: HttpClient
    ) -> None:
        backend = opened(http, *hdfs.name_nodes)
        backend._url = lambda *_: f"http://{hdfs.name_nodes[0]}/elsewhere"  # type: ignore[method-assign]
        with pytest.raises(Rejected, match="no WebHDFS"):
            await backend.stat(blob(b"x"), deadline=deadline())
