# SPDX-License-Identifier: Apache-2.0
"""Connections to peers as they come about: listening, dialing, and TLS where the config asks."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from shoal.config.units import join_address, split_address
from shoal.swarm.config import PeerConfig
from shoal.swarm.peers import PeerInfo
from shoal.swarm.security import Refused, Security
from shoal.swarm.streams import Stream
from shoal.swarm.traffic import Traffic

_ACCEPT_PAUSE = 1.0

log = structlog.get_logger(__name__)


class Doors:
    """The listener of one process, and its way to others."""

    def __init__(
        self,
        config: PeerConfig,
        traffic: Traffic,
        *,
        welcome: Callable[[str], bool],
        has_room: Callable[[int], bool],
        enter: Callable[[Stream], None],
        spawn: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        """`welcome`: whether anybody is let in from an address.

        `has_room`: whether one more is let in, given how many stand in the door. `enter`: takes a
        stream that was accepted. `spawn`: runs work until the node stops. Raises `CannotSecure`.
        """
        self._config = config
        self._traffic = traffic
        self._security = Security(config.tls)
        self._welcome = welcome
        self._has_room = has_room
        self._enter = enter
        self._spawn = spawn
        self._listener: socket.socket | None = None
        self._entering = 0

    @property
    def secured(self) -> bool:
        """Whether peers speak TLS here."""
        return self._security.on

    # -- in

    def open(self) -> None:
        """Listen; raises OSError when the address is taken."""
        host, port = split_address(self._config.listen)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=1024)
        listener.setblocking(False)
        self._listener = listener
        self._listen()
        self._spawn(self._security.follow())

    def close(self) -> None:
        """Take in nobody any more."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener.fileno())
            self._listener.close()
            self._listener = None

    @property
    def port(self) -> int:
        """The port listened on; 0 when there is none."""
        return int(self._listener.getsockname()[1]) if self._listener is not None else 0

    def _listen(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        if self._listener is None:
            return
        try:
            sock, address = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            # Out of descriptors, most likely: the listener would be ready again at once.
            log.warning("no peer accepted for a while", error=str(error), s=_ACCEPT_PAUSE)
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._listener.fileno())
            loop.call_later(_ACCEPT_PAUSE, self._listen)
            return
        if not self._welcome(address[0]):
            self._traffic.refused("kept_away")
            sock.close()
            return
        if not self._has_room(self._entering):
            self._traffic.refused("full")
            sock.close()
            return
        self._entering += 1
        self._spawn(self._let_in(sock, join_address(*address[:2])))

    async def _let_in(self, sock: socket.socket, address: str) -> None:
        try:
            async with asyncio.timeout(self._config.handshake_timeout):
                stream = await self._security.accepted(sock)
        except (Refused, TimeoutError) as error:
            self._traffic.refused("tls")
            reason = str(error) or "no TLS handshake in time"
            log.warning("peer refused", peer=address, reason=reason)
            return
        finally:
            self._entering -= 1
        self._enter(stream)

    # -- out

    async def dial(self, peer: PeerInfo) -> Stream:
        """A stream to a peer, which is where it should be; the caller bounds the wait.

        Raises OSError: not reached, or `Refused`.
        """
        sock = await _connect(peer.host, peer.port)
        try:
            return await self._security.dialed(sock, peer.host)
        except Refused as error:
            self._traffic.refused("tls")
            log.warning("peer refused", peer=peer.address, reason=str(error))
            raise


async def _connect(host: str, port: int) -> socket.socket:
    """Connect to the first address of the host that answers."""
    loop = asyncio.get_running_loop()
    # Only names need a resolver, which costs a thread; numbers are parsed in place.
    addresses = (
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        if _is_numeric(host)
        else await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    )
    failure: OSError = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in addresses:
        sock = socket.socket(family, kind, protocol)
        sock.setblocking(False)
        try:
            await loop.sock_connect(sock, address)
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failure


def _is_numeric(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
