# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from shoal.buildindex.lookups import Question, lookup_answers, lookup_request
from shoal.model.digest import Digest
from shoal.model.manifest import FoundManifest
from shoal.web.client import Answer
from shoal.web.failures import Unreachable

OLD = FoundManifest(Digest.of(b"old"), "application/x", 3)
V1 = Question("manifest", "team/app", "v1")
V2 = Question("manifest", "team/app", "v2")
BLOB = Question("blob", "team/app", str(Digest.of(b"layer")))


def answer(body: bytes) -> Answer:
    return Answer("POST", "http://b1:5006/internal/lookup", 200, {}, body)


def test_answers_are_given_to_their_questions_whatever_the_order() -> None:
    questions = [BLOB, V1, V2]
    request = lookup_request(questions, rely=True)
    assert request.manifests == [("team/app", "v1"), ("team/app", "v2")]
    assert request.blobs == [("team/app", BLOB.reference)]
    assert request.rely
    found = b'{"digest":"%s","media_type":"application/x","size":3}' % str(OLD.digest).encode()
    body = b'{"manifests":[null,%s],"blobs":[true]}' % found
    assert lookup_answers(questions, answer(body)) == [True, False, OLD]


@pytest.mark.parametrize(
    "body",
    [
        b"not json",
        b'{"manifests":[],"blobs":[]}',
        b'{"manifests":[null],"blobs":[true,false]}',
        b'{"manifests":[{"digest":"sha256:no","media_type":"","size":0}],"blobs":[true]}',
    ],
)
def test_an_answer_that_does_not_fit_is_no_answer(body: bytes) -> None:
    with pytest.raises(Unreachable):
        lookup_answers([V1, BLOB], answer(body))
