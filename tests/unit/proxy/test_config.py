# SPDX-License-Identifier: Apache-2.0
"""Config of the proxy: push modes by repository, and timeouts that cover the retries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shoal.buildindex.config import ResolverConfig
from shoal.config.load import ConfigError, load
from shoal.proxy.config import MANIFEST_TIME, ProxyConfig, PushMode, PushModes

BASE: dict[str, Any] = {
    "data_dir": "/tmp/proxy",
    "origins": {"hosts": ["o:1", "o:2", "o:3"]},
    "build_index": {"hosts": ["i:1"]},
}
CONTAINERD = 30.0
"""Seconds after which containerd gives up a push that is being finished."""


def proxy(tmp_path: Path, text: str = "") -> ProxyConfig:
    path = tmp_path / "proxy.yaml"
    path.write_text(
        "data_dir: /tmp/proxy\norigins: {hosts: [o:1, o:2, o:3]}\n"
        + ("" if "build_index" in text else "build_index: {hosts: [i:1]}\n")
        + text
    )
    return load(ProxyConfig, "proxy", path, {}).value


def test_the_default_leaves_a_build_index_the_time_of_its_default_retries() -> None:
    resolver = ResolverConfig()
    default = ProxyConfig.model_validate(BASE)
    assert default.index_retries >= resolver.manifest.longest() + resolver.existence.longest()
    assert default.request_timeout >= MANIFEST_TIME + default.index_retries
    assert default.request_timeout < CONTAINERD


def test_a_default_config_takes_three_build_indexes(tmp_path: Path) -> None:
    proxy(tmp_path, "build_index: {hosts: [i:1, i:2, i:3]}")


@pytest.mark.parametrize(
    "text",
    [
        "request_timeout: 11s",
        "index_retries: 25s",
        "build_index: {hosts: [i:1, i:2, i:3, i:4]}",
    ],
)
def test_a_timeout_below_the_retries_is_refused_at_the_start(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="must be at least") as refused:
        proxy(tmp_path, text)
    assert "request_timeout" in str(refused.value)
    assert "index_retries" in str(refused.value)


def test_a_longer_timeout_covers_more(tmp_path: Path) -> None:
    text = "request_timeout: 40s\nbuild_index: {hosts: [i:1, i:2, i:3, i:4]}"
    assert proxy(tmp_path, text).tag_time == MANIFEST_TIME + 7.5


def test_the_first_rule_that_matches_decides(tmp_path: Path) -> None:
    modes = PushModes(
        proxy(
            tmp_path,
            "push:\n"
            "  - {pattern: ^ci/slow, mode: write_through}\n"
            "  - {pattern: ^ci/, mode: write_back}\n"
            "  - {pattern: cache$, mode: write_back, await_delivery: false}\n",
        ).push
    )
    assert modes.write_back
    assert modes.of("ci/app").mode is PushMode.WRITE_BACK
    assert modes.of("ci/app").await_delivery
    assert modes.of("ci/slow/app").mode is PushMode.WRITE_THROUGH
    assert modes.of("team/ci/app").mode is PushMode.WRITE_THROUGH
    assert not modes.of("team/cache").await_delivery


def test_without_rules_everything_is_write_through() -> None:
    modes = PushModes()
    assert not modes.write_back
    assert modes.of("any/thing").mode is PushMode.WRITE_THROUGH


@pytest.mark.parametrize(
    "rule, why",
    [
        ("{pattern: '(', mode: write_back}", "not a regular expression"),
        ("{pattern: '', mode: write_back}", "at least 1 character"),
        ("{pattern: a, mode: write_around}", "write_through"),
        ("{pattern: a, mode: write_through, await_delivery: false}", "only for mode write_back"),
        ("{pattern: a, mode: write_back, awaits: false}", "awaits"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(tmp_path: Path, rule: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        proxy(tmp_path, f"push: [{rule}]")


def test_a_proxy_is_known_as_what_it_listens_on_unless_it_has_a_name(tmp_path: Path) -> None:
    assert proxy(tmp_path, "listen: 10.0.0.1:5000\n").known_as == "10.0.0.1:5000"
    text = "listen: 0.0.0.0:5000\nname: p1.example:5000\nneighbours: [p2.example:5000]\n"
    assert proxy(tmp_path, text).known_as == "p1.example:5000"
    assert proxy(tmp_path, "listen: 0.0.0.0:5000\n").known_as == "0.0.0.0:5000"


@pytest.mark.parametrize("listen", ["0.0.0.0:5000", "'[::]:5000'", "127.0.0.1:0"])
def test_a_proxy_that_neighbours_cannot_call_needs_a_name(tmp_path: Path, listen: str) -> None:
    with pytest.raises(ConfigError, match="name must be set"):
        proxy(tmp_path, f"listen: {listen}\nneighbours: [p2.example:5000]\n")
