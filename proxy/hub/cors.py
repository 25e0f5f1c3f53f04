"""Pages of other sites in a browser (CORS): they may read of the Hub's name space what they may read at the Hub. Pure.

Nothing under `/-/` is part of that, and answers to writes have the Hub's own header fields or none. For reads those
will not do: an answer is kept for all clients, and the Hub's names only the page that asked first.
"""

from __future__ import annotations

from collections.abc import Mapping

# Header fields of an answer that any page may read; with `*`, browsers send no cookies along. The Hub also exposes
# X-Xet-Hash. Without it, pages fetch large files over HTTP as well, and need no Xet server: ours is under `/-/`.
READABLE = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Expose-Headers": (
        "X-Repo-Commit,X-Request-Id,X-Error-Code,X-Error-Message,X-Total-Count,ETag,Link,Accept-Ranges,Content-Range,"
        "X-Linked-Size,X-Linked-ETag"
    ),
    "Vary": "Origin",
}
_READS = ("GET", "HEAD")
_SECONDS = "86400"  # for which a browser may remember the answer to a preflight


def asked_method(method: str, headers: Mapping[str, str]) -> str:
    """The method that a browser asks permission for before it sends a page's request; empty if this is no preflight."""
    if method != "OPTIONS" or "Origin" not in headers:
        return ""
    return headers.get("Access-Control-Request-Method", "")


def permission(headers: Mapping[str, str], asked: str) -> dict[str, str]:
    """The header fields that allow a page the request which a preflight with these headers is about.

    The page may send any header field: a token of its own gives it no more than the Hub would.
    """
    return {
        "Access-Control-Allow-Origin": "*",
        "Access-Control-Allow-Methods": ", ".join(dict.fromkeys((*_READS, asked))),
        "Access-Control-Allow-Headers": headers.get("Access-Control-Request-Headers", ""),
        "Access-Control-Max-Age": _SECONDS,
        "Vary": "Origin, Access-Control-Request-Method, Access-Control-Request-Headers",
    }
