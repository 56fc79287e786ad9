# SPDX-License-Identifier: Apache-2.0
"""What a registry says to a plain request, for what no client asks or tells."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from ssl import SSLContext
from typing import Any, Final
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import HTTPSHandler, ProxyHandler, Request, build_opener

from tests.acceptance.clients import Reference

_TIMEOUT: Final = 30.0
_OPENER: Final = build_opener(ProxyHandler({}))


@dataclass(frozen=True)
class Answer:
    """Status, headers and body of an answer."""

    status: int
    headers: Message
    body: bytes

    @property
    def document(self) -> Any:
        """The body, which is JSON."""
        return json.loads(self.body)


def ask(
    url: str,
    method: str = "GET",
    *,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
    tls: SSLContext | None = None,
) -> Answer:
    """Send a request; a status from 400 on is an answer like any other.

    `tls`: whom to trust, and the certificate to show, where the URL is one of https.
    """
    request = Request(url, data=body, headers=dict(headers or {}), method=method)
    opener = _OPENER if tls is None else build_opener(ProxyHandler({}), HTTPSHandler(context=tls))
    try:
        with opener.open(request, timeout=_TIMEOUT) as answer:
            return Answer(answer.status, answer.headers, answer.read())
    except HTTPError as error:
        with error:
            return Answer(error.code, error.headers, error.read())


def manifest(reference: Reference, digest: str | None = None) -> Answer:
    """GET the manifest of a tag, or of a digest in the tag's repository."""
    return ask(f"{_repository(reference)}/manifests/{digest or reference.tag}")


def blob(reference: Reference, digest: str) -> Answer:
    """GET a blob of the reference's repository."""
    return ask(f"{_repository(reference)}/blobs/{digest}")


def referrers(reference: Reference, digest: str, artifact_type: str | None = None) -> Answer:
    """GET the list of what has the manifest `digest` as its subject."""
    query = f"?{urlencode({'artifactType': artifact_type})}" if artifact_type else ""
    return ask(f"{_repository(reference)}/referrers/{digest}{query}")


def put_manifest(reference: Reference, body: bytes, media_type: str) -> Answer:
    """PUT a manifest at the tag."""
    url = f"{_repository(reference)}/manifests/{reference.tag}"
    return ask(url, "PUT", headers={"Content-Type": media_type}, body=body)


def _repository(reference: Reference) -> str:
    return f"{reference.registry}/v2/{reference.repository}"
