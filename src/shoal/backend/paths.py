# SPDX-License-Identifier: Apache-2.0
"""Where each name is stored: the layout of distribution, and others by template. Pure.

Without a template, an existing bucket or folder of distribution (or of Kraken's ``docker_tag`` and
``sharded_docker_blob``) is read and written as it is.
"""

from __future__ import annotations

import re
import string
from dataclasses import dataclass
from functools import cached_property

from shoal.backend.base import BlobName, Name, TagName
from shoal.model.digest import ALGORITHMS, Digest, InvalidDigest
from shoal.model.names import InvalidName, InvalidTag, repository_name, tag_name

BLOB_PATH = "docker/registry/v2/blobs/{algorithm}/{hex:.2}/{hex}/data"
REPOSITORY_PATH = "docker/registry/v2/repositories/{repository}"

_PRECISION = re.compile(r"\.([1-9][0-9]?)")
_LITERAL = re.compile(r"[A-Za-z0-9._/=-]*", re.ASCII)
_PLAIN = ("sha256",)
"""The algorithms of a blob path that does not name it."""


class NoPath(ValueError):
    """The layout has no place for such a name; the message says why."""


@dataclass(frozen=True)
class Layout:
    """Paths of names below a root.

    `blob_path` has ``{hex}``, before it ``{algorithm}`` and prefixes such as ``{hex:.2}``, and in
    front of all ``{repository}`` if each repository is to have its own copies. `repository_path`
    ends with ``{repository}``; links lie below it as in distribution.
    """

    root: str = ""
    blob_path: str = BLOB_PATH
    repository_path: str = REPOSITORY_PATH

    def path(self, name: Name) -> str:
        """Where the name's content is; raises `NoPath`."""
        if isinstance(name, BlobName):
            return self._blob(name)
        repository = self.repository(name.repository)
        if isinstance(name, TagName):
            return f"{self.tag(name)}/current/link"
        folder = "_layers" if name.kind == "blob" else "_manifests/revisions"
        return f"{repository}/{folder}/{name.digest.algorithm}/{name.digest.hex}/link"

    def tag(self, name: TagName) -> str:
        """The folder that holds all that is stored of a tag."""
        return f"{self.tags(name.repository)}/{_valid_tag(name.tag)}"

    def tags(self, repository: str) -> str:
        """The folder whose children are a repository's tags."""
        return f"{self.repository(repository)}/_manifests/tags"

    def repository(self, repository: str) -> str:
        """The folder of a repository."""
        valid = _valid_repository(repository)
        return self._below(self.repository_path.replace("{repository}", valid))

    @cached_property
    def repositories(self) -> str:
        """The folder that holds the folders of all repositories."""
        return self._below(self.repository_path.removesuffix("{repository}").rstrip("/"))

    @cached_property
    def by_repository(self) -> bool:
        """Whether each repository has its own copies of blobs."""
        return "{repository}" in self.blob_path

    @property
    def usual(self) -> bool:
        """Whether blobs are where distribution has them."""
        return self.blob_path == BLOB_PATH

    def blobs(self, repository: str) -> str:
        """The deepest folder that holds all blobs (of the repository, where each has its own)."""
        filled = self._filled(repository)
        return self._below(filled.partition("{")[0].rpartition("/")[0])

    def blob_levels(self, repository: str) -> tuple[re.Pattern[str], ...]:
        """What the components of a blob's path below `blobs` look like, one pattern for each."""
        filled = self._filled(repository)
        literal = filled.partition("{")[0].rpartition("/")[0]
        rest = filled[len(literal) :].lstrip("/")
        return tuple(re.compile(_pattern(part), re.ASCII) for part in rest.split("/"))

    def digest(self, repository: str, path: str) -> Digest | None:
        """The digest of the blob at a path; None: there is no blob of this layout there."""
        relative = path.removeprefix(f"{self.root}/") if self.root else path
        match = re.fullmatch(_pattern(self._filled(repository)), relative, re.ASCII)
        if match is None:
            return None
        parts = match.groupdict()
        try:
            found = Digest.parse(f"{parts.get('algorithm', _PLAIN[0])}:{parts['hex']}")
        except InvalidDigest:
            return None
        # Prefixes of the hex form must be those of this one.
        return found if self._blob(BlobName(repository, found)) == path else None

    def _blob(self, name: BlobName) -> str:
        digest = name.digest
        if "{algorithm}" not in self.blob_path and digest.algorithm not in _PLAIN:
            raise NoPath(
                f"blob_path {self.blob_path!r} has no {{algorithm}}, so {digest} has no place in it"
            )
        # str.format is given nothing but text, and the template was checked when it was loaded.
        filled = self._filled(name.repository)
        return self._below(filled.format(algorithm=digest.algorithm, hex=digest.hex))

    def _filled(self, repository: str) -> str:
        if not self.by_repository:
            return self.blob_path
        return self.blob_path.replace("{repository}", _valid_repository(repository))

    def _below(self, path: str) -> str:
        return "/".join(part for part in (self.root, path) if part)


