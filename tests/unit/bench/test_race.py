# SPDX-License-Identifier: Apache-2.0
"""What ``shoal bench race`` pushes, how it reads metrics, and what it prints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from shoal.bench.race import SETUPS, Conditions, Outcome
from shoal.bench.race_images import MULTI_PLATFORM_EVERY, images, manifest_digests
from shoal.bench.race_metrics import Resolutions, resolutions
from shoal.bench.race_report import document, lines, percentile
from shoal.buildindex import metrics
from shoal.buildindex.config import ResolverConfig
from shoal.cli import main
from shoal.cluster.layout import Shape, lay_out
from shoal.cluster.roles import ROLES
from shoal.config.load import load
from shoal.model.digest import Digest
from shoal.model.manifest import parse_manifest
from shoal.origin.faults import FaultReport
from shoal.web.metrics import exposition

NAMES = ["write_back_no_retry", "write_back_retry", "write_back", "write_through"]


# -- images ---------------------------------------------------------------------------------------


def test_the_same_seed_makes_the_same_images_and_another_one_others() -> None:
    assert list(images(5, 12)) == list(images(5, 12))
    assert manifest_digests(images(5, 12)).isdisjoint(manifest_digests(images(6, 12)))


def test_images_have_several_layers_and_some_have_several_platforms() -> None:
    made = list(images(1, 40))
    indexes = [image for image in made if image.children]
    assert len(indexes) == 40 // MULTI_PLATFORM_EVERY
    assert all(len(image.children) == 2 for image in indexes)
    layers = {len(parse_manifest(image.root.body).layers) for image in made if not image.children}
    assert layers == {2, 3, 4}


def test_each_image_holds_all_that_its_manifests_name() -> None:
    for image in images(1, 20):
        sent = {content.digest for content in image.blobs}
        for content in image.contents():
            assert content.digest == Digest.of(content.body)
        for manifest in image.manifests():
            parsed = parse_manifest(manifest.body, manifest.media_type)
            named = {descriptor.digest for descriptor in (*parsed.blobs(), *parsed.children)}
            assert named <= sent
            sent.add(manifest.digest)


def test_every_tag_and_most_layers_are_an_image_s_own() -> None:
    made = list(images(1, 60))
    assert len({image.root.digest for image in made}) == 60
    every = [blob.digest for image in made for blob in image.blobs]
    assert len(set(every)) < len(every)


# -- set-ups --------------------------------------------------------------------------------------


def test_the_four_set_ups_and_which_are_shoals_own() -> None:
    assert list(SETUPS) == NAMES
    assert [setup.own for setup in SETUPS.values()] == [False, False, True, True]


def loaded(name: str, max_delay: float, folder: Path) -> dict[str, Any]:
    """What each role makes of the config that a set-up gives it."""
    layout = lay_out(Shape(agents=0), folder, 20000, SETUPS[name].config(max_delay))
    found = {}
    for member in layout.members:
        member.config_path.parent.mkdir(parents=True, exist_ok=True)
        member.config_path.write_text(json.dumps(member.config))
        model = ROLES[member.role].config_model()
        found[member.role] = load(model, member.role, member.config_path, {}).value
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("max_delay", [3.0, 10.0, 60.0])
def test_the_services_take_the_config_of_each_set_up(
    name: str, max_delay: float, tmp_path: Path
) -> None:
    config = loaded(name, max_delay, tmp_path)
    index, proxy = config["build-index"].resolver, config["proxy"]
    if not SETUPS[name].own:
        assert index.existence.attempts == 1
        assert index.manifest.attempts == {"write_back_no_retry": 1, "write_back_retry": 4}[name]
        assert [rule.await_delivery for rule in proxy.push] == [False]
        return
    assert index.existence.longest() >= max_delay
    assert proxy.index_retries >= index.existence.longest() + index.manifest.longest()


def test_the_defaults_are_what_shoals_own_set_ups_have_for_short_delays(tmp_path: Path) -> None:
    config = loaded("write_through", 3.0, tmp_path)
    assert config["build-index"].resolver == ResolverConfig()
    assert config["proxy"].push == ()


# -- metrics --------------------------------------------------------------------------------------


def test_attempts_and_saved_pushes_are_read_from_what_a_build_index_says() -> None:
    before = resolutions(exposition().decode())
    metrics.PUSHES_SAVED.inc(3)
    for made in (1, 1, 2, 7):
        metrics.count(metrics.MANIFEST_DOWNLOADS, metrics.MANIFEST_ATTEMPTS, "after_retry", made)
    for made in (1, 4, 99):
        metrics.count(metrics.DEPENDENCY_CHECKS, metrics.DEPENDENCY_ATTEMPTS, "exhausted", made)
    found = resolutions(exposition().decode())
    assert found.saved_by_retry - before.saved_by_retry == 3
    assert more(before.downloads, found.downloads) == {"1": 2, "2": 1, "7-8": 1}
    assert more(before.checks, found.checks) == {"1": 1, "4": 1, ">20": 1}


def more(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    """What was added to counts since."""
    return {key: n - before.get(key, 0) for key, n in after.items() if n != before.get(key, 0)}


def test_downloads_and_checks_are_added_in_order() -> None:
    found = Resolutions(0, {"10": 1, ">20": 1, "1": 5}, {"1": 2, "7-8": 3, "2": 4})
    assert list(found.attempts().items()) == [
        *(("1", 7), ("2", 4), ("7-8", 3), ("10", 1), (">20", 1)),
    ]


def test_a_build_index_that_resolved_nothing_has_empty_figures() -> None:
    assert resolutions("") == Resolutions(0, {}, {})


# -- what is printed ------------------------------------------------------------------------------

OUTCOME = Outcome(
    name="write_back_retry",
    pushes=200,
    failures=3,
    resolutions=Resolutions(17, {"1": 90, "2": 14, "4": 3}, {"1": 90, "3": 3}),
    tag_seconds=[0.01 * number for number in range(1, 101)],
    failed_with={"tag: 404 MANIFEST_BLOB_UNKNOWN": 2},
    lost=1,
    faults=[FaultReport(late=10, hidden=20, failed=1), FaultReport(late=1, hidden=2, failed=3)],
    wall_s=12.345,
)


def test_the_document_has_what_the_issue_asks_for() -> None:
    [setup] = document([OUTCOME], Conditions())["setups"]
    assert {
        "name": "write_back_retry",
        "pushes": 200,
        "failures": 3,
        "saved_by_retry": 17,
        "attempts": {"1": 180, "2": 14, "3": 3, "4": 3},
        "tag_p50_ms": 500.0,
        "tag_p99_ms": 990.0,
    }.items() <= setup.items()
    assert setup["faults"] == {"late_copies": 11, "hidden_answers": 22, "failed_requests": 4}
    assert json.loads(json.dumps(setup)) == setup


def test_the_table_is_for_the_docs_and_reasons_follow_it() -> None:
    head, rule, row, *reasons = lines([OUTCOME])
    assert [cell.strip() for cell in row.strip("| ").split("|")] == [
        *("write_back_retry", "200", "3 (1.5%)", "17"),
        *("1: 180, 2: 14, 3: 3, 4: 3", "500", "990"),
    ]
    assert len(head) == len(rule) == len(row)
    assert reasons == [
        "write_back_retry: 2 failed with tag: 404 MANIFEST_BLOB_UNKNOWN",
        "write_back_retry: 1 acknowledged and then not there",
    ]


@pytest.mark.parametrize(
    "values, share, expected",
    [([], 0.5, None), ([7.0], 0.99, 7.0), ([3.0, 1.0, 2.0], 0.5, 2.0), ([1.0, 2.0], 0.99, 2.0)],
)
def test_percentiles_are_values_that_occurred(
    values: list[float], share: float, expected: float | None
) -> None:
    assert percentile(values, share) == expected


# -- the command ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "option, value, complaint",
    [
        ("--setup", "write_sideways", "'write_sideways' is not one of write_back_no_retry"),
        ("--late", "layers", "'layers' is not one of manifests, all"),
        ("--max-delay", "3", "expected"),
        ("--late-share", "2", "--late-share"),
        ("--pushes", "0", "--pushes"),
    ],
)
def test_an_option_that_makes_no_sense_starts_nothing(
    option: str, value: str, complaint: str
) -> None:
    result = CliRunner().invoke(main, ["bench", "race", option, value])
    assert result.exit_code == 2
    assert complaint in result.stderr
