"""Everything that is not kept here: sent on as it is, streamed both ways, with the client's own token."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
from aiohttp import web
from multidict import CIMultiDict

from proxy.api import visible_base
from proxy.catalog import Catalog
from proxy.hub import rewrite
from proxy.hub.errors import OriginUnavailable
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
_BAD_TOKEN = "Invalid credentials in Authorization header"
_REPOS = re.compile(r"/api/repos/(create|delete|move)\b")
_MAX_ORDER = 1 << 20


class Passthrough:
    """Sends requests on to the Hub. What writes to a repository makes this node forget what it knew of it."""

    def __init__(self, *, origin: Origin, catalog: Catalog) -> None:
        self._origin = origin
        self._catalog = catalog

    async def handle(self, request: web.Request, route: Route) -> web.StreamResponse:
        """Raises OriginUnavailable when the Hub cannot be reached."""
        target = route.target
        body: Any = None
        repos = [route.repo] if route.repo is not None else []
        if request.can_read_body:
            if _REPOS.match(target) and (request.content_length or 0) <= _MAX_ORDER:
                body = await request.read()
                repos = _named_repos(body)
            else:
                body = _stream(request.content)
        is_write = request.method not in _READS
        try:
            async with self._origin.open(
                request.method, target, kind="other", headers=self._sent_headers(request), body=body
            ) as answer:
                if is_write:
                    self._forget(repos)
                return await self._relay(request, route, answer)
        except aiohttp.ClientError as error:
            raise OriginUnavailable(f"{self._origin.host} broke off: {error}") from error
        finally:
            if is_write:  # again: what was asked between the request and its answer may be old
                self._forget(repos)

    def _forget(self, repos: list[Repo]) -> None:
        for repo in repos:
            self._catalog.changed(str(repo))

    def _sent_headers(self, request: web.Request) -> CIMultiDict[str]:
        dropped = _HOP_BY_HOP | _listed(request.headers.get("Connection", "")) | {"host", "expect"}
        headers = CIMultiDict((name, value) for name, value in request.headers.items() if name.lower() not in dropped)
        headers.setdefault("Accept-Encoding", "identity")
        return headers

    async def _relay(self, request: web.Request, route: Route, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        response = web.StreamResponse(status=answer.status, reason=answer.reason)
        for name, value in self._answer_headers(request, route, answer):
            response.headers.add(name, value)
        has_body = request.method != "HEAD" and answer.status not in (204, 304)
        if not has_body and request.method == "HEAD" and "Content-Length" not in answer.headers:
            response.headers.pop("Content-Length", None)
        await response.prepare(request)
        if has_body:
            try:
                async for part in answer.content.iter_any():
                    await response.write(part)
            except (aiohttp.ClientError, TimeoutError) as error:
                log.warning("%s broke off %s: %s", self._origin.host, request.rel_url.raw_path, error)
                if request.transport is not None:
                    request.transport.close()  # the client must not take this for the end
                return response
            except ConnectionError:
                return response  # the client has gone
        await response.write_eof()
        return response

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
        if answer.status == 401 and route.repo is not None and _is_bare(answer.headers):
            headers.append(("X-Error-Code", "RepoNotFound"))
        return headers


def _is_bare(headers: Mapping[str, str]) -> bool:
    """A 401 that clients take for "no such repository", but only over https."""
    return "X-Error-Code" not in headers and headers.get("X-Error-Message") != _BAD_TOKEN


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


async def _stream(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    async for part in content.iter_any():
        yield part