def check_root(text: str) -> str:
    """Return a root without slashes at its ends; raise `ValueError` for one that is no path."""
    root = text.strip("/")
    if root:
        _check_literal(root, "root")
        _check_components(root, "root")
    return root


def check_blob_path(template: str) -> str:
    """Return the template if blobs can be stored and found by it; raise `ValueError` if not."""
    order = {"repository": 0, "algorithm": 1, "prefix": 2, "hex": 3}
    fields = [_kind(name, spec) for name, spec in _fields(template)]
    if fields.count("hex") != 1:
        raise ValueError("blob_path needs {hex} once, such as blobs/{algorithm}/{hex:.2}/{hex}")
    once = [name for name in ("repository", "algorithm") if fields.count(name) > 1]
    if once:
        raise ValueError(f"blob_path has {{{once[0]}}} more than once")
    if fields != sorted(fields, key=order.__getitem__):
        # Only then is the order of paths, in which storages list, the order of digests.
        raise ValueError(
            "blob_path must have {repository}, {algorithm}, prefixes such as {hex:.2} and {hex} in "
            "this order"
        )
    parts = template.split("/")
    if any("{repository}" in part and part != "{repository}" for part in parts):
        raise ValueError("in blob_path, {repository} must be a component of its own")
    _check_components(re.sub(r"\{[^}]*\}", "x", template), "blob_path")
    return template


def check_repository_path(template: str) -> str:
    """Return the template if repositories can be found by it; raise `ValueError` if not."""
    fields = _fields(template)
    if fields != [("repository", "")] or template.rsplit("/", maxsplit=1)[-1] != "{repository}":
        raise ValueError(
            "repository_path must end with {repository} as its last component, and have it once, "
            f"such as {REPOSITORY_PATH}"
        )
    _check_components(template.replace("{repository}", "x"), "repository_path")
    return template


def _fields(template: str) -> list[tuple[str, str]]:
    fields = []
    for literal, name, spec, conversion in string.Formatter().parse(template):
        _check_literal(literal, "a path template")
        if name is not None:
            if conversion:
                raise ValueError(f"{{{name}!{conversion}}} is not known")
            fields.append((name, spec or ""))
    return fields


def _kind(name: str, spec: str) -> str:
    if name == "hex" and spec:
        match = _PRECISION.fullmatch(spec)
        if match is None or int(match[1]) > min(ALGORITHMS.values()):
            raise ValueError(f"{{hex:{spec}}} is not known: {{hex:.2}} is the first two digits")
        return "prefix"
    if name not in ("repository", "algorithm", "hex") or spec:
        shown = f"{name}:{spec}" if spec else name
        raise ValueError(
            f"{{{shown}}} is not known: known are {{repository}}, {{algorithm}}, {{hex}} and the "
            "first digits, such as {hex:.2}"
        )
    return name


def _pattern(template: str) -> str:
    """A regular expression for the paths of a template whose repository is filled in."""
    pattern = ""
    for literal, name, spec, _ in string.Formatter().parse(template):
        pattern += re.escape(literal)
        if name is None:
            continue
        if spec:
            pattern += f"[0-9a-f]{{{spec.removeprefix('.')}}}"
        elif name == "algorithm":
            pattern += f"(?P<algorithm>{'|'.join(ALGORITHMS)})"
        else:
            pattern += "(?P<hex>[0-9a-f]+)"
    return pattern


def _check_literal(text: str, what: str) -> None:
    if _LITERAL.fullmatch(text) is None:
        raise ValueError(f"{what} may have letters, digits and . _ - = / only, got {text!r}")


def _check_components(path: str, what: str) -> None:
    if any(part in ("", ".", "..") for part in path.split("/")):
        raise ValueError(f"{what} must be a relative path without empty parts, '.' and '..'")


def _valid_repository(name: str) -> str:
    try:
        return repository_name(name)
    except InvalidName as error:
        raise NoPath(str(error)) from error


def _valid_tag(name: str) -> str:
    try:
        return tag_name(name)
    except InvalidTag as error:
        raise NoPath(str(error)) from error
