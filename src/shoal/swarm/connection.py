# SPDX-License-Identifier: Apache-2.0
"""One TCP connection to a peer: frames in, frames and file ranges out.

Works on the socket itself, since payload is received straight into the buffer that is then hashed
and written, and leaves by sendfile, in both directions at once (asyncio's own sendfile stops
reading meanwhile). Payload keeps to the rate limits slice by slice: what may not be sent waits in
the file, and what may not be received waits at the other side.
"""

from __future__ import annotations

import asyncio
import enum
import os
from collections import deque
from dataclasses import dataclass
from typing import Protocol

from shoal.swarm.drops import Drop
from shoal.swarm.floods import Flood
from shoal.swarm.limits import Share
from shoal.swarm.pieces import SharedFile
from shoal.swarm.streams import Stream
from shoal.swarm.throttle import Throttle
from shoal.swarm.wire import Decoder, Message, Piece, ProtocolError, encode

_MAX_UNSENT_CONTROL = 4 * 1024 * 1024
"""A peer that reads so little that this much of small frames piles up is dropped."""


class Handler(Protocol):
    """What a connection tells."""

    def on_message(self, message: Message) -> None: ...

    def on_piece_header(self, piece: Piece) -> memoryview | None:
        """Memory for the payload; None to wait until `Connection.resume`."""

    def share_of(self, piece: Piece) -> Share:
        """On whose account a piece goes that comes."""

    def on_bytes(self, count: int) -> None: ...

    def on_piece(self, piece: Piece, payload: memoryview) -> None: ...

    def on_piece_sent(self, piece: Piece) -> None: ...

    def on_closed(self, reason: str, why: Drop | None) -> None: ...


@dataclass(slots=True)
class _Outgoing:
    piece: Piece
    file: SharedFile
    offset: int
    share: Share


class _Out(enum.Enum):
    """How a turn of sending ended."""

    EMPTY = enum.auto()
    MORE = enum.auto()
    """The socket takes no more for now, or others are to have their turn."""
    HELD = enum.auto()
    """The rate limit allows no more for now."""


