# SPDX-License-Identifier: Apache-2.0
"""What an agent remembers of its pulls, and what it says about them."""

from __future__ import annotations

import pytest

from shoal.agent.timeline import (
    HTTP,
    MAX_BLOBS,
    MAX_MANIFESTS,
    MAX_SOURCES,
    OTHERS,
    DownloadTimeline,
    Journal,
    Kind,
)
from shoal.agent.verdict import duration, shares
from shoal.agent.why import why
from shoal.agent.why_report import SourceReport, Status
from shoal.model.digest import Digest
from shoal.model.errors import DigestInvalid, ManifestUnknown, NameInvalid, TagInvalid
from shoal.model.manifest import Descriptor, Manifest
from shoal.model.media_types import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST
from shoal.registry.base import parse_image
from shoal.swarm.peers import PeerInfo, new_peer_id

NAME, TAG = "team/app", "v1"
SIZE = 100
IMAGE, LAYER, CONFIG = Digest.of(b"image"), Digest.of(b"layer"), Digest.of(b"config")


def peer(number: int, *, origin: bool = False) -> PeerInfo:
    return PeerInfo(new_peer_id(), f"10.0.0.{number}", 5012, origin=origin)


ORIGIN, AGENT = peer(1, origin=True), peer(2)


def content(*blobs: Digest, children: tuple[Digest, ...] = ()) -> Manifest:
    if children:
        return Manifest(
            OCI_INDEX, children=tuple(Descriptor(OCI_MANIFEST, it, SIZE) for it in children)
        )
    config, *layers = blobs
    return Manifest(
        OCI_MANIFEST,
        config=Descriptor(OCI_CONFIG, config, SIZE),
        layers=tuple(Descriptor(OCI_LAYER, it, SIZE) for it in layers),
    )


def pulled(journal: Journal, *blobs: Digest, at: float = 10.0) -> None:
    """The tag is looked up for 0.1 s and its manifest read for 0.2 s."""
    journal.looked_up(NAME, TAG, IMAGE, at, at + 0.1)
    journal.read_manifest(NAME, IMAGE, at + 0.1, at + 0.3, "origins", 500, content(*blobs))


def downloaded(journal: Journal, digest: Digest, began: float) -> DownloadTimeline:
    """In 4 s: 0.1 s to join, 3 s for an origin, 0.5 s for a peer, 0.3 s to verify, 0.1 s to end."""
    reading = journal.begin_reading(digest, began)
    journal.asked_membership(digest, 0.05)
    download = journal.begin_download(digest, began)
    download.locate(began + 0.1, size=SIZE, by="tracker", peers=2)
    download.received(ORIGIN, 38, began + 3.1)
    reading.got(began, began + 3.1)
    download.received(AGENT, 62, began + 3.6)
    reading.got(began + 3.2, began + 3.6)
    reading.sent_until(SIZE, began + 3.7)
    download.hash_done(began + 3.9)
    download.end(began + 4.0)
    return download


def test_the_seconds_of_all_sources_add_up_to_the_time_in_which_pieces_came() -> None:
    download = DownloadTimeline(LAYER, 0.0)
    download.locate(1.0, size=SIZE, by="tracker", peers=3)
    for sender, now in ((ORIGIN, 1.25), (AGENT, 1.5), (ORIGIN, 4.0), (AGENT, 4.0)):
        download.received(sender, 25, now)
    waited = {name: source.waited for name, source in download.sources.items()}
    assert waited == {"10.0.0.1:5012": 2.75, "10.0.0.2:5012": 0.25}
    assert download.bytes == SIZE
    assert (download.stalls.count, download.stalls.seconds, download.stalls.longest) == (
        1,
        2.5,
        2.5,
    )


def test_pieces_that_come_out_of_order_of_time_cost_nothing() -> None:
    download = DownloadTimeline(LAYER, 0.0)
    download.received(AGENT, 1, 2.0)
    download.received(AGENT, 1, 1.5)
    assert download.sources["10.0.0.2:5012"].waited == 2.0


