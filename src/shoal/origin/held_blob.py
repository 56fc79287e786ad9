# SPDX-License-Identifier: Apache-2.0
"""A copy of this host while it is sent: it stays, neither evicted nor swept, until that ends."""

from __future__ import annotations

import asyncio
import os
from contextlib import ExitStack

from shoal.web.bodies import FileBlob

Opened = tuple[int, int] | bytes | None
"""Descriptor and size of a copy's file, the content of a small one, or nothing: it is not here."""


class HeldBlob(FileBlob):
    """A copy's file, and what keeps the copy as long as this is open."""

    def __init__(self, file: int, size: int, held: ExitStack) -> None:
        """Take over an open descriptor, and what to let go of with it."""
        super().__init__(file, size)
        self._held = held

    async def close(self) -> None:
        with self._held:
            await super().close()


async def opened(opening: asyncio.Future[Opened]) -> Opened:
    """What was opened in a thread. A caller that is cancelled leaks no descriptor."""
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_close_unwanted)
        raise


def _close_unwanted(opening: asyncio.Future[Opened]) -> None:
    if opening.cancelled() or opening.exception() is not None:
        return
    match opening.result():
        case file, _:
            os.close(file)
