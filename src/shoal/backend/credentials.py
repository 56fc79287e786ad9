# SPDX-License-Identifier: Apache-2.0
"""Where the credentials for a registry come from. They are never logged, nor part of an error."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import os
import re
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from shoal.backend.upstreams import DOCKER_HUB, RegistryAccess
from shoal.store.threads import in_thread

HELPER_TIMEOUT = 20.0
"""Seconds that a credential helper may take."""

KEPT = 300.0
"""Seconds for which a helper's answer is used again.

The shortest that the known helpers hand out live for an hour, and some of it may have passed.
"""

_TOKEN_USER = "<token>"  # noqa: S105 the user name by which helpers mark an identity token
_HUB_KEY = "https://index.docker.io/v1/"
_MAX_ANSWER = 64 * 1024
_MAX_FILE = 1024 * 1024
T = TypeVar("T")

_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)


class CredentialsFailed(Exception):
    """The credentials could not be had; the text says from where, and never holds any of them."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user's password, or an identity token that the token endpoint takes in its place."""

    username: str
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)

    def basic(self) -> str:
        """The value of an Authorization header (RFC 7617, in UTF-8)."""
        pair = f"{self.username}:{self.password}".encode()
        return f"Basic {base64.b64encode(pair).decode()}"


class CredentialSource(Protocol):
    """One registry's credentials."""

    async def get(self, *, fresh: bool = False) -> Credentials | None:
        """The credentials, or None: there are none, ask anonymously.

        `fresh` asks again where they are kept for a while. Raises `CredentialsFailed`.
        """
        ...


def source(access: RegistryAccess, registry: str) -> CredentialSource:
    """The source that the config names; `registry` is the name that docker's config has."""
    if access.username is not None:
        if access.password_file is not None:
            return _PasswordFile(access.username, access.password_file)
        password = access.password.get_secret_value() if access.password else ""
        return _Fixed(Credentials(access.username, password))
    if access.docker_config is not None:
        return _DockerConfig(access.docker_config, registry)
    if access.credential_helper is not None:
        return Helper(access.credential_helper, _server(registry))
    return _Fixed(None)


@dataclass(frozen=True)
class _Fixed:
    credentials: Credentials | None

    async def get(self, *, fresh: bool = False) -> Credentials | None:  # noqa: ARG002
        return self.credentials


@dataclass(frozen=True)
class _PasswordFile:
    username: str
    path: Path

    async def get(self, *, fresh: bool = False) -> Credentials | None:  # noqa: ARG002
        text = (await in_thread(_read, self.path)).strip("\r\n")
        return Credentials(self.username, text)


