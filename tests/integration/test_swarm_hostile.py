# SPDX-License-Identifier: Apache-2.0
"""Peers that lie, stall, vanish or send nonsense do no harm: downloads still end right."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from shoal.model.digest import Digest
from shoal.swarm import bits as bitset
from shoal.swarm import node, pace
from shoal.swarm.drops import Drop
from shoal.swarm.metainfo import MAX_PIECE, Metainfo, PieceHasher
from shoal.swarm.peers import PeerInfo, new_peer_id
from shoal.swarm.pieces import PieceFile, SharedFile
from shoal.swarm.wire import (
    HEADER,
    MAX_CHANNELS,
    VERSION,
    Cancel,
    Close,
    Have,
    Hello,
    Message,
    Open,
    Piece,
    Ping,
    Pong,
    Reject,
    Request,
    Unknown,
    encode,
)
from tests.integration.swarm_hosts import (
    PATIENCE,
    PIECE,
    Content,
    Host,
    Puppet,
    Stage,
    pieces,
    until,
)

CONTENT = pieces(30)


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncGenerator[Stage]:
    async with Stage(tmp_path) as it:
        yield it


# -- peers that give, but not what they should


async def lie(puppet: Puppet) -> None:
    puppet.open(CONTENT, CONTENT.full)
    while True:
        index = (await puppet.hear(Request)).index
        puppet.give(CONTENT, index, data=bytes(CONTENT.metainfo.length(index)))


async def test_a_peer_that_sends_wrong_pieces_is_banned_and_the_download_right(
    stage: Stage,
) -> None:
    liar, seed = await stage.puppet(lie), await stage.seed(CONTENT)
    leecher = await stage.host()
    wrong, dropped = leecher.wrong_pieces, leecher.dropped(Drop.WRONG_PIECE)
    blob = leecher.leech(CONTENT, [liar])
    await until(lambda: leecher.keeps_away(liar))
    assert blob.pieces.verified == 0
    assert liar.peer.id not in leecher.node.links
    blob.add_peers([liar.peer, seed.peer])
    await leecher.whole(CONTENT)
    assert liar.connections == 1
    assert leecher.wrong_pieces > wrong
    assert leecher.dropped(Drop.WRONG_PIECE) == dropped + 1
    assert not leecher.keeps_away(seed)


async def test_a_banned_peer_that_comes_by_itself_is_turned_away(stage: Stage) -> None:
    liar = await stage.puppet(lie)
    leecher = await stage.host()
    leecher.leech(CONTENT, [liar])
    await until(lambda: leecher.keeps_away(liar))
    puppet = await stage.dial(leecher, peer=liar.peer, greet=False)
    puppet.say(Hello(VERSION, liar.peer))
    assert all(isinstance(message, Hello) for message in await puppet.dropped())


async def test_one_honest_peer_among_liars_is_enough(stage: Stage) -> None:
    liars = [await stage.puppet(lie) for _ in range(5)]
    seed = await stage.seed(CONTENT)
    leecher = await stage.host()
    await leecher.fetch(CONTENT, [*liars, seed])
    assert leecher.received_from(seed) == CONTENT.metainfo.size


async def test_a_peer_that_claims_what_it_will_not_send_is_done_without(stage: Stage) -> None:
    async def play(puppet: Puppet) -> None:
        puppet.open(CONTENT, CONTENT.full, seed=True)
        while True:
            puppet.say(Reject(0, (await puppet.hear(Request)).index))

    claimer, seed = await stage.puppet(play), await stage.seed(CONTENT)
    leecher = await stage.host()
    await leecher.fetch(CONTENT, [claimer, seed])
    assert claimer.peer.id in leecher.node.links


async def test_a_rejected_piece_is_not_asked_for_again_until_it_is_shown(stage: Stage) -> None:
    content = pieces(1)
    asked: list[int] = []

    async def play(puppet: Puppet) -> None:
        puppet.open(content, seed=True)
        asked.append((await puppet.hear(Request)).index)
        puppet.say(Reject(0, 0), Have(0, 0))
        asked.append((await puppet.hear(Request)).index)
        puppet.give(content, 0)
        await puppet.dropped()

    seed = await stage.puppet(play)
    leecher = await stage.host()
    await leecher.fetch(content, [seed])
    assert asked == [0, 0]


async def test_a_piece_sent_in_spite_of_a_cancel_does_no_harm(stage: Stage) -> None:
    content = pieces(2)
    cancelled = asyncio.Event()

    async def play(puppet: Puppet) -> None:
        puppet.open(content, 0b01)
        await puppet.hear(Request)
        await puppet.hear(Cancel)
        puppet.give(content, 0)
        puppet.say(Ping())
        await puppet.hear(Pong)
        cancelled.set()
        await puppet.dropped()

    slow, seed = await stage.puppet(play), await stage.seed(content)
    leecher = await stage.host()
    blob = leecher.leech(content, [slow])
    await until(lambda: leecher.node.links)
    link = leecher.node.links[slow.peer.id]
    await until(lambda: link.pace.in_flight)
    blob.add_peers([seed.peer])
    await leecher.whole(content)
    async with asyncio.timeout(PATIENCE):
        await cancelled.wait()
    assert link.pace.in_flight == 0
    assert leecher.node._buffers._used == 0


# -- peers that do not give


async def test_pieces_asked_of_a_peer_that_vanishes_come_from_others(stage: Stage) -> None:
    async def play(puppet: Puppet) -> None:
        puppet.open(CONTENT, CONTENT.full)
        index = (await puppet.hear(Request)).index
        puppet.say(Piece(0, index, CONTENT.metainfo.length(index)))
        puppet.say_raw(CONTENT.piece(index)[:100])

    vanishing = [await stage.puppet(play) for _ in range(3)]
    seed = await stage.seed(CONTENT)
    leecher = await stage.host()
    await leecher.fetch(CONTENT, [*vanishing, seed])
    await until(lambda: list(leecher.node.links) == [seed.peer.id])
    assert leecher.node._buffers._used == 0


async def test_pieces_asked_of_a_peer_that_never_answers_come_from_others(stage: Stage) -> None:
    async def play(puppet: Puppet) -> None:
        puppet.open(CONTENT, CONTENT.full)
        await puppet.dropped()

    silent = await stage.puppet(play)
    leecher = await stage.host(request_timeout=0.2)
    blob = leecher.leech(CONTENT, [silent])
    await until(lambda: silent.peer.id in leecher.node.links)
    link = leecher.node.links[silent.peer.id]
    await until(lambda: link.pace.in_flight)
    blob.add_peers([(await stage.seed(CONTENT)).peer])
    await leecher.whole(CONTENT)
    assert link.pace.in_flight == 0


async def test_a_peer_that_sends_nothing_time_after_time_is_dropped_and_counted(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "_FIRST_PENALTY", 0.01)

    async def play(puppet: Puppet) -> None:
        puppet.open(CONTENT, CONTENT.full)
        await puppet.dropped()

    silent = await stage.puppet(play)
    leecher = await stage.host(request_timeout=0.1)
    before = leecher.dropped(Drop.STALLED)
    leecher.leech(CONTENT, [silent])
    await until(lambda: leecher.keeps_away(silent))
    assert leecher.dropped(Drop.STALLED) == before + 1


async def test_a_peer_that_sends_byte_by_byte_does_not_hold_up_the_download(
    stage: Stage,
) -> None:
    done = asyncio.Event()

    async def play(puppet: Puppet) -> None:
        puppet.open(CONTENT, CONTENT.full)
        index = (await puppet.hear(Request)).index
        puppet.say(Piece(0, index, CONTENT.metainfo.length(index)))
        for byte in CONTENT.piece(index)[:200]:
            puppet.say_raw(bytes([byte]))
            await asyncio.wait([asyncio.ensure_future(done.wait())], timeout=0.02)

    trickling = await stage.puppet(play)
    leecher = await stage.host()
    blob = leecher.leech(CONTENT, [trickling])
    await until(leecher.traffic.bytes_received.total)
    blob.add_peers([(await stage.seed(CONTENT)).peer])
    await leecher.whole(CONTENT)
    done.set()


async def test_a_seed_gives_unshown_what_a_slow_peer_holds_up(stage: Stage) -> None:
    """The seed has shown its pieces to a peer that then keeps them to itself."""
    content = pieces(6)

    async def play(puppet: Puppet) -> None:
        puppet.open(content, content.full)
        await puppet.dropped()

    miser, seed = await stage.puppet(play), await stage.seed(content, origin=(0, 1))
    hoarder = await stage.dial(seed, peer=miser.peer)
    hoarder.open(content)
    for _ in range(6):
        hoarder.say(Have(0, (await hoarder.hear(Have)).index))
    leecher = await stage.host()
    await leecher.fetch(content, [miser, seed])


# -- peers that do not read


async def ask_and_never_read(stage: Stage, seed: Host, content: Content) -> Puppet:
    puppet = await stage.dial(seed)
    puppet.open(content)
    await puppet.hear(Open)
    puppet.say(*(Request(0, index) for index in range(content.count)))
    await until(lambda: seed.node.links[puppet.peer.id].connection._writing)
    return puppet


async def test_a_peer_that_never_reads_does_not_hold_up_others(stage: Stage) -> None:
    content = pieces(40, piece_size=1 << 20)
    seed = await stage.seed(content)
    puppet = await ask_and_never_read(stage, seed, content)
    leecher = await stage.host()
    await leecher.fetch(content, [seed])
    assert seed.node.links[puppet.peer.id].connection.stuck_since() is not None


async def test_twenty_peers_that_never_read_do_not_hold_up_others(stage: Stage) -> None:
    """They are more than are sent to at a time, and none has been dropped when the rest is done."""
    content = pieces(40, piece_size=1 << 20)
    seed = await stage.seed(content)
    puppets = [await ask_and_never_read(stage, seed, content) for _ in range(20)]
    leecher = await stage.host()
    await leecher.fetch(content, [seed])
    assert seed.node.links.keys() >= {puppet.peer.id for puppet in puppets}


async def test_twenty_peers_that_hardly_read_do_not_hold_up_others(stage: Stage) -> None:
    content = pieces(40, piece_size=1 << 20)
    seed = await stage.seed(content)
    puppets = [await ask_and_never_read(stage, seed, content) for _ in range(20)]
    done = asyncio.Event()

    async def sip(puppet: Puppet) -> None:
        while not done.is_set() and await puppet.reader.read(1024):
            await asyncio.wait([asyncio.ensure_future(done.wait())], timeout=0.1)

    sips = [asyncio.ensure_future(sip(puppet)) for puppet in puppets]
    leecher = await stage.host()
    await leecher.fetch(content, [seed])
    assert seed.node.links.keys() >= {puppet.peer.id for puppet in puppets}
    done.set()
    await asyncio.gather(*sips)


async def test_a_peer_that_never_reads_is_dropped_counted_and_kept_away(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node, "_JANITOR", 0.05)
    monkeypatch.setattr(node, "_STUCK", 0.3)
    content = pieces(40, piece_size=1 << 20)
    seed = await stage.seed(content)
    before = seed.dropped(Drop.UNREAD)
    puppet = await ask_and_never_read(stage, seed, content)
    await until(lambda: not seed.node.links)
    assert seed.dropped(Drop.UNREAD) == before + 1
    assert not seed.node.neighbours.bans.may_stay("127.0.0.1", puppet.peer.address, seed.node.now())


async def test_a_peer_that_asks_for_answers_and_never_reads_them_is_dropped(
    stage: Stage, tmp_path: Path
) -> None:
    """Each answer shows the pieces of a large blob."""
    count = 1 << 17
    hasher = PieceHasher(PIECE)
    hasher.update(bytes(PIECE))
    digest = Digest.of(b"too long to hash here")
    metainfo = Metainfo(str(digest), count * PIECE, PIECE, hasher.finish() * count)
    host = await stage.host()
    file = SharedFile(tmp_path / "blob", create=count * PIECE)
    full = bitset.full(count)
    host.node.add(PieceFile(metainfo, file, host.node.executor, present=full, verified=0))
    puppet = await stage.dial(host)
    reasons, before = Reasons(host.node.on_closed), host.dropped(Drop.UNREAD)
    host.node.on_closed = reasons  # type: ignore[method-assign]
    puppet.writer.transport.pause_reading()  # type: ignore[attr-defined]
    with suppress(ConnectionError):
        while not reasons.said:
            puppet.say(Open(0, digest, count, bytes(count // 8)), Close(0))
            await puppet.writer.drain()
    await until(lambda: reasons.said)
    assert reasons.said == ["it does not read what it is sent"]
    assert host.dropped(Drop.UNREAD) == before + 1


# -- peers that break the protocol


def frame(kind: int, payload: bytes = b"", *, channel: int = 0, index: int = 0) -> bytes:
    return HEADER.pack(kind, 0, 0, channel, index, len(payload)) + payload


STRANGER = PeerInfo(new_peer_id(), "127.0.0.1", 1)


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), id="TLS hello"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", id="HTTP"),
        pytest.param(b"\x13BitTorrent protocol" + bytes(48), id="BitTorrent"),
        pytest.param(bytes(64), id="zeros"),
        pytest.param(b"\xff" * 64, id="ones"),
        pytest.param(encode(Ping()), id="no hello"),
        pytest.param(encode(Open(0, CONTENT.digest, 30, bytes(4))), id="open before hello"),
        pytest.param(encode(Piece(0, 0, MAX_PIECE)), id="piece before hello"),
        pytest.param(HEADER.pack(1, 0, 0, 0, 0, 2**32 - 1), id="hello of 4 GiB"),
        pytest.param(frame(1, b"{}"), id="hello of nobody"),
        pytest.param(frame(1, b"\xff\xfe"), id="hello not UTF-8"),
        pytest.param(frame(1, b'{"version":99,"peer":null}'), id="another version"),
        pytest.param(encode(Hello(VERSION, STRANGER)) * 2, id="two hellos"),
    ],
)
async def test_whoever_does_not_begin_as_a_peer_is_dropped(stage: Stage, first: bytes) -> None:
    host = await stage.seed(CONTENT)
    puppet = await stage.dial(host, greet=False)
    puppet.say_raw(first)
    assert all(isinstance(message, Hello) for message in await puppet.dropped())
    await until(lambda: not host.node.neighbours.strangers and not host.node.links)
    await (await stage.host()).fetch(CONTENT, [host])


async def test_whoever_does_not_say_hello_is_dropped_in_time(stage: Stage) -> None:
    host = await stage.host(handshake_timeout=0.1)
    before = host.dropped(Drop.HANDSHAKE)
    silent = await stage.dial(host, greet=False)
    half = await stage.dial(host, greet=False)
    half.say_raw(encode(Hello(VERSION, half.peer))[:20])
    await silent.dropped()
    await half.dropped()
    assert not host.node.neighbours.strangers
    assert host.dropped(Drop.HANDSHAKE) == before + 2


async def test_a_peer_that_is_this_process_itself_is_left(stage: Stage) -> None:
    host = await stage.host()
    puppet = await stage.dial(host, greet=False)
    puppet.say(Hello(VERSION, host.peer))
    await puppet.dropped()
    other = PeerInfo(new_peer_id(), host.peer.host, host.peer.port)
    host.node.leech(host.file(CONTENT), [other])
    blob = host.node.blobs[CONTENT.digest]
    await until(lambda: not blob.candidates and not host.node.neighbours.dialing)
    assert host.node.links == {}


Breach = Callable[[Puppet], None]


def says(*messages: Message) -> Breach:
    return lambda puppet: puppet.say(*messages)


def says_raw(data: bytes) -> Breach:
    return lambda puppet: puppet.say_raw(data)


DIGEST = CONTENT.digest
BITS = bytes(4)


@pytest.mark.parametrize(
    "breach",
    [
        pytest.param(says(Hello(VERSION, STRANGER)), id="second hello"),
        pytest.param(says_raw(b"\xee" * 32), id="unknown kind"),
        pytest.param(says_raw(HEADER.pack(10, 0, 0, 0, 0, 5)), id="ping with a payload"),
        pytest.param(says_raw(HEADER.pack(2, 0, 0, 1, 30, 2**32 - 1)), id="open of 4 GiB"),
        pytest.param(says_raw(HEADER.pack(8, 0, 0, 0, 0, 2**32 - 1)), id="piece of 4 GiB"),
        pytest.param(says(Have(0, 30)), id="have out of range"),
        pytest.param(says(Have(0, 2**32 - 1)), id="have far out of range"),
        pytest.param(says(Request(0, 30)), id="request out of range"),
        pytest.param(says(Cancel(0, 30)), id="cancel out of range"),
        pytest.param(says(Reject(0, 30)), id="reject out of range"),
        pytest.param(says(Piece(0, 30, 5)), id="piece out of range"),
        pytest.param(says(Have(9, 0)), id="have on an unknown channel"),
        pytest.param(says(Request(9, 0)), id="request on an unknown channel"),
        pytest.param(says(Piece(9, 0, PIECE)), id="piece on an unknown channel"),
        pytest.param(says(Piece(0, 0, PIECE - 1)), id="piece too short"),
        pytest.param(says(Piece(0, 0, PIECE + 1)), id="piece too long"),
        pytest.param(says(Piece(0, 0, PIECE)), id="piece nobody asked for"),
        pytest.param(says(Open(1, DIGEST, 31, BITS)), id="another number of pieces"),
        pytest.param(says(Open(1, DIGEST, 30, b"\xff" * 4)), id="bits beyond the last piece"),
        pytest.param(says(Open(1, DIGEST, 30, BITS)), id="opened twice"),
        pytest.param(says(Open(0, Digest.of(b"x"), 30, BITS)), id="channel used twice"),
        pytest.param(says_raw(encode(Open(MAX_CHANNELS, DIGEST, 30, BITS))), id="channel too high"),
    ],
)
async def test_whoever_breaks_the_protocol_is_dropped_and_nothing_else_happens(
    stage: Stage, breach: Breach
) -> None:
    host = await stage.seed(CONTENT)
    puppet = await stage.dial(host)
    puppet.open(CONTENT)
    await puppet.hear(Open)
    before = host.dropped(Drop.PROTOCOL)
    breach(puppet)
    await puppet.dropped()
    await until(lambda: not host.node.links)
    assert host.dropped(Drop.PROTOCOL) == before + 1
    assert host.node._buffers._used == 0
    await (await stage.host()).fetch(CONTENT, [host])


async def test_blobs_can_be_looked_up_for_a_peer_a_thousand_at_a_time(stage: Stage) -> None:
    host = await stage.seed(CONTENT)
    answer = asyncio.Event()
    host.shelf.hold = answer
    puppet = await stage.dial(host)
    for number in range(1100):
        puppet.say(Open(number, Digest.of(str(number).encode()), 1, b"\0"))
    await puppet.dropped()
    assert len(host.shelf.asked) <= 1024
    answer.set()
    await (await stage.host()).fetch(CONTENT, [host])


async def test_a_leecher_drops_a_seed_that_breaks_the_protocol_and_goes_on(stage: Stage) -> None:
    async def play(puppet: Puppet) -> None:
        puppet.open(CONTENT, CONTENT.full)
        index = (await puppet.hear(Request)).index
        puppet.say(Piece(0, index, MAX_PIECE))
        await puppet.dropped()

    broken, seed = await stage.puppet(play), await stage.seed(CONTENT)
    leecher = await stage.host()
    await leecher.fetch(CONTENT, [broken, seed])


async def test_frames_that_may_cross_are_no_breach(stage: Stage) -> None:
    """What was sent before the other side's `Unknown`, `Close` or piece came is passed over."""
    host = await stage.seed(CONTENT)
    puppet = await stage.dial(host)
    absent = pieces(5, seed=9)
    puppet.open(absent, channel=1)
    puppet.say(Have(1, 2))
    assert await puppet.hear(Unknown) == Unknown(1)
    puppet.say(Have(1, 3), Close(1), Close(1), Unknown(77), Pong())
    puppet.open(CONTENT, channel=2)
    await puppet.hear(Open)
    host.node.remove(CONTENT.digest)
    await puppet.hear(Close)
    puppet.say(Request(2, 0), Cancel(2, 0), Have(2, 0), Close(2), Ping())
    assert await puppet.hear(Pong) == Pong()
    puppet.open(CONTENT, channel=3)
    await puppet.hear(Open)
    puppet.say(Request(3, 4))
    assert (await puppet.hear_piece())[1] == CONTENT.piece(4)
    assert host.shelf.damages == []


