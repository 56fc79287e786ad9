# SPDX-License-Identifier: Apache-2.0
"""What an agent remembers of the build-index's answers."""

from __future__ import annotations

from shoal.agent.membership import Membership, Said
from shoal.model.digest import Digest
from shoal.model.manifest import Descriptor, FoundManifest
from shoal.model.media_types import OCI_MANIFEST

BLOB, MANIFEST = Digest.of(b"blob"), Digest.of(b"manifest")
FOUND = FoundManifest(MANIFEST, OCI_MANIFEST, 8)


def test_nothing_is_known_that_was_not_confirmed() -> None:
    membership = Membership()
    assert not membership.has_blob("a", BLOB)
    assert membership.manifest("a", MANIFEST) is None
    assert not membership.has_learned("a", MANIFEST)


def test_what_was_confirmed_holds_for_that_repository_alone() -> None:
    membership = Membership()
    membership.confirm_blob("a", BLOB)
    membership.confirm_manifest("a", FOUND)
    assert membership.has_blob("a", BLOB)
    assert membership.manifest("a", MANIFEST) == FOUND
    assert not membership.has_blob("b", BLOB)
    assert membership.manifest("b", MANIFEST) is None


def test_a_blob_is_no_manifest_and_a_manifest_no_blob() -> None:
    membership = Membership()
    membership.confirm_blob("a", MANIFEST)
    membership.confirm_manifest("a", FoundManifest(BLOB, OCI_MANIFEST, 4))
    assert membership.manifest("a", MANIFEST) is None
    assert not membership.has_blob("a", BLOB)


def test_a_manifest_is_learned_once_in_each_repository() -> None:
    membership = Membership()
    membership.learned("a", MANIFEST)
    assert membership.has_learned("a", MANIFEST)
    assert not membership.has_learned("b", MANIFEST)


def test_what_is_denied_is_forgotten() -> None:
    membership = Membership()
    membership.confirm_blob("a", BLOB)
    membership.confirm_manifest("a", FOUND)
    membership.deny_blob("a", BLOB)
    membership.deny_manifest("a", MANIFEST)
    membership.deny_blob("a", BLOB)
    assert not membership.has_blob("a", BLOB)
    assert membership.manifest("a", MANIFEST) is None


def test_what_was_not_used_for_longest_makes_room() -> None:
    membership = Membership(capacity=2)
    first, second, third = (Digest.of(bytes([number])) for number in range(3))
    membership.confirm_blob("a", first)
    membership.confirm_blob("a", second)
    assert membership.has_blob("a", first)
    membership.confirm_blob("a", third)
    assert membership.has_blob("a", first)
    assert not membership.has_blob("a", second)
    assert membership.has_blob("a", third)


def test_what_a_manifest_says_of_a_blob_is_known_until_the_blob_is_denied() -> None:
    membership = Membership()
    config = Descriptor("application/json", Digest.of(b"config"), 2)
    layer = Descriptor("application/octet-stream", BLOB, 0)
    assert membership.said_of("a", BLOB) is None
    membership.confirm_blob("a", BLOB)
    assert membership.said_of("a", BLOB) is None
    membership.confirm_blobs("a", MANIFEST, [config, layer])
    membership.confirm_blob("a", BLOB)
    assert membership.said_of("a", config.digest) == Said(2, MANIFEST, 0)
    assert membership.said_of("a", BLOB) == Said(0, MANIFEST, 1)
    assert membership.said_of("b", BLOB) is None
    membership.deny_blob("a", BLOB)
    assert membership.said_of("a", BLOB) is None
    assert not membership.has_blob("a", BLOB)
