# SPDX-License-Identifier: Apache-2.0
"""What an origin needs of the backends; `shoal.backend.matching.Backends` is what implements it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from shoal.backend.base import Backend, Name
from shoal.model.errors import Denied
from shoal.web.deadline import Deadline


class Matched(Protocol):
    """The backend of a repository."""

    @property
    def backend(self) -> Backend: ...

    @property
    def key(self) -> str:
        """What identifies the place where the repository's blobs go."""
        ...

    @property
    def upstream(self) -> bool:
        """Whether it is a registry that is only pulled through."""
        ...

    async def stored(self, name: Name, size: int, *, deadline: Deadline) -> bool:
        """Whether each storage behind it has the name with this many bytes."""
        ...


class Match(Protocol):
    """Finds the backend of a repository's blobs; None: there is none."""

    def for_blobs(self, repository: str) -> Matched | None: ...

    def key_for_blobs(self, repository: str) -> str | None:
        """The key of what `for_blobs` returns. From any thread."""
        ...


class BlobBackends:
    """Which backend a repository's blobs are read from, and which one they are written to."""

    def __init__(self, backends: Match, patterns: Sequence[str]) -> None:
        """`patterns` are those of the configured backends that hold blobs, for errors.

        When there are any, a push to a repository that matches none of them is refused.
        """
        self._backends = backends
        self._patterns = tuple(patterns)

    def source(self, repository: str) -> Matched | None:
        """Where blobs of the repository may be that no origin has."""
        return self._backends.for_blobs(repository)

    def leads_to(self, key: str, repository: str) -> bool:
        """Whether the repository's blobs are still read from the backend of this key."""
        return self._backends.key_for_blobs(repository) == key

    def has_none(self, repository: str) -> bool:
        """Whether the origins are the only place for a push there.

        Also while no repository has a backend: others may have one later, and then the same blob.
        """
        return self._backends.key_for_blobs(repository) is None

    def target(self, repository: str) -> Matched | None:
        """Where a push to the repository is written to; None: no backend is configured.

        Raises `Denied` when it could not be written, which is an error at the time of the push.
        """
        matched = self._backends.for_blobs(repository)
        if matched is None:
            if self._patterns:
                raise Denied(
                    f"no backend stores the blobs of {repository}: it matches none of the patterns "
                    f"{', '.join(self._patterns)}; nothing was kept. Push to another repository, "
                    "or add a backend for this one",
                    detail={"repository": repository, "patterns": list(self._patterns)},
                )
            return None
        if matched.upstream or matched.backend.read_only:
            what = "pulled through from" if matched.upstream else "read from"
            raise Denied(
                f"{repository} is {what} {matched.backend.description} and cannot be pushed to; "
                "nothing was kept",
                detail={"repository": repository, "storage": matched.backend.description},
            )
        return matched

    def takes_pushes(self, repository: str) -> bool:
        """Whether a push to the repository would be written to a backend."""
        try:
            return self.target(repository) is not None
        except Denied:
            return False
