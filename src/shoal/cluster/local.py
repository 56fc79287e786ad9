# SPDX-License-Identifier: Apache-2.0
"""A cluster on free ports of this machine, for as long as a block of code runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from shoal.cluster.layout import Overrides, Shape, lay_out
from shoal.cluster.ports import reserve
from shoal.cluster.supervisor import (
    NO_FLAGS,
    NO_LAUNCHERS,
    Cluster,
    Flags,
    Launchers,
    running,
)


@asynccontextmanager
async def local_cluster(
    shape: Shape,
    data_dir: Path,
    *,
    report: Callable[[str], None],
    port_base: int | None = None,
    overrides: Overrides | None = None,
    flags: Flags = NO_FLAGS,
    launchers: Launchers = NO_LAUNCHERS,
) -> AsyncIterator[Cluster]:
    """Start a cluster and wait until it is ready; `report` gets lines about services that die.

    Raises `LayoutError`, `PortsTaken`, `DataDirInUse` or `StartFailed`.
    """
    with reserve(shape.ports(), port_base) as ports:
        layout = lay_out(shape, data_dir, ports.first, overrides)
        started = running(layout, report=report, flags=flags, launchers=launchers)
        async with started as cluster:
            yield cluster
