# SPDX-License-Identifier: Apache-2.0
"""Platforms, as people write them and as indexes name them."""

from __future__ import annotations

import json

import pytest

from shoal.model.digest import Digest
from shoal.model.platforms import InvalidPlatform, Platform, platforms_of

ONE, TWO = Digest.of(b"1"), Digest.of(b"2")


@pytest.mark.parametrize("text", ["linux/amd64", "linux/arm/v7", "windows/amd64"])
def test_what_is_read_is_what_is_written(text: str) -> None:
    assert str(Platform.parse(text)) == text


@pytest.mark.parametrize("text", ["", "linux", "linux/", "a/b/c/d", "linux/amd64/", "LINUX/x"])
def test_what_is_no_platform_is_refused(text: str) -> None:
    with pytest.raises(InvalidPlatform, match="such as linux/amd64"):
        Platform.parse(text)


@pytest.mark.parametrize(
    "asked, image, fits",
    [
        ("linux/amd64", "linux/amd64", True),
        ("linux/amd64", "linux/arm64", False),
        ("linux/amd64", "windows/amd64", False),
        ("linux/arm64", "linux/arm64/v8", True),
        ("linux/arm64/v8", "linux/arm64", True),
        ("linux/arm/v7", "linux/arm/v6", False),
    ],
)
def test_a_variant_that_is_left_out_is_any(asked: str, image: str, fits: bool) -> None:
    assert Platform.parse(asked).runs(Platform.parse(image)) is fits


def test_an_index_says_what_its_children_are_for_or_does_not() -> None:
    def child(digest: object, platform: object) -> dict[str, object]:
        return {"digest": digest, "platform": platform}

    children = [
        child(str(ONE), {"os": "linux", "architecture": "amd64", "os.version": "1"}),
        child(str(ONE), {"os": "linux", "architecture": "arm", "variant": "v7"}),
        child(str(TWO), None),
        child(str(TWO), "linux/amd64"),
        child(str(TWO), {"os": 5, "architecture": []}),
        child("sha256:1", {"os": "linux", "architecture": "amd64"}),
    ]
    index = json.dumps({"manifests": children}).encode()
    expected = [Platform("linux", "amd64"), Platform("linux", "arm", "v7")]
    assert platforms_of(index) == {ONE: expected}


@pytest.mark.parametrize(
    "index",
    [
        b"",
        b"[]",
        b'{"manifests":[{"platform":"\xff"}]}',
        b'{"manifests":[{"platform":' + b"[" * 90_000,
    ],
)
def test_an_index_that_cannot_be_read_says_nothing(index: bytes) -> None:
    assert platforms_of(index) == {}
