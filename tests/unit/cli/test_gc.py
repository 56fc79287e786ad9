# SPDX-License-Identifier: Apache-2.0
"""``shoal gc`` against services that answer what the test says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from typer.testing import CliRunner, Result

from shoal.buildindex.garbage import Doomed, GcReport
from shoal.cli import main
from shoal.cli.gc_run import load_targets
from shoal.config.load import ConfigError
from shoal.origin.messages import SweepReport, Swept
from shoal.web.serving import listening
from tests.dns_server import dns_in_thread

MANIFEST = "sha256:" + "a" * 64
LAYER = "sha256:" + "b" * 64
OTHER = "sha256:" + "c" * 64

MARKED = GcReport(
    True,
    repositories=2,
    manifests=3,
    links=5,
    condemned_manifests=1,
    condemned_links=1,
    items=[
        Doomed("manifest", "team/app", MANIFEST, "no tag reaches it", 1536),
        Doomed("blob", "team/app", LAYER, "no manifest references it"),
    ],
    released=[LAYER, MANIFEST],
)
SWEPT = SweepReport(
    "o:1",
    True,
    examined=9,
    young=1,
    kept=2,
    in_use=0,
    wanted=5,
    relied_on=0,
    removed=1,
    freed=2048,
    items=[Swept(LAYER, 2048, "no repository has a record of this blob")],
)


@dataclass
class Service:
    """One service: what it answers, and what it was asked."""

    report: msgspec.Struct
    status: int = 200
    asked: list[tuple[dict[str, str], Any]] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.asked.append((dict(request.query), json.loads(body) if body else None))
        return web.Response(status=self.status, body=msgspec.json.encode(self.report))


@asynccontextmanager
async def running(*services: Service) -> AsyncIterator[list[str]]:
    apps = []
    for service in services:
        app = web.Application()
        app.router.add_post("/internal/gc", service.answer)
        apps.append((app, "127.0.0.1:0"))
    async with listening(apps, grace=1) as addresses:
        yield addresses


async def gc(
    folder: Path, build_indexes: list[Service], origins: list[Service], *options: str
) -> Result:
    """Run the command against the services."""
    async with running(*build_indexes, *origins) as hosts:
        config = folder / "proxy.yaml"
        config.write_text(
            json.dumps(
                {
                    "build_index": {"hosts": hosts[: len(build_indexes)]},
                    "origins": {"hosts": hosts[len(build_indexes) :], "replicas": 2},
                }
            )
        )
        arguments = ["gc", "--config", str(config), *options]
        return await asyncio.to_thread(CliRunner().invoke, main, arguments)


async def test_a_dry_run_says_what_would_go_and_why(tmp_path: Path) -> None:
    marks, sweeps = [Service(MARKED), Service(MARKED)], [Service(SWEPT), Service(SWEPT)]
    result = await gc(tmp_path, marks, sweeps, "--dry-run", "--grace", "90m")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert f"would delete manifest team/app@{MANIFEST} (1.5 KiB): no tag reaches it" in lines
    assert f"would delete link to blob team/app@{LAYER}: no manifest references it" in lines
    assert len([line for line in lines if line.startswith(f"would remove blob {LAYER}")]) == 1
    assert lines[-1] == "in all: would remove 2 of 18 copies on 2 origins, would free 4.0 KiB"
    for service in (*marks, *sweeps):
        assert [query for query, _ in service.asked] == [{"dry_run": "true", "grace": "90m"}]


async def test_in_a_dry_run_origins_are_told_what_every_build_index_would_release(
    tmp_path: Path,
) -> None:
    less = msgspec.structs.replace(MARKED, released=[LAYER, OTHER])
    origin = Service(SWEPT)
    await gc(tmp_path, [Service(MARKED), Service(less)], [origin], "--dry-run")
    assert origin.asked == [({"dry_run": "true"}, {"released": [LAYER]})]


async def test_a_real_run_leaves_the_decision_to_the_services(tmp_path: Path) -> None:
    origin = Service(SWEPT)
    result = await gc(tmp_path, [Service(MARKED)], [origin])
    assert result.exit_code == 0, result.output
    assert origin.asked == [({"dry_run": "false"}, None)]
    assert "in all: removed 1 of 9 copies on 1 origins, freed 2.0 KiB" in result.stdout
    assert "would" not in result.stdout


async def test_json_holds_every_report(tmp_path: Path) -> None:
    result = await gc(tmp_path, [Service(MARKED)], [Service(SWEPT)], "--dry-run", "--json")
    document = json.loads(result.stdout)
    assert document["dry_run"] is True
    assert (document["removed"], document["freed"], document["failures"]) == (1, 2048, [])
    [mark], [sweep] = document["build_indexes"].values(), document["origins"].values()
    assert mark == json.loads(msgspec.json.encode(MARKED))
    assert sweep == json.loads(msgspec.json.encode(SWEPT))


async def test_no_origin_is_asked_unless_every_build_index_answered(tmp_path: Path) -> None:
    down, origin = Service(MARKED, status=503), Service(SWEPT)
    result = await gc(tmp_path, [Service(MARKED), down], [origin])
    assert result.exit_code == 1
    assert origin.asked == []
    assert "answered 503" in result.stderr
    assert "no origin was asked" in result.stderr
    assert "Traceback" not in result.output


async def test_an_origin_that_cannot_be_asked_is_named_and_the_others_are_swept(
    tmp_path: Path,
) -> None:
    down = Service(SWEPT, status=503)
    result = await gc(tmp_path, [Service(MARKED)], [Service(SWEPT), down])
    assert result.exit_code == 1
    assert "removed 1 of 9 copies on 1 origins" in result.stdout
    assert "origin 127.0.0.1:" in result.stderr


async def test_a_sweep_that_ended_early_is_a_failure(tmp_path: Path) -> None:
    early = msgspec.structs.replace(SWEPT, stopped="not all build-indexes could be asked: x")
    result = await gc(tmp_path, [Service(MARKED)], [Service(early)])
    assert result.exit_code == 1
    assert "ended early: not all build-indexes could be asked: x" in result.stderr


@pytest.mark.parametrize(
    "text, fault",
    [
        ("origins: {hosts: ['o:1']}", 'missing key "build_index.hosts"'),
        ("build_index: {hosts: ['b:1']}", 'missing key "origins.hosts"'),
        ("build_index: {hosts: [nowhere]}\norigins: {hosts: ['o:1']}", "build_index"),
        ("[", "not YAML"),
    ],
)
def test_a_config_that_does_not_name_the_hosts_is_refused(
    tmp_path: Path, text: str, fault: str
) -> None:
    config = tmp_path / "service.yaml"
    config.write_text(text)
    result = CliRunner().invoke(main, ["gc", "--config", str(config)])
    assert result.exit_code == 2
    assert fault in result.stderr
    assert str(config) in result.stderr


def test_a_grace_time_needs_a_unit() -> None:
    result = CliRunner().invoke(main, ["gc", "--config", "x", "--grace", "24"])
    assert result.exit_code == 2
    assert "such as 500ms" in result.stderr


def test_hosts_are_found_by_dns_as_the_services_find_them(tmp_path: Path) -> None:
    with dns_in_thread() as dns:
        dns.records = {
            ("origins.test", "A"): ["10.0.0.2", "10.0.0.1"],
            ("_index._tcp.test", "SRV"): ["0 0 5006 b1.test."],
        }
        config = tmp_path / "service.yaml"
        config.write_text(
            f"origins: {{dns: 'origins.test:5002', nameservers: ['{dns.address}'], replicas: 2}}\n"
            f"build_index: {{srv: _index._tcp.test, nameservers: ['{dns.address}']}}\n"
        )
        targets = load_targets(config)
        assert targets.origins == ["10.0.0.1:5002", "10.0.0.2:5002"]
        assert targets.build_indexes == ["b1.test:5006"]
        dns.records = {}
        with pytest.raises(ConfigError, match='cannot find the hosts of "build_index"'):
            load_targets(config)


@pytest.mark.parametrize(
    "tls,said",
    [
        ("{ca: /gone/ca.pem}", 'bad value in section "tls"'),
        ("{ca: /gone/ca.pem, certificate: c, key: k}", r'"tls\.certificate"'),
    ],
)
def test_certificates_that_are_of_no_use_are_named(tmp_path: Path, tls: str, said: str) -> None:
    config = tmp_path / "service.yaml"
    config.write_text(f"origins: {{hosts: ['o:1']}}\nbuild_index: {{hosts: ['b:1']}}\ntls: {tls}\n")
    with pytest.raises(ConfigError, match=said):
        load_targets(config)
