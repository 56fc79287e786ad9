# SPDX-License-Identifier: Apache-2.0
"""Error bodies of the distribution spec."""

from __future__ import annotations

import json

import pytest

from shoal.model import errors
from shoal.model.digest import Digest
from shoal.model.errors import ApiError, BlobUnknown, ManifestBlobUnknown, Unavailable


def kinds() -> list[type[ApiError]]:
    return [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, ApiError)
    ]


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_every_error_has_the_body_of_the_spec(kind: type[ApiError]) -> None:
    error = kind("what was tried", detail={"digest": "x"})
    assert json.loads(json.dumps(error.body())) == {
        "errors": [{"code": kind.code, "message": "what was tried", "detail": {"digest": "x"}}]
    }
    assert kind.code == kind.code.upper()
    assert 400 <= kind.status < 600
    assert str(error) == "what was tried"


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_every_error_says_when_it_is_raised_with_its_status(kind: type[ApiError]) -> None:
    documented = kind is ApiError or (kind.__doc__ or "").startswith(f"{kind.status}: ")
    assert documented


def test_a_body_without_detail_has_no_detail() -> None:
    assert BlobUnknown("gone").body() == {"errors": [{"code": "BLOB_UNKNOWN", "message": "gone"}]}


def test_headers_are_the_errors_own() -> None:
    headers = {"Range": "0-5"}
    error = errors.UploadOutOfOrder("chunk", headers=headers)
    headers["Range"] = "changed"
    assert error.headers == {"Range": "0-5"}
    assert BlobUnknown("gone").headers == {}


def test_missing_blobs_are_all_named_in_the_detail_and_some_in_the_message() -> None:
    digests = [Digest.of(bytes([n])) for n in range(12)]
    error = ManifestBlobUnknown.missing(digests, "3 origins")
    names = sorted(map(str, digests))
    assert error.detail == {"missing": names}
    assert names[0] in error.message
    assert "3 origins" in error.message
    assert "12 blob(s)" in error.message
    assert error.message.count("sha256:") == 8


def test_unavailable_says_when_to_come_back() -> None:
    assert Unavailable("origins", retry_after=7).headers == {"Retry-After": "7"}
