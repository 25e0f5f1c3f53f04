"""The node as a Xet server, for files that clients fetch over Xet only; the bytes come the same way as all others.

A client asks the Hub for a token to read a repository; this node answers with a pass and names itself as the server.
With the pass the client asks how a file is put together, and gets addresses of xorbs that contain a pass for this one
file. Each request is checked like one for the file itself: by its repository, and by the token that the pass was given
for.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time

import msgspec
from aiohttp import web

from mesh.blob import Blob
from mesh.blobs import Blobs
from mesh.errors import MeshError
from mesh.fill import Reader
from mesh.outflow import FIRST_BYTE_AT
from mesh.stats import Stats
from mesh.whole import WholeResponse
from proxy import resumed
from proxy.catalog import Catalog
from proxy.files import Files, first_byte_by
from proxy.hub.client import agent_of
from proxy.hub.errors import HubError
from proxy.hub.urls import FileRoute, Repo
from proxy.hub.xet import (
    Pass,
    ReconstructionRoute,
    Span,
    UnknownRoute,
    Xorb,
    XorbRoute,
    is_hash,
    reconstruction,
)
from proxy.passes import Passes
from proxy.ranges import Selection, select
from proxy.resolve import Client, ResolvedFile, Resolver
from proxy.visible import visible_base

log = logging.getLogger(__name__)

_BATCH = 32  # chunks read and sent at once
_STALL_SECONDS = 300.0  # clients may pause a download; a dead one is dropped after this long


class Xet:
    """Answers requests for reconstructions and xorbs from clients with a pass."""

    def __init__(
        self,
        *,
        passes: Passes,
        files: Files,
        blobs: Blobs,
        resolver: Resolver,
        catalog: Catalog,
        stats: Stats,
    ) -> None:
        self._passes = passes
        self._files = files
        self._blobs = blobs
        self._resolver = resolver
        self._catalog = catalog
        self._stats = stats

    async def answer(
        self, request: web.BaseRequest, route: ReconstructionRoute | XorbRoute | UnknownRoute, client: Client
    ) -> web.StreamResponse:
        """Answer a request below `/-/xet/`. Raises HubError and OriginUnavailable."""
        if request.method in ("GET", "HEAD"):
            if isinstance(route, ReconstructionRoute):
                return await self._reconstruction(request, route, client)
            if isinstance(route, XorbRoute):
                return await self._xorb(request, route)
        return web.Response(status=404, text="hubmesh has no such Xet route\n")

    async def _file(self, granted: Pass, xet_hash: str, client: Client) -> ResolvedFile:
        """The file with a Xet hash, if the client may read it now. Raises HubError and OriginUnavailable."""
        name = self._catalog.xet_name(granted.repo, xet_hash) if is_hash(xet_hash) else None
        if name is None:
            raise HubError(
                404, code="EntryNotFound", message=f"no file of {granted.repo} is known by the Xet hash {xet_hash}"
            )
        file = await self._resolver.file(FileRoute(Repo.parse(granted.repo), name.commit, name.path), client)
        if file.digest is None or not file.size:
            raise HubError(404, code="EntryNotFound", message=f"{name.path} cannot be served over Xet")
        return file

    def _is_void(self, granted: Pass, file: ResolvedFile) -> bool:
        """Whether this client may hold wrong bytes of the file, which correct ones must not complete."""
        if file.digest is None:
            return False
        return granted.since <= self._catalog.disproof(file.digest).at < time.time() + resumed.CLOCK

    # --- requests of the Xet protocol

    async def _reconstruction(
        self, request: web.BaseRequest, route: ReconstructionRoute, asker: Client
    ) -> web.StreamResponse:
        xet_hash, now = route.hash, time.time()
        if (read := self._passes.read(asker.token or "", "", asker.user_agent, now)) is None:
            raise HubError(
                401, message="this access token was not issued by this node, or has expired: ask for a new one"
            )
        granted, client = read
        file = await self._file(granted, xet_hash, client)
        if self._is_void(granted, file):
            raise HubError(401, message=f"some bytes of {file.path} were wrong: start again with a new token")
        selection = _select(request, file.size, xet_hash)
        if selection.status == 416:
            return web.Response(status=416, headers={"Content-Range": f"bytes */{file.size}"})
        signature = self._passes.narrow(granted, xet_hash, now)
        url = f"{visible_base(request)}{route.prefix}/-/xet/xorbs/{xet_hash}/"
        said = reconstruction(
            file.etag, file.size, selection.start, selection.stop, lambda xorb: f"{url}{xorb}?signature={signature}"
        )
        request["outcome"] = "hit"
        return web.Response(
            body=msgspec.json.encode(said), content_type="application/json", headers={"Cache-Control": "no-store"}
        )

    async def _xorb(self, request: web.BaseRequest, route: XorbRoute) -> web.StreamResponse:
        xet_hash, number, until = route.hash, route.number, first_byte_by(self._blobs)
        text, user_agent = request.query.get("signature", ""), agent_of(request.headers)
        read = self._passes.read(text, xet_hash, user_agent, time.time()) if is_hash(xet_hash) else None
        if read is None:
            raise HubError(403, message="this address was not issued by this node, or has expired")  # clients ask anew
        granted, client = read
        file = await self._file(granted, xet_hash, client)
        try:
            xorb = Xorb(file.size, number)
        except IndexError as error:
            raise HubError(404, code="EntryNotFound", message=str(error)) from error
        selection = _select(request, xorb.stored_size, f"{xet_hash}-{number}")
        headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        if content_range := selection.content_range(xorb.stored_size):
            headers["Content-Range"] = content_range
        if selection.status == 416:
            return web.Response(status=416, headers=headers)
        if request.method == "HEAD":
            request["outcome"] = file.outcome
            return WholeResponse(200, headers | {"Content-Length": str(xorb.stored_size)})
        spans = list(xorb.spans(selection.start, selection.stop))
        source = await self._files.open(file, client, spans[0].start, spans[-1].stop, until, is_whole=False)
        try:
            # A disproof is noted before a new source of the file can be opened.
            if self._is_void(granted, file):
                raise HubError(403, message=f"some bytes of {file.path} were wrong: start its download again")
            request["outcome"] = "hit" if source.is_here else "miss"
            response = web.StreamResponse(status=selection.status, headers=headers)
            response.content_length = selection.stop - selection.start
            await response.prepare(request)
            request[FIRST_BYTE_AT] = time.perf_counter()
            try:
                await self._send(response, source, spans)
            except (ConnectionError, TimeoutError, MeshError, OSError) as error:
                request["outcome"] = "broken"
                log.info("%s: broken off: %s", file.path, error)
                if request.transport is not None:
                    request.transport.close()  # so that the client does not take this for the end
            return response
        finally:
            source.close()

    async def _send(self, response: web.StreamResponse, source: Blob | Reader, spans: list[Span]) -> None:
        """Send the spans that are available, up to _BATCH chunks at once, and wait for the rest."""
        while spans:
            ready = source.ready(spans[0].start)
            while ready < spans[0].stop:
                await source.wait(ready)
                ready = source.ready(ready)
            count = next((n for n, span in enumerate(spans[:_BATCH]) if span.stop > ready), len(spans[:_BATCH]))
            batch, spans = spans[:count], spans[count:]
            body = await asyncio.to_thread(_read, source.fd, batch)
            if source.stamp is not None:
                source.stamp.check(source.fd)
            async with asyncio.timeout(_STALL_SECONDS):
                await response.write(body)
            self._stats.add("client_sent", len(body))


def _select(request: web.BaseRequest, size: int, etag: str) -> Selection:
    """The selected bytes; only a GET can have a range (RFC 9110, section 14.2)."""
    return select(size, f'"{etag}"', range_=request.headers.get("Range") if request.method == "GET" else None)


def _read(fd: int, spans: list[Span]) -> bytearray:
    """Read spans from a file, each with its chunk header before it. Blocks: call it in a thread.

    Raises OSError when the file is too short.
    """
    body = bytearray(sum(len(span.header) + span.stop - span.start for span in spans))
    view, place, parts = memoryview(body), 0, []
    for span in spans:
        body[place : place + len(span.header)] = span.header
        place += len(span.header)
        if span.stop > span.start:
            parts.append(view[place : place + span.stop - span.start])
        place += span.stop - span.start
    position, stop = spans[0].start, spans[-1].stop
    while position < stop:
        count = os.preadv(fd, parts, position)
        if not count:
            raise OSError("the file is shorter than it was")
        position += count
        while parts and count >= len(parts[0]):
            count -= len(parts.pop(0))
        if count:
            parts[0] = parts[0][count:]
    return body
