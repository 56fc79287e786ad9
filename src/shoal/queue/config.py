# SPDX-License-Identifier: Apache-2.0
"""Config of a durable queue."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from shoal.config.model import Config
from shoal.config.units import Duration
from shoal.queue.retry import RetryPolicy


class QueueConfig(Config):
    """How a durable queue works through its tasks."""

    concurrency: Annotated[int, Field(ge=1)] = 8
    """Tasks that are worked on at the same time."""

    retry: RetryPolicy = RetryPolicy(cap=60.0)
    """How long a task that failed waits for its next attempt, and how often it is tried at least
    before it may be given up."""

    dead_after: Duration = 7 * 24 * 3600.0
    """A task that still fails when it is older than this is given up: kept, and no longer tried."""


def queue_file(data_dir: Path, name: str) -> Path:
    """The file of a service's queue of that name."""
    return data_dir / "queues" / f"{name}.sqlite"
