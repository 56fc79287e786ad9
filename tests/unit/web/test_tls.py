# SPDX-License-Identifier: Apache-2.0
"""HTTP over TLS: who is let in, who is called, and what happens to files that are of no use."""

from __future__ import annotations

import asyncio
import json
import shutil
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from prometheus_client import REGISTRY
from pydantic import ValidationError

from shoal.agent.config import AgentTlsConfig
from shoal.config.model import TlsConfig
from shoal.model.digest import Digest
from shoal.proxy.config import ProxyTlsConfig
from shoal.web import tls as module
from shoal.web.bodies import FileBlob, send_blob
from shoal.web.client import HttpClient
from shoal.web.deadline import Deadline
from shoal.web.failures import Rejected, Unreachable
from shoal.web.tls import CannotSecure, Tls
from tests.authority import Authority
from tests.unit.web_loopback import loops, served, wire

SOURCES = Path(module.__file__).parents[1]
CONTENT = bytes(range(256)) * 40_000
DIGEST = Digest.of(CONTENT)
CHANGES = ("POST", "PUT", "PATCH", "DELETE")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "content"
    path.write_bytes(CONTENT)
    return path


def on_each_loop(scenario: Callable[[], Coroutine[None, None, None]]) -> None:
    for loop in loops():
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(scenario())


def of(files: dict[str, str]) -> Tls:
    return Tls(TlsConfig.model_validate(files))


@asynccontextmanager
async def client(tls: Tls | None = None) -> AsyncIterator[HttpClient]:
    http = HttpClient(user_agent="shoal-test", tls=tls, connect_timeout=5.0)
    try:
        yield http
    finally:
        await http.close()


def soon() -> Deadline:
    return Deadline.after(10.0)


async def fine(request: web.Request) -> web.Response:
    return web.Response(text=request.path)


def routes() -> list[tuple[str, str, Callable[[web.Request], Awaitable[web.StreamResponse]]]]:
    reads = ("/things", "/internal/things", "/preload/things")
    return [
        *(("GET", path, fine) for path in reads),
        *((method, "/things", fine) for method in CHANGES),
    ]


# -- config -----------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["certificate", "key", "ca"])
def test_a_file_that_is_missing_in_the_config_is_named(missing: str) -> None:
    files = {"ca": "ca.pem", "certificate": "host.pem", "key": "host.key"}
    del files[missing]
    with pytest.raises(ValidationError, match=f"TLS needs {missing}, too"):
        TlsConfig.model_validate(files)


def test_only_a_proxy_lets_clients_without_a_certificate_push_unless_told_otherwise() -> None:
    files = {"ca": "ca.pem", "certificate": "host.pem", "key": "host.key"}
    assert TlsConfig.model_validate(files).clients == "required"
    assert AgentTlsConfig.model_validate(files).clients == "required"
    assert ProxyTlsConfig.model_validate(files).clients == "optional"
    assert ProxyTlsConfig.model_validate(files | {"clients": "required"}).clients == "required"


def test_without_a_certificate_there_is_no_tls() -> None:
    tls = Tls(TlsConfig())
    assert (tls.on, tls.server, tls.client) == (False, None, None)
    assert HttpClient(user_agent="x", tls=tls).url("h:1", "/p") == "http://h:1/p"


@pytest.mark.parametrize("name", ["certificate", "key", "ca"])
def test_a_file_that_is_of_no_use_is_named(authority: Authority, tmp_path: Path, name: str) -> None:
    good = authority.files()
    (tmp_path / "junk").write_text("junk")
    for path, reason in ((tmp_path / "junk", ""), (tmp_path / "gone", "No such file")):
        with pytest.raises(CannotSecure, match=rf'"tls\.{name}".*{reason}') as raised:
            of(good | {name: str(path)})
        assert str(path) in str(raised.value)


