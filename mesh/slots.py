"""A limit on connections to the origin that leaves no blob without one.

On a slow line a few large files occupy all connections for minutes. A client that asks for another file would have to
wait as long, but gives up after ten seconds.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager


class Slots:
    """Grants `count` slots, first come, first served, and beyond that one to each owner without any, up to `limit`.

    Belongs to the event loop's thread.
    """

    def __init__(self, count: int, limit: int) -> None:
        self._count = count
        self._limit = limit
        self._used: Counter[Hashable] = Counter()
        self._waiting: dict[asyncio.Future[None], Hashable] = {}

    @asynccontextmanager
    async def one(self, whose: Hashable) -> AsyncIterator[None]:
        """Wait for a slot for the owner `whose`, and hold it."""
        if not self._take(whose):
            turn = asyncio.get_running_loop().create_future()
            self._waiting[turn] = whose
            try:
                await turn
            except asyncio.CancelledError:
                if self._waiting.pop(turn, None) is None:  # the slot was granted at the same time
                    self._give_back(whose)
                raise
        try:
            yield
        finally:
            self._give_back(whose)

    def _take(self, whose: Hashable) -> bool:
        is_free = self._used.total() < (self._count if self._used[whose] else self._limit)
        if is_free:
            self._used[whose] += 1
        return is_free

    def _give_back(self, whose: Hashable) -> None:
        self._used[whose] -= 1
        if not self._used[whose]:
            del self._used[whose]
        for turn, other in list(self._waiting.items()):
            if self._take(other):
                del self._waiting[turn]
                if not turn.done():
                    turn.set_result(None)
