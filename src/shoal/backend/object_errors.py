# SPDX-License-Identifier: Apache-2.0
"""What an object store's errors mean, in the words of `shoal.web.failures` and without secrets."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

from shoal.backend.asking import Call
from shoal.web.failures import CallFailed, NotFound, Overloaded, Rejected, Unreachable

_STATUS = re.compile(r"status code: ([0-9]{3})|\bstatus: ([0-9]{3})")
_CODE = re.compile(r"<Code>([A-Za-z0-9]{1,80})</Code>")
_MESSAGE = re.compile(r"<Message>([^<]{1,400})")
_CAUSE = re.compile(r'message: "([^"]{1,200})"|"((?:dns|tcp connect|tls)[^"]{0,80}error)"')
_QUERY = re.compile(r"\?[^\s,\"')]*")
_NO_BUCKET = frozenset({"NoSuchBucket", "ContainerNotFound", "ContainerBeingDeleted"})
_TOKEN = re.compile(r"token request|latest/api/token|security-credentials|metadata/instance")
"""The request that failed is one for credentials."""

_REFUSED = "the storage does not accept the credentials for this"
_SHOWN = 300


@contextmanager
def mapped(call: Call, secrets: Sequence[str]) -> Iterator[None]:
    """Turn what obstore raises into `CallFailed`; none of the secrets is in its text."""
    try:
        yield
    except FileNotFoundError as error:
        raise _missing(call, str(error)) from None
    except (BaseError, ValueError, OSError) as error:
        # The library's text quotes requests, which may bear signatures: it is not chained.
        raise _failed(call, error, secrets) from None


def _missing(call: Call, text: str) -> CallFailed:
    code = _CODE.search(text)
    if code is not None and code[1] in _NO_BUCKET:
        return Rejected(
            call.method, call.url, f"there is no such bucket or container ({code[1]})", status=404
        )
    return NotFound(call.method, call.url, "it is not there", status=404)


def _failed(call: Call, error: Exception, secrets: Sequence[str]) -> CallFailed:
    text = str(error)
    found = _STATUS.search(text)
    status = int(found[1] or found[2]) if found else None
    if isinstance(error, PermissionDeniedError | UnauthenticatedError) or status in (401, 403):
        said = _said(text, secrets)
        why = "no credentials could be had" if _TOKEN.search(text) else _REFUSED
        detail = f"{why}: {said}"
        return Rejected(call.method, call.url, detail, status=status or 403)
    kind: type[CallFailed] = Unreachable
    if status is not None:
        transient = status in (408, 429) or status >= 500
        kind = Overloaded if transient else Rejected
    return kind(call.method, call.url, _said(text, secrets), status=status)


def _said(text: str, secrets: Sequence[str]) -> str:
    """The gist: the service's own code and message, or the library's first line and the cause."""
    code, message = _CODE.search(text), _MESSAGE.search(text)
    if code is not None:
        said = code[1] + (f": {message[1].splitlines()[0]}" if message else "")
    else:
        said = text.partition("\n\nDebug source")[0].partition("\n")[0].strip()
        cause = _CAUSE.search(text)
        if cause is not None:
            said += f" ({cause[1] or cause[2]})"
    said = _QUERY.sub("", said)
    for secret in secrets:
        said = said.replace(secret, "***")
    return said[:_SHOWN]
