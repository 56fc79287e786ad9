# SPDX-License-Identifier: Apache-2.0
"""Who answers which request under ``/v2/``."""

from __future__ import annotations

from collections.abc import Iterable

from aiohttp import web

from shoal.backend.upstreams import UpstreamConfig, UpstreamNames
from shoal.registry.base import Answers, refuse
from shoal.registry.blobs import Blobs, BlobWriter
from shoal.registry.catalog import Catalog
from shoal.registry.headers import describe_api
from shoal.registry.manifests import Manifests, ManifestWriter
from shoal.registry.namespaces import UPSTREAMS, of_this_cluster
from shoal.registry.ports import Reader, Writer
from shoal.registry.referrers import Referrers
from shoal.registry.routing import (
    BLOB,
    CATALOG,
    MANIFEST,
    PING,
    REFERRERS,
    TAGS,
    UPLOAD,
    UPLOADS,
    RegistryPaths,
)
from shoal.registry.tags import Tags
from shoal.registry.uploads import Uploads

_PULLS_ONLY = "this registry only serves pulls; push to the proxy of the cluster"
_NO_METHOD = "the registry API has no such method here"


def registry_routes(
    app: web.Application, reader: Reader, writer: Writer | None, *, upstreams: Iterable[str] = ()
) -> None:
    """Serve the OCI distribution API from `reader` and, where there is one, to `writer`.

    `upstreams` are the names of the registries that the cluster pulls through.
    The application is one of `shoal.web.server`, which knows deadlines and renders errors.
    """
    app[UPSTREAMS] = UpstreamNames(dict.fromkeys(upstreams, UpstreamConfig()))
    app.on_response_prepare.append(describe_api)
    blobs, manifests = Blobs(reader), Manifests(reader)
    pulls: dict[str, dict[str, Answers]] = {
        PING: _reading(_ping),
        CATALOG: _reading(Catalog(reader).list),
        TAGS: _reading(Tags(reader).list),
        REFERRERS: _reading(Referrers(reader).get),
        MANIFEST: {"GET": manifests.get, "HEAD": manifests.head},
        UPLOADS: {},
        UPLOAD: {},
        BLOB: {"GET": blobs.get, "HEAD": blobs.head},
    }
    pushes = {} if writer is None else _pushes(writer)
    paths = RegistryPaths()
    for path, reading in pulls.items():
        _route(paths, path, reading | pushes.get(path, {}), pulls_only=writer is None)
    app.router.register_resource(paths)


def _pushes(writer: Writer) -> dict[str, dict[str, Answers]]:
    uploads, manifests = Uploads(writer), ManifestWriter(writer)
    pushes: dict[str, dict[str, Answers]] = {
        MANIFEST: {"PUT": manifests.put, "DELETE": manifests.delete},
        UPLOADS: {"POST": uploads.post},
        UPLOAD: {
            "PATCH": uploads.patch,
            "PUT": uploads.put,
            "GET": uploads.get,
            "DELETE": uploads.delete,
        },
        BLOB: {"DELETE": BlobWriter(writer).delete},
    }
    return {
        path: {method: of_this_cluster(answer) for method, answer in answers.items()}
        for path, answers in pushes.items()
    }


def _route(
    paths: RegistryPaths, path: str, answers: dict[str, Answers], *, pulls_only: bool
) -> None:
    for method, answer in answers.items():
        paths.add(path, method, answer)
    allowed = ", ".join(sorted(answers)) or "GET, HEAD"
    paths.add(path, "*", refuse(_PULLS_ONLY if pulls_only else _NO_METHOD, allow=allowed))


def _reading(answer: Answers) -> dict[str, Answers]:
    return {"GET": answer, "HEAD": answer}


async def _ping(request: web.Request) -> web.StreamResponse:
    """Answer the version check: this is a registry, and it lets the client in."""
    del request
    return web.json_response({})
