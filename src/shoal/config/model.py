# SPDX-License-Identifier: Apache-2.0
"""What every service's config is made of."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from shoal.config.units import Address, Duration


class Config(BaseModel):
    """Base of every section: unknown keys are errors, and nothing changes after the start."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class LogConfig(Config):
    """What is logged, and how it is written."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["console", "json"] = "console"
    """``console`` for people, ``json`` for machines; one line per event either way."""


class ServiceConfig(Config):
    """What every service has; a service sets its own default for `listen`."""

    listen: Address
    """The address that is listened on."""

    log: LogConfig = LogConfig()

    shutdown_grace: Duration = 7.0
    """How long requests that are under way may take to finish after SIGTERM."""
