# SPDX-License-Identifier: Apache-2.0
"""Quantities with units. Text from a file or the environment must name its unit; only 0 needs none.

Numbers given by code (defaults, tests) are taken as they are: bytes and seconds. When a config is
dumped as JSON, quantities come out in the form in which they are read.
"""

from __future__ import annotations

import ipaddress
import math
import re
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, ValidationInfo, WithJsonSchema

FROM_TEXT = "shoal.config.from_text"
"""Key of the validation context: values were written by people and need their units."""

_BYTE_UNITS = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_NUMBER = r"(\d+(?:\.\d+)?)"
_BYTES = re.compile(_NUMBER + r"\s*(" + "|".join(_BYTE_UNITS) + ")", re.ASCII)
_DURATION = re.compile(_NUMBER + r"\s*(ms|s|m|h|d)", re.ASCII)
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", re.ASCII)

_RATE_WANTED = "a rate with its unit, such as 500KB/s, 100MB/s or 1GiB/s"
_BYTES_WANTED = "a size with its unit, such as 512KiB, 10MB or 1GiB"
_DURATION_WANTED = "a duration with its unit, such as 500ms, 5s, 1m or 2h"
_ADDRESS_WANTED = "an address host:port, such as 127.0.0.1:5000 or [::1]:5000"


def parse_bytes(text: str) -> int:
    """Bytes in ``512KiB``, ``1.5GiB``, ``10MB``, ``0``; raises `ValueError`."""
    if text.strip() == "0":
        return 0
    match = _BYTES.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"expected {_BYTES_WANTED}")
    return round(float(match[1]) * _BYTE_UNITS[match[2]])


def format_bytes(size: int) -> str:
    """The shortest exact form that `parse_bytes` reads back."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size and size % _BYTE_UNITS[unit] == 0:
            return f"{size // _BYTE_UNITS[unit]}{unit}"
    return f"{size}B" if size else "0"


def parse_rate(text: str) -> float:
    """Bytes per second in ``100MB/s``, ``1.5GiB/s``, ``0``; raises `ValueError`."""
    amount, per, unit = text.strip().partition("/")
    if amount == "0" and not per:
        return 0.0
    if unit != "s" or _BYTES.fullmatch(amount) is None:
        raise ValueError(f"expected {_RATE_WANTED}")
    return float(parse_bytes(amount))


def format_rate(rate: float) -> str:
    """The shortest form that `parse_rate` reads back; resolution 1 byte per second."""
    return f"{format_bytes(round(rate))}/s" if round(rate) else "0"


def parse_duration(text: str) -> float:
    """Seconds in ``500ms``, ``5s``, ``1.5m``, ``2h``, ``1d``, ``0``; raises `ValueError`."""
    if text.strip() == "0":
        return 0.0
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"expected {_DURATION_WANTED}")
    return float(match[1]) * _DURATION_UNITS[match[2]]


def format_duration(seconds: float) -> str:
    """The shortest form that `parse_duration` reads back; resolution 1 ms."""
    milliseconds = round(seconds * 1000)
    if milliseconds == 0:
        return "0"
    for unit in ("d", "h", "m", "s"):
        if milliseconds % round(_DURATION_UNITS[unit] * 1000) == 0:
            return f"{milliseconds // round(_DURATION_UNITS[unit] * 1000)}{unit}"
    return f"{milliseconds}ms"


def split_address(address: str) -> tuple[str, int]:
    """Host and port of ``host:port`` or ``[IPv6]:port``; raises `ValueError`."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or len(port) > 5:
        raise ValueError(f"expected {_ADDRESS_WANTED}")
    if int(port) > 65535:
        raise ValueError(f"the port must be at most 65535; expected {_ADDRESS_WANTED}")
    if host.startswith("[") and host.endswith("]"):
        inner = host[1:-1]
        if ":" not in inner or not re.fullmatch(r"[0-9A-Fa-f:.]+(%[\w.-]+)?", inner):
            raise ValueError(f"expected {_ADDRESS_WANTED}")
        return inner, int(port)
    if host == "":
        raise ValueError(f"the host is missing (0.0.0.0{address} means every interface)")
    if _HOST.fullmatch(host) is None:
        raise ValueError(f"expected {_ADDRESS_WANTED}")
    return host, int(port)


def join_address(host: str, port: int) -> str:
    """The opposite of `split_address`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches ``host:port``."""
    host, _ = split_address(address)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _needs_unit(info: ValidationInfo) -> bool:
    return isinstance(info.context, dict) and bool(info.context.get(FROM_TEXT))


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and value >= 0
    )


def _bytes(value: Any, info: ValidationInfo) -> int:
    if isinstance(value, str):
        return parse_bytes(value)
    if _is_number(value) and (value == 0 or not _needs_unit(info)) and int(value) == value:
        return int(value)
    raise ValueError(f"expected {_BYTES_WANTED}")


def _rate(value: Any, info: ValidationInfo) -> float:
    if isinstance(value, str):
        return parse_rate(value)
    if _is_number(value) and (value == 0 or not _needs_unit(info)):
        return float(value)
    raise ValueError(f"expected {_RATE_WANTED}")


def _duration(value: Any, info: ValidationInfo) -> float:
    if isinstance(value, str):
        return parse_duration(value)
    if _is_number(value) and (value == 0 or not _needs_unit(info)):
        return float(value)
    raise ValueError(f"expected {_DURATION_WANTED}")


def _address(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected {_ADDRESS_WANTED}")  # noqa: TRY004 pydantic collects ValueError
    split_address(value)
    return value


Bytes = Annotated[
    int,
    BeforeValidator(_bytes),
    PlainSerializer(format_bytes, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "description": _BYTES_WANTED}),
]
"""A size in bytes, written with its unit."""

Rate = Annotated[
    float,
    BeforeValidator(_rate),
    PlainSerializer(format_rate, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "description": _RATE_WANTED}),
]
"""Bytes per second, written with their unit."""

Duration = Annotated[
    float,
    BeforeValidator(_duration),
    PlainSerializer(format_duration, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "description": _DURATION_WANTED}),
]
"""A duration in seconds, written with its unit."""

Address = Annotated[
    str,
    BeforeValidator(_address),
    WithJsonSchema({"type": "string", "description": _ADDRESS_WANTED}),
]
"""``host:port``; port 0 lets the system choose one."""
