# SPDX-License-Identifier: Apache-2.0
"""The peers that this process is connected with: whom it dials, lets in and keeps away."""

from __future__ import annotations

import asyncio
from typing import Protocol

import structlog

from shoal.model.digest import Digest
from shoal.swarm.bans import KeptAway
from shoal.swarm.blob import BlobSwarm
from shoal.swarm.config import PeerConfig
from shoal.swarm.doors import Doors
from shoal.swarm.drops import GRAVE, KEPT_AWAY, Drop
from shoal.swarm.link import Endpoint, Link
from shoal.swarm.peers import PeerInfo
from shoal.swarm.security import speaks_for
from shoal.swarm.slots import LinkPolicy, Standing
from shoal.swarm.streams import Stream, TlsStream

_SILENT = 1.0
"""Seconds for a hello when there is no room for others."""

log = structlog.get_logger(__name__)


class Home(Endpoint, Protocol):
    """The process's peer endpoint as seen from here."""

    config: PeerConfig
    blobs: dict[Digest, BlobSwarm]


class Neighbours:
    """Holds the connections of one process, by the id that each peer said."""

    def __init__(self, home: Home) -> None:
        """Raises `CannotSecure` when a file of the TLS config is of no use."""
        config = home.config
        self._home = home
        self.links: dict[str, Link] = {}
        self.strangers: set[Link] = set()
        """Who has not said hello yet."""
        self.dialing: set[str] = set()
        """Places that are being dialed."""
        self._dialed: dict[str, Link] = {}
        """By place. A process that was started anew has another id than the tracker says."""
        self._short: set[Digest] = set()
        """Blobs that may not dial all the peers that they want."""
        self._look_due = False
        self.bans = KeptAway()
        self._policy = LinkPolicy(max_dialed=config.max_dialed, max_accepted=config.max_accepted)
        self.doors = Doors(
            config,
            home.traffic,
            welcome=lambda address: self.bans.may_come(address, home.now()),
            has_room=self._has_room,
            enter=self._enter,
            spawn=home.spawn,
        )

    def close(self, reason: str) -> None:
        """Close all connections, and take in no more."""
        self.doors.close()
        for link in (*self.links.values(), *self.strangers):
            link.close(reason)

    # -- dialing

    def connect(self, blob: BlobSwarm) -> None:
        """Get links to a blob's candidates as the policy allows, and share what there is."""
        now = self._home.now()
        linked: set[Link] = set()
        dialing = 0
        others: list[PeerInfo] = []
        for peer in tuple(blob.candidates.values()):
            link = self._link_to(peer)
            if link is not None:
                if link.invite(blob):
                    linked.add(link)
            elif peer.address in self.dialing:
                dialing += 1
            elif self.bans.may_be_dialed(peer.address, now):
                others.append(peer)
        count = len(linked) + dialing
        shared = sum(blob in it.blobs and it not in linked for it in self.links.values())
        dialed = len(self._dialed.keys() | self.dialing)
        to_dial = self._policy.to_dial(count, shared, dialed)
        for peer in others[:to_dial]:
            self.dialing.add(peer.address)
            self._home.spawn(self._dial(peer))
        self._short.discard(blob.digest)
        if to_dial < min(len(others), self._policy.wanted(count)):
            self._short.add(blob.digest)
            self._share(blob, self._policy.to_share(count + to_dial, shared))
            self._spare(now)

    def _share(self, blob: BlobSwarm, count: int) -> None:
        """Take part in a blob over connections that are there for others: many have both.

        Origins own some blobs only, and the tracker names those of this one. It chooses by the blob
        who brings pieces into a zone, too.
        """
        zone = self._home.peer.zone
        for link in tuple(self.links.values()):
            if count <= 0:
                return
            peer = link.peer
            if peer is not None and not peer.origin and peer.zone == zone:
                count -= blob not in link.blobs and link.invite(blob)

    def _spare(self, now: float) -> None:
        """Close a connection that was dialed and serves nothing: its place is needed."""
        unused = [
            self._standing(link)
            for link in self._dialed.values()
            if not any(self._fetches(blob.digest) for blob in link.blobs)
        ]
        peer = self._policy.spare(unused, now)
        if peer is not None:
            # Later, as who closes one connects again, and would close the next one from within.
            reason = "idle, and another is to be dialed"
            asyncio.get_running_loop().call_soon(self.links[peer].close, reason)

    def _fetches(self, digest: Digest) -> bool:
        blob = self._home.blobs.get(digest)
        return blob is not None and blob.picker is not None

    def _look_again(self) -> None:
        """Connections have come or gone: see to the blobs that have too few."""
        if self._short and not self._look_due:
            self._look_due = True
            asyncio.get_running_loop().call_soon(self._connect_short)

    def _connect_short(self) -> None:
        self._look_due = False
        for digest in tuple(self._short):
            if self._fetches(digest):
                self.connect(self._home.blobs[digest])
            else:
                self._short.discard(digest)

    def _link_to(self, peer: PeerInfo) -> Link | None:
        link = self.links.get(peer.id)
        return (
            link
            if link is not None and link.place == peer.address
            else self._dialed.get(peer.address)
        )

    async def _dial(self, peer: PeerInfo) -> None:
        link = None
        place = peer.address
        try:
            async with asyncio.timeout(self._home.config.handshake_timeout):
                link = self._begin(await self.doors.dial(peer), dialed=place)
                if not self.bans.may_be_dialed(link.reached, self._home.now()):
                    self._home.traffic.refused("kept_away")
                    link.close("it is kept away, and has another name now")
                await link.greeted
        except (OSError, TimeoutError) as error:
            if link is not None:
                link.close("no handshake in time", Drop.HANDSHAKE)
            log.info("peer not reached", peer=place, error=repr(error))
        finally:
            self.dialing.discard(place)
        for blob in tuple(self._home.blobs.values()):
            known = blob.candidates.get(peer.id)
            if known is None or known.address != place:
                continue
            if link is not None and not link.closed:
                link.invite(blob)
            elif self._link_to(peer) is None:
                del blob.candidates[peer.id]
                self.connect(blob)
        self._look_again()

    # -- letting in

    def _begin(self, stream: Stream, *, dialed: str | None) -> Link:
        link = Link(self._home, stream, dialed=dialed)
        self.strangers.add(link)
        return link

    def _enter(self, stream: Stream) -> None:
        link = self._begin(stream, dialed=None)
        link.greet_within(self._home.config.handshake_timeout)

    def _has_room(self, entering: int) -> bool:
        """Whether one more connection can be taken in; perhaps another one makes room."""
        accepted = [link for link in self.links.values() if not link.dialed]
        strangers = [link for link in self.strangers if not link.dialed]
        if self._policy.has_room(len(accepted) + len(strangers) + entering):
            return True
        now = self._home.now()
        peer = self._policy.make_room(map(self._standing, accepted), now)
        if peer is not None:
            self.links[peer].close("room is made for another peer")
            return True
        # Whoever connects and says nothing must not keep others out for as long as it may.
        oldest = min(strangers, key=lambda link: link.since, default=None)
        if oldest is None or now - oldest.since < _SILENT:
            return False
        oldest.close("no handshake while others wait", Drop.HANDSHAKE)
        return True

    def _standing(self, link: Link) -> Standing:
        busy = bool(link.pace.in_flight or link.connection.pieces_queued)
        busy = busy or self._home.uploads.waiting(link) > 0
        return Standing(link.id, link.since, link.last_wanted, busy)

    def greeted(self, link: Link, peer: PeerInfo) -> None:
        """A peer has said who it is."""
        now, me = self._home.now(), self._home.peer
        if peer.id == me.id:
            link.close("it is this process itself")
            return
        if not link.dialed and not self.bans.may_stay(link.address, link.place, now):
            self._home.traffic.refused("kept_away")
            link.close("it is kept away")
            return
        if not speaks_for(link.connection.stream, peer.host):
            log.warning("peer refused", peer=peer.host, reason="its certificate names other hosts")
            self._refuse(
                link, f"its certificate does not name {peer.host}, which it says that it is"
            )
            return
        if not self._may_have_its_id(link, peer):
            return
        known = self.links.get(peer.id)
        crossed = known is not None and known.dialed != link.dialed
        if crossed and link.dialed != (me.id < peer.id):
            # Both sides dialed at once: both keep the connection that the smaller id dialed.
            link.close("there is a connection already")
            return
        self.strangers.discard(link)
        self.links[peer.id] = link
        if link.dialed:
            self._dialed[link.place] = link
        if known is not None:
            known.close("replaced by a newer connection")
        if not link.greeted.done():
            link.greeted.set_result(peer)
        for blob in self._home.blobs.values():
            if blob.picker is not None and peer.id in blob.candidates:
                link.invite(blob)
        self._look_again()

    def _may_have_its_id(self, link: Link, peer: PeerInfo) -> bool:
        """Whether the id is not that of another peer; else one of the two is refused."""
        for blob in self._home.blobs.values():
            candidate = blob.candidates.get(peer.id)
            if candidate is not None and candidate.address != link.place:
                self._refuse(link, f"the peer with its id listens at {candidate.address}")
                return False
        known = self.links.get(peer.id)
        if known is None:
            return True
        if known.place != link.place:
            if link.dialed and not known.dialed:
                # It was found where the tracker says that it is; the other one only said so.
                self._refuse(known, f"the peer with its id listens at {link.place}")
                return True
            self._refuse(link, f"another peer at {known.place} has its id")
            return False
        proven = isinstance(link.connection.stream, TlsStream)
        if not proven and not known.dialed and not link.dialed and known.address != link.address:
            self._refuse(link, f"a peer that came from {known.address} has its id")
            return False
        return True

    def _refuse(self, link: Link, reason: str) -> None:
        self._home.traffic.refused("identity")
        link.close(reason)

    # -- the end of it

    def closed(self, link: Link, reason: str, why: Drop | None) -> None:
        """A connection is no more; `why`: by the peer's fault."""
        self.strangers.discard(link)
        if why is not None:
            self._note(link, reason, why)
        if self._dialed.get(link.place) is link:
            del self._dialed[link.place]
        if link.peer is None or self.links.get(link.peer.id) is not link:
            return
        del self.links[link.peer.id]
        log.info("peer gone", peer=link.peer.address, reason=reason)
        # Who came by itself and lied may have done so in the name of a peer that is worth dialing.
        in_doubt = not link.dialed and why in GRAVE
        for blob in self._home.blobs.values():
            # The tracker hands it out again if it is still there; meanwhile others may do.
            gone = [
                peer.id
                for peer in blob.candidates.values()
                if peer.address == link.place and (link.dialed or peer.id == link.peer.id)
            ]
            for peer_id in () if in_doubt else gone:
                del blob.candidates[peer_id]
            if gone:
                self.connect(blob)
        self._look_again()

    def keep_away(self, link: Link, why: Drop, reason: str) -> None:
        """Close a link and stay away from its peer, longer each time; also when it is closed."""
        self._note(link, reason, why)
        link.close(reason, why)

    def _note(self, link: Link, reason: str, why: Drop) -> None:
        """Count a peer that is dropped, once for each connection."""
        if link.dropped:
            return
        link.dropped = True
        self._home.traffic.dropped(why)
        if link.peer is None or why not in KEPT_AWAY:
            return
        now = self._home.now()
        if link.dialed:
            strikes = max(self.bans.was_dialed(it, now) for it in {link.place, link.reached})
        else:
            strikes = self.bans.came(link.address, link.place, now, grave=why in GRAVE)
        log.warning(
            "peer kept away",
            peer=link.place,
            came_from=link.address,
            reason=reason,
            strikes=strikes,
        )
