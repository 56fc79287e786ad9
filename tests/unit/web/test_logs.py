# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import logging, sys
import structlog
from shoal.web.logs import LogConfig, configure

configure(LogConfig(level="info", format=sys.argv[1]), "agent")
log = structlog.get_logger()
log.debug("hidden")
log.info("pulled", digest="sha256:ab", size=5, why="a b", name="x\\nlevel=error")
logging.getLogger("aiohttp").warning("from %s", "a library\\nin two lines")
logging.getLogger("aiohttp").debug("hidden")
try:
    raise ValueError("wrong")
except ValueError:
    log.exception("failed")
"""


def logged(form: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, form],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_console_lines_cannot_be_forged_and_tracebacks_follow_indented() -> None:
    lines = logged("console")
    timed = [line.partition(" ") for line in lines if not line.startswith(" ")]
    assert [rest for _, _, rest in timed] == [
        'info    pulled digest=sha256:ab size=5 why="a b" name="x\\nlevel=error"',
        "warning from a library\\nin two lines",
        "error   failed",
    ]
    assert all(stamp.endswith("Z") for stamp, _, _ in timed)
    assert lines[-1] == "    ValueError: wrong"


def test_json_is_one_object_per_line() -> None:
    events = [json.loads(line) for line in logged("json")]
    assert [event["event"] for event in events] == [
        "pulled",
        "from a library\nin two lines",
        "failed",
    ]
    assert {event["service"] for event in events} == {"agent"}
    assert (events[0]["size"], events[1]["level"]) == (5, "warning")
    assert events[2]["exception"].endswith("ValueError: wrong")
