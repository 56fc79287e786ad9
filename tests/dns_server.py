# SPDX-License-Identifier: Apache-2.0
"""A DNS server on loopback whose records a test changes while it runs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset


class DnsServer(asyncio.DatagramProtocol):
    """Answers for the names it has records of; every other name is NXDOMAIN."""

    def __init__(self) -> None:
        self.address = ""
        self.records: dict[tuple[str, str], list[str]] = {}
        """The texts of the records by name and type (``A``, ``AAAA``, ``SRV``)."""
        self.ttl = 1
        self.silent = False
        """Questions are taken and not answered."""
        self.failing: set[str] = set()
        """Types of records for which it answers SERVFAIL."""
        self.asked = 0
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)
        host, port = transport.get_extra_info("sockname")[:2]
        self.address = f"{host}:{port}"

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        self.asked += 1
        if not self.silent and self._transport is not None:
            answer = self._answer(dns.message.from_wire(data))
            self._transport.sendto(answer.to_wire(), addr)

    def _answer(self, query: dns.message.Message) -> dns.message.Message:
        question = query.question[0]
        kind = dns.rdatatype.to_text(question.rdtype)
        name = question.name.to_text(omit_final_dot=True)
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.AA | dns.flags.RA
        if kind in self.failing:
            answer.set_rcode(dns.rcode.SERVFAIL)
        elif texts := self.records.get((name, kind)):
            answer.answer.append(dns.rrset.from_text(question.name, self.ttl, "IN", kind, *texts))
        elif not any(known == name for known, _ in self.records):
            answer.set_rcode(dns.rcode.NXDOMAIN)
        return answer


async def serve_dns() -> tuple[asyncio.DatagramTransport, DnsServer]:
    """Start a server in this event loop; close the transport to stop it."""
    loop = asyncio.get_running_loop()
    return await loop.create_datagram_endpoint(DnsServer, local_addr=("127.0.0.1", 0))


@contextmanager
def dns_in_thread() -> Iterator[DnsServer]:
    """A server in a thread of its own, for services that are processes of their own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="dns")
    thread.start()
    transport, server = asyncio.run_coroutine_threadsafe(serve_dns(), loop).result(5)
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(_close(transport), loop).result(5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
        loop.close()


async def _close(transport: asyncio.DatagramTransport) -> None:
    transport.close()
    await asyncio.sleep(0)  # the transport lets go of its socket in the loop's next turn
