# SPDX-License-Identifier: Apache-2.0
"""Real clients pull other registries' images through agents: by containerd's ns, and by a path."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import aiohttp
import pytest

from tests.acceptance.clients import Ctr, Docker, Podman, Pulled, Reference, Skopeo
from tests.acceptance.distribution import PASSWORD, USER, Distribution
from tests.acceptance.images import BOTH, build
from tests.acceptance.raw import ask, manifest
from tests.acceptance.relay import Relay
from tests.acceptance.sandbox import CommandFailed
from tests.cluster import RunningCluster

pytestmark = pytest.mark.client("docker-registry", "skopeo")

UPSTREAM: Final = "upstream.test"
"""Its tags are believed for an hour."""
MOVING: Final = "moving.test"
"""The same registry, whose tags are believed for a second."""
PROTECTED: Final = "protected.test"
"""Another registry, which wants a user and a password."""
WRONG: Final = "wrong.test"
"""The same one, and the config has another password."""

_WITHIN: Final = 20.0
_GLANCE: Final = 0.1
_AT_ONCE: Final = 1000


class Setting:
    """Two registries, and a cluster with two agents and two build-indexes in front of them."""

    def __init__(self, open_: Distribution, protected: Distribution, relay: Relay) -> None:
        self.open = open_
        self.protected = protected
        self.relay = relay
        self.cluster: RunningCluster

    def config(self) -> dict[str, object]:
        """What the cluster is told of the registries."""
        at_relay = {"url": self.relay.url, "allow_private": True}
        at_protected = {"url": self.protected.url, "allow_private": True, "username": USER}
        upstreams = {
            UPSTREAM: {**at_relay, "fresh": "1h"},
            MOVING: {**at_relay, "fresh": "1s"},
            PROTECTED: {**at_protected, "password": PASSWORD},
            WRONG: {**at_protected, "password": f"not {PASSWORD}"},
        }
        names = {"upstreams": list(upstreams)}
        return {
            "origin": {"upstreams": upstreams},
            "build-index": {"upstreams": upstreams},
            "agent": names,
            "proxy": names,
        }

    def asked(self, part: str) -> list[str]:
        """The requests of the open registry whose target has this in it, in order."""
        requests = self.relay.requests()
        return [f"{r.method} {r.target}" for r in requests if part in r.target]


@pytest.fixture(scope="module")
def setting(folder: Path) -> Iterator[Setting]:
    base = folder / "upstreams"
    with (
        Distribution.run(base / "open") as registry,
        Distribution.run(base / "protected", protected=True) as protected,
        Relay.to(registry.url) as relay,
    ):
        made = Setting(registry, protected, relay)
        with RunningCluster.start(
            base / "cluster",
            origins=2,
            agents=2,
            options=["--build-indexes", "2"],
            config=made.config(),
        ) as cluster:
            made.cluster = cluster
            yield made


@pytest.mark.client("ctr")
def test_containerd_pulls_an_upstreams_image_which_is_fetched_once_for_all_agents(
    setting: Setting, skopeo: Skopeo, ctr: Ctr, tmp_path: Path
) -> None:
    image = build("upstream by ns", platforms=BOTH)
    skopeo.push(image, Reference(setting.open.url, "team/by-ns"))
    name = f"{UPSTREAM}/team/by-ns:v1"

    for number, agent in enumerate(setting.cluster.agents):
        hosts = _hosts(tmp_path / str(number), UPSTREAM, [agent.registry])
        namespace = ctr.pull_into_new(name, "--hosts-dir", str(hosts), "--all-platforms")
        assert ctr.digests(namespace) >= {image.digest, *(c.digest for c in image.blobs())}
        assert ctr.digest(namespace, name) == image.digest

    asked = setting.asked("/team/by-ns/")
    assert len([line for line in asked if line.endswith("/manifests/v1")]) == 1
    for content in image.blobs():
        path = f"/v2/team/by-ns/blobs/{content.digest}"
        assert [line for line in asked if line == f"GET {path}"] == [f"GET {path}"]


@pytest.mark.client("ctr")
def test_a_pull_asks_an_upstream_for_no_other_platforms_manifest(
    setting: Setting, skopeo: Skopeo, ctr: Ctr, tmp_path: Path
) -> None:
    """Registries count manifests against a rate limit, and an index may have dozens."""
    image = build("one of two platforms", platforms=BOTH)
    skopeo.push(image, Reference(setting.open.url, "team/counted"))
    hosts = _hosts(tmp_path / "hosts", UPSTREAM, [setting.cluster.agents[0].registry])

    ctr.pull_into_new(f"{UPSTREAM}/team/counted:v1", "--hosts-dir", str(hosts))

    fetched = [
        line.rpartition("/")[2]
        for line in setting.asked("/team/counted/manifests/")
        if line.startswith("GET")
    ]
    assert sorted(fetched) == sorted([image.digest, image.host.manifest.digest])


@pytest.mark.client("podman")
def test_podman_and_skopeo_pull_an_upstreams_image_by_its_path(
    setting: Setting, skopeo: Skopeo, podman: Podman
) -> None:
    image = build("upstream by path")
    skopeo.push(image, Reference(setting.open.url, "team/by-path"))
    first, second = setting.cluster.agents
    wanted = Pulled(image.digest, image.host.diff_ids)

    assert podman.pull(Reference(first.registry, f"{UPSTREAM}/team/by-path")) == wanted
    assert skopeo.pull(Reference(second.registry, f"{UPSTREAM}/team/by-path")) == wanted
    assert skopeo.tags(Reference(first.registry, f"{UPSTREAM}/team/by-path")) == ["v1"]


@pytest.mark.client("podman")
def test_podman_pulls_an_upstreams_names_from_an_agent_below_a_path(
    setting: Setting, skopeo: Skopeo, podman: Podman, tmp_path: Path
) -> None:
    image = build("upstream as a mirror")
    skopeo.push(image, Reference(setting.open.url, "team/mirrored"))
    agent = setting.cluster.agents[0].registry.removeprefix("http://")
    config = tmp_path / "registries.conf"
    config.write_text(
        f'[[registry]]\nprefix = "{UPSTREAM}"\nlocation = "{UPSTREAM}"\n'
        f'[[registry.mirror]]\nlocation = "{agent}/{UPSTREAM}"\ninsecure = true\n'
    )

    pulled = podman.pull(f"{UPSTREAM}/team/mirrored:v1", registries=config)

    assert pulled == Pulled(image.digest, image.host.diff_ids)


@pytest.mark.client("docker")
def test_docker_pulls_an_upstreams_image_by_its_path(
    setting: Setting, skopeo: Skopeo, docker: Docker
) -> None:
    image = build("upstream for docker")
    skopeo.push(image, Reference(setting.open.url, "team/docker"))
    agent = setting.cluster.agents[0].registry

    pulled = docker.pull(Reference(agent, f"{UPSTREAM}/team/docker"))

    assert pulled == Pulled(image.digest, image.host.diff_ids)


def test_a_moved_tag_is_seen_once_the_old_one_is_not_fresh_any_more(
    setting: Setting, skopeo: Skopeo
) -> None:
    old, new = build("before it moved"), build("after it moved")
    at_upstream = Reference(setting.open.url, "team/moved")
    skopeo.push(old, at_upstream)
    agent = setting.cluster.agents[0].registry
    believed, followed = (Reference(agent, f"{name}/team/moved") for name in (UPSTREAM, MOVING))
    assert skopeo.pull(believed).digest == skopeo.pull(followed).digest == old.digest

    skopeo.push(new, at_upstream)

    _wait_for(followed, new.digest)
    assert skopeo.pull(followed) == Pulled(new.digest, new.host.diff_ids)
    assert skopeo.pull(believed).digest == old.digest


@pytest.mark.client("ctr")
@pytest.mark.parametrize("outage", ["down", "frozen"])
def test_what_was_pulled_before_is_pulled_while_the_upstream_is_away(
    outage: str, setting: Setting, skopeo: Skopeo, ctr: Ctr, tmp_path: Path
) -> None:
    image = build(f"stale {outage}")
    skopeo.push(image, Reference(setting.open.url, f"team/stale-{outage}"))
    first, second = setting.cluster.agents
    path = f"{MOVING}/team/stale-{outage}"
    assert skopeo.pull(Reference(first.registry, path)).digest == image.digest
    name = f"{path}:v1"
    hosts = _hosts(tmp_path / "hosts", MOVING, [second.registry])

    with getattr(setting.open, outage)():
        time.sleep(1.1)  # `fresh` has passed: the upstream would be asked
        namespace = ctr.pull_into_new(name, "--hosts-dir", str(hosts))

    assert ctr.pulled(namespace, name) == Pulled(image.digest, image.host.diff_ids)


@pytest.mark.client("ctr")
def test_containerd_goes_on_to_its_next_host_when_the_upstream_is_down_and_the_tag_unknown(
    setting: Setting, skopeo: Skopeo, ctr: Ctr, tmp_path: Path
) -> None:
    image = build("next host")
    name = f"{UPSTREAM}/team/next-host:v1"

    with (
        Distribution.run(tmp_path / "spare") as spare,
        Relay.to(setting.cluster.agents[0].registry) as agent,
        setting.open.down(),
    ):
        skopeo.push(image, Reference(spare.url, "team/next-host"))
        hosts = _hosts(tmp_path / "hosts", UPSTREAM, [agent.url, spare.url])
        began = time.monotonic()
        namespace = ctr.pull_into_new(name, "--hosts-dir", str(hosts))
        took = time.monotonic() - began
        statuses = {request.status for request in agent.requests()}

    assert ctr.digest(namespace, name) == image.digest
    assert statuses == {503}
    assert took < 10


def test_a_push_to_an_upstreams_repository_is_refused_with_a_reason(
    setting: Setting, skopeo: Skopeo
) -> None:
    image = build("not to be pushed")

    with pytest.raises(CommandFailed) as refused:
        skopeo.push(image, Reference(setting.cluster.proxy, f"{UPSTREAM}/team/refused"))

    said = str(refused.value)
    assert "denied" in said
    assert f"only pulled through here: push to {UPSTREAM}, or to another repository" in said
    assert manifest(Reference(setting.open.url, "team/refused")).status == 404


def test_an_upstream_gets_the_credentials_of_the_config(setting: Setting, skopeo: Skopeo) -> None:
    image = build("protected")
    at_upstream = Reference(setting.protected.url, "team/protected")
    assert ask(f"{setting.protected.url}/v2/").status == 401
    skopeo.push(image, at_upstream, credentials=f"{USER}:{PASSWORD}")
    agent = setting.cluster.agents[1].registry

    pulled = skopeo.pull(Reference(agent, f"{PROTECTED}/team/protected"))

    assert pulled == Pulled(image.digest, image.host.diff_ids)
    # Again: what each build-index remembers must be the answer that it found out.
    for _ in range(4):
        refused = manifest(Reference(agent, f"{WRONG}/team/protected"))
        (error,) = refused.document["errors"]
        assert (refused.status, error["code"]) == (403, "DENIED")
        assert "401" in error["message"]
        assert PASSWORD not in error["message"]


async def test_a_thousand_requests_for_a_missing_tag_are_one_at_the_upstream(
    setting: Setting,
) -> None:
    path = "/v2/team/herd/manifests/none"
    urls = [f"{agent.registry}{path}?ns={UPSTREAM}" for agent in setting.cluster.agents]
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def status(url: str) -> int:
            async with session.head(url) as answer:
                return answer.status

        asked = [status(urls[number % len(urls)]) for number in range(_AT_ONCE)]
        statuses = await asyncio.gather(*asked)

    assert set(statuses) == {404}
    assert setting.asked(path) == [f"HEAD {path}"]


def _hosts(folder: Path, name: str, mirrors: Sequence[str]) -> Path:
    """A folder for ``--hosts-dir``: the mirrors of a registry."""
    (folder / name).mkdir(parents=True)
    lines = [f'server = "https://{name}"']
    for mirror in mirrors:
        lines += [f'[host."{mirror}"]', '  capabilities = ["pull", "resolve"]']
    (folder / name / "hosts.toml").write_text("\n".join(lines) + "\n")
    return folder


def _wait_for(reference: Reference, digest: str) -> None:
    ends = time.monotonic() + _WITHIN
    while manifest(reference).headers["Docker-Content-Digest"] != digest:
        assert time.monotonic() < ends, f"{reference} is not {digest} after {_WITHIN} s"
        time.sleep(_GLANCE)
