# SPDX-License-Identifier: Apache-2.0
"""Where an upstream's redirects and token realms may lead, and where credentials may go.

A registry decides by a redirect or a realm whom Shoal calls next. Without rules it could make an
origin ask the cloud's metadata service or a neighbour in its network, or send its password to a
stranger. The address check is made on the socket that is about to connect, not on a name: what DNS
answers a second time does not matter.
"""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
from typing import Any
from urllib.parse import urljoin

from yarl import URL

MAX_REDIRECTS = 5
"""Redirects of one request that are followed."""

_PRINTABLE = re.compile(r"[!-~]+", re.ASCII)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

AddressInfo = tuple[Any, Any, int, str, tuple[Any, ...]]


class Refused(Exception):
    """A redirect or a realm that is not followed; the text says which and why."""


class RefusedAddress(OSError):
    """A host's address is not public, and nobody allowed it."""

    def __init__(self) -> None:
        # One text for all of a host's addresses: the library then raises this very error.
        super().__init__(
            errno.EACCES,
            "its address is private, loopback, link-local or otherwise not public, and the config "
            "does not allow it (allow_private)",
        )


def is_public(address: str) -> bool:
    """Whether an IP address is one of the Internet's.

    An IPv6 address that stands for an IPv4 one (mapped, 6to4, NAT64) counts as that one.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            ip = inner
        elif ip.is_site_local or ip.teredo is not None:
            return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


def public_socket(info: AddressInfo) -> socket.socket:
    """A socket for this address if it is public; raise `RefusedAddress` otherwise.

    The socket factory of a connector: it is called with the very address that is connected to.
    """
    family, kind, protocol, _, address = info
    if not is_public(str(address[0])):
        raise RefusedAddress
    return socket.socket(family=family, type=kind, proto=protocol)


def same_origin(one: URL, other: URL) -> bool:
    """Whether two URLs have the same scheme, host and port."""
    return _origin(one) == _origin(other)


def _origin(url: URL) -> tuple[str, str, int | None]:
    return url.scheme.lower(), (url.host or "").lower(), url.port


def target(base: URL, location: str) -> URL:
    """The URL that a Location, a Link or a realm names; raise `Refused` if it may not be asked.

    Refused: another scheme than http and https, https to http, and a user or password in it. The
    text is kept as it is: signed URLs bear no new quoting.
    """
    if len(location) > 16384 or _PRINTABLE.fullmatch(location) is None:
        raise Refused("it names a URL that is too long or has characters that no URL has")
    try:
        url = URL(urljoin(str(base), location), encoded=True)
        # The properties parse what the constructor left alone.
        host, _, userinfo = url.host, url.port, (url.user, url.password)
    except ValueError:
        raise Refused("it names what is no URL") from None
    if url.scheme not in ("http", "https") or not host:
        raise Refused(f"it leads to {shown(url)}, which is neither http nor https")
    if userinfo != (None, None):
        raise Refused(f"it leads to {shown(url)} with a user name in the URL")
    if base.scheme == "https" and url.scheme == "http":
        raise Refused(f"it leads from https to {shown(url)}, which is not encrypted")
    return url.with_fragment(None)


def shown(url: URL) -> str:
    """A URL for errors and logs: without user, password, query (it may be signed) and fragment."""
    port = "" if url.explicit_port is None else f":{url.explicit_port}"
    host = f"[{url.host}]" if url.host and ":" in url.host else url.host or ""
    return f"{url.scheme}://{host}{port}{url.raw_path}"


__all__ = [
    "MAX_REDIRECTS",
    "Refused",
    "RefusedAddress",
    "is_public",
    "public_socket",
    "same_origin",
    "shown",
    "target",
]
