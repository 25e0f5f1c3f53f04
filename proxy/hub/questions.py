"""What makes two questions about a repository the same one. Pure."""

from __future__ import annotations

import hashlib
from urllib.parse import parse_qsl, urlencode

from proxy.hub.urls import ApiRoute

FORM = "application/x-www-form-urlencoded"


def question(route: ApiRoute, body: bytes, content_type: str) -> str:
    """The key of a question: the same for `recursive=True` and `recursive=true`, in any order."""
    path = route.target.partition("?")[0].rstrip("/")
    if not body:
        return f"{path}\n{normal(route.query)}"
    form = normal(body.decode(errors="surrogateescape")) if content_type.startswith(FORM) else body.hex()
    return f"{path}\n{normal(route.query)}\n{content_type}\n{hashlib.sha256(form.encode()).hexdigest()}"


def question_at(route: ApiRoute, commit: str) -> str:
    """The key of a commit's info, by whatever name it was asked for."""
    return f"{commit}\n{normal(route.query)}"


def normal(query: str) -> str:
    """One spelling for all that mean the same."""
    pairs = [(name, value.lower() if value in ("True", "False") else value) for name, value in parse_qsl(query, True)]
    return urlencode(sorted(pairs, key=lambda pair: pair[0]), errors="surrogateescape")
