# SPDX-License-Identifier: Apache-2.0
"""Credentials from the config, from docker's config.json, and from credential helpers."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from shoal.backend import credentials
from shoal.backend.credentials import Credentials, CredentialsFailed, Helper, source
from shoal.backend.upstreams import UpstreamConfig

SECRET = "a-secret-that-nobody-sees"


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def program(folder: Path, script: str, name: str = "test") -> Path:
    """A credential helper; it notes each server that it is asked for."""
    log = folder / "asked"
    path = folder / f"docker-credential-{name}"
    path.write_text(f'#!/bin/sh\nread server\necho "$1 $server" >>{log}\n{script}\n')
    path.chmod(0o755)
    return log


ANSWER = f"""echo '{{"ServerURL": "x", "Username": "AWS", "Secret": "{SECRET}"}}'"""


async def test_a_helper_is_asked_by_dockers_protocol(programs: Path) -> None:
    log = program(programs, ANSWER)
    found = await Helper("test", "123.dkr.ecr.eu-west-1.example.com").get()
    assert found == Credentials("AWS", SECRET)
    assert log.read_text() == "get 123.dkr.ecr.eu-west-1.example.com\n"


async def test_a_helpers_answer_is_kept_and_renewed_before_it_expires(programs: Path) -> None:
    log = program(programs, ANSWER)
    now = [0.0]
    helper = Helper("test", "r", clock=lambda: now[0])
    for now[0], asked in ((0, 1), (credentials.KEPT - 1, 1), (credentials.KEPT + 1, 2)):
        assert await helper.get() is not None
        assert len(log.read_text().splitlines()) == asked
    await helper.get(fresh=True)
    assert len(log.read_text().splitlines()) == 3


async def test_many_at_once_start_one_helper(programs: Path) -> None:
    log = program(programs, ANSWER)
    helper = Helper("test", "r")
    found = await asyncio.gather(*(helper.get(fresh=True) for _ in range(20)))
    assert set(found) == {Credentials("AWS", SECRET)}
    assert len(log.read_text().splitlines()) == 1


async def test_an_identity_token_of_a_helper_is_one(programs: Path) -> None:
    program(programs, ANSWER.replace("AWS", "<token>"))
    assert await Helper("test", "r").get() == Credentials("", identity_token=SECRET)


async def test_a_helper_that_has_none_means_anonymous(programs: Path) -> None:
    program(programs, "echo 'credentials not found in native keychain'; exit 1")
    assert await Helper("test", "r").get() is None


@pytest.mark.parametrize(
    "script, said",
    [
        (f"echo {SECRET}; exit 3", "ended with status 3"),
        (f"echo {SECRET}", "not its protocol"),
        (f"""echo '{{"Username": 1, "Secret": "{SECRET}"}}'""", "not its protocol"),
        ("head -c 100000 /dev/zero", "more than 65536 bytes"),
        ("kill -9 $$", "ended with status -9"),
    ],
)
async def test_a_helper_that_fails_is_named_and_what_it_says_is_not(
    programs: Path, script: str, said: str
) -> None:
    program(programs, script)
    with pytest.raises(CredentialsFailed, match=said) as failure:
        await Helper("test", "r").get()
    assert SECRET not in f"{failure.value!r}"
    assert failure.value.__cause__ is None


def has_ended(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().split()[2] == "Z"


async def test_a_helper_that_hangs_is_ended_with_its_children(programs: Path) -> None:
    log = program(programs, f"sleep 600 & echo $! >{programs}/child; wait")
    started = time.monotonic()
    with pytest.raises(CredentialsFailed, match="more than 1 s"):
        await Helper("test", "r", timeout=1).get()
    assert time.monotonic() - started < 10
    assert log.exists()
    child = int((programs / "child").read_text())
    for _ in range(500):
        if has_ended(child):
            return
        await asyncio.sleep(0.01)
    pytest.fail("the helper's child still runs")


async def test_a_helper_that_is_missing_is_said() -> None:
    with pytest.raises(CredentialsFailed, match="docker-credential-nosuch could not be started"):
        await Helper("nosuch", "r").get()


@pytest.mark.parametrize("name", ["", "../evil", "a/b", "a b", "-x"])
def test_a_helpers_name_is_no_path(name: str) -> None:
    with pytest.raises(CredentialsFailed, match="not the name"):
        Helper(name, "r")


# -- docker's config.json ---------------------------------------------------------------------


def docker_config(folder: Path, content: object) -> UpstreamConfig:
    path = folder / "config.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return UpstreamConfig(docker_config=path)


def auth(text: str) -> dict[str, str]:
    return {"auth": base64.b64encode(text.encode()).decode()}


@pytest.mark.parametrize(
    "key, registry",
    [
        ("r.example.com", "r.example.com"),
        ("https://r.example.com", "r.example.com"),
        ("https://r.example.com/v2/", "r.example.com"),
        ("r.example.com:5000", "r.example.com:5000"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("registry-1.docker.io", "docker.io"),
    ],
)
async def test_an_entry_is_found_by_its_host(tmp_path: Path, key: str, registry: str) -> None:
    config = docker_config(tmp_path, {"auths": {"other": auth("x:y"), key: auth("me:a:b")}})
    assert await source(config, registry).get() == Credentials("me", "a:b")


async def test_another_registrys_entry_is_not_taken(tmp_path: Path) -> None:
    config = docker_config(tmp_path, {"auths": {"r.example.com": auth("me:x")}})
    for registry in ("example.com", "r.example.com:5000", "r.example.com.evil.example.com"):
        assert await source(config, registry).get() is None


async def test_helpers_of_dockers_config_are_used(tmp_path: Path, programs: Path) -> None:
    log = program(programs, ANSWER, "one")
    program(programs, ANSWER.replace("AWS", "store"), "two")
    config = docker_config(
        tmp_path, {"credHelpers": {"r.example.com": "one"}, "credsStore": "two", "auths": {}}
    )
    for_one, for_hub = source(config, "r.example.com"), source(config, "docker.io")
    assert await for_one.get() == await for_one.get() == Credentials("AWS", SECRET)
    assert await for_hub.get() == Credentials("store", SECRET)
    assert log.read_text().splitlines() == [
        "get r.example.com",
        "get https://index.docker.io/v1/",
    ]


async def test_a_login_is_seen_without_a_restart(tmp_path: Path) -> None:
    config = docker_config(tmp_path, {})
    found = source(config, "r")
    assert await found.get() is None
    docker_config(tmp_path, {"auths": {"r": auth("me:new")}})
    assert await found.get() == Credentials("me", "new")


@pytest.mark.parametrize(
    "content, said",
    [
        ("{", "not a docker config.json"),
        ('{"auths": {"r": {"auth": "***"}}}', "not base64"),
        ('{"credHelpers": {"r": "../../evil"}}', "not the name"),
        (" " * (1024 * 1024 + 1), "more than"),
    ],
)
async def test_a_config_that_cannot_be_read_is_said(
    tmp_path: Path, content: str, said: str
) -> None:
    with pytest.raises(CredentialsFailed, match=said):
        await source(docker_config(tmp_path, content), "r").get()


# -- Shoal's config ---------------------------------------------------------------------------


async def test_a_user_and_a_password(tmp_path: Path) -> None:
    config = UpstreamConfig.model_validate({"username": "me", "password": SECRET})
    assert await source(config, "r").get() == Credentials("me", SECRET)
    file = tmp_path / "password"
    file.write_text(f" {SECRET} \r\n")
    config = UpstreamConfig(username="me", password_file=file)
    assert await source(config, "r").get() == Credentials("me", f" {SECRET} ")
    file.unlink()
    with pytest.raises(CredentialsFailed, match="cannot be read"):
        await source(config, "r").get()
    assert await source(UpstreamConfig(), "r").get() is None


def test_secrets_are_in_no_text() -> None:
    config = UpstreamConfig.model_validate({"username": "me", "password": SECRET})
    shown = [repr(config), config.model_dump_json(), repr(Credentials("me", SECRET, SECRET))]
    assert SECRET not in " ".join(shown)


@pytest.mark.parametrize(
    "settings",
    [
        {"username": "me"},
        {"password": "x"},
        {"username": "me", "password": "x", "password_file": "/y"},
        {"username": "me", "password": "x", "credential_helper": "gcr"},
        {"docker_config": "/x", "credential_helper": "gcr"},
        {"url": "ftp://r.example.com"},
        {"url": "https://me:x@r.example.com"},
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        UpstreamConfig.model_validate(settings)
