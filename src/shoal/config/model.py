# SPDX-License-Identifier: Apache-2.0
"""What every service's config is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, model_validator

from shoal.config.units import Address, Duration


class Config(BaseModel):
    """Base of every section: unknown keys are errors, and nothing changes after the start."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class LogConfig(Config):
    """What is logged, and how it is written."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["console", "json"] = "console"
    """``console`` for people, ``json`` for machines; one line per event either way."""


Clients = Literal["optional", "required"]
"""Whether callers without a certificate may change something."""


class TlsConfig(Config):
    """The certificate of a service (PEM files). With one, all its HTTP is over TLS, both ways."""

    certificate: Path | None = None
    """For this host, followed by those between it and the `ca`, if there are any. It must name the
    host as others call it (DNS name or IP address), and be good for servers and for clients."""

    key: Path | None = None
    ca: Path | None = None
    """Those who issue the certificates of the cluster. Whoever has one is let in."""

    clients: Clients = "required"
    """``required``: only who shows a certificate may change something. What is internal to the
    cluster needs one either way, reading needs none."""

    @property
    def on(self) -> bool:
        """Whether the service speaks TLS."""
        return self.certificate is not None

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        files = {"certificate": self.certificate, "key": self.key, "ca": self.ca}
        missing = [name for name, path in files.items() if path is None]
        if missing and len(missing) < len(files):
            raise ValueError(f"TLS needs {' and '.join(missing)}, too")
        return self


class ServiceConfig(Config):
    """What every service has; a service sets its own default for `listen`."""

    listen: Address
    """The address that is listened on."""

    log: LogConfig = LogConfig()

    tls: TlsConfig = TlsConfig()

    shutdown_grace: Duration = 7.0
    """How long requests that are under way may take to finish after SIGTERM."""