class Connection:
    """Owns the socket. All methods run in the event loop's thread and return at once."""

    def __init__(
        self,
        stream: Stream,
        handler: Handler,
        *,
        ingress: Throttle | None = None,
        egress: Throttle | None = None,
    ) -> None:
        self.stream = stream
        self._fd = stream.fileno()
        self._handler = handler
        self._ingress = ingress
        self._egress = egress
        self._loop = asyncio.get_running_loop()
        self._decoder = Decoder()
        self._payload: memoryview | None = None
        self._paused: Piece | None = None
        self._share_in = Share(None)
        self._granted_in = 0
        self._held_in = False
        """It waits until the rate limit lets it receive."""
        self._again_due = False
        self._control: deque[bytes] = deque()
        self._control_bytes = 0
        self._pieces: deque[_Outgoing] = deque()
        self._head = memoryview(b"")
        self._sending: _Outgoing | None = None
        self._left = 0
        self._granted_out = 0
        self._held_out = False
        self._flush_due = False
        self._writing = False
        self._closed = False
        self.last_progress_out = self._loop.time()
        self.taken = 0
        """Bytes that the other side's socket has taken."""
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
            self.close("it does not read what it is sent", Drop.UNREAD)
            return
        self._flush_soon()

    def send_piece(self, piece: Piece, file: SharedFile, offset: int, share: Share) -> None:
        """Queue a piece that lies at `offset` in the file."""
        if self.is_closed():
            return
        os.posix_fadvise(file.fd, offset, piece.length, os.POSIX_FADV_WILLNEED)
        self._pieces.append(_Outgoing(piece, file.acquire(), offset, share))
        self._flush_soon()

    def cancel(self, channel: int, index: int) -> bool:
        """Take a piece that has not begun out of the queue; whether it stood there."""
        for outgoing in self._pieces:
            if outgoing.piece.channel == channel and outgoing.piece.index == index:
                self._pieces.remove(outgoing)
                outgoing.file.release()
                return True
        return False

    def drop(self, channel: int) -> bool:
        """Take all pieces of a channel that have not begun out of the queue; whether any stood."""
        dropped = [outgoing for outgoing in self._pieces if outgoing.piece.channel == channel]
        for outgoing in dropped:
            self._pieces.remove(outgoing)
            outgoing.file.release()
        return bool(dropped)

    @property
    def paused(self) -> bool:
        """It waits for memory or a rate limit on this side, not for the other side."""
        return self._paused is not None or self._held_in

    @property
    def held(self) -> bool:
        """It waits for this side's rate limit before more is sent."""
        return self._held_out

    def stuck_since(self) -> float | None:
        """Since when the other side has taken nothing of what waits for it."""
        if not self._held_out and (self._control or self._pieces or self._sending or self._head):
            return self.last_progress_out
        return None

    def _flush_soon(self) -> None:
        # One flush for all that is queued in this turn of the loop, so that small frames share
        # packets.
        if not self._flush_due and not self._writing:
            self._flush_due = True
            self.last_progress_out = self._loop.time()
            self._loop.call_soon(self._flush)

    def _writable(self) -> None:
        if self.stream.read_needs_write and not self.paused:
            self._readable()
        self._flush()

    def _flush(self) -> None:
        self._flush_due = False
        if self.is_closed():
            return
        try:
            state = self._send_some()
        except (BlockingIOError, InterruptedError):
            state = _Out.MORE
        except OSError as error:
            self.close(f"sending failed: {error}")
            return
        if not self.is_closed():
            self._watch_writable(watched=state is _Out.MORE or self.stream.read_needs_write)

    def _watch_writable(self, *, watched: bool) -> None:
        if watched and not self._writing:
            self._loop.add_writer(self._fd, self._writable)
        elif not watched and self._writing:
            self._loop.remove_writer(self._fd)
        self._writing = watched

    def _send_some(self) -> _Out:
        """Send for one turn."""
        for _ in range(self.stream.turn):
            if self._head:
                # The first bytes of a piece share a packet with its header, if they may go now.
                more = self._sending is not None and self._egress is None
                sent = self.stream.send(self._head, more=more)
                self._head = self._head[sent:]
                self.taken += sent
            elif self._sending is not None:
                if not self._send_slice(self._sending):
                    return _Out.HELD
                if self.is_closed():
                    return _Out.EMPTY
            elif self._control or self._pieces:
                self._head = self._next_head()
                continue
            else:
                return _Out.EMPTY
            self.last_progress_out = self._loop.time()
        return _Out.MORE

    def _next_head(self) -> memoryview:
        """The small frames that wait, and the header of the piece that goes after them."""
        if self._pieces:
            self._sending = self._pieces.popleft()
            self._left = self._sending.piece.length
            self._control.append(encode(self._sending.piece))
        frames = b"".join(self._control)
        self._control.clear()
        self._control_bytes = 0
        return memoryview(frames)

    def _send_slice(self, outgoing: _Outgoing) -> bool:
        """False when the rate limit does not allow it now."""
        count = self._left
        if self._egress is not None:
            if self._held_out:
                return False
            if not self._granted_out:
                self._granted_out = self._egress.take(self._may_send, outgoing.share, count)
                if not self._granted_out:
                    self._held_out = True
                    return False
            count = self._granted_out
        offset = outgoing.offset + outgoing.piece.length - self._left
        sent = self.stream.send_file(outgoing.file.fd, offset, count)
        if sent == 0:
            self.close("a file became shorter while it was sent")
            return True
        self._left -= sent
        self.taken += sent
        if self._egress is not None:
            self._granted_out -= sent
        if self._left == 0:
            self._sending = None
            outgoing.file.release()
            self._handler.on_piece_sent(outgoing.piece)
        return True

    def _may_send(self, count: int) -> None:
        self._granted_out = count
        self._held_out = False
        self.last_progress_out = self._loop.time()
        self._flush()

    # -- in

    def _readable(self) -> None:
        try:
            for _ in range(self.stream.turn):
                memory = self._room()
                if memory is None:
                    return
                count = self.stream.receive(memory)
                if count == 0:
                    self.close("it closed the connection")
                    return
                if self._payload is not None:
                    self._granted_in -= count if self._ingress is not None else 0
                    self._handler.on_bytes(count)
                message = self._decoder.received(count)
                if message is not None:
                    self._take(message)
                if self.is_closed() or self._paused is not None:
                    return
        except (BlockingIOError, InterruptedError):
            if self.stream.read_needs_write:
                self._watch_writable(watched=True)
            return
        except ProtocolError as error:
            self.breached(error)
            return
        except OSError as error:
            self.close(f"receiving failed: {error}")
            return
        self._read_what_is_buffered()

    def _read_what_is_buffered(self) -> None:
        # The socket will not tell of what TLS has taken from it already.
        if not self._again_due and self.stream.buffered():
            self._again_due = True
            self._loop.call_soon(self._again)

    def _again(self) -> None:
        self._again_due = False
        if not self.is_closed() and not self.paused:
            self._readable()

    def _room(self) -> memoryview | None:
        """Memory for the next bytes; None when the rate limit allows none now."""
        memory = self._decoder.buffer()
        if self._payload is None or self._ingress is None:
            return memory
        if not self._granted_in:
            self._granted_in = self._ingress.take(self._may_receive, self._share_in, len(memory))
            if not self._granted_in:
                self._held_in = True
                self._loop.remove_reader(self._fd)
                return None
        return memory[: self._granted_in]

    def _may_receive(self, count: int) -> None:
        self._granted_in = count
        self._held_in = False
        self._loop.add_reader(self._fd, self._readable)
        self._readable()

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
            self._share_in = self._handler.share_of(piece)
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
                self._read_what_is_buffered()
        except ProtocolError as error:
            self.breached(error)

    # -- end

    def breached(self, error: ProtocolError) -> None:
        """Close, since the other side does not keep to the protocol."""
        why = Drop.FLOOD if isinstance(error, Flood) else Drop.PROTOCOL
        self.close(f"protocol error: {error}", why)

    def close(self, reason: str, why: Drop | None = None) -> None:
        """Close at once; what is queued is dropped. The handler is told once.

        `why`: it is the other side's fault.
        """
        if self.is_closed():
            return
        self._closed = True
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self.stream.close()
        self._give_back_grants()
        for outgoing in self._pieces:
            outgoing.file.release()
        if self._sending is not None:
            self._sending.file.release()
        self._pieces.clear()
        self._handler.on_closed(reason, why)

    def _give_back_grants(self) -> None:
        if self._ingress is not None:
            self._ingress.leave(self._may_receive)
            self._ingress.give_back(self._share_in, self._granted_in)
        if self._egress is not None:
            self._egress.leave(self._may_send)
            if self._sending is not None:
                self._egress.give_back(self._sending.share, self._granted_out)

    @property
    def payload(self) -> memoryview | None:
        """The memory of a piece that had begun to come when the connection was closed."""
        return self._payload
