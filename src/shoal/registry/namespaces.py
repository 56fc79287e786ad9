# SPDX-License-Identifier: Apache-2.0
"""Which repository of this cluster a request is about, where it names another registry.

A client that uses Shoal as a mirror names the registry that it mirrors: containerd by ``?ns=``
(distribution-spec, "Registry Proxying"), others by the first component of the path. What that
registry calls ``library/alpine`` is ``docker.io/library/alpine`` here. The name of a registry that
is no upstream of the cluster says nothing: whoever points a client at Shoal for it says that the
cluster holds its repositories under their plain names.
"""

from __future__ import annotations

from aiohttp import web

from shoal.backend.upstreams import UpstreamNames
from shoal.model.errors import Denied, NameInvalid
from shoal.model.names import InvalidName
from shoal.registry.base import Answers, parameter, repository

UPSTREAMS = web.AppKey("upstreams", UpstreamNames)
"""The upstreams of an application that serves the registry API."""


def internal_repository(request: web.Request) -> str:
    """The repository that a pull is about; raise `NameInvalid`."""
    name = repository(request)
    upstreams = request.app[UPSTREAMS]
    if not upstreams.any:
        return name
    return name_at(upstreams, parameter(request, "ns") or "", name, here=request.host)


def name_at(upstreams: UpstreamNames, registry: str, name: str, *, here: str) -> str:
    """What the repository `name` of a registry is called in this cluster; raise `NameInvalid`.

    `registry` is empty when none was named; `here` is what the caller calls this one.
    """
    try:
        if registry and registry.lower() != here.lower():
            mirrored = upstreams.internal(registry, name)
            if mirrored is not None:
                return mirrored
        return upstreams.canonical(name)
    except InvalidName as error:
        raise NameInvalid(
            f"{registry or 'the upstream'} has no such repository: {error}"
        ) from error


def of_this_cluster(answer: Answers) -> Answers:
    """Refuse what writes to a repository of an upstream."""

    async def refusing(request: web.Request) -> web.StreamResponse:
        name = internal_repository(request)
        remote = request.app[UPSTREAMS].remote(name)
        if remote is not None:
            raise Denied(
                f"{name} is {remote.repository} of {remote.registry}, which is only pulled through "
                f"here: push to {remote.registry}, or to another repository"
            )
        return await answer(request)

    return refusing
