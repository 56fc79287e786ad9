# SPDX-License-Identifier: Apache-2.0
"""Peers with certificates: they prove to each other who they are, and refuse all others."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from shoal.swarm.config import PeerTlsConfig
from shoal.swarm.drops import Drop
from shoal.swarm.peers import PeerInfo, new_peer_id
from shoal.swarm.security import Security
from shoal.swarm.streams import TlsStream
from shoal.swarm.wire import VERSION, Hello, Open, Ping, Pong, Request
from shoal.web.tls import CannotSecure
from tests.authority import Authority
from tests.integration.swarm_hosts import PATIENCE, Puppet, Stage, pieces, until

CONTENT = pieces(40, piece_size=64 * 1024)


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncGenerator[Stage]:
    async with Stage(tmp_path) as it:
        yield it


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def test_a_blob_comes_over_tls_and_is_passed_on(stage: Stage, authority: Authority) -> None:
    seed = await stage.seed(CONTENT, **authority.tls())
    first, second = await stage.host(**authority.tls()), await stage.host(**authority.tls())
    first.leech(CONTENT, [seed])
    second.leech(CONTENT, [seed, first])
    await first.whole(CONTENT)
    await second.whole(CONTENT)
    for link in first.node.links.values():
        assert isinstance(link.connection.stream, TlsStream)


async def test_pieces_larger_than_any_buffer_go_both_ways_at_once(
    stage: Stage, authority: Authority
) -> None:
    content = pieces(12, piece_size=4 * 1024 * 1024)
    one = await stage.host(**authority.tls())
    other = await stage.host(**authority.tls())
    halves = [range(0, 12, 2), range(1, 12, 2)]
    one.leech(content, [other], have=halves[0])
    other.leech(content, [one], have=halves[1])
    await one.whole(content)
    await other.whole(content)


async def test_little_memory_and_rate_limits_do_not_stall_what_tls_has_buffered(
    stage: Stage, authority: Authority
) -> None:
    seed = await stage.seed(CONTENT, **authority.tls(), egress=20_000_000)
    leecher = await stage.host(**authority.tls(), buffers=64 * 1024, ingress=10_000_000)
    async with asyncio.timeout(PATIENCE / 2):
        await leecher.fetch(CONTENT, [seed])
    link = leecher.node.links[seed.peer.id]
    assert link.pace._strikes == 0


async def test_small_frames_that_share_a_record_are_all_read(
    stage: Stage, authority: Authority
) -> None:
    host = await stage.seed(CONTENT, **authority.tls())
    puppet = await stage.dial(host, security=authority.client(host="127.0.0.1"))
    puppet.say(*(Ping() for _ in range(500)))
    async with asyncio.timeout(PATIENCE):
        heard = 0
        async for message, _ in puppet.listen():
            heard += isinstance(message, Pong)
            if heard == 500:
                break


@pytest.mark.parametrize("which", ["seed", "leecher"])
async def test_a_certificate_of_another_authority_is_refused(
    stage: Stage, authority: Authority, tmp_path: Path, which: str
) -> None:
    foreign = Authority(tmp_path, "foreign")
    # It trusts the cluster's authority, too; only what it shows is of another.
    impostor = foreign.tls()["tls"] | {"ca": foreign.file_with(authority)}
    settings = {"seed": authority.tls(), "leecher": authority.tls()} | {which: {"tls": impostor}}
    seed = await stage.seed(CONTENT, **settings["seed"])
    leecher = await stage.host(**settings["leecher"])
    before = seed.refused("tls")
    blob = leecher.leech(CONTENT, [seed])
    await until(lambda: not blob.candidates and not leecher.node.neighbours.dialing)
    assert leecher.node.links == seed.node.links == {}
    assert seed.refused("tls") > before
    blob.add_peers([(await stage.seed(CONTENT, **authority.tls())).peer])
    if which == "seed":
        await leecher.whole(CONTENT)


async def test_whoever_shows_no_certificate_is_refused(stage: Stage, authority: Authority) -> None:
    host = await stage.seed(CONTENT, **authority.tls())
    before = host.refused("tls")
    # From TLS 1.3 on, the client learns of it with its first read.
    puppet = await stage.dial(host, security=authority.client(host=None), greet=False)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await puppet.reader.readexactly(1)
    await until(lambda: host.refused("tls") == before + 1)
    assert not host.node.neighbours.strangers


async def test_a_server_whose_certificate_names_another_host_is_refused(
    stage: Stage, authority: Authority
) -> None:
    wrong = await stage.seed(CONTENT, **authority.tls("other.example"))
    right = await stage.seed(CONTENT, **authority.tls())
    leecher = await stage.host(**authority.tls())
    before = leecher.refused("tls")
    await leecher.fetch(CONTENT, [wrong, right])
    assert wrong.peer.id not in leecher.node.links
    assert leecher.refused("tls") > before


async def test_a_client_that_says_it_is_another_host_is_refused(
    stage: Stage, authority: Authority
) -> None:
    host = await stage.seed(CONTENT, **authority.tls())
    before = host.refused("identity")
    puppet = await stage.dial(host, security=authority.client(host="127.0.0.1"), greet=False)
    puppet.say(Hello(VERSION, PeerInfo(new_peer_id(), "10.9.8.7", 5012)))
    await puppet.dropped()
    assert host.refused("identity") == before + 1
    assert host.node.links == {}


async def test_a_plain_peer_is_refused_by_one_with_tls(stage: Stage, authority: Authority) -> None:
    host = await stage.seed(CONTENT, **authority.tls())
    before = host.refused("tls")
    puppet = await stage.dial(host, greet=False)
    puppet.say(Hello(VERSION, puppet.peer))
    await puppet.dropped()
    assert host.refused("tls") == before + 1
    plain = await stage.host()
    blob = plain.leech(CONTENT, [host])
    await until(lambda: not blob.candidates and not plain.node.neighbours.dialing)
    assert host.node.links == plain.node.links == {}


async def test_a_peer_with_tls_is_refused_by_a_plain_one(
    stage: Stage, authority: Authority
) -> None:
    plain, secured = await stage.seed(CONTENT), await stage.host(**authority.tls())
    before = plain.dropped(Drop.PROTOCOL)
    blob = secured.leech(CONTENT, [plain])
    await until(lambda: not blob.candidates and not secured.node.neighbours.dialing)
    await until(lambda: not plain.node.neighbours.strangers)
    assert secured.node.links == plain.node.links == {}
    assert plain.dropped(Drop.PROTOCOL) == before + 1


async def test_a_handshake_that_hangs_ends_in_time_and_lets_others_in(
    stage: Stage, authority: Authority
) -> None:
    host = await stage.seed(
        CONTENT, **authority.tls(), handshake_timeout=0.3, max_accepted=3, max_dialed=1
    )
    before = host.refused("tls")
    hanging = [await stage.dial(host, greet=False) for _ in range(3)]
    crowded = await stage.dial(host, greet=False)
    assert await crowded.dropped() == []
    for puppet in hanging:
        assert await puppet.dropped() == []
    assert host.refused("tls") == before + 3
    await (await stage.host(**authority.tls())).fetch(CONTENT, [host])


async def test_a_handshake_that_hangs_at_the_other_side_is_given_up(
    stage: Stage, authority: Authority
) -> None:
    async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await done.wait()
        writer.close()

    done = asyncio.Event()
    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    peer = PeerInfo(new_peer_id(), "127.0.0.1", server.sockets[0].getsockname()[1])
    leecher = await stage.host(**authority.tls(), handshake_timeout=0.3)
    seed = await stage.seed(CONTENT, **authority.tls())
    blob = leecher.node.leech(leecher.file(CONTENT), [peer])
    await until(lambda: not blob.candidates and not leecher.node.neighbours.dialing)
    blob.add_peers([seed.peer])
    await leecher.whole(CONTENT)
    done.set()
    server.close()
    await server.wait_closed()


async def test_tls_can_be_switched_off_where_certificates_are_configured(
    stage: Stage, authority: Authority
) -> None:
    off = {"tls": authority.tls()["tls"] | {"enabled": False}}
    seed, leecher = await stage.seed(CONTENT, **off), await stage.host(**off)
    await leecher.fetch(CONTENT, [seed])
    assert not any(
        isinstance(link.connection.stream, TlsStream) for link in seed.node.links.values()
    )


async def test_a_seed_with_tls_answers_requests_of_a_foreign_client(
    stage: Stage, authority: Authority
) -> None:
    """The bytes on the wire are TLS as everybody speaks it: here asyncio's own."""
    host = await stage.seed(CONTENT, **authority.tls())
    puppet: Puppet = await stage.dial(host, security=authority.client(host="127.0.0.1"))
    puppet.open(CONTENT)
    await puppet.hear(Open)
    for index in (3, 39):
        puppet.say(Request(0, index))
        assert (await puppet.hear_piece())[1] == CONTENT.piece(index)


def test_files_that_are_no_certificates_are_named(authority: Authority, tmp_path: Path) -> None:
    good = authority.tls()["tls"]
    (tmp_path / "junk").write_text("junk")
    for key, named in (("ca", "peer.tls.ca"), ("certificate", "peer.tls.certificate")):
        with pytest.raises(CannotSecure, match=named):
            Security(PeerTlsConfig(**(good | {key: tmp_path / "junk"})))
        with pytest.raises(CannotSecure, match="missing"):
            Security(PeerTlsConfig(**(good | {key: tmp_path / "missing"})))
