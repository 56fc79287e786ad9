# SPDX-License-Identifier: Apache-2.0
"""Digests: one spelling each, and nothing else passes."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.model.digest import ALGORITHMS, Digest, InvalidDigest

CONTENTS = st.binary(max_size=64)
NAMES = st.sampled_from(sorted(ALGORITHMS))


@given(CONTENTS, NAMES)
def test_parse_undoes_str(content: bytes, algorithm: str) -> None:
    digest = Digest.of(content, algorithm)
    assert Digest.parse(str(digest)) == digest
    assert digest.hex == hashlib.new(algorithm, content).hexdigest()


@given(CONTENTS, NAMES, st.integers(0, 64))
def test_hashing_in_parts_gives_the_same_digest(content: bytes, algorithm: str, cut: int) -> None:
    digest = Digest.of(content, algorithm)
    hasher = digest.hasher()
    hasher.update(content[:cut])
    hasher.update(memoryview(content)[cut:])
    assert hasher.hexdigest() == digest.hex


HEX = "0" * 64


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "sha256",
        "sha256:",
        f"sha256:{HEX[:-1]}",
        f"sha256:{HEX}0",
        f"sha256:{'A' * 64}",
        f"sha256:{'g' * 64}",
        f"sha256:{HEX[:-1]}\n",
        f"sha256:{HEX}\n",
        f" sha256:{HEX}",
        f"SHA256:{HEX}",
        f"sha512:{HEX}",
        f"md5:{HEX[:32]}",
        f"sha256+b64:{HEX}",
        "sha256:" + "\N{ARABIC-INDIC DIGIT ZERO}" * 64,
        f"sha256:../{HEX[:-3]}",
        HEX,
    ],
)
def test_what_is_not_a_digest_is_refused(text: str) -> None:
    with pytest.raises(InvalidDigest):
        Digest.parse(text)


@given(st.text(max_size=100) | st.text("sha256:0f", max_size=80))
def test_whatever_parses_is_its_own_text(text: str) -> None:
    try:
        digest = Digest.parse(text)
    except InvalidDigest:
        return
    assert str(digest) == text


def test_the_message_about_a_long_text_is_short() -> None:
    with pytest.raises(InvalidDigest) as caught:
        Digest.parse("x" * 1_000_000)
    assert len(str(caught.value)) < 400
