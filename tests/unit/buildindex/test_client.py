# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
import pytest
from yarl import URL

from shoal.buildindex.client import BuildIndexClient
from shoal.buildindex.messages import MAX_QUESTIONS
from shoal.model.digest import Digest
from shoal.model.errors import ManifestBlobUnknown, NameUnknown, Unsupported
from shoal.model.manifest import LARGE_REFERRERS, FoundManifest, Referrer
from shoal.queue.retry import RetryPolicy
from shoal.ring.config import HostsConfig
from shoal.web.client import Answer, HttpClient
from shoal.web.deadline import Deadline
from shoal.web.failures import CallFailed, NotFound, Overloaded, Rejected, Unreachable

HOSTS = ["b1:1", "b2:2", "b3:3"]
DIGEST = Digest.of(b"manifest")
LAYER = Digest.of(b"layer")
FOUND = FoundManifest(DIGEST, "application/x", 8)
QUICK = RetryPolicy(initial=0.001, attempts=3)


class Request(msgspec.Struct):
    host: str
    method: str
    path: str
    query: list[tuple[str, str]]
    json: Any
    body: bytes | None
    headers: Mapping[str, str]


Host = Callable[[Request], Any]
"""What a build-index answers: JSON, or an exception; or an awaitable of that."""


class FakeHttp(HttpClient):
    """Build-indexes as functions."""

    def __init__(self, **hosts: Host) -> None:
        super().__init__(user_agent="test")
        self.hosts = {f"{name}:{name[1:]}": host for name, host in hosts.items()}
        self.requests: list[Request] = []
        self.granted: list[float] = []
        """Seconds that each of them had."""

    async def call(self, method: str, url: str, *, deadline: Deadline, **request: Any) -> Answer:
        assert not deadline.expired
        self.granted.append(deadline.remaining())
        parsed = URL(url, encoded=True).update_query(request.get("params") or {})
        asked = Request(
            f"{parsed.host}:{parsed.port}",
            method,
            parsed.raw_path,
            list(parsed.query.items()),
            msgspec.json.decode(msgspec.json.encode(request.get("json"))),
            request.get("data"),
            request.get("headers") or {},
        )
        self.requests.append(asked)
        answer = self.hosts[asked.host](asked)
        if isinstance(answer, Awaitable):
            answer = await answer
        if isinstance(answer, Exception):
            raise answer
        return Answer(method, url, 200, {}, msgspec.json.encode(answer))

    def asked(self) -> list[str]:
        return [request.host for request in self.requests]


def client(http: FakeHttp) -> BuildIndexClient:
    return BuildIndexClient(http, HostsConfig(hosts=list(http.hosts)), retry=QUICK)


def soon() -> Deadline:
    return Deadline.after(10.0)


def failed(kind: type[CallFailed], status: int, code: str) -> CallFailed:
    body = {"errors": [{"code": code, "message": "said so", "detail": {"missing": ["x"]}}]}
    return kind("GET", "http://b/", "said so", status=status, body=body)


def refused(_: Request) -> Exception:
    error = Unreachable("GET", "http://b/", "Connection refused")
    error.__cause__ = ConnectionRefusedError(111, "Connection refused")
    return error


def cut(_: Request) -> Exception:
    error = Unreachable("GET", "http://b/", "Server disconnected")
    error.__cause__ = ConnectionResetError(104, "reset by peer")
    return error


def lookup(*there: str) -> Host:
    """A build-index where these tags and digests are, in any repository."""

    def answer(request: Request) -> Any:
        manifests = [
            {"digest": str(DIGEST), "media_type": "application/x", "size": 8}
            if reference in there
            else None
            for _, reference in request.json["manifests"]
        ]
        blobs = [digest in there for _, digest in request.json["blobs"]]
        return {"manifests": manifests, "blobs": blobs}

    return answer


def says(answer: Any) -> Host:
    return lambda _: answer


NO_TAG = says(failed(NotFound, 404, "MANIFEST_UNKNOWN"))
NO_BLOB = says(failed(NotFound, 404, "BLOB_UNKNOWN"))
NO_ROUTE = says(failed(NotFound, 404, "NOT_FOUND"))


