# SPDX-License-Identifier: Apache-2.0
"""Swarms that several trackers share, and that outlive each of them, in Redis.

Answers come from this process's memory, by the same hand-out as without Redis. What is heard is
written behind the answer, many announces in one round trip; what other trackers heard is read
before an answer, at most once in `FRESH` seconds for each blob, however many join. So a join costs
no round trip, but for the first of its blob. While Redis is down there is only the memory, and what
is to be written waits, within bounds.

Each blob has two keys: a hash of what was last said about each peer, and a sorted set of when. Both
are trimmed to the time to live and to `MAX_PEERS` with each write, and expire with the last peer.
That a process gave up all its blobs is kept like one more blob.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import msgspec
import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from shoal.swarm.peers import PeerInfo
from shoal.tracker.handout import Handout
from shoal.tracker.store import Presence, note
from shoal.tracker.swarms import SwarmPeers, Swarms

FRESH = 1.0
"""Seconds for which what was read of a blob is not read again."""

FLUSH = 0.05
"""Seconds for which what was heard is gathered before it is written."""

TIMEOUT = 1.0
"""Seconds of silence after which Redis counts as down. No wait is longer than `_BOUND`."""

_BOUND = 1.5 * TIMEOUT

RETRY = 1.0
"""Seconds between attempts while Redis is down; no join waits for them."""

MAX_PEERS = 50_000
"""Peers kept of one blob; those heard of longest ago go first."""

MAX_READ = 2_000
"""Peers read of one blob at a time, the latest: more than enough to hand out from."""

MAX_PENDING = 100_000
"""What may wait to be written; beyond it is dropped, and announced again by its peers."""

_BATCH = 2_000
"""Records in one round trip."""

_OVERLAP = 0.005
"""Seconds read twice, as Redis gives several commands the same time."""

_EVERYTHING = "*"
"""Stands in the place of a digest where a peer gave up all of its blobs."""

_SCRIPT = """
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local at = string.format('%.6f', now)
local writer, ttl, max = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local since, limit = ARGV[4], ARGV[5]
for i = 6, #ARGV, 2 do
  redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
  redis.call('ZADD', KEYS[2], at, ARGV[i])
