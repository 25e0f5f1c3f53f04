"""Threads that move and hash bytes, at a lower priority than event loops.

A busy node has a dozen such threads runnable, and one event loop. At equal priority, where many nodes share a machine,
the loop that leads a swarm of hundreds would get a hundredth of the CPU time, while all other nodes wait for its
answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_T = TypeVar("_T")

NICE = 10  # a tenth of the event loop's weight (sched(7)); this costs nothing while a core is idle
# A third of the weight: a blob has one hashing thread, beside many that bring its bytes in. Bytes that are not hashed
# when the last of them arrive are hashed by one core while the others are idle.
NICE_OF_PROOFS = 5
# A third, too: where hundreds of nodes share a machine and wait for what one alone has, only its uploads end the wait.
NICE_OF_UPLOADS = 5


def bulk_pool(threads: int, name: str, nice: int = NICE) -> ThreadPoolExecutor:
    """Create a pool of up to `threads` threads, each with a nice value raised by `nice`."""
    return ThreadPoolExecutor(threads, thread_name_prefix=name, initializer=_stand_back, initargs=(nice,))


async def to_its_end(work: asyncio.Future[_T], hurry: Callable[[], None] = lambda: None) -> _T:
    """Return the result of a thread's work. Waits for it even when cancelled: the thread's files must stay open.

    `hurry` is called then, to make the thread end soon.
    """
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        hurry()
        while not work.done():
            with contextlib.suppress(asyncio.CancelledError):  # cancelled again, as at the end of `asyncio.run`
                await asyncio.wait([work])
        raise


def _stand_back(nice: int) -> None:
    if sys.platform == "linux":  # the nice value belongs to a thread here, and to the whole process elsewhere
        with contextlib.suppress(OSError):  # refused in a sandbox; an error would break the pool
            os.nice(nice)
