# SPDX-License-Identifier: Apache-2.0
"""Config of storage backends: which repositories each one is for, where it is, and its limits."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, model_validator

from shoal.backend.paths import (
    BLOB_PATH,
    REPOSITORY_PATH,
    Layout,
    check_blob_path,
    check_repository_path,
    check_root,
)
from shoal.backend.upstreams import RegistryAccess, RegistryUrl
from shoal.config.model import Config
from shoal.config.units import Address, Bytes, Duration, Rate

Held = Literal["blobs", "tags"]

SMALLEST_PART = 5 * 1024 * 1024
"""What S3 takes as a part, the last one apart."""


def _regex(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from error
    return text


def _url(text: str) -> str:
    url = urlsplit(text)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError("expected a URL, such as https://storage.example.com")
    if url.username is not None or url.password is not None:
        raise ValueError("a URL has no user and password here: credentials have keys of their own")
    if url.query or url.fragment:
        raise ValueError("expected a URL without query and fragment")
    return text.rstrip("/")


Url = Annotated[str, AfterValidator(_url)]
Regex = Annotated[str, AfterValidator(_regex)]


class BandwidthConfig(Config):
    """How much may be transferred, by each process that has the backend in its config."""

    read: Rate = 0.0
    """Bytes per second that are read; 0: no limit."""

    write: Rate = 0.0
    """Bytes per second that are written; 0: no limit."""


class _Backend(Config):
    """What every backend has."""

    match: Regex | None = None
    """Regular expression that matches the whole name of each repository that it is for."""

    name: str | None = None
    """What it is called in queues and logs; where it stores, if not given."""

    holds: Annotated[tuple[Held, ...], Field(min_length=1)] = ("blobs", "tags")
    """What is kept in it."""

    bandwidth: BandwidthConfig = BandwidthConfig()

    timeout: Annotated[Duration, Field(gt=0)] = 15.0
    """For a connection or an answer to begin, and for a pause within a body."""


class _Paths(_Backend):
    """A backend that stores under paths."""

    root: Annotated[str, AfterValidator(check_root)] = ""
    """Path below which all is stored: distribution's `rootdirectory`."""

    blob_path: Annotated[str, AfterValidator(check_blob_path)] = BLOB_PATH
    """Path of a blob."""

    repository_path: Annotated[str, AfterValidator(check_repository_path)] = REPOSITORY_PATH
    """Path of the folder that holds a repository's tags and links."""

    @property
    def layout(self) -> Layout:
        """Where names are stored."""
        return Layout(self.root, self.blob_path, self.repository_path)


class _ObjectStore(_Paths):
    """A backend in an object store."""

    part_size: Annotated[Bytes, Field(ge=SMALLEST_PART)] = 8 * 1024 * 1024
    """Blobs of more than this are sent in parts of this size, or of 1/10,000 of the blob."""

    concurrency: Annotated[int, Field(ge=1, le=64)] = 4
    """Parts of one blob that are sent at the same time, at most. An upload has one more in memory;
    all uploads of a process together have 80 MiB (`shoal.backend.objects.UPLOADS`)."""

    retries: Annotated[int, Field(ge=0, le=10)] = 2
    """How often a request that failed by the network or a 5xx is repeated at once."""


class S3Keys(Config):
    """An access key."""

    access_key_id: str
    secret_access_key: SecretStr | None = None
    secret_access_key_file: Path | None = None
    """File that holds the secret key; read when keys are renewed, so it may be rotated."""

    session_token: SecretStr | None = None

    @model_validator(mode="after")
    def _one_secret(self) -> Self:
        if (self.secret_access_key is None) == (self.secret_access_key_file is None):
            raise ValueError("give one of secret_access_key and secret_access_key_file")
        return self


class S3Profile(Config):
    """A profile of the AWS config files: static keys, SSO, a role to assume, a process."""

    profile: str


