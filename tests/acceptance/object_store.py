# SPDX-License-Identifier: Apache-2.0
"""The backend of the scenarios: a server of S3's API in a process that a test stops and starts."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Self
from urllib.error import HTTPError

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

from shoal.cluster.layout import BLOCK, HOST
from shoal.cluster.ports import reserve

BUCKET: Final = "shoal"
_KEYS: Final = {"access_key_id": "test", "secret_access_key": "test"}
_UP_WITHIN: Final = 30.0
_GLANCE: Final = 0.1
_STOP_WITHIN: Final = 10.0


class ObjectStore:
    """moto's server. It keeps all in memory, so a stop loses it; the port stays. Use `run`."""

    def __init__(self, log: Path, port: int) -> None:
        self.endpoint = f"http://{HOST}:{port}"
        self._log = log
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None
        self._frozen = False
        self._client: Any = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=_KEYS["access_key_id"],
            aws_secret_access_key=_KEYS["secret_access_key"],
            config=Config(retries={"mode": "standard", "total_max_attempts": 4}, proxies={}),
        )

    @classmethod
    @contextlib.contextmanager
    def run(cls, log: Path) -> Iterator[Self]:
        """Run it, with an empty bucket, while the body runs."""
        with reserve(BLOCK) as ports:
            store = cls(log, ports.first + 1)
            try:
                store.start()
                yield store
            finally:
                store.stop()
                store._client.close()

    def backend(self, match: str) -> dict[str, Any]:
        """An entry of the config key `backends` for the repositories that `match`."""
        return {
            "match": match,
            "kind": "s3",
            "bucket": BUCKET,
            "region": "us-east-1",
            "endpoint": self.endpoint,
            "credentials": dict(_KEYS),
            "timeout": "2s",
            "retries": 1,
        }

    # -- the process

    def start(self) -> None:
        """Start it, if it does not run, with an empty bucket."""
        if self._process is not None:
            return
        argv = [sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(self._port)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        self._wait_up(self._process)
        self._client.create_bucket(Bucket=BUCKET)

    def stop(self) -> None:
        """End it at once: connections to it are refused from now on."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(_STOP_WITHIN)
        self._process = None
        self._frozen = False

    def freeze(self) -> None:
        """Let it take connections and answer nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        self._frozen = True

    def mend(self) -> None:
        """Have it answer again, whatever was done to it."""
        if self._process is not None and self._frozen:
            self._process.send_signal(signal.SIGCONT)
            self._frozen = False
        self.start()

    def _wait_up(self, process: subprocess.Popen[bytes]) -> None:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        for _ in range(int(_UP_WITHIN / _GLANCE)):
            try:
                with opener.open(self.endpoint, timeout=5):
                    return
            except HTTPError as error:
                error.close()
                return  # It answers.
            except OSError:
                pass
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_GLANCE)
                raise AssertionError(f"moto's server ended:\n{self._log.read_text()}")
        raise AssertionError(f"moto's server is not up after {_UP_WITHIN} s")

    # -- what is in it, under the paths that distribution gives them

    def put_blob(self, repository: str, digest: str, data: bytes) -> None:
        """Store a blob of a repository, as another registry would."""
        self._client.put_object(Bucket=BUCKET, Key=_blob(digest), Body=data)
        self._client.put_object(Bucket=BUCKET, Key=_link(repository, digest), Body=digest.encode())

    def has_blob(self, digest: str) -> bool:
        """Whether the bytes of a blob are there."""
        return self._has(_blob(digest))

    def has_tag(self, repository: str, tag: str) -> bool:
        """Whether a tag is there."""
        return self._has(f"{_repository(repository)}/_manifests/tags/{tag}/current/link")

    def links(self, repository: str) -> set[str]:
        """Digests of all blobs and manifests that belong to a repository."""
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=BUCKET, Prefix=f"{_repository(repository)}/"
        )
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
        kinds = ("/_layers/", "/_manifests/revisions/")
        return {
            "{}:{}".format(*key.split("/")[-3:-1])
            for key in keys
            if any(kind in key for kind in kinds)
        }

    def _has(self, key: str) -> bool:
        try:
            self._client.head_object(Bucket=BUCKET, Key=key)
        except ClientError as error:
            if error.response["Error"]["Code"] == "404":
                return False
            raise
        return True


def _blob(digest: str) -> str:
    algorithm, _, digits = digest.partition(":")
    return f"docker/registry/v2/blobs/{algorithm}/{digits[:2]}/{digits}/data"


def _repository(name: str) -> str:
    return f"docker/registry/v2/repositories/{name}"


def _link(repository: str, digest: str) -> str:
    algorithm, _, digits = digest.partition(":")
    return f"{_repository(repository)}/_layers/{algorithm}/{digits}/link"
