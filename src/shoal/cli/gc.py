# SPDX-License-Identifier: Apache-2.0
"""``shoal gc``: remove what no tag, manifest or referrer reaches, or say what would go."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli.failures import complain, config_faults, fail

if TYPE_CHECKING:
    from shoal.cli.gc_run import Outcome

ConfigFile = Annotated[
    Path,
    typer.Option(
        "--config",
        metavar="FILE",
        help="A config that names the build-indexes and the origins: the proxy's, for example.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would go, and why.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _duration(text: str) -> float:
    from shoal.config.units import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


Grace = Annotated[
    float | None,
    typer.Option(
        parser=_duration,
        metavar="TIME",
        help="What was used within it stays (such as 24h); by default as the services' config "
        "says. Shorter than a push takes only when nobody pushes.",
    ),
]
Timeout = Annotated[
    float,
    typer.Option(parser=_duration, metavar="TIME", help="For the answer of one service."),
]


def register(main: typer.Typer) -> None:
    """Add the command."""
    main.command("gc")(_gc)


def _gc(
    config: ConfigFile,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    grace: Grace = None,
    timeout: Timeout = "10m",  # type: ignore[assignment]  # typer parses defaults, too
) -> None:
    """Remove what no tag, manifest or referrer reaches any more.

    Every build-index deletes records that nothing reaches, then every origin removes blobs of which
    no repository has a record. Nothing goes that was used within the grace time. When a service
    cannot be asked, the exit status is 1, and no blob is removed for which it might matter.
    """
    from shoal.cli.gc_run import load_targets, run
    from shoal.cli.gc_text import document, lines

    with config_faults():
        targets = load_targets(config)
    outcome = asyncio.run(run(targets, dry_run=dry_run, grace=grace, timeout=timeout))
    if as_json:
        typer.echo(document(outcome))
    else:
        for line in lines(outcome):
            typer.echo(line)
    _complain(outcome)


def _complain(outcome: Outcome) -> None:
    if not outcome.failures:
        return
    for failure in outcome.failures:
        complain(failure)
    if outcome.origins_asked:
        what = "what is said above is not all: run it again when all services answer"
    else:
        what = "no origin was asked to remove anything: run it again when all build-indexes answer"
    raise fail("shoal gc", RuntimeError(what))
