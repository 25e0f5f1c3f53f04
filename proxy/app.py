"""The client port: routes each request to the part of the node that answers it, and gives failures their shape.

It uses aiohttp's low-level server. All paths except those under `/-/` belong to the Hub, so a router and middlewares
would have nothing to decide, and every small answer would pay for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable
from fnmatch import fnmatch
from posixpath import normpath
from typing import cast

from aiohttp import web

from mesh.errors import MeshError, TooManyFiles
from mesh.outflow import FIRST_BYTE_AT
from proxy import bodies
from proxy.admin.metrics import Metrics
from proxy.api import MAX_QUESTION, Api
from proxy.files import Files
from proxy.hosts import cannot_be_rebound, host_of
from proxy.hub import cors, errors, lfs, xet
from proxy.hub.errors import HubError, OriginUnavailable
from proxy.hub.lfs import BatchRoute, ObjectRoute
from proxy.hub.questions import is_too_long
from proxy.hub.urls import ApiRoute, FileRoute, OtherRoute, parse
from proxy.lfs import Lfs
from proxy.passthrough import Passthrough
from proxy.resolve import Client
from proxy.xet import Xet
from proxy.xet_tokens import XetTokens

log = logging.getLogger("proxy.access")

_READS = ("GET", "HEAD")
# RFC 9112, section 3.2.2: the absolute form, as sent to a proxy. Every server must accept it.
_ABSOLUTE = re.compile(r"https?://([^/?#]*)", re.IGNORECASE)
_OURS, _XET = "/-/", "/-/xet/"
_RUN = uuid.uuid4().hex[:8]  # the request ids of this process begin with this


class App:
    """Answers all requests of clients. `admin` routes the paths under `/-/`, except those of the Xet server."""

    def __init__(
        self,
        *,
        admin: web.UrlDispatcher,
        files: Files,
        api: Api,
        lfs: Lfs,
        passthrough: Passthrough,
        xet: Xet,
        xet_tokens: XetTokens,
        metrics: Metrics,
        guard: Callable[[str], None],
    ) -> None:
        self._admin = admin
        self._guard = guard
        self._xet = xet
        self._xet_tokens = xet_tokens
        self._files = files
        self._api = api
        self._lfs = lfs
        self._passthrough = passthrough
        self._metrics = metrics
        self._numbers = itertools.count(1)
        self._running = 0
        self._is_idle = asyncio.Event()

    async def idle(self, seconds: float) -> None:
        """Wait until no request is being answered any more, at most `seconds`."""
        self._is_idle.clear()
        if self._running:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._is_idle.wait()

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request for a name of this node; log it and count it in the metrics.

        A handler that streams its body stores the time at which it sent the head in the request, under FIRST_BYTE_AT.
        """
        began = time.perf_counter()
        status = 500
        self._running += 1
        try:
            self._guard(request.headers.get("Host", "localhost"))
            if (absolute := _absolute(request)) is not None:
                self._guard(absolute[1].rpartition("@")[2])
            if request.headers.get("Expect"):
                await _say_go_on(request)
            path = request.rel_url.path_safe  # as the admin router sees it: %2F is not decoded to a slash
            if not path.startswith("/"):
                raise web.HTTPNotFound  # CONNECT, or OPTIONS *: nothing that they could be about
            if path.startswith(_OURS) and not path.startswith(_XET):
                response = await self._about_us(request)
            elif _leads_to_us(request.rel_url.path) and not _target(request).startswith(_XET):
                raise web.HTTPNotFound
            else:
                response = await self._of_hub(request)
            status = response.status
            if not response.prepared:  # sent here, so that the request counts as running until the last byte
                request[FIRST_BYTE_AT] = time.perf_counter()
                with contextlib.suppress(ConnectionError):  # the client has gone
                    await response.prepare(request)
                    await response.write_eof()
            return response
        except web.HTTPException as error:
            status = error.status
            raise
        except ConnectionError:
            if request.transport is not None and not request.transport.is_closing():
                raise
            # The client has gone while it was sending its request or receiving the answer.
            status, request["outcome"] = 400, "broken"
            return web.Response(status=400)
        except asyncio.CancelledError:  # the node is stopping, and the drain time is over
            status, request["outcome"] = 200 if request.writer.output_size else 503, "broken"
            raise
        finally:
            self._running -= 1
            if not self._running:
                self._is_idle.set()
            ended = time.perf_counter()
            seconds, first_byte = ended - began, request.get(FIRST_BYTE_AT, ended) - began
            route, outcome = request.get("route", "admin"), request.get("outcome", "pass")
            self._metrics.client_request(route, status, outcome, first_byte)
            level = logging.DEBUG if route == "admin" else logging.INFO
            if log.isEnabledFor(level):
                why = f": {request['why']}" if "why" in request else ""
                self._log(level, request, f"{status} {outcome} {seconds * 1000:.0f} ms{why}")

    async def _about_us(self, request: web.BaseRequest) -> web.StreamResponse:
        asked = cast("web.Request", request)  # resolve() needs only the method and the path, which a BaseRequest has
        return await (await self._admin.resolve(asked)).handler(asked)

    async def _of_hub(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request in the Hub's name space or to the Xet server, with any method."""
        client = Client.of(request.headers)
        kind, answer = ("other", _refuse_token()) if client.has_bad_token else self._route(request, client)
        request["route"] = kind
        try:
            response = await answer
            if kind == "api" and not response.prepared:
                _make_readable(response)
            return response
        except (HubError, OriginUnavailable) as error:
            return self._fail(request, kind, error, client)
        except TooManyFiles as error:
            if request.get(FIRST_BYTE_AT) is not None:
                return self._break_off(request, error)
            return self._fail(request, kind, errors.come_again(f"hubmesh: {error}", client), client)
        except MeshError as error:
            return self._break_off(request, error)

    def _fail(
        self, request: web.BaseRequest, kind: str, error: HubError | OriginUnavailable, client: Client
    ) -> web.StreamResponse:
        request["outcome"] = "error"
        response = errors.respond(error, client)
        if kind == "api" or (request.method in _READS and not _is_for_xet(_target(request))):
            _make_readable(response)
        if response.status >= 500:  # our own failures are explained in the log, not the Hub's refusals
            request["why"] = error
        return response

    def _break_off(self, request: web.BaseRequest, error: MeshError) -> web.StreamResponse:
        """The head has been sent and the connection is closed, so the client sees a truncated body."""
        request["outcome"] = "broken"
        log.warning("%s broke off: %s", request.rel_url.raw_path, error)
        return web.Response(status=502)

    def _route(self, request: web.BaseRequest, client: Client) -> tuple[str, Awaitable[web.StreamResponse]]:
        target = _target(request)
        route = OtherRoute(target) if target.startswith(_XET) else parse(target)  # no owner at the Hub is called `-`
        asked = "" if _is_for_xet(target) else cors.asked_method(request.method, request.headers)
        if asked in _READS or (isinstance(route, ApiRoute) and route.is_cacheable(asked)):
            return "other", _permit(request, asked)
        if isinstance(route, FileRoute) and request.method in _READS:
            return "resolve", self._files.handle(request, route, client)
        is_plain = "Content-Encoding" not in request.headers
        if isinstance(route, ApiRoute) and route.is_cacheable(request.method) and is_plain:
            return "api", self._about(request, route, client)
        if isinstance(route, OtherRoute):
            return self._route_other(request, route, client)
        return "other", self._passthrough.handle(request, route)

    async def _about(self, request: web.BaseRequest, route: ApiRoute, client: Client) -> web.StreamResponse:
        body = await bodies.read(request, MAX_QUESTION) if request.method == "POST" else b""
        if isinstance(body, bytes) and not is_too_long(body):
            return await self._api.handle(request, route, client, body)
        return await self._passthrough.handle(request, route, body=body, change=self._api.shown)

    def _route_other(
        self, request: web.BaseRequest, route: OtherRoute, client: Client
    ) -> tuple[str, Awaitable[web.StreamResponse]]:
        if (asked := xet.server_route(route)) is not None:
            return "xet", self._xet.answer(request, asked, client)
        if xet.token_route(route) is not None:
            return "xet", self._token(request, route, client)
        if request.method == "POST" and route.target == xet.REPORT and xet.is_pass(client.token or ""):
            return "xet", _end_report()
        about = lfs.parse(route)
        if isinstance(about, BatchRoute) and request.method == "POST":
            return "lfs", self._lfs.batch(request, route, about)
        if isinstance(about, ObjectRoute) and request.method in _READS:
            return "lfs", self._lfs.object(request, about)
        return "other", self._passthrough.handle(request, route)

    async def _token(self, request: web.BaseRequest, route: OtherRoute, client: Client) -> web.StreamResponse:
        return await self._xet_tokens.answer(request, route, client) or await self._passthrough.handle(request, route)

    def _log(self, level: int, request: web.BaseRequest, how: str) -> None:
        request_id = request.headers.get("X-Request-Id", "")[:64] or f"{_RUN}-{next(self._numbers):x}"
        about = {"request_id": request_id, "client": request.remote}
        log.log(level, "%s %s %s", request.method, request.rel_url.raw_path, how, extra=about)


async def _refuse_token() -> web.StreamResponse:
    """Refuse without asking the Hub: the token cannot be sent on in a header field."""
    raise errors.bad_token()


async def _permit(request: web.BaseRequest, asked: str) -> web.StreamResponse:
    """Answer a browser's preflight about a read. The Hub is asked about other methods, which may change something."""
    request["outcome"] = "hit"
    return web.Response(status=204, headers=cors.permission(request.headers, asked))


def _make_readable(response: web.StreamResponse) -> None:
    """Let pages of other sites read an answer, as they may read the Hub's."""
    for name, value in cors.READABLE.items():
        response.headers.setdefault(name, value)


def _absolute(request: web.BaseRequest) -> re.Match[str] | None:
    """The scheme and host at the beginning of the request's target; None for the usual target, which is a path."""
    return None if request.raw_path.startswith("/") else _ABSOLUTE.match(request.raw_path)


def _target(request: web.BaseRequest) -> str:
    """The requested path and query, still encoded, whichever form the target has."""
    absolute = _absolute(request)
    return request.raw_path if absolute is None else "/" + request.raw_path[absolute.end() :].removeprefix("/")


def _is_for_xet(target: str) -> bool:
    """Whether a target is one of our Xet server, with or without a path of the client's before it."""
    return "/-/" in target and xet.server_route(OtherRoute(target)) is not None


def _leads_to_us(path: str) -> bool:
    """Whether a decoded path is one of ours to a less strict reader, as the origin might be."""
    return "/-" in path and f"{normpath('/' + path.lstrip('/'))}/".startswith(_OURS)


async def _say_go_on(request: web.BaseRequest) -> None:
    """Send 100 Continue to a client that waits for it before sending a body (RFC 9110, section 10.1.1)."""
    if not request.version.minor:
        return  # HTTP/1.0 has no 100: the client would take it for the answer
    if request.headers["Expect"].lower() != "100-continue":
        raise web.HTTPExpectationFailed
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0  # not part of the answer: if the handler fails, an error can still be sent


async def _end_report() -> web.StreamResponse:
    """Accept a client's report on a download from our Xet server; the Hub has no use for it."""
    return web.Response(status=204)


def guard_host(allowed: Iterable[str]) -> Callable[[str], None]:
    """Answer only for the names of this node, so that no web page can reach it by DNS rebinding.

    IP addresses and localhost are always allowed, since a page can only rebind a name of its own. The returned function
    takes a `Host` field and raises HTTPMisdirectedRequest.
    """
    patterns = [name.lower() for name in allowed]

    def guard(field: str) -> None:
        name = host_of(field)
        if not cannot_be_rebound(name) and not any(fnmatch(name, pattern) for pattern in patterns):
            raise web.HTTPMisdirectedRequest(
                text=f"This node does not answer for {name!r}. Start it with --allow-host {name} if it should.\n"
            )

    return guard
