# SPDX-License-Identifier: Apache-2.0
"""``shoal queue``: look at what a service still has to do, and decide about it.

Proxies deliver to origins, origins write to backends, build-indexes store tags there. Works on the
queues' files, whether the service runs or not: a running one sees within a second or so what was
changed.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cli.failures import complain, config_faults, fail
from shoal.cluster.roles import ROLES

if TYPE_CHECKING:
    from shoal.queue.database import QueueDatabase
    from shoal.queue.tasks import Task

WITH_QUEUES = ("proxy", "origin", "build-index")
"""Roles that have queues."""

STATES = ("waiting", "running", "dead")

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="The config file of the service."),
]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", metavar="DIR", help="The service's data_dir instead.")
]
OfQueue = Annotated[
    str | None,
    typer.Option("--queue", metavar="NAME", help="Only this queue; by default all it has."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Keys = Annotated[
    list[str], typer.Argument(metavar="KEY...", help="Tasks, by their keys or digests.")
]


def register(main: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(
        no_args_is_help=True,
        help="What a service still has to do: look at it, retry it, drop it.",
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
    queue: OfQueue = None,
    state: Annotated[
        str | None, typer.Option(callback=_state, metavar="|".join(STATES), help="Only these.")
    ] = None,
    limit: Annotated[
        int, typer.Option(min=1, metavar="N", help="Print at most so many of each queue.")
    ] = 1000,
    as_json: AsJson = False,
) -> None:
    """List tasks, the oldest first; counts by queue and state go to stderr."""
    from shoal.queue.tasks import State

    states = [State(name) for name in ([state] if state else STATES)]
    now = time.time()
    documents, totals = [], []
    with _opened("list", config, data_dir, queue) as queues:
        for name, database in queues.items():
            tasks = database.tasks(states, limit)
            documents += [_document(name, task, now) for task in tasks]
            counts = database.counts()
            numbers = (
                f"{counts[kind].tasks if kind in counts else 0} {kind}"
                for kind in map(State, STATES)
            )
            totals.append(f"{name}: {', '.join(numbers)}")
            if not as_json:
                for task in tasks:
                    typer.echo(_line(name, task, now))
    if as_json:
        typer.echo(json.dumps(documents, indent=2))
    for total in totals:
        complain(total)


def _show(
    key: Annotated[str, typer.Argument(metavar="KEY", help="A task, by its key or digest.")],
    *,
    config: ConfigFile = None,
    data_dir: DataDir = None,
    queue: OfQueue = None,
) -> None:
    """Print all that is known of one task, as JSON."""
    now = time.time()
    with _opened("show", config, data_dir, queue) as queues:
        found = [
            _document(name, task, now)
            for name, database in queues.items()
            for task in _named(database, key)
        ]
    if not found:
        raise fail("shoal queue show", LookupError(f"no task {key}: it is done, or never was"))
    for document in found:
        typer.echo(json.dumps(document, indent=2))


def _retry(
    keys: Annotated[list[str] | None, typer.Argument(metavar="[KEY...]")] = None,
    *,
    dead: Annotated[bool, typer.Option("--dead", help="All that were given up.")] = False,
    config: ConfigFile = None,
    data_dir: DataDir = None,
    queue: OfQueue = None,
) -> None:
    """Have tasks tried now, as if they were new; also those that were given up."""
    from shoal.queue.tasks import State

    if bool(keys) == dead:
        raise typer.BadParameter("name the tasks, or give --dead")
    now = time.time()
    wanted, changed = set(keys or ()), _Changed()
    with _opened("retry", config, data_dir, queue) as queues:
        for database in queues.values():
            if dead:
                wanted |= {task.key for task in database.tasks([State.DEAD], -1)}
            changed.by(database, wanted, lambda named: database.retry(named, now))  # noqa: B023
    changed.report("retry", "due now", wanted)


def _drop(
    keys: Keys,
    *,
    config: ConfigFile = None,
    data_dir: DataDir = None,
    queue: OfQueue = None,
) -> None:
    """Give up tasks for good. The service forgets the work: an acknowledged blob may be lost."""
    changed = _Changed()
    with _opened("drop", config, data_dir, queue) as queues:
        for database in queues.values():
            changed.by(database, set(keys), database.drop)
    changed.report("drop", "dropped", set(keys))


@contextmanager
def _opened(
    command: str, config: Path | None, data_dir: Path | None, only: str | None
) -> Iterator[dict[str, QueueDatabase]]:
    """The service's queues by their names."""
    from shoal.queue.database import QueueDatabase, QueueUnusable

    folder = (_data_dir(config) if data_dir is None else data_dir) / "queues"
    try:
        files = {path.stem: path for path in sorted(folder.glob("*.sqlite"))}
        if only is not None:
            files = {name: path for name, path in files.items() if name == only}
        if not files:
            raise QueueUnusable(f"there is no queue at {folder}/{only or '*'}.sqlite")
        with ExitStack() as stack:
            queues = {}
            for name, path in files.items():
                queues[name] = QueueDatabase.open_beside(path)
                stack.callback(queues[name].close)
            yield queues
    except (QueueUnusable, sqlite3.Error) as error:
        raise fail(f"shoal queue {command}", error) from None


