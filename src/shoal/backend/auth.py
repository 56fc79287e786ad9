# SPDX-License-Identifier: Apache-2.0
"""Authorization at one registry: basic, and bearer tokens of the token service that it names.

Distribution's "Token Authentication Specification" and "OAuth2 Token Authentication". Credentials
go to the registry itself, and to a token service only if it has the registry's own address or one
that the config names: the registry's word alone is not enough.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol
from urllib.parse import urlencode

import msgspec
from cachetools import LRUCache
from yarl import URL

from shoal.backend.credentials import Credentials, CredentialsFailed, CredentialSource
from shoal.backend.rate_limit import LONGEST, retry_after
from shoal.backend.safety import Refused, same_origin, shown, target
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, Overloaded, Rejected, Unreachable

MAX_TOKEN_ANSWER = 256 * 1024
"""Bytes of a token service's answer that are taken."""

TOKENS = 1024
"""Tokens kept for one registry; there is one for each repository and action."""

_SHORTEST, _LONGEST = 60.0, 86400.0  # 60 s is what the specification has if nothing is said
_CLIENT = "shoal"
_PRINTABLE = re.compile(r"[!-~]+", re.ASCII)
_KNOWN_REALMS = {
    "registry-1.docker.io": frozenset({"auth.docker.io"}),
    "registry.gitlab.com": frozenset({"gitlab.com"}),
}


@dataclass(frozen=True, slots=True)
class Challenge:
    """One challenge of a WWW-Authenticate header (RFC 9110, section 11.6.1)."""

    scheme: str
    """In lower case."""

    parameters: Mapping[str, str] = field(default_factory=dict)
    """By their names in lower case."""


_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 the grammar's "token"
_PART = re.compile(
    rf'[\s,]*(?:(?P<name>{_TOKEN})\s*=\s*(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<plain>{_TOKEN}))'
    rf"|(?P<scheme>{_TOKEN})(?=[\s,]|$)(?!\s*=)(?:\s+[A-Za-z0-9._~+/-]+=*(?=\s*(?:,|$)))?)\s*"
)


def challenges(headers: Sequence[str]) -> list[Challenge]:
    """The challenges of all WWW-Authenticate lines; what cannot be read ends its line."""
    found: list[Challenge] = []
    for line in headers:
        at = 0
        current: dict[str, str] | None = None
        while at < len(line) and (part := _PART.match(line, at)) is not None:
            at = part.end()
            if part["scheme"] is not None:
                current = {}
                found.append(Challenge(part["scheme"].lower(), current))
            elif current is None:
                break
            else:
                quoted, plain = part["quoted"], part["plain"]
                value = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
                current.setdefault(part["name"].lower(), value)
    return found


