# SPDX-License-Identifier: Apache-2.0
"""S3 and GCS against moto's server (GCS has an API that is S3's), and memory."""

from __future__ import annotations

import base64
import json
import traceback
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from moto.server import ThreadedMotoServer
from pydantic import SecretStr

from shoal.backend.base import Backend, TagName, TagsOf
from shoal.backend.config import (
    GcsBackendConfig,
    GcsServiceAccount,
    MemoryBackendConfig,
    S3BackendConfig,
    S3Keys,
)
from shoal.backend.local import LocalBackend
from shoal.backend.object_stores import open_gcs, open_memory, open_s3
from shoal.backend.paths import Layout
from shoal.backend.shadow import ShadowBackend
from shoal.config.load import ConfigError
from shoal.web.failures import Rejected
from tests.integration.backends.contract import (
    PART,
    REPOSITORY,
    BlobListingContract,
    BodyContract,
    DeadlineContract,
    DeniedContract,
    Place,
    RemoteContract,
    TagContract,
    WriteContract,
    blob,
    deadline,
    every_page,
    noise,
    read,
    store,
)
from tests.integration.backends.relay import Relay

NOWHERE = "http://127.0.0.1:1"
SECRET = "a-secret+that/no=error-shows"


@pytest.fixture(scope="module")
def moto() -> Iterator[tuple[str, int]]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        yield server.get_host_and_port()
    finally:
        server.stop()


def admin(moto: tuple[str, int], service: str = "s3") -> Any:
    return boto3.client(
        service,
        endpoint_url="http://{}:{}".format(*moto),
        aws_access_key_id="root",
        aws_secret_access_key="root",
        region_name="us-east-1",
    )


@pytest.fixture
def bucket(moto: tuple[str, int]) -> str:
    name = uuid.uuid4().hex
    admin(moto).create_bucket(Bucket=name)
    return name


@pytest.fixture
async def relay(moto: tuple[str, int]) -> AsyncIterator[Relay]:
    async with Relay.to(*moto) as relay:
        yield relay


def s3(bucket: str, endpoint: str, **more: Any) -> Backend:
    keys = S3Keys(access_key_id="AKID", secret_access_key=SecretStr(SECRET))
    return open_s3(
        S3BackendConfig(
            kind="s3",
            bucket=bucket,
            region="us-east-1",
            endpoint=endpoint,
            credentials=keys,
            part_size=PART,
            retries=1,
            **more,
        )
    )


