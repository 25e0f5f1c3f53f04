"""Rules for answers of the Hub's API: may one be kept, is it fresh, and does it agree with the files? Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from proxy import caching
from proxy.caching import Stored

if TYPE_CHECKING:
    from proxy.catalog import ApiAnswer, KeptAnswer

_KEPT_HEADERS = (
    *("Content-Type", "Link", "X-Repo-Commit", "X-Error-Code", "X-Error-Message", "X-Total-Count"),
    *("ETag", "Cache-Control", "Expires"),
)


def kept_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The header fields that are kept with an answer."""
    return {name: headers[name] for name in _KEPT_HEADERS if name in headers}


def may_keep(answer: ApiAnswer, token: str | None) -> bool:
    """Whether the origin allows it to be kept. An answer it calls private may be kept for a single token."""
    said = caching.directives(answer.headers.items())
    return "no-store" not in said and ("private" not in said or token is not None)


def is_page(headers: Mapping[str, str]) -> bool:
    """Whether an answer is a page for people: the API has none, but a captive portal in its place has."""
    return headers.get("Content-Type", "").lower().startswith(("text/html", "application/xhtml"))


def as_stored(answer: ApiAnswer | KeptAnswer) -> Stored:
    """The same answer in the form that `proxy.caching` works on; the body of a kept one may be missing."""
    headers = tuple(answer.headers.items())
    return Stored(answer.status, "", headers, answer.body, answer.said_at, answer.said_at)


def is_coherent(answer: KeptAnswer, commit: str) -> bool:
    """Whether the answer's commit is the one that files come from now, as far as both are known."""
    return not commit or not answer.commit or commit == answer.commit
