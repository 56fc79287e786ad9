# SPDX-License-Identifier: Apache-2.0
"""Tells the trackers what this host has and fetches, all blobs at once, and passes on who is there.

News waits a moment for more of its kind, so that an image of many layers costs a request or two for
each tracker. A tracker that was started anew, or whose place another has taken, is told everything
within `WATCH` seconds, so that those who come next find this host.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from contextlib import suppress
from time import monotonic

import structlog

from shoal.model.digest import Digest
from shoal.swarm.node import SwarmNode
from shoal.tracker.client import TrackerClient
from shoal.tracker.messages import AnnounceAnswer, AnnouncedBlob
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed

GATHER = 0.5
"""Seconds for which news waits for more."""

WATCH = 5.0
"""Seconds between questions to the trackers whether they still are who they were."""

_ANNOUNCE_TIMEOUT = 10.0
_LEAVE_TIMEOUT = 1.0
_DEFAULT_INTERVAL = 30.0

log = structlog.get_logger(__name__)


class Announcer:
    """What one host says to the trackers. Its methods are called in the event loop."""

    def __init__(self, node: SwarmNode, tracker: TrackerClient) -> None:
        self._node = node
        self._tracker = tracker
        self._cached: set[Digest] = set()
        self._fetching: set[Digest] = set()
        self._fresh: set[Digest] = set()
        """Cached since the trackers were last told."""
        self._small: set[Digest] = set()
        """Of those cached: fetched without a join."""
        self._seeking: dict[Digest, bool] = {}
        """Downloads that need other peers, and whether they get nothing from those they have."""
        self._dropped: set[Digest] = set()
        self._news = asyncio.Event()

    def fetches(self, digest: Digest) -> None:
        """A download begins. It joins the swarm itself, as it needs the metainfo at once."""
        self._cached.discard(digest)
        self._fetching.add(digest)

    def has(self, digest: Digest, *, small: bool = False) -> None:
        """The whole blob is here now. `small`: it came in one request, without a join."""
        if small:
            self._small.add(digest)
        self._fetching.discard(digest)
        self._cached.add(digest)
        self._fresh.add(digest)
        self._dropped.discard(digest)
        self._news.set()

    def has_not(self, digest: Digest) -> None:
        """The blob is gone, or its download failed."""
        if digest in self._cached or digest in self._fetching:
            self._dropped.add(digest)
            self._news.set()
        for kind in (self._cached, self._small, self._fetching, self._fresh):
            kind.discard(digest)
        self._seeking.pop(digest, None)

    def seek(self, digest: Digest, *, starved: bool) -> None:
        """A download needs other peers; `starved`: it gets nothing from those it has."""
        self._seeking[digest] = starved
        self._news.set()

    async def run(self, cached: Iterable[Digest]) -> None:
        """Tell the trackers what is here, again and again, until cancelled.

        `cached` is what an earlier process left on this host's disk.
        """
        self._cached.update(cached)
        interval, told, watched = _DEFAULT_INTERVAL, -math.inf, -math.inf
        while True:
            if monotonic() - watched >= WATCH:
                if await self._tracker.changed():
                    told = -math.inf
                watched = monotonic()
            everything = monotonic() - told >= interval
            if everything:
                told = monotonic()
            self._news.clear()
            interval = await self._tell(everything=everything) or interval
            await self._leave()
            wait = max(0.0, min(told + interval, watched + WATCH) - monotonic())
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._news.wait()
                await asyncio.sleep(GATHER)

    async def stop(self) -> None:
        """Take leave of the trackers."""
        with suppress(CallFailed):
            await self._tracker.leave(self._node.peer.id, deadline=Deadline.after(_LEAVE_TIMEOUT))

    async def _tell(self, *, everything: bool) -> float:
        """Announce blobs; the seconds after which to do so again, 0 when no tracker answered."""
        seeking, self._seeking = self._seeking, {}
        fresh, self._fresh = self._fresh, set()
        blobs = fresh | seeking.keys()
        if everything:
            blobs |= self._cached | self._fetching
        if not blobs:
            return 0.0
        announced = [
            AnnouncedBlob(
                str(digest),
                complete=digest in self._cached,
                starved=seeking.get(digest, False),
                small=digest in self._small,
            )
            for digest in blobs
        ]
        try:
            answer = await self._tracker.announce(
                self._node.peer, announced, deadline=Deadline.after(_ANNOUNCE_TIMEOUT)
            )
        except CallFailed as error:
            log.warning("no tracker could be told what is here", blobs=len(blobs), error=str(error))
            return 0.0
        self._pass_on(answer)
        return answer.interval_s

    def _pass_on(self, answer: AnnounceAnswer) -> None:
        for text, peers in answer.peers.items():
            swarm = self._node.blobs.get(Digest.parse(text))
            if swarm is None or swarm.picker is None:
                continue
            if self._node.peer.zone:
                swarm.keep_to_zone(answer.shares.get(text))
            swarm.add_peers(peers)

    async def _leave(self) -> None:
        dropped = self._dropped - self._cached - self._fetching
        self._dropped = set()
        if not dropped:
            return
        try:
            await self._tracker.leave(
                self._node.peer.id, dropped, deadline=Deadline.after(_LEAVE_TIMEOUT)
            )
        except CallFailed as error:
            # They forget it by themselves when its time to live is over.
            log.warning("no tracker could be told what left", blobs=len(dropped), error=str(error))
