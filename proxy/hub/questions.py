"""What makes two questions about a repository the same one. Pure."""

from __future__ import annotations

import hashlib
from functools import lru_cache

from proxy.hub.urls import ApiRoute

FORM = "application/x-www-form-urlencoded"
MAX_FIELDS = 10_000
# Old clients write Python's True and False, recent ones lower case. A path may be called that, too.
_FLAGS = {"recursive", "expand", "blobs", "securityStatus", "include_prs"}


def question(route: ApiRoute, body: bytes, content_type: str) -> str:
    """The key of a question: the same for `recursive=True` and `recursive=true`, in any order."""
    path, query = route.target.partition("?")[0].rstrip("/"), _normal_query(route.query)
    if not body:
        return f"{path}\n{query}"
    if content_type.startswith(FORM):
        body = normal(body.decode(errors="surrogateescape")).encode(errors="surrogateescape")
    return f"{path}\n{query}\n{content_type}\n{hashlib.sha256(body).hexdigest()}"


def question_at(route: ApiRoute, commit: str) -> str:
    """The key of a commit's info, by whatever name it was asked for."""
    return f"{commit}\n{_normal_query(route.query)}"


def is_too_long(body: bytes) -> bool:
    """Whether a body asks for more than is worth taking apart: clients ask for a few thousand paths at most."""
    return body.count(b"&") >= MAX_FIELDS


def normal(query: str) -> str:
    """One spelling for all that mean the same. Nothing is decoded: that takes long where there is much of it."""
    pairs = [(name, value) for name, _, value in (pair.partition("=") for pair in query.split("&") if pair)]
    pairs.sort(key=lambda pair: pair[0])
    return "&".join(
        f"{name}={value.lower() if name in _FLAGS and value in ('True', 'False') else value}" for name, value in pairs
    )


_normal_query = lru_cache(128)(normal)  # of targets, which are short; not of bodies
