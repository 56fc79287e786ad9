# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import typer

from shoal.bench.api import MANNERS, Case, Figure, Outcome, cases
from shoal.bench.api_images import tiny_image
from shoal.bench.api_report import document, lines
from shoal.bench.client import Salted
from shoal.bench.load import Loaded
from shoal.cli.bench import _uploads
from shoal.model.manifest import parse_manifest

LOADED = Loaded(
    requests=1000, wall_s=2.0, p50_ms=0.5, p99_ms=1.23456, received=50_000, client_cpu_s=0.1
)


def figure(cpu_s: float) -> Figure:
    case = Case("HEAD blob", "HEAD", ["/v2/a/blobs/x"])
    return Figure("proxy", case, MANNERS[-1], LOADED, {"proxy": cpu_s, "origin": 0.25})


def outcome(*figures: Figure) -> Outcome:
    return Outcome(10, 2.0, figures, push_s=[0.5, 0.4, 0.9], rss_mb={"proxy": 70.04})


def test_a_tiny_image_is_one_that_the_registry_takes() -> None:
    image = tiny_image(60)
    manifest = parse_manifest(image.manifest)
    assert {str(digest) for digest in manifest.references()} == image.blobs.keys()
    assert len(image.blobs) == 61
    assert tiny_image(60).blobs.keys().isdisjoint(image.blobs)


def test_a_salt_makes_another_blob_of_the_same_file(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"content")
    expected = hashlib.sha256(b"salt" + b"content").hexdigest()
    assert Salted(tmp_path / "source", b"salt").digest() == f"sha256:{expected}"


def test_the_pages_of_the_tags_are_all_of_them_once() -> None:
    tags = [f"v{number:05}" for number in range(2500)]
    [listing] = [case for case in cases(tiny_image(1), tags) if "tags" in case.name]
    assert [target.partition("?")[2] for target in listing.targets] == [
        "n=1000",
        "n=1000&last=v00999",
        "n=1000&last=v01999",
    ]


def test_a_list_that_ends_with_a_page_has_no_empty_one_after_it() -> None:
    tags = [f"v{number:05}" for number in range(2000)]
    [listing] = [case for case in cases(tiny_image(1), tags) if "tags" in case.name]
    assert len(listing.targets) == 2


def test_rates_are_given_by_wall_time_and_by_processor_time() -> None:
    [row] = document(outcome(figure(0.1)))["requests"]
    assert (row["per_second"], row["per_core"]) == (500, 10_000)
    assert row["cpu_us_per_request"] == {"proxy": 100.0, "origin": 250.0}
    assert (row["p99_ms"], row["bytes_per_answer"]) == (1.235, 50)


def test_a_service_too_quick_to_be_measured_has_no_rate_per_core() -> None:
    [row] = document(outcome(figure(0.0)))["requests"]
    assert row["per_core"] is None
    assert any(" none |" in line for line in lines(outcome(figure(0.0))))


def test_the_document_is_json_and_has_the_median_push() -> None:
    shown = document(outcome(figure(0.1)))
    assert json.loads(json.dumps(shown)) == shown
    assert shown["push"] == {"layers": 60, "wall_s": 0.5, "each_s": [0.5, 0.4, 0.9]}


def test_the_table_is_as_wide_in_every_row() -> None:
    table = [line for line in lines(outcome(figure(0.1), figure(0.0))) if line.startswith("|")]
    assert len({len(line) for line in table}) == 1
    assert len(table) == 4


@pytest.mark.parametrize("text", ["50", "x64MiB", "50x", "0x1MiB", "2000x1MiB", "ax1MiB", "²x1MiB"])
def test_what_is_no_number_and_size_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        _uploads(text)


def test_a_number_and_a_size() -> None:
    parsed = _uploads("50x64MiB")
    assert (parsed.count, parsed.size) == (50, 64 << 20)
