"""Work on bodies of any size that does not keep the event loop: large ones are worked on in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

LARGE = 1 << 20  # bytes; below, a thread costs more than it saves

T = TypeVar("T")


async def work_on(body: bytes, work: Callable[[bytes], T]) -> T:
    """The result of `work(body)`, and whatever it raises. It should release Python's global lock every few ms."""
    return await asyncio.to_thread(work, body) if len(body) > LARGE else work(body)
