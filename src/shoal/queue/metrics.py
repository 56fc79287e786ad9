# SPDX-License-Identifier: Apache-2.0
"""What operators see of the durable queues of a process."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import Counter, Gauge, Histogram

from shoal.queue.database import Count
from shoal.queue.tasks import State

_TASKS = Gauge(
    "shoal_queue_tasks", "Tasks in the queue, by state: waiting, running, dead.", ["queue", "state"]
)
_OLDEST = Gauge("shoal_queue_oldest_seconds", "Age of the oldest task that is not dead.", ["queue"])
ATTEMPTS = Counter(
    "shoal_queue_attempts",
    "Attempts, by how they ended: done, failed (will be tried again), postponed (it was not time "
    "yet), dead (given up).",
    ["queue", "outcome"],
)
DROPPED = Counter("shoal_queue_dropped", "Tasks that an operator dropped.", ["queue"])
SECONDS = Histogram(
    "shoal_queue_seconds",
    "Seconds from when a task was added until it was done.",
    ["queue"],
    buckets=(0.01, 0.05, 0.1, 0.5, 1, 5, 10, 60, 300, 3600, 86400),
)


def show(queue: str, counts: Mapping[State, Count], now: float) -> None:
    """Set the gauges of a queue."""
    for state in (State.WAITING, State.RUNNING, State.DEAD):
        _TASKS.labels(queue, state).set(counts[state].tasks if state in counts else 0)
    alive = [counts[state].oldest for state in (State.WAITING, State.RUNNING) if state in counts]
    _OLDEST.labels(queue).set(max(0.0, now - min(alive)) if alive else 0.0)