def in_turn(*hosts: Host) -> Host:
    """The first call goes to the first of them, and so on."""
    left = iter(hosts)

    def answer(request: Request) -> Any:
        host = next(left)
        return host(request)

    return answer


# -- lookups --------------------------------------------------------------------------------------


async def test_tags_digests_and_blobs_that_are_asked_for_together_are_one_request() -> None:
    http = FakeHttp(b1=lookup("v1", str(LAYER)))
    index = client(http)
    found = await asyncio.gather(
        index.find_manifest("team/app", "v1", deadline=soon()),
        index.find_manifest("team/app", DIGEST, deadline=soon()),
        index.get_tag("team/app", "v1", deadline=soon()),
        index.has_blob("team/app", LAYER, deadline=soon()),
        index.has_blob("team/app", DIGEST, deadline=soon()),
    )
    assert list(found) == [FOUND, None, DIGEST, True, False]
    assert [request.json for request in http.requests] == [
        {
            "manifests": [["team/app", "v1"], ["team/app", str(DIGEST)]],
            "blobs": [["team/app", str(LAYER)], ["team/app", str(DIGEST)]],
            "rely": False,
            "through": False,
        }
    ]


async def test_relying_on_a_blob_is_a_request_of_its_own() -> None:
    http = FakeHttp(b1=lookup(str(LAYER)))
    index = client(http)
    assert all(
        await asyncio.gather(
            index.has_blob("team/app", LAYER, deadline=soon(), rely=True),
            index.has_blob("team/app", LAYER, deadline=soon()),
        )
    )
    assert sorted(request.json["rely"] for request in http.requests) == [False, True]


async def test_a_tag_of_something_without_a_manifest_record_is_found() -> None:
    http = FakeHttp(
        b1=says({"manifests": [{"digest": str(DIGEST), "media_type": "", "size": 0}], "blobs": []})
    )
    found = await client(http).find_manifest("files", "v1", deadline=soon())
    assert found == FoundManifest(DIGEST, "", 0)


async def test_a_source_that_fails_is_asked_by_one_build_index_and_is_not_its_fault() -> None:
    failure = failed(Overloaded, 503, "SOURCE_FAILED")

    def source_down(request: Request) -> Any:
        if request.json["through"]:
            return failure
        return {"manifests": [None], "blobs": [], "open_manifests": [0]}

    http = FakeHttp(b1=source_down, b2=source_down)
    index = client(http)
    askers = set()
    for _ in range(3):
        http.requests.clear()
        with pytest.raises(Overloaded):
            await index.find_manifest("up.example.com/app", "v1", deadline=soon())
        through = [request.host for request in http.requests if request.json["through"]]
        assert len(through) == 1
        askers.update(through)
    assert len(askers) == 1

    # Neither of them counts as down: both are asked before something is not there.
    http.hosts |= dict.fromkeys(http.hosts, lookup())
    http.requests.clear()
    assert await index.find_manifest("team/app", "v1", deadline=soon()) is None
    assert sorted(http.asked()) == sorted(http.hosts)


async def test_others_are_asked_before_something_is_not_there() -> None:
    http = FakeHttp(b1=lookup(), b2=lookup("v1"), b3=lookup("v1"))
    index = client(http)
    assert await index.find_manifest("team/app", "v1", deadline=soon()) == FOUND
    assert http.asked() == ["b1:1", "b2:2"]
    http.requests.clear()
    assert not await index.has_blob("team/app", LAYER, deadline=soon())
    assert http.asked() == HOSTS


async def test_only_what_was_not_found_is_asked_elsewhere() -> None:
    http = FakeHttp(b1=lookup("v1"), b2=lookup("v2"))
    index = client(http)
    found = await asyncio.gather(
        index.find_manifest("team/app", "v1", deadline=soon()),
        index.find_manifest("team/app", "v2", deadline=soon()),
    )
    assert list(found) == [FOUND, FOUND]
    assert http.requests[1].json["manifests"] == [["team/app", "v2"]]


