# SPDX-License-Identifier: Apache-2.0
"""Faults on purpose, for tests and ``shoal bench race``; no production origin has them.

Only the hidden option ``shoal origin --faults`` calls `add_to`: no config key and no environment
variable leads here. Without the option the route is not there and no request passes this module.

What is injected lies between an origin's acknowledgement and what others can see of it:

* a blob that this origin has just acknowledged (2xx to the PUT) stays invisible to the other
  services for a drawn delay: stat leaves it out, GET of the blob and of its metainfo are 404;
* requests about blobs fail, half of them by 503 and half by a reset connection.

Every draw is a hash of the seed and of what it is about, so that a run with the same seed and the
same blobs has the same faults, in whatever order the requests come. Which blobs are late is drawn
for all origins together, how late for each by itself: the copies of one blob appear one by one.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from hashlib import blake2b
from typing import Annotated

import msgspec
import structlog
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from shoal.model.errors import BlobUnknown, Unavailable
from shoal.origin.messages import StatAnswer
from shoal.web.requests import read_json

PATH = "/internal/faults"
"""PUT takes a `FaultPlan`, GET gives a `FaultReport`."""

_BLOBS = "/internal/blobs/"
_DRAWS = 2.0**64

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]

log = structlog.get_logger()


class FaultPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is injected from now on; the default is nothing."""

    seed: int = 0
    origin: str = ""
    """What to call this origin in draws: its address may be another one in the next run."""
    late_share: Share = 0.0
    """Of all blobs, those that become visible late."""
    max_delay: Annotated[float, msgspec.Meta(ge=0, le=600)] = 0.0
    """Seconds; delays are uniform between 0 and this."""
    only: frozenset[str] | None = None
    """Digests; no other blob is late. None: all may be."""
    fail_rate: Share = 0.0
    """Of the requests about blobs, those that fail."""


class FaultReport(msgspec.Struct, frozen=True):
    """How often the plan struck since it was given."""

    late: int
    """Blobs that were acknowledged and became visible later."""
    hidden: int
    """Answers that left such a blob out."""
    failed: int
    """Requests that were made to fail."""


class Faults:
    """Decides what fails and what is hidden. Pure: times are seconds of one monotonic clock."""

    def __init__(self, plan: FaultPlan) -> None:
        self.plan = plan
        self.late = 0
        self.hidden = 0
        self.failed = 0
        self._visible_at: dict[str, float] = {}
        self._requests: Counter[str] = Counter()

    def report(self) -> FaultReport:
        """How often the plan struck so far."""
        return FaultReport(self.late, self.hidden, self.failed)

    def delay(self, digest: str) -> float:
        """Seconds for which a blob stays invisible here after it was acknowledged."""
        plan = self.plan
        if plan.only is not None and digest not in plan.only:
            return 0.0
        if _draw(plan.seed, "late", digest) >= plan.late_share:
            return 0.0
        return _draw(plan.seed, plan.origin, "delay", digest) * plan.max_delay

    def receiving(self, digest: str) -> bool:
        """Note that a blob is on its way here; False when it is not new, or not to be late."""
        if digest in self._visible_at or self.delay(digest) == 0:
            return False
        self._visible_at[digest] = math.inf
        return True

    def acknowledged(self, digest: str, now: float) -> None:
        """Note that a blob for which `receiving` was True is now acknowledged."""
        self.late += 1
        self._visible_at[digest] = now + self.delay(digest)

    def refused(self, digest: str) -> None:
        """Note that a blob for which `receiving` was True was not taken."""
        del self._visible_at[digest]

    def hides(self, digest: str, now: float) -> bool:
        """Whether this origin must say that it does not have the blob."""
        hidden = now < self._visible_at.get(digest, -math.inf)
        self.hidden += hidden
        return hidden

    def fails(self, request: str) -> str | None:
        """How the next request of this kind (method and path) fails, if it does."""
        self._requests[request] += 1
        turn = self._requests[request]
        if _draw(self.plan.seed, self.plan.origin, request, turn) >= self.plan.fail_rate:
            return None
        self.failed += 1
        kind = _draw(self.plan.seed, self.plan.origin, request, turn, "kind")
        return "503" if kind < 0.5 else "reset"


def add_to(app: web.Application, clock: Callable[[], float] = time.monotonic) -> None:
    """Let an origin's application inject faults; none until it is given a plan."""
    hook = _Hook(clock)
    app.middlewares.append(hook.middleware())
    app.router.add_put(PATH, hook.put)
    app.router.add_get(PATH, hook.get)
    log.warning("fault injection is on: this origin is for tests alone", route=PATH)


class _Hook:
    """Stands between the edge and the handlers of one origin."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._faults = Faults(FaultPlan())

    async def put(self, request: web.Request) -> web.Response:
        self._faults = Faults(await read_json(request, FaultPlan))
        return web.Response(status=204)

    async def get(self, _request: web.Request) -> web.Response:
        body = msgspec.json.encode(self._faults.report())
        return web.Response(body=body, content_type="application/json")

    def middleware(self) -> Middleware:
        @web.middleware
        async def inject(request: web.Request, handler: Handler) -> web.StreamResponse:
            if not request.path.startswith(_BLOBS):
                return await handler(request)
            self._fail(request)
            digest = request.match_info.get("digest")
            if request.method == "PUT" and digest is not None:
                return await self._take(request, handler, digest)
            if request.method == "GET" and digest is not None:
                if self._faults.hides(digest, self._clock()):
                    raise BlobUnknown(f"{digest} is not here yet (injected)")
                return await handler(request)
            answer = await handler(request)
            return self._thinned(answer) if request.path == f"{_BLOBS}stat" else answer

        return inject

    def _fail(self, request: web.Request) -> None:
        match self._faults.fails(f"{request.method} {request.path}"):
            case "503":
                raise Unavailable(f"{request.method} {request.path} fails (injected)")
            case "reset":
                if request.transport is not None:
                    request.transport.abort()
                raise ConnectionResetError("injected")

    async def _take(
        self, request: web.Request, handler: Handler, digest: str
    ) -> web.StreamResponse:
        faults = self._faults
        if not faults.receiving(digest):
            return await handler(request)
        try:
            answer = await handler(request)
        except BaseException:
            faults.refused(digest)
            raise
        faults.acknowledged(digest, self._clock())
        return answer

    def _thinned(self, answer: web.StreamResponse) -> web.StreamResponse:
        """A stat answer without what is not visible yet."""
        if not isinstance(answer, web.Response) or not isinstance(answer.body, bytes):
            return answer
        now = self._clock()
        present = msgspec.json.decode(answer.body, type=StatAnswer).present
        seen = {digest: n for digest, n in present.items() if not self._faults.hides(digest, now)}
        return web.Response(
            body=msgspec.json.encode(StatAnswer(seen)), content_type="application/json"
        )


def _draw(*about: object) -> float:
    """A number from 0 to below 1 that depends on nothing but its arguments."""
    text = "\n".join(map(str, about)).encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big") / _DRAWS
