# SPDX-License-Identifier: Apache-2.0
"""Two build-indexes, pushes, deletions and garbage collection in any order.

Records reach the other side whenever they do. What holds all the same: both end alike, a push that
was told that its layer is here is taken, and what was taken is whole.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from shoal.buildindex import writes
from shoal.buildindex.database import Database
from shoal.buildindex.garbage import Condemned, mark
from shoal.buildindex.records import ManifestEntry
from shoal.buildindex.view import View
from shoal.model.digest import Digest
from shoal.model.media_types import OCI_MANIFEST

GRACE = 1_000
"""Milliseconds, of which nothing here takes more than half."""

LAYERS = [Digest.of(b"layer")]
"""One is enough: what is written about others is independent of it."""

MANIFESTS = {layer: Digest.of(f"image of {layer}".encode()) for layer in LAYERS}

sides = st.integers(0, 1)


@dataclass(frozen=True)
class Push:
    """A client that knows that its layer is in the repository."""

    layer: Digest
    since: int


@dataclass(frozen=True)
class Judged:
    """What garbage collection of one side is about to delete."""

    side: int
    condemned: list[Condemned]


class Replicas(RuleBasedStateMachine):
    pushes: Bundle[Push] = Bundle("pushes")
    judgements: Bundle[Judged] = Bundle("judgements")

    def __init__(self) -> None:
        super().__init__()
        self.now = 1
        self.folder = Path(tempfile.mkdtemp())
        self.sides = [
            Database(self.folder / str(side), wall_ms=lambda: self.now) for side in range(2)
        ]
        for database in self.sides:  # this is about order, not about power cuts
            database._writing.execute("PRAGMA synchronous = OFF")

    def teardown(self) -> None:
        self.sync(0)
        self.sync(1)
        self.both_end_alike_and_whole()
        for database in self.sides:
            database.close()
        shutil.rmtree(self.folder)

    def do(self, side: int, operation: Callable[..., Any], **given: Any) -> Any:
        (outcome,) = self.sides[side].run([partial(operation, **given)])
        if outcome.refused is not None:
            raise outcome.refused
        return outcome.result

    @property
    def renew_before(self) -> int:
        return self.now - GRACE // 2

    @rule(milliseconds=st.integers(1, 600))
    def time_passes(self, milliseconds: int) -> None:
        self.now += milliseconds

    @rule(to=sides)
    def sync(self, to: int) -> None:
        """One side takes what the other one has."""
        self.do(to, writes.take, records=self.sides[1 - to].view.changes(0, 1_000).records)

    @rule(side=sides, layer=st.sampled_from(LAYERS), target=pushes)
    def begin_push(self, side: int, layer: Digest) -> Push:
        """Look whether the layer is there, and upload it if not."""
        pairs = [("app", str(layer))]
        if self.do(side, writes.rely, pairs=pairs, renew_before=self.renew_before) == [False]:
            self.do(
                side, writes.link, repository="app", digest=layer, renew_before=self.renew_before
            )
        return Push(layer, self.now)

    @rule(side=sides, push=consumes(pushes))
    def end_push(self, side: int, push: Push) -> None:
        """Put the manifest, perhaps at the other side; in time, it must be taken."""
        if self.now - push.since < GRACE // 2:
            self.put_manifest(side, push.layer)

    @rule(side=sides, layer=st.sampled_from(LAYERS))
    def push_blindly(self, side: int, layer: Digest) -> None:
        """Put a manifest without having looked whether its layer is there."""
        with suppress(writes.Lost):
            self.put_manifest(side, layer)

    def put_manifest(self, side: int, layer: Digest) -> None:
        if self.sides[side].view.absent("app", [layer], []):
            self.sync(side)  # the other side is asked before anything is refused
        self.do(
            side,
            writes.put_manifest,
            repository="app",
            digest=MANIFESTS[layer],
            entry=ManifestEntry(OCI_MANIFEST, 1, references=[str(layer)]),
            tags=["v1"],
            needs_blobs=[layer],
            needs_manifests=(),
            renew_before=self.renew_before,
        )

    @rule(side=sides, layer=st.sampled_from(LAYERS))
    def delete_manifest(self, side: int, layer: Digest) -> None:
        self.do(side, writes.delete_manifest, repository="app", digest=MANIFESTS[layer])

    @rule(
        side=sides,
        after=st.sampled_from([1, GRACE + 1]),
        untagged=st.sampled_from(["keep", "remove"]),
        target=judgements,
    )
    def judge(self, side: int, after: int, untagged: Any) -> Judged:
        """Ask the other side for what it has, then find what may go."""
        self.now += after
        self.sync(side)
        contents = self.sides[side].view.contents("app")
        return Judged(
            side, mark(contents, now=self.now / 1000, grace=GRACE / 1000, untagged=untagged)
        )

    @rule(judged=consumes(judgements))
    def collect(self, judged: Judged) -> None:
        self.now += 1
        self.do(judged.side, writes.collect, condemned=judged.condemned)

    @invariant()
    def tags_are_those_of_the_records(self) -> None:
        for database in self.sides:
            live, kept = (
                set(database._writing.execute(f"SELECT repository, tag, digest FROM {table}"))
                for table in ("live_tags", "tags")
            )
            assert kept == live

    def both_end_alike_and_whole(self) -> None:
        views = [database.view for database in self.sides]
        for layer, manifest in MANIFESTS.items():
            for find in (
                partial(View.record, kind="blob", repository="app", name=str(layer)),
                partial(View.record, kind="manifest", repository="app", name=str(manifest)),
            ):
                assert find(views[0]) == find(views[1])
        assert views[0].tag("app", "v1") == views[1].tag("app", "v1")
        for view in views:
            for layer, manifest in MANIFESTS.items():
                if view.has_manifest("app", str(manifest)):
                    assert view.linked_at("app", str(layer)) is not None


TestReplicas = Replicas.TestCase
TestReplicas.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
