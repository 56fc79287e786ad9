# SPDX-License-Identifier: Apache-2.0
"""What a file holds: its digest, size and pieces in one reading. It blocks."""

from __future__ import annotations

import os
from io import FileIO

from shoal.model.digest import new_hasher
from shoal.swarm.metainfo import Metainfo, PieceHasher, piece_size_for

_READ = 1024 * 1024


def measure(file: FileIO, algorithm: str) -> Metainfo:
    """Read an open file once, from its start: its digest, size and pieces."""
    hasher = new_hasher(algorithm)
    buffer = memoryview(bytearray(_READ))
    pieces = PieceHasher(piece_size_for(os.fstat(file.fileno()).st_size))
    size = 0
    while count := file.readinto(buffer):
        hasher.update(buffer[:count])
        pieces.update(buffer[:count])
        size += count
    digest = f"{algorithm}:{hasher.hexdigest()}"
    return Metainfo(digest, size, pieces.piece_size, pieces.finish())
