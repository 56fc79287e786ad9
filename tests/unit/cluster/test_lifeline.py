# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import select
import subprocess
import sys

KEEPER = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", '''
import os, sys
from shoal.cluster.lifeline import die_with
die_with(os.getppid())
print("tied", flush=True)
sys.stdin.read()
'''], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
sys.stdin.read()
"""


def test_a_tied_process_ends_when_its_parent_is_killed() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KEEPER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as keeper:
        assert keeper.stdout is not None
        # The pidfd becomes readable when the process has ended; the child would wait for ever.
        child = os.pidfd_open(int(keeper.stdout.readline()))
        keeper.kill()
    try:
        assert select.select([child], [], [], 10)[0]
    finally:
        os.close(child)


def test_a_process_whose_parent_is_gone_does_not_start() -> None:
    command = [sys.executable, "-m", "shoal", "tracker", "--die-with", "999999999"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 1
    assert "process 999999999 is not the parent" in ended.stderr