end
if #ARGV > 5 then
  local function trim(ids)
    if #ids > 0 then
      redis.call('ZREM', KEYS[2], unpack(ids))
      redis.call('HDEL', KEYS[1], unpack(ids))
    end
  end
  local oldest = string.format('%.6f', now - ttl)
  trim(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', oldest, 'LIMIT', 0, 4000))
  local surplus = redis.call('ZCARD', KEYS[2]) - max
  if surplus > 0 then
    trim(redis.call('ZRANGE', KEYS[2], 0, math.min(surplus, 4000) - 1))
  end
  redis.call('EXPIRE', KEYS[1], math.ceil(ttl))
  redis.call('EXPIRE', KEYS[2], math.ceil(ttl))
end
local told = {at}
if since ~= '' then
  local found = redis.call(
    'ZREVRANGEBYSCORE', KEYS[2], '+inf', since, 'WITHSCORES', 'LIMIT', 0, limit)
  for i = 1, #found, 2 do
    local record = redis.call('HGET', KEYS[1], found[i])
    if record and string.sub(record, 1, #writer) ~= writer then
      told[#told + 1] = found[i]
      told[#told + 1] = found[i + 1]
      told[#told + 1] = string.sub(record, #writer + 1)
    end
  end
end
return told
"""

log = structlog.get_logger(__name__)


class _Record(msgspec.Struct, frozen=True, array_like=True):
    """What was last said about a peer and a blob."""

    host: str
    port: int
    zone: str
    complete: bool
    gone: bool = False

    def peer(self, peer_id: str) -> PeerInfo:
        return PeerInfo(peer_id, self.host, self.port, self.zone)


_GONE = _Record("", 0, "", complete=False, gone=True)
_ENCODE = msgspec.json.Encoder().encode
_DECODE = msgspec.json.Decoder(_Record).decode


class RedisStore:
    """One tracker's view of the swarms in Redis."""

    def __init__(
        self,
        url: str,
        swarms: Swarms,
        *,
        peer_ttl: float,
        prefix: str = "shoal:",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.swarms = swarms
        self._redis: Redis = Redis.from_url(
            url,
            socket_timeout=TIMEOUT,
            socket_connect_timeout=TIMEOUT,
            retry=Retry(NoBackoff(), 0),
            max_connections=16,
        )
        self._where = url.rpartition("@")[2].removeprefix("redis://")
        self._peer_ttl = peer_ttl
        self._prefix = prefix
        self._clock = clock
        self._writer = secrets.token_hex(4)
        self._sha = ""
        self._pending: dict[str, dict[str, _Record]] = {}
        self._pending_count = 0
        self._news = asyncio.Event()
        self._read: dict[str, tuple[float, float]] = {}
        """When each blob was last read: here, and by Redis's clock."""
        self._reading: dict[str, asyncio.Task[None]] = {}
        self._gone: dict[str, float] = {}
        """Processes that gave up everything, and when."""
        self._forgotten = clock()
        self._stopping = False
        self._why_down = ""
        self._writing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Ask Redis whether it is there, then write in the background."""
        await self._sync([])
        self._writing = asyncio.create_task(self._write(), name="write to redis")

    async def stop(self) -> None:
        """Write what was heard, and close the connections."""
        self._stopping = True
        self._news.set()
        tasks = {*self._reading.values(), *([self._writing] if self._writing else [])}
        if tasks:
            _, slow = await asyncio.wait(tasks, timeout=2 * _BOUND)
            for task in slow:
                task.cancel()
        await self._flush()
        with suppress(RedisError, OSError):
            await self._redis.aclose()

    async def announce(self, peer: PeerInfo, blobs: Sequence[Presence]) -> list[Handout]:
        """See `SwarmStore`."""
        await self._refresh([blob.digest for blob in blobs if not blob.complete])
        now = self._clock()
        self._gone.pop(peer.id, None)
        for blob in blobs:
            self._later(
                blob.digest, peer.id, _Record(peer.host, peer.port, peer.zone, blob.complete)
            )
        return [note(self.swarms, peer, blob, now) for blob in blobs]

    async def leave(self, peer_id: str, digests: Iterable[str] | None) -> None:
        """See `SwarmStore`."""
        # Also what is not known here: another tracker may have heard of it.
        named = None if digests is None else list(digests)
        given_up = self.swarms.leave(peer_id, named)
        if named is None:
            self._gone[peer_id] = self._clock()
            self._later(_EVERYTHING, peer_id, _GONE)
        for digest in given_up if named is None else named:
            self._later(digest, peer_id, _GONE)

    async def peers(self, digest: str) -> SwarmPeers:
        """See `SwarmStore`; of a large swarm what this process knows."""
        await self._refresh([digest])
        return self.swarms.peers(digest, self._clock())

    async def has_others(self, digest: str, peer_id: str) -> bool:
        """See `SwarmStore`."""
        await self._refresh([digest])
        return self.swarms.has_others(digest, peer_id, self._clock())

    def missing(self) -> list[str]:
        """Why Redis cannot be used at this time."""
        return [f"redis {self._where}: {self._why_down}"] if self._why_down else []

    # -- reading

    async def _refresh(self, digests: Sequence[str]) -> None:
        """Learn what other trackers heard of these blobs, if that is not known already."""
        if not digests or self._why_down:
            return
        now = self._clock()
        stale = [digest for digest in digests if now - self._read_at(digest) >= FRESH]
        fresh = [digest for digest in stale if digest not in self._reading]
        if fresh:
            task = asyncio.create_task(self._sync(fresh), name="read from redis")
            for digest in fresh:
                self._reading[digest] = task
            task.add_done_callback(lambda _: self._been_read(fresh))
        waiting = {self._reading[digest] for digest in stale if digest in self._reading}
        if waiting:
            await asyncio.wait(waiting, timeout=2 * _BOUND)  # Each ends by itself before that.

    def _been_read(self, digests: Sequence[str]) -> None:
        for digest in digests:
            self._reading.pop(digest, None)

    def _read_at(self, digest: str) -> float:
        at = self._read.get(digest)
        return -math.inf if at is None else at[0]

    async def _sync(self, digests: Sequence[str]) -> None:
        wanted = [_EVERYTHING, *digests]
        asked = self._clock()
        answers = await self._run([self._command(digest, {}, read=True) for digest in wanted])
        if answers is None:
            return
        now = self._clock()
        # Who gave up everything must be known before what it had is read.
        for digest, answer in zip(wanted, answers, strict=True):
            theirs = float(answer[0])
            self._read[digest] = (asked, theirs)
            self._learn(digest, answer[1:], now - theirs, now)
        self._forget(now)

    def _learn(self, digest: str, found: list[bytes], offset: float, now: float) -> None:
        """Take in what other trackers heard, oldest first; `offset`: from their clock to ours."""
        for place in range(len(found) - 3, -1, -3):
            peer_id = found[place].decode()
            heard = float(found[place + 1]) + offset
            try:
                record = _DECODE(found[place + 2])
            except msgspec.DecodeError as error:
                log.warning("a record in redis is not ours", digest=digest, error=str(error))
                continue
            if digest == _EVERYTHING:
                self._gone[peer_id] = max(heard, self._gone.get(peer_id, heard))
                self.swarms.left(peer_id, None, heard)
            elif record.gone:
                self.swarms.left(peer_id, digest, heard)
            elif self._gone.get(peer_id, -math.inf) < heard:
                self.swarms.restore(
                    record.peer(peer_id),
                    digest,
                    complete=record.complete,
                    heard=min(heard, now),
                    now=now,
                )

    def _forget(self, now: float) -> None:
        """Keep nothing that is older than the time to live."""
        oldest = now - self._peer_ttl
        if now < self._forgotten + self._peer_ttl:
            return
        self._forgotten = now
        self._read = {key: at for key, at in self._read.items() if at[0] > oldest}
        self._gone = {peer: at for peer, at in self._gone.items() if at > oldest}

    # -- writing

    def _later(self, digest: str, peer_id: str, record: _Record) -> None:
        records = self._pending.get(digest)
        if records is None:
            records = self._pending[digest] = {}
        if peer_id not in records:
            if self._pending_count >= MAX_PENDING:
                return
            self._pending_count += 1
        records[peer_id] = record
        self._news.set()

    async def _write(self) -> None:
        while not self._stopping:
            if self._why_down:
                await asyncio.sleep(RETRY)
                await self._sync([])
                continue
            await self._news.wait()
            await asyncio.sleep(FLUSH)
            self._news.clear()
            await self._flush()

    async def _flush(self) -> None:
        """Write all that waits; what could not be written waits on."""
        while self._pending:
            batch: dict[str, dict[str, _Record]] = {}
            count = 0
            while self._pending and count < _BATCH:
                digest, records = self._pending.popitem()
                batch[digest] = dict(list(records.items())[: _BATCH - count])
                count += len(batch[digest])
                rest = dict(list(records.items())[len(batch[digest]) :])
                if rest:
                    self._pending[digest] = rest
            self._pending_count -= count
            answers = await self._run(
                [self._command(digest, records, read=False) for digest, records in batch.items()]
            )
            if answers is None:
                for digest, records in batch.items():
                    for peer_id, record in records.items():
                        if peer_id not in self._pending.get(digest, {}):
                            self._later(digest, peer_id, record)
                return

    # -- Redis

    def _command(
        self, digest: str, records: dict[str, _Record], *, read: bool
    ) -> list[str | bytes]:
        key = f"{self._prefix}{digest}"
        since = ""
        if read:
            theirs = self._read.get(digest)
            since = "-inf" if theirs is None else f"{theirs[1] - _OVERLAP:.6f}"
        arguments: list[str | bytes] = [
            f"{key}:peers",
            f"{key}:heard",
            self._writer,
            str(self._peer_ttl),
            str(MAX_PEERS),
            since,
            str(MAX_READ),
        ]
        writer = self._writer.encode()
        for peer_id, record in records.items():
            arguments += [peer_id, writer + _ENCODE(record)]
        return arguments

    async def _run(self, commands: Sequence[list[str | bytes]]) -> list[Any] | None:
        """Run the script once for each, in one round trip; None when Redis is down."""
        try:
            async with asyncio.timeout(_BOUND):
                answers = await self._execute(commands)
        except (RedisError, OSError, TimeoutError) as error:
            self._failed(str(error) or f"no answer within {TIMEOUT:g} s")
            return None
        if self._why_down:
            log.info("redis answers again", redis=self._where)
            self._why_down = ""
            self._news.set()
        return answers

    async def _execute(self, commands: Sequence[list[str | bytes]]) -> list[Any]:
        for _ in range(2):
            if not self._sha:
                self._sha = await _awaited(self._redis.script_load(_SCRIPT))
            pipeline = self._redis.pipeline(transaction=False)
            for command in commands:
                pipeline.evalsha(self._sha, 2, *command)
            try:
                return await pipeline.execute()
            except NoScriptError:
                self._sha = ""  # Redis was started anew.
        raise RedisError("it forgets the script between two commands")

    def _failed(self, why: str) -> None:
        if not self._why_down:
            log.warning(
                "redis is down: peers are handed out from this tracker's memory alone",
                redis=self._where,
                error=why,
            )
        self._why_down = why
        self._news.set()


async def _awaited(answer: Awaitable[Any] | Any) -> str:
    """The client's types say that the answer of some commands may be awaited or not."""
    found: str = await answer
    return found
