"""Failures in the shape that the Hub gives them, so that clients react as they would to the Hub. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Protocol

from aiohttp.web import Response

from proxy.hub.metadata import number, readable

# Headers of the Hub's errors that its clients read. All others are dropped.
_PASSED_ON = (
    "X-Error-Code",
    "X-Error-Message",
    "X-Repo-Commit",
    "X-Request-Id",
    "X-Amzn-Trace-Id",
    "X-HF-Warning",
    "WWW-Authenticate",
    "RateLimit",
    "RateLimit-Policy",
    "Retry-After",
    "Content-Type",
)
_BAD_TOKEN = "Invalid credentials in Authorization header"


class Waiting(Protocol):
    """The part of a client that decides how it is told to wait."""

    @property
    def waits_on_429(self) -> bool: ...


class HubError(Exception):
    """An error answer: one from the Hub to be passed on, or one made by this node in the same shape.

    `retry_after` is in seconds. `is_bare`: the answer came from the Hub's address but without the Hub's error headers,
    so it may be from a filter or a captive portal on the way.
    """

    def __init__(
        self,
        status: int,
        *,
        code: str = "",
        message: str = "",
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        retry_after: float | None = None,
        is_bare: bool = False,
    ) -> None:
        super().__init__(f"HTTP {status} {code} {message}".strip())
        self.status = status
        self.code = code
        self.message = message
        self.headers = dict(headers or {})
        self.body = body
        self.retry_after = retry_after
        self.is_bare = is_bare

    @classmethod
    def of(cls, status: int, headers: Mapping[str, str], body: bytes = b"") -> HubError:
        """The Hub's error answer, reduced to what concerns the client."""
        code = "RepoNotFound" if needs_code(status, headers) else headers.get("X-Error-Code", "")
        message = readable(headers.get("X-Error-Message", ""))
        kept = {name: readable(headers[name]) for name in _PASSED_ON if name in headers}
        retry_after = number(headers.get("Retry-After", ""))
        return cls(
            status,
            code=code,
            message=message,
            headers=kept,
            body=body or None,
            retry_after=float(retry_after) if retry_after is not None else None,
            is_bare=is_bare(headers),
        )

    @property
    def is_missing_entry(self) -> bool:
        """Whether the revision exists and has no such file; for a commit this never changes."""
        return self.status == 404 and self.code == "EntryNotFound"

    @property
    def is_refusal(self) -> bool:
        """Whether the Hub denies this token access to the repository or its files; another token may have it."""
        return self.status in (401, 403, 404) and self.code not in ("EntryNotFound", "RevisionNotFound")


class OriginUnavailable(Exception):
    """The origin gave no meaningful answer. Never reported to clients as 401 or 404.

    `is_timeout` tells a slow origin from a broken one. `retry_after` (seconds) is set when the origin asked us to wait.
    """

    def __init__(self, reason: str, *, retry_after: float | None = None, is_timeout: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after = retry_after
        self.is_timeout = is_timeout


def is_bare(headers: Mapping[str, str]) -> bool:
    """Whether an error lacks both headers of which the Hub sets at least one on its errors about repositories."""
    return "X-Error-Code" not in headers and "X-Error-Message" not in headers


def needs_code(status: int, headers: Mapping[str, str]) -> bool:
    """Whether RepoNotFound must be added to an answer of the Hub as its error code.

    Clients treat a bare 401 as "no such repository" only over https. Over http they need the code that they would
    otherwise infer.
    """
    return status == 401 and "X-Error-Code" not in headers and headers.get("X-Error-Message") != _BAD_TOKEN


def entry_not_found(path: str, commit: str) -> HubError:
    """A 404 as the Hub gives it: with both headers, clients remember that this commit has no such file."""
    return HubError(
        404,
        code="EntryNotFound",
        message="Entry not found",
        headers={"X-Repo-Commit": commit, "Content-Type": "text/plain; charset=utf-8"},
        body=b"Entry not found",
    )


def not_kept() -> HubError:
    """The answer to a client that wants only what is kept here (`only-if-cached`), when that is not enough."""
    return HubError(504, message="no answer to this is kept here, and only that is asked for (only-if-cached)")


def bad_token() -> HubError:
    """The Hub's answer to a token that is not valid."""
    return HubError(401, message=_BAD_TOKEN)


def come_again(message: str, client: Waiting, seconds: int = 2) -> HubError:
    """An error that makes this client wait and retry: 429 for recent clients, 503 for those that retry only on that.

    `seconds` is how long the client is asked to wait.
    """
    if client.waits_on_429:
        return HubError(
            429, message=message, headers={"RateLimit": f'"hubmesh";r=0;t={seconds}', "Retry-After": str(seconds)}
        )
    return HubError(503, message=message, headers={"Retry-After": str(seconds)})


def respond(error: HubError | OriginUnavailable, client: Waiting) -> Response:
    """The answer to the client for a failed request."""
    if isinstance(error, OriginUnavailable):
        if error.retry_after is not None:
            error = come_again(error.reason, client, max(1, min(300, round(error.retry_after))))
        else:
            error = HubError(504 if error.is_timeout else 502, message=f"hubmesh: {error.reason}")
    headers = dict(error.headers)
    if error.code:
        headers["X-Error-Code"] = error.code
    if error.message:
        headers["X-Error-Message"] = _one_line(error.message)
    body = error.body
    if body is None:
        headers["Content-Type"] = "application/json; charset=utf-8"
        body = json.dumps({"error": error.message or f"HTTP {error.status}"}).encode()
    return Response(status=error.status, headers=headers, body=body)


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() and ord(c) < 127 else " " for c in text)[:500]
