# SPDX-License-Identifier: Apache-2.0
"""``shoal proxy|origin|tracker|build-index|agent``: one service in the foreground."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from shoal.cli.failures import config_faults
from shoal.cli.origin import status
from shoal.cluster.roles import ROLES, Role

_HELP = {
    "proxy": "Take pushes (and pulls) over the OCI registry API.",
    "origin": "Keep blobs on disk and seed them.",
    "tracker": "Know who has what, and hand out peers.",
    "build-index": "Map tags to digests.",
    "agent": "Serve this host's pulls from the swarm.",
}

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="YAML file; the defaults hold without it."),
]
DieWith = Annotated[
    int | None,
    typer.Option("--die-with", metavar="PID", hidden=True, help="End with this parent process."),
]

Faults = Annotated[
    bool,
    typer.Option("--faults", hidden=True, help="Let tests inject faults. Never in production."),
]


def register(main: typer.Typer) -> None:
    """Add a command for each service."""
    for role in ROLES.values():
        if role.name == "origin":
            main.add_typer(_origin(role), name=role.name)
        else:
            main.command(role.name, help=_HELP[role.name])(_command(role))


def _command(role: Role) -> Callable[..., None]:
    def run(config: ConfigFile = None, die_with: DieWith = None) -> None:
        _run(role, config, die_with)

    return run


def _origin(role: Role) -> typer.Typer:
    """``shoal origin`` runs the service; ``shoal origin status`` asks those that run."""
    group = typer.Typer(invoke_without_command=True, help=_HELP[role.name], rich_markup_mode=None)

    @group.callback()
    def run(
        context: typer.Context,
        config: ConfigFile = None,
        die_with: DieWith = None,
        *,
        faults: Faults = False,
    ) -> None:
        if context.invoked_subcommand is None:
            _run(role, config, die_with, faults=faults)

    group.command("status")(status)
    return group


def _run(role: Role, config: Path | None, die_with: int | None, **options: bool) -> None:
    if die_with is not None:
        _die_with(die_with)
    from shoal.config.load import load

    with config_faults():
        loaded = load(role.config_model(), role.name, config, os.environ)
    role.run(loaded, **options)


def _die_with(parent: int) -> None:
    from shoal.cluster.lifeline import ParentGone, die_with

    try:
        die_with(parent)
    except ParentGone as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
