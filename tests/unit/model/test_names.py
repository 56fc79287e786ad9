# SPDX-License-Identifier: Apache-2.0
"""Names, tags and references of the distribution spec."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.model.digest import Digest, InvalidDigest
from shoal.model.names import (
    MAX_NAME,
    InvalidName,
    InvalidTag,
    reference,
    repository_name,
    split_host,
    split_tag,
    tag_name,
)

# As the distribution spec writes them.
SPEC_NAME = re.compile(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*\Z")
SPEC_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}\Z")

NAME_LIKE = st.text("ab0._-/A", max_size=20)
WORDS = st.text("ab0", min_size=1, max_size=4)
NAMES = st.lists(WORDS, min_size=1, max_size=5).flatmap(
    lambda words: st.sampled_from([".", "_", "__", "-", "---", "/"]).map(
        lambda separator: separator.join(words)
    )
)
TAGS = st.text("aZ0_.-", min_size=1, max_size=128).filter(SPEC_TAG.match)


@given(NAME_LIKE | st.text(max_size=10))
def test_a_name_is_what_the_spec_says(text: str) -> None:
    if SPEC_NAME.match(text):
        assert repository_name(text) == text
    else:
        with pytest.raises(InvalidName):
            repository_name(text)


@pytest.mark.parametrize("text", ["a", "library/alpine", "a.b/c_d/e__f/g---h", "0", "a/0/b"])
def test_names_in_use_are_taken(text: str) -> None:
    assert repository_name(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "", "/", "a/", "/a", "a//b", "A", "a___b", "a..b", "a._b", "-a", "a-", ".", "..", "a/..",
        "../a", "a b", "a\n", "a:b", "a@b", "ä", "a%2fb", "a\0",
    ],
)  # fmt: skip
def test_what_is_not_a_name_is_refused(text: str) -> None:
    with pytest.raises(InvalidName):
        repository_name(text)


def test_the_longest_name_is_taken_and_a_longer_one_refused() -> None:
    assert repository_name("a" * MAX_NAME)
    with pytest.raises(InvalidName, match=f"at most {MAX_NAME}"):
        repository_name("a" * (MAX_NAME + 1))


@pytest.mark.parametrize("text", ["a" + "-" * 200 + "!", "a_" * 100 + "!", "a/" * 120 + "!"])
def test_hopeless_names_are_refused_in_one_pass(text: str) -> None:
    with pytest.raises(InvalidName):
        repository_name(text)


@given(st.text("aZ0._-:", max_size=12) | st.text(max_size=10))
def test_a_tag_is_what_the_spec_says(text: str) -> None:
    if SPEC_TAG.match(text):
        assert tag_name(text) == text
    else:
        with pytest.raises(InvalidTag):
            tag_name(text)


@pytest.mark.parametrize(
    "text", ["", ".a", "-a", "a" * 129, "a/b", "a:b", "a\n", "ä", "\N{ARABIC-INDIC DIGIT ONE}"]
)
def test_what_is_not_a_tag_is_refused(text: str) -> None:
    with pytest.raises(InvalidTag):
        tag_name(text)


@pytest.mark.parametrize("text", ["latest", "v1.2.3", "_", "0", "A-b_c.d", "a" * 128])
def test_tags_in_use_are_taken(text: str) -> None:
    assert tag_name(text) == text


@given(TAGS)
def test_a_reference_without_a_colon_is_a_tag(tag: str) -> None:
    assert reference(tag) == tag


def test_a_reference_with_a_colon_is_a_digest() -> None:
    digest = Digest.of(b"x")
    assert reference(str(digest)) == digest
    with pytest.raises(InvalidDigest):
        reference("sha256:short")
    with pytest.raises(InvalidTag):
        reference("")


@given(NAMES, TAGS)
def test_a_tag_key_splits_into_its_parts(name: str, tag: str) -> None:
    assert split_tag(f"{name}:{tag}") == (name, tag)


@pytest.mark.parametrize("text", ["alpine", ":latest", "localhost:5000/a:b", "a:b:c"])
def test_a_tag_key_without_a_name_is_refused(text: str) -> None:
    with pytest.raises(InvalidName):
        split_tag(text)


def test_a_tag_key_without_a_tag_is_refused() -> None:
    with pytest.raises(InvalidTag):
        split_tag("alpine:")


@pytest.mark.parametrize(
    "image, host, rest",
    [
        ("team/app:v1", "", "team/app:v1"),
        ("app", "", "app"),
        ("app:v1", "", "app:v1"),
        ("registry.example/team/app:v1", "registry.example", "team/app:v1"),
        ("localhost/app", "localhost", "app"),
        ("127.0.0.1:5010/app@sha256:1", "127.0.0.1:5010", "app@sha256:1"),
    ],
)
def test_the_registry_that_an_image_names(image: str, host: str, rest: str) -> None:
    assert split_host(image) == (host, rest)
