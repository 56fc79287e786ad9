# SPDX-License-Identifier: Apache-2.0
"""A certificate authority for a test, and what it issues."""

from __future__ import annotations

import ssl
from datetime import datetime
from pathlib import Path
from typing import Any

import trustme


class Authority:
    """Issues certificates into a folder."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder = folder
        self._name = name
        self.ca = trustme.CA()
        self._issued = 0
        self.file = folder / f"{name}.pem"
        self.ca.cert_pem.write_to_path(str(self.file))

    def file_with(self, other: Authority) -> Path:
        """A file by which certificates of both are trusted."""
        both = self._folder / f"{self._name}-and-{other._name}.pem"
        both.write_bytes(self.file.read_bytes() + other.file.read_bytes())
        return both

    def files(self, *hosts: str) -> dict[str, str]:
        """The settings of a service with a certificate for these hosts; 127.0.0.1 without any."""
        self._issued += 1
        base = self._folder / f"{self._name}-{self._issued}"
        certificate, key = base.with_suffix(".crt"), base.with_suffix(".key")
        self.issue(certificate, key, *hosts)
        return {"ca": str(self.file), "certificate": str(certificate), "key": str(key)}

    def issue(
        self, certificate: Path, key: Path, *hosts: str, not_after: datetime | None = None
    ) -> None:
        """Write a new certificate and its key over what is there."""
        issued = self.ca.issue_cert(*(hosts or ("127.0.0.1",)), not_after=not_after)
        certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        key.write_bytes(issued.private_key_pem.bytes())

    def tls(self, *hosts: str) -> dict[str, Any]:
        """The section that holds them."""
        return {"tls": self.files(*hosts)}

    def client(self, *, host: str | None = None) -> ssl.SSLContext:
        """For a client that trusts this authority; `host`: whose certificate it shows."""
        context = ssl.create_default_context(cafile=str(self.file))
        if host is not None:
            self.ca.issue_cert(host).configure_cert(context)
        return context
