# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from shoal.web.metrics import exposition, requests_to


def samples(service: str) -> dict[tuple[str, ...], float]:
    """Samples of one service by name and the values of the other labels, in the labels' order."""
    found = {}
    for family in text_string_to_metric_families(exposition().decode()):
        for sample in family.samples:
            if sample.labels.get("service") == service:
                rest = (text for name, text in sorted(sample.labels.items()) if name != "service")
                found[sample.name, *rest] = sample.value
    return found


def test_requests_are_counted_by_status_and_timed_over_all() -> None:
    requests = requests_to("metrics-1")
    requests.observe("/x", "GET", 200, 0.0005)
    requests.observe("/x", "GET", 404, 0.002)
    requests.observe("/x", "GET", 404, 1000.0)
    shown = samples("metrics-1")
    count = {key: value for key, value in shown.items() if key[0] == "shoal_http_requests_total"}
    assert sorted(count.values()) == [1.0, 2.0]
    name = "shoal_http_request_seconds"
    assert shown[f"{name}_count", "GET", "/x"] == 3
    assert shown[f"{name}_sum", "GET", "/x"] == pytest.approx(1000.0025)


def test_buckets_hold_what_is_not_above_their_bound() -> None:
    requests = requests_to("metrics-2")
    for seconds in (0.001, 0.0011, 300.0, 300.1):
        requests.observe("/x", "GET", 200, seconds)
    buckets = {
        key[1]: value
        for key, value in samples("metrics-2").items()
        if key[0] == "shoal_http_request_seconds_bucket"
    }
    assert (buckets["0.001"], buckets["0.005"]) == (1, 2)
    assert (buckets["60.0"], buckets["300.0"], buckets["+Inf"]) == (2, 3, 4)


def test_methods_that_clients_make_up_are_one() -> None:
    requests = requests_to("metrics-3")
    for number in range(50):
        requests.observe("/x", f"BREW{number}", 405, 0.1)
    assert len(requests.tallies) == 1
    assert 50.0 in samples("metrics-3").values()


def test_requests_of_now_are_shown_as_such() -> None:
    requests_to("metrics-4").in_flight = 3
    assert samples("metrics-4") == {("shoal_http_requests_in_flight",): 3.0}


def test_applications_of_one_service_are_counted_together() -> None:
    assert requests_to("metrics-5") is requests_to("metrics-5")
