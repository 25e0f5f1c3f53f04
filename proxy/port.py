"""The client port as a server: how it starts, and in which order it stops."""

from __future__ import annotations

from aiohttp import web

from proxy.app import App

_END_SECONDS = 0.2  # for the last bytes of what is answered, and then for handlers to notice that they are cancelled


class ClientRunner(web.ServerRunner):
    """Has `app` answer. `admin` is what it asks for what is under `/-/`; `drain` seconds are left to those being served
    at the end."""

    __slots__ = ("_admin", "_app", "_drain")

    def __init__(self, app: App, admin: web.Application, *, drain: float) -> None:
        # Bodies go on as they came: git's are compressed when they are long.
        server = web.Server(app.answer, access_log=None, keepalive_timeout=75, auto_decompress=False)
        # We wait for those being served ourselves: aiohttp would wait twice, and for each of them anew.
        super().__init__(server, shutdown_timeout=_END_SECONDS)
        self._app, self._admin, self._drain = app, admin, drain

    async def setup(self) -> None:
        self._admin.freeze()
        await super().setup()

    async def shutdown(self) -> None:
        """Nobody new is let in any more: those who look on are sent away, the others may have what they came for."""
        await self._admin.shutdown()
        await self._app.idle(self._drain)
