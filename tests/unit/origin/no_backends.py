# SPDX-License-Identifier: Apache-2.0
"""Write-back and refresh of an origin that has no backends."""

from __future__ import annotations

from shoal.origin.backends import BlobBackends
from shoal.origin.client import OriginCluster
from shoal.origin.config import RefreshConfig, WriteBackConfig
from shoal.origin.growing import Growing, Shown
from shoal.origin.local import LocalBlobs
from shoal.origin.receiving import Receiver
from shoal.origin.refresh import Refresh
from shoal.origin.service import OriginService
from shoal.origin.writeback import WriteBack


class NoBackends:
    """Matches no repository."""

    empty = True

    def key_for_blobs(self, repository: str) -> None:
        return None

    def for_blobs(self, repository: str) -> None:
        return None


def no_write_back(name: str, local: LocalBlobs, ring: OriginCluster) -> WriteBack:
    backends = BlobBackends(NoBackends(), ())
    return WriteBack(name, local, ring, backends=backends, config=WriteBackConfig())


async def _show(growing: Growing) -> Shown:
    raise AssertionError(f"{growing.digest} is fetched, and there is no backend")


def no_refresh(
    service: OriginService, local: LocalBlobs, receiver: Receiver, ring: OriginCluster
) -> Refresh:
    refresh = Refresh(
        service.name,
        local,
        receiver,
        ring,
        BlobBackends(NoBackends(), ()),
        config=RefreshConfig(),
        keep=service.keep_fetched,
        spread=service.replicate,
        show=_show,
        unshow=lambda _: None,
    )
    service.connect(refresh)
    return refresh