async def test_one_that_is_down_is_asked_last_and_not_to_confirm() -> None:
    http = FakeHttp(b1=refused, b2=lookup())
    index = client(http)
    assert await index.find_manifest("team/app", "v1", deadline=soon()) is None
    assert http.asked() == ["b1:1", "b2:2"]
    assert await index.find_manifest("team/app", "v1", deadline=soon()) is None
    assert http.asked()[2:] == ["b2:2"]
    # Nobody else is left to be asked: it may be up again.
    http.hosts["b1:1"], http.hosts["b2:2"] = lookup("v1"), refused
    assert await index.find_manifest("team/app", "v1", deadline=soon()) == FOUND


async def test_when_nobody_answers_it_is_not_said_that_nothing_is_there() -> None:
    busy = says(failed(Overloaded, 503, "UNAVAILABLE"))
    http = FakeHttp(b1=refused, b2=busy)
    with pytest.raises(Overloaded):
        await client(http).find_manifest("team/app", "v1", deadline=soon())
    http = FakeHttp(b1=NO_ROUTE)
    with pytest.raises(NotFound):
        await client(http).has_blob("team/app", LAYER, deadline=soon())


async def test_a_build_index_that_hangs_leaves_time_for_the_next_one() -> None:
    async def hang(_: Request) -> None:
        await asyncio.Event().wait()

    http = FakeHttp(b1=hang, b2=lookup("v1"))
    found = await client(http).find_manifest("team/app", "v1", deadline=Deadline.after(0.1))
    assert found == FOUND


# -- writes ---------------------------------------------------------------------------------------


async def test_a_manifest_is_put_with_its_tags() -> None:
    http = FakeHttp(b1=says({}))
    await client(http).put_manifest(
        "team/app",
        DIGEST,
        b"{}",
        "application/x",
        tags=["v1", "a+b"],
        deadline=soon(),
        index_children="present",
    )
    (request,) = http.requests
    assert (request.method, request.path) == (
        "PUT",
        f"/repositories/team%2Fapp/manifests/{str(DIGEST).replace(':', '%3A')}",
    )
    assert request.query == [("tag", "v1"), ("tag", "a+b"), ("index_children", "present")]
    assert (request.body, request.headers) == (b"{}", {"Content-Type": "application/x"})


async def test_a_write_is_tried_again_when_nobody_can_be_reached() -> None:
    http = FakeHttp(b1=in_turn(cut, says({})), b2=refused)
    await client(http).link_blob("team/app", LAYER, deadline=soon())
    assert http.asked() == ["b1:1", "b2:2", "b1:1"]


async def test_what_a_build_index_answers_to_a_write_is_final() -> None:
    http = FakeHttp(b1=says(failed(NotFound, 404, "MANIFEST_BLOB_UNKNOWN")), b2=says({}))
    with pytest.raises(ManifestBlobUnknown) as caught:
        await client(http).put_manifest("team/app", DIGEST, b"{}", None, tags=[], deadline=soon())
    assert caught.value.detail == {"missing": ["x"]}
    assert http.asked() == ["b1:1"]


async def test_a_write_that_nobody_takes_fails_after_all_attempts() -> None:
    http = FakeHttp(b1=refused)
    with pytest.raises(Unreachable, match="after 3 attempts"):
        await client(http).link_blob("team/app", LAYER, deadline=soon())


@pytest.mark.parametrize(
    "source, query", [(None, ("mount", "any")), ("team/base", ("from", "team/base"))]
)
async def test_mounting_says_whether_the_source_has_it(
    source: str | None, query: tuple[str, str]
) -> None:
    http = FakeHttp(b1=NO_BLOB, b2=says({}))
    index = client(http)
    assert await index.mount_blob("team/app", LAYER, source, deadline=soon())
    assert http.asked() == ["b1:1", "b2:2"]
    assert http.requests[0].query == [query]
    http.hosts["b2:2"] = NO_BLOB
    assert not await index.mount_blob("team/app", LAYER, source, deadline=soon())


# -- deletions ------------------------------------------------------------------------------------