def test_a_key_of_another_certificate_is_named(authority: Authority) -> None:
    good, other = authority.files(), authority.files()
    with pytest.raises(CannotSecure, match=r"is not that of the certificate") as raised:
        of(good | {"key": other["key"]})
    assert other["key"] in str(raised.value)


def test_a_certificate_that_nobody_would_accept_is_refused_at_the_start(
    authority: Authority, tmp_path: Path
) -> None:
    strange = Authority(tmp_path, "strange")
    with pytest.raises(CannotSecure, match=r"accepts.*unable to get local issuer") as raised:
        of(authority.files() | {"ca": str(strange.file)})
    assert str(strange.file) in str(raised.value)
    expired = authority.files()
    certificate, key = Path(expired["certificate"]), Path(expired["key"])
    authority.issue(certificate, key, not_after=datetime.now(UTC) - timedelta(days=1))
    with pytest.raises(CannotSecure, match="has expired"):
        of(expired)


def test_a_metric_says_when_the_certificate_expires(authority: Authority) -> None:
    files = authority.files()
    of(files)
    certificate = x509.load_pem_x509_certificate(Path(files["certificate"]).read_bytes())
    assert REGISTRY.get_sample_value(
        "shoal_certificate_expires_seconds", {"section": "tls"}
    ) == pytest.approx(certificate.not_valid_after_utc.timestamp(), abs=1)


def test_a_key_with_a_passphrase_is_refused_and_nobody_is_asked(authority: Authority) -> None:
    good = authority.files()
    key = serialization.load_pem_private_key(Path(good["key"]).read_bytes(), None)
    Path(good["key"]).write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(CannotSecure, match=r'"tls\.key".*passphrase'):
        of(good)


def test_no_service_decides_by_itself_how_another_one_is_called() -> None:
    """`HttpClient.url` knows the scheme."""
    for role in ("proxy", "origin", "tracker", "buildindex", "agent", "web"):
        for file in (SOURCES / role).glob("*.py"):
            assert "http://{" not in file.read_text(), file


# -- the gate ---------------------------------------------------------------------------------


def test_without_a_certificate_what_is_public_may_be_read_and_nothing_changed(
    authority: Authority,
) -> None:
    async def scenario() -> None:
        async with served(*routes(), tls=of(authority.files())) as address:
            async with wire(address, authority.client()) as http:
                for path in ("/health", "/readiness", "/metrics", "/things"):
                    assert (await http.ask("GET", path)).status == 200
                assert (await http.ask("HEAD", "/health")).status == 200
                for method in CHANGES:
                    reply = await http.ask(method, "/things", "Content-Length: 0")
                    assert reply.status == 403
                    (error,) = json.loads(reply.body)["errors"]
                    assert error["code"] == "DENIED"
                    assert "client certificate" in error["message"]
                assert (await http.ask("GET", "/preload/things")).status == 403
            # However the path is written, and also where nothing is.
            for path in ("/internal/things", "/%69nternal/things", "/internal%2Fthings"):
                async with wire(address, authority.client()) as http:
                    assert (await http.ask("GET", path)).status in {403, 404}
                    assert (await http.ask("POST", path, "Content-Length: 0")).status == 403

    on_each_loop(scenario)


def test_with_a_certificate_of_the_cluster_everything_may_be_done(authority: Authority) -> None:
    async def scenario() -> None:
        shown = authority.client(host="somebody.example")
        async with (
            served(*routes(), tls=of(authority.files())) as address,
            wire(address, shown) as http,
        ):
            assert (await http.ask("GET", "/internal/things")).body == b"/internal/things"
            for method in CHANGES:
                assert (await http.ask(method, "/things", "Content-Length: 0")).status == 200

    on_each_loop(scenario)


async def test_where_certificates_are_optional_only_what_is_internal_needs_one(
    authority: Authority,
) -> None:
    tls = of(authority.files())
    async with (
        served(*routes(), tls=tls, clients="optional") as address,
        wire(address, authority.client()) as http,
    ):
        for method in CHANGES:
            assert (await http.ask(method, "/things", "Content-Length: 0")).status == 200
        assert (await http.ask("GET", "/internal/things")).status == 403


