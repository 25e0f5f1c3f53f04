"""The server on the client port: how it starts, and in which order it stops."""

from __future__ import annotations

from aiohttp import web

from proxy.app import App

_END_SECONDS = 0.2  # seconds for the last bytes of answers, and then for handlers to notice that they are cancelled


class ClientRunner(web.ServerRunner):
    """Runs `app` on the client port.

    `admin` handles the paths under `/-/`. On shutdown, running requests get `drain` seconds to finish.
    """

    __slots__ = ("_admin", "_app", "_drain")

    def __init__(self, app: App, admin: web.Application, *, drain: float) -> None:
        # Bodies are forwarded as they came; git compresses long ones.
        server = web.Server(app.answer, access_log=None, keepalive_timeout=75, auto_decompress=False)
        # `shutdown` waits for running requests: aiohttp would wait twice, and for each connection anew.
        super().__init__(server, shutdown_timeout=_END_SECONDS)
        self._app, self._admin, self._drain = app, admin, drain

    async def setup(self) -> None:
        self._admin.freeze()
        await super().setup()

    async def shutdown(self) -> None:
        """Stop after the listeners have closed: end the pages' event streams, then let running requests finish."""
        await self._admin.shutdown()
        await self._app.idle(self._drain)
