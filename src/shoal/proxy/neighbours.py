# SPDX-License-Identifier: Apache-2.0
"""The other proxies: what one image needs may have been pushed through several of them."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence

import msgspec

from shoal.model.digest import Digest
from shoal.web.client import HttpClient
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed

DELIVER_PATH = "/internal/deliver"
MAX_DIGESTS = 20_000
MARGIN = 0.5
"""Seconds by which a neighbour answers before its caller's deadline."""


class DeliverRequest(msgspec.Struct):
    """Asks to deliver those of the blobs that wait at the one who is asked."""

    digests: list[str]


class DeliverAnswer(msgspec.Struct):
    """Those that still wait, and how they stand."""

    waiting: dict[str, str]


class Neighbours:
    """All other proxies, asked at the same time."""

    def __init__(self, http: HttpClient, hosts: Sequence[str] = ()) -> None:
        """Hosts are ``host:port``."""
        self._http = http
        self._hosts = hosts

    async def delivered(
        self, digests: Collection[Digest], deadline: Deadline
    ) -> tuple[dict[Digest, str], list[str]]:
        """Have them deliver what waits there; what still does, and who could not be asked."""
        waiting: dict[Digest, str] = {}
        silent: list[str] = []
        if not self._hosts or not digests:
            return waiting, silent
        request = DeliverRequest([str(digest) for digest in digests])

        async def ask(host: str) -> None:
            url = self._http.url(host, DELIVER_PATH)
            try:
                answer = await self._http.call("POST", url, json=request, deadline=deadline)
                still = answer.decode(DeliverAnswer).waiting
            except CallFailed as error:
                silent.append(str(error))
                return
            waiting.update({Digest.parse(name): f"{host}: {how}" for name, how in still.items()})

        await asyncio.gather(*map(ask, self._hosts))
        return waiting, silent
