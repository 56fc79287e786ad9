# SPDX-License-Identifier: Apache-2.0
"""Config of the peer endpoint of an agent or an origin."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from shoal.config.model import Config, TlsConfig
from shoal.config.units import Address, Bytes, Duration, Rate


class PeerTlsConfig(Config):
    """The certificates by which peers know each other. Both sides must prove one of the `ca`.

    Where there are none, those of the service's `tls`.
    """

    ca: Path | None = None
    certificate: Path | None = None
    """For this host; must name the host that `peer.advertise` says (DNS name or IP address)."""

    key: Path | None = None
    enabled: bool | None = None
    """By default as soon as any of the three files is named, so that none is forgotten."""

    @property
    def on(self) -> bool:
        """Whether peers speak TLS."""
        return any(self._files().values()) if self.enabled is None else self.enabled

    def _files(self) -> dict[str, Path | None]:
        return {"ca": self.ca, "certificate": self.certificate, "key": self.key}

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        files = self._files()
        missing = [name for name, path in files.items() if path is None]
        if self.on and missing:
            hint = " (with the service's own tls it is on by itself)" if missing == [*files] else ""
            raise ValueError(f"TLS between peers needs {' and '.join(missing)}, too{hint}")
        return self


class PeerConfig(Config):
    """Where peers are reached, and how much of this host they may take."""

    listen: Address = "127.0.0.1:5012"
    advertise: Address | None = None
    """What other hosts dial; by default the address listened on."""

    max_accepted: Annotated[int, Field(ge=1)] = 64
    """Connections taken from others. More than are dialed, or swarms fall into islands: over all
    blobs half of this number are dialed, and up to three quarters where a blob has no link yet."""

    max_dialed: Annotated[int, Field(ge=1)] = 12
    """Connections opened for one blob."""

    pipeline: Bytes = 8 * 1024 * 1024
    """Bytes of pieces asked for in advance from one peer."""

    buffers: Bytes = 64 * 1024 * 1024
    """Bytes of pieces received and not yet checked and written; sockets wait beyond it."""

    handshake_timeout: Duration = 5.0
    request_timeout: Duration = 4.0
    """Silence that is borne from a peer that pieces are due from, at most."""

    ingress: Rate = 0.0
    """Bytes of pieces received per second, over all peers; 0: no limit."""

    egress: Rate = 0.0
    """Bytes of pieces sent per second, over all peers; 0: no limit."""

    per_blob: Rate = 0.0
    """Bytes of pieces of one blob per second, in each direction; 0: no limit."""

    tls: PeerTlsConfig = PeerTlsConfig()

    idle_timeout: Duration = 60.0
    """A connection over which nothing is wanted is closed after this."""

    def within(self, tls: TlsConfig) -> PeerConfig:
        """The same in a service with this `tls`, whose certificate peers show by default."""
        if not tls.on or self.tls.certificate is not None or self.tls.enabled is False:
            return self
        files = PeerTlsConfig(ca=tls.ca, certificate=tls.certificate, key=tls.key)
        return self.model_copy(update={"tls": files})

    @model_validator(mode="after")
    def _accepts_more_than_it_dials(self) -> Self:
        if self.max_accepted <= self.max_dialed:
            raise ValueError(
                f"max_accepted ({self.max_accepted}) must be above max_dialed "
                f"({self.max_dialed}), or swarms fall into islands"
            )
        return self
