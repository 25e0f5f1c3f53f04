"""Keys of questions about a repository: equal questions, however they are written, have one key. Pure."""

from __future__ import annotations

import hashlib
from functools import lru_cache

from proxy.hub.urls import ApiRoute

FORM = "application/x-www-form-urlencoded"
MAX_FIELDS = 10_000
# Old clients write Python's True and False, recent ones lower case. Only these parameters are changed: a path may be
# called True.
_FLAGS = {"recursive", "expand", "blobs", "securityStatus", "include_prs"}


def question(route: ApiRoute, body: bytes, content_type: str) -> str:
    """The key of a question: the same for `recursive=True` and `recursive=true`, and for parameters in any order."""
    path, query = route.target.partition("?")[0].rstrip("/"), _normal_query(route.query)
    if not body:
        return f"{path}\n{query}"
    if content_type.startswith(FORM):
        body = normal(body.decode(errors="surrogateescape")).encode(errors="surrogateescape")
    return f"{path}\n{query}\n{content_type}\n{hashlib.sha256(body).hexdigest()}"


def question_at(route: ApiRoute, commit: str) -> str:
    """The key of a commit's info, whichever revision it was asked for by."""
    return f"{commit}\n{_normal_query(route.query)}"


def is_too_long(body: bytes) -> bool:
    """Whether a body has too many fields to be parsed here. Clients ask for a few thousand paths at most."""
    return body.count(b"&") >= MAX_FIELDS


def normal(query: str) -> str:
    """One spelling for queries with the same meaning. Nothing is decoded, since that is slow for long bodies."""
    pairs = [(name, value) for name, _, value in (pair.partition("=") for pair in query.split("&") if pair)]
    pairs.sort(key=lambda pair: pair[0])
    return "&".join(
        f"{name}={value.lower() if name in _FLAGS and value in ('True', 'False') else value}" for name, value in pairs
    )


_normal_query = lru_cache(128)(normal)  # for queries of targets, which are short; bodies are not cached
