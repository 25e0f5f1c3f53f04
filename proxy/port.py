"""The client port as a server: how it starts, and in which order it stops."""

from __future__ import annotations

from aiohttp import web

from proxy.app import App


class ClientRunner(web.ServerRunner):
    """Has `app` answer. `admin` is what it asks for what is under `/-/`; `drain` seconds are left to those being served
    at the end."""

    __slots__ = ("_admin",)

    def __init__(self, app: App, admin: web.Application, *, drain: float) -> None:
        # Bodies go on as they came: git's are compressed when they are long.
        server = web.Server(app.answer, access_log=None, keepalive_timeout=75, auto_decompress=False)
        super().__init__(server, shutdown_timeout=drain)
        self._admin = admin

    async def setup(self) -> None:
        self._admin.freeze()
        await super().setup()

    async def shutdown(self) -> None:
        """Nobody new is let in any more: those who look on are sent away, the others may have what they came for."""
        await self._admin.shutdown()
