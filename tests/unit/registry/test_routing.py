# SPDX-License-Identifier: Apache-2.0
"""Names hold slashes and may have components that look like the API's own words."""

from __future__ import annotations

from typing import cast
from urllib.parse import quote

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.registry.app import registry_routes
from shoal.registry.ports import Reader, Writer
from shoal.registry.routing import BLOB, CATALOG, MANIFEST, PING, REFERRERS, TAGS, UPLOAD, UPLOADS

DIGEST = "sha256:" + "0123456789abcdef" * 4
WORDS = st.sampled_from(["blobs", "uploads", "manifests", "referrers", "tags", "list"])
COMPONENTS = st.one_of(WORDS, st.from_regex(r"[a-z0-9]{1,8}([._-][a-z0-9]{1,8})?", fullmatch=True))
NAMES = st.lists(COMPONENTS, min_size=1, max_size=5).map("/".join)
TAG_TEXTS = st.one_of(WORDS, st.from_regex(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,20}", fullmatch=True))
UPLOAD_IDS = st.one_of(WORDS, st.uuids().map(lambda value: value.hex))


def router() -> web.UrlDispatcher:
    app = web.Application()
    registry_routes(app, cast("Reader", object()), cast("Writer", object()))
    return app.router


ROUTER = router()


async def resolve(method: str, path: str) -> tuple[str, dict[str, str]]:
    match = await ROUTER.resolve(make_mocked_request(method, path))
    resource = match.route.resource
    return ("" if resource is None else resource.canonical), dict(match)


@settings(deadline=None)
@given(NAMES, TAG_TEXTS)
async def test_a_tag_is_the_last_component(name: str, tag: str) -> None:
    for method in ("GET", "HEAD", "PUT", "DELETE"):
        assert await resolve(method, f"/v2/{name}/manifests/{tag}") == (
            MANIFEST,
            {"name": name, "reference": tag},
        )


@settings(deadline=None)
@given(NAMES, st.sampled_from(["GET", "HEAD", "DELETE"]), st.booleans())
async def test_a_digest_is_the_last_component(name: str, method: str, encoded: bool) -> None:
    path = quote(DIGEST, safe="") if encoded else DIGEST
    assert await resolve(method, f"/v2/{name}/blobs/{path}") == (
        BLOB,
        {"name": name, "digest": DIGEST},
    )
    assert await resolve(method, f"/v2/{name}/manifests/{path}") == (
        MANIFEST,
        {"name": name, "reference": DIGEST},
    )


@settings(deadline=None)
@given(NAMES)
async def test_a_subject_is_the_last_component(name: str) -> None:
    assert await resolve("GET", f"/v2/{name}/referrers/{DIGEST}") == (
        REFERRERS,
        {"name": name, "digest": DIGEST},
    )


@settings(deadline=None)
@given(NAMES, st.sampled_from(["", "/"]))
async def test_uploads_open_with_and_without_the_last_slash(name: str, slash: str) -> None:
    assert await resolve("POST", f"/v2/{name}/blobs/uploads{slash}") == (
        UPLOADS,
        {"name": name, "slash": slash},
    )


@settings(deadline=None)
@given(NAMES, UPLOAD_IDS, st.sampled_from(["PATCH", "PUT", "GET", "DELETE"]))
async def test_an_upload_is_the_last_component(name: str, upload: str, method: str) -> None:
    assert await resolve(method, f"/v2/{name}/blobs/uploads/{upload}") == (
        UPLOAD,
        {"name": name, "upload": upload},
    )


@settings(deadline=None)
@given(NAMES)
async def test_tags_are_listed_by_the_last_two_components(name: str) -> None:
    assert await resolve("GET", f"/v2/{name}/tags/list") == (TAGS, {"name": name})


@pytest.mark.parametrize("path", ["/v2", "/v2/"])
async def test_the_version_check_takes_both_spellings(path: str) -> None:
    assert (await resolve("GET", path))[0] == PING


async def test_the_catalog_is_no_repository() -> None:
    assert (await resolve("GET", "/v2/_catalog"))[0] == CATALOG


@pytest.mark.parametrize(
    "path",
    ["/v2/manifests/latest", "/v2/tags/list", "/v2/a/manifests/", "/v2/a/tags", "/v2x", "/v2/a"],
)
async def test_other_paths_lead_nowhere(path: str) -> None:
    assert (await resolve("GET", path))[0] == ""
