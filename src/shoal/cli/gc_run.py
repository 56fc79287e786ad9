# SPDX-License-Identifier: Apache-2.0
"""One run of garbage collection over a cluster: first every build-index, then every origin."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from shoal.buildindex.garbage import GcReport
from shoal.config.load import ConfigError
from shoal.config.model import TlsConfig
from shoal.config.units import format_duration
from shoal.config.yaml_mapping import InvalidYaml, read_yaml
from shoal.origin.messages import SweepReport, SweepRequest
from shoal.ring.config import HostsConfig
from shoal.web.client import HttpClient
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed
from shoal.web.lookup import LookupFailed, find_hosts
from shoal.web.tls import CannotSecure, Tls

PATH = "/internal/gc"

_TAKE = "take the config of a service that names both build_index and origins, such as a proxy's"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Targets:
    """The services of a cluster (``host:port``) that take part."""

    build_indexes: Sequence[str]
    origins: Sequence[str]
    tls: Tls | None = None
    """How they are called."""


@dataclass(slots=True)
class Outcome:
    """What the services reported, by host, and what went wrong."""

    dry_run: bool
    marks: dict[str, GcReport] = field(default_factory=dict)
    sweeps: dict[str, SweepReport] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    origins_asked: bool = False


def load_targets(path: Path) -> Targets:
    """Find the hosts by the config of a service; raises `ConfigError`.

    Only the sections needed are looked at, so that the file may be that of a service of any kind.
    """
    return Targets(hosts_of(path, "build_index"), hosts_of(path, "origins"), tls_of(path))


def hosts_of(path: Path, section: str) -> Sequence[str]:
    """The hosts that a section of a service's config lists; raises `ConfigError`."""
    return _hosts(read_config(path), section, path)


def tls_of(path: Path) -> Tls:
    """How a service with this config calls the others; raises `ConfigError`."""
    given = read_config(path).get("tls")
    keys = given if isinstance(given, dict) else {}
    try:
        return Tls(
            TlsConfig.model_validate(
                {key: keys[key] for key in TlsConfig.model_fields if key in keys}
            )
        )
    except ValueError as error:
        raise ConfigError([f'bad value in section "tls" in {path}: {error}']) from error
    except CannotSecure as error:
        raise ConfigError([str(error)]) from error


def read_config(path: Path) -> Mapping[str, object]:
    """The keys of a service's config, as they stand in the file; raises `ConfigError`."""
    try:
        return read_yaml(path.read_text())
    except OSError as error:
        raise ConfigError([f"cannot read {path}: {error.strerror}"]) from error
    except (InvalidYaml, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: {error}"]) from error


def _hosts(config: Mapping[str, object], section: str, path: Path) -> Sequence[str]:
    given = config.get(section)
    keys = given if isinstance(given, dict) else {}
    listed = {key: keys[key] for key in HostsConfig.model_fields if key in keys}
    if not listed:
        raise ConfigError([f'missing key "{section}.hosts" in {path}: {_TAKE}'])
    try:
        hosts, _ = asyncio.run(find_hosts(HostsConfig.model_validate(listed)))
    except ValueError as error:
        raise ConfigError([f'bad value in section "{section}" in {path}: {error}']) from error
    except LookupFailed as error:
        raise ConfigError([f'cannot find the hosts of "{section}" in {path}: {error}']) from error
    return sorted(hosts)


async def run(targets: Targets, *, dry_run: bool, grace: float | None, timeout: float) -> Outcome:
    """Mark on every build-index; if all could, sweep on every origin.

    `grace` in seconds, None: as each service is configured; `timeout`: seconds for the answer of
    one service.
    """
    query = {"dry_run": "true" if dry_run else "false"}
    if grace is not None:
        query["grace"] = format_duration(grace)
    outcome = Outcome(dry_run)
    http = HttpClient(user_agent="shoal-gc", tls=targets.tls)

    async def ask(kind: type[T], role: str, host: str, body: object = None) -> T | None:
        url = http.url(host, PATH)
        late = Deadline.after(timeout)
        try:
            answer = await http.call("POST", url, deadline=late, params=query, json=body)
            return answer.decode(kind)
        except CallFailed as error:
            outcome.failures.append(f"{role} {host}: {error}")
            return None

    try:
        marks = await asyncio.gather(
            *(ask(GcReport, "build-index", host) for host in targets.build_indexes)
        )
        outcome.marks = _answered(targets.build_indexes, marks)
        if outcome.failures:
            return outcome
        outcome.origins_asked = True
        body = SweepRequest(_released(list(outcome.marks.values()))) if dry_run else None
        sweeps = await asyncio.gather(
            *(ask(SweepReport, "origin", host, body) for host in targets.origins)
        )
        outcome.sweeps = _answered(targets.origins, sweeps)
        outcome.failures += [
            f"origin {host}: the sweep ended early: {report.stopped}"
            for host, report in outcome.sweeps.items()
            if report.stopped
        ]
    finally:
        await http.close()
    return outcome


def _answered(hosts: Sequence[str], reports: Sequence[T | None]) -> dict[str, T]:
    return {host: report for host, report in zip(hosts, reports, strict=True) if report is not None}


def _released(marks: Sequence[GcReport]) -> list[str]:
    """Digests that every build-index would have no record of any more."""
    released = set(marks[0].released)
    for mark in marks[1:]:
        released &= set(mark.released)
    return sorted(released)
