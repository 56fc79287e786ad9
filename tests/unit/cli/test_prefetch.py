# SPDX-License-Identifier: Apache-2.0
"""``shoal prefetch`` against a proxy that answers as a test says."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from shoal.cli import main, prefetch

DIGEST = "sha256:" + "1" * 64


def report(coming: int, *elsewhere: str) -> dict[str, Any]:
    return {
        "repository": "team/app",
        "reference": "v1",
        "digest": DIGEST,
        "ready": not coming,
        "contents": 5,
        "size": 12_300_000,
        "coming": coming,
        "coming_size": coming * 1_000_000,
        "elsewhere": list(elsewhere),
    }


def refusal(code: str, message: str) -> dict[str, Any]:
    return {"errors": [{"code": code, "message": message}]}


@dataclass
class FakeProxy:
    """Gives its answers in turn, the last one again and again."""

    answers: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeProxy]:
    fake = FakeProxy()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            fake.asked.append(self.path)
            status, document = fake.answers[min(len(fake.asked), len(fake.answers)) - 1]
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setattr(prefetch, "ASK_AGAIN", 0.01)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        fake.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield fake
        server.shutdown()
        thread.join()


def run(proxy: FakeProxy, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["prefetch", *arguments, "--proxy", proxy.url])


def test_it_returns_when_the_fetch_is_under_way(proxy: FakeProxy) -> None:
    proxy.answers = [(202, report(2, "sha256:2"))]
    result = run(proxy, "team/app:v1", "--platform", "linux/amd64", "--platform", "linux/arm64")
    assert result.exit_code == 0
    expected = f"team/app {DIGEST}: 2 of 5 blobs and manifests are coming, 2.0 MB\n"
    assert result.stdout == expected
    assert "sha256:2 is a child of the index" in result.stderr
    query = "platform=linux%2Famd64&platform=linux%2Farm64"
    assert proxy.asked == [f"/prefetch/team/app:v1?{query}"]


def test_with_wait_it_returns_when_all_is_there(proxy: FakeProxy) -> None:
    busy = (503, refusal("UNAVAILABLE", "too much is noted"))
    proxy.answers = [(202, report(2)), busy, (202, report(1)), (200, report(0))]
    result = run(proxy, "team/app:v1", "--wait", "20s", "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (0, report(0))
    assert len(proxy.asked) == 4


def test_what_is_not_there_in_time_is_a_failure(proxy: FakeProxy) -> None:
    proxy.answers = [(202, report(2))]
    result = run(proxy, "team/app:v1", "--wait", "50ms")
    assert result.exit_code == 1
    assert "2 of 5" in result.stdout
    assert result.stderr == "shoal prefetch: not all of it is there after 0.05 s\n"


@pytest.mark.parametrize("more", [(), ("--wait", "20s")])
def test_an_image_that_is_nowhere_fails_at_once(proxy: FakeProxy, more: tuple[str, ...]) -> None:
    proxy.answers = [(404, refusal("MANIFEST_UNKNOWN", "team/app has no tag v1"))]
    result = run(proxy, "team/app:v1", *more)
    assert (result.exit_code, len(proxy.asked)) == (1, 1)
    assert result.stderr == "shoal prefetch: MANIFEST_UNKNOWN: team/app has no tag v1\n"


def test_a_cluster_that_cannot_say_fails_when_nobody_waits(proxy: FakeProxy) -> None:
    proxy.answers = [(503, refusal("UNAVAILABLE", "origins are silent"))]
    result = run(proxy, "team/app:v1")
    assert (result.exit_code, len(proxy.asked)) == (1, 1)
    assert "origins are silent" in result.stderr


def test_a_proxy_that_does_not_answer_is_named() -> None:
    result = CliRunner().invoke(main, ["prefetch", "team/app", "--proxy", "127.0.0.1:1"])
    assert result.exit_code == 1
    assert "http://127.0.0.1:1/prefetch/team/app" in result.stderr
    assert result.stderr.endswith("is that the address of a running proxy?\n")
