# SPDX-License-Identifier: Apache-2.0
"""Processor time and memory of a cluster's services, by role."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import psutil


class Usage:
    """CPU seconds of a cluster's processes from when this is made; memory whenever it is asked.

    `pids` is by service name: ``origin-2`` counts for the role ``origin``.
    """

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._processes = {name: psutil.Process(pid) for name, pid in pids.items()}
        self._began = {name: _cpu_s(process) for name, process in self._processes.items()}

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds since this was made, summed over the processes of each role."""
        spent: dict[str, float] = {}
        for name, process in self._processes.items():
            role = role_of(name)
            spent[role] = spent.get(role, 0.0) + _cpu_s(process) - self._began[name]
        return spent

    def peak_rss_mb(self) -> dict[str, float]:
        """Return the most memory (MB) that a process of each role ever had."""
        peak: dict[str, float] = {}
        for name, process in self._processes.items():
            role = role_of(name)
            peak[role] = max(peak.get(role, 0.0), _status_kib(process.pid, "VmHWM") * 1024 / 1e6)
        return peak

    def rss_mb(self, role: str) -> float:
        """Return the most memory (MB) that a process of the role has now."""
        return max(
            process.memory_info().rss / 1e6
            for name, process in self._processes.items()
            if role_of(name) == role
        )


def role_of(name: str) -> str:
    """Return the role of a service by its name."""
    return name.rpartition("-")[0]


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _status_kib(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == field:
            return int(value.split()[0])
    raise LookupError(f"/proc/{pid}/status has no {field}")