def test_peers_beyond_the_bound_are_counted_together() -> None:
    download = DownloadTimeline(LAYER, 0.0)
    for number in range(MAX_SOURCES + 3):
        download.received(PeerInfo(new_peer_id(), f"host-{number}", 5012), 1, 1.0)
    assert len(download.sources) == MAX_SOURCES + 1
    assert download.sources[f"{OTHERS} (agent)"].bytes == 3
    assert download.bytes == MAX_SOURCES + 3


def test_the_report_of_a_pull_says_when_what_happened() -> None:
    journal = Journal(0.0)
    pulled(journal, CONFIG, LAYER)
    downloaded(journal, LAYER, 11.0)
    report = why(journal, NAME, TAG, 20.0)
    assert (report.digest, report.age_s) == (str(IMAGE), 10.0)
    assert report.lookup_s == pytest.approx(0.1)
    assert report.total_s == pytest.approx(5.0)
    by_digest = {blob.digest: blob for blob in report.blobs}
    assert list(by_digest) == [str(CONFIG), str(LAYER)]
    assert by_digest[str(CONFIG)].status is Status.UNREAD
    layer = by_digest[str(LAYER)]
    assert (layer.status, layer.in_pull, layer.size) == (Status.FETCHED, True, SIZE)
    assert layer.download_at_s == pytest.approx(1.0)
    assert layer.first_piece_s == pytest.approx(3.1)
    phases = (layer.join_s, layer.pieces_s, layer.verification_s, layer.placing_s)
    assert phases == pytest.approx((0.1, 3.5, 0.3, 0.1))
    assert sum(phases) == pytest.approx(layer.download_s)
    assert layer.reader_waited_s == pytest.approx(3.5)
    assert layer.membership_s == 0.05
    assert layer.mb_per_s == pytest.approx(SIZE / 1e6 / 3.5)


def test_the_verdict_names_what_took_longest_and_where_the_bytes_came_from() -> None:
    journal = Journal(0.0)
    pulled(journal, CONFIG, LAYER)
    downloaded(journal, LAYER, 10.3)
    assert why(journal, NAME, TAG, 20.0).verdict == (
        "3.0 s of 4.3 s waiting for origin 10.0.0.1:5012; "
        "62 % from peers, 38 % from origins; 1 stall, 3.0 s"
    )


def test_with_several_blobs_the_verdict_is_about_the_last_one() -> None:
    journal = Journal(0.0)
    pulled(journal, CONFIG, LAYER)
    downloaded(journal, CONFIG, 10.3)
    downloaded(journal, LAYER, 11.3)
    assert f"(blob {str(LAYER)[:19]})" in why(journal, NAME, TAG, 20.0).verdict


@pytest.mark.parametrize(
    "cause, slow",
    [
        ("looking up the reference at the build-index", "lookup"),
        ("waiting for the tracker to say who has the blob", "join"),
        (f"waiting for {HTTP}", "http"),
        ("verifying the digest of the whole after the last piece", "hash"),
        ("moving the blob into the cache", "end"),
        ("until the client had taken what was here", "client"),
        ("until the client asked for the blob that came last", "ask"),
    ],
)
def test_each_cause_is_found(cause: str, slow: str) -> None:
    journal, now = Journal(0.0), 0.0

    def step(name: str) -> float:
        nonlocal now
        now += 9.0 if name == slow else 0.25
        return now

    journal.looked_up(NAME, TAG, IMAGE, 0.0, step("lookup"))
    journal.read_manifest(NAME, IMAGE, now, now, "origins", 5, content(CONFIG, LAYER))
    step("ask")
    reading = journal.begin_reading(LAYER, now)
    download = journal.begin_download(LAYER, now)
    download.locate(step("join"), size=SIZE, by="tracker", peers=1)
    download.received_over_http(SIZE, step("http"))
    reading.got(download.began, now)
    download.hash_done(step("hash"))
    download.end(step("end"))
    reading.sent_until(SIZE, step("client"))
    verdict = why(journal, NAME, TAG, now).verdict
    assert verdict.startswith(f"9.0 s of {now:.1f} s {cause}; 100 % from origins over HTTP")


