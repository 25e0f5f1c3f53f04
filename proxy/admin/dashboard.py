"""The dashboard at `/-/`, and the server-sent events that keep it up to date while it is open."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
from aiohttp import web

from mesh.outflow import FIRST_BYTE_AT
from mesh.tasks import Tasks
from proxy.admin import overview
from proxy.admin.metrics import Metrics
from proxy.admin.view import NodeView

_STATIC = Path(__file__).with_name("static")
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_SECONDS = 1.0  # seconds between two looks at the node
_RARELY = 3  # looks; the blobs are gone through in one of so many, since that is slow
_MAX_LISTENERS = 32
_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Dashboard:
    """Collects the sections once a second for all listeners together, and not at all when there are none."""

    def __init__(self, node: NodeView, metrics: Metrics, *, seconds: float = _SECONDS) -> None:
        self._node = node
        self._metrics = metrics
        self._seconds = seconds
        self._failures = overview.Failures()
        self._sections: dict[str, bytes] = {}
        self._looked = asyncio.Event()  # set, and replaced by a new one, after each look
        self._listeners = 0
        self._is_closing = False
        self._watching: asyncio.Task[object] | None = None
        self._tasks = Tasks()

    def add_routes(self, app: web.Application) -> None:
        app.router.add_get("/-/", _page("index.html"))
        for file in sorted(_STATIC.iterdir()):
            if file.suffix in _TYPES and file.name != "index.html":
                app.router.add_get(f"/-/{file.name}", _page(file.name))
        app.router.add_get("/-/events", self.events, allow_head=False)
        app.on_shutdown.append(self.close)

    async def close(self, _: web.Application | None = None) -> None:
        """End all streams. Browsers reconnect to the next process by themselves."""
        self._is_closing = True
        self._looked.set()
        await self._tasks.close()

    async def events(self, request: web.Request) -> web.StreamResponse:
        """The event stream of one listener: first all sections, then those that have changed."""
        if self._listeners >= _MAX_LISTENERS or self._is_closing:
            raise web.HTTPServiceUnavailable(text="too many dashboards are open: close one\n")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", **_HEADERS})
        await response.prepare(request)
        request[FIRST_BYTE_AT] = time.perf_counter()
        self._listeners += 1
        try:
            sent: dict[str, bytes] = {}
            if self._listeners == 1:
                self._watching = self._tasks.start(self._watch(), name="dashboard")
            else:
                sent = await self._send(response, sent)
            while not self._is_closing:
                await self._looked.wait()
                sent = await self._send(response, sent)
        except ConnectionError:
            pass
        finally:
            self._listeners -= 1
            if not self._listeners and self._watching is not None:
                self._watching.cancel()
        return response

    async def _send(self, response: web.StreamResponse, sent: dict[str, bytes]) -> dict[str, bytes]:
        sections = self._sections
        news = [
            b"event: %s\ndata: %s\n\n" % (name.encode(), section)
            for name, section in sections.items()
            if sent.get(name) != section
        ]
        # Always write something, so that a listener that has left is noticed.
        await response.write(b"".join(news) or b":\n\n")
        return sections

    async def _watch(self) -> None:
        looks = 0
        while True:
            self._sections = await self._look(is_thorough=looks % _RARELY == 0)
            looks += 1
            self._looked.set()
            self._looked = asyncio.Event()
            await asyncio.sleep(self._seconds)

    async def _look(self, *, is_thorough: bool) -> dict[str, bytes]:
        node, now = self._node, time.monotonic()
        failed = self._failures.recent(self._metrics.figures(), now)
        fresh: dict[str, object] = {
            "node": overview.node(node),
            "traffic": {"at": round(now, 3), **overview.traffic(node.stats)},
            "downloads": overview.downloads(node.downloads()),
            "peers": overview.peers(node),
            "findings": list(overview.findings(node, failed)),
        }
        if is_thorough:
            fresh["repositories"] = overview.repositories(await node.blobs())
        encoded = {name: msgspec.json.encode(section) for name, section in fresh.items()}
        return self._sections | encoded


def _page(name: str) -> Callable[[web.Request], Awaitable[web.Response]]:
    file = _STATIC / name
    body, content_type = file.read_bytes(), _TYPES[file.suffix]

    async def page(_: web.Request) -> web.Response:
        return web.Response(body=body, content_type=content_type, charset="utf-8", headers=_HEADERS)

    return page
