# SPDX-License-Identifier: Apache-2.0
"""What a `get` brings when the content is in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator


class TextContent:
    """The content of a tag or a link, or a part of it."""

    def __init__(self, text: str, start: int = 0, stop: int | None = None) -> None:
        whole = text.encode()
        self.size = len(whole)
        self._part = whole[start:stop]

    async def chunks(self) -> AsyncIterator[bytes]:
        """The bytes of the part."""
        if self._part:
            yield self._part
