# SPDX-License-Identifier: Apache-2.0
"""Basic and bearer authentication against registries that behave, and ones that do not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from aiohttp import web

from shoal.backend.auth import MAX_TOKEN_ANSWER, Challenge, challenges
from shoal.model.digest import Digest
from shoal.web.failures import Overloaded, Rejected, Unreachable
from tests.unit.backend.registry_server import (
    BASIC,
    PASSWORD,
    USER,
    FakeRegistry,
    bearer,
    error,
    manifest_of,
    no_requests,
    soon,
    upstream_of,
)

HERE, THERE = "up.example.com/team/app", "team/app"
BODY = manifest_of(b"layer")
DIGEST = Digest.of(BODY)
ACCOUNT = {"username": USER, "password": PASSWORD}


@pytest.mark.parametrize(
    "lines, expected",
    [
        ([], []),
        (['Basic realm="a"'], [Challenge("basic", {"realm": "a"})]),
        (
            ['Bearer realm="https://a/token",service="b, c",scope="x:y:pull,push"'],
            [
                Challenge(
                    "bearer",
                    {"realm": "https://a/token", "service": "b, c", "scope": "x:y:pull,push"},
                )
            ],
        ),
        (
            ['Negotiate, Basic realm=a, BEARER Realm="b" , Service=c'],
            [
                Challenge("negotiate"),
                Challenge("basic", {"realm": "a"}),
                Challenge("bearer", {"realm": "b", "service": "c"}),
            ],
        ),
        (
            ["NTLM abc==", 'Basic realm="x"'],
            [Challenge("ntlm"), Challenge("basic", {"realm": "x"})],
        ),
        ([r'Basic realm="a \"quoted\" one"'], [Challenge("basic", {"realm": 'a "quoted" one'})]),
        (['Basic realm="never ends'], [Challenge("basic")]),
        (["realm=x"], []),
        (["", " ,, ", "="], []),
        ([", ,Basic realm=a,"], [Challenge("basic", {"realm": "a"})]),
    ],
)
def test_challenges_are_read(lines: list[str], expected: list[Challenge]) -> None:
    assert challenges(lines) == expected


def test_a_hostile_challenge_takes_no_time() -> None:
    assert len(challenges([" ".join(["a"] * 4000), "," * 8000, 'a="' + "\\" * 8000])) <= 4001


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry().running() as running:
        running.add_manifest(THERE, BODY, "v1")
        yield running


class Tokens:
    """A token service, which answers with a new token each time."""

    def __init__(self, registry: FakeRegistry, **answer: object) -> None:
        self.valid: set[str] = set()
        self.asked: list[dict[str, str]] = []
        self.answer = answer
        self.wait: asyncio.Event | None = None
        self.was_asked = asyncio.Event()
        self.users: set[str | None] = {None, BASIC}
        registry.hook(self)

    async def __call__(self, request: web.Request) -> web.StreamResponse | None:
        if not request.path.startswith("/token"):
            return None
        form = parse_qs((await request.read()).decode())
        self.asked.append({**request.query, **{key: values[0] for key, values in form.items()}})
        self.was_asked.set()
        if self.wait is not None:
            await self.wait.wait()
        if request.headers.get("Authorization") not in self.users:
            return error(401, "UNAUTHORIZED")
        token = f"token-{len(self.asked)}"
        self.valid.add(token)
        return web.json_response({"token": token, **self.answer})


async def test_basic_is_given_when_asked_for_and_from_then_on(registry: FakeRegistry) -> None:
    @registry.hook
    async def basic(request: web.Request) -> web.StreamResponse | None:
        if request.headers.get("Authorization") != BASIC:
            return error(401, "UNAUTHORIZED", {"WWW-Authenticate": 'Basic realm="x"'})
        return None

    async with upstream_of(registry, **ACCOUNT) as backend:
        for _ in range(2):
            assert await backend.head_tag(HERE, "v1", soon()) == DIGEST
    assert [it.authorization for it in registry.seen] == [None, BASIC, BASIC]


async def test_a_password_that_is_refused_is_not_tried_again(registry: FakeRegistry) -> None:
    @registry.hook
    async def never(_: web.Request) -> web.StreamResponse | None:
        return error(401, "UNAUTHORIZED", {"WWW-Authenticate": 'Basic realm="x"'})

    async with upstream_of(registry, **ACCOUNT) as backend:
        for _ in range(2):
            with pytest.raises(Rejected) as failure:
                await backend.head_tag(HERE, "v1", soon())
            assert PASSWORD not in f"{failure.value!r} {failure.value}"
    assert len(registry.seen) == 3  # without, with, and with from the start


async def test_a_password_file_is_read_again_when_it_was_rotated(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    file = tmp_path / "password"
    file.write_text("an old one\n")

    @registry.hook
    async def basic(request: web.Request) -> web.StreamResponse | None:
        if request.headers.get("Authorization") != BASIC:
            return error(401, "UNAUTHORIZED", {"WWW-Authenticate": 'Basic realm="x"'})
        return None

    async with upstream_of(registry, username=USER, password_file=file) as backend:
        with pytest.raises(Rejected):
            await backend.head_tag(HERE, "v1", soon())
        file.write_text(f"{PASSWORD}\n")
        assert await backend.head_tag(HERE, "v1", soon()) == DIGEST


@pytest.mark.parametrize("account", [{}, ACCOUNT])
async def test_a_token_is_asked_for_once_per_repository(
    registry: FakeRegistry, account: dict[str, str]
) -> None:
    tokens = Tokens(registry, expires_in=300)
    bearer(registry, f"{registry.base}/token?x=1", tokens=tokens.valid)
    async with upstream_of(registry, **account) as backend:
        for _ in range(3):
            assert await backend.head_tag(HERE, "v1", soon()) == DIGEST
        await backend.head_tag("up.example.com/other", "v1", soon())
    assert [it["scope"] for it in tokens.asked] == [
        "repository:team/app:pull",
        "repository:other:pull",
    ]
    assert {it["service"] for it in tokens.asked} == {"fake"}
    assert {it["x"] for it in tokens.asked} == {"1"}
    sent = {it.authorization for it in registry.requests("GET", "/token")}
    assert sent == ({BASIC} if account else {None})
    assert {it.authorization for it in registry.requests("HEAD")} == {
        None,
        "Bearer token-1",
        "Bearer token-2",
    }


async def test_many_at_once_ask_for_one_token(registry: FakeRegistry) -> None:
    tokens = Tokens(registry, expires_in=300)
    tokens.wait = asyncio.Event()
    bearer(registry, f"{registry.base}/token", tokens=tokens.valid)
    all_came = asyncio.Event()

    @registry.hook
    async def count(_: web.Request) -> web.StreamResponse | None:
        if len(registry.requests("HEAD")) == 50:
            all_came.set()
        return None

    async with upstream_of(registry) as backend:
        asking = [asyncio.create_task(backend.head_tag(HERE, "v1", soon())) for _ in range(50)]
        await all_came.wait()
        tokens.wait.set()
        assert set(await asyncio.gather(*asking)) == {DIGEST}
    assert len(tokens.asked) == 1


async def test_who_leaves_does_not_take_the_token_from_the_others(registry: FakeRegistry) -> None:
    tokens = Tokens(registry)
    tokens.wait = asyncio.Event()
    bearer(registry, f"{registry.base}/token", tokens=tokens.valid)
    async with upstream_of(registry) as backend:
        first = asyncio.create_task(backend.head_tag(HERE, "v1", soon()))
        await tokens.was_asked.wait()
        second = asyncio.create_task(backend.head_tag(HERE, "v1", soon()))
        first.cancel()
        tokens.wait.set()
        assert await second == DIGEST
        with pytest.raises(asyncio.CancelledError):
            await first
    assert len(tokens.asked) == 1


async def test_a_token_that_was_revoked_is_renewed_once_for_all(registry: FakeRegistry) -> None:
    tokens = Tokens(registry, expires_in=3600)
    bearer(registry, f"{registry.base}/token", tokens=tokens.valid)
    async with upstream_of(registry) as backend:
        assert await backend.head_tag(HERE, "v1", soon()) == DIGEST
        tokens.valid.clear()
        found = await asyncio.gather(*(backend.head_tag(HERE, "v1", soon()) for _ in range(20)))
    assert set(found) == {DIGEST}
    assert len(tokens.asked) == 2


async def test_a_401_for_every_token_ends(registry: FakeRegistry) -> None:
    tokens = Tokens(registry, expires_in=3600)
    bearer(registry, f"{registry.base}/token", tokens=set())
    async with upstream_of(registry) as backend:
        for _ in range(2):
            with pytest.raises(Rejected, match="401"):
                await backend.head_tag(HERE, "v1", soon())
    assert len(registry.requests("HEAD")) == 4
    assert len(tokens.asked) == 2


async def test_a_token_that_expires_is_replaced_before(registry: FakeRegistry) -> None:
    tokens = Tokens(registry, expires_in=0)
    bearer(registry, f"{registry.base}/token", tokens=tokens.valid)
    async with upstream_of(registry) as backend:
        for _ in range(3):
            assert await backend.head_tag(HERE, "v1", soon()) == DIGEST
    assert len(tokens.asked) == 3
    assert len(registry.requests("HEAD")) == 4  # one 401 only


async def test_a_service_with_oauth2_only_is_asked_by_post(registry: FakeRegistry) -> None:
    tokens = Tokens(registry)

    @registry.hook
    async def no_get(request: web.Request) -> web.StreamResponse | None:
        wrong = request.path == "/token" and request.method == "GET"
        return web.Response(status=405) if wrong else None

    bearer(registry, f"{registry.base}/token", tokens=tokens.valid)
    async with upstream_of(registry, **ACCOUNT) as backend:
        assert await backend.head_tag(HERE, "v1", soon()) == DIGEST
    (asked,) = tokens.asked
    assert asked["grant_type"] == "password"
    assert (asked["username"], asked["password"]) == (USER, PASSWORD)


async def test_an_identity_token_is_posted(registry: FakeRegistry, tmp_path: Path) -> None:
    tokens = Tokens(registry)
    tokens.answer = {"token": "", "access_token": "by-refresh"}
    bearer(registry, f"{registry.base}/token", tokens={"by-refresh"})
    config = tmp_path / "config.json"
    auths = {"up.example.com": {"auth": "PHRva2VuPjo=", "identitytoken": "the-identity"}}
    config.write_text(json.dumps({"auths": auths}))
    async with upstream_of(registry, docker_config=config) as backend:
        assert await backend.head_tag(HERE, "v1", soon()) == DIGEST
    (asked,) = tokens.asked
    assert asked["grant_type"] == "refresh_token"
    assert asked["refresh_token"] == "the-identity"
    assert asked["scope"] == "repository:team/app:pull"


# -- realms -----------------------------------------------------------------------------------


async def test_the_password_does_not_go_to_another_hosts_realm(registry: FakeRegistry) -> None:
    async with FakeRegistry().running() as thief:
        tokens = Tokens(thief)
        bearer(registry, f"{thief.base}/token", tokens=tokens.valid)
        for allowed in (False, True):
            async with upstream_of(registry, allow_private=allowed, **ACCOUNT) as backend:
                with no_requests(thief), pytest.raises(Rejected, match="realms"):
                    await backend.head_tag(HERE, "v1", soon())


async def test_a_realm_that_the_config_names_gets_the_password(registry: FakeRegistry) -> None:
    async with FakeRegistry().running() as service:
        tokens = Tokens(service)
        bearer(registry, f"{service.base}/token", tokens=tokens.valid)
        realms = [urlsplit(service.base).netloc]
        async with upstream_of(registry, **ACCOUNT, realms=realms) as backend:
            assert await backend.head_tag(HERE, "v1", soon()) == DIGEST
        assert {it.authorization for it in service.seen} == {BASIC}


async def test_without_a_password_a_private_realm_is_not_asked(registry: FakeRegistry) -> None:
    async with FakeRegistry().running() as service:
        tokens = Tokens(service)
        bearer(registry, f"{service.base}/token", tokens=tokens.valid)
        async with upstream_of(registry) as backend:
            with no_requests(service), pytest.raises(Rejected, match="allow_private"):
                await backend.head_tag(HERE, "v1", soon())
        async with upstream_of(registry, allow_private=True) as backend:
            assert await backend.head_tag(HERE, "v1", soon()) == DIGEST


@pytest.mark.parametrize(
    "realm, said",
    [
        ("http://10.0.0.1/token", "allow_private"),
        ("http://169.254.169.254/latest", "allow_private"),
        ("http://user:pass@10.0.0.1/token", "user name"),
        ("file:///etc/passwd", "neither http nor https"),
        ("", "token service is not asked"),
    ],
)
async def test_a_hostile_realm_is_not_asked(registry: FakeRegistry, realm: str, said: str) -> None:
    bearer(registry, realm, tokens=set())
    async with upstream_of(registry) as backend:
        with pytest.raises(Rejected, match=said):
            await backend.head_tag(HERE, "v1", soon())


# -- token services that fail -----------------------------------------------------------------


@pytest.mark.parametrize(
    "answer, kind",
    [
        (web.Response(body=b" " * (MAX_TOKEN_ANSWER + 1)), Unreachable),
        (web.Response(text="<html>"), Unreachable),
        (web.Response(text='{"token": ""}'), Unreachable),
        (web.Response(text='{"token": "a\\r\\nX-Evil: 1"}'), Unreachable),
        (web.Response(text='{"token": 5}'), Unreachable),
        (web.Response(status=403, text="no"), Rejected),
        (web.Response(status=302, headers={"Location": "http://10.0.0.1/"}), Rejected),
        (web.Response(status=500), Overloaded),
        (web.Response(status=429, headers={"Retry-After": "7"}), Overloaded),
    ],
)
async def test_a_token_service_that_fails_is_told_apart(
    registry: FakeRegistry, answer: web.Response, kind: type[Exception]
) -> None:
    @registry.hook
    async def service(request: web.Request) -> web.StreamResponse | None:
        return answer if request.path == "/token" else None

    bearer(registry, f"{registry.base}/token", tokens=set())
    async with upstream_of(registry, **ACCOUNT) as backend:
        with pytest.raises(kind) as failure:
            await backend.head_tag(HERE, "v1", soon())
    assert getattr(failure.value, "url", "").endswith("/token")
    assert PASSWORD not in str(failure.value)


async def test_a_token_service_that_limits_our_rate_is_left_alone(registry: FakeRegistry) -> None:
    @registry.hook
    async def busy(request: web.Request) -> web.StreamResponse | None:
        wanted = request.path == "/token"
        return error(429, "TOOMANYREQUESTS", {"Retry-After": "7"}) if wanted else None

    bearer(registry, f"{registry.base}/token", tokens=set())
    async with upstream_of(registry) as backend:
        with pytest.raises(Overloaded) as first:
            await backend.head_tag(HERE, "v1", soon())
        assert first.value.retry_after == 7
        with no_requests(registry), pytest.raises(Overloaded, match="limits our rate"):
            await backend.head_tag(HERE, "v1", soon())


@pytest.mark.parametrize(
    "named, seconds",
    [("9" * 400, None), ("31536000", 3600.0), ("Mon, 01 Jan 2300 00:00:00 GMT", 3600.0)],
)
async def test_no_token_service_keeps_us_waiting_for_ever(
    registry: FakeRegistry, named: str, seconds: float | None
) -> None:
    @registry.hook
    async def down(request: web.Request) -> web.StreamResponse | None:
        wanted = request.path == "/token"
        return error(503, "UNAVAILABLE", {"Retry-After": named}) if wanted else None

    bearer(registry, f"{registry.base}/token", tokens=set())
    async with upstream_of(registry) as backend:
        with pytest.raises(Overloaded) as failure:
            await backend.head_tag(HERE, "v1", soon())
        assert failure.value.retry_after == seconds


async def test_a_token_service_that_says_nothing_is_bounded(registry: FakeRegistry) -> None:
    tokens = Tokens(registry)
    tokens.wait = asyncio.Event()
    bearer(registry, f"{registry.base}/token", tokens=set())
    async with upstream_of(registry) as backend:
        with pytest.raises(Unreachable, match="no token in time"):
            await backend.head_tag(HERE, "v1", soon(0.3))
        tokens.wait.set()


async def test_a_401_without_a_way_to_authenticate_is_rejected(registry: FakeRegistry) -> None:
    @registry.hook
    async def closed(_: web.Request) -> web.StreamResponse | None:
        return error(401, "UNAUTHORIZED", {"WWW-Authenticate": "Negotiate"})

    async with upstream_of(registry, **ACCOUNT) as backend:
        with pytest.raises(Rejected, match="neither basic nor bearer"):
            await backend.head_tag(HERE, "v1", soon())


async def test_no_credentials_for_a_registry_that_wants_them_is_said(
    registry: FakeRegistry,
) -> None:
    @registry.hook
    async def basic(_: web.Request) -> web.StreamResponse | None:
        return error(401, "UNAUTHORIZED", {"WWW-Authenticate": 'Basic realm="x"'})

    async with upstream_of(registry) as backend:
        with pytest.raises(Rejected, match="configure them"):
            await backend.head_tag(HERE, "v1", soon())
