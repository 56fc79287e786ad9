# SPDX-License-Identifier: Apache-2.0
"""``shoal bench push|pull``: what this machine and this version can do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from shoal.cli.failures import complain, fail
from shoal.cli.sizes import size_in_bytes

_Size = Annotated[int, typer.Option(parser=size_in_bytes, metavar="SIZE", help="Of the blob.")]
_Runs = Annotated[int, typer.Option(min=1, metavar="N", help="The figures are their medians.")]
_Dir = Annotated[
    Path | None,
    typer.Option(
        "--dir", exists=True, file_okay=False, writable=True, help="Where the data is kept."
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="Nothing but the JSON object.")]


def register(main: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(
        no_args_is_help=True,
        help="Measure on a cluster of its own. The last line is one JSON object.",
        rich_markup_mode=None,
    )
    group.command("push")(_push)
    group.command("pull")(_pull)
    main.add_typer(group, name="bench")


def _push(
    size: _Size = "1GiB",  # type: ignore[assignment] # typer parses the default, too
    runs: _Runs = 1,
    folder: _Dir = None,
    as_json: _Json = False,
) -> None:
    """Push one blob to three durable copies; compare with dd."""
    _run("push", size, runs, folder, as_json=as_json)


def _pull(
    size: _Size = "1GiB",  # type: ignore[assignment] # typer parses the default, too
    runs: _Runs = 1,
    folder: _Dir = None,
    as_json: _Json = False,
) -> None:
    """Pull one blob from an agent, cold and cached; compare with nginx when it is installed."""
    _run("pull", size, runs, folder, as_json=as_json)


def _run(name: str, size: int, runs: int, folder: Path | None, *, as_json: bool) -> None:
    from shoal.bench import report
    from shoal.bench.client import TransferFailed
    from shoal.bench.run import run
    from shoal.bench.yardstick import YardstickFailed
    from shoal.cluster.interrupt import Interrupted
    from shoal.cluster.ports import PortsTaken
    from shoal.cluster.room import NoRoom
    from shoal.cluster.supervisor import StartFailed

    try:
        result = run(name, size, runs, folder, complain)
    except Interrupted as error:
        raise fail(f"shoal bench {name}: stopped", error, 128 + error.number) from None
    except (NoRoom, PortsTaken, StartFailed, TransferFailed, YardstickFailed) as error:
        raise fail(f"shoal bench {name}", error) from None
    if not as_json:
        for line in report.lines(result):
            typer.echo(line)
    typer.echo(json.dumps(report.document(result)))
