# SPDX-License-Identifier: Apache-2.0
"""What ``GET /internal/status`` says of one origin: its copies, repair, scrub, and its disk."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from shoal.origin.bandwidth import Bandwidth
from shoal.origin.refetch import Refetcher
from shoal.origin.repair import Repairer
from shoal.origin.scrub import Scrubber
from shoal.store.threads import in_thread


class RepairStatus(msgspec.Struct, frozen=True):
    """The pass under way, or the last one."""

    running: bool
    started: float | None
    """Epoch seconds; None: no pass has begun yet."""
    finished: float | None
    examined: int
    total: int
    sent: int
    sent_bytes: int
    failed: int
    removed: int
    """Spare copies."""
    rate: float
    """Bytes per second that are being sent."""
    eta: float | None
    """Seconds until the pass is through, at the pace so far; None when none is under way."""
    unasked: dict[str, str]
    """Members that could not be asked, and why."""


class ScrubStatus(msgspec.Struct, frozen=True):
    """The scrub under way, or the last one."""

    enabled: bool
    running: bool
    started: float | None
    """Epoch seconds."""
    finished: float | None
    """Epoch seconds; of the last scrub that has seen all."""
    blobs: int
    total: int
    bytes: int
    damaged: int
    rate: float
    """Bytes per second that are being read."""
    eta: float | None
    """Seconds."""


class DiskStatus(msgspec.Struct, frozen=True):
    """One volume."""

    path: str
    total: int
    """Bytes."""
    free: int
    """Bytes that this process may still write."""


class OriginStatus(msgspec.Struct, frozen=True):
    """One origin, as it sees itself and the others."""

    origin: str
    members: list[str]
    """All members of the ring that it knows."""
    owned: int
    """Copies on this origin of which it is an owner, as of the last pass (or the one under way)."""
    owned_bytes: int
    surplus: int
    """Copies of which it is none; they go when all owners have the blob."""
    lacking: dict[str, int]
    """By member: copies that it lacks, of the blobs of which this origin is the first holder; as
    far as known."""
    unsure: list[str]
    """Why more may be missing than that, in words; empty: the last look has told."""
    damaged: int
    """Blobs of which only a damaged copy is here, set aside."""
    lost: list[str]
    """Those of them that nobody else has."""
    pending: int
    """Blobs that are still to be written to a backend."""
    repair: RepairStatus
    scrub: ScrubStatus
    disks: list[DiskStatus]


class StatusReport:
    """Puts an origin's status together."""

    def __init__(
        self,
        name: str,
        members: Callable[[], Sequence[str]],
        *,
        repairer: Repairer,
        refetcher: Refetcher,
        scrubber: Scrubber,
        bandwidth: Bandwidth,
        volumes: Sequence[Path],
        pending: Callable[[], int],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`pending`: blobs that wait for their write-back; `clock` gives epoch seconds."""
        self._name = name
        self._members = members
        self._repairer = repairer
        self._refetcher = refetcher
        self._scrubber = scrubber
        self._bandwidth = bandwidth
        self._volumes = volumes
        self._pending = pending
        self._clock = clock

    async def status(self) -> OriginStatus:
        """The status now."""
        current, last = self._repairer.current, self._repairer.last
        # A pass that has just begun has counted little yet.
        counted = last or current
        return OriginStatus(
            origin=self._name,
            members=list(self._members()),
            owned=counted.owned if counted else 0,
            owned_bytes=counted.owned_bytes if counted else 0,
            surplus=counted.spare if counted else 0,
            lacking=self._repairer.missing(),
            unsure=self._repairer.unsure(),
            damaged=len(self._refetcher.lacking),
            lost=sorted(map(str, self._refetcher.lost)),
            pending=self._pending(),
            repair=self._repair(),
            scrub=self._scrub(),
            disks=await in_thread(self._disks),
        )

    def _repair(self) -> RepairStatus:
        look = self._repairer.current or self._repairer.last
        if look is None:
            return RepairStatus(False, None, None, 0, 0, 0, 0, 0, 0, 0.0, None, {})
        running = look.finished is None
        return RepairStatus(
            running=running,
            started=look.started,
            finished=look.finished,
            examined=look.examined,
            total=max(look.total, look.examined),
            sent=look.sent,
            sent_bytes=look.sent_bytes,
            failed=look.failed,
            removed=look.removed,
            rate=self._bandwidth.measured(),
            eta=self._eta(look.started, look.examined, look.total) if running else None,
            unasked=dict(look.unasked),
        )

    def _scrub(self) -> ScrubStatus:
        scrubber = self._scrubber
        running = scrubber.position is not None
        position = scrubber.position or scrubber.last
        rate = scrubber.measured()
        if position is None:
            return ScrubStatus(scrubber.enabled, False, None, None, 0, 0, 0, 0, rate, None)
        total = max(scrubber.total, position.blobs)
        return ScrubStatus(
            enabled=scrubber.enabled,
            running=running,
            started=position.started,
            finished=position.finished,
            blobs=position.blobs,
            total=total,
            bytes=position.bytes,
            damaged=position.damaged,
            rate=rate,
            eta=self._eta(position.started, position.blobs, total) if running else None,
        )

    def _eta(self, started: float, done: int, total: int) -> float | None:
        if not done:
            return None
        return max(0, total - done) * max(0.0, self._clock() - started) / done

    def _disks(self) -> list[DiskStatus]:
        disks = []
        for path in self._volumes:
            try:
                status = os.statvfs(path)
            except OSError:
                disks.append(DiskStatus(str(path), 0, 0))
                continue
            size = status.f_frsize
            disks.append(DiskStatus(str(path), status.f_blocks * size, status.f_bavail * size))
        return disks
