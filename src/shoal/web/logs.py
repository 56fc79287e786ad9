# SPDX-License-Identifier: Apache-2.0
"""Logs to stderr, one event per line; what libraries log through `logging` looks the same."""

from __future__ import annotations

import json
import logging
import re
import sys
from contextlib import suppress
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from shoal.config.model import LogConfig

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
_PLAIN = re.compile(r"[^\s\"'=\x00-\x1f\x7f]+")


def configure(config: LogConfig, service: str) -> None:
    """Set up structlog and `logging` for this process."""
    level = _LEVELS[config.level]
    output = _Unfailing(sys.stderr)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    ends: list[Processor] = [structlog.processors.format_exc_info]
    if config.format == "json":
        ends += [_naming(service), structlog.processors.JSONRenderer(default=str)]
    else:
        ends += [_console]
    structlog.configure(
        processors=[*shared, *ends],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=output),  # type: ignore[arg-type]
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(output)
    remove_meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[remove_meta, *ends]
        )
    )
    logging.basicConfig(level=max(level, logging.INFO), handlers=[handler], force=True)


class _Unfailing:
    """Standard error that may be a full disk or a closed pipe: what logs must not fail for it."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> int:
        """Write, or lose the text."""
        with suppress(OSError):
            return self._file.write(text)
        return 0

    def flush(self) -> None:
        """Write what is left, or lose it."""
        with suppress(OSError):
            self._file.flush()


def _naming(service: str) -> Processor:
    def name(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        return {"service": service, **event}

    return name


def _console(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    """``time level event key=value …``; a traceback follows, indented."""
    traceback = event.pop("exception", None)
    stack = event.pop("stack", None)
    head = f"{event.pop('timestamp')} {event.pop('level'):<7} {_one_line(event.pop('event'))}"
    line = " ".join([head, *(f"{key}={_shown(value)}" for key, value in event.items())])
    below = "\n".join(text for text in (stack, traceback) if text)
    return line + "".join(f"\n    {text}" for text in below.splitlines())


def _one_line(value: Any) -> str:
    return str(value).replace("\r", "\\r").replace("\n", "\\n")


def _shown(value: Any) -> str:
    text = str(value)
    # What clients sent is quoted and escaped: nobody writes lines of their own into the log.
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)


__all__ = ["LogConfig", "configure"]
