# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

import pytest
import yaml
from pydantic import Field, model_validator

from shoal.config.load import ConfigError, Loaded, load
from shoal.config.model import Config, ServiceConfig, TlsConfig
from shoal.config.units import Address, Bytes, Duration


class Origins(Config):
    hosts: Annotated[tuple[Address, ...], Field(min_length=1)] = ("127.0.0.1:1",)
    replicas: Annotated[int, Field(ge=1)] = 3
    write_quorum: int = 2

    @model_validator(mode="after")
    def _quorum(self) -> Self:
        if self.write_quorum > self.replicas:
            raise ValueError("write_quorum must not be above replicas")
        return self


class Example(ServiceConfig):
    listen: Address = "127.0.0.1:5000"
    data_dir: Path
    origins: Origins = Origins()
    backup: Origins | None = None
    timeout: Duration = 60.0
    limit: Bytes = 1024
    zone: str = ""
    fancy: bool = False


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "agent.yaml"


def read(file: Path, text: str, **environ: str) -> Loaded[Example]:
    file.write_text(text)
    return load(Example, "build-index", file, environ)


def faults(file: Path, text: str, **environ: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        read(file, text, **environ)
    assert str(caught.value) == "\n".join(caught.value.faults)
    return caught.value.faults


def test_every_value_knows_its_origin_and_the_environment_wins(file: Path) -> None:
    loaded = read(
        file,
        "data_dir: /d\ntimeout: 5s\norigins: {replicas: 2, hosts: [a:1, b:2]}\n",
        SHOAL_BUILD_INDEX__ORIGINS__REPLICAS="5",
        SHOAL_BUILD_INDEX__LOG__LEVEL="debug",
        SHOAL_AGENT__ZONE="not mine",
        HOME="/",
    )
    config = loaded.value
    assert config.origins.hosts == ("a:1", "b:2")
    assert (config.origins.replicas, config.timeout, config.log.level) == (5, 5.0, "debug")
    assert loaded.origins == {
        "listen": "default",
        "log.level": "environment SHOAL_BUILD_INDEX__LOG__LEVEL",
        "log.format": "default",
        **{f"tls.{key}": "default" for key in TlsConfig.model_fields},
        "shutdown_grace": "default",
        "data_dir": f"file {file}",
        "origins.hosts": f"file {file}",
        "origins.replicas": "environment SHOAL_BUILD_INDEX__ORIGINS__REPLICAS",
        "origins.write_quorum": "default",
        "backup": "default",
        "timeout": f"file {file}",
        "limit": "default",
        "zone": "default",
        "fancy": "default",
    }


def test_the_environment_alone_is_enough() -> None:
    loaded = load(
        Example,
        "build-index",
        None,
        {
            "SHOAL_BUILD_INDEX__DATA_DIR": "/d",
            "SHOAL_BUILD_INDEX__ORIGINS__HOSTS": "[a:1, b:2]",
            "SHOAL_BUILD_INDEX__BACKUP__REPLICAS": "4",
            "SHOAL_BUILD_INDEX__ZONE": "5",
            "SHOAL_BUILD_INDEX__FANCY": "true",
        },
    )
    assert loaded.value.origins.hosts == ("a:1", "b:2")
    assert loaded.value.backup is not None
    assert loaded.value.backup.replicas == 4
    assert loaded.value.zone == "5"
    assert loaded.value.fancy


def test_a_dumped_config_is_read_back(file: Path) -> None:
    config = read(file, "data_dir: /d\ntimeout: 1500ms\nlimit: 3MiB\n").value
    text = yaml.safe_dump(config.model_dump(mode="json"))
    assert "1500ms" in text
    assert read(file, text).value == config


def test_an_unknown_key_is_named_with_its_file_and_the_nearest_known_one(file: Path) -> None:
    text = "data_dir: /d\nlisten-adress: x\norigins:\n  replicaz: 2\nwrite_quorum: 1\nqqq: 1\n"
    assert faults(file, text) == (
        f'unknown key "listen-adress" in {file}: did you mean "listen"?',
        f'unknown key "replicaz" in section origins of {file}: did you mean "replicas"?',
        f'unknown key "write_quorum" in {file}: did you mean "origins.write_quorum"?',
        (
            f'unknown key "qqq" in {file}: known here are backup, data_dir, fancy, limit, listen, '
            "log, origins, shutdown_grace, timeout, tls, zone"
        ),
    )


def test_an_unknown_variable_is_named_too(file: Path) -> None:
    assert faults(
        file,
        "data_dir: /d\n",
        SHOAL_BUILD_INDEX__ORIGINS="x",
        SHOAL_BUILD_INDEX__ORIGINS__REPLICAZ="2",
        SHOAL_BUILD_INDEX__ZONE__NAME="2",
    ) == (
        (
            "SHOAL_BUILD_INDEX__ORIGINS is a section: set its keys "
            "(SHOAL_BUILD_INDEX__ORIGINS__HOSTS, SHOAL_BUILD_INDEX__ORIGINS__REPLICAS, "
            "SHOAL_BUILD_INDEX__ORIGINS__WRITE_QUORUM)"
        ),
        (
            'unknown key "replicaz" in section origins of the environment '
            '(SHOAL_BUILD_INDEX__ORIGINS__REPLICAZ): did you mean "replicas"?'
        ),
        "SHOAL_BUILD_INDEX__ZONE__NAME: zone has no keys of its own",
    )


@pytest.mark.parametrize(
    "text,fault",
    [
        (
            "timeout: 5",
            'bad value 5 for "timeout" in {}: expected a duration with its unit, such as',
        ),
        ("timeout: 5.5", 'bad value 5.5 for "timeout" in {}: expected a duration'),
        ("timeout: true", 'bad value True for "timeout" in {}: expected a duration'),
        ("limit: 12", 'bad value 12 for "limit" in {}: expected a size with its unit'),
        ("listen: 5000", 'bad value 5000 for "listen" in {}: expected an address host:port'),
        ("listen: ':5000'", "the host is missing (0.0.0.0:5000 means every interface)"),
        (
            "origins: {replicas: many}",
            "bad value 'many' for \"origins.replicas\" in {}: input should",
        ),
        (
            "origins: {replicas: 0}",
            'bad value 0 for "origins.replicas" in {}: input should be greater',
        ),
        ("origins: {hosts: []}", 'bad value [] for "origins.hosts" in {}: '),
        ("origins: {hosts: [a:1, b]}", "bad value 'b' for \"origins.hosts[1]\" in {}: expected an"),
        ("origins: {replicas: 1}", 'bad section "origins" in {}: write_quorum must not be above'),
        ("origins:", 'bad value null for "origins" in {}: expected a section'),
        ("origins: [a]", "bad value ['a'] for \"origins\" in {}: expected a section"),
        (
            "log: {level: loud}",
            "bad value 'loud' for \"log.level\" in {}: input should be 'debug', ",
        ),
    ],
)
def test_a_bad_value_is_named_with_key_file_and_what_is_accepted(
    file: Path, text: str, fault: str
) -> None:
    (line,) = faults(file, f"data_dir: /d\n{text}\n")
    assert fault.format(file) in line
    assert "\n" not in line


def test_a_bad_value_of_the_environment_names_the_variable(file: Path) -> None:
    assert faults(file, "data_dir: /d\n", SHOAL_BUILD_INDEX__TIMEOUT="5") == (
        (
            "bad value '5' for \"timeout\" in the environment (SHOAL_BUILD_INDEX__TIMEOUT): "
            "expected a duration with its unit, such as 500ms, 5s, 1m or 2h"
        ),
    )


def test_a_missing_key_is_named_with_both_ways_to_set_it(file: Path) -> None:
    assert faults(file, "") == (
        f'missing key "data_dir": it is not in {file}, and SHOAL_BUILD_INDEX__DATA_DIR is not set',
    )


@pytest.mark.parametrize(
    "text,fault",
    [
        ("a: 1\nb: 2\na: 3\n", '{}:3:1: the key "a" stands twice, first in line 1'),
        ("origins: {hosts: [a:1], hosts: [b:1]}", '{}:1:25: the key "hosts" stands twice'),
        ("- a\n", "{}: expected keys and values at the top, got a list"),
        ("a: [\n", "{}:2:1: not YAML: "),
        ("1: 2\n", "{}:1:1: the key 1 must be text"),
        ("a: !!python/object/apply:os.system [x]\n", "{}:1:4: not YAML: "),
        ("a: \x07\n", "{}: not YAML: "),
    ],
)
def test_yaml_that_is_no_config_is_refused_with_its_place(
    file: Path, text: str, fault: str
) -> None:
    (line,) = faults(file, text)
    assert line.startswith(fault.format(file))


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*missing\.yaml: No such file"):
        load(Example, "agent", tmp_path / "missing.yaml", {})
    (tmp_path / "bin.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="it is not UTF-8"):
        load(Example, "agent", tmp_path / "bin.yaml", {})
