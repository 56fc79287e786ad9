# SPDX-License-Identifier: Apache-2.0
"""The routes under ``/v2/``.

Repository names hold slashes, and any component may be called ``blobs``, ``uploads``, ``manifests``
or ``tags``. What follows the name has a fixed number of components, so each pattern is matched from
the right end of the path: the name is whatever comes before.
"""

from __future__ import annotations

from aiohttp import web

from shoal.registry.base import Answers, refuse
from shoal.registry.blobs import Blobs
from shoal.registry.catalog import Catalog
from shoal.registry.manifests import Manifests, ManifestWriter
from shoal.registry.ports import Reader, Writer
from shoal.registry.tags import Tags
from shoal.registry.uploads import Uploads

_NAME = r"{name:[\s\S]*}"  # whatever it is: what is no name gets NAME_INVALID, not a bare 404

PING = "/v2{slash:/?}"
CATALOG = "/v2/_catalog"
TAGS = f"/v2/{_NAME}/tags/list"
MANIFEST = f"/v2/{_NAME}/manifests/{{reference:[^/]+}}"
UPLOADS = f"/v2/{_NAME}/blobs/uploads{{slash:/?}}"
UPLOAD = f"/v2/{_NAME}/blobs/uploads/{{upload:[^/]+}}"
BLOB = f"/v2/{_NAME}/blobs/{{digest:[^/]+}}"

_PULLS_ONLY = "this registry only serves pulls; push to the proxy of the cluster"
_NO_DELETE = "this registry does not delete"


def registry_routes(app: web.Application, reader: Reader, writer: Writer | None) -> None:
    """Serve the OCI distribution API from `reader` and, where there is one, to `writer`.

    The application is one of `shoal.web.server`, which knows deadlines and renders errors.
    """
    app.on_response_prepare.append(_say_version)
    app.router.add_get(PING, _ping)
    app.router.add_get(CATALOG, Catalog(reader).list)
    app.router.add_get(TAGS, Tags(reader).list)
    app.router.add_get(MANIFEST, Manifests(reader).get)
    if writer is None:
        _refuse_pushes(app.router)
    else:
        _take_pushes(app.router, writer)
    blobs = Blobs(reader)
    app.router.add_route("HEAD", BLOB, blobs.head)
    app.router.add_get(BLOB, blobs.get, allow_head=False)


def _take_pushes(router: web.UrlDispatcher, writer: Writer) -> None:
    uploads = Uploads(writer)
    router.add_put(MANIFEST, ManifestWriter(writer).put)
    router.add_delete(MANIFEST, refuse(_NO_DELETE, allow="GET, HEAD, PUT"))
    router.add_post(UPLOADS, uploads.post)
    # Before the blobs: `uploads` is no digest.
    router.add_patch(UPLOAD, uploads.patch)
    router.add_put(UPLOAD, uploads.put)
    router.add_get(UPLOAD, uploads.get)
    router.add_delete(UPLOAD, uploads.delete)
    router.add_delete(BLOB, refuse(_NO_DELETE, allow="GET, HEAD"))


def _refuse_pushes(router: web.UrlDispatcher) -> None:
    refused: Answers = refuse(_PULLS_ONLY, allow="GET, HEAD")
    for path in (MANIFEST, UPLOADS, UPLOAD, BLOB):
        for method in ("POST", "PUT", "PATCH", "DELETE"):
            router.add_route(method, path, refused)


async def _ping(_request: web.Request) -> web.StreamResponse:
    """Answer the version check: this is a registry, and it lets the client in."""
    return web.json_response({})


async def _say_version(request: web.Request, response: web.StreamResponse) -> None:
    if request.path == "/v2" or request.path.startswith("/v2/"):
        response.headers["Docker-Distribution-Api-Version"] = "registry/2.0"
