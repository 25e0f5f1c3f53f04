"""A small, misbehaving origin for one blob, and a house that fetches from it."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

from mesh.blobs import Blobs
from mesh.content import Digest
from mesh.errors import LocationRefused
from mesh.exchange import MeshExchange
from mesh.house import House
from mesh.stats import Stats
from mesh.store import Store
from mesh.tasks import Tasks
from mesh.tracker import Tracker
from mesh.transfer import Connections, Location


@dataclass
class Origin:
    """Serves `content`, by range if asked. The fields make it misbehave. Counts what it sent."""

    content: bytes
    cut_after: int | None = None  # bytes of each body, for the next `cuts` answers
    cuts: int = 0
    knows_ranges: bool = True
    good_tokens: int = 10**9  # number of requests that a URL is good for
    pause: float = 0.0  # seconds before every 64 KiB
    statuses: list[int] = field(default_factory=list)  # of the first answers
    gate: asyncio.Event | None = None  # bodies wait for it after `gate_at` bytes of the blob
    gate_at: int = 0
    sent: int = 0
    requests: list[tuple[int, int]] = field(default_factory=list)
    url: str = ""
    located: int = 0

    @property
    def digest(self) -> Digest:
        return Digest("sha256", hashlib.sha256(self.content).hexdigest())

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if self.statuses:
            return web.Response(status=self.statuses.pop(0))
        self.good_tokens -= 1
        if self.good_tokens < 0:
            self.good_tokens = 10**9
            return web.Response(status=403)
        size = len(self.content)
        start, stop, status, headers = 0, size, 200, {}
        if self.knows_ranges and (wanted := request.http_range).start is not None:
            start, stop, status = wanted.start or 0, min(size, wanted.stop or size), 206
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        self.requests.append((start, stop))
        response = web.StreamResponse(status=status, headers=headers)
        response.content_length = stop - start
        await response.prepare(request)
        end = stop
        if self.cuts:
            self.cuts -= 1
            end = min(stop, start + (self.cut_after or 0))
        for position in range(start, end, 64 << 10):
            if self.pause:
                await asyncio.sleep(self.pause)
            if self.gate is not None and position >= self.gate_at:
                await self.gate.wait()
            part = self.content[position : min(end, position + (64 << 10))]
            self.sent += len(part)
            await response.write(part)
        if end < stop:
            assert request.transport is not None
            request.transport.close()
        return response

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Origin]:
        app = web.Application()
        app.router.add_get("/blob", self.handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/blob"
        try:
            yield self
        finally:
            await runner.cleanup()

    @property
    def key(self) -> Hashable:
        return self.url

    hint = b""
    is_closed = False

    async def locate(self, refused: Location | None) -> Location:
        if self.is_closed:
            raise LocationRefused("origin", "HTTP 401")
        self.located += 1
        return Location(f"{self.url}?{self.located}", expires_at=time.time() + 3600)


@asynccontextmanager
async def node(root: Path, *, max_size: int = 1 << 40, stall: float = 5.0) -> AsyncIterator[tuple[House, Blobs]]:
    """Run only the part of a node that moves bytes."""
    tracker = Tracker()
    exchange = MeshExchange("me", tracker)
    tasks = Tasks()
    house = House(
        "me",
        Store(root, max_size),
        Stats(),
        tasks,
        exchange,
        exchange,
        origin_connections=Connections(connect=2.0, stall=stall),
    )
    blobs = Blobs(house)
    try:
        yield house, blobs
    finally:
        await blobs.close()
        await tasks.close()
        house.close()
        house.store.close()