class Helper:
    """A docker credential helper: ``docker-credential-<name> get``.

    Protocol: the server's name on standard input, JSON on standard output
    (docker/docker-credential-helpers, "Credential helper protocol").
    """

    def __init__(
        self,
        name: str,
        server: str,
        *,
        timeout: float = HELPER_TIMEOUT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if _HELPER.fullmatch(name) is None:
            raise CredentialsFailed(f"{name[:80]!r} is not the name of a credential helper")
        self._program = f"docker-credential-{name}"
        self._server = server
        self._timeout = timeout
        self._clock = clock
        self._lock = asyncio.Lock()
        self._kept: Credentials | None = None
        self._asked_at: float | None = None

    async def get(self, *, fresh: bool = False) -> Credentials | None:
        before = self._asked_at
        async with self._lock:
            # Who waited while another caller asked takes its answer.
            waited = self._asked_at != before
            if not waited and (fresh or not self._is_kept()):
                self._kept = await self._ask()
                self._asked_at = self._clock()
            return self._kept

    def _is_kept(self) -> bool:
        return self._asked_at is not None and self._clock() - self._asked_at < KEPT

    async def _ask(self) -> Credentials | None:
        try:
            process = await asyncio.create_subprocess_exec(
                self._program,
                "get",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            raise CredentialsFailed(
                f"the credential helper {self._program} could not be started: {error.strerror}; "
                "it must be an executable on the service's PATH"
            ) from error
        try:
            async with asyncio.timeout(self._timeout):
                answer = await _talk(process, self._server)
        except TimeoutError:
            raise CredentialsFailed(
                f"the credential helper {self._program} took more than {self._timeout:g} s"
            ) from None
        finally:
            await _end(process)
        return self._parsed(answer, process.returncode)

    def _parsed(self, answer: bytes, status: int | None) -> Credentials | None:
        if status != 0:
            if b"credentials not found" in answer:
                return None
            raise CredentialsFailed(
                f"the credential helper {self._program} ended with status {status} for "
                f"{self._server}; run `echo {self._server} | {self._program} get` by hand"
            )
        try:
            said = msgspec.json.decode(answer, type=_HelperAnswer)
        except (msgspec.DecodeError, UnicodeDecodeError):
            # The cause's text may quote what was sent.
            raise CredentialsFailed(
                f"the credential helper {self._program} answered something that is not its protocol"
            ) from None
        if said.username == _TOKEN_USER:
            return Credentials("", identity_token=said.secret)
        return Credentials(said.username, said.secret)


class _HelperAnswer(msgspec.Struct):
    username: str = msgspec.field(name="Username")
    secret: str = msgspec.field(name="Secret")


async def _talk(process: asyncio.subprocess.Process, server: str) -> bytes:
    assert process.stdin is not None  # noqa: S101 both are pipes
    assert process.stdout is not None  # noqa: S101
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        process.stdin.write(server.encode() + b"\n")
        await process.stdin.drain()
    process.stdin.close()
    answer = b""
    while chunk := await process.stdout.read(_MAX_ANSWER):
        answer += chunk
        if len(answer) > _MAX_ANSWER:
            raise CredentialsFailed(f"a credential helper wrote more than {_MAX_ANSWER} bytes")
    await process.wait()
    return answer


async def _end(process: asyncio.subprocess.Process) -> None:
    """End a helper that still runs, with whatever it started."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


class _Auth(msgspec.Struct):
    auth: str = ""
    username: str = ""
    password: str = msgspec.field(default="")
    identitytoken: str = ""


class _ConfigFile(msgspec.Struct, rename="camel"):
    auths: dict[str, _Auth] = {}
    cred_helpers: dict[str, str] = {}
    creds_store: str = ""


class _DockerConfig:
    """A docker config.json, read again for every use: ``docker login`` may have changed it."""

    def __init__(self, path: Path, registry: str) -> None:
        self._path = path
        self._registry = registry
        self._helpers: dict[str, Helper] = {}

    async def get(self, *, fresh: bool = False) -> Credentials | None:
        text = await in_thread(_read, self._path)
        try:
            config = msgspec.json.decode(text, type=_ConfigFile)
        except msgspec.DecodeError:
            raise CredentialsFailed(f"{self._path} is not a docker config.json") from None
        name = _entry(config.cred_helpers, self._registry)
        if name:
            return await self._helper(name).get(fresh=fresh)
        entry = _entry(config.auths, self._registry)
        if entry is not None and (entry.auth or entry.username or entry.identitytoken):
            return self._decoded(entry)
        if config.creds_store:
            return await self._helper(config.creds_store).get(fresh=fresh)
        return None

    def _helper(self, name: str) -> Helper:
        if name not in self._helpers:
            self._helpers = {name: Helper(name, _server(self._registry))}
        return self._helpers[name]

    def _decoded(self, entry: _Auth) -> Credentials:
        username, password = entry.username, entry.password
        if entry.auth:
            try:
                text = base64.b64decode(entry.auth, validate=True).decode()
            except (binascii.Error, UnicodeDecodeError):
                raise CredentialsFailed(
                    f"{self._path}: the auth of {self._registry} is not base64 of user:password"
                ) from None
            username, _, password = text.rstrip("\x00").partition(":")
        return Credentials(username, password, entry.identitytoken)


def _entry(entries: Mapping[str, T], registry: str) -> T | None:
    """The entry of a registry, whose key may be a host or, as older docker wrote, a URL."""
    return next((entry for key, entry in entries.items() if _host(key) == registry), None)


def _host(key: str) -> str:
    host = key.partition("://")[2] if "://" in key else key
    host = host.partition("/")[0].lower()
    return DOCKER_HUB if host in ("index.docker.io", "registry-1.docker.io") else host


def _server(registry: str) -> str:
    """What docker calls a registry when it asks a helper."""
    return _HUB_KEY if registry == DOCKER_HUB else registry


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE + 1)
    except OSError as error:
        raise CredentialsFailed(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > _MAX_FILE:
        raise CredentialsFailed(f"{path} has more than {_MAX_FILE} bytes")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise CredentialsFailed(f"{path} is not text in UTF-8") from None
