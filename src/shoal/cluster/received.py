# SPDX-License-Identifier: Apache-2.0
"""From whom an agent has its bytes, by its own metrics."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from shoal.cluster.layout import Member
from shoal.web.client import HttpClient
from shoal.web.deadline import Deadline

_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class Received:
    """Bytes of blobs that an agent received since its start."""

    from_peers: int = 0
    from_origins: int = 0
    """By pieces or over HTTP."""

    downloads: int = 0
    """Blobs that are whole, verified and cached."""


async def received(agent: Member, http: HttpClient) -> Received:
    """Ask an agent; raises `CallFailed`."""
    url = f"{agent.url('admin')}/metrics"
    answer = await http.call("GET", url, deadline=Deadline.after(_TIMEOUT))
    peers = origins = downloads = 0
    for family in text_string_to_metric_families(answer.body.decode()):
        for sample in family.samples:
            if sample.name == "shoal_swarm_received_bytes_total":
                if sample.labels.get("source") == "origin":
                    origins += int(sample.value)
                else:
                    peers += int(sample.value)
            elif sample.name == "shoal_origin_http_bytes_total":
                origins += int(sample.value)
            elif sample.name == "shoal_agent_downloads_total":
                downloads += int(sample.value) if sample.labels["outcome"] == "complete" else 0
    return Received(peers, origins, downloads)
