# SPDX-License-Identifier: Apache-2.0
"""Tie a process to the one that started it, so that a killed supervisor leaves nothing behind."""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1


class ParentGone(Exception):
    """The process to die with is not this one's parent, or not any more."""


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent, process `parent`, has ended.

    SIGKILL: nobody is left who could end a process that takes its time to drain, and what a
    service has acknowledged is safe on disk. Raises `ParentGone` when there is nobody to die with.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_PDEATHSIG): {os.strerror(number)}")
    if os.getppid() != parent:
        raise ParentGone(f"process {parent} is not the parent of this one (it may have ended)")
