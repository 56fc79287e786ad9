# SPDX-License-Identifier: Apache-2.0
"""A disk that fails at one step: the n-th call that changes something under a folder.

Product code has no hooks for this. The functions of `os` and `io` through which Python writes are
replaced, in a process of its own: it counts the steps of a scenario, then runs the scenario once
for each of them, in a fork that fails there, and looks at what is left in another fork, as a
process would that starts after it.
"""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, Self

Kind = Literal["ENOSPC", "EIO", "kill"]
KINDS: tuple[Kind, ...] = ("ENOSPC", "EIO", "kill")

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_TAKES_ROOM = frozenset(
    {"open", "write", "writev", "pwrite", "pwritev", "mkdir", "rename", "fsync"}
)
_MADE_OF = {"replace": "rename", "fdatasync": "fsync"}


@dataclass(frozen=True)
class Scenario:
    """What is run against a failing disk, each part with the folder it works in."""

    prepare: Callable[[Path], None]
    """Before anything fails."""

    open: Callable[[Path], Any]
    """In the process that will see the failure, still before it."""

    act: Callable[[Path, Any], Any]
    """What fails somewhere; it gets what `open` returned. What it returns was acknowledged."""

    check: Callable[[Path, Any], None]
    """After a restart: `AssertionError` unless all is as it should be. None: not acknowledged."""


class Disk:
    """Counts steps, and fails at one of them."""

    def __init__(self, root: Path, fail_at: int | None = None, kind: Kind = "EIO") -> None:
        self.root = str(root)
        self.fail_at = fail_at
        self.kind = kind
        self.steps: list[str] = []
        self._full = False

    def step(self, name: str, target: object, part: Callable[[], object] | None = None) -> None:
        """One step; `part` does the first half of it, if it can be done in part."""
        if not self._is_ours(target):
            return
        name = _MADE_OF.get(name, name)
        number = len(self.steps)
        self.steps.append(name)
        if self._full and name in _TAKES_ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if number != self.fail_at:
            return
        if part is not None:
            part()
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        # A disk that is full stays so; one that fails once may go on.
        self._full = self.kind == "ENOSPC"
        code = errno.ENOSPC if self._full else errno.EIO
        raise OSError(code, os.strerror(code))

    def _is_ours(self, target: object) -> bool:
        if isinstance(target, int):
            try:
                target = os.readlink(f"/proc/self/fd/{target}")
            except OSError:
                return False
        return os.fspath(target).startswith(self.root)  # type: ignore[call-overload,no-any-return]


@contextmanager
def failing(disk: Disk) -> Iterator[None]:
    """Put the disk behind `os` and `io`."""
    saved = {name: getattr(os, name) for name in _OS}
    saved_open = io.open
    for name, wrap in _OS.items():
        setattr(os, name, wrap(disk, name, saved[name]))
    io.open = _opening(disk, saved_open)
    try:
        yield
    finally:
        io.open = saved_open
        for name, function in saved.items():
            setattr(os, name, function)


