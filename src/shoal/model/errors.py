# SPDX-License-Identifier: Apache-2.0
"""Errors of the registry API as values (OCI distribution-spec, "Error codes").

Code that decides raises one of these; one place, `shoal.web`, renders them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from shoal.model.digest import Digest


class ApiError(Exception):
    """An answer with the spec's error body: HTTP status, code, message and detail."""

    status = 500
    code = "UNKNOWN"

    def __init__(
        self, message: str, *, detail: Any = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON body of the answer."""
        error: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.detail is not None:
            error["detail"] = self.detail
        return {"errors": [error]}


class BlobUnknown(ApiError):
    """404: all owners were asked, and none has the blob."""

    status, code = 404, "BLOB_UNKNOWN"


class BlobUploadInvalid(ApiError):
    """400: a step of an upload that does not fit its session."""

    status, code = 400, "BLOB_UPLOAD_INVALID"


class UploadOutOfOrder(BlobUploadInvalid):
    """416: a chunk that does not begin where the session ends."""

    status = 416


class UploadConflict(BlobUploadInvalid):
    """409: another request is writing to the same session."""

    status = 409


class BlobUploadUnknown(ApiError):
    """404: no such upload session."""

    status, code = 404, "BLOB_UPLOAD_UNKNOWN"


class Denied(ApiError):
    """403: this registry is set up not to do that for this repository."""

    status, code = 403, "DENIED"


class DigestInvalid(ApiError):
    """400: a malformed digest, or content that does not match its digest."""

    status, code = 400, "DIGEST_INVALID"


class ManifestBlobUnknown(ApiError):
    """404: a manifest names something that is not here."""

    status, code = 404, "MANIFEST_BLOB_UNKNOWN"

    @classmethod
    def missing(cls, digests: Iterable[Digest], asked: str) -> ManifestBlobUnknown:
        """Name the missing digests; `asked` says who was asked."""
        names = sorted(str(digest) for digest in digests)
        return cls(
            f"the manifest names {len(names)} blob(s) that are not here ({asked}): "
            f"{', '.join(names[:8])}{' …' if len(names) > 8 else ''}; push them first",
            detail={"missing": names},
        )


class ManifestInvalid(ApiError):
    """400: a malformed manifest."""

    status, code = 400, "MANIFEST_INVALID"


class ManifestUnknown(ApiError):
    """404: no such manifest or tag in the repository."""

    status, code = 404, "MANIFEST_UNKNOWN"


class NameInvalid(ApiError):
    """400: not a repository name."""

    status, code = 400, "NAME_INVALID"


class NameUnknown(ApiError):
    """404: no such repository."""

    status, code = 404, "NAME_UNKNOWN"


class TagInvalid(ApiError):
    """400: not a tag."""

    status, code = 400, "TAG_INVALID"


class SizeInvalid(ApiError):
    """400: the length that was announced is not the length that came."""

    status, code = 400, "SIZE_INVALID"


class TooLarge(SizeInvalid):
    """413: larger than this registry takes."""

    status = 413


class RangeInvalid(ApiError):
    """416: no byte of the range lies in the content."""

    status, code = 416, "RANGE_INVALID"


class Unsupported(ApiError):
    """405: this registry or this service does not do that."""

    status, code = 405, "UNSUPPORTED"


class NotHere(ApiError):
    """404: no such route."""

    status, code = 404, "NOT_FOUND"


class BadRequest(ApiError):
    """400: a parameter, header or body that cannot be understood."""

    status, code = 400, "BAD_REQUEST"


class Unavailable(ApiError):
    """503: could not ask, or could not store safely; the same request may succeed later."""

    status, code = 503, "UNAVAILABLE"

    def __init__(self, message: str, *, detail: Any = None, retry_after: int = 1) -> None:
        super().__init__(message, detail=detail, headers={"Retry-After": str(retry_after)})


class StillFetching(Unavailable):
    """503: on its way here from a backend; who comes back finds it, or waits on."""

    code = "STILL_FETCHING"


class SourceFailed(Unavailable):
    """503: a backend or an upstream registry could not be asked; the one who says so is well."""

    code = "SOURCE_FAILED"


class InsufficientStorage(Unavailable):
    """507: no room on the disk, and nothing that may be evicted to make some (RFC 4918, 11.5).

    Not 503: clients repeat that at once, with all its bytes, and room comes in minutes at best.
    """

    status, code = 507, "INSUFFICIENT_STORAGE"

    def __init__(self, message: str, *, detail: Any = None, retry_after: int = 60) -> None:
        super().__init__(message, detail=detail, retry_after=retry_after)


class WouldEvict(InsufficientStorage):
    """507: there is room only for what is worth more than the copies that are here."""

    code = "WOULD_EVICT"
