"""Forwarding of messages: which parts of a request go on to the Hub, and which parts of its answer to the client."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web
from multidict import CIMultiDict

from mesh.outflow import FIRST_BYTE_AT
from proxy import caching
from proxy.caching import Fields
from proxy.hub import rewrite
from proxy.hub.errors import needs_code
from proxy.hub.urls import Route
from proxy.origin import Origin
from proxy.visible import visible_base

log = logging.getLogger(__name__)

# RFC 9110, section 7.6.1: fields about one connection, not about the message.
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
# JSON full of addresses at the Hub: the parquet files of a dataset.
ADDRESSES = re.compile(r"/api/datasets/[^/]+/[^/]+/parquet\b")
_VIEWER = "datasets-server."


@dataclass
class Copy:
    """A copy of a body, made while it is relayed; `body` is None once it is longer than `limit` bytes."""

    limit: int
    body: bytearray | None = field(default_factory=bytearray)
    is_whole: bool = False

    def add(self, part: bytes) -> None:
        if self.body is not None:
            self.body += part
            if len(self.body) > self.limit:
                self.body = None


class Onward:
    """Sends a client's request on to the Hub, and streams the answer back."""

    def __init__(self, origin: Origin) -> None:
        self.origin = origin

    def open(
        self, request: web.BaseRequest, route: Route, headers: CIMultiDict[str], body: Any = None
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        viewer = is_for_viewer(request)
        return self.origin.open(request.method, route.target, kind="other", headers=headers, body=body, viewer=viewer)

    def sent_headers(self, request: web.BaseRequest, route: Route) -> CIMultiDict[str]:
        dropped = _HOP_BY_HOP | _listed(request.headers.get("Connection", "")) | {"host", "expect"}
        headers = CIMultiDict((name, value) for name, value in request.headers.items() if name.lower() not in dropped)
        if "Accept-Encoding" not in headers or ADDRESSES.match(route.target):
            headers["Accept-Encoding"] = "identity"
        return headers

    async def relay(
        self,
        request: web.BaseRequest,
        route: Route,
        answer: aiohttp.ClientResponse,
        how: str,
        copy: Copy | None = None,
    ) -> web.StreamResponse:
        response = web.StreamResponse(status=answer.status, reason=answer.reason)
        response.headers.extend(self.answer_headers(request, route, answer.status, answer.headers.items()))
        response.headers.add("Cache-Status", f"hubmesh; {how}")
        await response.prepare(request)
        request[FIRST_BYTE_AT] = time.perf_counter()
        if request.method != "HEAD" and answer.status not in (204, 304):
            parts = answer.content.iter_any()
            while True:
                try:
                    part = await anext(parts, b"")
                except (aiohttp.ClientError, TimeoutError) as error:
                    request["outcome"] = "broken"
                    log.warning("%s broke off %s: %s", self.origin.host, request.rel_url.raw_path, error)
                    if request.transport is not None:
                        request.transport.close()  # so that the client does not take this for the end
                    return response
                if not part:
                    break
                if copy is not None:
                    copy.add(part)
                try:
                    await response.write(part)
                except ConnectionError:  # the client has gone
                    request["outcome"] = "broken"
                    return response
        if copy is not None:
            copy.is_whole = True
        await response.write_eof()
        return response

    def answer_headers(
        self, request: web.BaseRequest, route: Route, status: int, fields: Iterable[tuple[str, str]]
    ) -> list[tuple[str, str]]:
        keeps_xet = rewrite.keeps_xet(route.target)
        headers = []
        fields = end_to_end(fields)
        for name, value in fields:
            lower = name.lower()
            if not keeps_xet and rewrite.is_xet_header(name):
                continue
            if lower == "location":
                value = rewrite.location(value, self.origin.url, route.prefix)
            elif lower == "link":
                visible = visible_base(request) + route.prefix
                rewritten = rewrite.link(value, self.origin.url, visible, without_xet=not keeps_xet)
                if rewritten is None:
                    continue
                value = rewritten
            headers.append((name, value))
        if route.repo is not None and needs_code(status, CIMultiDict(fields)):
            headers.append(("X-Error-Code", "RepoNotFound"))
        return headers


def end_to_end(headers: Iterable[tuple[str, str]]) -> Fields:
    """The header fields without those that concern only the connection."""
    fields = tuple(headers)
    dropped = _HOP_BY_HOP | _listed(caching.field(fields, "connection") or "")
    return tuple((name, value) for name, value in fields if name.lower() not in dropped)


def _listed(connection: str) -> set[str]:
    return {name.strip().lower() for name in connection.split(",") if name.strip()}


def is_for_viewer(request: web.BaseRequest) -> bool:
    """Whether a request is for the datasets viewer, which clients expect at a subdomain of the Hub."""
    return request.host.startswith(_VIEWER)
