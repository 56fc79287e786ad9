# SPDX-License-Identifier: Apache-2.0
"""What upstreams' repositories are called here and there."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from shoal.backend.upstream_pool import MOST_UNNAMED, UpstreamPool
from shoal.backend.upstreams import (
    Renaming,
    UpstreamConfig,
    UpstreamNames,
    UpstreamsConfig,
    renaming_of_upstream,
)
from shoal.model.names import InvalidName

NAMES = UpstreamNames(
    {
        "docker.io": UpstreamConfig(),
        "localhost:5000": UpstreamConfig(url="http://127.0.0.1:5000"),
        "hub": UpstreamConfig(url="https://hub.example.com/prefix"),
    }
)
ANY = UpstreamNames({"_default": UpstreamConfig()})


@pytest.mark.parametrize(
    "repository, registry, there, url",
    [
        ("docker.io/library/alpine", "docker.io", "library/alpine", "https://registry-1.docker.io"),
        ("docker.io/alpine", "docker.io", "library/alpine", "https://registry-1.docker.io"),
        ("index.docker.io/a/b", "docker.io", "a/b", "https://registry-1.docker.io"),
        ("localhost__5000/x", "localhost:5000", "x", "http://127.0.0.1:5000"),
        ("hub/a/b/c", "hub", "a/b/c", "https://hub.example.com/prefix"),
    ],
)
def test_a_repository_is_split_into_upstream_and_name(
    repository: str, registry: str, there: str, url: str
) -> None:
    remote = NAMES.remote(repository)
    assert remote is not None
    assert (remote.registry, remote.repository, remote.url) == (registry, there, url)
    assert remote.configured
    assert NAMES.internal(registry, there) == NAMES.canonical(repository)
    assert renaming_of_upstream(registry).there(NAMES.canonical(repository)) == there


@pytest.mark.parametrize("repository", ["team/app", "docker.io", "ghcr.io/a/b", "localhost/x"])
def test_other_repositories_are_shoals_own(repository: str) -> None:
    assert NAMES.remote(repository) is None
    assert NAMES.canonical(repository) == repository


@pytest.mark.parametrize(
    "ns, repository, internal",
    [
        ("docker.io", "library/alpine", "docker.io/library/alpine"),
        ("docker.io", "alpine", "docker.io/library/alpine"),
        ("DOCKER.IO", "alpine", "docker.io/library/alpine"),
        ("registry-1.docker.io", "a/b", "docker.io/a/b"),
        ("localhost:5000", "x", "localhost__5000/x"),
        ("ghcr.io", "a/b", None),
        ("127.0.0.1:5000", "a/b", None),
        ("", "a/b", None),
        ("../..", "a/b", None),
        ("a/b", "c", None),
        ("_default", "c", None),
    ],
)
def test_what_containerd_asks_for_by_ns_is_found(
    ns: str, repository: str, internal: str | None
) -> None:
    assert NAMES.internal(ns, repository) == internal


def test_a_name_that_is_too_long_with_its_registry_is_refused() -> None:
    with pytest.raises(InvalidName):
        NAMES.internal("docker.io", "a" * 250)


@pytest.mark.parametrize(
    "repository, url",
    [
        ("ghcr.io/a/b", "https://ghcr.io"),
        ("docker.io/a/b", "https://registry-1.docker.io"),
        ("r.example.com__8443/a", "https://r.example.com:8443"),
        ("localhost/a", "https://localhost"),
    ],
)
def test_the_default_stands_for_every_host(repository: str, url: str) -> None:
    remote = ANY.remote(repository)
    assert remote is not None
    assert remote.url == url
    assert not remote.configured


def test_the_default_is_for_hosts_only() -> None:
    assert ANY.remote("team/app") is None
    assert ANY.internal("team", "app") is None
    for port in ("0", "65536", "99999"):
        assert ANY.internal(f"r.example.com:{port}", "app") is None
        assert ANY.remote(f"r.example.com__{port}/app") is None
    assert not UpstreamNames({}).any


@pytest.mark.parametrize("name", ["team/app", "x"])
def test_a_template_renames_there_and_back(name: str) -> None:
    for renaming in (Renaming(), Renaming("mirror/"), Renaming("a/", "/b")):
        assert renaming.here(renaming.there(name)) == name
    assert Renaming("mirror/").here("other/x") is None
    assert Renaming("mirror/").here("mirror/") is None


@pytest.mark.parametrize(
    "upstreams",
    [
        {"Docker.IO": {}},
        {"docker.io/library": {}},
        {"hub": {}},
        {"index.docker.io": {}},
        {"r.example.com:65536": {}},
        {"r.example.com:0": {"url": "https://r.example.com"}},
        {"_default": {"url": "https://x"}},
        {"_default": {"username": "a", "password": "b"}},
        {"[::1]:5000": {"url": "http://[::1]:5000"}},
        {"docker.io": {"colour": "blue"}},
    ],
)
def test_names_and_settings_that_cannot_work_are_refused(upstreams: object) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(UpstreamsConfig).validate_python(upstreams)


async def test_each_upstream_has_one_backend() -> None:
    pool = UpstreamPool(NAMES)
    one = pool.backend("docker.io/library/alpine")
    assert one is not None
    assert pool.backend("docker.io/other") is one
    assert pool.backend("hub/other") is not one
    assert pool.backend("team/app") is None
    await pool.close()


async def test_registries_that_clients_name_do_not_pile_up() -> None:
    pool = UpstreamPool(ANY)
    first = pool.backend("r0.example.com/a")
    second = pool.backend("r1.example.com/a")
    for number in range(2, MOST_UNNAMED + 1):
        assert pool.backend("r0.example.com/a") is first
        pool.backend(f"r{number}.example.com/a")
    assert pool.backend("r0.example.com/a") is first
    assert pool.backend("r1.example.com/a") is not second
    await pool.close()


async def test_a_registry_is_not_let_go_while_it_is_in_use() -> None:
    pool = UpstreamPool(ANY)
    first, second = (pool.backend(f"r{number}.example.com/a") for number in range(2))
    assert first is not None
    with first._http.in_use():
        for number in range(2, 2 * MOST_UNNAMED):
            pool.backend(f"r{number}.example.com/a")
        assert pool.backend("r0.example.com/a") is first
        assert pool.backend("r1.example.com/a") is not second
    assert first.idle
    for number in range(2, 2 * MOST_UNNAMED):
        pool.backend(f"r{number}.example.com/a")
    assert pool.backend("r0.example.com/a") is not first
    await pool.close()
