"""A node whose event loop is watched: `python -m loadtests.watched serve …` is `hubmesh serve …` with a ticker inside.

On SIGUSR1 it writes what it saw since the last signal to the file named by LOOP_WATCH, as JSON: `ticks`, and for the
latest ticks the milliseconds by which the loop ran the ticker late (`late`) and the CPU time that the loop's thread
used meanwhile (`busy`). Late but not busy: the machine has more to do than it has cores. Late and busy: code blocks the
loop.
"""

from __future__ import annotations

import asyncio
import heapq
import json
import os
import signal
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import uvloop

from proxy import cli

TICK = 0.002  # seconds
_KEPT = 50


class _Ticker:
    def __init__(self, loop: asyncio.AbstractEventLoop, file: Path) -> None:
        self._loop, self._file = loop, file
        self._worst: list[tuple[float, float]] = []
        self._ticks = 0
        self._plan()

    def _plan(self) -> None:
        self._due, self._used = self._loop.time() + TICK, time.thread_time()
        self._loop.call_later(TICK, self._tick)

    def _tick(self) -> None:
        self._ticks += 1
        # loop.time() is cached once per iteration; time.monotonic() reads the same clock now.
        heapq.heappush(self._worst, (time.monotonic() - self._due, time.thread_time() - self._used))
        if len(self._worst) > _KEPT:
            heapq.heappop(self._worst)
        self._plan()

    def tell(self) -> None:
        worst = sorted(self._worst, reverse=True)
        said = {
            "ticks": self._ticks,
            "late": [late * 1000 for late, _ in worst],
            "busy": [busy * 1000 for _, busy in worst],
        }
        temporary = self._file.with_suffix(".new")
        temporary.write_text(json.dumps(said))
        temporary.replace(self._file)
        self._worst, self._ticks = [], 0


def main() -> None:
    run = uvloop.run

    async def watched(work: Coroutine[Any, Any, Any]) -> Any:
        loop = asyncio.get_running_loop()
        ticker = _Ticker(loop, Path(os.environ["LOOP_WATCH"]))
        loop.add_signal_handler(signal.SIGUSR1, ticker.tell)
        return await work

    uvloop.run = lambda work, **more: run(watched(work), **more)  # type: ignore[assignment, arg-type]
    cli.main()


if __name__ == "__main__":
    main()
