# SPDX-License-Identifier: Apache-2.0
"""Object stores as the config describes them, and where their credentials come from.

Explicit credentials go through a provider, so that nothing of the environment (such as a session
token that belongs to another key) is mixed in.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, MemoryStore, S3Store
from pydantic import SecretStr

from shoal.backend.config import (
    AzureBackendConfig,
    AzureClient,
    AzureKey,
    AzureSas,
    GcsBackendConfig,
    GcsServiceAccount,
    MemoryBackendConfig,
    S3BackendConfig,
    S3Keys,
    S3Profile,
)
from shoal.backend.objects import ObjectBackend, Transfer
from shoal.config.load import ConfigError
from shoal.store.threads import in_thread

if TYPE_CHECKING:
    from obstore.auth.boto3 import Boto3CredentialProvider
    from obstore.store import (
        AzureConfig,
        ClientConfig,
        GCSConfig,
        RetryConfig,
        S3Config,
        S3Credential,
        S3CredentialProvider,
    )

_LONGEST = timedelta(hours=24)
"""Of one request, body included: pauses and deadlines end it, not its length."""


def open_s3(config: S3BackendConfig) -> ObjectBackend:
    """Amazon S3, or what speaks its protocol; raises `ConfigError`."""
    options: S3Config = {
        "virtual_hosted_style_request": config.virtual_hosts,
        # One object at a time is deleted, and not every server has the call for many.
        "disable_bulk_delete": True,
    }
    if config.region is not None:
        options["region"] = config.region
    if config.endpoint is not None:
        options["endpoint"] = config.endpoint
    if config.server_side_encryption is not None:
        options["server_side_encryption"] = config.server_side_encryption
    if config.kms_key_id is not None:
        options["sse_kms_key_id"] = config.kms_key_id
    provider: S3CredentialProvider | None = None
    secrets: list[str] = []
    if isinstance(config.credentials, S3Keys):
        keys = _S3Keys(config.credentials)
        secrets, provider = keys.secrets(), keys
    elif isinstance(config.credentials, S3Profile):
        provider = _S3Profile(config.credentials.profile)
        if "region" not in options and provider.region is not None:
            options["region"] = provider.region
    elif config.credentials == "anonymous":
        options["skip_signature"] = True
    with _usable(f"s3://{config.bucket}"):
        store = S3Store(
            config.bucket,
            config=options,
            client_options=_client(config.endpoint, config.timeout),
            retry_config=_retries(config.retries),
            credential_provider=provider,
        )
    return ObjectBackend(
        store,
        config.layout,
        place=f"s3://{config.bucket}",
        transfer=_transfer(config),
        secrets=secrets,
    )


def open_gcs(config: GcsBackendConfig) -> ObjectBackend:
    """Google Cloud Storage; raises `ConfigError`."""
    options: GCSConfig = {}
    if config.endpoint is not None:
        options["base_url"] = config.endpoint
    if isinstance(config.credentials, GcsServiceAccount):
        file = config.credentials.service_account_file
        options["service_account_key"] = _given(None, file)
    elif config.credentials == "anonymous":
        options["skip_signature"] = True
    with _usable(f"gs://{config.bucket}"):
        store = GCSStore(
            config.bucket,
            config=options,
            client_options=_client(config.endpoint, config.timeout),
            retry_config=_retries(config.retries),
        )
    return ObjectBackend(
        store, config.layout, place=f"gs://{config.bucket}", transfer=_transfer(config)
    )


def open_azure(config: AzureBackendConfig) -> ObjectBackend:
    """Azure Blob Storage; raises `ConfigError`."""
    options: AzureConfig = {"account_name": config.account}
    secret = ""
    if config.endpoint is not None:
        options["endpoint"] = config.endpoint
    credentials = config.credentials
    if isinstance(credentials, AzureKey):
        secret = _given(credentials.account_key, credentials.account_key_file)
        options["account_key"] = secret
        options["credential_type"] = "access_key"
    elif isinstance(credentials, AzureSas):
        secret = credentials.sas_token.get_secret_value()
        options["sas_key"] = secret
        options["credential_type"] = "sas_token"
    elif isinstance(credentials, AzureClient):
        options["tenant_id"] = credentials.tenant_id
        options["client_id"] = credentials.client_id
        if credentials.client_secret is not None:
            secret = credentials.client_secret.get_secret_value()
            options["client_secret"] = secret
            options["credential_type"] = "client_secret"
        else:
            options["federated_token_file"] = str(credentials.federated_token_file)
            options["credential_type"] = "workload_identity"
    elif credentials == "cli":
        options["use_azure_cli"] = True
        options["credential_type"] = "azure_cli"
    elif credentials == "anonymous":
        options["skip_signature"] = True
    with _usable(f"az://{config.account}/{config.container}"):
        store = AzureStore(
            config.container,
            config=options,
            client_options=_client(config.endpoint, config.timeout),
            retry_config=_retries(config.retries),
        )
    return ObjectBackend(
        store,
        config.layout,
        place=f"az://{config.account}/{config.container}",
        transfer=_transfer(config),
        secrets=[secret] if secret else [],
    )


def open_memory(config: MemoryBackendConfig) -> ObjectBackend:
    """Memory of this process."""
    return ObjectBackend(
        MemoryStore(), config.layout, place="memory:", transfer=Transfer(timeout=config.timeout)
    )


class _S3Keys:
    """A key of the config; a secret in a file is read again when the store asks again."""

    def __init__(self, keys: S3Keys) -> None:
        self._keys = keys

    def secrets(self) -> list[str]:
        """What must not be shown."""
        token = self._keys.session_token
        return [self._secret(), *([token.get_secret_value()] if token is not None else [])]

    def __call__(self) -> S3Credential:
        token = self._keys.session_token
        return {
            "access_key_id": self._keys.access_key_id,
            "secret_access_key": self._secret(),
            "token": None if token is None else token.get_secret_value(),
            "expires_at": None,
        }

    def _secret(self) -> str:
        return _given(self._keys.secret_access_key, self._keys.secret_access_key_file)


class _S3Profile:
    """A profile's credentials, by boto3, which knows all the ways that a profile may name."""

    def __init__(self, profile: str) -> None:
        try:
            # Loaded only where it is used: it is an extra.
            from boto3.session import Session  # noqa: PLC0415
            from botocore.exceptions import BotoCoreError  # noqa: PLC0415
            from obstore.auth.boto3 import Boto3CredentialProvider  # noqa: PLC0415
        except ImportError as error:
            raise ConfigError(
                ["credentials of a profile need boto3: pip install 'shoal[aws]'"]
            ) from error
        try:
            session = Session(profile_name=profile)
            self._provider: Boto3CredentialProvider = Boto3CredentialProvider(session)
        except (BotoCoreError, ValueError) as error:
            raise ConfigError(
                [f"no credentials of the AWS profile {profile!r}: {error}"]
            ) from error
        self.region = session.region_name

    async def __call__(self) -> S3Credential:
        # It may ask a service, or run a program.
        return await in_thread(self._provider)


