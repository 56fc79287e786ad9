# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from shoal.ring.config import OriginsConfig
from shoal.tracker import config as tracker_config
from shoal.tracker.config import TrackerConfig


def config(**values: Any) -> TrackerConfig:
    return TrackerConfig(origins=OriginsConfig(hosts=["o1:5002"]), **values)


@pytest.mark.parametrize("store", ["memory", "redis://r:6379/0", "rediss://u:p@r/1"])
def test_a_store_is_memory_or_a_redis(store: str) -> None:
    assert config(store=store).store == store


@pytest.mark.parametrize("store", ["", "disk", "http://r:6379", "redis://", "r:6379"])
def test_any_other_store_is_refused(store: str) -> None:
    with pytest.raises(ValidationError, match="redis://host:port/db"):
        config(store=store)


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker_config, "find_spec", lambda _: None)
    config(store="memory")
    with pytest.raises(ValidationError, match=r"shoal\[redis\]"):
        config(store="redis://r:6379/0")


def test_the_password_of_redis_is_not_shown() -> None:
    shown = config(store="redis://shoal:secret@r:6379/0").model_dump(mode="json")
    assert shown["store"] == "redis://shoal:***@r:6379/0"
    assert config(store="redis://r/0").model_dump(mode="json")["store"] == "redis://r/0"


def test_peers_live_through_one_late_announce() -> None:
    with pytest.raises(ValidationError, match="at least twice"):
        config(announce_interval=30.0, peer_ttl=59.0)