class TestS3(
    WriteContract, TagContract, BlobListingContract, RemoteContract, BodyContract, DeniedContract
):
    @pytest.fixture
    def place(self, bucket: str, relay: Relay, refusing: str) -> Place:
        return Place(
            s3(bucket, f"http://{relay.address}", root="some/root"),
            faults=relay,
            dead=s3(bucket, NOWHERE),
            denied=s3(bucket, refusing),
            secret=SECRET,
        )

    async def test_a_missing_bucket_is_not_a_missing_blob(self, relay: Relay) -> None:
        backend = s3("no-such-bucket", f"http://{relay.address}")
        with pytest.raises(Rejected, match="no such bucket"):
            await backend.stat(blob(b"x"), deadline=deadline())
        with pytest.raises(Rejected, match="no such bucket"):
            await read(backend, blob(b"x"))
        with pytest.raises(Rejected, match="no such bucket"):
            await store(backend, b"x")

    async def test_an_upload_that_breaks_off_leaves_no_parts(
        self, place: Place, bucket: str, moto: tuple[str, int]
    ) -> None:
        await self.test_a_source_that_breaks_off_stores_nothing(place)
        assert "Uploads" not in admin(moto).list_multipart_uploads(Bucket=bucket)

    async def test_digests_that_a_tag_had_before_go_with_it(
        self, place: Place, bucket: str, moto: tuple[str, int]
    ) -> None:
        # Distribution writes them beside the tag; they would keep it in listings.
        await self.tag(place, REPOSITORY, "v1")
        folder = f"some/root/docker/registry/v2/repositories/{REPOSITORY}/_manifests/tags/v1"
        key = f"{folder}/index/sha256/{'0' * 64}/link"
        admin(moto).put_object(Bucket=bucket, Key=key, Body=b"x")
        await place.backend.delete(TagName(REPOSITORY, "v1"), deadline=deadline())
        assert await every_page(place.backend, TagsOf(REPOSITORY), 10) == []

    async def test_a_key_of_the_config_takes_nothing_from_the_environment(
        self, bucket: str, relay: Relay, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_SESSION_TOKEN", "of-another-key")
        backend = s3(bucket, f"http://{relay.address}")
        await store(backend, b"signed")
        assert "of-another-key" not in relay.heard.decode(errors="replace")
        assert "Credential=AKID/" in relay.heard.decode(errors="replace")

    async def test_a_profile_gives_its_keys(
        self, bucket: str, relay: Relay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = tmp_path / "credentials"
        file.write_text("[team]\naws_access_key_id = PROFILED\naws_secret_access_key = x\n")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        config = S3BackendConfig.model_validate(
            {
                "kind": "s3",
                "bucket": bucket,
                "endpoint": f"http://{relay.address}",
                "credentials": {"profile": "team"},
            }
        )
        await store(open_s3(config), b"signed")
        assert "Credential=PROFILED/" in relay.heard.decode(errors="replace")

    async def test_the_environment_gives_the_keys(
        self, bucket: str, relay: Relay, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "FROMENV")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
        config = S3BackendConfig(kind="s3", bucket=bucket, endpoint=f"http://{relay.address}")
        await store(open_s3(config), b"signed")
        assert "Credential=FROMENV/" in relay.heard.decode(errors="replace")

    @pytest.mark.parametrize("role", ["instance", "container"])
    async def test_the_machines_role_gives_the_keys(
        self,
        bucket: str,
        relay: Relay,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        role: str,
    ) -> None:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        async with metadata_service() as url:
            if role == "instance":
                monkeypatch.setenv("AWS_METADATA_ENDPOINT", url)
            else:
                monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{url}/container")
                token = tmp_path / "token"
                token.write_text("of-the-container")
                monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(token))
            config = S3BackendConfig(kind="s3", bucket=bucket, endpoint=f"http://{relay.address}")
            await store(open_s3(config), b"signed")
        heard = relay.heard.decode(errors="replace")
        assert f"Credential=OF-THE-{role.upper()}/" in heard
        assert "session-token" in heard


@asynccontextmanager
async def metadata_service() -> AsyncIterator[str]:
    """Gives out credentials as an instance (IMDSv2) and a pod (EKS Pod Identity) have them."""

    def keys(role: str) -> web.Response:
        return web.json_response(
            {
                "Code": "Success",
                "Type": "AWS-HMAC",
                "AccessKeyId": f"OF-THE-{role}",
                "SecretAccessKey": "x",
                "Token": "session-token",
                "LastUpdated": "2026-01-01T00:00:00Z",
                "Expiration": "2999-01-01T00:00:00Z",
            }
        )

    async def answer(request: web.Request) -> web.Response:
        asked = f"{request.method} {request.path}"
        if asked == "PUT /latest/api/token":
            return web.Response(text="imds")
        if asked == "GET /container":
            if request.headers.get("Authorization") != "of-the-container":
                return web.Response(status=403)
            return keys("CONTAINER")
        if request.headers.get("X-aws-ec2-metadata-token") != "imds":
            return web.Response(status=401)
        if request.path.rstrip("/").endswith("/security-credentials"):
            return web.Response(text="role-of-the-instance")
        assert asked.endswith("/security-credentials/role-of-the-instance")
        return keys("INSTANCE")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(app, host="127.0.0.1") as server:
        yield str(server.make_url("")).rstrip("/")


class TestShadowOfS3(
    WriteContract, TagContract, BlobListingContract, RemoteContract, BodyContract, DeniedContract
):
    """Whatever becomes of `active`, `mirror` has less to say."""

    @pytest.fixture
    def place(self, bucket: str, relay: Relay, refusing: str, tmp_path: Path) -> Place:
        def shadow(endpoint: str) -> Backend:
            mirror = LocalBackend(tmp_path / "mirror", Layout(), timeout=10)
            return ShadowBackend(s3(bucket, endpoint), mirror)

        return Place(
            shadow(f"http://{relay.address}"),
            faults=relay,
            dead=shadow(NOWHERE),
            denied=shadow(refusing),
            secret=SECRET,
        )


class TestGcs(
    WriteContract, TagContract, BlobListingContract, RemoteContract, BodyContract, DeniedContract
):
    @pytest.fixture
    def place(self, bucket: str, relay: Relay, refusing: str, tmp_path: Path) -> Place:
        account = service_account(tmp_path)

        def gcs(endpoint: str, **more: Any) -> Backend:
            return open_gcs(
                GcsBackendConfig(
                    kind="gcs",
                    bucket=bucket,
                    endpoint=endpoint,
                    credentials=GcsServiceAccount(service_account_file=account),
                    part_size=PART,
                    retries=1,
                    **more,
                )
            )

        return Place(
            gcs(f"http://{relay.address}", blob_path="blobs/{algorithm}/{hex}"),
            faults=relay,
            dead=gcs(NOWHERE),
            denied=gcs(refusing),
            secret="PRIVATE KEY",
        )

    async def test_the_key_signs_each_request(self, place: Place, relay: Relay) -> None:
        await store(place.backend, b"signed")
        token = relay.heard.partition(b"uthorization: Bearer ")[2].partition(b"\r\n")[0]
        claims = token.split(b".")[1]
        assert b"shoal@project" in base64.urlsafe_b64decode(claims + b"=" * (-len(claims) % 4))

    def test_a_key_that_is_none_stops_the_start_and_is_not_shown(self, tmp_path: Path) -> None:
        file = tmp_path / "bad.json"
        file.write_text('{"private_key": "s3cr3t", "client_email": ')
        with pytest.raises(ConfigError) as failed:
            open_gcs(
                GcsBackendConfig(
                    kind="gcs",
                    bucket="b",
                    credentials=GcsServiceAccount(service_account_file=file),
                )
            )
        assert "s3cr3t" not in "".join(traceback.format_exception(failed.value))
        assert "gs://b" in str(failed.value)


def service_account(folder: Path) -> Path:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    account = {
        "type": "service_account",
        "private_key": pem.decode(),
        "private_key_id": "1",
        "client_email": "shoal@project.iam.gserviceaccount.com",
    }
    file = folder / "service-account.json"
    file.write_text(json.dumps(account))
    return file


class TestMemory(WriteContract, TagContract, BlobListingContract, DeadlineContract):
    @pytest.fixture
    def place(self) -> Place:
        return Place(open_memory(MemoryBackendConfig(kind="memory")))


async def test_a_blob_of_more_parts_than_are_sent_at_once_stays_in_bounds(
    bucket: str, relay: Relay
) -> None:
    backend = s3(bucket, f"http://{relay.address}", concurrency=1)
    content = noise(5 * PART)
    name = blob(content)
    sent = 0
    ahead = 0

    class Watched:
        size = len(content)

        async def chunks(self) -> AsyncIterator[bytes]:
            nonlocal sent, ahead
            for start in range(0, self.size, 1024 * 1024):
                sent += 1024 * 1024
                ahead = max(ahead, sent - len(relay.heard))
                yield content[start : start + 1024 * 1024]

    await backend.put(name, Watched(), deadline=deadline())
    # What was read and has not left: `concurrency` parts under way and the one being filled.
    assert ahead <= 2 * PART + 1024 * 1024
    assert await read(backend, name) == content
