# SPDX-License-Identifier: Apache-2.0
"""``shoal up``: a cluster in one process tree, until it is told to stop."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from shoal.cluster.layout import Overrides, Shape
from shoal.cluster.local import local_cluster
from shoal.cluster.supervisor import Cluster


async def up(
    shape: Shape,
    data_dir: Path,
    *,
    port_base: int | None = None,
    overrides: Overrides | None = None,
    ready_file: Path | None = None,
    say: Callable[[str], None],
    complain: Callable[[str], None],
) -> None:
    """Run a cluster until it is cancelled or its last service has died.

    `say` gets the table once all are ready, `complain` each service that dies, line by line.
    Raises `LayoutError`, `PortsTaken`, `DataDirInUse` or `StartFailed`.
    """
    began = time.monotonic()
    with _announced(ready_file) as announce:
        async with local_cluster(
            shape, data_dir, report=complain, port_base=port_base, overrides=overrides
        ) as cluster:
            announce(cluster)
            for line in table(cluster):
                say(line)
            say(f"ready in {time.monotonic() - began:.1f} s; Ctrl-C stops it")
            await cluster.wait_empty()
            complain("no service is left")


def table(cluster: Cluster) -> Iterator[str]:
    """Render a line per service: name, process id and where it listens."""
    pids = cluster.pids()
    yield f"{'SERVICE':<16}{'PID':>8}  ADDRESS"
    for member in cluster.layout.members:
        yield f"{member.name:<16}{pids[member.name]:>8}  {member.url()}"
    yield f"data, logs and config: {cluster.layout.data_dir}"


@contextmanager
def _announced(ready_file: Path | None) -> Iterator[Callable[[Cluster], None]]:
    """Something that writes the ready file, which never outlives or precedes a ready cluster."""
    if ready_file is not None:
        ready_file.unlink(missing_ok=True)

    def announce(cluster: Cluster) -> None:
        if ready_file is None:
            return
        document = cluster.layout.ready_document(cluster.pids())
        unfinished = ready_file.with_name(f".{ready_file.name}.{os.getpid()}")
        unfinished.write_text(json.dumps(document, indent=2) + "\n")
        unfinished.replace(ready_file)

    try:
        yield announce
    finally:
        if ready_file is not None:
            ready_file.unlink(missing_ok=True)