async def test_deletions_say_whether_there_was_something() -> None:
    http = FakeHttp(b1=says({}))
    index = client(http)
    assert await index.delete_tag("team/app", "v1", deadline=soon())
    assert await index.delete_manifest("team/app", DIGEST, deadline=soon())
    assert await index.delete_blob("team/app", LAYER, deadline=soon())
    kinds = [request.path.split("/")[3] for request in http.requests]
    assert kinds == ["tags", "manifests", "blobs"]
    assert {request.method for request in http.requests} == {"DELETE"}
    http.hosts["b1:1"] = NO_TAG
    assert not await index.delete_tag("team/app", "v1", deadline=soon())
    assert not await index.delete_manifest("team/app", DIGEST, deadline=soon())
    http.hosts["b1:1"] = NO_BLOB
    assert not await index.delete_blob("team/app", LAYER, deadline=soon())


async def test_what_one_build_index_does_not_know_yet_is_deleted_at_another() -> None:
    http = FakeHttp(b1=NO_TAG, b2=says({}))
    assert await client(http).delete_tag("team/app", "v1", deadline=soon())
    assert http.asked() == ["b1:1", "b2:2"]


async def test_a_deletion_whose_answer_was_lost_has_happened_when_nothing_is_there_after_it() -> (
    None
):
    http = FakeHttp(b1=in_turn(cut, NO_TAG))
    assert await client(http).delete_tag("team/app", "v1", deadline=soon())
    http = FakeHttp(b1=cut, b2=NO_TAG)
    assert await client(http).delete_tag("team/app", "v1", deadline=soon())


async def test_a_deletion_that_cannot_have_arrived_has_not_happened() -> None:
    http = FakeHttp(b1=in_turn(refused, NO_TAG))
    assert not await client(http).delete_tag("team/app", "v1", deadline=soon())
    http = FakeHttp(b1=refused, b2=NO_TAG)
    assert not await client(http).delete_tag("team/app", "v1", deadline=soon())


async def test_a_blob_that_is_in_use_is_not_deleted() -> None:
    http = FakeHttp(b1=says(failed(Rejected, 405, "UNSUPPORTED")), b2=says({}))
    with pytest.raises(Unsupported, match="said so"):
        await client(http).delete_blob("team/app", LAYER, deadline=soon())
    assert http.asked() == ["b1:1"]


async def test_an_answer_that_is_no_404_of_the_thing_itself_is_a_failure() -> None:
    with pytest.raises(NotFound):
        await client(FakeHttp(b1=NO_ROUTE)).delete_tag("team/app", "v1", deadline=soon())


# -- lists ----------------------------------------------------------------------------------------


def referrer(content: bytes) -> dict[str, Any]:
    return {
        "digest": str(Digest.of(content)),
        "media_type": "application/x",
        "size": 3,
        "artifact_type": "application/sbom",
        "annotations": {"a": "b"},
    }


async def test_referrers_are_read_page_by_page_up_to_the_number_wanted() -> None:
    pages = [
        {"referrers": [referrer(b"1"), referrer(b"2")], "more": True},
        {"referrers": [referrer(b"3")], "more": True},
    ]
    http = FakeHttp(b1=lambda _: pages[len(http.requests) - 1])
    found = await client(http).referrers(
        "team/app", DIGEST, artifact_type="application/sbom", n=3, last="", deadline=soon()
    )
    assert [referrer.digest for referrer in found] == [Digest.of(b"%d" % n) for n in (1, 2, 3)]
    assert found[0] == Referrer(Digest.of(b"1"), "application/x", 3, "application/sbom", {"a": "b"})
    assert [dict(request.query) for request in http.requests] == [
        {"n": "3", "last": "", "artifact_type": "application/sbom"},
        {"n": "1", "last": str(Digest.of(b"2")), "artifact_type": "application/sbom"},
    ]


