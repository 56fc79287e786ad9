# SPDX-License-Identifier: Apache-2.0
"""Azure Blob Storage against Azurite."""

from __future__ import annotations

import base64
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from shoal.backend.base import Backend
from shoal.backend.config import AzureBackendConfig, AzureKey
from shoal.backend.object_stores import open_azure
from shoal.config.load import ConfigError
from shoal.web.failures import Rejected
from tests.integration.backends import azurite
from tests.integration.backends.contract import (
    PART,
    BlobListingContract,
    BodyContract,
    DeniedContract,
    Place,
    RemoteContract,
    TagContract,
    WriteContract,
    blob,
    deadline,
)
from tests.integration.backends.relay import Relay

WRONG = base64.b64encode(b"another key than the account's").decode()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    with azurite.running(tmp_path_factory.mktemp("azurite")) as address:
        yield address


@pytest.fixture
async def relay(server: tuple[str, int]) -> AsyncIterator[Relay]:
    async with Relay.to(*server) as relay:
        yield relay


def azure(address: str, container: str, key: str = azurite.KEY) -> Backend:
    return open_azure(
        AzureBackendConfig(
            kind="azure",
            account=azurite.ACCOUNT,
            container=container,
            endpoint=f"http://{address}/{azurite.ACCOUNT}",
            credentials=AzureKey(account_key=SecretStr(key)),
            part_size=PART,
            retries=1,
        )
    )


@pytest.mark.client("azurite")
class TestAzure(
    WriteContract, TagContract, BlobListingContract, RemoteContract, BodyContract, DeniedContract
):
    @pytest.fixture
    def place(self, relay: Relay, server: tuple[str, int]) -> Place:
        container = uuid.uuid4().hex
        azurite.make_container(server, container)
        return Place(
            azure(relay.address, container),
            faults=relay,
            dead=azure("127.0.0.1:1", container),
            denied=azure(relay.address, container, WRONG),
            secret=WRONG,
        )

    async def test_a_missing_container_is_not_a_missing_blob(self, relay: Relay) -> None:
        backend = azure(relay.address, "no-such-container")
        with pytest.raises(Rejected, match="no such bucket or container"):
            await backend.stat(blob(b"x"), deadline=deadline())


def test_a_key_that_is_no_base64_stops_the_start_and_is_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("not base64: s3cr3t")
    with pytest.raises(ConfigError) as failed:
        open_azure(
            AzureBackendConfig(
                kind="azure",
                account="a",
                container="c",
                credentials=AzureKey(account_key_file=file),
            )
        )
    assert "s3cr3t" not in str(failed.value)
