"""The body of a client's question: whole if it is small enough to be looked at, else as a stream that can go on."""

from __future__ import annotations

from collections.abc import AsyncIterator

from aiohttp import web


async def read(request: web.BaseRequest, limit: int) -> bytes | AsyncIterator[bytes]:
    """All of it, or when it is longer than `limit` bytes all of it in parts."""
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
