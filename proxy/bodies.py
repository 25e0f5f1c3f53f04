"""Reading a request's body: as a whole if it is small enough to be examined, else as a stream to forward."""

from __future__ import annotations

from collections.abc import AsyncIterator

from aiohttp import web


async def read(request: web.BaseRequest, limit: int) -> bytes | AsyncIterator[bytes]:
    """The whole body; or, if it is longer than `limit` bytes, an iterator over all of its parts."""
    body, parts = bytearray(), request.content.iter_any()
    async for part in parts:
        body += part
        if len(body) > limit:
            return _onward(bytes(body), parts)
    return bytes(body)


async def _onward(begun: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield begun
    async for part in rest:
        yield part
