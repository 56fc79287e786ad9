# SPDX-License-Identifier: Apache-2.0
"""Where redirects and realms may lead."""

from __future__ import annotations

import socket

import pytest
from yarl import URL

from shoal.backend.safety import (
    Refused,
    RefusedAddress,
    is_public,
    public_socket,
    same_origin,
    shown,
    target,
)


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "10.0.0.1",
        "100.64.0.1",  # carrier-grade NAT
        "127.0.0.1",
        "127.9.9.9",
        "169.254.169.254",  # metadata of the clouds
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.1",
        "192.168.1.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "2002:7f00:1::",  # 127.0.0.1 by 6to4
        "2002:a9fe:a9fe::1",
        "64:ff9b::10.0.0.1",  # by NAT64
        "64:ff9b:1::1",
        "2001:0:1::1",  # Teredo
        "2001:db8::1",
        "fc00::1",
        "fd00:ec2::254",  # metadata of one cloud
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
    ],
)
def test_addresses_that_are_not_the_internets_are_refused(address: str) -> None:
    assert not is_public(address)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with pytest.raises(RefusedAddress):
        public_socket((family, socket.SOCK_STREAM, 6, "", (address, 443)))


@pytest.mark.parametrize(
    "address",
    [
        "1.1.1.1",
        "172.32.0.1",
        "100.128.0.1",
        "2606:4700::1111",
        "::ffff:8.8.8.8",
        "64:ff9b::8.8.8.8",
    ],
)
def test_public_addresses_are_taken(address: str) -> None:
    assert is_public(address)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    public_socket((family, socket.SOCK_STREAM, 6, "", (address, 443))).close()


BASE = URL("https://registry.example.com/v2/a/blobs/sha256:x")


@pytest.mark.parametrize(
    "location, url",
    [
        ("/v2/x", "https://registry.example.com/v2/x"),
        ("other", "https://registry.example.com/v2/a/blobs/other"),
        ("//cdn.example.com/x", "https://cdn.example.com/x"),
        ("https://cdn.example.com/x?sig=a%2Fb+c%3D&y=%20", None),
        ("https://cdn.example.com/x#part", "https://cdn.example.com/x"),
    ],
)
def test_a_location_is_taken_as_it_is(location: str, url: str | None) -> None:
    assert str(target(BASE, location)) == (url or location)


@pytest.mark.parametrize(
    "location, said",
    [
        ("", "characters"),
        ("http://registry.example.com/v2/x", "not encrypted"),
        ("file:///etc/passwd", "neither http nor https"),
        ("gopher://cdn.example.com/x", "neither http nor https"),
        ("https://user@cdn.example.com/x", "user name"),
        ("https://user:hunter2@cdn.example.com/x", "user name"),
        ("https://registry.example.com\\@evil.example.com/x", "no URL"),
        ("https://cdn.example.com:99999/x", "no URL"),
        ("https://cdn.example.com:x/", "no URL"),
        ("https://cdn.example.com/a b", "characters"),
        ("https://cdn.example.com/\r\nX-Evil: 1", "characters"),
        ("https://cdn.exämple.com/", "characters"),
        ("/" + "a" * 20_000, "too long"),
    ],
)
def test_what_may_not_be_asked_is_refused(location: str, said: str) -> None:
    with pytest.raises(Refused, match=said) as refused:
        target(BASE, location)
    assert "hunter2" not in str(refused.value)


def test_http_may_become_https_and_stay_http() -> None:
    base = URL("http://registry.example.com/v2/")
    assert target(base, "https://cdn.example.com/").scheme == "https"
    assert target(base, "http://cdn.example.com/").scheme == "http"


@pytest.mark.parametrize(
    "one, other, same",
    [
        ("https://a.example.com/x", "https://A.example.com:443/y?z", True),
        ("https://a.example.com", "http://a.example.com", False),
        ("https://a.example.com", "https://a.example.com:8443", False),
        ("https://a.example.com", "https://a.example.com.", False),
        ("https://a.example.com", "https://b.a.example.com", False),
    ],
)
def test_an_origin_is_scheme_host_and_port(one: str, other: str, same: bool) -> None:
    assert same_origin(URL(one), URL(other, encoded=True)) is same


def test_what_is_shown_has_no_secrets() -> None:
    url = URL("https://user:hunter2@[::1]:5000/a%20b?X-Amz-Signature=secret#token")
    assert shown(url) == "https://[::1]:5000/a%20b"