def _plain(disk: Disk, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(target: Any, *args: Any, **kwargs: Any) -> Any:
        disk.step(name, target)
        return function(target, *args, **kwargs)

    return call


def _open(disk: Disk, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(path: Any, flags: int, *args: Any, **kwargs: Any) -> Any:
        if flags & _WRITING:
            disk.step(name, path)
        return function(path, flags, *args, **kwargs)

    return call


def _vectors(disk: Disk, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(descriptor: int, buffers: Any, *args: Any) -> Any:
        half = b"".join(buffers)
        disk.step(name, descriptor, lambda: function(descriptor, [half[: len(half) // 2]], *args))
        return function(descriptor, buffers, *args)

    return call


def _bytes(disk: Disk, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(descriptor: int, data: Any, *args: Any) -> Any:
        half = bytes(data)[: len(data) // 2]
        disk.step(name, descriptor, lambda: function(descriptor, half, *args))
        return function(descriptor, data, *args)

    return call


_OS: dict[str, Callable[[Disk, str, Callable[..., Any]], Callable[..., Any]]] = {
    "open": _open,
    "write": _bytes,
    "pwrite": _bytes,
    "writev": _vectors,
    "pwritev": _vectors,
    "fsync": _plain,
    "fdatasync": _plain,
    "ftruncate": _plain,
    "rename": _plain,
    "replace": _plain,
    "mkdir": _plain,
    "unlink": _plain,
    "utime": _plain,
}


def _opening(disk: Disk, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if isinstance(path, int) or set(mode) <= set("rbt"):
            return function(path, mode, *args, **kwargs)
        disk.step("open", path)
        return _File(disk, function(path, mode, *args, **kwargs))

    return call


class _File:
    """A file of `io`, whose writes do not go through `os`."""

    def __init__(self, disk: Disk, file: Any) -> None:
        self._disk = disk
        self._file = file

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: Any) -> Any:
        half = data[: len(data) // 2]
        self._disk.step("write", self._file.fileno(), lambda: self._write_now(half))
        return self._file.write(data)

    def _write_now(self, data: Any) -> None:
        self._file.write(data)
        self._file.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


# -- running --------------------------------------------------------------------------------------


def fail_everywhere(scenario: str, kind: Kind, folder: Path) -> list[str]:
    """Run the scenario, ``module:name``, with a failure at each of its steps, in another process.

    Returns the steps. Raises `AssertionError` with what was wrong, and at which step.
    """
    ended = subprocess.run(
        [sys.executable, "-m", "tests.faults", scenario, kind, str(folder)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return list(json.loads(ended.stdout.splitlines()[-1]))  # before it is what was logged


def _main(name: str, kind: Kind, folder: Path) -> list[str]:
    module, _, attribute = name.partition(":")
    scenario: Scenario = getattr(__import__(module, fromlist=[attribute]), attribute)
    steps: list[str] = _attempt(scenario, folder, None, kind)
    assert steps, f"{name} writes nothing under its folder"
    for number in _worth(steps):
        try:
            _attempt(scenario, folder, number, kind)
        except AssertionError as error:
            at = f"step {number + 1} of {len(steps)} ({steps[number]})"
            raise AssertionError(f"{name}: {kind} at {at}: {error}") from error
    return steps


def _worth(steps: list[str]) -> list[int]:
    """Of many equal steps in a row the first two, the one in the middle and the last two."""
    numbers = []
    for _, group in groupby(range(len(steps)), key=steps.__getitem__):
        run = list(group)
        numbers += run if len(run) <= 5 else [*run[:2], run[len(run) // 2], *run[-2:]]
    return numbers


def _attempt(scenario: Scenario, folder: Path, fail_at: int | None, kind: Kind) -> list[str]:
    root = Path(tempfile.mkdtemp(dir=folder))
    try:
        _forked(lambda: scenario.prepare(root))

        def act() -> tuple[list[str], Any]:
            opened = scenario.open(root)
            disk = Disk(root, fail_at, kind)
            acknowledged = None
            with failing(disk):
                try:
                    acknowledged = scenario.act(root, opened)
                except OSError:
                    assert fail_at is not None
            return disk.steps, acknowledged

        done = _forked(act)
        assert done is not None or (kind == "kill" and fail_at is not None), "it was killed"
        steps, acknowledged = done or ([], None)
        _forked(lambda: scenario.check(root, acknowledged))
        return list(steps)
    finally:
        shutil.rmtree(root)


def _forked(work: Callable[[], Any]) -> Any:
    """What `work` returns, as JSON has it, in a process of its own; None when it was killed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer = {"result": work()}
        except BaseException as error:  # noqa: BLE001 told to the parent
            answer = {"error": "".join(traceback.format_exception(error))}
        with os.fdopen(writing, "w") as pipe:
            json.dump(answer, pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    if not text:
        return None
    answer = json.loads(text)
    if "error" in answer:
        raise AssertionError(answer["error"])
    return answer["result"]


if __name__ == "__main__":
    print(json.dumps(_main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))))  # type: ignore[arg-type]
