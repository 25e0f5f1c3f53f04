"""Actions of an operator on a running node: pin, unpin, remove, preheat.

Each is a POST of a small JSON object. The node has no users and no passwords, so permission depends on where a request
comes from: only from this machine, and not from a page of another site in a browser on it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated

import msgspec
from aiohttp import web

from mesh.errors import MeshError, StoreFull
from proxy import bodies
from proxy.admin.view import NodeView, Preheat
from proxy.decoding import decode
from proxy.hosts import host_of, is_this_machine
from proxy.hub.errors import HubError, OriginUnavailable
from proxy.hub.urls import Repo

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=300)]
_Globs = Annotated[tuple[Annotated[str, msgspec.Meta(max_length=1000)], ...], msgspec.Meta(max_length=100)]

_MAX_BODY = 256 << 10  # bytes; room for a hundred globs of the greatest length


class Order(msgspec.Struct, forbid_unknown_fields=True):
    """The body of every action. The fields after `revision` are for `preheat` alone."""

    repo: _Name  # "owner/name" or "datasets/owner/name"
    revision: _Name | None = None
    include: _Globs = ()
    exclude: _Globs = ()
    nodes: Annotated[int, msgspec.Meta(ge=1)] | None = 1  # null: all nodes


async def act(request: web.Request, node: NodeView, action: str) -> web.Response:
    """Carry out one of `ACTIONS`; the answer is its result, or what went wrong, as JSON."""
    if refusal := _refuse(request):
        return _answer(403, error=refusal)
    try:
        order = decode(await _read(request), Order)
        repo = str(Repo.parse(order.repo))
    except ValueError as error:
        return _answer(400, error=str(error))
    try:
        return _answer(200, **await ACTIONS[action](request, node, repo, order))
    except LookupError as error:
        return _answer(404, error=str(error))
    except HubError as error:
        return _answer(error.status, error=_explain(error, repo))
    except OriginUnavailable as error:
        return _answer(502, error=error.reason)
    except StoreFull as error:
        return _answer(507, error=str(error))
    except MeshError as error:
        return _answer(500, error=str(error))


async def _pin(_: web.Request, node: NodeView, repo: str, order: Order) -> dict[str, int]:
    return {"files": await node.pin(repo, order.revision)}


async def _unpin(_: web.Request, node: NodeView, repo: str, __: Order) -> dict[str, int]:
    return {"files": await node.unpin(repo)}


async def _remove(_: web.Request, node: NodeView, repo: str, __: Order) -> dict[str, int]:
    removed = await node.remove(repo)
    return {"bytes": removed.freed, "in_use": removed.in_use, "pinned": removed.pinned}


async def _preheat(request: web.Request, node: NodeView, repo: str, order: Order) -> dict[str, int]:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    files = await node.preheat(
        Preheat(
            repo=repo,
            revision=order.revision or "main",
            include=order.include,
            exclude=order.exclude,
            nodes=order.nodes,
            token=token.strip() if scheme.lower() == "bearer" else None,
        )
    )
    return {"files": files}


def _explain(error: HubError, repo: str) -> str:
    # For a repository that does not exist the Hub says "Invalid username or password.", even to anonymous requests.
    if error.code == "RepoNotFound":
        return f"there is no {repo}, or it is private and the token may not read it"
    return error.message or f"the Hub answered {error.status}"


ACTIONS: dict[str, Callable[[web.Request, NodeView, str, Order], Awaitable[dict[str, int]]]] = {
    "pin": _pin,
    "unpin": _unpin,
    "rm": _remove,
    "preheat": _preheat,
}


async def _read(request: web.Request) -> bytes:
    """The body. Raises ValueError when it is longer than _MAX_BODY."""
    body = await bodies.read(request, _MAX_BODY)
    if isinstance(body, bytes):
        return body
    raise ValueError(f"the body is longer than {_MAX_BODY} bytes")


def _refuse(request: web.Request) -> str | None:
    """The reason why this request may not act; None if it may."""
    host = request.headers.get("Host", "")
    is_forwarded = "X-Forwarded-For" in request.headers or "Forwarded" in request.headers
    if is_forwarded or not is_this_machine(request.remote or "") or not is_this_machine(host_of(host)):
        return "this is allowed from the node's own machine only: send it to localhost there"
    # Browsers say which site sent a request, and ask (CORS preflight) before they send JSON to another site.
    if request.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none"):
        return "a page of another site may not do this: use the dashboard of the node itself"
    if request.headers.get("Origin", f"http://{host}") != f"http://{host}":
        return "a page of another site may not do this: use the dashboard of the node itself"
    if request.content_type != "application/json":
        return "the Content-Type has to be application/json"
    return None


def _answer(status: int, **fields: str | int) -> web.Response:
    return web.json_response(fields, status=status)
