# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.fuzz manifest --seconds 600``: fuzz one parser, or all, as long as wanted."""

from __future__ import annotations

import argparse
import random
import sys
import time

from hypothesis import HealthCheck, given, seed, settings

from tests.fuzz.inputs import inputs
from tests.fuzz.targets import EXAMPLES, TARGETS

ROUND = 300
"""Inputs between two looks at the clock."""


def fuzz(name: str, seconds: float) -> int:
    """Try inputs on a target until the time is over; return how many. A failure is raised."""
    tried = 0
    until = time.monotonic() + seconds
    while time.monotonic() < until:

        def attempt(data: bytes) -> None:
            nonlocal tried
            tried += 1
            TARGETS[name](data)

        once = settings(
            max_examples=ROUND,
            deadline=None,
            database=None,
            print_blob=False,
            suppress_health_check=list(HealthCheck),
        )
        seed(random.getrandbits(64))(once(given(inputs(EXAMPLES[name]))(attempt)))()
    return tried


def main() -> int:
    """Fuzz, and say how much was tried; the smallest input that fails is printed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=[*TARGETS, "all"])
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target (default 60)")
    given_ = parser.parse_args()
    for name in TARGETS if given_.target == "all" else [given_.target]:
        print(f"{name}: {fuzz(name, given_.seconds)} inputs", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
