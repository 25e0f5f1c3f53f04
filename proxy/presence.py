"""Work for a single client, which ends when that client has gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

_LOOK_SECONDS = 1.0


@asynccontextmanager
async def while_waiting(request: web.BaseRequest) -> AsyncIterator[None]:
    """Cancel the body of the block when the client's connection has closed; then raises ConnectionResetError.

    The server does not report that a client has gone until something is sent to it, and does not cancel handlers,
    because most of what they start also serves others. Hence the connection is polled.
    """
    loop, scope = asyncio.get_running_loop(), asyncio.timeout(None)
    looks: list[asyncio.TimerHandle] = []

    def look() -> None:
        if request.transport is None or request.transport.is_closing():
            scope.reschedule(loop.time())
        else:
            looks[:] = [loop.call_later(_LOOK_SECONDS, look)]

    try:
        async with scope:
            look()
            yield
    except TimeoutError as error:
        if not scope.expired():
            raise
        raise ConnectionResetError("the client has gone") from error
    finally:
        for timer in looks:
            timer.cancel()