# -- too many


async def test_connections_beyond_the_limit_are_refused_and_room_is_made_again(
    stage: Stage,
) -> None:
    host = await stage.seed(CONTENT, max_accepted=2, max_dialed=1)
    first, _second = await stage.dial(host), await stage.dial(host)
    third = await stage.dial(host, greet=False)
    assert await third.dropped() == []
    await first.hang_up()
    await until(lambda: len(host.node.links) == 1)
    await (await stage.host()).fetch(CONTENT, [host])


async def test_a_peer_that_connects_again_replaces_its_old_connection(stage: Stage) -> None:
    host = await stage.seed(CONTENT)
    old = await stage.dial(host)
    new = await stage.dial(host, peer=old.peer)
    assert await old.dropped() == []
    new.open(CONTENT)
    await new.hear(Open)
    assert list(host.node.links) == [old.peer.id]


async def test_memory_goes_to_the_next_in_line_when_the_first_one_is_gone(stage: Stage) -> None:
    """Three peers send at once, and there is memory for one piece."""
    content = pieces(3)
    leecher = await stage.host(buffers=PIECE)
    blob = leecher.leech(content, [])
    puppets = [await stage.dial(leecher) for _ in range(3)]
    for index, puppet in enumerate(puppets):
        blob.candidates[puppet.peer.id] = puppet.peer
        puppet.open(content, 1 << index)
        assert (await puppet.hear(Request)).index == index
    puppets[0].say(Piece(0, 0, PIECE))
    await until(lambda: leecher.node._buffers._used)
    for index in (1, 2):
        puppets[index].give(content, index)
        link = leecher.node.links[puppets[index].peer.id]
        await until(lambda: link.connection.paused)  # noqa: B023
    # The second one is replaced while it waits for memory; then the first one ends.
    await stage.dial(leecher, peer=puppets[1].peer)
    puppets[0].say_raw(content.piece(0))
    async with asyncio.timeout(PATIENCE):
        await blob.pieces.wait(0)
        await blob.pieces.wait(2)


class Reasons:
    """Notes why links were closed."""

    def __init__(self, on_closed: Callable[..., None]) -> None:
        self._on_closed = on_closed
        self.said: list[str] = []

    def __call__(self, link: object, reason: str, why: Drop | None) -> None:
        self.said.append(reason)
        self._on_closed(link, reason, why)
