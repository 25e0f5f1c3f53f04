"""Answers that pass through and allow reuse: kept for everybody, according to RFC 9111."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from urllib.parse import urljoin

import aiohttp
from aiohttp import web
from multidict import CIMultiDict

from proxy import caching
from proxy.caching import Fields, Stored
from proxy.catalog import Catalog
from proxy.hub.errors import HubError, OriginUnavailable
from proxy.hub.urls import Route
from proxy.onward import Copy, Onward, end_to_end, is_for_viewer
from proxy.ranges import select
from proxy.shelf import MAX_BODY, Shelf

_FAULTS = (500, 502, 503, 504)
_REFUSALS = (401, 403, 404, 410)
_OF_WHOLE_REPO = ("RepoNotFound", "GatedRepo")
# Headers about a single answer: the quota that one request had left is not that of the next.
_OF_ONE_ANSWER = {"age", "ratelimit", "ratelimit-policy"}


@dataclass(eq=False)
class Reading:
    """A question under way; void once a write has overtaken it."""

    key: str
    repo: str
    is_void: bool = False


class Reuse:
    """Answers questions from the shelf where HTTP allows it, else from the Hub."""

    def __init__(self, onward: Onward, catalog: Catalog) -> None:
        self._onward = onward
        self._catalog = catalog
        self._shelf = Shelf()
        self._readings: set[Reading] = set()

    def drop(self, repo: str) -> None:
        """Drop what is kept of a repository after a write to it."""
        self._void(repo)
        self._shelf.drop_repo(repo)

    def doubt(self, repo: str) -> None:
        """Have what is kept of a repository revalidated: a client may have written to it."""
        self._void(repo)
        self._shelf.doubt_repo(repo)

    async def answer(self, request: web.BaseRequest, route: Route) -> web.StreamResponse:
        """Answer a client. Raises OriginUnavailable when the Hub cannot be asked and nothing kept may be used."""
        reading = Reading(_key(request, route), str(route.repo or ""))
        self._readings.add(reading)
        try:
            return await self._answer(request, route, reading)
        finally:
            self._readings.discard(reading)

    async def _answer(self, request: web.BaseRequest, route: Route, reading: Reading) -> web.StreamResponse:
        asked, key, asked_at = tuple(request.headers.items()), reading.key, time.time()
        is_shared = caching.may_share(asked)
        stored = self._shelf.find(key, asked) if is_shared else None
        if stored is not None and caching.is_usable(stored, asked, asked_at):
            return self._from_shelf(request, route, stored, "hit")
        why = "fwd=stale" if stored is not None else "fwd=vary-miss" if self._shelf.has(key) else "fwd=uri-miss"
        if "only-if-cached" in caching.directives(asked):
            return web.Response(status=504, headers={"Cache-Status": "hubmesh; detail=only-if-cached"})
        headers = self._onward.sent_headers(request, route)
        validators = caching.validators(stored) if stored is not None and request.method == "GET" else {}
        if validators:
            for name in ("If-None-Match", "If-Modified-Since", "If-Match", "If-Unmodified-Since", "Range", "If-Range"):
                headers.popall(name, None)
            headers.extend(validators)
        may_be_stale = stored is not None and caching.may_be_stale(stored, asked, asked_at)
        try:
            async with self._onward.open(request, route, headers) as answer:
                if answer.status == 304 and validators and stored is not None:
                    stored = caching.freshened(stored, end_to_end(answer.headers.items()), asked_at, time.time())
                    self._put(reading, asked, stored)
                    return self._from_shelf(request, route, stored, "hit", "hubmesh; fwd=stale; fwd-status=304")
                if answer.status not in _FAULTS or stored is None or not may_be_stale:
                    why = why if is_shared else "fwd=bypass"
                    return await self._pass_on(request, route, answer, why, asked_at, reading)
        except OriginUnavailable:
            if stored is None or not may_be_stale:
                raise
        except aiohttp.ClientError as error:
            raise OriginUnavailable(f"{self._onward.origin.host} broke off: {error}") from error
        return self._from_shelf(request, route, stored, "stale")

    async def _pass_on(
        self,
        request: web.BaseRequest,
        route: Route,
        answer: aiohttp.ClientResponse,
        why: str,
        asked_at: float,
        reading: Reading,
    ) -> web.StreamResponse:
        """Relay the Hub's answer, and keep a copy if that is allowed."""
        asked, headers, now = tuple(request.headers.items()), end_to_end(answer.headers.items()), time.time()
        head = Stored(answer.status, answer.reason or "", headers, b"", asked_at, now)
        kept = caching.keep(asked, head) if request.method == "GET" else None
        self._mind_word(reading, request, answer, asked_at, is_kept=kept is not None)
        if kept is None or (answer.content_length or 0) > MAX_BODY:
            return await self._onward.relay(request, route, answer, why)
        copy = Copy(MAX_BODY)
        response = await self._onward.relay(request, route, answer, f"{why}; stored", copy)
        if copy.is_whole and copy.body is not None:
            self._put(reading, asked, replace(kept, body=bytes(copy.body)))
        return response

    def _mind_word(
        self,
        reading: Reading,
        request: web.BaseRequest,
        answer: aiohttp.ClientResponse,
        asked_at: float,
        *,
        is_kept: bool,
    ) -> None:
        """Drop what the origin has revoked; else it would still be served while the origin is away."""
        is_anonymous = caching.may_share(request.headers.items())
        mind_gate(self._catalog, reading.repo, answer, asked_at)
        if answer.status in _REFUSALS:
            if answer.status == 401 and not is_anonymous:
                return  # this is about the token, not about anonymous requests
            self._drop(reading.key)
            if reading.repo and HubError.of(answer.status, answer.headers).code in _OF_WHOLE_REPO:
                self.drop(reading.repo)
            return
        is_final = answer.status < 400 and answer.status not in (206, 304)
        if is_final and is_anonymous and request.method == "GET" and not is_kept:
            self._drop(reading.key)  # replaced by another answer, which may not be kept

    def _put(self, reading: Reading, asked: Fields, stored: Stored) -> None:
        kept = caching.keep(asked, stored)
        if kept is None:
            self._shelf.drop(reading.key)
        elif not reading.is_void:
            self._shelf.add(reading.key, reading.repo, kept)

    def _from_shelf(
        self, request: web.BaseRequest, route: Route, stored: Stored, outcome: str, cache_status: str | None = None
    ) -> web.Response:
        """The kept answer, or the range of it that is asked for. `cache_status` is by default that of the outcome."""
        request["outcome"] = outcome
        seconds = caching.age(stored, time.time())
        kept = [(name, value) for name, value in stored.headers if name.lower() not in _OF_ONE_ANSWER]
        headers = CIMultiDict(self._onward.answer_headers(request, route, stored.status, kept))
        headers["Age"] = str(int(min(seconds, float(1 << 31))))
        headers.add("Cache-Status", cache_status or caching.STATUS[outcome])
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

    def void(self, request: web.BaseRequest, route: Route, answer: aiohttp.ClientResponse) -> None:
        """Drop what is kept under the addresses that a write concerns (RFC 9111, section 4.4)."""
        self._drop(_key(request, route))
        for name in ("Location", "Content-Location"):
            if where := answer.headers.get(name):
                target = urljoin(self._onward.origin.url + route.target, where)
                if target.startswith(f"{self._onward.origin.url}/"):
                    self._drop(target.removeprefix(self._onward.origin.url))

    def _drop(self, key: str) -> None:
        for reading in self._readings:
            reading.is_void |= reading.key == key
        self._shelf.drop(key)

    def _void(self, repo: str) -> None:
        for reading in self._readings:
            reading.is_void |= reading.repo == repo


def mind_gate(catalog: Catalog, repo: str, answer: aiohttp.ClientResponse, asked_at: float) -> None:
    """Close a repository whenever any client is told of its gate, whatever it asked."""
    if repo and answer.status in _REFUSALS and answer.headers.get("X-Error-Code") == "GatedRepo":
        catalog.closed(repo, asked_at)


def _key(request: web.BaseRequest, route: Route) -> str:
    return f"viewer {route.target}" if is_for_viewer(request) else route.target