def test_a_download_that_still_runs_is_described_so_far() -> None:
    journal = Journal(0.0)
    pulled(journal, CONFIG, LAYER)
    download = journal.begin_download(LAYER, 10.5)
    download.locate(11.0, size=SIZE, by="origins", peers=0)
    report = why(journal, NAME, TAG, 21.0)
    assert report.blobs[1].status is Status.FETCHING
    assert report.verdict == "it still runs; 10.0 s of 11.0 s waiting for anybody to send a piece"


def test_a_failure_is_the_verdict() -> None:
    journal = Journal(0.0)
    pulled(journal, CONFIG, LAYER)
    journal.begin_download(LAYER, 11.0).end(12.0, "no origin has it")
    report = why(journal, NAME, TAG, 21.0)
    assert report.blobs[1].status is Status.FAILED
    assert report.verdict == "failed: no origin has it"
    pulled(journal, CONFIG, LAYER, at=30.0)
    assert why(journal, NAME, TAG, 31.0).blobs[1].status is Status.UNREAD, "that was before"


def test_a_second_pull_is_told_from_the_download_before_it() -> None:
    journal = Journal(0.0)
    pulled(journal, CONFIG, LAYER)
    downloaded(journal, LAYER, 11.0)
    pulled(journal, CONFIG, LAYER, at=50.0)
    journal.begin_reading(LAYER, 51.0).sent_until(SIZE, 51.5)
    report = why(journal, NAME, TAG, 60.0)
    assert report.blobs[1].status is Status.CACHED
    assert not report.sources
    assert report.verdict == (
        "nothing was fetched: what was asked for (1 of 2 blobs) was on this host's disk; "
        "1.5 s in all"
    )


def test_an_index_leads_to_the_blobs_of_the_child_that_was_read() -> None:
    journal, other, index = Journal(0.0), Digest.of(b"other platform"), Digest.of(b"index")
    journal.looked_up(NAME, TAG, index, 1.0, 1.1)
    journal.read_manifest(NAME, index, 1.1, 1.2, "origins", 9, content(children=(other, IMAGE)))
    journal.looked_up(NAME, IMAGE, IMAGE, 1.2, 1.3)
    journal.read_manifest(NAME, IMAGE, 1.3, 1.4, "disk", 9, content(CONFIG, LAYER))
    downloaded(journal, LAYER, 2.0)
    report = why(journal, NAME, TAG, 9.0)
    assert [it.digest for it in report.manifests] == [str(index), str(IMAGE)]
    assert [it.digest for it in report.blobs] == [str(CONFIG), str(LAYER)]
    assert report.total_s == pytest.approx(5.0)
    assert why(journal, NAME, IMAGE, 9.0).total_s == pytest.approx(4.8)


def test_what_was_not_pulled_is_said_to_be_unknown() -> None:
    journal = Journal(0.0)
    pulled(journal, CONFIG, LAYER)
    journal.looked_up(NAME, "only-asked", Digest.of(b"never read"), 1.0, 2.0)
    for name, reference in ((NAME, "v2"), ("other/app", TAG), (NAME, LAYER), (NAME, "only-asked")):
        with pytest.raises(ManifestUnknown, match=r"was not pulled through this agent .* 30 s ago"):
            why(journal, name, reference, 30.0)


