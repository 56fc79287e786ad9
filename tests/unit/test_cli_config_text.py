# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import SecretStr

from shoal.cli.config_text import lines
from shoal.config.load import load
from shoal.config.model import Config
from shoal.config.units import Bytes, Duration


class Disk(Config):
    limit: Bytes = 512 << 20
    hosts: tuple[str, ...] = ("a:1", "b:2")


class Sample(Config):
    name: str = "x: y"
    wait: Duration = 1.5
    password: SecretStr = SecretStr("hunter2")
    disk: Disk = Disk()


def shown(path: Path | None, environ: dict[str, str]) -> list[str]:
    return list(lines(load(Sample, "sample", path, environ)))


def test_every_value_has_its_origin_in_one_column(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("disk: {limit: 1GiB}\n")
    rows = shown(path, {"SHOAL_SAMPLE__WAIT": "2s"})
    assert [tuple(part.strip() for part in row.split("#")) for row in rows] == [
        ("name: 'x: y'", "default"),
        ("wait: 2s", "environment SHOAL_SAMPLE__WAIT"),
        ("password: '**********'", "default"),
        ("disk:",),
        ("limit: 1GiB", f"file {path}"),
        ("hosts: ['a:1', 'b:2']", "default"),
    ]
    assert len({row.index("#") for row in rows if "#" in row}) == 1


def test_a_secret_is_never_shown() -> None:
    text = "\n".join(shown(None, {"SHOAL_SAMPLE__PASSWORD": "sesame"}))
    assert "sesame" not in text
    assert "environment SHOAL_SAMPLE__PASSWORD" in text


def test_what_is_shown_is_a_config_file_that_means_the_same(tmp_path: Path) -> None:
    text = "\n".join(shown(None, {}))
    values = yaml.safe_load(text)
    assert values["disk"] == {"limit": "512MiB", "hosts": ["a:1", "b:2"]}
    values.pop("password")
    path = tmp_path / "again.yaml"
    path.write_text(yaml.safe_dump(values))
    assert load(Sample, "sample", path, {}).value == Sample()
