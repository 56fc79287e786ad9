# SPDX-License-Identifier: Apache-2.0
"""Telling a disk that has no room from one that is broken."""

from __future__ import annotations

import errno
import sqlite3

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_UNREADABLE = frozenset({errno.EIO, errno.EUCLEAN, errno.EBADMSG})


def is_full(error: BaseException) -> bool:
    """Whether a write failed for lack of room: on the volume, in a quota, or by a size limit."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    return isinstance(error, OSError) and error.errno in _FULL


def is_unreadable(error: BaseException | None) -> bool:
    """Whether a read failed as the disk does not give back what it was given; no socket says so."""
    return isinstance(error, OSError) and error.errno in _UNREADABLE
