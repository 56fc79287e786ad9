# SPDX-License-Identifier: Apache-2.0
"""One TCP connection to a peer: frames in, frames and file ranges out.

Works on the raw socket, since payload is received straight into the buffer that is then hashed and
written, and leaves by sendfile, in both directions at once (asyncio's own sendfile stops reading
meanwhile).
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from dataclasses import dataclass
from typing import Protocol

from shoal.swarm.pieces import SharedFile
from shoal.swarm.wire import Decoder, Message, Piece, ProtocolError, encode

_SLICE = 1024 * 1024
"""Bytes per sendfile call: few enough that other connections get their turn."""

_TURN = 8
"""Socket calls per event, before others get their turn."""

_MAX_UNSENT_CONTROL = 4 * 1024 * 1024
"""A peer that reads so little that this much of small frames piles up is dropped."""


class Handler(Protocol):
    """What a connection tells."""

    def on_message(self, message: Message) -> None: ...

    def on_piece_header(self, piece: Piece) -> memoryview | None:
        """Memory for the payload; None to wait until `Connection.resume`."""

    def on_bytes(self, count: int) -> None: ...

    def on_piece(self, piece: Piece, payload: memoryview) -> None: ...

    def on_piece_sent(self, piece: Piece) -> None: ...

    def on_closed(self, reason: str) -> None: ...


@dataclass(slots=True)
class _Outgoing:
    piece: Piece
    file: SharedFile
    offset: int


class Connection:
    """Owns the socket. All methods run in the event loop's thread and return at once."""

    def __init__(self, sock: socket.socket, handler: Handler) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock
        self._fd = sock.fileno()
        self._handler = handler
        self._loop = asyncio.get_running_loop()
        self._decoder = Decoder()
        self._payload: memoryview | None = None
        self._paused: Piece | None = None
        self._control: deque[bytes] = deque()
        self._control_bytes = 0
        self._pieces: deque[_Outgoing] = deque()
        self._head = memoryview(b"")
        self._sending: _Outgoing | None = None
        self._left = 0
        self._flush_due = False
        self._writing = False
        self._closed = False
        self.last_progress_out = self._loop.time()
        self._loop.add_reader(self._fd, self._readable)

    def is_closed(self) -> bool:
        """Whether nothing more comes or goes."""
        return self._closed

    # -- out

    @property
    def pieces_queued(self) -> int:
        """Pieces to be sent, the one under way included."""
        return len(self._pieces) + (self._sending is not None)

    def send(self, message: Message) -> None:
        """Queue a small frame; it goes out ahead of pieces that have not begun."""
        if self.is_closed():
            return
        frame = encode(message)
        self._control.append(frame)
        self._control_bytes += len(frame)
        if self._control_bytes > _MAX_UNSENT_CONTROL:
            self.close("it does not read what it is sent")
            return
        self._flush_soon()

    def send_piece(self, piece: Piece, file: SharedFile, offset: int) -> None:
        """Queue a piece that lies at `offset` in the file."""
        if self.is_closed():
            return
        os.posix_fadvise(file.fd, offset, piece.length, os.POSIX_FADV_WILLNEED)
        self._pieces.append(_Outgoing(piece, file.acquire(), offset))
        self._flush_soon()

    def cancel(self, channel: int, index: int) -> None:
        """Take a piece that has not begun out of the queue."""
        for outgoing in self._pieces:
            if outgoing.piece.channel == channel and outgoing.piece.index == index:
                self._pieces.remove(outgoing)
                outgoing.file.release()
                return

    def drop(self, channel: int) -> None:
        """Take all pieces of a channel that have not begun out of the queue."""
        dropped = [outgoing for outgoing in self._pieces if outgoing.piece.channel == channel]
        for outgoing in dropped:
            self._pieces.remove(outgoing)
            outgoing.file.release()

    @property
    def paused(self) -> bool:
        """It waits for memory on this side, not for the other side."""
        return self._paused is not None

    def stuck_since(self) -> float | None:
        """Since when the other side has taken nothing of what waits for it."""
        if self._control or self._pieces or self._sending or self._head:
            return self.last_progress_out
        return None

    def _flush_soon(self) -> None:
        # One flush for all that is queued in this turn of the loop, so that small frames share
        # packets.
        if not self._flush_due and not self._writing:
            self._flush_due = True
            self.last_progress_out = self._loop.time()
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        if self.is_closed():
            return
        try:
            finished = self._send_some()
        except (BlockingIOError, InterruptedError):
            finished = False
        except OSError as error:
            self.close(f"sending failed: {error}")
            return
        if self.is_closed():
            return
        if finished and self._writing:
            self._loop.remove_writer(self._fd)
            self._writing = False
        elif not finished and not self._writing:
            self._loop.add_writer(self._fd, self._flush)
            self._writing = True

    def _send_some(self) -> bool:
        """Send for one turn; whether nothing is left."""
        for _ in range(_TURN):
            if self._head:
                sent = self._sock.send(self._head)
                self._head = self._head[sent:]
            elif self._sending is not None:
                self._send_slice(self._sending)
                if self.is_closed():
                    return True
            elif self._control:
                self._head = memoryview(b"".join(self._control))
                self._control.clear()
                self._control_bytes = 0
                continue
            elif self._pieces:
                self._sending = self._pieces.popleft()
                self._left = self._sending.piece.length
                self._head = memoryview(encode(self._sending.piece))
                continue
            else:
                return True
            self.last_progress_out = self._loop.time()
        return False

    def _send_slice(self, outgoing: _Outgoing) -> None:
        offset = outgoing.offset + outgoing.piece.length - self._left
        sent = os.sendfile(self._fd, outgoing.file.fd, offset, min(self._left, _SLICE))
        if sent == 0:
            self.close("a file became shorter while it was sent")
            return
        self._left -= sent
        if self._left == 0:
            self._sending = None
            outgoing.file.release()
            self._handler.on_piece_sent(outgoing.piece)

    # -- in

    def _readable(self) -> None:
        try:
            for _ in range(_TURN):
                count = self._sock.recv_into(self._decoder.buffer())
                if count == 0:
                    self.close("it closed the connection")
                    return
                if self._payload is not None:
                    self._handler.on_bytes(count)
                message = self._decoder.received(count)
                if message is not None:
                    self._take(message)
                if self.is_closed() or self._paused is not None:
                    return
        except (BlockingIOError, InterruptedError):
            return
        except ProtocolError as error:
            self.close(f"protocol error: {error}")
        except OSError as error:
            self.close(f"receiving failed: {error}")

    def _take(self, message: Message) -> None:
        if not isinstance(message, Piece):
            self._handler.on_message(message)
        elif self._decoder.payload_due:
            self._ask_for_memory(message)
        else:
            payload, self._payload = self._payload, None
            if payload is not None:
                self._handler.on_piece(message, payload)

    def _ask_for_memory(self, piece: Piece) -> bool:
        """Whether there is some; otherwise nothing is read until `resume`."""
        memory = self._handler.on_piece_header(piece)
        if memory is not None:
            self._payload = memory
            self._decoder.take_payload(memory)
            return True
        if not self.is_closed():
            self._paused = piece
            self._loop.remove_reader(self._fd)
        return False

    def resume(self) -> None:
        """Memory may be free again: ask for it once more."""
        piece, self._paused = self._paused, None
        if piece is None or self.is_closed():
            return
        try:
            if self._ask_for_memory(piece):
                self._loop.add_reader(self._fd, self._readable)
        except ProtocolError as error:
            self.close(f"protocol error: {error}")

    # -- end

    def close(self, reason: str) -> None:
        """Close at once; what is queued is dropped. The handler is told once."""
        if self.is_closed():
            return
        self._closed = True
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._sock.close()
        for outgoing in self._pieces:
            outgoing.file.release()
        if self._sending is not None:
            self._sending.file.release()
        self._pieces.clear()
        self._handler.on_closed(reason)

    @property
    def payload(self) -> memoryview | None:
        """The memory of a piece that had begun to come when the connection was closed."""
        return self._payload
