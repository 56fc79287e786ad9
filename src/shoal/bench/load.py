# SPDX-License-Identifier: Apache-2.0
"""A load generator in a process of its own: requests made beforehand, answers merely measured.

It costs a fraction of what the server spends on the same request, so that on a machine that both
share the server is what is measured. ``python -m shoal.bench.load`` reads one `Load` as JSON from
standard input and writes one `Loaded` to standard output.
"""

from __future__ import annotations

import asyncio
import math
import select
import socket
import sys
import time
from array import array
from collections.abc import Sequence
from itertools import cycle

import msgspec

from shoal.bench.client import TransferFailed

ANSWER_WITHIN = 30.0
"""Seconds without any answer after which a load has failed."""

_RECEIVE = 1 << 18
_MAX_HEAD = 64 * 1024


class Load(msgspec.Struct, frozen=True):
    """What to send, over how many connections, and for how long."""

    address: str
    """Host and port, as in ``127.0.0.1:5000``."""
    method: str
    targets: Sequence[str]
    """Sent in turn."""
    connections: int
    seconds: float
    keep_alive: bool = True
    """False: every request opens a connection, and closes it when its answer is there."""
    headers: dict[str, str] = {}
    bodies: Sequence[str] = ()
    """Sent in turn beside the targets; without any, requests have none."""


class Loaded(msgspec.Struct, frozen=True):
    """What came of it."""

    requests: int
    wall_s: float
    p50_ms: float
    p99_ms: float
    received: int
    """Bytes of all answers, heads included."""
    client_cpu_s: float


async def put_under_load(load: Load) -> Loaded:
    """Run the generator in a process of its own; raise `TransferFailed` with what it said."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "shoal.bench.load"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(load.seconds + 2 * ANSWER_WITHIN):
            answer, complaint = await process.communicate(msgspec.json.encode(load))
    except TimeoutError as error:
        raise TransferFailed(f"{_what(load)}: the load generator did not end") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise TransferFailed(complaint.decode(errors="replace").strip())
    return msgspec.json.decode(answer, type=Loaded)


def generate(load: Load) -> Loaded:
    """Send for `load.seconds`, one request at a time on each connection. Blocks.

    Raises `TransferFailed` for an answer that is not 200, or when none comes.
    """
    return _Generator(load).run()


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of the sorted values that is not below this share of all."""
    return values[max(0, math.ceil(share * len(values)) - 1)]


def answer_size(received: bytes, *, head_only: bool) -> int | None:
    """Bytes of the answer that begins here; None as long as its head is not whole.

    Raises `ValueError` for what has no Content-Length, and for a status that is not 200.
    """
    end = received.find(b"\r\n\r\n")
    if end < 0:
        if len(received) > _MAX_HEAD:
            raise ValueError("the head does not end")
        return None
    if not received.startswith(b"HTTP/1.1 200 "):
        raise ValueError(received[:500].decode(errors="replace"))
    if head_only:
        return end + 4
    head = received[:end].lower()
    at = head.find(b"\r\ncontent-length:")
    if at < 0:
        raise ValueError("an answer without Content-Length")
    return end + 4 + int(head[at + 17 :].partition(b"\r\n")[0])


class _Connection:
    """One request under way: its socket, when it began, and what has come so far."""

    __slots__ = ("began", "buffer", "missing", "sock")

    def __init__(self, sock: socket.socket, began: float) -> None:
        self.sock = sock
        self.began = began
        self.buffer = b""
        self.missing: int | None = None
        """Bytes still to come, once the head has said how many."""


class _Generator:
    def __init__(self, load: Load) -> None:
        self._load = load
        host, _, port = load.address.rpartition(":")
        self._peer = (host.strip("[]"), int(port))
        fields = {"Host": load.address, **load.headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        heads = [f"{load.method} {target} HTTP/1.1\r\n{lines}" for target in load.targets]
        if load.bodies:
            pairs = zip(cycle(heads), load.bodies, strict=False)
            self._requests = cycle([_with_body(head, body.encode()) for head, body in pairs])
        else:
            self._requests = cycle([f"{head}\r\n".encode() for head in heads])
        self._head_only = load.method == "HEAD"
        self._open: dict[int, _Connection] = {}
        self._latencies = array("d")
        self._received = 0

    def run(self) -> Loaded:
        cpu = time.process_time()
        began = time.perf_counter()
        until = began + self._load.seconds
        with select.epoll() as poll:
            try:
                for _ in range(self._load.connections):
                    self._connect(poll)
                self._until(poll, until)
            except OSError as error:
                raise self._failed(repr(error)) from error
            finally:
                for connection in self._open.values():
                    connection.sock.close()
        wall_s = time.perf_counter() - began
        cpu_s = time.process_time() - cpu
        ordered = sorted(self._latencies)
        return Loaded(
            requests=len(ordered),
            wall_s=wall_s,
            p50_ms=1000 * percentile(ordered, 0.50),
            p99_ms=1000 * percentile(ordered, 0.99),
            received=self._received,
            client_cpu_s=cpu_s,
        )

    def _until(self, poll: select.epoll, until: float) -> None:
        """Keep every connection busy until then, and until there is an answer.

        What is under way at the end is not counted.
        """
        clock = time.perf_counter
        while clock() < until or not self._latencies:
            ready = poll.poll(ANSWER_WITHIN)
            if not ready:
                raise self._failed(f"no answer within {ANSWER_WITHIN:g} s")
            for descriptor, _ in ready:
                connection = self._open[descriptor]
                if not self._receive(connection):
                    continue
                now = clock()
                self._latencies.append(now - connection.began)
                if self._load.keep_alive:
                    connection.began = now
                    connection.sock.send(next(self._requests))
                else:
                    del self._open[descriptor]
                    connection.sock.close()
                    self._connect(poll)

    def _connect(self, poll: select.epoll) -> None:
        began = time.perf_counter()
        sock = socket.create_connection(self._peer, timeout=ANSWER_WITHIN)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.send(next(self._requests))
        self._open[sock.fileno()] = _Connection(sock, began)
        poll.register(sock.fileno(), select.EPOLLIN)

    def _receive(self, connection: _Connection) -> bool:
        """Take what has come; whether that was the end of the answer."""
        data = connection.sock.recv(_RECEIVE)
        if not data:
            raise self._failed("the connection was closed before the answer ended")
        self._received += len(data)
        if connection.missing is None:
            connection.buffer += data
            try:
                size = answer_size(connection.buffer, head_only=self._head_only)
            except ValueError as error:
                raise self._failed(str(error)) from error
            if size is None:
                return False
            connection.missing = size - len(connection.buffer)
            connection.buffer = b""
        else:
            connection.missing -= len(data)
        if connection.missing > 0:
            return False
        if connection.missing < 0:
            raise self._failed(f"{-connection.missing} bytes more than the answer has")
        connection.missing = None
        return True

    def _failed(self, why: str) -> TransferFailed:
        return TransferFailed(f"{_what(self._load)}: {why}")


def _with_body(head: str, body: bytes) -> bytes:
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def _what(load: Load) -> str:
    return f"{load.method} http://{load.address}{load.targets[0]}"


def main() -> None:
    """Read a load, generate it, and write what came of it."""
    load = msgspec.json.decode(sys.stdin.buffer.read(), type=Load)
    try:
        loaded = generate(load)
    except TransferFailed as error:
        sys.exit(str(error))
    sys.stdout.buffer.write(msgspec.json.encode(loaded))


if __name__ == "__main__":
    main()
