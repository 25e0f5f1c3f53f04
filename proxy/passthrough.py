"""Requests without special treatment: forwarded as they are, streamed both ways, with the client's own token.

Answers to anonymous requests that say they may be kept are kept according to RFC 9111.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import aiohttp
import msgspec
from aiohttp import web
from multidict import CIMultiDict

from proxy import bodies, caching
from proxy.catalog import Catalog
from proxy.decoding import decode
from proxy.hub.errors import HubError, OriginUnavailable
from proxy.hub.urls import Repo, Route
from proxy.onward import ADDRESSES, Onward
from proxy.origin import Origin
from proxy.presence import while_waiting
from proxy.reuse import Reuse, mind_gate
from proxy.visible import visible_base

_READS = ("GET", "HEAD", "OPTIONS")
# POST requests that change nothing in a repository: questions of git and LFS, and previews.
_QUESTIONS = re.compile(r"/git-upload-pack\b|/info/lfs/objects/(batch|verify)\b|/preupload/|/paths-info/")
_REPOS = re.compile(r"/api/repos/(create|delete|move)\b")
_ACCESS = re.compile(r"/api/repos/|/settings\b")
_NOTHING_DONE = (401, 403, 404, 405)
_MAX_ORDER = 1 << 20
_MAX_CHANGED = 16 << 20

Effect = Literal["done", "doubtful", "none"]  # of a write
Change = Callable[[bytes], bytes]  # maps the Hub's whole body to the one that the client gets


class _Order(msgspec.Struct, rename="camel"):
    """A request to create, delete or move a repository."""

    type: str | None = None
    organization: str | None = None
    name: str | None = None
    from_repo: str | None = None
    to_repo: str | None = None


class Passthrough:
    """Sends requests on to the Hub. After a write to a repository this node forgets what it knew about it."""

    def __init__(self, *, origin: Origin, catalog: Catalog) -> None:
        self._origin = origin
        self._catalog = catalog
        self._onward = Onward(origin)
        self._reuse = Reuse(self._onward, catalog)

    async def handle(
        self, request: web.BaseRequest, route: Route, *, body: Any = None, change: Change | None = None
    ) -> web.StreamResponse:
        """Forward a request, with `body` if given, and return its answer, changed by `change` if the status is 200.

        Raises OriginUnavailable when the Hub cannot be reached, ConnectionResetError when the client has gone.
        """
        async with while_waiting(request):  # stops waiting for a silent Hub when the client has gone
            return await self._handle(request, route, body, change)

    async def _handle(
        self, request: web.BaseRequest, route: Route, body: Any, change: Change | None
    ) -> web.StreamResponse:
        repos = [route.repo] if route.repo is not None else []
        if request.method == "GET" and ADDRESSES.match(route.target):
            change = partial(self._visible_addresses, request, route)
        headers = self._onward.sent_headers(request, route)
        if change is not None:
            headers["Accept-Encoding"] = "identity"
        if isinstance(body, bytes):
            headers.popall("Content-Length", None)  # it is the length of the original body
        elif body is None and request.can_read_body:
            body = request.content.iter_any()
            if _REPOS.match(route.target):
                body = await _read(request)
                repos = _named_repos(body)
        if request.method in ("GET", "HEAD") and body is None and not ADDRESSES.match(route.target):
            return await self._reuse.answer(request, route)
        is_write = request.method not in _READS and _QUESTIONS.search(route.target) is None
        asked_at, effect = time.time(), _unknown_effect(request, route)
        try:
            async with self._onward.open(request, route, headers, body) as answer:
                mind_gate(self._catalog, str(route.repo or ""), answer, asked_at)
                effect = _effect(answer.status, effect)
                if is_write:  # before the client gets the answer, so that its next request sees the new state
                    self._forget(repos, effect)
                if request.method not in _READS and answer.status < 400:
                    self._reuse.void(request, route, answer)
                if change is not None and answer.status == 200:
                    return await self._changed(request, route, answer, change)
                return await self._onward.relay(request, route, answer, "fwd=method")
        except aiohttp.ClientError as error:
            raise OriginUnavailable(f"{self._origin.host} broke off: {error}") from error
        except OriginUnavailable as error:
            if _never_left(error):
                effect = "none"
            raise
        finally:
            if is_write:  # whatever the outcome
                self._forget(repos, effect)

    def _forget(self, repos: list[Repo], effect: Effect) -> None:
        for repo in repos:
            # A name without an owner is in the writer's own name space, or an old id: only the Hub knows which.
            if effect != "none" and "/" not in repo.id:
                self._forget([Repo.parse(each) for each in self._catalog.namesakes(repo.type, repo.id)], "doubtful")
            for name in self._catalog.known_as(str(repo)) if effect != "none" else ():
                if effect == "done":
                    self._catalog.changed(name)
                    self._reuse.drop(name)
                else:
                    self._catalog.doubt(name)
                    self._reuse.doubt(name)

    async def _changed(
        self, request: web.BaseRequest, route: Route, answer: aiohttp.ClientResponse, change: Change
    ) -> web.Response:
        body = bytearray()
        async for part in answer.content.iter_any():
            body += part
            if len(body) > _MAX_CHANGED:
                raise OriginUnavailable(f"{self._origin.host} answered with more than {_MAX_CHANGED} bytes")
        headers = CIMultiDict(self._onward.answer_headers(request, route, answer.status, answer.headers.items()))
        headers.popall("Content-Length", None)
        return web.Response(headers=headers, body=change(bytes(body)))

    def _visible_addresses(self, request: web.BaseRequest, route: Route, body: bytes) -> bytes:
        """A JSON body with addresses at the Hub replaced by ours."""
        visible = visible_base(request) + route.prefix
        for hub in {self._origin.url, "https://huggingface.co"}:
            body = body.replace(f'"{hub}/'.encode(), f'"{visible}/'.encode())
        return body


def _unknown_effect(request: web.BaseRequest, route: Route) -> Effect:
    """The effect to assume of a write whose outcome is not known."""
    if caching.may_share(request.headers.items()):
        return "none"  # a write needs a token or a cookie
    return "done" if _ACCESS.search(route.target) else "doubtful"  # assume that access rights changed


def _effect(status: int, unknown: Effect) -> Effect:
    """The effect of a write, from the status of its answer."""
    return "done" if status < 400 else "none" if status in _NOTHING_DONE else unknown


def _never_left(error: OriginUnavailable) -> bool:
    """Whether no byte of the request was sent: the node is offline, or there was no connection."""
    no_connection = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL)
    return error.__cause__ is None or isinstance(error.__cause__, no_connection)


def _named_repos(body: bytes) -> list[Repo]:
    """The repositories named in a request to create, delete or move one."""
    try:
        order = decode(body, _Order)
        owner, names = order.organization, (order.from_repo, order.to_repo, order.name)
        full = [f"{owner}/{name}" if owner and "/" not in name else name for name in names if name]
        return [Repo.parse(f"{order.type or 'model'}s/{name}") for name in full]
    except ValueError:
        return []


async def _read(request: web.BaseRequest) -> bytes:
    body = await bodies.read(request, _MAX_ORDER)
    if not isinstance(body, bytes):
        raise HubError(413, message=f"the request about a repository is longer than {_MAX_ORDER} bytes")
    return body
