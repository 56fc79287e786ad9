# SPDX-License-Identifier: Apache-2.0
"""The books of a run of chaos."""

from __future__ import annotations

from shoal.chaos.ledger import Ledger, Pushed
from shoal.model.digest import Digest


def pushed(content: bytes, tag: str = "latest") -> Pushed:
    return Pushed("chaos/writer", tag, Digest.of(content), ())


def test_a_push_that_was_never_answered_may_have_taken_effect_or_not() -> None:
    ledger, old, new = Ledger(), pushed(b"old"), pushed(b"new")
    ledger.begin(old)
    ledger.acknowledge(old)
    ledger.begin(new)
    ledger.refused("503")
    assert ledger.may_be("chaos/writer", "latest") == {old.root, new.root}
    assert ledger.latest() == [old]


def test_an_acknowledged_push_is_all_that_its_tag_may_name() -> None:
    ledger, old, new = Ledger(), pushed(b"old"), pushed(b"new")
    for image in (old, new):
        ledger.begin(image)
        ledger.acknowledge(image)
    assert ledger.may_be("chaos/writer", "latest") == {new.root}
    assert ledger.latest() == [new]
    assert ledger.acknowledged == [old, new]


def test_the_longest_time_without_an_image_is_kept() -> None:
    ledger = Ledger()
    for seconds in (0.5, 3.0, 1.0):
        ledger.failed("503")
        ledger.waited(seconds)
    ledger.pulled()
    assert ledger.longest_unavailable == 3.0
    assert ledger.failures == {"pull: 503": 3}
    assert ledger.operations == {"pull": 1}