def test_a_certificate_of_somebody_else_is_refused_and_so_is_plain_http(
    authority: Authority, tmp_path: Path
) -> None:
    strange = Authority(tmp_path, "strange")

    async def scenario() -> None:
        async with served(*routes(), tls=of(authority.files())) as address:
            context = authority.client()
            strange.ca.issue_cert("127.0.0.1").configure_cert(context)
            with pytest.raises((OSError, asyncio.IncompleteReadError)):
                async with wire(address, context) as http:
                    await http.ask("GET", "/things")
            with pytest.raises((OSError, asyncio.IncompleteReadError)):
                async with wire(address) as http:
                    await http.ask("GET", "/things")
            async with wire(address, authority.client()) as http:
                assert (await http.ask("GET", "/things")).status == 200

    on_each_loop(scenario)


async def test_1_2_is_the_oldest_version_that_is_spoken(authority: Authority) -> None:
    context = authority.client()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    tls = of(authority.files())
    assert tls.server is not None
    assert tls.server.minimum_version == ssl.TLSVersion.TLSv1_2
    async with served(*routes(), tls=tls) as address, wire(address, context) as http:
        assert (await http.ask("GET", "/things")).status == 200


# -- calls to other services ------------------------------------------------------------------


def test_a_service_calls_another_one_with_its_certificate(authority: Authority, path: Path) -> None:
    received: list[bytes] = []

    async def take(request: web.Request) -> web.Response:
        received.append(await request.read())
        return web.Response(status=201)

    async def give(request: web.Request) -> web.StreamResponse:
        return await send_blob(request, await FileBlob.open(path), digest=DIGEST)

    internal = [("PUT", "/internal/blob", take), ("GET", "/internal/blob", give)]

    async def scenario() -> None:
        received.clear()
        async with (
            served(*internal, tls=of(authority.files()), max_body=2 * len(CONTENT)) as address,
            client(of(authority.files("other.example"))) as http,
        ):
            url = http.url(address, "/internal/blob")
            assert url.startswith("https://127.0.0.1:")
            assert (await http.call("GET", url, deadline=soon())).body == CONTENT
            async with http.stream(
                "GET", url, deadline=soon(), headers={"Range": "bytes=7-3000006"}
            ) as answer:
                body = b"".join([chunk async for chunk in answer.chunks()])
            assert body == CONTENT[7:3_000_007]
            await http.upload(url, path, len(CONTENT), deadline=soon())
            assert received == [CONTENT]

    on_each_loop(scenario)


def test_an_upload_over_tls_ends_with_an_answer_that_comes_before_all_is_sent(
    authority: Authority, path: Path
) -> None:
    async def refuse(request: web.Request) -> web.Response:
        await request.content.readany()
        return web.Response(status=409)

    async def scenario() -> None:
        async with (
            served(("PUT", "/blob", refuse), tls=of(authority.files())) as address,
            client(of(authority.files())) as http,
        ):
            url = http.url(address, "/blob")
            with pytest.raises(Rejected) as raised:
                await http.upload(url, path, len(CONTENT), deadline=soon())
            assert raised.value.status == 409

    on_each_loop(scenario)


def test_an_upload_over_tls_to_a_receiver_that_takes_nothing_is_given_up(
    authority: Authority, path: Path
) -> None:
    async def scenario() -> None:
        gone = asyncio.Event()

        async def hang(_: web.Request) -> web.Response:
            await gone.wait()
            return web.Response()

        async with (
            served(("PUT", "/blob", hang), tls=of(authority.files())) as address,
            client(of(authority.files())) as http,
        ):
            url = http.url(address, "/blob")
            with pytest.raises(Unreachable, match=r"took nothing for 0\.3 s"):
                await http.upload(url, path, len(CONTENT), deadline=soon(), stall_timeout=0.3)
            gone.set()

    on_each_loop(scenario)


