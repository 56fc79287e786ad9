# SPDX-License-Identifier: Apache-2.0
"""``shoal chaos``: break a cluster again and again, and count what it lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from shoal.cli.failures import complain, fail


def register(main: typer.Typer) -> None:
    """Add the command."""
    main.command("chaos")(_chaos)


def _chaos(
    *,
    minutes: Annotated[
        float, typer.Option(min=0.1, metavar="M", help="Of faults; then all is counted.")
    ] = 5.0,
    seed: Annotated[int, typer.Option(help="Of images and faults.")] = 1,
    flaky: Annotated[
        float, typer.Option(min=0, max=0.9, help="Of the storage's answers, those that fail.")
    ] = 0.05,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--dir", exists=True, file_okay=False, writable=True, help="Where the data is kept."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Nothing but the JSON object.")] = False,
) -> None:
    """Push and pull while services are killed, stopped, wiped, filled and cut off.

    It starts a cluster of its own on this machine, with object storage that fails, too. In the end
    every push that was acknowledged is pulled from a fresh agent, by digest and by tag. The last
    line is one JSON object; the status is 1 when anything was lost, wrong or not repaired.
    """
    from shoal.chaos import report
    from shoal.chaos.run import Conditions, run
    from shoal.cluster.interrupt import Interrupted
    from shoal.cluster.layout import LayoutError
    from shoal.cluster.ports import PortsTaken
    from shoal.cluster.room import NoRoom
    from shoal.cluster.supervisor import StartFailed
    from shoal.config.model import LogConfig
    from shoal.web.logs import configure

    configure(LogConfig(level="error" if as_json else "info"), "chaos")
    try:
        outcome = run(Conditions(minutes * 60, seed, flaky), folder, complain=complain)
    except Interrupted as error:
        raise fail("shoal chaos: stopped", error, 128 + error.number) from None
    except (LayoutError, NoRoom, PortsTaken, StartFailed) as error:
        raise fail("shoal chaos", error) from None
    if not as_json:
        for text in report.lines(outcome):
            typer.echo(text)
    typer.echo(json.dumps(report.document(outcome)))
    raise typer.Exit(0 if outcome.good else 1)