class Ask(Protocol):
    """How a token service is asked; `trusted` says that its address need not be public."""

    async def __call__(
        self,
        method: str,
        url: URL,
        *,
        headers: Mapping[str, str],
        data: bytes | None,
        limit: int,
        trusted: bool,
        deadline: Deadline,
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body; `Unreachable` when it has more than `limit` bytes."""
        ...


@dataclass(frozen=True, slots=True)
class _Service:
    """A token service, as a challenge named it."""

    realm: URL
    service: str


@dataclass(frozen=True, slots=True)
class _Token:
    header: str = field(repr=False)
    until: float


class _Answer(msgspec.Struct):
    token: str = ""
    access_token: str = ""
    expires_in: float | None = None


class Authenticator:
    """What authorizes requests to one registry."""

    def __init__(
        self,
        base: URL,
        credentials: CredentialSource,
        ask: Ask,
        *,
        realms: Sequence[str] = (),
        timeout: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`realms`: hosts whose token service may have the credentials, beside the registry's."""
        self._base = base
        self._credentials = credentials
        self._ask = ask
        self._realms = frozenset(realms) | _KNOWN_REALMS.get(base.host or "", frozenset())
        self._timeout = timeout
        self._clock = clock
        self._basic = False
        self._service: _Service | None = None
        self._tokens: LRUCache[tuple[_Service, str], _Token] = LRUCache(TOKENS)
        self._asking: dict[tuple[_Service, str], asyncio.Task[_Token]] = {}

    async def authorization(self, scope: str, deadline: Deadline) -> str | None:
        """The Authorization header for a scope; None until the registry has asked for one."""
        if self._service is not None:
            return await self._token(self._service, scope, deadline, fresh=False)
        if self._basic:
            credentials = await self._have(fresh=False)
            return None if credentials is None else credentials.basic()
        return None

    async def renewed(
        self, scope: str, asked: Sequence[str], used: str | None, deadline: Deadline
    ) -> str:
        """The header to try after a 401 whose WWW-Authenticate lines are `asked`.

        `used` is the header that was refused. Raises `Rejected` when there is nothing else to try.
        """
        by_scheme = {challenge.scheme: challenge for challenge in reversed(challenges(asked))}
        if "bearer" in by_scheme:
            return await self._renewed_token(by_scheme["bearer"], scope, used, deadline)
        if "basic" in by_scheme:
            return await self._renewed_basic(used)
        raise self._rejected("it answered 401 and asks for neither basic nor bearer authentication")

    async def close(self) -> None:
        """End what is being asked."""
        for task in self._asking.values():
            task.cancel()
        await asyncio.gather(*self._asking.values(), return_exceptions=True)

    # -- basic --------------------------------------------------------------------------------

    async def _renewed_basic(self, used: str | None) -> str:
        credentials = await self._have(fresh=used is not None)
        if credentials is None or credentials.identity_token:
            raise self._rejected("it wants a user name and a password: configure them")
        header = credentials.basic()
        if header == used:
            raise self._rejected(f"it refused the credentials of user {credentials.username!r}")
        self._basic, self._service = True, None
        return header

    # -- bearer -------------------------------------------------------------------------------

    async def _renewed_token(
        self, challenge: Challenge, scope: str, used: str | None, deadline: Deadline
    ) -> str:
        try:
            realm = target(self._base, challenge.parameters.get("realm", ""))
        except Refused as error:
            raise self._rejected(f"its token service is not asked: {error}") from None
        service = _Service(realm, challenge.parameters.get("service", ""))
        self._basic, self._service = False, service
        key = (service, scope)
        kept = self._tokens.get(key)
        # Of many requests whose token was refused at once, the first drops it; the others find
        # the next one, or wait for it.
        if kept is not None and kept.header == used:
            del self._tokens[key]
        return await self._token(service, scope, deadline, fresh=used is not None)

    async def _token(
        self, service: _Service, scope: str, deadline: Deadline, *, fresh: bool
    ) -> str:
        key = (service, scope)
        kept = self._tokens.get(key)
        if kept is not None and self._clock() < kept.until:
            return kept.header
        task = self._asking.get(key)
        if task is None:
            task = asyncio.create_task(self._new_token(service, scope, fresh=fresh))
            self._asking[key] = task
            task.add_done_callback(lambda done: self._asked(key, done))
        try:
            async with asyncio.timeout(deadline.remaining()):
                return (await asyncio.shield(task)).header
        except TimeoutError:
            raise Unreachable("GET", shown(service.realm), "no token in time") from None

    def _asked(self, key: tuple[_Service, str], task: asyncio.Task[_Token]) -> None:
        del self._asking[key]
        # Looking at the error keeps the loop from logging it when every caller has left.
        if not task.cancelled() and task.exception() is None:
            self._tokens[key] = task.result()

    async def _new_token(self, service: _Service, scope: str, *, fresh: bool) -> _Token:
        deadline = Deadline.after(self._timeout)
        credentials = await self._for_realm(service, fresh=fresh)
        try:
            return await self._request(service, scope, credentials, deadline)
        except Rejected as error:
            if credentials is None or fresh or error.status != 401:
                raise
            # The password may have been changed since it was read.
            newer = await self._for_realm(service, fresh=True)
            if newer == credentials:
                raise
            return await self._request(service, scope, newer, deadline)

    async def _for_realm(self, service: _Service, *, fresh: bool) -> Credentials | None:
        credentials = await self._have(fresh=fresh)
        if credentials is not None and not self._may_have_credentials(service.realm):
            raise self._rejected(
                f"it sends us to {shown(service.realm)} for a token: the credentials are not given "
                f"to another host; if they belong there, add {service.realm.host} to `realms`"
            )
        return credentials

    def _may_have_credentials(self, realm: URL) -> bool:
        return same_origin(realm, self._base) or self._is_named(realm)

    def _is_named(self, realm: URL) -> bool:
        return bool({realm.host or "", f"{realm.host}:{realm.port}"} & self._realms)

    async def _request(
        self,
        service: _Service,
        scope: str,
        credentials: Credentials | None,
        deadline: Deadline,
    ) -> _Token:
        query = {"service": service.service, "scope": scope, "client_id": _CLIENT}
        if credentials is not None and credentials.identity_token:
            grant = {"grant_type": "refresh_token", "refresh_token": credentials.identity_token}
            return await self._post(service, {**query, **grant}, deadline)
        headers = {} if credentials is None else {"Authorization": credentials.basic()}
        if credentials is not None:
            query["account"] = credentials.username
        url = service.realm.update_query({key: value for key, value in query.items() if value})
        try:
            return await self._call("GET", url, headers=headers, body=None, deadline=deadline)
        except CallFailed as error:
            if credentials is None or error.status not in (404, 405):
                raise
        # A service that has OAuth2 only.
        grant = {"username": credentials.username, "password": credentials.password}
        return await self._post(service, {**query, "grant_type": "password", **grant}, deadline)

    async def _post(self, service: _Service, form: Mapping[str, str], deadline: Deadline) -> _Token:
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        body = urlencode(form).encode()
        return await self._call(
            "POST", service.realm, headers=headers, body=body, deadline=deadline
        )

    async def _call(
        self,
        method: str,
        url: URL,
        *,
        headers: Mapping[str, str],
        body: bytes | None,
        deadline: Deadline,
    ) -> _Token:
        asked_at = self._clock()
        status, answered, content = await self._ask(
            method,
            url,
            headers=headers,
            data=body,
            limit=MAX_TOKEN_ANSWER,
            trusted=self._is_named(url),
            deadline=deadline,
        )
        name = shown(url)
        if status != 200:
            transient = status == 429 or status >= 500
            kind: type[CallFailed] = Overloaded if transient else Rejected
            after = retry_after(answered, datetime.now(UTC))
            # Not the body: a service may repeat in it what it was sent.
            raise kind(
                method,
                name,
                "it gave no token for our credentials",
                status=status,
                retry_after=None if after is None else min(after, LONGEST),
            )
        try:
            answer = msgspec.json.decode(content, type=_Answer)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise Unreachable(method, name, "its answer has no token", status=status) from None
        token = answer.token or answer.access_token
        if _PRINTABLE.fullmatch(token) is None:
            raise Unreachable(method, name, "its answer has no token", status=status)
        return _Token(f"Bearer {token}", asked_at + _lifetime(answer.expires_in))

    async def _have(self, *, fresh: bool) -> Credentials | None:
        try:
            return await self._credentials.get(fresh=fresh)
        except CredentialsFailed as error:
            raise Unreachable("GET", shown(self._base), f"not asked: {error}") from error

    def _rejected(self, detail: str) -> Rejected:
        return Rejected("GET", shown(self._base), detail, status=401)


def _lifetime(expires_in: float | None) -> float:
    """Seconds for which a token is used: less than it lives, for what is on its way then."""
    said = _SHORTEST if expires_in is None else min(max(expires_in, 0.0), _LONGEST)
    return said - min(30.0, said / 5)


__all__ = ["MAX_TOKEN_ANSWER", "Ask", "Authenticator", "Challenge", "challenges"]
