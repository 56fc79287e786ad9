# SPDX-License-Identifier: Apache-2.0
"""The config keys `backends` and what becomes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from shoal.backend.base import BlobName, TagName
from shoal.backend.config import BackendsConfig, S3BackendConfig
from shoal.backend.matching import Backends
from shoal.backend.upstreams import UpstreamConfig
from shoal.config.load import ConfigError, load
from shoal.model.digest import Digest
from shoal.web.client import HttpClient
from shoal.web.deadline import Deadline

ADAPTER: TypeAdapter[Any] = TypeAdapter(BackendsConfig)
MEMORY = {"match": ".*", "kind": "memory"}


def opened(*entries: dict[str, Any], **upstreams: UpstreamConfig) -> Backends:
    return Backends.open(
        ADAPTER.validate_python(entries), upstreams, HttpClient(user_agent="shoal-test")
    )


def soon() -> Deadline:
    return Deadline.after(10)


def test_the_first_entry_that_matches_the_whole_name_is_the_repositorys() -> None:
    backends = opened(
        {"match": "team/.*", "kind": "memory", "name": "team"},
        {"match": "library", "kind": "memory", "name": "library"},
    )
    matched = backends.for_blobs("team/app")
    assert matched is not None
    assert (matched.key, matched.upstream) == ("team", False)
    for repository in ("my/team/app", "library/alpine", "other"):
        assert backends.for_blobs(repository) is None
        assert backends.for_tags(repository) is None
    assert backends.configured


def test_blobs_and_tags_may_be_held_apart() -> None:
    backends = opened(
        {**MEMORY, "name": "blobs", "holds": ["blobs"]},
        {**MEMORY, "name": "tags", "holds": ["tags"]},
    )
    blobs, tags = backends.for_blobs("a"), backends.for_tags("a")
    assert blobs is not None
    assert tags is not None
    assert (blobs.key, tags.key) == ("blobs", "tags")


def test_without_entries_nothing_is_configured() -> None:
    backends = opened()
    assert not backends.configured
    assert backends.for_blobs("a") is None


async def test_a_repository_of_an_upstream_is_only_read() -> None:
    backends = opened(MEMORY, **{"docker.io": UpstreamConfig()})
    matched = backends.for_blobs("docker.io/library/alpine")
    assert matched is not None
    assert matched.upstream
    assert matched.backend.read_only
    own = backends.for_blobs("library/alpine")
    assert own is not None
    assert not own.upstream
    await backends.close()


def test_upstreams_alone_are_no_backend() -> None:
    assert not opened(**{"docker.io": UpstreamConfig()}).configured


def test_a_key_tells_places_and_only_them_apart(tmp_path: Path) -> None:
    def key(repository: str = "a", **entry: Any) -> str:
        local = {"match": ".*", "kind": "local", "path": tmp_path}
        matched = opened({**local, **entry}).for_blobs(repository)
        assert matched is not None
        return matched.key

    assert key() == key("b") == key(bandwidth={"read": 1000})
    assert key() != key(root="elsewhere")
    assert key() != key(blob_path="{algorithm}/{hex}")
    own = "{repository}/{hex}"
    assert key("a", blob_path=own) != key("b", blob_path=own)


async def test_a_shadow_is_complete_only_when_both_places_are(tmp_path: Path) -> None:
    active, mirror = ({"kind": "local", "path": tmp_path / side} for side in ("a", "m"))
    both = opened({"match": ".*", "kind": "shadow", "active": active, "mirror": mirror})
    alone = opened({"match": ".*", **active})
    name = BlobName("a", Digest.of(b"content"))
    one, two = alone.for_blobs("a"), both.for_blobs("a")
    assert one is not None
    assert two is not None
    await one.backend.put(name, b"content", deadline=soon())
    assert await one.stored(name, 7, deadline=soon())
    assert await two.backend.stat(name, deadline=soon()) == 7
    assert not await two.stored(name, 7, deadline=soon())
    await two.backend.put(name, b"content", deadline=soon())
    assert await two.stored(name, 7, deadline=soon())
    assert not await two.stored(name, 8, deadline=soon())


async def test_limits_are_put_around_a_backend() -> None:
    backends = opened({**MEMORY, "bandwidth": {"write": 4000}})
    matched = backends.for_tags("a")
    assert matched is not None
    began = soon().at
    # 1,000 bytes are saved up; the other 2,000 come at 4,000 a second.
    await matched.backend.put(TagName("a", "t"), bytes(3000), deadline=soon())
    assert soon().at - began >= 0.45


@pytest.mark.parametrize(
    "entries, why",
    [
        ([{"kind": "memory"}], "has no match"),
        ([{"match": "(", "kind": "memory"}], "not a regular expression"),
        ([{**MEMORY, "kind": "tape"}], "tape"),
        ([{**MEMORY, "buckt": "x"}], "Extra inputs"),
        ([{**MEMORY, "holds": []}], "at least 1"),
        ([MEMORY, MEMORY], "entries 1 and 2"),
        ([{**MEMORY, "name": "x"}, {**MEMORY, "match": "a", "name": "x"}], "given twice"),
        ([{**MEMORY, "blob_path": "{digest}"}], "is not known"),
        ([{"match": ".*", "kind": "sql", "url": "sqlite://", "holds": ["blobs"]}], "tags"),
        ([{"match": ".*", "kind": "http", "url": "http://u:p@h"}], "no user and password"),
        ([{"match": ".*", "kind": "http", "url": "ftp://h"}], "expected a URL"),
        ([{"match": ".*", "kind": "webhdfs", "name_nodes": []}], "at least 1"),
        ([{"match": ".*", "kind": "registry", "url": "http://h", "repository": "x"}], "once"),
        (
            [{"match": ".*", "kind": "s3", "bucket": "b", "credentials": {"access_key_id": "a"}}],
            "one of secret_access_key",
        ),
        (
            [{"match": ".*", "kind": "shadow", "active": MEMORY, "mirror": {"kind": "memory"}}],
            "belongs to the shadow",
        ),
        (
            [
                {
                    "match": ".*",
                    "kind": "shadow",
                    "active": {"kind": "sql", "url": "sqlite://"},
                    "mirror": {"kind": "memory"},
                }
            ],
            "cannot hold blobs",
        ),
    ],
)
def test_what_cannot_work_is_refused_at_the_start(entries: list[Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        ADAPTER.validate_python(entries)


class Service(BaseModel):
    model_config = ConfigDict(extra="forbid")
    backends: BackendsConfig = ()


def test_a_config_file_is_read_with_its_units_and_its_secrets_are_masked(tmp_path: Path) -> None:
    path = tmp_path / "origin.yaml"
    path.write_text(
        "backends:\n"
        "  - match: team/.*\n"
        "    kind: s3\n"
        "    bucket: images\n"
        "    part_size: 8MiB\n"
        "    bandwidth: {write: 100MB/s}\n"
        "    credentials: {access_key_id: AKID, secret_access_key: hidden}\n"
    )
    loaded = load(Service, "origin", path, {})
    (entry,) = loaded.value.backends
    assert isinstance(entry, S3BackendConfig)
    assert (entry.bandwidth.write, entry.part_size) == (1e8, 8 * 2**20)
    shown = loaded.value.model_dump_json()
    assert "hidden" not in shown
    assert "100000000B/s" in shown or "MB/s" in shown


def test_a_fault_in_an_entry_is_said_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "origin.yaml"
    path.write_text("backends:\n  - {match: .*, kind: s3, bucket: b, part_size: 5}\n")
    with pytest.raises(ConfigError, match=r"backends\[0\].*part_size"):
        load(Service, "origin", path, {})