def test_the_last_blobs_and_manifests_are_remembered() -> None:
    journal = Journal(0.0)
    blobs = [Digest.of(b"blob %d" % number) for number in range(MAX_BLOBS + 1)]
    for digest in blobs:
        journal.begin_download(digest, 1.0)
    assert journal.blob(blobs[0]) is None
    assert all(journal.blob(digest) is not None for digest in blobs[1:])
    manifests = [Digest.of(b"manifest %d" % number) for number in range(MAX_MANIFESTS + 1)]
    for digest in manifests:
        journal.read_manifest(NAME, digest, 1.0, 1.0, "disk", 1, content(*blobs))
    assert not journal.knows(NAME, manifests[0])
    assert all(journal.knows(NAME, digest) for digest in manifests[1:])
    record = journal.manifest(NAME, manifests[-1])
    assert record is not None
    assert len(record.blobs) == MAX_BLOBS


def test_a_manifest_read_again_keeps_its_content_and_is_the_youngest() -> None:
    journal = Journal(0.0)
    pulled(journal, CONFIG, LAYER)
    for number in range(MAX_MANIFESTS - 1):
        digest = Digest.of(b"%d" % number)
        journal.read_manifest(NAME, digest, 1.0, 1.0, "disk", 1, content(CONFIG))
    journal.read_manifest(NAME, IMAGE, 5.0, 5.1, "memory", 500, None)
    journal.read_manifest(NAME, LAYER, 6.0, 6.1, "memory", 500, content(CONFIG))
    record = journal.manifest(NAME, IMAGE)
    assert record is not None
    assert (record.blobs, record.source) == ((CONFIG, LAYER), "memory")


@pytest.mark.parametrize(
    "text, expected",
    [
        ("team/app", ("team/app", "latest")),
        ("team/app:v1", ("team/app", "v1")),
        (f"team/app@{IMAGE}", ("team/app", IMAGE)),
        (f"team/app:v1@{IMAGE}", ("team/app", IMAGE)),
    ],
)
def test_images_are_named_as_clients_name_them(text: str, expected: tuple[str, object]) -> None:
    assert parse_image(text) == expected


@pytest.mark.parametrize(
    "text, error",
    [("Team/app", NameInvalid), ("team/app:-", TagInvalid), ("team/app@sha256:1", DigestInvalid)],
)
def test_what_is_no_image_is_refused(text: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        parse_image(text)


def test_shares_are_of_all_bytes_and_durations_have_a_fitting_unit() -> None:
    sources = [
        SourceReport("a", Kind.AGENT, 50),
        SourceReport("b", Kind.AGENT, 12),
        SourceReport("c", Kind.ORIGIN, 28),
        SourceReport(HTTP, Kind.HTTP, 10),
    ]
    assert shares(sources) == ["62 % from peers, 28 % from origins, 10 % from origins over HTTP"]
    assert shares([]) == []
    small = SourceReport(HTTP, Kind.HTTP, 1)
    assert shares([SourceReport("a", Kind.AGENT, 999), small]) == ["100 % from peers"]
    assert [duration(it) for it in (0.0, 0.0421, 0.9996, 3.14)] == [
        "0 ms",
        "42 ms",
        "1.0 s",
        "3.1 s",
    ]


def test_a_lookup_long_before_the_manifest_was_read_is_not_of_the_same_pull() -> None:
    journal = Journal(0.0)
    pulled(journal, CONFIG, LAYER, at=10.0)
    journal.read_manifest(NAME, IMAGE, 500.0, 500.2, "memory", 500, None)
    assert why(journal, NAME, TAG, 501.0).total_s == pytest.approx(0.2)


def test_a_child_that_was_read_before_does_not_make_the_pull_of_its_index_longer() -> None:
    journal, index = Journal(0.0), Digest.of(b"index")
    pulled(journal, CONFIG, LAYER, at=1.0)
    journal.read_manifest(NAME, index, 100.0, 100.5, "origins", 9, content(children=(IMAGE,)))
    report = why(journal, NAME, index, 200.0)
    assert (report.age_s, report.total_s) == (100.0, 0.5)
    assert [it.digest for it in report.manifests] == [str(index)]
    assert len(report.blobs) == 2
