# SPDX-License-Identifier: Apache-2.0
"""What the mark phase condemns, and what it never does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.buildindex.clock import Version
from shoal.buildindex.garbage import (
    MAX_LISTED,
    Condemned,
    Contents,
    LiveLink,
    LiveManifest,
    Tally,
    Untagged,
    mark,
)

NOW = 1_000_000.0
GRACE = 3600.0
NODE = "0123456789abcdef"
OLD = Version(round((NOW - GRACE - 1) * 1000), 3, NODE)
YOUNG = Version(round((NOW - GRACE + 1) * 1000), 3, NODE)


def manifest(
    name: str, *references: str, subject: str | None = None, version: Version = OLD
) -> LiveManifest:
    return LiveManifest(name, version, 100, references, subject)


def contents(
    manifests: Sequence[LiveManifest] = (),
    *,
    tags: Mapping[str, str] | None = None,
    links: Sequence[LiveLink] = (),
) -> Contents:
    return Contents("library/app", tags or {}, manifests, links)


def condemned(held: Contents, untagged: Untagged = "remove") -> list[Condemned]:
    return mark(held, now=NOW, grace=GRACE, untagged=untagged)


def names(held: Contents, untagged: Untagged = "remove") -> set[str]:
    return {one.name for one in condemned(held, untagged)}


def test_a_link_that_no_manifest_references_goes_when_it_is_old() -> None:
    held = contents(links=[LiveLink("old", OLD), LiveLink("young", YOUNG)])
    [one] = condemned(held)
    assert (one.kind, one.repository, one.name) == ("blob", "library/app", "old")
    assert one.version_observed == OLD
    assert "no manifest" in one.why


def test_what_a_live_manifest_references_stays() -> None:
    held = contents(
        [manifest("m", "config", "layer")],
        tags={"v1": "m"},
        links=[LiveLink("config", OLD), LiveLink("layer", OLD), LiveLink("orphan", OLD)],
    )
    assert names(held) == {"orphan"}


def test_the_target_of_a_tag_stays_though_it_has_no_manifest_record() -> None:
    held = contents(tags={"v1": "file"}, links=[LiveLink("file", OLD)])
    assert names(held) == set()


def test_untagged_manifests_stay_unless_they_are_to_be_removed() -> None:
    held = contents([manifest("m", "layer")], links=[LiveLink("layer", OLD)])
    assert names(held, "keep") == set()
    assert names(held, "remove") == {"m", "layer"}


def test_an_index_keeps_its_children_and_their_blobs() -> None:
    held = contents(
        [manifest("index", "child"), manifest("child", "layer")],
        tags={"v1": "index"},
        links=[LiveLink("layer", OLD)],
    )
    assert names(held) == set()


def test_a_young_index_keeps_old_children_while_its_tag_is_on_its_way() -> None:
    held = contents([manifest("index", "child", version=YOUNG), manifest("child")])
    assert names(held) == set()


def test_referrers_live_as_long_as_their_subject() -> None:
    chain = [
        manifest("image"),
        manifest("signature", subject="image"),
        manifest("attestation", subject="signature"),
    ]
    assert names(contents(chain, tags={"v1": "image"})) == set()
    assert names(contents(chain)) == {"image", "signature", "attestation"}


def test_a_referrer_does_not_keep_its_subject() -> None:
    held = contents(
        [manifest("image"), manifest("signature", subject="image")], tags={"sig": "signature"}
    )
    assert names(held) == {"image"}


def test_a_referrer_whose_subject_is_not_here_counts_as_untagged() -> None:
    [one] = condemned(contents([manifest("signature", subject="nowhere")]))
    assert (one.name, one.size) == ("signature", 100)
    assert "nowhere" in one.why


@pytest.mark.parametrize("untagged", ["keep", "remove"])
def test_cycles_are_harmless(untagged: Untagged) -> None:
    held = contents([manifest("a", "b", subject="b"), manifest("b", "a", subject="a")])
    assert names(held, untagged) == (set() if untagged == "keep" else {"a", "b"})


def test_an_index_bomb_is_walked_once_per_manifest() -> None:
    """2^30 ways lead from the top of 31 levels to the bottom; a walk of each would not end."""
    levels = [manifest(f"{n}{side}", f"{n + 1}a", f"{n + 1}b") for n in range(30) for side in "ab"]
    bottom = [manifest("30a", "layer"), manifest("30b", "layer")]
    held = contents(
        [manifest("top", "0a", "0b"), *levels, *bottom],
        tags={"bomb": "top"},
        links=[LiveLink("layer", OLD)],
    )
    assert names(held) == set()
    untagged = contents(held.manifests, links=held.links)
    assert len(names(untagged)) == 1 + 60 + 2 + 1


def test_the_age_counts_from_now_so_without_grace_only_what_is_older_than_now_goes() -> None:
    at = Version(round(NOW * 1000), 0, NODE)
    held = contents(links=[LiveLink("now", at), LiveLink("before", OLD)])
    gone = mark(held, now=NOW, grace=0.0, untagged="keep")
    assert [one.name for one in gone] == ["before"]


@pytest.mark.parametrize("seen", [OLD, Version(5, 2**31 - 1, NODE)])
def test_a_tombstone_wins_over_what_was_judged_and_loses_to_any_renewal(seen: Version) -> None:
    tombstone = Condemned("blob", "r", "d", "why", seen).tombstone()
    assert tombstone > seen
    assert Version(seen.wall_ms + 2, 0, "0" * 16) > tombstone


# -- for all repositories -----------------------------------------------------------------------

DIGESTS = [f"d{n}" for n in range(8)]
VERSIONS = st.sampled_from([OLD, YOUNG])


@st.composite
def repositories(draw: st.DrawFn) -> Contents:
    digests = st.sampled_from(DIGESTS)
    manifests = [
        LiveManifest(
            digest,
            draw(VERSIONS),
            10,
            tuple(draw(st.lists(digests, max_size=3))),
            draw(st.none() | digests),
        )
        for digest in draw(st.sets(digests))
    ]
    links = [LiveLink(digest, draw(VERSIONS)) for digest in draw(st.sets(digests))]
    tags = draw(st.dictionaries(st.sampled_from(["v1", "v2"]), digests))
    return Contents("r", tags, manifests, links)


def reached_by_definition(held: Contents, untagged: Untagged) -> set[str]:
    """The manifests that stay, by rules applied until nothing changes."""
    stay = {
        m.digest
        for m in held.manifests
        if untagged == "keep" or m.digest in held.tags.values() or m.version == YOUNG
    }
    while True:
        more = {
            m.digest
            for m in held.manifests
            if m.subject in stay
            or any(m.digest in other.references for other in held.manifests if other.digest in stay)
        }
        if more <= stay:
            return stay
        stay |= more


@given(repositories(), st.sampled_from(["keep", "remove"]))
def test_exactly_what_is_old_and_unreachable_is_condemned(
    held: Contents, untagged: Untagged
) -> None:
    stay = reached_by_definition(held, untagged)
    needed = {
        *held.tags.values(),
        *(target for m in held.manifests if m.digest in stay for target in m.references),
    }
    gone = condemned(held, untagged)
    assert {one.name for one in gone if one.kind == "manifest"} == {
        m.digest for m in held.manifests
    } - stay
    assert {one.name for one in gone if one.kind == "blob"} == {
        link.digest for link in held.links if link.digest not in needed and link.version == OLD
    }


def without(held: Contents, gone: Sequence[Condemned]) -> Contents:
    deleted = {(one.kind, one.name) for one in gone}
    return Contents(
        held.repository,
        held.tags,
        [m for m in held.manifests if ("manifest", m.digest) not in deleted],
        [link for link in held.links if ("blob", link.digest) not in deleted],
    )


@given(repositories(), st.sampled_from(["keep", "remove"]))
def test_a_second_run_finds_nothing_more(held: Contents, untagged: Untagged) -> None:
    assert condemned(without(held, condemned(held, untagged)), untagged) == []


def mentions(all_of: Sequence[Contents]) -> dict[str, int]:
    """As a build-index counts them: records of the digest, tags and references, everywhere."""
    count = dict.fromkeys(DIGESTS, 0)
    for held in all_of:
        for digest in (
            *held.tags.values(),
            *(link.digest for link in held.links),
            *(m.digest for m in held.manifests),
            *(target for m in held.manifests for target in set(m.references)),
        ):
            count[digest] += 1
    return count


@given(st.lists(repositories(), max_size=4))
def test_a_dry_run_releases_what_nothing_mentions_after_the_real_one(
    all_of: list[Contents],
) -> None:
    tally, left = Tally(), []
    for held in all_of:
        gone = condemned(held)
        tally.add(held, gone)
        left.append(without(held, gone))
    before, after = mentions(all_of), mentions(left)
    assert set(tally.released(before)) == {
        digest for digest in DIGESTS if before[digest] and not after[digest]
    }


def test_a_report_lists_the_first_and_counts_all() -> None:
    tally = Tally()
    held = contents(
        [manifest("m")], links=[LiveLink(f"link {n}", OLD) for n in range(MAX_LISTED + 5)]
    )
    tally.add(held, condemned(held))
    report = tally.report(dry_run=True)
    assert (report.repositories, report.manifests, report.links) == (1, 1, MAX_LISTED + 5)
    assert (report.condemned_manifests, report.condemned_links) == (1, MAX_LISTED + 5)
    assert len(report.items) == MAX_LISTED
    assert (report.items[0].kind, report.items[0].name) == ("manifest", "m")