def test_who_is_not_the_host_that_was_called_is_not_believed(
    authority: Authority, tmp_path: Path, path: Path
) -> None:
    strange = Authority(tmp_path, "strange")
    mine = of(authority.files())

    async def scenario() -> None:
        for theirs in (strange.files(), authority.files("other.example")):
            async with served(*routes(), tls=of(theirs)) as address, client(mine) as http:
                url = http.url(address, "/things")
                with pytest.raises(Unreachable, match="its certificate is not accepted"):
                    await http.call("GET", url, deadline=soon())
                with pytest.raises(Unreachable, match="its certificate is not accepted"):
                    await http.upload(url, path, 9, deadline=soon())
        async with served(*routes()) as address, client(mine) as http:
            with pytest.raises(Unreachable, match="does not speak TLS"):
                await http.call("GET", http.url(address, "/things"), deadline=soon())

    on_each_loop(scenario)


async def test_what_is_not_of_the_cluster_is_called_without_its_certificate(
    authority: Authority,
) -> None:
    async with served(*routes(), tls=of(authority.files())) as address, client() as http:
        with pytest.raises(Unreachable, match="its certificate is not accepted"):
            await http.call("GET", f"https://{address}/things", deadline=soon())


# -- renewal ----------------------------------------------------------------------------------


async def shown(address: str, authority: Authority) -> int:
    """The serial number of the certificate that a listener shows to a new client."""
    async with wire(address, authority.client()) as http:
        secured = http.writer.get_extra_info("ssl_object")
        certificate: bytes = secured.getpeercert(binary_form=True)
    return x509.load_der_x509_certificate(certificate).serial_number


def serial(files: dict[str, str]) -> int:
    return x509.load_pem_x509_certificate(Path(files["certificate"]).read_bytes()).serial_number


class Log:
    """What is logged, for those who wait for it."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[str] = asyncio.Queue()

    def info(self, event: str, **_: object) -> None:
        self.events.put_nowait(event)

    warning = info


async def test_a_renewed_certificate_is_shown_without_a_restart(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY", 0.01)
    monkeypatch.setattr(module, "log", log := Log())
    files, other = authority.files(), authority.files()
    tls = of(files)
    async with served(*routes(), tls=tls) as address, wire(address, authority.client()) as kept:
        before = serial(files)
        assert await shown(address, authority) == before
        following = asyncio.create_task(tls.follow())
        # A key without its certificate: halfway through a renewal, or a mistake.
        shutil.copy(other["key"], files["key"])
        assert await asyncio.wait_for(log.events.get(), 10) == "certificate not renewed"
        assert await shown(address, authority) == before
        shutil.copy(other["certificate"], files["certificate"])
        assert await asyncio.wait_for(log.events.get(), 10) == "certificate renewed"
        assert await shown(address, authority) == serial(other)
        assert (await kept.ask("GET", "/things")).status == 200
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    assert log.events.empty()


def test_a_new_ca_is_trusted_beside_the_old_one(authority: Authority, tmp_path: Path) -> None:
    successor = Authority(tmp_path, "successor")
    tls = of(authority.files())
    assert tls.client is not None

    both = authority.file_with(successor)

    async def call(theirs: Authority) -> bool:
        async with (
            served(*routes(), tls=of(theirs.files() | {"ca": str(both)})) as address,
            client(tls) as http,
        ):
            try:
                await http.call("GET", http.url(address, "/things"), deadline=soon())
            except Unreachable:
                return False
            return True

    assert not asyncio.run(call(successor))
    shutil.copy(both, authority.file)
    assert tls._certificates is not None
    assert tls._certificates.reread()
    assert not tls._certificates.reread()
    assert asyncio.run(call(successor))
    assert asyncio.run(call(authority))
