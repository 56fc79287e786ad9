# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from shoal.tracker.addresses import dialable


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "10.1.2.3",
        "::1",
        "fe80::1%eth0",
        "2001:db8::1",
        "localhost",
        "agent-7.example.com",
        "agent_7",
        "host.",
        "a" * 63 + ".example",
        "3com",
    ],
)
def test_hosts_that_others_can_dial(host: str) -> None:
    assert dialable(host)


@pytest.mark.parametrize(
    "host",
    [
        "",
        ".",
        "0.0.0.0",
        "::",
        "224.0.0.1",
        "ff02::1",
        "256.1.1.1",
        "1.2.3",
        "a b",
        "-host",
        "host-",
        "a..b",
        "http://host",
        "host:80",
        "[::1]",
        "höst",
        "a" * 64,
        ".".join(["a" * 60] * 5),
        "host\n",
    ],
)
def test_hosts_that_nobody_can_dial(host: str) -> None:
    assert not dialable(host)
