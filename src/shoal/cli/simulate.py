# SPDX-License-Identifier: Apache-2.0
"""``shoal simulate``: a swarm of thousands of hosts on a virtual clock."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from shoal.cli.failures import fail
from shoal.cli.sizes import seconds, size_in_bytes


def rate(text: str) -> int:
    """Bytes a second in ``300MB/s``."""
    if not text.endswith("/s"):
        raise typer.BadParameter("expected a rate with its unit, such as 300MB/s")
    return size_in_bytes(text.removesuffix("/s"))


def share(text: str) -> float:
    """0.05 for ``0.05``, ``5%`` and ``5``: a number above 1 can only be a percentage."""
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        raise typer.BadParameter("expected a share such as 0.05 or 5%") from None
    if text.endswith("%") or number > 1:
        number /= 100
    if not 0 <= number <= 1:
        raise typer.BadParameter("expected a share within 0 and 1, or 0% and 100%")
    return number


def moment(text: str) -> float:
    """Seconds in ``3s``, ``500ms`` and ``3``."""
    return float(text) if text.replace(".", "", 1).isdecimal() else seconds(text)


def register(main: typer.Typer) -> None:
    """Add the command."""
    main.command("simulate")(_simulate)


def _simulate(
    *,
    hosts: Annotated[int, typer.Option(min=1, help="That pull at the same time.")] = 2600,
    origins: Annotated[int, typer.Option(min=1, help="In the ring.")] = 5,
    image: Annotated[
        int, typer.Option(parser=size_in_bytes, metavar="SIZE", help="Of the whole image.")
    ] = "3GB",  # type: ignore[assignment] # typer parses the default, too
    layers: Annotated[int, typer.Option(min=1, help="Of the same size.")] = 2,
    line: Annotated[
        int,
        typer.Option("--rate", parser=rate, metavar="RATE", help="Of each link, up and down each."),
    ] = "300MB/s",  # type: ignore[assignment] # typer parses the default, too
    pieces: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Of a layer; by default as the product cuts it. Fewer run faster.",
        ),
    ] = None,
    zones: Annotated[int, typer.Option(min=1, help="Over which the hosts are spread.")] = 1,
    churn: Annotated[
        float,
        typer.Option(
            parser=share, metavar="P", help="Of the hosts, those that die and are replaced."
        ),
    ] = "0",  # type: ignore[assignment] # as above
    slow: Annotated[
        float,
        typer.Option(
            parser=share,
            metavar="P",
            help="Of the hosts, those that send at 1/10 and receive at 2/3 of the rate.",
        ),
    ] = "0",  # type: ignore[assignment] # as above
    kill_origin: Annotated[
        float | None,
        typer.Option(parser=moment, metavar="DURATION", help="One origin dies after this."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything that is left to chance.")] = 1,
    plot: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False, writable=True, metavar="FILE.svg", help="Draw pieces by host over time."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Nothing but the JSON object.")] = False,
) -> None:
    """Pull one image on many hosts at once, on a virtual clock, by the product's own rules."""
    from shoal.simulate import plot as plotting
    from shoal.simulate import report
    from shoal.simulate.run import Swarm
    from shoal.simulate.scenario import Scenario, cut

    scenario = Scenario(
        hosts=hosts,
        origins=origins,
        image=image,
        layers=layers,
        rate=line,
        pieces=pieces or cut(image // layers),
        zones=zones,
        churn=churn,
        slow=slow,
        kill_origin=kill_origin,
        seed=seed,
    )
    outcome = Swarm(scenario, watch=plot is not None).run()
    if plot is not None:
        try:
            plot.write_text(plotting.svg(outcome), encoding="utf-8")
        except OSError as error:
            raise fail(f"shoal simulate: --plot {plot}", error) from None
    if not as_json:
        for text in report.lines(outcome):
            typer.echo(text)
    typer.echo(json.dumps(report.document(outcome)))
