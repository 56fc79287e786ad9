# SPDX-License-Identifier: Apache-2.0
"""Which hosts a peer may announce: those that another host could dial. Pure.

The announced host is trusted: behind address translation, and with several interfaces, only the
peer itself knows under which name others reach it.
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache

_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?", re.ASCII)


@lru_cache(maxsize=65536)
def dialable(host: str) -> bool:
    """Whether the text is an IP address of one host, or a DNS name (RFC 1123, section 2.1).

    Underscores are taken, as names of containers have them.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return _is_dns_name(host)
    return not (address.is_unspecified or address.is_multicast)


def _is_dns_name(host: str) -> bool:
    labels = host.removesuffix(".").split(".")
    return (
        len(host) <= 253
        and all(_LABEL.fullmatch(label) for label in labels)
        and not labels[-1].isdigit()  # what looks like an IPv4 address must be one
    )
