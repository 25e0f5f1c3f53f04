"""Answers in the shapes observed from the real Hub."""

from __future__ import annotations

import hashlib
import itertools
import json
import uuid
from typing import Any

from aiohttp import web

from tests.hub.repos import Repo
from tests.hub.state import State

EXPOSED = (
    "X-Repo-Commit,X-Request-Id,X-Error-Code,X-Error-Message,X-Total-Count,ETag,Link,Accept-Ranges,Content-Range,"
    "X-Linked-Size,X-Linked-ETag,X-Xet-Hash"
)

_ECHOES = itertools.count()


def common(kind: str) -> dict[str, str]:
    """Return the header fields that every answer has."""
    window = "resolvers" if kind == "resolve" else "api"
    return {
        "X-Powered-By": "huggingface-moon",
        "X-Request-Id": f"Root=1-{uuid.uuid4().hex[:8]}-{uuid.uuid4().hex[:24]}",
        "RateLimit": f'"{window}";r=2999;t=120',
        "RateLimit-Policy": f'"fixed window";"{window}";q=3000;w=300',
        "Vary": "Origin, Accept",
        "Access-Control-Expose-Headers": EXPOSED,
    }


def error(status: int, message: str, code: str = "", **headers: str) -> web.Response:
    """Make a JSON error with the headers that clients read. Keywords such as `x_repo_commit=` add more of them."""
    fields = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    fields |= {name.replace("_", "-").title(): value for name, value in headers.items()}
    return web.Response(
        status=status, headers=fields, body=json.dumps({"error": message}).encode(), content_type="application/json"
    )


def document(value: Any, **headers: str) -> web.Response:
    return web.json_response(value, headers={name.replace("_", "-").title(): text for name, text in headers.items()})


async def echo(request: web.Request) -> web.Response:
    """Report the request itself, for routes that the stand-in does not model; `count` differs for every request."""
    body = await request.read()
    heard = ("Authorization", "Content-Type", "Content-Length", "User-Agent", "Accept", "Cookie", "X-Hf-Test")
    return document(
        {
            "method": request.method,
            "target": request.raw_path,
            "headers": {name: request.headers[name] for name in heard if name in request.headers},
            "sha256": hashlib.sha256(body).hexdigest(),
            "count": next(_ECHOES),
        },
        x_total_count="7",
        set_cookie="seen=1",
    )


def refuse(state: State, request: web.Request, repo: Repo | None, *, files: bool) -> web.Response | None:
    """Return why this user may not see a repository (or, with `files`, have its files); None if it may."""
    user = state.user(request)
    if repo is None or (repo.private and user not in repo.readers):
        if user is None:
            return error(
                401,
                "Invalid username or password.",
                www_authenticate='Bearer realm="Authentication required", charset="UTF-8"',
            )
        if user == "":
            return error(401, "Invalid credentials in Authorization header")
        return error(404, "Repository not found", "RepoNotFound")
    if repo.disabled:
        return error(403, "Access to this resource is disabled.")
    if files and repo.gated and (user is None or user not in repo.readers):
        if not user:
            return error(
                401,
                f"Access to model {repo.id} is restricted. You must have access to it and be authenticated to "
                "access it. Please log in.",
                "GatedRepo",
            )
        return error(
            403,
            f"Access to model {repo.id} is restricted and you are not in the authorized list. "
            f"Visit {state.hub_url}/{repo.id} to ask for access.",
            "GatedRepo",
        )
    if not files and user == "":
        return error(401, "Invalid credentials in Authorization header")
    return None
