"""The paths under `/-/` of the client port. They are the node's own and are never sent on to the Hub."""

from __future__ import annotations

from aiohttp import web

from proxy.admin import actions, health, status
from proxy.admin.dashboard import Dashboard
from proxy.admin.metrics import Metrics
from proxy.admin.view import NodeView

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_NO_STORE = {"Cache-Control": "no-store"}


def add_routes(app: web.Application, node: NodeView, metrics: Metrics) -> None:
    """Route health, ready, metrics, status, the dashboard and the actions; 404 for all else under `/-/`."""
    metrics.watch(node)

    async def ready(request: web.Request) -> web.Response:
        return await health.ready(request, node)

    async def show_metrics(_: web.Request) -> web.Response:
        return web.Response(body=metrics.render(), headers={"Content-Type": _METRICS_TYPE} | _NO_STORE)

    async def show_status(_: web.Request) -> web.Response:
        document = status.encode(await status.status_of(node, metrics))
        return web.Response(body=document, content_type="application/json", headers=_NO_STORE)

    async def act(request: web.Request) -> web.Response:
        return await actions.act(request, node, request.path.removeprefix("/-/"))

    async def nothing(request: web.Request) -> web.Response:
        return web.Response(status=404, text=f"hubmesh has nothing at {request.path}\n")

    app.router.add_get("/-/health", health.health)
    app.router.add_get("/-/ready", ready)
    app.router.add_get("/-/metrics", show_metrics)
    app.router.add_get("/-/status", show_status)
    Dashboard(node, metrics).add_routes(app)
    for action in actions.ACTIONS:
        app.router.add_post(f"/-/{action}", act)
    # aiohttp tries longer fixed prefixes first, so this does not hide routes that others add under /-/.
    app.router.add_route("*", "/-/{rest:.*}", nothing)
