# SPDX-License-Identifier: Apache-2.0
"""The ways in which a call to another service fails.

"It is not there" and "could not ask" are different types everywhere, because only one of them is an
answer.
"""

from __future__ import annotations

from typing import Any


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
