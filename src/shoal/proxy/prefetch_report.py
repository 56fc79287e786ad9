# SPDX-License-Identifier: Apache-2.0
"""What is said of an image that the origins were asked to have ready. Pure."""

from __future__ import annotations

import msgspec


class PrefetchReport(msgspec.Struct, frozen=True):
    """How much of an image the origins have, and how much is on its way to them."""

    repository: str
    reference: str
    """The tag or digest that was asked for."""

    digest: str
    ready: bool
    """All of it is there."""

    contents: int
    """Manifests, configs and layers of the image, each once."""

    size: int
    """Bytes of all of them."""

    coming: int
    """Of `contents`: those that are being fetched, or are next."""

    coming_size: int
    """Bytes of those."""

    elsewhere: list[str]
    """Digests of children of an index that the repository does not have."""
