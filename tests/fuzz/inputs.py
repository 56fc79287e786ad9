# SPDX-License-Identifier: Apache-2.0
"""Inputs for fuzzing: well-formed ones, damaged; and any bytes at all."""

from __future__ import annotations

import re

from hypothesis import strategies as st

_TOKENS = [b"%2f", b"%00", b"..", b"/", b":", b"-", b",", b'"', b"{", b"[", b"\\u0000", b"\r\n"]
_TOKENS += [b"-1", b"0", b"9" * 30, b"1e999", b"NaN", b"null", b"true", b"\xef\xbb\xbf", b"\xff"]
_WORD = re.compile(rb"[A-Za-z]+|[0-9]+")


@st.composite
def bred(draw: st.DrawFn, examples: list[bytes]) -> bytes:
    """An example after up to eight changes."""
    data = bytearray(draw(st.sampled_from(examples)))
    words = [*_TOKENS, *{word for example in examples for word in _WORD.findall(example)}]
    pieces = st.one_of(st.sampled_from(sorted(words)), st.binary(max_size=8))
    for _ in range(draw(st.integers(0, 8))):
        start = draw(st.integers(0, len(data)))
        stop = min(len(data), start + draw(st.integers(0, 40)))
        match draw(st.sampled_from(["replace", "insert", "remove", "repeat", "flip", "move"])):
            case "replace":
                data[start:stop] = draw(pieces)
            case "insert":
                data[start:start] = draw(pieces)
            case "remove":
                del data[start:stop]
            case "repeat":
                data[start:start] = data[start:stop] * draw(st.integers(1, 20))
            case "flip" if start < len(data):
                data[start] ^= 1 << draw(st.integers(0, 7))
            case _:
                moved = data[start:stop]
                del data[start:stop]
                place = draw(st.integers(0, len(data)))
                data[place:place] = moved
    return bytes(data)


def inputs(examples: list[bytes]) -> st.SearchStrategy[bytes]:
    """Damaged examples for the most part."""
    return st.one_of(bred(examples), bred(examples), bred(examples), st.binary(max_size=200))
