# SPDX-License-Identifier: Apache-2.0
"""Ask every service whether it can do its job, all at the same time, until each says yes."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from shoal.cluster.layout import Member

if TYPE_CHECKING:
    from aiohttp import ClientSession

INTERVAL = 0.05
"""Seconds between two questions to the same service: a start takes about a second."""

_ANSWER_WITHIN = 5.0


class _Readiness(msgspec.Struct):
    ready: bool = False
    missing: list[str] = []


class ReadinessProbe:
    """Polls ``GET /readiness`` of many services."""

    def __init__(self, members: Iterable[Member]) -> None:
        self._members = list(members)
        self._unready = {member.name: "not asked yet" for member in self._members}

    def unready(self) -> dict[str, str]:
        """Return what each service that is not ready yet lacks, by name."""
        return dict(self._unready)

    async def run(self) -> None:
        """Return when all are ready; the caller bounds the time."""
        # Imported here: by now the services are starting, and they need the processor first.
        from aiohttp import ClientSession, ClientTimeout

        async with (
            ClientSession(timeout=ClientTimeout(total=_ANSWER_WITHIN)) as session,
            asyncio.TaskGroup() as group,
        ):
            for member in self._members:
                group.create_task(self._until_ready(session, member))

    async def _until_ready(self, session: ClientSession, member: Member) -> None:
        while True:
            self._unready[member.name] = why = await _ask(session, member.readiness_url, member.ca)
            if not why:
                del self._unready[member.name]
                return
            await asyncio.sleep(INTERVAL)


async def _ask(session: ClientSession, url: str, ca: str | None) -> str:
    """Return what the service lacks; nothing when it is ready."""
    from aiohttp import ClientError

    try:
        trusted = True if ca is None else ssl.create_default_context(cafile=ca)
        async with session.get(url, ssl=trusted) as answer:
            body = await answer.read()
    except (ClientError, OSError, TimeoutError) as error:
        return f"GET {url}: {str(error) or type(error).__name__}"
    if answer.status == 200:
        return ""
    try:
        missing = msgspec.json.decode(body, type=_Readiness).missing
    except (msgspec.DecodeError, UnicodeDecodeError):
        missing = []
    return f"GET {url}: {answer.status}, missing: {', '.join(missing) or 'it does not say what'}"
