# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from shoal.web.failures import (
    CallFailed,
    NotFound,
    Overloaded,
    Rejected,
    Unreachable,
    combined,
    remembered,
    retry_after,
)


def failure(kind: type[CallFailed], status: int | None) -> CallFailed:
    return kind("GET", "http://h/", "said so", status=status, body={"a": "b"}, retry_after=3.0)


FAILURES = [
    failure(NotFound, 404),
    failure(Unreachable, None),
    failure(Overloaded, 503),
    failure(Rejected, 403),
    combined("GET", "/x", "all of them", [failure(Rejected, 400), failure(NotFound, 404)]),
    combined("GET", "/x", "all of them", [failure(Rejected, 400)]),
]


@pytest.mark.parametrize("error", FAILURES, ids=str)
def test_a_failure_that_is_remembered_says_the_same(error: CallFailed) -> None:
    kept = remembered(error)
    assert type(kept) is type(error)
    assert str(kept) == str(error)
    assert (retry_after(kept) is None) == (retry_after(error) is None)


def test_what_is_remembered_holds_no_bodies_and_no_frames() -> None:
    raised = failure(Rejected, 403)
    with pytest.raises(Rejected):
        raise raised
    assert raised.__traceback__ is not None
    kept = remembered(raised)
    assert kept.body is None
    assert kept.__traceback__ is None
