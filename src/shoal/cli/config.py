# SPDX-License-Identifier: Apache-2.0
"""``shoal config show``: what is in force, and where each value came from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from shoal.cli.failures import config_faults
from shoal.cluster.roles import ROLES


def register(main: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(
        no_args_is_help=True, help="Look at the configuration.", rich_markup_mode=None
    )
    group.callback()(_group)
    group.command("show")(_show)
    main.add_typer(group, name="config")


def _group() -> None:
    """Look at the configuration."""


def _role(name: str) -> str:
    if name not in ROLES:
        raise typer.BadParameter(f"{name!r} is not one of {', '.join(ROLES)}")
    return name


def _show(
    service: Annotated[
        str, typer.Option(callback=_role, metavar="|".join(ROLES), help="Whose configuration.")
    ],
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The YAML file that the service is given.")
    ] = None,
) -> None:
    """Print every value in force and where it came from; secrets are masked.

    With neither a file nor environment variables: the defaults, and which keys have none.
    """
    from shoal.cli.config_text import default_lines, lines
    from shoal.config.load import load

    role = ROLES[service]
    if config is None and not any(name.startswith(role.variables) for name in os.environ):
        shown = default_lines(role.config_model())
    else:
        with config_faults():
            shown = lines(load(role.config_model(), role.name, config, os.environ))
    for line in shown:
        typer.echo(line)
