# SPDX-License-Identifier: Apache-2.0
"""Whether an origin can do its job: keep blobs and seed them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from shoal.origin.config import OriginConfig
from shoal.origin.joining import Joining
from shoal.store.durable import write_plainly
from shoal.store.threads import in_thread
from shoal.store.volumes import Volumes


class Readiness:
    """Looks at what the origin needs of its own host."""

    def __init__(
        self,
        config: OriginConfig,
        volumes: Volumes,
        joining: Joining,
        peer_listening: Callable[[], bool],
    ) -> None:
        self._config = config
        self._volumes = volumes
        self._joining = joining
        self._peer_listening = peer_listening

    async def missing(self) -> list[str]:
        """What is missing, in words; nothing when the origin is ready."""
        missing = []
        unwritable = await in_thread(_why_unwritable, self._config.data_dir)
        if unwritable is not None:
            missing.append(f"data_dir {self._config.data_dir} cannot be written: {unwritable}")
        await in_thread(self._volumes.check)
        missing += [f"a volume has failed: {failure}" for failure in self._volumes.failures()]
        if not self._peer_listening():
            missing.append(f"the peer endpoint does not listen on {self._config.peer.listen}")
        missing += self._joining.missing()
        ring = self._config.origins
        # A list that grows by itself may well begin with this origin alone.
        if ring.hosts and len(ring.hosts) < ring.write_quorum:
            missing.append(
                f"origins.hosts lists {len(ring.hosts)} member(s), which is fewer than the write "
                f"quorum of {ring.write_quorum}"
            )
        return missing


def _why_unwritable(folder: Path) -> str | None:
    probe = folder / "readiness"
    try:
        write_plainly(probe, b"ready\n")
        probe.unlink(missing_ok=True)
    except OSError as error:
        return error.strerror or str(error)
    return None
