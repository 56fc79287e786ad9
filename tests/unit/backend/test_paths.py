# SPDX-License-Identifier: Apache-2.0
"""Names and the paths at which they are stored."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.backend.base import BlobName, LinkName, TagName
from shoal.backend.paths import (
    BLOB_PATH,
    REPOSITORY_PATH,
    Layout,
    NoPath,
    check_blob_path,
    check_repository_path,
    check_root,
)
from shoal.model.digest import Digest

DIGEST = Digest.of(b"content")
ROOT = "docker/registry/v2"
GOOD_BLOB_PATHS = [
    BLOB_PATH,
    "{algorithm}/{hex}",
    "{hex}",
    "blobs/{hex:.2}/{hex:.4}/{hex}",
    "{repository}/{algorithm}-{hex}.blob",
]


def test_the_layout_is_that_of_distribution() -> None:
    layout = Layout()
    hexes = DIGEST.hex
    repository = f"{ROOT}/repositories/team/app"
    assert {
        layout.path(BlobName("team/app", DIGEST)): f"{ROOT}/blobs/sha256/{hexes[:2]}/{hexes}/data",
        layout.path(TagName("team/app", "v1")): f"{repository}/_manifests/tags/v1/current/link",
        layout.path(
            LinkName("team/app", DIGEST, "manifest")
        ): f"{repository}/_manifests/revisions/sha256/{hexes}/link",
        layout.path(
            LinkName("team/app", DIGEST, "blob")
        ): f"{repository}/_layers/sha256/{hexes}/link",
    } == {
        path: path
        for path in (
            f"{ROOT}/blobs/sha256/{hexes[:2]}/{hexes}/data",
            f"{repository}/_manifests/tags/v1/current/link",
            f"{repository}/_manifests/revisions/sha256/{hexes}/link",
            f"{repository}/_layers/sha256/{hexes}/link",
        )
    }


@pytest.mark.parametrize("template", GOOD_BLOB_PATHS)
@given(content=st.binary(max_size=8), root=st.sampled_from(["", "some/root"]))
def test_a_path_says_which_blob_it_is(template: str, content: bytes, root: str) -> None:
    layout = Layout(root, check_blob_path(template))
    algorithms = ("sha256", "sha512") if "{algorithm}" in template else ("sha256",)
    for algorithm in algorithms:
        digest = Digest.of(content, algorithm)
        path = layout.path(BlobName("team/app", digest))
        assert path.startswith(root)
        assert layout.digest("team/app", path) == digest
        assert layout.digest("team/app", path + "x") is None
        folder = layout.blobs("team/app")
        levels = path.removeprefix(f"{folder}/" if folder else "").split("/")
        patterns = layout.blob_levels("team/app")
        assert len(levels) == len(patterns)
        pairs = zip(patterns, levels, strict=True)
        assert all(pattern.fullmatch(level) for pattern, level in pairs)


def test_a_prefix_that_is_not_that_of_its_digest_is_no_blob() -> None:
    layout = Layout()
    path = layout.path(BlobName("a", DIGEST))
    wrong = path.replace(f"/{DIGEST.hex[:2]}/", "/zz/" if DIGEST.hex[:2] == "00" else "/00/")
    assert layout.digest("a", path) == DIGEST
    assert layout.digest("a", wrong) is None


def test_each_repository_has_its_own_copies_where_the_template_says_so() -> None:
    layout = Layout(blob_path="{repository}/{hex}")
    assert layout.by_repository
    assert layout.path(BlobName("a/b", DIGEST)) == f"a/b/{DIGEST.hex}"
    assert layout.digest("a", f"a/b/{DIGEST.hex}") is None
    assert not Layout().by_repository


def test_a_template_without_the_algorithm_has_no_place_for_another() -> None:
    layout = Layout(blob_path="{hex}")
    with pytest.raises(NoPath, match="algorithm"):
        layout.path(BlobName("a", Digest.of(b"x", "sha512")))


@pytest.mark.parametrize(
    "template, why",
    [
        ("blobs", "needs {hex}"),
        ("{hex}/{hex}", "needs {hex} once"),
        ("{hex}/{algorithm}", "in this order"),
        ("{hex}/{repository}", "in this order"),
        ("{hex}/{hex:.2}", "in this order"),
        ("{hex:2}/{hex}", "is not known"),
        ("{hex:.65}/{hex}", "is not known"),
        ("{hex:.0}/{hex}", "is not known"),
        ("{digest}/{hex}", "is not known"),
        ("{hex!r}", "is not known"),
        ("{algorithm.__class__}/{hex}", "is not known"),
        ("{repository}x/{hex}", "component of its own"),
        ("{algorithm}/{algorithm}/{hex}", "more than once"),
        ("/blobs/{hex}", "relative"),
        ("a/../{hex}", "relative"),
        ("a//{hex}", "relative"),
        ("a b/{hex}", "letters"),
        ("{hex", "expected '}'"),
    ],
)
def test_a_template_that_cannot_work_is_refused(template: str, why: str) -> None:
    with pytest.raises(ValueError, match=why.replace("{", r"\{").replace("}", r"\}")):
        check_blob_path(template)


@pytest.mark.parametrize(
    "template", ["repositories", "{repository}/x", "{repository}/{repository}", "x{repository}"]
)
def test_a_repository_path_ends_with_the_repository(template: str) -> None:
    with pytest.raises(ValueError, match="must end with"):
        check_repository_path(template)


def test_a_repository_path_may_be_elsewhere() -> None:
    layout = Layout("r", repository_path=check_repository_path("names/{repository}"))
    assert layout.path(TagName("a/b", "t")) == "r/names/a/b/_manifests/tags/t/current/link"
    assert layout.repositories == "r/names"
    assert Layout(repository_path="{repository}").repositories == ""
    assert check_repository_path(REPOSITORY_PATH) == REPOSITORY_PATH


@pytest.mark.parametrize("root", ["/a/b/", "a/b", ""])
def test_a_root_has_no_slashes_at_its_ends(root: str) -> None:
    assert check_root(root) == root.strip("/")


@pytest.mark.parametrize("root", ["a/../b", "..", "a//b", "a{b}"])
def test_a_root_that_is_no_path_is_refused(root: str) -> None:
    with pytest.raises(ValueError, match="root"):
        check_root(root)


@pytest.mark.parametrize(
    "name",
    [
        BlobName("../x", DIGEST),
        TagName("a/../b", "t"),
        TagName("a", "../t"),
        TagName("a", "a/b"),
        LinkName("", DIGEST, "blob"),
    ],
)
def test_what_is_no_name_has_no_path(name: BlobName | TagName | LinkName) -> None:
    with pytest.raises(NoPath):
        Layout(blob_path="{repository}/{hex}").path(name)
