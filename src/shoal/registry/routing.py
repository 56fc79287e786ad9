# SPDX-License-Identifier: Apache-2.0
"""Which resource of the registry API a path means.

Repository names hold slashes, and any component may be called ``blobs``, ``uploads``,
``manifests``, ``referrers`` or ``tags``. What follows the name has a fixed number of components, so
a path is read from its right end: the name is whatever comes before. What is no name gets
NAME_INVALID, not a bare 404.
"""

from __future__ import annotations

from collections.abc import Iterator

from aiohttp import web
from aiohttp.typedefs import Handler

BASE = "/v2"
PING = "/v2{slash}"
CATALOG = "/v2/_catalog"
TAGS = "/v2/{name}/tags/list"
REFERRERS = "/v2/{name}/referrers/{digest}"
MANIFEST = "/v2/{name}/manifests/{reference}"
UPLOADS = "/v2/{name}/blobs/uploads{slash}"
UPLOAD = "/v2/{name}/blobs/uploads/{upload}"
BLOB = "/v2/{name}/blobs/{digest}"

_ROOT = BASE + "/"


def parse_path(path: str) -> tuple[str, dict[str, str]] | None:
    """Return the resource, and what stands for its variables; None when the API has no such path.

    An upload's path is taken for that, and not for a blob's: ``uploads`` is no digest.
    """
    if not path.startswith(_ROOT):
        return (PING, {"slash": ""}) if path == BASE else None
    if path in {_ROOT, CATALOG}:
        return (PING, {"slash": "/"}) if path == _ROOT else (CATALOG, {})
    front, _, last = path[len(_ROOT) :].rpartition("/")
    name, slash, kind = front.rpartition("/")
    if not slash:
        return None
    if kind == "uploads" or (kind == "blobs" and last == "uploads"):
        return _parse_upload(path[len(_ROOT) :])
    if kind == "tags":
        return (TAGS, {"name": name}) if last == "list" else None
    resource = _LAST.get(kind)
    if resource is None or not last:
        return None
    pattern, variable = resource
    return pattern, {"name": name, variable: last}


_LAST = {
    "manifests": (MANIFEST, "reference"),
    "blobs": (BLOB, "digest"),
    "referrers": (REFERRERS, "digest"),
}
"""The resources of one variable after the name, which is the last component."""


def _parse_upload(path: str) -> tuple[str, dict[str, str]] | None:
    if path.endswith("/blobs/uploads"):
        return UPLOADS, {"name": path.removesuffix("/blobs/uploads"), "slash": ""}
    front, _, upload = path.rpartition("/")
    name = front.removesuffix("/blobs/uploads")
    if name == front:
        return None
    if not upload:
        return UPLOADS, {"name": name, "slash": "/"}
    return UPLOAD, {"name": name, "upload": upload}


class RegistryPaths(web.DynamicResource):
    """Everything under ``/v2/`` as one entry of the router, which would try pattern by pattern."""

    def __init__(self) -> None:
        super().__init__(BASE + "/{path}")
        self._handlers: dict[str, dict[str, web.ResourceRoute]] = {}

    def add(self, path: str, method: str, handler: Handler) -> None:
        """Answer a method of one of the resources; ``*``: any that is not answered otherwise."""
        # The resource carries the path's name into metrics; the router never looks at it.
        route = web.ResourceRoute(method, handler, web.DynamicResource(path))
        self._handlers.setdefault(path, {})[method] = route

    async def resolve(
        self, request: web.Request
    ) -> tuple[web.UrlMappingMatchInfo | None, set[str]]:
        """Find who answers, as aiohttp's resources do."""
        parsed = parse_path(request.rel_url.path_safe)
        if parsed is None:
            return None, set()
        path, variables = parsed
        routes = self._handlers[path]
        route = routes.get(request.method) or routes.get("*")
        if route is None:
            return None, set(routes)
        for name, text in variables.items():
            if "%" in text:
                # The path leaves these two encoded: a slash of a variable separates nothing.
                variables[name] = text.replace("%2F", "/").replace("%25", "%")
        return web.UrlMappingMatchInfo(variables, route), set()

    def __len__(self) -> int:
        return sum(map(len, self._handlers.values()))

    def __iter__(self) -> Iterator[web.ResourceRoute]:
        return (route for routes in self._handlers.values() for route in routes.values())