@contextmanager
def _usable(place: str) -> Iterator[None]:
    """Say that a store cannot be made, without what the library quotes: it may be a secret."""
    try:
        yield
    except (BaseError, ValueError, TypeError, OSError) as error:
        kind = type(error).__name__
        raise ConfigError(
            [f"{place} cannot be used with these settings: check its credentials ({kind})"]
        ) from None


def _transfer(config: S3BackendConfig | GcsBackendConfig | AzureBackendConfig) -> Transfer:
    return Transfer(config.part_size, config.concurrency, config.timeout)


def _client(endpoint: str | None, timeout: float) -> ClientConfig:
    return {
        "allow_http": endpoint is not None and endpoint.startswith("http://"),
        "connect_timeout": timedelta(seconds=timeout),
        "read_timeout": timedelta(seconds=timeout),
        "timeout": _LONGEST,
    }


def _retries(count: int) -> RetryConfig:
    return {
        "max_retries": count,
        "retry_timeout": timedelta(minutes=3),
        "backoff": {
            "init_backoff": timedelta(milliseconds=100),
            "max_backoff": timedelta(seconds=2),
            "base": 2,
        },
    }


def _given(secret: SecretStr | None, file: Path | None) -> str:
    """A secret, or what is in its file: the config has one of them."""
    if secret is not None:
        return secret.get_secret_value()
    if file is None:
        return ""
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"cannot read the secret in {file}: {error}"]) from error
