"""Going through much on the event loop without holding it."""

from __future__ import annotations

import asyncio
import time

_SLICE_SECONDS = 0.003


class Turns:
    """Of the loop: all others have theirs whenever we have had it for a while."""

    def __init__(self) -> None:
        self._began = time.perf_counter()

    async def give(self) -> None:
        """To be awaited at each step. What others may change meanwhile has to be looked at again, or copied before."""
        if time.perf_counter() - self._began >= _SLICE_SECONDS:
            await asyncio.sleep(0)
            self._began = time.perf_counter()
