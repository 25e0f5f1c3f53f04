"""Long loops on the event loop's thread that let other tasks run."""

from __future__ import annotations

import asyncio
import time

_SLICE_SECONDS = 0.003


class Turns:
    """Yields to the other tasks of the event loop whenever this one has run for a time slice."""

    def __init__(self) -> None:
        self._began = time.perf_counter()

    async def give(self) -> None:
        """Yield if the slice is used up; await this at each step. Copy or recheck what other tasks may change."""
        if time.perf_counter() - self._began >= _SLICE_SECONDS:
            await asyncio.sleep(0)
            self._began = time.perf_counter()
