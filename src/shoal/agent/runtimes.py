# SPDX-License-Identifier: Apache-2.0
"""The container runtimes of this host, told to pull: docker by its API, containerd by `ctr`.

containerd's own API has no client for Python that is kept up; `ctr` comes with every containerd.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import aiohttp

from shoal.model.digest import Digest
from shoal.model.errors import Unavailable

CONNECT_TIMEOUT = 5.0
"""Seconds for a runtime to take the connection."""

MAX_LINE = 64 * 1024
"""Bytes of one line of docker's progress, and of what is kept of `ctr`'s complaints."""

_SHOWN = 1000


class PullFailed(Unavailable):
    """502: the runtime was told, and could not pull the image."""

    status = 502


class Runtime(Protocol):
    """What pulls images on this host."""

    name: str

    async def pull(self, repository: str, reference: Digest | str, namespace: str) -> None:
        """Return when the runtime has the image ``<registry>/<repository>``.

        `namespace` is containerd's. Cancelled, it has the runtime stop. Raises `Unavailable` when
        the runtime cannot be told, `PullFailed` with the runtime's own words when it fails.
        """
        ...


class Docker:
    """A docker engine (or what speaks its API, such as podman's service)."""

    name = "docker"

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    async def pull(self, repository: str, reference: Digest | str, namespace: str) -> None:
        """``POST /images/create``: docker pulls while it answers, and stops when nobody listens."""
        del namespace
        image = named(repository, reference)
        # Without a version in the path, the engine's own holds.
        url = "http://docker/images/create"
        query = {"fromImage": repository, "tag": str(reference)}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT)
        connector = aiohttp.UnixConnector(path=str(self._socket))
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
                session.post(url, params=query) as answer,
            ):
                if answer.status >= 400:
                    said = (await answer.content.read(MAX_LINE)).decode(errors="replace")
                    raise PullFailed(f"docker could not pull {image}: {_message(said)}")
                await _follow(image, answer.content.iter_any())
        except aiohttp.ClientPayloadError as error:
            raise PullFailed(f"docker's answer about {image} broke off: {error}") from error
        except (aiohttp.ClientError, OSError) as error:
            why = _reason(error)
            raise Unavailable(
                f"docker at {self._socket} could not be told to pull {image}: {why}; is it running "
                "there, and may this agent open the socket (preload.docker_socket)?"
            ) from error


class Containerd:
    """A containerd, by its own command."""

    name = "containerd"

    def __init__(self, socket: Path, ctr: str, *, ca: Path | None = None) -> None:
        """`ca`: who issued the registry's certificate; without it the registry speaks no TLS."""
        self._socket = socket
        self._ctr = ctr
        self._trust = ["--plain-http"] if ca is None else ["--tlscacert", str(ca)]

    async def pull(self, repository: str, reference: Digest | str, namespace: str) -> None:
        """``ctr images pull``: what came before it is stopped stays in containerd."""
        image = named(repository, reference)
        argv = [self._ctr, "--address", str(self._socket)]
        argv += ["--connect-timeout", f"{CONNECT_TIMEOUT:g}s", "--namespace", namespace]
        argv += ["images", "pull", *self._trust, image]
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            raise Unavailable(
                f"{self._ctr!r}, containerd's command, cannot be run to pull {image}: "
                f"{error.strerror}; install it, or set preload.ctr to where it is"
            ) from error
        try:
            said = await _tail(process.stderr)
            status = await process.wait()
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await asyncio.shield(process.wait())
        if status:
            raise PullFailed(
                f"containerd at {self._socket} could not pull {image} into its namespace "
                f"{namespace}: {_message(said)} (exit status {status} of {self._ctr})"
            )


def named(repository: str, reference: Digest | str) -> str:
    """An image as clients name it."""
    return f"{repository}{'@' if isinstance(reference, Digest) else ':'}{reference}"


async def _follow(image: str, chunks: AsyncIterator[bytes]) -> None:
    """Read docker's progress to its end; raise `PullFailed` when it tells of an error."""
    line = bytearray()
    async for chunk in chunks:
        *whole, rest = (line + chunk).split(b"\n")
        for text in whole:
            _check(image, bytes(text))
        line = bytearray(rest)
        if len(line) > MAX_LINE:
            raise PullFailed(f"docker's answer about {image} has a line of over {MAX_LINE} bytes")
    _check(image, bytes(line))


def _check(image: str, line: bytes) -> None:
    try:
        progress = json.loads(line) if line.strip() else {}
    except ValueError:
        raise PullFailed(f"docker's answer about {image} is no JSON: {line[:80]!r}") from None
    if isinstance(progress, dict) and progress.get("error"):
        raise PullFailed(f"docker could not pull {image}: {str(progress['error'])[:_SHOWN]}")


async def _tail(stream: asyncio.StreamReader | None) -> str:
    """The end of what a command says."""
    kept = b""
    while stream is not None and (chunk := await stream.read(MAX_LINE)):
        kept = (kept + chunk)[-MAX_LINE:]
    return kept.decode(errors="replace")


def _message(said: str) -> str:
    """An error as docker words it, or the last line of anything else."""
    with suppress(ValueError):
        document = json.loads(said)
        if isinstance(document, dict) and isinstance(document.get("message"), str):
            return str(document["message"])[:_SHOWN]
    lines = said.strip().splitlines()
    return lines[-1][-_SHOWN:] if lines else "it does not say why"


def _reason(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        error = error.os_error
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
