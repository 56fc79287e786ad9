# SPDX-License-Identifier: Apache-2.0
"""TLS between peers: both sides prove by a certificate of the cluster's CA which host they are."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Mapping
from typing import Any

from shoal.swarm.config import PeerTlsConfig
from shoal.swarm.streams import PlainStream, Stream, TlsStream
from shoal.web.tls import Certificates, why


class Refused(ConnectionError):
    """The other side did not prove who it is, or does not speak TLS when this side does."""


class Security:
    """Turns connected sockets into streams, as the config asks."""

    def __init__(self, config: PeerTlsConfig) -> None:
        """Read the files; raises `shoal.web.tls.CannotSecure`."""
        self._certificates: Certificates | None = None
        self._dialing: ssl.SSLContext | None = None
        self._accepting: ssl.SSLContext | None = None
        if not config.on:
            return
        assert config.ca is not None  # noqa: S101 as `on`, and the next line
        assert config.certificate is not None and config.key is not None  # noqa: S101, PT018
        files = Certificates(
            certificate=config.certificate, key=config.key, ca=config.ca, section="peer.tls"
        )
        # From 1.3 on: no renegotiation, and the client's certificate is not sent in the clear.
        self._dialing = files.context(ssl.PROTOCOL_TLS_CLIENT, ssl.TLSVersion.TLSv1_3)
        self._accepting = files.context(ssl.PROTOCOL_TLS_SERVER, ssl.TLSVersion.TLSv1_3)
        self._certificates = files

    @property
    def on(self) -> bool:
        """Whether peers speak TLS."""
        return self._dialing is not None

    async def follow(self) -> None:
        """Use renewed files for new connections, until cancelled."""
        if self._certificates is not None:
            await self._certificates.follow()

    async def dialed(self, sock: socket.socket, host: str) -> Stream:
        """The stream to a host that was dialed, which proves to be that host.

        Closes the socket and raises `Refused` otherwise; the caller bounds the wait.
        """
        if self._dialing is None:
            return PlainStream(sock)
        return await _shake_hands(sock, self._dialing, host)

    async def accepted(self, sock: socket.socket) -> Stream:
        """The stream of a connection that was accepted; as `dialed`, but whose it is stays open."""
        if self._accepting is None:
            return PlainStream(sock)
        return await _shake_hands(sock, self._accepting, None)


def speaks_for(stream: Stream, host: str) -> bool:
    """Whether the certificate of the other side names the host; true where there is no TLS."""
    return not isinstance(stream, TlsStream) or names(stream.certificate(), host)


def names(certificate: Mapping[str, Any], host: str) -> bool:
    """Whether a certificate (as `SSLSocket.getpeercert` gives it) names a host in its SAN.

    As in RFC 6125: an IP address as such, a DNS name without regard to case, and a wildcard for
    exactly the leftmost label.
    """
    entries = certificate.get("subjectAltName", ())
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        wanted = host.rstrip(".").lower()
        patterns = {str(name).lower() for kind, name in entries if kind == "DNS"}
        _, dot, parent = wanted.partition(".")
        return wanted in patterns or (bool(dot) and f"*.{parent}" in patterns)
    return any(
        kind == "IP Address" and ipaddress.ip_address(str(name).strip()) == address
        for kind, name in entries
    )


async def _shake_hands(sock: socket.socket, context: ssl.SSLContext, host: str | None) -> TlsStream:
    loop = asyncio.get_running_loop()
    plain = PlainStream(sock)
    try:
        secured = context.wrap_socket(
            sock,
            server_side=host is None,
            server_hostname=host,
            do_handshake_on_connect=False,
        )
    except (OSError, ValueError) as error:
        plain.close()
        raise Refused(why(error)) from error
    try:
        while True:
            try:
                secured.do_handshake()
            except ssl.SSLWantReadError:
                await _ready(loop.add_reader, loop.remove_reader, secured.fileno())
            except ssl.SSLWantWriteError:
                await _ready(loop.add_writer, loop.remove_writer, secured.fileno())
            else:
                return TlsStream(secured)
    except OSError as error:
        secured.close()
        raise Refused(why(error)) from error
    except BaseException:
        secured.close()
        raise


async def _ready(add: Any, remove: Any, fd: int) -> None:
    ready = asyncio.get_running_loop().create_future()

    def on_ready() -> None:
        if not ready.done():
            ready.set_result(None)

    add(fd, on_ready)
    try:
        await ready
    finally:
        remove(fd)