def _data_dir(config: Path | None) -> Path:
    """Where the service keeps its data: a file that is no config of one role is that of another."""
    from shoal.config.load import ConfigError, load

    closest: ConfigError | None = None
    for name in WITH_QUEUES:
        try:
            loaded = load(ROLES[name].config_model(), name, config, os.environ)
        except ConfigError as error:
            if closest is None or len(error.faults) < len(closest.faults):
                closest = error
        else:
            folder: Path = loaded.value.data_dir  # type: ignore[attr-defined]
            return folder
    with config_faults():
        raise closest or ConfigError(())


def _named(database: QueueDatabase, key: str) -> list[Task]:
    """The task with this key, or those of this digest."""
    from shoal.queue.tasks import State

    if exact := database.find([key]):
        return exact
    tasks = database.tasks([State(state) for state in STATES], -1)
    return [task for task in tasks if key in task.key.replace("|", " ").split()]


class _Changed:
    """What a command did with the tasks that were named."""

    def __init__(self) -> None:
        self._keys: list[str] = []
        self._met: set[str] = set()

    def by(
        self,
        database: QueueDatabase,
        wanted: set[str],
        step: Callable[[list[str]], list[str]],
    ) -> None:
        """Do it to those of one queue."""
        named = {key: [task.key for task in _named(database, key)] for key in wanted}
        keys = sorted({task for tasks in named.values() for task in tasks})
        (changed,) = database.transact([lambda: step(keys)])
        self._keys += changed
        self._met |= {key for key, tasks in named.items() if set(tasks) & set(changed)}

    def report(self, command: str, what: str, wanted: set[str]) -> None:
        """Say it; the command fails when something was left as it is."""
        for key in self._keys:
            typer.echo(f"{what}: {key}")
        if missed := sorted(wanted - self._met):
            for key in missed:
                complain(f"not in the queue, or being worked on now: {key}")
            error = LookupError(f"{len(missed)} of {len(wanted)} tasks were left as they are")
            raise fail(f"shoal queue {command}", error)


def _document(queue: str, task: Task, now: float) -> dict[str, Any]:
    fields = asdict(task)
    fields["payload"] = json.loads(task.payload)
    age, due = round(task.age(now), 1), round(task.due - now, 1)
    return {"queue": queue, **fields, "age_s": age, "due_in_s": due}


def _line(queue: str, task: Task, now: float) -> str:
    payload = json.loads(task.payload)
    about = " ".join(f"{name}={value}" for name, value in payload.items())
    failures = f" failures={task.failures}: {task.error}" if task.failures else ""
    return f"{queue}  {task.state:7}  {task.age(now):>8.0f}s  {task.key}  {about}{failures}"
