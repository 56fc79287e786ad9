# SPDX-License-Identifier: Apache-2.0
"""``shoal queue``: look at what a proxy still has to deliver, and decide about it.

Works on the queue's file, whether the proxy runs or not: a running one sees within a second or so
what was changed.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cli.failures import complain, config_faults, fail

if TYPE_CHECKING:
    from shoal.queue.database import QueueDatabase
    from shoal.queue.tasks import Task

ConfigFile = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="The proxy's config file.")
]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", metavar="DIR", help="The proxy's data_dir instead.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Keys = Annotated[list[str], typer.Argument(metavar="KEY...", help="Digests of blobs.")]
STATES = ("waiting", "running", "dead")


def register(main: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(
        no_args_is_help=True,
        help="What a proxy still has to deliver: look at it, retry it, drop it.",
        rich_markup_mode=None,
    )
    group.command("list")(_list)
    group.command("show")(_show)
    group.command("retry")(_retry)
    group.command("drop")(_drop)
    main.add_typer(group, name="queue")


def _state(name: str | None) -> str | None:
    if name is not None and name not in STATES:
        raise typer.BadParameter(f"{name!r} is not one of {', '.join(STATES)}")
    return name


def _list(
    *,
    config: ConfigFile = None,
    data_dir: DataDir = None,
    state: Annotated[
        str | None, typer.Option(callback=_state, metavar="|".join(STATES), help="Only these.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="Print at most so many.")] = 1000,
    as_json: AsJson = False,
) -> None:
    """List tasks, the oldest first; counts by state go to stderr."""
    from shoal.queue.tasks import State

    states = [State(name) for name in ([state] if state else STATES)]
    now = time.time()
    with _opened("list", config, data_dir) as database:
        tasks = database.tasks(states, limit)
        counts = database.counts()
    if as_json:
        typer.echo(json.dumps([_document(task, now) for task in tasks], indent=2))
    else:
        for task in tasks:
            typer.echo(_line(task, now))
    total = ", ".join(
        f"{counts[kind].tasks if kind in counts else 0} {kind}" for kind in map(State, STATES)
    )
    complain(total)


def _show(
    key: Annotated[str, typer.Argument(metavar="KEY", help="Digest of a blob.")],
    *,
    config: ConfigFile = None,
    data_dir: DataDir = None,
) -> None:
    """Print all that is known of one task, as JSON."""
    with _opened("show", config, data_dir) as database:
        tasks = database.find([key])
    if not tasks:
        raise fail("shoal queue show", LookupError(f"no task {key}: it is done, or never was"))
    typer.echo(json.dumps(_document(tasks[0], time.time()), indent=2))


def _retry(
    keys: Annotated[list[str] | None, typer.Argument(metavar="[KEY...]")] = None,
    *,
    dead: Annotated[bool, typer.Option("--dead", help="All that were given up.")] = False,
    config: ConfigFile = None,
    data_dir: DataDir = None,
) -> None:
    """Have tasks tried now, as if they were new; also those that were given up."""
    from shoal.queue.tasks import State

    if bool(keys) == dead:
        raise typer.BadParameter("name the tasks, or give --dead")
    with _opened("retry", config, data_dir) as database:
        wanted = list(keys or ())
        if dead:
            wanted = [task.key for task in database.tasks([State.DEAD], -1)]
        now = time.time()
        (changed,) = database.transact([lambda: database.retry(wanted, now)])
    _report("retry", "due now", wanted, changed)


def _drop(keys: Keys, *, config: ConfigFile = None, data_dir: DataDir = None) -> None:
    """Give up tasks for good. The proxy removes its copy: an acknowledged blob may be lost."""
    with _opened("drop", config, data_dir) as database:
        (changed,) = database.transact([lambda: database.drop(keys)])
    _report("drop", "dropped", keys, changed)


@contextmanager
def _opened(command: str, config: Path | None, data_dir: Path | None) -> Iterator[QueueDatabase]:
    from shoal.proxy.config import queue_file
    from shoal.queue.database import QueueDatabase, QueueUnusable

    path = queue_file(_data_dir(config) if data_dir is None else data_dir)
    try:
        database = QueueDatabase.open_beside(path)
        try:
            yield database
        finally:
            database.close()
    except (QueueUnusable, sqlite3.Error) as error:
        raise fail(f"shoal queue {command}", error) from None


def _data_dir(config: Path | None) -> Path:
    from shoal.config.load import load
    from shoal.proxy.config import ProxyConfig

    with config_faults():
        return load(ProxyConfig, "proxy", config, os.environ).value.data_dir


def _report(command: str, what: str, wanted: list[str], changed: list[str]) -> None:
    for key in changed:
        typer.echo(f"{what}: {key}")
    if missed := [key for key in wanted if key not in set(changed)]:
        for key in missed:
            complain(f"not in the queue, or being worked on now: {key}")
        error = LookupError(f"{len(missed)} of {len(wanted)} tasks were left as they are")
        raise fail(f"shoal queue {command}", error)


def _document(task: Task, now: float) -> dict[str, Any]:
    fields = asdict(task)
    fields["payload"] = json.loads(task.payload)
    return {**fields, "age_s": round(task.age(now), 1), "due_in_s": round(task.due - now, 1)}


def _line(task: Task, now: float) -> str:
    payload = json.loads(task.payload)
    about = " ".join(f"{name}={value}" for name, value in payload.items())
    failures = f" failures={task.failures}: {task.error}" if task.failures else ""
    return f"{task.state:7}  {task.age(now):>8.0f}s  {task.key}  {about}{failures}"
