# SPDX-License-Identifier: Apache-2.0
"""Headers of the registry API that say something beside the content (OCI distribution-spec)."""

from __future__ import annotations

import re
from collections.abc import Iterable

from aiohttp import web
from multidict import CIMultiDict

API_VERSION = "Docker-Distribution-Api-Version"
CHUNK_MIN_LENGTH = "OCI-Chunk-Min-Length"
FILTERS_APPLIED = "OCI-Filters-Applied"
NAMESPACE = "OCI-Namespace"
SUBJECT = "OCI-Subject"
TAG = "OCI-Tag"

MAX_WARNINGS = 4096
"""Bytes that all Warning headers of an answer may have together ("Warnings")."""

_HOST = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?",
    re.ASCII,
)
_UNPRINTABLE = re.compile(r"[^ -~]")


async def describe_api(request: web.Request, response: web.StreamResponse) -> None:
    """Say on every answer under ``/v2/`` that this is a registry, and for which namespace.

    A client that uses Shoal as a mirror names the registry that it mirrors as ``ns`` ("Registry
    Proxying"). A cluster has one namespace, and whoever points a client at it for a host says that
    it holds this host's repositories; so it is the namespace that the answer is given for.
    """
    path = request.path
    if not (path.startswith("/v2/") or path == "/v2"):
        return
    response.headers[API_VERSION] = "registry/2.0"
    if "ns=" in request.query_string and request.method in {"GET", "HEAD"}:
        namespace = request.query.get("ns", "")
        if _HOST.fullmatch(namespace):
            response.headers[NAMESPACE] = namespace


def add_warnings(headers: CIMultiDict[str], texts: Iterable[str]) -> None:
    """Add a Warning header for each text, and leave out those that do not fit into the limit."""
    room = MAX_WARNINGS
    for text in texts:
        plain = _UNPRINTABLE.sub("?", text).replace("\\", "\\\\").replace('"', '\\"')
        line = f'299 - "{plain}"'
        if len(line) <= room:
            headers.add("Warning", line)
            room -= len(line)
