"""How long somebody who was asked may be silent before the answer begins, however long it takes to ask."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable
from typing import TypeVar

T = TypeVar("T")


class Patience:
    """With one request: so many seconds, for each part of its body to be taken and then for the answer to begin."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._timer: asyncio.Timeout | None = None

    async def wait(self, answer: Awaitable[T]) -> T:
        """What comes in the end. Raises TimeoutError."""
        async with asyncio.timeout(self._seconds) as self._timer:
            try:
                return await answer
            finally:
                self._timer = None

    async def sending(self, body: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
        """The parts of the request's body: that their source takes its time is not the other side's silence."""
        self._give(None)
        async for part in body:
            self._give(self._seconds)
            yield part
            self._give(None)
        self._give(self._seconds)

    def _give(self, seconds: float | None) -> None:
        # An answer may begin before all of the body is sent, and there is nothing to wait for any more.
        if self._timer is not None and not self._timer.expired():
            self._timer.reschedule(None if seconds is None else asyncio.get_running_loop().time() + seconds)
