"""Health checks: is the process alive, and should clients be sent to it?"""

from __future__ import annotations

from aiohttp import web

from proxy.admin.view import NodeView


async def health(_: web.Request) -> web.Response:
    """Always 200: the event loop answers. Whatever else is wrong, a restart would not help."""
    return web.Response(text="alive\n")


async def ready(_: web.Request, node: NodeView) -> web.Response:
    """200 when clients should be sent here, else 503 with the reason."""
    is_ready, reason = node.ready()
    return web.Response(status=200 if is_ready else 503, text=f"{'ready' if is_ready else reason}\n")
