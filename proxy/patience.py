"""A time-out for the beginning of an answer that does not count the time that sending the request takes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable
from typing import TypeVar

T = TypeVar("T")


class Patience:
    """The time-out of one request: `seconds` for the peer to accept each part of the body, then to begin its answer."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._timer: asyncio.Timeout | None = None

    async def wait(self, answer: Awaitable[T]) -> T:
        """The result of `answer`. Raises TimeoutError."""
        async with asyncio.timeout(self._seconds) as self._timer:
            try:
                return await answer
            finally:
                self._timer = None

    async def sending(self, body: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
        """The parts of the request's body. Waiting for their source does not count as silence of the other side."""
        self._give(None)
        async for part in body:
            self._give(self._seconds)
            yield part
            self._give(None)
        self._give(self._seconds)

    def _give(self, seconds: float | None) -> None:
        # The answer may begin before the whole body is sent; then there is nothing left to time.
        if self._timer is not None and not self._timer.expired():
            self._timer.reschedule(None if seconds is None else asyncio.get_running_loop().time() + seconds)
