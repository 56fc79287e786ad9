# SPDX-License-Identifier: Apache-2.0
"""What the demo shows: bars on a terminal, lines anywhere else, and a table at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TransferSpeedColumn,
)
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Pushed:
    """Bytes pushed, and the seconds that it took."""

    size: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Pulled:
    """Bytes that an agent sent to its client in so many seconds, and where it had them from."""

    agent: str
    size: int
    seconds: float
    from_peers: int
    from_origins: int


class View:
    """The demo's output on a console."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def say(self, line: str) -> None:
        """Show a line."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def bars(self, names: Sequence[str], total: int) -> Iterator[Callable[[str, int], None]]:
        """Show a bar per name; call what this yields with a name and the bytes that came."""
        if not self._console.is_terminal:
            yield self._quarters(names, total)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
        )
        with Progress(*columns, console=self._console) as progress:
            tasks = {name: progress.add_task(name, total=total) for name in names}
            yield lambda name, size: progress.advance(tasks[name], size)

    def table(self, pushed: Pushed, pulled: Sequence[Pulled], total_s: float) -> None:
        """Show the figures; `total_s` is from the first pull's start to the last one's end."""
        table = Table("", "MB", "seconds", "MB/s", "from peers", "from origins")
        for column in table.columns[1:]:
            column.justify = "right"
        table.add_row("push", *_rate(pushed.size, pushed.seconds), "", "", end_section=True)
        for one in pulled:
            table.add_row(
                f"pull {one.agent}",
                *_rate(one.size, one.seconds),
                *_shares(one.from_peers, one.from_origins),
            )
        table.add_section()
        table.add_row(
            "pull, all",
            *_rate(sum(one.size for one in pulled), total_s),
            *_shares(
                sum(one.from_peers for one in pulled), sum(one.from_origins for one in pulled)
            ),
        )
        self._console.print(table)

    def _quarters(self, names: Sequence[str], total: int) -> Callable[[str, int], None]:
        received = dict.fromkeys(names, 0)

        def advance(name: str, size: int) -> None:
            before = received[name] * 4 // total
            received[name] += size
            if (now := received[name] * 4 // total) > before:
                self.say(f"{name}: {now * 25} %")

        return advance


def _rate(size: int, seconds: float) -> tuple[str, str, str]:
    return f"{size / 1e6:.0f}", f"{seconds:.2f}", f"{size / 1e6 / seconds:.0f}"


def _shares(from_peers: int, from_origins: int) -> tuple[str, str]:
    both = from_peers + from_origins
    if both == 0:
        return "-", "-"
    return f"{from_peers / both:.0%}", f"{from_origins / both:.0%}"
