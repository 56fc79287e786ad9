# SPDX-License-Identifier: Apache-2.0
"""What ``shoal origin status`` asks the origins, and what it prints."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from shoal.config.units import format_duration
from shoal.origin.status import OriginStatus
from shoal.web.client import HttpClient
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed
from shoal.web.tls import Tls

STATUS = "/internal/status"
PATIENCE = 10.0
"""Seconds for one origin to answer."""


@dataclass(frozen=True, slots=True)
class Silent:
    """An origin that did not answer."""

    why: str


Answers = Mapping[str, OriginStatus | Silent]
"""By host."""


async def ask_all(hosts: Sequence[str], tls: Tls | None = None) -> Answers:
    """Ask each origin (``host:port``) how it is.

    When nothing is missing they are asked once more, as answers come from different moments: one
    may be from just before a member that lost its disk tells the others, and its own from just
    after. Of two rounds, one behind the other, at least one sees it.
    """
    http = HttpClient(user_agent="shoal-cli", tls=tls)

    async def ask(host: str) -> OriginStatus | Silent:
        url, soon = http.url(host, STATUS), Deadline.after(PATIENCE)
        try:
            answer = await http.call("GET", url, deadline=soon)
            return answer.decode(OriginStatus)
        except CallFailed as error:
            return Silent(error.detail)

    async def round_of_asking() -> Answers:
        return dict(zip(hosts, await asyncio.gather(*map(ask, hosts)), strict=True))

    try:
        answers = await round_of_asking()
        if all(map(is_whole, answers.values())):
            answers = await round_of_asking()
        return answers
    finally:
        await http.close()


def is_whole(answer: OriginStatus | Silent) -> bool:
    """Whether this origin answered, and is sure that no copy is missing."""
    return isinstance(answer, OriginStatus) and not (
        answer.lacking or answer.unsure or answer.damaged or answer.repair.unasked
    )


def document(answers: Answers) -> str:
    """All answers as one JSON object."""
    origins: dict[str, Any] = {
        host: {"error": answer.why} if isinstance(answer, Silent) else msgspec.to_builtins(answer)
        for host, answer in answers.items()
    }
    return msgspec.json.encode({"origins": origins, "total": _total(answers)}).decode()


def _total(answers: Answers) -> dict[str, int]:
    known = [answer for answer in answers.values() if isinstance(answer, OriginStatus)]
    return {
        "answering": len(known),
        "origins": len(answers),
        "owned": sum(it.owned for it in known),
        "owned_bytes": sum(it.owned_bytes for it in known),
        "missing": sum(sum(it.lacking.values()) for it in known),
        "unsure": sum(1 for it in known if it.unsure),
        "surplus": sum(it.surplus for it in known),
        "damaged": sum(it.damaged for it in known),
        "lost": len({digest for it in known for digest in it.lost}),
        "pending": sum(it.pending for it in known),
    }


_HEAD = ("ORIGIN", "OWNED", "SIZE", "MISSING", "SURPLUS", "DAMAGED", "PENDING", "REPAIR", "SCRUB")


def lines(answers: Answers) -> Iterator[str]:
    """A row per origin, the total, and what needs somebody's attention."""
    rows = [_HEAD, *(_row(host, answers) for host in answers)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    for row in rows:
        yield "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
    total = _total(answers)
    yield ""
    sure = total["answering"] == total["origins"] and not total["unsure"]
    missing = f"{'' if sure else 'at least '}{total['missing']} copies missing"
    yield (
        f"{total['answering']} of {total['origins']} origins answer; {missing}, "
        f"{total['surplus']} in excess, {total['pending']} blobs wait for a backend"
    )
    for host, answer in answers.items():
        if isinstance(answer, Silent):
            yield f"{host} does not answer: {answer.why}"
            continue
        for why in answer.unsure:
            yield f"{host} cannot say yet that nothing is missing: {why}"
        for member, why in answer.repair.unasked.items():
            yield f"{host} could not ask {member}: {why}"
        for digest in answer.lost:
            yield f"{host} has a damaged copy of {digest}, and nobody else has one: push it again"


def _row(host: str, answers: Answers) -> tuple[str, ...]:
    answer = answers[host]
    if isinstance(answer, Silent):
        return (host, "silent", *("-" for _ in _HEAD[2:]))
    # What this origin lacks is what the first holders of the blobs say.
    lacks = sum(
        other.lacking.get(answer.origin, 0)
        for other in answers.values()
        if isinstance(other, OriginStatus)
    )
    return (
        host,
        str(answer.owned),
        f"{answer.owned_bytes / 1e6:.1f} MB",
        str(lacks),
        str(answer.surplus),
        str(answer.damaged),
        str(answer.pending),
        _repair(answer),
        _scrub(answer),
    )


def _repair(answer: OriginStatus) -> str:
    repair = answer.repair
    if not repair.running:
        return "idle" if repair.finished is not None else "not yet"
    return f"{repair.examined}/{repair.total} {repair.rate / 1e6:.1f} MB/s{_eta(repair.eta)}"


def _scrub(answer: OriginStatus) -> str:
    scrub = answer.scrub
    if not scrub.enabled:
        return "off"
    if not scrub.running:
        return "idle"
    return f"{scrub.blobs}/{scrub.total} {scrub.rate / 1e6:.1f} MB/s{_eta(scrub.eta)}"


def _eta(seconds: float | None) -> str:
    return "" if seconds is None else f", {format_duration(round(seconds))} left"