class S3BackendConfig(_ObjectStore):
    """Amazon S3, or what speaks its protocol."""

    kind: Literal["s3"]
    bucket: Annotated[str, Field(min_length=1)]
    region: str | None = None
    """``us-east-1`` if neither this nor AWS_REGION is set."""

    endpoint: Url | None = None
    """Another server than Amazon's; http:// is taken, too."""

    virtual_hosts: bool = False
    """The bucket is a part of the host's name; `endpoint` must contain it then."""

    credentials: Literal["environment", "anonymous"] | S3Keys | S3Profile = "environment"
    """``environment``: AWS_ variables, a web identity, the container's or instance's role, in this
    order."""

    server_side_encryption: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = None
    kms_key_id: str | None = None


class GcsServiceAccount(Config):
    """A service account's key, as Google gives it out."""

    service_account_file: Path


class GcsBackendConfig(_ObjectStore):
    """Google Cloud Storage."""

    kind: Literal["gcs"]
    bucket: Annotated[str, Field(min_length=1)]
    endpoint: Url | None = None
    credentials: Literal["environment", "anonymous"] | GcsServiceAccount = "environment"
    """``environment``: GOOGLE_ variables, the file that gcloud left (application default
    credentials), or the instance's service account, in this order."""


class AzureKey(Config):
    """The storage account's key."""

    account_key: SecretStr | None = None
    account_key_file: Path | None = None

    @model_validator(mode="after")
    def _one_secret(self) -> Self:
        if (self.account_key is None) == (self.account_key_file is None):
            raise ValueError("give one of account_key and account_key_file")
        return self


class AzureSas(Config):
    """A shared access signature."""

    sas_token: SecretStr


class AzureClient(Config):
    """A service principal."""

    tenant_id: str
    client_id: str
    client_secret: SecretStr | None = None
    federated_token_file: Path | None = None
    """File with a token of another identity provider, such as Kubernetes (workload identity)."""

    @model_validator(mode="after")
    def _one_secret(self) -> Self:
        if (self.client_secret is None) == (self.federated_token_file is None):
            raise ValueError("give one of client_secret and federated_token_file")
        return self


class AzureBackendConfig(_ObjectStore):
    """Azure Blob Storage."""

    kind: Literal["azure"]
    account: Annotated[str, Field(min_length=1)]
    container: Annotated[str, Field(min_length=1)]
    endpoint: Url | None = None
    """Another server than Azure's, with the account in its path if it is needed there."""

    credentials: Literal["environment", "anonymous", "cli"] | AzureKey | AzureSas | AzureClient = (
        "environment"
    )
    """``environment``: AZURE_ variables, a workload identity, or the instance's managed identity.
    ``cli``: the user that is logged in by ``az login``."""


class LocalBackendConfig(_Paths):
    """A local folder, or one of a network file system."""

    kind: Literal["local"]
    path: Path
    """The folder; made if it is not there. `root` is below it."""


class MemoryBackendConfig(_Paths):
    """Memory of the process, for tests and trials: all is lost when it ends."""

    kind: Literal["memory"]


class HttpBackendConfig(_Paths):
    """A web server whose paths are those of the layout; read-only."""

    kind: Literal["http"]
    url: Url
    username: str | None = None
    password: SecretStr | None = None
    password_file: Path | None = None

    @model_validator(mode="after")
    def _whole_credentials(self) -> Self:
        if self.password is not None and self.password_file is not None:
            raise ValueError("give password or password_file, not both")
        if (self.username is None) != (self.password is None and self.password_file is None):
            raise ValueError("username needs password or password_file, and these need username")
        return self


class WebHdfsBackendConfig(_Paths):
    """HDFS by its WebHDFS API."""

    kind: Literal["webhdfs"]
    name_nodes: Annotated[tuple[Address, ...], Field(min_length=1)]
    """Asked in this order; the first that is active serves."""

    user: str | None = None
    """Sent as ``user.name`` (simple authentication)."""

    tls: bool = False
    """https:// instead of http://."""


