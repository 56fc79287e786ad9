# SPDX-License-Identifier: Apache-2.0
"""Certificates: read at the start, checked, and read again when their files have changed."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from pathlib import Path

import structlog
from prometheus_client import Gauge

from shoal.config.model import TlsConfig
from shoal.store.threads import in_thread

LOOK_EVERY = 10.0
"""Seconds between two looks whether the files have changed."""

log = structlog.get_logger()

_EXPIRES = Gauge(
    "shoal_certificate_expires_seconds",
    "When the certificate that is shown to others expires, in seconds of the epoch.",
    ["section"],
)

_AS_CLIENT = ssl.PROTOCOL_TLS_CLIENT
_AS_SERVER = ssl.PROTOCOL_TLS_SERVER

_Stamp = tuple[tuple[int, int, int], ...]


class CannotSecure(Exception):
    """A file of a TLS config is of no use; the message is one line that names it."""


class Certificates:
    """The files of one section of a config, and the contexts that were made of them."""

    def __init__(self, *, certificate: Path, key: Path, ca: Path, section: str) -> None:
        """`section` is what the config calls it (``tls``), for errors and the log.

        Raises `CannotSecure`.
        """
        self._files = {"certificate": certificate, "key": key, "ca": ca}
        self._section = section
        self._contexts: list[ssl.SSLContext] = []
        self._loaded = self._stamp()
        self._prove()

    def context(self, protocol: int, minimum: ssl.TLSVersion) -> ssl.SSLContext:
        """A context that shows the certificate and demands one of the `ca`.

        It stays up to date by `reread`. `protocol` is one of ``ssl.PROTOCOL_TLS_*``.
        """
        context = ssl.SSLContext(protocol)
        context.minimum_version = minimum
        context.verify_mode = ssl.CERT_REQUIRED
        if protocol == ssl.PROTOCOL_TLS_SERVER:
            # Connections are kept; a ticket would outlive the certificate that it was given to.
            context.num_tickets = 0
            context.options |= ssl.OP_NO_TICKET
        self._load(context)
        self._contexts.append(context)
        return context

    def reread(self) -> bool:
        """Let new connections use the files as they are now; whether they had changed.

        Certificates that are no more in `ca` stay trusted until the next start: OpenSSL can only
        add. Raises `CannotSecure`, and all stays as it was.
        """
        now = self._stamp()
        if now == self._loaded:
            return False
        self._prove()
        for context in self._contexts:
            self._load(context)
        self._loaded = now
        return True

    async def follow(self) -> None:
        """Look at the files at intervals, and use them as they are then, until cancelled."""
        complained: _Stamp = ()
        while True:
            await asyncio.sleep(LOOK_EVERY)
            now = await in_thread(self._stamp)
            if now in (self._loaded, complained):
                continue
            try:
                # Not in a thread: a context must not change while a connection is made of it.
                self.reread()
            except CannotSecure as error:
                complained = now
                log.warning("certificate not renewed", section=self._section, error=str(error))
            else:
                log.info("certificate renewed", section=self._section)

    def _stamp(self) -> _Stamp:
        """What changes when a file is replaced or written, also behind a symbolic link."""
        stamps = []
        for path in self._files.values():
            try:
                found = path.stat()
            except OSError:
                stamps.append((0, 0, 0))
            else:
                stamps.append((found.st_ino, found.st_mtime_ns, found.st_size))
        return tuple(stamps)

    def _prove(self) -> None:
        """See that others of the same `ca` will accept the certificate, as a server and a client.

        It shakes hands with itself, in memory.
        """
        near, far = (ssl.SSLContext(side) for side in (_AS_CLIENT, _AS_SERVER))
        # Any certificate is meant for some host; which it is, those who call it will see.
        near.check_hostname = False
        far.verify_mode = ssl.CERT_REQUIRED
        for context in (near, far):
            self._load(context)
        there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = near.wrap_bio(back, there)
        server = far.wrap_bio(there, back, server_side=True)
        try:
            for side in (client, server, client, server):
                with suppress(ssl.SSLWantReadError):
                    side.do_handshake()
        except ssl.SSLError as error:
            raise CannotSecure(
                f'nobody who trusts {self._files["ca"]} (config key "{self._section}.ca") accepts '
                f'{self._files["certificate"]} (config key "{self._section}.certificate"): '
                f"{_reason(error)}"
            ) from error
        shown = client.getpeercert() or {}
        _EXPIRES.labels(self._section).set(ssl.cert_time_to_seconds(str(shown["notAfter"])))

    def _load(self, context: ssl.SSLContext) -> None:
        for name in self._files:
            self._check_readable(name)
        try:
            context.load_verify_locations(self._files["ca"])
        except (OSError, ValueError) as error:
            raise self._useless("ca", error) from error
        certificate, key = self._files["certificate"], self._files["key"]
        try:
            context.load_cert_chain(certificate, key, password=_no_passphrase)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise CannotSecure(
                    f'the key {key} (config key "{self._section}.key") is not that of the '
                    f'certificate {certificate} (config key "{self._section}.certificate")'
                ) from error
            raise CannotSecure(
                f"cannot use {certificate} with the key {key} (config keys "
                f'"{self._section}.certificate", "{self._section}.key"): {_reason(error)}'
            ) from error
        except (OSError, ValueError) as error:
            raise self._useless("key", error) from error

    def _check_readable(self, name: str) -> None:
        try:
            with self._files[name].open("rb"):
                pass
        except OSError as error:
            raise self._useless(name, error) from error

    def _useless(self, name: str, error: Exception) -> CannotSecure:
        place = f'{self._files[name]} (config key "{self._section}.{name}")'
        return CannotSecure(f"cannot use {place}: {_reason(error)}")


class Tls:
    """What the section `tls` of a service's config says of its listeners and its calls."""

    def __init__(self, config: TlsConfig) -> None:
        """Read the files; raises `CannotSecure`."""
        self._certificates: Certificates | None = None
        self.server: ssl.SSLContext | None = None
        """For listeners; None: they speak plain HTTP."""
        self.client: ssl.SSLContext | None = None
        """For calls to other services of the cluster, who must prove to be the hosts called."""
        if config.certificate is None or config.key is None or config.ca is None:
            return
        self._certificates = Certificates(
            certificate=config.certificate, key=config.key, ca=config.ca, section="tls"
        )
        self.client = self._certificates.context(ssl.PROTOCOL_TLS_CLIENT, ssl.TLSVersion.TLSv1_2)
        self.server = self._certificates.context(ssl.PROTOCOL_TLS_SERVER, ssl.TLSVersion.TLSv1_2)
        # Who shows a certificate must show a good one. What needs one is up to the gate.
        self.server.verify_mode = ssl.CERT_OPTIONAL
        for context in (self.client, self.server):
            context.set_alpn_protocols(["http/1.1"])

    @property
    def on(self) -> bool:
        """Whether the services of the cluster speak TLS."""
        return self._certificates is not None

    async def follow(self) -> None:
        """Use renewed files for new connections, until cancelled."""
        if self._certificates is not None:
            await self._certificates.follow()


def why(error: Exception) -> str:
    """What went wrong with a TLS handshake, in words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        reason = _reason(error)
        if reason in {"wrong version number", "http request", "record layer failure"}:
            return "it does not speak TLS, and this side demands it"
        return f"no TLS handshake: {reason}"
    return f"no TLS handshake: {error}"


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error)


def _no_passphrase() -> str:
    raise ValueError("the key is protected by a passphrase, and nobody is here to enter it")