async def test_referrers_with_large_annotations_are_given_in_parts() -> None:
    large = {"x": "x" * (LARGE_REFERRERS // 2)}
    http = FakeHttp(
        b1=lambda _: {
            "referrers": [{**referrer(b"%d" % len(http.requests)), "annotations": large}],
            "more": True,
        }
    )
    found = await client(http).referrers(
        "team/app", DIGEST, artifact_type=None, n=100, last="", deadline=soon()
    )
    assert len(found) == len(http.requests) == 2


async def test_no_list_and_no_small_write_waits_long_for_a_build_index_that_hangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shoal.buildindex.client.READ_TIMEOUT", 0.2)
    monkeypatch.setattr("shoal.buildindex.client.WRITE_TIMEOUT", 0.3)
    calls: list[Callable[[BuildIndexClient, Deadline], Awaitable[object]]] = [
        lambda index, deadline: index.tags("team/app", deadline=deadline),
        lambda index, deadline: index.repositories(deadline=deadline),
        lambda index, deadline: index.referrers(
            "team/app", DIGEST, artifact_type=None, n=1, last="", deadline=deadline
        ),
        lambda index, deadline: index.link_blob("team/app", LAYER, deadline=deadline),
        lambda index, deadline: index.mount_blob("team/app", LAYER, None, deadline=deadline),
        lambda index, deadline: index.delete_tag("team/app", "v1", deadline=deadline),
        lambda index, deadline: index.delete_manifest("team/app", DIGEST, deadline=deadline),
        lambda index, deadline: index.delete_blob("team/app", LAYER, deadline=deadline),
    ]
    for call in calls:
        http = FakeHttp(b1=refused)
        with pytest.raises(CallFailed):
            await call(client(http), Deadline.after(60))
        assert http.granted
        assert max(http.granted) <= 0.3


async def test_referrers_end_where_the_list_ends() -> None:
    http = FakeHttp(b1=says({"referrers": [referrer(b"1")], "more": False}))
    found = await client(http).referrers(
        "team/app", DIGEST, artifact_type=None, n=100, last="", deadline=soon()
    )
    assert len(found) == len(http.requests) == 1


async def test_a_repository_is_unknown_when_no_build_index_knows_it() -> None:
    unknown = says(failed(NotFound, 404, "NAME_UNKNOWN"))
    http = FakeHttp(b1=unknown, b2=says({"tags": ["v1"], "more": False}))
    assert await client(http).tags("team/app", deadline=soon()) == ["v1"]
    http = FakeHttp(b1=unknown, b2=unknown)
    with pytest.raises(NameUnknown, match="team/app"):
        await client(http).tags("team/app", deadline=soon())


async def test_repositories_are_read_page_by_page() -> None:
    pages = [{"repositories": ["a", "b"], "more": True}, {"repositories": ["c"], "more": False}]
    http = FakeHttp(b1=lambda _: pages[len(http.requests) - 1])
    assert await client(http).repositories(deadline=soon()) == ["a", "b", "c"]
    assert dict(http.requests[1].query) == {"last": "b"}


# -- what is wanted -------------------------------------------------------------------------------


def wants(*digests: Digest) -> Host:
    wanted = set(map(str, digests))
    return lambda request: {"wanted": sorted(wanted.intersection(request.json["digests"]))}


async def test_what_any_build_index_wants_is_wanted() -> None:
    http = FakeHttp(b1=wants(DIGEST), b2=wants(LAYER))
    other = Digest.of(b"other")
    assert await client(http).wanted([DIGEST, other, LAYER], deadline=soon()) == {DIGEST, LAYER}


@pytest.mark.parametrize("silent", [refused, cut, NO_ROUTE])
async def test_nothing_is_said_of_what_is_wanted_when_one_build_index_is_silent(
    silent: Host,
) -> None:
    http = FakeHttp(b1=wants(DIGEST), b2=silent)
    with pytest.raises(CallFailed, match="not every build-index"):
        await client(http).wanted([DIGEST], deadline=soon())


async def test_many_digests_are_asked_for_in_several_requests() -> None:
    digests = [Digest.of(b"%d" % number) for number in range(MAX_QUESTIONS + 1)]
    http = FakeHttp(b1=wants(digests[0], digests[-1]))
    assert await client(http).wanted(digests, deadline=soon()) == {digests[0], digests[-1]}
    assert [len(request.json["digests"]) for request in http.requests] == [MAX_QUESTIONS, 1]
