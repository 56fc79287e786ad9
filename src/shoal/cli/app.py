# SPDX-License-Identifier: Apache-2.0
"""The command itself and its groups."""

from __future__ import annotations

from typing import Annotated

import typer

from shoal import __version__
from shoal.cli import (
    bench,
    chaos,
    cluster,
    config,
    gc,
    prefetch,
    queue,
    services,
    simulate,
    why,
)

main = typer.Typer(
    name="shoal",
    help="A peer-to-peer container registry.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"shoal {__version__}")
        raise typer.Exit


@main.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Take the options that stand before a command."""
    del version


services.register(main)
cluster.register(main)
config.register(main)
queue.register(main)
gc.register(main)
prefetch.register(main)
bench.register(main)
why.register(main)
simulate.register(main)
chaos.register(main)
