# SPDX-License-Identifier: Apache-2.0
"""One question to the DNS for the hosts of a list.

Asked by dnspython and not by ``getaddrinfo``, which tells neither how long an answer holds (TTL)
nor SRV records. So /etc/hosts is not read: what stands there belongs into a written list.
"""

from __future__ import annotations

import asyncio
import math

import dns.asyncresolver
import dns.exception
import dns.nameserver
import dns.rdatatype
import dns.resolver
from dns.rdtypes.IN.A import A
from dns.rdtypes.IN.AAAA import AAAA
from dns.rdtypes.IN.SRV import SRV

from shoal.config.units import join_address, split_address
from shoal.ring.config import HostsConfig

TIMEOUT = 3.0
"""Seconds for one question, all servers and repetitions included."""


class LookupFailed(Exception):
    """The DNS gave no list: what was asked of whom, and what came of it."""


async def find_hosts(config: HostsConfig) -> tuple[list[str], float]:
    """The hosts of a list now, and for how many seconds the answer holds.

    Raises `LookupFailed`, also for an answer that names nobody. An answer to one of two questions
    (A and AAAA) is not taken for the whole.
    """
    if config.dns is not None:
        name, port = split_address(config.dns)
        both = await asyncio.gather(
            _ask(config, name, dns.rdatatype.A),
            _ask(config, name, dns.rdatatype.AAAA),
            return_exceptions=True,
        )
        answers = []
        for answer in both:
            if isinstance(answer, BaseException):
                raise answer
            if answer is not None:
                answers.append(answer)
        hosts = [
            join_address(record.address, port)
            for answer in answers
            for record in answer
            if isinstance(record, A | AAAA)
        ]
        wanted = f"an address of {name}"
    elif config.srv is not None:
        only = await _ask(config, config.srv, dns.rdatatype.SRV)
        answers = [] if only is None else [only]
        hosts = [
            join_address(record.target.to_text(omit_final_dot=True).lower(), record.port)
            for answer in answers
            for record in answer
            # A target of "." says that there is no such service (RFC 2782).
            if isinstance(record, SRV) and len(record.target) > 1
        ]
        wanted = f"an SRV record of {config.srv}"
    else:
        return config.hosts, math.inf
    if not hosts:
        raise LookupFailed(f"the DNS does not have {wanted}")
    ttl = min(answer.rrset.ttl for answer in answers if answer.rrset is not None)
    return hosts, float(ttl)


async def _ask(
    config: HostsConfig, name: str, kind: dns.rdatatype.RdataType
) -> dns.resolver.Answer | None:
    """The records, or None: the name has none of this kind."""
    try:
        return await _resolver(config).resolve(
            name, kind, lifetime=TIMEOUT, search=True, raise_on_no_answer=True
        )
    except dns.resolver.NoAnswer:
        return None
    except (dns.exception.DNSException, OSError) as error:
        raise LookupFailed(f"{kind.name} of {name}: {error}") from error


def _resolver(config: HostsConfig) -> dns.asyncresolver.Resolver:
    if not config.nameservers:
        return dns.asyncresolver.Resolver()
    resolver = dns.asyncresolver.Resolver(configure=False)
    resolver.nameservers = [
        dns.nameserver.Do53Nameserver(*split_address(server)) for server in config.nameservers
    ]
    return resolver
