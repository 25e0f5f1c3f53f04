"""Whatever we know nothing special of: sent on as it is, streamed both ways, with the client's own token.

What says itself that it may be kept, and is asked as nobody in particular, is kept as RFC 9111 has it.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urljoin

import aiohttp
from aiohttp import web
from multidict import CIMultiDict

from proxy import caching
from proxy.api import visible_base
from proxy.caching import Fields, Stored
from proxy.catalog import Catalog
from proxy.hub import rewrite
from proxy.hub.errors import HubError, OriginUnavailable, needs_code
from proxy.hub.urls import Repo, Route
from proxy.origin import Origin
from proxy.ranges import select
from proxy.shelf import MAX_BODY, Shelf

log = logging.getLogger(__name__)

# RFC 9110, section 7.6.1: these are about one connection, not about the message.
_HOP_BY_HOP = {
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authentication-info",
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
_MAX_ADDRESSES = 16 << 20
_VIEWER = "datasets-server."
_FAULTS = (500, 502, 503, 504)
# What the Hub said of one request's quota is not true of the next.
_OF_ONE_ANSWER = {"age", "ratelimit", "ratelimit-policy"}


@dataclass
class Intake:
    """What is read of an answer while it is passed on; `body` is None when it is too large to be kept."""

    body: bytearray | None = field(default_factory=bytearray)
    is_whole: bool = False

    def add(self, part: bytes) -> None:
        if self.body is not None:
            self.body += part
            if len(self.body) > MAX_BODY:
                self.body = None


class Passthrough:
    """Sends requests on to the Hub. What writes to a repository makes this node forget what it knew of it."""

    def __init__(self, *, origin: Origin, catalog: Catalog) -> None:
        self._origin = origin
        self._catalog = catalog
        self._shelf = Shelf()

    async def handle(self, request: web.Request, route: Route) -> web.StreamResponse:
        """Raises OriginUnavailable when the Hub cannot be reached."""
        body: Any = None
        repos = [route.repo] if route.repo is not None else []
        if request.can_read_body:
            body = request.content.iter_any()
            if _REPOS.match(route.target):
                body = await _read(request)
                repos = _named_repos(body)
        if request.method in ("GET", "HEAD") and body is None and not _ADDRESSES.match(route.target):
            return await self._read(request, route)
        is_write = request.method not in _READS and _QUESTIONS.search(route.target) is None
        try:
            async with self._open(request, route, self._sent_headers(request, route), body) as answer:
                if is_write:  # before the client knows, so that its next question brings what is new
                    self._forget(repos)
                if request.method not in _READS and answer.status < 400:
                    self._void(request, route, answer)
                return await self._relay(request, route, answer, "fwd=method")
        except aiohttp.ClientError as error:
            raise OriginUnavailable(f"{self._origin.host} broke off: {error}") from error
        finally:
            if is_write:  # whatever came of it
                self._forget(repos)

    async def _read(self, request: web.Request, route: Route) -> web.StreamResponse:
        """A question: from what is kept where HTTP allows it, else from the Hub."""
        asked, key, asked_at = tuple(request.headers.items()), _key(request, route), time.time()
        is_shared = caching.may_share(asked)
        stored = self._shelf.find(key, asked) if is_shared else None
        if stored is not None and caching.is_usable(stored, asked, asked_at):
            return self._from_shelf(request, route, stored, "hit")
        why = "fwd=stale" if stored is not None else "fwd=vary-miss" if self._shelf.has(key) else "fwd=uri-miss"
        if "only-if-cached" in caching.directives(asked):
            return web.Response(status=504, headers={"Cache-Status": "hubmesh; detail=only-if-cached"})
        headers = self._sent_headers(request, route)
        validators = caching.validators(stored) if stored is not None and request.method == "GET" else {}
        if validators:
            for name in ("If-None-Match", "If-Modified-Since", "If-Match", "If-Unmodified-Since", "Range", "If-Range"):
                headers.popall(name, None)
            headers.extend(validators)
        may_be_stale = stored is not None and caching.may_be_stale(stored, asked, asked_at)
        try:
            async with self._open(request, route, headers) as answer:
                if answer.status == 304 and validators and stored is not None:
                    stored = caching.freshened(stored, _end_to_end(answer.headers.items()), asked_at, time.time())
                    self._put(key, route, asked, stored)
                    return self._from_shelf(request, route, stored, "fwd=stale; fwd-status=304")
                if answer.status not in _FAULTS or stored is None or not may_be_stale:
                    return await self._pass_on(request, route, answer, why if is_shared else "fwd=bypass", asked_at)
        except OriginUnavailable:
            if stored is None or not may_be_stale:
                raise
        except aiohttp.ClientError as error:
            raise OriginUnavailable(f"{self._origin.host} broke off: {error}") from error
        return self._from_shelf(request, route, stored, "hit; fwd=stale; detail=origin-unavailable")

    async def _pass_on(
        self, request: web.Request, route: Route, answer: aiohttp.ClientResponse, why: str, asked_at: float
    ) -> web.StreamResponse:
        """The Hub's answer, kept on its way when it may be."""
        asked, headers, now = tuple(request.headers.items()), _end_to_end(answer.headers.items()), time.time()
        head = Stored(answer.status, answer.reason or "", headers, b"", asked_at, now)
        kept = caching.keep(asked, head) if request.method == "GET" else None
        if kept is None or (answer.content_length or 0) > MAX_BODY:
            return await self._relay(request, route, answer, why)
        intake = Intake()
        response = await self._relay(request, route, answer, f"{why}; stored", intake)
        if intake.is_whole and intake.body is not None:
            self._put(_key(request, route), route, asked, replace(kept, body=bytes(intake.body)))
        return response

    def _put(self, key: str, route: Route, asked: Fields, stored: Stored) -> None:
        kept = caching.keep(asked, stored)
        if kept is None:
            self._shelf.drop(key)
        else:
            self._shelf.add(key, str(route.repo or ""), kept)

    def _from_shelf(self, request: web.Request, route: Route, stored: Stored, how: str) -> web.Response:
        """What is kept, or the part of it that is asked for."""
        request["outcome"] = "stale" if "unavailable" in how else "hit"
        seconds = caching.age(stored, time.time())
        kept = [(name, value) for name, value in stored.headers if name.lower() not in _OF_ONE_ANSWER]
        headers = CIMultiDict(self._answer_headers(request, route, stored.status, kept))
        headers["Age"] = str(int(min(seconds, float(1 << 31))))
        headers.add("Cache-Status", f"hubmesh; {how}")
        headers.popall("Content-Length", None)
        if caching.is_not_modified(stored, request.headers):
            return web.Response(status=304, headers=headers)
        status, body = stored.status, stored.body
        reason: str | None = stored.reason
        if status == 200 and request.method == "GET" and "Range" in request.headers:
            etag, wanted = headers.get("ETag", ""), request.headers.get("If-Range")
            if wanted is None or not etag.startswith("W/"):
                chosen = select(len(body), etag, range_=request.headers["Range"], if_range=wanted)
                if (content_range := chosen.content_range(len(body))) is not None:
                    headers["Content-Range"] = content_range
                    status, reason, body = chosen.status, None, body[chosen.start : chosen.stop]
        return web.Response(status=status, reason=reason, headers=headers, body=body)

    def _void(self, request: web.Request, route: Route, answer: aiohttp.ClientResponse) -> None:
        """What was kept of the addresses that a write concerned (RFC 9111, section 4.4)."""
        self._shelf.drop(_key(request, route))
        for name in ("Location", "Content-Location"):
            if where := answer.headers.get(name):
                target = urljoin(self._origin.url + route.target, where)
                if target.startswith(f"{self._origin.url}/"):
                    self._shelf.drop(target.removeprefix(self._origin.url))

    def _open(
        self, request: web.Request, route: Route, headers: CIMultiDict[str], body: Any = None
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        viewer = request.host.startswith(_VIEWER)
        return self._origin.open(request.method, route.target, kind="other", headers=headers, body=body, viewer=viewer)

    def _forget(self, repos: list[Repo]) -> None:
        for repo in repos:
            self._catalog.changed(str(repo))
            self._shelf.drop_repo(str(repo))

    def _sent_headers(self, request: web.Request, route: Route) -> CIMultiDict[str]:
        dropped = _HOP_BY_HOP | _listed(request.headers.get("Connection", "")) | {"host", "expect"}
        headers = CIMultiDict((name, value) for name, value in request.headers.items() if name.lower() not in dropped)
        if "Accept-Encoding" not in headers or _ADDRESSES.match(route.target):
            headers["Accept-Encoding"] = "identity"
        return headers

    async def _relay(
        self,
        request: web.Request,
        route: Route,
        answer: aiohttp.ClientResponse,
        how: str,
        intake: Intake | None = None,
    ) -> web.StreamResponse:
        if request.method == "GET" and answer.status == 200 and _ADDRESSES.match(route.target):
            return await self._addresses(request, route, answer)
        response = web.StreamResponse(status=answer.status, reason=answer.reason)
        response.headers.extend(self._answer_headers(request, route, answer.status, answer.headers.items()))
        response.headers.add("Cache-Status", f"hubmesh; {how}")
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
                if intake is not None:
                    intake.add(part)
                try:
                    await response.write(part)
                except ConnectionError:
                    return response  # the client has gone
        if intake is not None:
            intake.is_whole = True
        await response.write_eof()
        return response

    async def _addresses(self, request: web.Request, route: Route, answer: aiohttp.ClientResponse) -> web.Response:
        """JSON with the addresses at the Hub as clients are to see them."""
        body = bytearray()
        async for part in answer.content.iter_any():
            body += part
            if len(body) > _MAX_ADDRESSES:
                raise OriginUnavailable(f"{self._origin.host} answered with more than {_MAX_ADDRESSES} bytes")
        visible = visible_base(request) + route.prefix
        for hub in {self._origin.url, "https://huggingface.co"}:
            body = body.replace(f'"{hub}/'.encode(), f'"{visible}/'.encode())
        headers = CIMultiDict(self._answer_headers(request, route, answer.status, answer.headers.items()))
        headers.popall("Content-Length", None)
        return web.Response(headers=headers, body=bytes(body))

    def _answer_headers(
        self, request: web.Request, route: Route, status: int, fields: Iterable[tuple[str, str]]
    ) -> list[tuple[str, str]]:
        keeps_xet = rewrite.keeps_xet(route.target)
        headers = []
        fields = _end_to_end(fields)
        for name, value in fields:
            lower = name.lower()
            if not keeps_xet and rewrite.is_xet_header(name):
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
        if route.repo is not None and needs_code(status, CIMultiDict(fields)):
            headers.append(("X-Error-Code", "RepoNotFound"))
        return headers


def _key(request: web.Request, route: Route) -> str:
    return f"{_VIEWER}{route.target}" if request.host.startswith(_VIEWER) else route.target


def _end_to_end(headers: Iterable[tuple[str, str]]) -> Fields:
    """Without what is about the connection."""
    fields = tuple(headers)
    dropped = _HOP_BY_HOP | _listed(caching.field(fields, "connection") or "")
    return tuple((name, value) for name, value in fields if name.lower() not in dropped)


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