class RegistryBackendConfig(RegistryAccess, _Backend):
    """Another registry of the OCI distribution API."""

    kind: Literal["registry"]
    url: RegistryUrl
    repository: str = "{repository}"
    """What a repository is called there; ``{repository}`` is what it is called here."""

    timeout: Annotated[Duration, Field(gt=0)] = 30.0

    @model_validator(mode="after")
    def _names_repository(self) -> Self:
        if self.repository.count("{repository}") != 1 or "{" in self.repository.replace(
            "{repository}", ""
        ):
            raise ValueError("repository needs {repository} once, such as mirror/{repository}")
        return self


class SqlBackendConfig(_Backend):
    """Tags in a database."""

    kind: Literal["sql"]
    url: SecretStr
    """As SQLAlchemy takes it: ``postgresql+psycopg://user:password@host/database``,
    ``mysql+pymysql://…``, ``sqlite:////path``."""

    holds: Annotated[tuple[Literal["tags"], ...], Field(min_length=1)] = ("tags",)


PlaceConfig = (
    S3BackendConfig
    | GcsBackendConfig
    | AzureBackendConfig
    | LocalBackendConfig
    | MemoryBackendConfig
    | HttpBackendConfig
    | WebHdfsBackendConfig
    | RegistryBackendConfig
    | SqlBackendConfig
)
"""One place; a shadow backend has two."""


class ShadowBackendConfig(_Backend):
    """Two backends with the same content, for moving from one to the other."""

    kind: Literal["shadow"]
    active: Annotated[PlaceConfig, Field(discriminator="kind")]
    """Read first, and listed."""

    mirror: Annotated[PlaceConfig, Field(discriminator="kind")]
    """Written, too; read for what `active` has not."""

    @model_validator(mode="after")
    def _only_places(self) -> Self:
        for side in ("active", "mirror"):
            given = getattr(self, side).model_fields_set & {"match", "name", "holds"}
            if given:
                raise ValueError(
                    f"{', '.join(sorted(given))} of {side} belongs to the shadow backend itself"
                )
            cannot = set(self.holds) - set(getattr(self, side).holds)
            if cannot:
                raise ValueError(f"{side} cannot hold {', '.join(sorted(cannot))}: set holds")
        return self


BackendConfig = Annotated[PlaceConfig | ShadowBackendConfig, Field(discriminator="kind")]


def _rules(backends: tuple[BackendConfig, ...]) -> tuple[BackendConfig, ...]:
    seen: dict[str, int] = {}
    for number, backend in enumerate(backends, 1):
        if backend.match is None:
            raise ValueError(
                f"entry {number} ({backend.kind}) has no match: a regular expression for the whole "
                "name of a repository, such as team/.* or .*"
            )
        for held in backend.holds:
            other = seen.setdefault(f"{held} {backend.match}", number)
            if other != number:
                raise ValueError(
                    f"entries {other} and {number} both match {backend.match!r} for {held}: only "
                    "the first would ever be used"
                )
    names = [backend.name for backend in backends if backend.name is not None]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"these names are given twice: {', '.join(sorted(twice))}")
    return backends


BackendsConfig = Annotated[tuple[BackendConfig, ...], AfterValidator(_rules)]
"""The type of the config key `backends`: the first entry that matches a repository is its."""


def layout_of(config: BackendConfig) -> Layout | None:
    """The layout of a backend that stores under paths."""
    return config.layout if isinstance(config, _Paths) else None


__all__ = [
    "AzureBackendConfig",
    "AzureClient",
    "AzureKey",
    "AzureSas",
    "BackendConfig",
    "BackendsConfig",
    "BandwidthConfig",
    "GcsBackendConfig",
    "GcsServiceAccount",
    "Held",
    "HttpBackendConfig",
    "LocalBackendConfig",
    "MemoryBackendConfig",
    "PlaceConfig",
    "RegistryBackendConfig",
    "S3BackendConfig",
    "S3Keys",
    "S3Profile",
    "ShadowBackendConfig",
    "SqlBackendConfig",
    "WebHdfsBackendConfig",
    "layout_of",
]
