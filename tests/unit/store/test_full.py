# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import sqlite3
from pathlib import Path

import pytest

from shoal.store.full import is_full


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_disk_without_room_is_full(code: int) -> None:
    assert is_full(OSError(code, "no room"))


@pytest.mark.parametrize("code", [errno.EIO, errno.EROFS, errno.EACCES, None])
def test_a_broken_disk_is_not_full(code: int | None) -> None:
    assert not is_full(OSError(code, "broken"))


def test_a_database_without_room_is_full(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "db") as database:
        database.execute("pragma max_page_count = 3")
        database.execute("create table t (x)")
        with pytest.raises(sqlite3.OperationalError) as full:
            database.execute("insert into t values (zeroblob(100000))")
    database.close()
    assert is_full(full.value)
    assert not is_full(sqlite3.OperationalError("no such table"))
