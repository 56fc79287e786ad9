# SPDX-License-Identifier: Apache-2.0
"""The ways in which a call to another service fails.

"It is not there" and "could not ask" are different types everywhere, because only one of them is an
answer. `retry_after` is the one place that decides what is worth another try.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shoal.model.errors import ApiError


class CallFailed(Exception):
    """A call that brought no usable answer: what was asked of whom, and what went wrong."""

    def __init__(
        self,
        method: str,
        url: str,
        detail: str,
        *,
        status: int | None = None,
        body: Any = None,
        retry_after: float | None = None,
        causes: Sequence[CallFailed] = (),
    ) -> None:
        super().__init__(method, url, detail)
        self.method = method
        self.url = url
        self.status = status
        self.detail = detail
        self.body = body
        """The answer's JSON, if it was JSON."""
        self.retry_after = retry_after
        """Seconds after which the other side asks to be tried again."""
        self.causes = tuple(causes)
        """When several hosts were asked: what each of them answered."""

    def __str__(self) -> str:
        answered = "" if self.status is None else f" answered {self.status}"
        return f"{self.method} {self.url}{answered}: {self.detail}"

    @property
    def code(self) -> str | None:
        """The first error code of the answer's body (OCI distribution-spec, "Error codes")."""
        try:
            code = self.body["errors"][0]["code"]
        except (TypeError, KeyError, IndexError):
            return None
        return code if isinstance(code, str) else None


class NotFound(CallFailed):
    """404: it was asked, and it is not there."""


class Unreachable(CallFailed):
    """Refused, reset, no such host, timed out, or not HTTP: it could not be asked."""


class Overloaded(CallFailed):
    """429 or 5xx: it was asked and could not answer now; a later try may succeed."""


class Rejected(CallFailed):
    """Another status that is no success: the same request will fail again."""


def remembered(error: CallFailed) -> CallFailed:
    """A failure as it is kept and raised again, a new one each time.

    It holds little: neither the answer's body nor the frames that each raising of an exception adds
    to it. Its causes are left out; whether it is worth another try stays the same.
    """
    kind = type(error)
    if kind not in (NotFound, Unreachable, Overloaded, Rejected):
        kind = Rejected if retry_after(error) is None else Unreachable
    return kind(
        error.method,
        error.url,
        error.detail,
        status=error.status,
        retry_after=error.retry_after,
    )


@dataclass(frozen=True, slots=True)
class Again:
    """The same request may succeed later."""

    after: float | None = None
    """Seconds for which the other side asks to be left alone; None: it did not say."""


def retry_after(error: BaseException) -> Again | None:
    """Say whether a failure is worth another try: the one classification that all of Shoal uses.

    Worth it: "not there" (it may be on its way), what could not be asked, time-outs, 408, 429 and
    5xx, with the seconds that a Retry-After names. Permanent (None): every other status, such as
    400, 401 and 403, malformed content, a digest that does not match, and defects. A failure of
    several hosts is worth another try when that of one of them is.
    """
    if isinstance(error, CallFailed):
        return _call_again(error)
    if isinstance(error, ApiError):
        return _again(error.status, _seconds(error.headers))
    return Again() if isinstance(error, TimeoutError | ConnectionError) else None


def combined(method: str, url: str, detail: str, causes: Sequence[CallFailed]) -> CallFailed:
    """One failure for what several hosts answered: `Rejected` when no cause is worth another try.

    Chain it to one of the causes by `raise … from`.
    """
    kind = Unreachable if any(map(retry_after, causes)) else Rejected
    status = None if kind is Unreachable else causes[0].status
    return kind(method, url, detail, status=status, causes=causes)


def _call_again(error: CallFailed) -> Again | None:
    if error.causes:
        chances = [chance for chance in map(retry_after, error.causes) if chance is not None]
        if not chances:
            return None
        # A host that asked for nothing may be asked again at any time.
        waits = [chance.after for chance in chances]
        return Again(None if None in waits else min(wait for wait in waits if wait is not None))
    if isinstance(error, NotFound | Unreachable | Overloaded):
        return Again(error.retry_after)
    return _again(error.status, error.retry_after)


def _again(status: int | None, after: float | None) -> Again | None:
    worth = status is not None and (status in _TRANSIENT or status >= 500)
    return Again(after) if worth else None


_TRANSIENT = frozenset({404, 408, 429})


def _seconds(headers: Mapping[str, str]) -> float | None:
    text = headers.get("Retry-After", "")
    return float(text) if text.isascii() and text.isdigit() and len(text) < 8 else None
