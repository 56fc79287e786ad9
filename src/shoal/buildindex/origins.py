# SPDX-License-Identifier: Apache-2.0
"""The origin cluster as dependency resolution needs it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from shoal.model.digest import Digest
from shoal.origin.client import OriginCluster
from shoal.web.failures import NotFound, combined

if TYPE_CHECKING:
    from shoal.origin.poll import Poll

T = TypeVar("T")


class ResolvingOrigins(OriginCluster):
    """An origin cluster whose failures tell what each of the hosts answered.

    Without that, a refusal by all of them (401, say) would look as if nobody could be asked, and
    would be tried again in vain.
    """

    async def _ask_members(
        self,
        digest: Digest,
        question: Callable[[str], Awaitable[T]],
        enough: Callable[[Poll[T]], float | None],
        *,
        stagger: float = 0.0,
        besides: str | None = None,
    ) -> Poll[T]:
        poll = await super()._ask_members(
            digest, question, enough, stagger=stagger, besides=besides
        )
        if poll.unasked and not poll.found:
            path = f"/internal/blobs/{digest}"
            refused = list(poll.unasked.values())
            absent = [NotFound("GET", f"http://{host}{path}", "not there") for host in poll.absent]
            detail = f"no origin gave {digest}: {poll.said()}"
            raise combined("GET", path, detail, [*refused, *absent]) from refused[0]
        return poll
