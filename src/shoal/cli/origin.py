# SPDX-License-Identifier: Apache-2.0
"""``shoal origin status``: whether every blob has its copies, and what is being done about it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from shoal.cli.failures import config_faults

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", help="The config of a service that names the origins."
    ),
]
Hosts = Annotated[
    str | None,
    typer.Option(
        "--origins", metavar="HOST:PORT,...", help="The origins to ask instead, without TLS."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def status(config: ConfigFile = None, origins: Hosts = None, *, as_json: AsJson = False) -> None:
    """Say of each origin what it owns, what is missing, and how repair and scrub get on.

    The exit status is 0 when all origins answered and are sure that all copies are there, and 1
    otherwise.
    """
    from shoal.cli.gc_run import hosts_of, tls_of
    from shoal.cli.origin_status import ask_all, document, is_whole, lines

    if (config is None) == (origins is None):
        raise typer.BadParameter("give one of --config and --origins")
    tls = None
    if config is not None:
        with config_faults():
            hosts, tls = list(hosts_of(config, "origins")), tls_of(config)
    else:
        hosts = [host.strip() for host in (origins or "").split(",") if host.strip()]
    answers = asyncio.run(ask_all(hosts, tls))
    if as_json:
        typer.echo(document(answers))
    else:
        for line in lines(answers):
            typer.echo(line)
    raise typer.Exit(0 if all(is_whole(answer) for answer in answers.values()) else 1)
