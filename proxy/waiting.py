"""How long to wait for a new answer when there may be an older one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def in_time(
    wanted: Coroutine[Any, Any, T], until: float, instead: Callable[[], Awaitable[T | None]]
) -> tuple[T, bool]:
    """Wait for `wanted`, but after `until` (by the loop's clock) only if there is nothing to have `instead`.

    Returns the result, and whether it is what was wanted. Raises what `wanted` raises. `wanted` is cancelled when
    nobody waits for it any more, so it should only join work that continues without it.
    """
    loop = asyncio.get_running_loop()
    asking = loop.create_task(wanted)
    try:
        await asyncio.wait({asking}, timeout=max(0.0, until - loop.time()))
        if not asking.done():
            other = await instead()
            if other is not None and not asking.done():
                return other, False
        return await asking, True
    finally:
        asking.cancel()
