# SPDX-License-Identifier: Apache-2.0
"""``shoal bench push|pull|race|api|swarm|tracker``: what this machine and this version can do."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from shoal.cli.failures import complain, fail
from shoal.cli.sizes import bytes_per_second, seconds, size_in_bytes

_Size = Annotated[int, typer.Option(parser=size_in_bytes, metavar="SIZE", help="Of the blob.")]
_Runs = Annotated[int, typer.Option(min=1, metavar="N", help="The figures are their medians.")]
_Dir = Annotated[
    Path | None,
    typer.Option(
        "--dir", exists=True, file_okay=False, writable=True, help="Where the data is kept."
    ),
]
_IDLE_S = 30.0

_Json = Annotated[bool, typer.Option("--json", help="Nothing but the JSON object.")]


def _setups(names: list[str] | None) -> list[str] | None:
    from shoal.bench.race import SETUPS

    return [_one_of(name, SETUPS) for name in names or ()] or None


def _late(kind: str) -> str:
    return _one_of(kind, ("manifests", "all"))


@dataclass(frozen=True, slots=True)
class _Uploads:
    """So many blobs of a size, as in ``50x64MiB``."""

    count: int
    size: int


def _uploads(text: str) -> _Uploads:
    number, by, size = text.partition("x")
    if not by or not number.isascii() or not number.isdigit() or not 1 <= int(number) <= 1000:
        raise typer.BadParameter(f"{text!r} is not a number up to 1000 and a size, as in 50x64MiB")
    return _Uploads(int(number), size_in_bytes(size))


def _one_of(value: str, known: Collection[str]) -> str:
    if value not in known:
        raise typer.BadParameter(f"{value!r} is not one of {', '.join(known)}")
    return value


def register(main: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(
        no_args_is_help=True,
        help="Measure on a cluster of its own. The last line is one JSON object.",
        rich_markup_mode=None,
    )
    group.command("push")(_push)
    group.command("pull")(_pull)
    group.command("race")(_race)
    group.command("api")(_api)
    group.command("swarm")(_swarm)
    group.command("tracker")(_tracker)
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


def _race(
    *,
    pushes: Annotated[int, typer.Option(min=1, metavar="N", help="To each set-up.")] = 500,
    setups: Annotated[
        list[str] | None,
        typer.Option(
            "--setup", metavar="NAME", callback=_setups, help="Only this one; may be repeated."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of images and faults.")] = 1,
    max_delay: Annotated[
        float,
        typer.Option(
            parser=seconds, metavar="DURATION", help="A late blob becomes visible within this."
        ),
    ] = "3s",  # type: ignore[assignment] # typer parses the default, too
    late_share: Annotated[
        float, typer.Option(min=0, max=1, help="Of the blobs that may be late, those that are.")
    ] = 0.1,
    late: Annotated[
        str, typer.Option(callback=_late, metavar="manifests|all", help="Which blobs may be late.")
    ] = "manifests",
    head_start: Annotated[
        float,
        typer.Option(
            parser=seconds, metavar="DURATION", help="From an image's last blob to its manifest."
        ),
    ] = "1s",  # type: ignore[assignment] # typer parses the default, too
    fail_rate: Annotated[
        float, typer.Option(min=0, max=1, help="Of the requests to origins, those that fail.")
    ] = 0.01,
    kill_origin: Annotated[
        bool, typer.Option(help="In Shoal's own set-ups, kill an origin and restart it.")
    ] = True,
    folder: _Dir = None,
    as_json: _Json = False,
) -> None:
    """Push images while origins are late and fail: what is lost to the race, in four set-ups."""
    from shoal.bench import race, race_report
    from shoal.cluster.interrupt import Interrupted
    from shoal.cluster.ports import PortsTaken
    from shoal.cluster.room import NoRoom
    from shoal.cluster.supervisor import StartFailed
    from shoal.web.failures import CallFailed

    conditions = race.Conditions(
        pushes=pushes,
        seed=seed,
        late=late,  # type: ignore[arg-type] # the callback has checked it
        late_share=late_share,
        max_delay=max_delay,
        head_start=head_start,
        fail_rate=fail_rate,
        kill_origin=kill_origin,
    )
    names = [name for name in race.SETUPS if not setups or name in setups]
    try:
        outcomes = race.run(names, conditions, folder, complain=complain)
    except Interrupted as error:
        raise fail("shoal bench race: stopped", error, 128 + error.number) from None
    except (CallFailed, NoRoom, PortsTaken, StartFailed) as error:
        raise fail("shoal bench race", error) from None
    if not as_json:
        for line in race_report.lines(outcomes):
            typer.echo(line)
    typer.echo(json.dumps(race_report.document(outcomes, conditions)))


def _api(
    *,
    tags: Annotated[
        int, typer.Option(min=2, metavar="N", help="Of the repository that is listed.")
    ] = 10_000,
    duration: Annotated[
        float, typer.Option("--seconds", parser=seconds, metavar="DURATION", help="Of each figure.")
    ] = "2s",  # type: ignore[assignment] # typer parses the default, too
    uploads: Annotated[
        _Uploads | None,
        typer.Option(
            parser=_uploads,
            metavar="NxSIZE",
            help="Instead: push so many blobs of this size at once, as in 50x64MiB.",
        ),
    ] = None,
    folder: _Dir = None,
    as_json: _Json = False,
) -> None:
    """Requests per second of the registry API, at the proxy and at an agent; small pushes."""
    from shoal.bench import api, api_report
    from shoal.bench import uploads as many
    from shoal.bench.client import TransferFailed
    from shoal.cluster.interrupt import Interrupted
    from shoal.cluster.ports import PortsTaken
    from shoal.cluster.room import NoRoom
    from shoal.cluster.supervisor import StartFailed

    try:
        if uploads is None:
            outcome = api.run(tags, duration, folder, complain)
            text, document = api_report.lines(outcome), api_report.document(outcome)
        else:
            at_once = many.run(uploads.count, uploads.size, folder, complain)
            text = api_report.uploads_lines(at_once)
            document = api_report.uploads_document(at_once)
    except Interrupted as error:
        raise fail("shoal bench api: stopped", error, 128 + error.number) from None
    except (NoRoom, PortsTaken, StartFailed, TransferFailed) as error:
        raise fail("shoal bench api", error) from None
    if not as_json:
        for line in text:
            typer.echo(line)
    typer.echo(json.dumps(document))


def _swarm(
    *,
    agents: Annotated[
        int, typer.Option(min=1, max=100, metavar="N", help="All pull at the same time.")
    ] = 8,
    size: _Size = "512MiB",  # type: ignore[assignment] # typer parses the default, too
    rate: Annotated[
        float,
        typer.Option(
            parser=bytes_per_second,
            metavar="RATE",
            help="Limit of each agent and origin in each direction, as in 12.5MB/s; 0: none.",
        ),
    ] = "0",  # type: ignore[assignment] # typer parses the default, too
    netns: Annotated[
        bool, typer.Option("--netns", help="Limit by the kernel, in network namespaces (as root).")
    ] = False,
    latency: Annotated[
        bool,
        typer.Option(
            "--latency", help="Instead: first bytes of cold blobs, and an image of 60 tiny layers."
        ),
    ] = False,
    idle: Annotated[
        int,
        typer.Option(
            min=0, metavar="N", help="Instead: what an agent with N blobs costs that nobody asks."
        ),
    ] = 0,
    runs: _Runs = 1,
    folder: _Dir = None,
    as_json: _Json = False,
) -> None:
    """Pull one new blob through many agents at once: how soon they have it, what it costs."""
    from shoal.bench import report, swarm, swarm_idle, swarm_latency, swarm_report
    from shoal.bench.client import TransferFailed
    from shoal.bench.swarm_network import NetworkFailed
    from shoal.cluster.interrupt import Interrupted
    from shoal.cluster.ports import PortsTaken
    from shoal.cluster.room import NoRoom
    from shoal.cluster.supervisor import StartFailed
    from shoal.web.failures import CallFailed

    if netns and not rate:
        raise typer.BadParameter("--netns needs a --rate")
    conditions = swarm.Conditions(agents, size, runs, rate, netns)
    try:
        if latency:
            measured = swarm_latency.run(size, runs, folder, complain)
            document = swarm_report.latency_document(measured, size)
        elif idle:
            document = swarm_idle.document(swarm_idle.run(idle, _IDLE_S, folder, complain))
        else:
            document = swarm_report.document(swarm.run(conditions, folder, complain), conditions)
    except Interrupted as error:
        raise fail("shoal bench swarm: stopped", error, 128 + error.number) from None
    except (CallFailed, NetworkFailed, NoRoom, PortsTaken, StartFailed, TransferFailed) as error:
        raise fail("shoal bench swarm", error) from None
    document = report.to_milli(document)
    if not as_json:
        for line in report.figure_lines(document):
            typer.echo(line)
    typer.echo(json.dumps(document))


def _tracker(
    *,
    peers: Annotated[int, typer.Option(min=1, metavar="N", help="In one swarm.")] = 15_000,
    zones: Annotated[int, typer.Option(min=1, metavar="Z", help="Of the peers.")] = 1,
    duration: Annotated[
        float, typer.Option("--seconds", parser=seconds, metavar="DURATION", help="Under load.")
    ] = "5s",  # type: ignore[assignment] # typer parses the default, too
    store: Annotated[
        str, typer.Option(metavar="STORE", help="As in the tracker's config.")
    ] = "memory",
    folder: _Dir = None,
    as_json: _Json = False,
) -> None:
    """Joins per second of one tracker, and its memory, with many peers in one swarm."""
    from shoal.bench import report, tracker
    from shoal.bench.client import TransferFailed
    from shoal.cluster.interrupt import Interrupted
    from shoal.cluster.ports import PortsTaken
    from shoal.cluster.room import NoRoom
    from shoal.cluster.supervisor import StartFailed
    from shoal.web.failures import CallFailed

    try:
        outcome = tracker.run(
            peers, duration, zones=zones, store=store, folder=folder, complain=complain
        )
    except Interrupted as error:
        raise fail("shoal bench tracker: stopped", error, 128 + error.number) from None
    except (CallFailed, NoRoom, PortsTaken, StartFailed, TransferFailed) as error:
        raise fail("shoal bench tracker", error) from None
    document = report.to_milli(tracker.document(outcome))
    if not as_json:
        for line in report.figure_lines(document):
            typer.echo(line)
    typer.echo(json.dumps(document))


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
