# SPDX-License-Identifier: Apache-2.0
"""Ids of upload sessions: they say which repository and which proxy a session belongs to. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import blake2b
from typing import Self

_FORM = re.compile(r"([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{8})", re.ASCII)


@dataclass(frozen=True, slots=True)
class UploadId:
    """``<session>-<binding to the repository>-<hash of the owning proxy's name>``.

    Every proxy of the cluster can read it: it holds no address, only the hash by which a proxy
    finds the owner among the neighbours that its own config names.
    """

    session: str
    binding: str
    owner: str

    @classmethod
    def of(cls, session: str, repository: str, owner: str) -> Self:
        """The id of a session of the proxy called `owner`."""
        return cls(session, _binding(session, repository), name_hash(owner))

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Read an id; None for what is none."""
        match = _FORM.fullmatch(text)
        return None if match is None else cls(*match.groups())

    def __str__(self) -> str:
        return f"{self.session}-{self.binding}-{self.owner}"

    def is_of(self, repository: str) -> bool:
        """Whether the session was opened in this repository."""
        return self.binding == _binding(self.session, repository)


def name_hash(name: str) -> str:
    """Stand for a proxy's name (``host:port``) in the ids of its sessions."""
    return blake2b(name.encode(), digest_size=4).hexdigest()


def _binding(session: str, repository: str) -> str:
    """Ties a session to its repository in a way that outlives the process."""
    return blake2b(repository.encode(), key=session.encode(), digest_size=8).hexdigest()
