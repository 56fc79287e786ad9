# SPDX-License-Identifier: Apache-2.0
"""``shoal why``: where the time of one pull went."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import typer

from shoal.cli.failures import config_faults, fail

if TYPE_CHECKING:
    from shoal.agent.why_report import PullReport
    from shoal.web.tls import Tls

DEFAULT_AGENT = "127.0.0.1:5011"
_TIMEOUT = 10.0


class _NotAnswered(Exception):
    """The agent has no report; the message says why."""


def register(main: typer.Typer) -> None:
    """Add the command."""
    main.command("why")(_why)


def _why(
    image: Annotated[
        str, typer.Argument(metavar="IMAGE", help="As pulled: NAME:TAG or NAME@DIGEST.")
    ],
    *,
    agent: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help=f"The agent's admin address; by default that of its config, or {DEFAULT_AGENT}.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The agent's config file: needed where the cluster speaks TLS."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show where the time of the last pull of an image through this host's agent went."""
    import msgspec

    from shoal.cli import why_text

    tls = None
    if config is not None:
        from shoal.cli.gc_run import read_config, tls_of

        with config_faults():
            tls = tls_of(config)
            agent = agent or _from_here(str(read_config(config).get("admin", DEFAULT_AGENT)))
    try:
        report = asyncio.run(_ask(agent or DEFAULT_AGENT, image, tls))
    except _NotAnswered as error:
        raise fail("shoal why", error) from None
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(report)).decode())
        return
    for line in why_text.lines(report):
        typer.echo(line)


def _from_here(listened: str) -> str:
    """How this host calls the address that its agent listens on."""
    host, colon, port = listened.rpartition(":")
    return {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host) + colon + port  # noqa: S104


async def _ask(agent: str, image: str, tls: Tls | None) -> PullReport:
    from shoal.agent.why_report import PullReport
    from shoal.model.names import split_host
    from shoal.web.client import HttpClient
    from shoal.web.deadline import Deadline
    from shoal.web.failures import CallFailed, NotFound, Rejected

    http = HttpClient(user_agent="shoal-why", tls=tls)
    base = agent if "://" in agent else http.url(agent, "")
    url = f"{base.rstrip('/')}/why/{quote(split_host(image)[1], safe='/:@')}"
    try:
        answer = await http.call("GET", url, deadline=Deadline.after(_TIMEOUT))
        return answer.decode(PullReport)
    except (NotFound, Rejected) as error:
        raise _NotAnswered(_message(error.body) or str(error)) from None
    except CallFailed as error:
        raise _NotAnswered(f"{error}: is that the admin address of a running agent?") from None
    finally:
        await http.close()


def _message(body: object) -> str:
    """What the agent said in its own words, if it did."""
    if isinstance(body, dict) and isinstance(errors := body.get("errors"), list) and errors:
        first = errors[0]
        return str(first.get("message", "")) if isinstance(first, dict) else ""
    return ""
