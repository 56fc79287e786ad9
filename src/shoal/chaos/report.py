# SPDX-License-Identifier: Apache-2.0
"""What a run of chaos came to, for eyes and for scripts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Outcome:
    """The figures of one run; seconds where nothing else is said."""

    operations: int
    """Pushes tried and pulls done."""
    pushes: int
    pulls: int
    failures: Mapping[str, int]
    """Of single requests of clients while things were broken, by what failed."""
    faults: Mapping[str, int]
    """By kind."""
    storage_faults: int
    """Requests that the object storage refused or broke off."""
    acknowledged: int
    lost: int
    lost_names: Sequence[str]
    wrong_bytes: int
    longest_unavailable_s: float
    """From when a client wanted an acknowledged image until it had it whole, all tries included."""
    longest_repair_s: float
    """From the return of a wiped origin until every blob had all its copies again."""
    unrepaired: int
    """Blobs that did not have them in time."""
    seconds: float
    seed: int

    @property
    def good(self) -> bool:
        """Nothing was lost, nothing was wrong, and all was repaired."""
        return not (self.lost or self.wrong_bytes or self.unrepaired)


def document(outcome: Outcome) -> dict[str, Any]:
    """The outcome as a JSON object."""
    return asdict(outcome)


def lines(outcome: Outcome) -> Iterator[str]:
    """The outcome for a reader."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(outcome.faults.items()))
    yield f"seed {outcome.seed}, {outcome.seconds:g} s; faults: {kinds or 'none'}"
    yield f"storage: {outcome.storage_faults} requests refused or broken off"
    yield (
        f"pushes: {outcome.pushes} tried, {outcome.acknowledged} acknowledged; "
        f"pulls: {outcome.pulls}"
    )
    for why, count in outcome.failures.items():
        yield f"  failed meanwhile: {count} x {why}"
    yield f"longest time until a wanted image had come: {outcome.longest_unavailable_s:g} s"
    yield f"longest repair after a wipe: {outcome.longest_repair_s:g} s"
    yield f"lost: {outcome.lost}, wrong bytes: {outcome.wrong_bytes}"
    yield from (f"  lost: {name}" for name in outcome.lost_names)
