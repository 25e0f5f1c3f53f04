"""Everything that is not kept here: sent on as it is, streamed both ways, with the client's own token."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import aiohttp
from aiohttp import web
from multidict import CIMultiDict

from proxy.api import visible_base
from proxy.catalog import Catalog
from proxy.hub import rewrite
from proxy.hub.errors import HubError, OriginUnavailable, needs_code
from proxy.hub.urls import Repo, Route
from proxy.origin import Origin

log = logging.getLogger(__name__)

# RFC 9110, section 7.6.1: these are about one connection, not about the message.
_HOP_BY_HOP = {
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
}
_READS = ("GET", "HEAD", "OPTIONS")
# What is sent with POST and changes nothing in a repository: git's and LFS's questions, and previews.
_QUESTIONS = re.compile(r"/git-upload-pack\b|/info/lfs/objects/(batch|verify)\b|/preupload/|/paths-info/")
_REPOS = re.compile(r"/api/repos/(create|delete|move)\b")
_MAX_ORDER = 1 << 20
# JSON that is full of addresses at the Hub: parquet files of a dataset.
_ADDRESSES = re.compile(r"/api/datasets/[^/]+/[^/]+/parquet\b")
_MAX_CHANGED = 16 << 20
_VIEWER = "datasets-server."

Change = Callable[[bytes], bytes]  # a whole body of the Hub's, as the client is to get it


class Passthrough:
    """Sends requests on to the Hub. What writes to a repository makes this node forget what it knew of it."""

    def __init__(self, *, origin: Origin, catalog: Catalog) -> None:
        self._origin = origin
        self._catalog = catalog

    async def handle(
        self, request: web.Request, route: Route, *, body: Any = None, change: Change | None = None
    ) -> web.StreamResponse:
        """Send a request on, with `body` in place of its own, and its answer back, as `change` makes it if it succeeds.

        Raises OriginUnavailable when the Hub cannot be reached.
        """
        repos = [route.repo] if route.repo is not None else []
        if request.method == "GET" and _ADDRESSES.match(route.target):
            change = partial(self._visible_addresses, request, route)
        headers = self._sent_headers(request, route)
        if change is not None:
            headers["Accept-Encoding"] = "identity"
        if body is not None:
            headers.popall("Content-Length", None)
        elif request.can_read_body:
            body = request.content.iter_any()
            if _REPOS.match(route.target):
                body = await _read(request)
                repos = _named_repos(body)
        is_write = request.method not in _READS and _QUESTIONS.search(route.target) is None
        try:
            async with self._origin.open(
                request.method,
                route.target,
                kind="other",
                headers=headers,
                body=body,
                viewer=request.host.startswith(_VIEWER),
            ) as answer:
                if is_write:  # before the client knows, so that its next question brings what is new
                    self._forget(repos)
                if change is not None and answer.status == 200:
                    return await self._changed(request, route, answer, change)
                return await self._relay(request, route, answer)
        except aiohttp.ClientError as error:
            raise OriginUnavailable(f"{self._origin.host} broke off: {error}") from error
        finally:
            if is_write:  # whatever came of it
                self._forget(repos)

    def _forget(self, repos: list[Repo]) -> None:
        for repo in repos:
            self._catalog.changed(str(repo))

    def _sent_headers(self, request: web.Request, route: Route) -> CIMultiDict[str]:
        dropped = _HOP_BY_HOP | _listed(request.headers.get("Connection", "")) | {"host", "expect"}
        headers = CIMultiDict((name, value) for name, value in request.headers.items() if name.lower() not in dropped)
        if "Accept-Encoding" not in headers:
            headers["Accept-Encoding"] = "identity"
        return headers

    async def _relay(self, request: web.Request, route: Route, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        response = web.StreamResponse(status=answer.status, reason=answer.reason)
        response.headers.extend(self._answer_headers(request, route, answer))
        await response.prepare(request)
        if request.method != "HEAD" and answer.status not in (204, 304):
            parts = answer.content.iter_any()
            while True:
                try:
                    part = await anext(parts, b"")
                except (aiohttp.ClientError, TimeoutError) as error:
                    log.warning("%s broke off %s: %s", self._origin.host, request.rel_url.raw_path, error)
                    if request.transport is not None:
                        request.transport.close()  # the client must not take this for the end
                    return response
                if not part:
                    break
                try:
                    await response.write(part)
                except ConnectionError:
                    return response  # the client has gone
        await response.write_eof()
        return response

    async def _changed(
        self, request: web.Request, route: Route, answer: aiohttp.ClientResponse, change: Change
    ) -> web.Response:
        body = bytearray()
        async for part in answer.content.iter_any():
            body += part
            if len(body) > _MAX_CHANGED:
                raise OriginUnavailable(f"{self._origin.host} answered with more than {_MAX_CHANGED} bytes")
        headers = CIMultiDict(self._answer_headers(request, route, answer))
        headers.popall("Content-Length", None)
        return web.Response(headers=headers, body=change(bytes(body)))

    def _visible_addresses(self, request: web.Request, route: Route, body: bytes) -> bytes:
        """JSON with the addresses at the Hub as clients are to see them."""
        visible = visible_base(request) + route.prefix
        for hub in {self._origin.url, "https://huggingface.co"}:
            body = body.replace(f'"{hub}/'.encode(), f'"{visible}/'.encode())
        return body

    def _answer_headers(
        self, request: web.Request, route: Route, answer: aiohttp.ClientResponse
    ) -> list[tuple[str, str]]:
        dropped = _HOP_BY_HOP | _listed(answer.headers.get("Connection", ""))
        keeps_xet = rewrite.keeps_xet(route.target)
        headers = []
        for name, value in answer.headers.items():
            lower = name.lower()
            if lower in dropped or (not keeps_xet and rewrite.is_xet_header(name)):
                continue
            if lower == "location":
                value = rewrite.location(value, self._origin.url, route.prefix)
            elif lower == "link":
                visible = visible_base(request) + route.prefix
                rewritten = rewrite.link(value, self._origin.url, visible, without_xet=not keeps_xet)
                if rewritten is None:
                    continue
                value = rewritten
            headers.append((name, value))
        if route.repo is not None and needs_code(answer.status, answer.headers):
            headers.append(("X-Error-Code", "RepoNotFound"))
        return headers


def _listed(connection: str) -> set[str]:
    return {name.strip().lower() for name in connection.split(",") if name.strip()}


def _named_repos(body: bytes) -> list[Repo]:
    """The repositories that an order to create, delete or move speaks of."""
    try:
        order = json.loads(body)
        repo_type = f"{order.get('type') or 'model'}s"
        names = [order.get("fromRepo"), order.get("toRepo"), order.get("name")]
        owner = order.get("organization")
        full = [f"{owner}/{name}" if owner and "/" not in name else name for name in names if name]
        return [Repo.parse(f"{repo_type}/{name}") for name in full]
    except (ValueError, AttributeError, TypeError):
        return []


async def _read(request: web.Request) -> bytes:
    body = bytearray()
    async for part in request.content.iter_any():
        body += part
        if len(body) > _MAX_ORDER:
            raise HubError(413, message=f"an order of more than {_MAX_ORDER} bytes")
    return bytes(body)
