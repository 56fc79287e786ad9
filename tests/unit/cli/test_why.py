# SPDX-License-Identifier: Apache-2.0
"""``shoal why`` without a cluster: what it prints, and what it asks."""

from __future__ import annotations

from typer.testing import CliRunner

from shoal.agent.timeline import Kind
from shoal.agent.why_report import BlobReport, ManifestReport, PullReport, SourceReport, Status
from shoal.cli import main
from shoal.cli.why_text import lines

LAYER, CONFIG = "sha256:" + "1" * 64, "sha256:" + "2" * 64


def report() -> PullReport:
    origin = SourceReport("10.0.0.1:5012", Kind.ORIGIN, 60_000_000, 3.1, 1)
    return PullReport(
        repository="team/app",
        reference="v1",
        digest="sha256:" + "0" * 64,
        age_s=60.0,
        lookup_s=0.012,
        manifests=[ManifestReport("sha256:" + "0" * 64, 700, 0.02, 0.004, "disk")],
        blobs=[
            BlobReport(
                LAYER,
                Status.FETCHED,
                in_pull=True,
                size=60_000_000,
                membership_s=0.003,
                asked_at_s=0.1,
                reader_waited_s=3.2,
                download_at_s=0.1,
                download_s=3.5,
                join_s=0.05,
                first_piece_s=0.2,
                pieces_s=3.1,
                verification_s=0.3,
                mb_per_s=19.35,
                resumed=5_000_000,
                stalls=2,
                stalled_s=1.8,
                longest_stall_s=1.5,
                sources=[origin],
            ),
            BlobReport(CONFIG, Status.CACHED, asked_at_s=0.05),
        ],
        sources=[origin],
        total_s=4.0,
        verdict="3.1 s of 4.0 s waiting for origin 10.0.0.1:5012",
    )


def test_the_verdict_stands_above_a_row_per_blob_and_per_source() -> None:
    text = list(lines(report()))
    assert text[0] == "team/app:v1, pulled 60 s ago"
    assert text[1] == "3.1 s of 4.0 s waiting for origin 10.0.0.1:5012"
    rows = {line.split()[0]: line.split() for line in text if line}
    layer = "sha256:111111111111"
    expected = f"{layer} fetched 60.0 100 ms 3 ms 50 ms 200 ms 3.1 s 300 ms 3.5 s 19 3.2 s"
    assert rows["BLOB"][:3] == ["BLOB", "STATUS", "MB"]
    assert expected.split() in [line.split() for line in text]
    assert rows["sha256:222222222222"][1] == "cached"
    assert rows["10.0.0.1:5012"] == ["10.0.0.1:5012", "origin", "60.0", "3.1", "s", "1"]
    assert f"{layer}: 2 times nothing came, for 1.8 s together and 1.5 s at most" in text
    assert f"{layer}: 5.0 MB were here from an earlier try" in text


def test_an_agent_that_does_not_answer_is_named() -> None:
    result = CliRunner().invoke(main, ["why", "team/app", "--agent", "127.0.0.1:1"])
    assert result.exit_code == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("shoal why: GET http://127.0.0.1:1/why/team/app")
    assert last.endswith("is that the admin address of a running agent?")
