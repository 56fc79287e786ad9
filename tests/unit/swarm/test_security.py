# SPDX-License-Identifier: Apache-2.0
"""Which hosts a certificate speaks for."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from shoal.config.model import TlsConfig
from shoal.swarm.config import PeerConfig, PeerTlsConfig
from shoal.swarm.security import names

CERTIFICATE = {
    "subject": ((("commonName", "common.example"),),),
    "subjectAltName": (
        ("DNS", "host-1.example"),
        ("DNS", "*.fleet.example"),
        ("IP Address", "10.0.7.12"),
        ("IP Address", "FD00:0:0:0:0:0:0:1"),
    ),
}


@pytest.mark.parametrize(
    "host",
    [
        "host-1.example",
        "HOST-1.Example",
        "host-1.example.",
        "a.fleet.example",
        "10.0.7.12",
        "fd00::1",
    ],
)
def test_a_host_in_the_certificate_is_spoken_for(host: str) -> None:
    assert names(CERTIFICATE, host)


@pytest.mark.parametrize(
    "host",
    [
        "host-2.example",
        "example",
        "fleet.example",
        "a.b.fleet.example",
        "10.0.7.1",
        "fd00::2",
        "common.example",
        "",
        ".fleet.example.x",
        "10.0.7.12.fleet",
        "*",
    ],
)
def test_no_other_host_is_spoken_for(host: str) -> None:
    assert not names(CERTIFICATE, host)


def test_a_certificate_without_names_speaks_for_nobody() -> None:
    assert not names({}, "host-1.example")
    assert not names({}, "10.0.7.12")


def test_tls_is_on_as_soon_as_there_is_a_certificate() -> None:
    files = {"ca": "ca.pem", "certificate": "host.pem", "key": "host.key"}
    assert PeerTlsConfig.model_validate(files).on
    assert not PeerTlsConfig.model_validate(files | {"enabled": False}).on
    assert not PeerTlsConfig().on


@pytest.mark.parametrize(
    "named",
    [
        ["certificate", "key"],
        ["ca", "key"],
        ["ca", "certificate"],
        ["ca"],
        ["certificate"],
        ["key"],
    ],
)
def test_tls_with_a_file_missing_is_no_config(named: list[str]) -> None:
    files = {"ca": "ca.pem", "certificate": "host.pem", "key": "host.key"}
    missing = " and ".join(file for file in files if file not in named)
    some = {file: files[file] for file in named}
    with pytest.raises(ValidationError, match=f"needs {missing}, too"):
        PeerTlsConfig.model_validate(some)
    assert not PeerTlsConfig.model_validate(some | {"enabled": False}).on


def test_tls_without_any_file_is_no_config() -> None:
    with pytest.raises(ValidationError, match="needs ca and certificate and key"):
        PeerTlsConfig(enabled=True)


def test_peers_have_the_certificate_of_their_service_unless_told_otherwise() -> None:
    names = {"ca": "ca.pem", "certificate": "host.pem", "key": "host.key"}
    service, own = TlsConfig.model_validate(names), {"ca": "a", "certificate": "b", "key": "c"}
    assert PeerConfig().within(service).tls == PeerTlsConfig.model_validate(names)
    assert not PeerConfig().within(TlsConfig()).tls.on
    off = PeerConfig.model_validate({"tls": {"enabled": False}})
    assert not off.within(service).tls.on
    other = PeerConfig.model_validate({"tls": own})
    assert other.within(service).tls == PeerTlsConfig.model_validate(own)


def test_a_peer_that_dials_as_many_as_it_accepts_is_no_config() -> None:
    with pytest.raises(ValidationError, match="islands"):
        PeerConfig(max_dialed=20, max_accepted=20)
