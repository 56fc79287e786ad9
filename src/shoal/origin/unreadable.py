# SPDX-License-Identifier: Apache-2.0
"""Looking at many copies on a disk that does not give all of them. It blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import structlog

from shoal.model.digest import Digest
from shoal.store.full import is_unreadable

log = structlog.get_logger()


def sizes_of(digests: Iterable[Digest], look: Callable[[Digest], int | None]) -> dict[Digest, int]:
    """Sizes of those that are there; one that the disk does not give hides none of the others.

    When it gives none at all, that is raised: it cannot be said what is there.
    """
    sizes = {}
    answered, failure = False, None
    for digest in digests:
        try:
            size = look(digest)
        except OSError as error:
            if not is_unreadable(error):
                raise
            note_unreadable(digest, failure := error)
            continue
        answered = True
        if size is not None:
            sizes[digest] = size
    if failure is not None and not answered:
        raise failure
    return sizes


def note_unreadable(digest: Digest, error: OSError) -> None:
    """Say that a copy is passed over."""
    log.error("the disk does not say whether a copy is there", digest=str(digest), error=str(error))
