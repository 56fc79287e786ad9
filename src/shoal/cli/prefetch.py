# SPDX-License-Identifier: Apache-2.0
"""``shoal prefetch``: have the origins hold an image before a rollout."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote, urlencode

import typer

from shoal.cli.failures import complain, config_faults, fail
from shoal.cli.sizes import seconds

if TYPE_CHECKING:
    from shoal.proxy.prefetch_report import PrefetchReport
    from shoal.web.client import HttpClient
    from shoal.web.tls import Tls

DEFAULT_PROXY = "127.0.0.1:5000"
ASK_AGAIN = 1.0
"""Seconds between two questions how far it is."""

_TIMEOUT = 30.0
"""Seconds for one answer."""


class _NotReady(Exception):
    """The image is not on the origins; the message says why."""


def register(main: typer.Typer) -> None:
    """Add the command."""
    main.command("prefetch")(_prefetch)


def _prefetch(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="NAME:TAG or NAME@DIGEST.")],
    *,
    proxy: Annotated[
        str, typer.Option(metavar="URL", help="The address of a proxy.")
    ] = DEFAULT_PROXY,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The config of a service: needed where the cluster speaks TLS."
        ),
    ] = None,
    platform: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OS/ARCH[/VARIANT]",
            help="Of an image for several platforms, only this one; may be repeated.",
        ),
    ] = None,
    wait: Annotated[
        float,
        typer.Option(
            parser=seconds,
            metavar="TIME",
            help="Return when all of it is there, and fail when it is not by then (such as 10m).",
        ),
    ] = "0",  # type: ignore[assignment]  # typer parses defaults, too
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Have the origins fetch what they lack of an image from its backend or upstream registry.

    Without --wait, returns when that is under way.
    """
    import msgspec

    tls = None
    if config is not None:
        from shoal.cli.gc_run import tls_of

        with config_faults():
            tls = tls_of(config)
    query = f"?{urlencode({'platform': platform}, doseq=True)}" if platform else ""
    path = f"/prefetch/{quote(image, safe='/:@')}{query}"
    try:
        report = asyncio.run(_until_ready(proxy, path, wait, tls))
    except _NotReady as error:
        raise fail("shoal prefetch", error) from None
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(report)).decode())
    else:
        typer.echo(line(report))
    for digest in report.elsewhere:
        complain(f"{digest} is a child of the index that {report.repository} does not have")
    if wait and not report.ready:
        raise fail("shoal prefetch", _NotReady(f"not all of it is there after {wait:g} s"))


def line(report: PrefetchReport) -> str:
    """What is said of an image."""
    what = f"{report.repository} {report.digest}"
    if report.ready:
        contents = f"{report.contents} blobs and manifests, {report.size / 1e6:.1f} MB"
        return f"{what}: ready, {contents}"
    coming = f"{report.coming} of {report.contents} blobs and manifests"
    return f"{what}: {coming} are coming, {report.coming_size / 1e6:.1f} MB"


async def _until_ready(proxy: str, path: str, wait: float, tls: Tls | None) -> PrefetchReport:
    """Ask, and while there is time to wait, ask again until all is there.

    Raises `_NotReady` when it is not for the proxy to have it ready.
    """
    from shoal.web.client import HttpClient
    from shoal.web.deadline import Deadline
    from shoal.web.failures import Overloaded

    patience = Deadline.after(wait)
    http = HttpClient(user_agent="shoal-prefetch", tls=tls)
    base = proxy if "://" in proxy else http.url(proxy, "")
    url = base.rstrip("/") + path
    try:
        while True:
            try:
                report = await _ask(http, url)
            except Overloaded as error:  # the next question may find it
                if patience.expired:
                    raise _NotReady(str(error)) from None
            else:
                if report.ready or patience.expired:
                    return report
            await asyncio.sleep(min(ASK_AGAIN, patience.remaining()))
    finally:
        await http.close()


async def _ask(http: HttpClient, url: str) -> PrefetchReport:
    from shoal.proxy.prefetch_report import PrefetchReport
    from shoal.web.deadline import Deadline
    from shoal.web.failures import CallFailed, Overloaded, Unreachable

    try:
        answer = await http.call("POST", url, deadline=Deadline.after(_TIMEOUT), expect=(200, 202))
        return answer.decode(PrefetchReport)
    except Overloaded:
        raise
    except Unreachable as error:
        raise _NotReady(f"{error}: is that the address of a running proxy?") from None
    except CallFailed as error:
        raise _NotReady(error.detail) from None
