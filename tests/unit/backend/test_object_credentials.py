# SPDX-License-Identifier: Apache-2.0
"""Credentials of Azure and GCS in the config become what the library takes them as."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from pydantic import TypeAdapter

from shoal.backend import object_stores
from shoal.backend.config import AzureBackendConfig, GcsBackendConfig
from shoal.backend.object_stores import open_azure, open_gcs
from shoal.config.units import FROM_TEXT

KEY = base64.b64encode(b"the account's key").decode()


def azure(credentials: object) -> AzureBackendConfig:
    data = {"kind": "azure", "account": "a", "container": "c", "credentials": credentials}
    return TypeAdapter(AzureBackendConfig).validate_python(data, context={FROM_TEXT: True})


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The options of the store that was made last."""
    options: dict[str, Any] = {}
    for name in ("AzureStore", "GCSStore"):
        real = getattr(object_stores, name)

        def make(*arguments: Any, real: Any = real, **more: Any) -> Any:
            options.clear()
            options.update(more["config"])
            return real(*arguments, **more)

        monkeypatch.setattr(object_stores, name, make)
    return options


@pytest.mark.parametrize(
    "credentials, options",
    [
        ({"account_key": KEY}, {"account_key": KEY, "credential_type": "access_key"}),
        (
            {"sas_token": "sv=1&sig=s"},
            {"sas_key": "sv=1&sig=s", "credential_type": "sas_token"},
        ),
        (
            {"tenant_id": "t", "client_id": "i", "client_secret": "s"},
            {
                "tenant_id": "t",
                "client_id": "i",
                "client_secret": "s",
                "credential_type": "client_secret",
            },
        ),
        (
            {"tenant_id": "t", "client_id": "i", "federated_token_file": "/var/run/token"},
            {
                "tenant_id": "t",
                "client_id": "i",
                "federated_token_file": "/var/run/token",
                "credential_type": "workload_identity",
            },
        ),
        ("cli", {"use_azure_cli": True, "credential_type": "azure_cli"}),
        ("anonymous", {"skip_signature": True}),
        ("environment", {}),
    ],
)
def test_each_kind_of_azures_credentials(
    given: dict[str, Any], credentials: object, options: dict[str, Any]
) -> None:
    open_azure(azure(credentials))
    assert given == {"account_name": "a", **options}


@pytest.mark.parametrize(
    "credentials, options", [("anonymous", {"skip_signature": True}), ("environment", {})]
)
def test_gcs_without_a_service_accounts_file(
    given: dict[str, Any], credentials: str, options: dict[str, Any]
) -> None:
    data = {"kind": "gcs", "bucket": "b", "credentials": credentials}
    open_gcs(GcsBackendConfig.model_validate(data))
    assert given == options
