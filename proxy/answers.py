"""What HTTP says of an answer of the Hub's API: whether it may be kept, and for how long it is good. Pure."""

from __future__ import annotations

from proxy import caching
from proxy.caching import Stored
from proxy.catalog import ApiAnswer


def may_keep(answer: ApiAnswer, token: str | None) -> bool:
    """Whether the origin lets us: what it calls private may be kept for one token."""
    said = caching.directives(answer.headers.items())
    return "no-store" not in said and ("private" not in said or token is not None)


def as_stored(answer: ApiAnswer) -> Stored:
    """The same in the terms of HTTP."""
    headers = tuple(answer.headers.items())
    return Stored(answer.status, "", headers, answer.body, answer.said_at, answer.said_at)
