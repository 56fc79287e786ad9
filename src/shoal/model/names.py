# SPDX-License-Identifier: Apache-2.0
"""Repository names, tags and references (OCI distribution-spec, "Pulling manifests")."""

from __future__ import annotations

import re

from shoal.model.digest import Digest

MAX_NAME = 255
"""Many clients limit host and name together to 255 characters; a longer name is refused."""

_NAME = re.compile(
    r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*", re.ASCII
)
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}", re.ASCII)

DEFAULT_TAG = "latest"
"""The tag of an image that is named without one."""


class InvalidName(ValueError):
    """The text is not a repository name."""


class InvalidTag(ValueError):
    """The text is not a tag."""


def repository_name(text: str) -> str:
    """Return the text when it is a valid repository name; raise `InvalidName` otherwise."""
    if len(text) > MAX_NAME:
        raise InvalidName(f"a repository name has at most {MAX_NAME} characters, got {len(text)}")
    if _NAME.fullmatch(text) is None:
        raise InvalidName(
            f"{text!r} is not a repository name: components of a-z and 0-9, "
            "separated inside by one of . _ __ or dashes, joined by /"
        )
    return text


def tag_name(text: str) -> str:
    """Return the text when it is a valid tag; raise `InvalidTag` otherwise."""
    if _TAG.fullmatch(text) is None:
        raise InvalidTag(
            f"{text[:160]!r} is not a tag: 1 to 128 of letters, digits, '_', '.', '-', "
            "not starting with '.' or '-'"
        )
    return text


def reference(text: str) -> Digest | str:
    """A manifest reference: a digest when it holds a colon (tags cannot), else a tag.

    Raises `InvalidDigest` or `InvalidTag`.
    """
    return Digest.parse(text) if ":" in text else tag_name(text)


def split_tag(text: str) -> tuple[str, str]:
    """Split ``repository:tag``, the form in which the build-index keeps tags.

    Raises `InvalidName` or `InvalidTag`.
    """
    name, _, tag = text.rpartition(":")
    return repository_name(name), tag_name(tag)


def split_image(text: str) -> tuple[str, Digest | str]:
    """Repository and reference of ``name``, ``name:tag``, ``name@digest`` or ``name:tag@digest``.

    Raises `InvalidName`, `InvalidTag` or `InvalidDigest`.
    """
    named, at, digest = text.partition("@")
    name, colon, tag = named.rpartition(":")
    if not colon or "/" in tag:
        name, tag = named, DEFAULT_TAG
    return repository_name(name), Digest.parse(digest) if at else tag_name(tag)


def split_host(image: str) -> tuple[str, str]:
    """The registry that an image's name begins with, empty if with none, and the rest.

    As clients do: the first part is a host when it holds a dot or a port, or is ``localhost``.
    """
    first, slash, rest = image.partition("/")
    is_host = "." in first or ":" in first or first == "localhost"
    return (first, rest) if slash and is_host else ("", image)
