# SPDX-License-Identifier: Apache-2.0
"""How the commands fail: clear lines on stderr and an exit status, never a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

CONFIG_FAULT = 2
"""Exit status for a config that cannot be used."""


@contextmanager
def config_faults() -> Iterator[None]:
    """Print the faults of a config, one per line, and exit with `CONFIG_FAULT`."""
    from shoal.config.load import ConfigError

    try:
        yield
    except ConfigError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(CONFIG_FAULT) from None


def fail(command: str, error: Exception, status: int = 1) -> typer.Exit:
    """Print what failed as the last line on stderr, details above; raise what this returns."""
    for line in getattr(error, "details", ()):
        typer.echo(line, err=True)
    typer.echo(f"{command}: {error}", err=True)
    return typer.Exit(status)


def complain(line: str) -> None:
    """Print a line on stderr and go on."""
    typer.echo(line, err=True)
