"""Threads that move and hash bytes. They stand back for event loops where there are too few cores for both.

A node with much to do has a dozen of such threads runnable, and one event loop. To the scheduler all are alike: where
many nodes share a machine, the loop that leads a swarm of hundreds would get a hundredth of it, and all others wait for
its answers.
"""

from __future__ import annotations

import contextlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor

NICE = 10  # a tenth of a loop's weight (sched(7)); nothing is lost while there is a core to spare
# A third: there is one for a blob, beside many that bring bytes in, and what it has not hashed when the last of them
# is there is hashed by one core while the others are idle.
NICE_OF_PROOFS = 5
# The same: where hundreds share a machine, and one of them alone has what all wait for, nothing else brings it about.
NICE_OF_UPLOADS = 5


def bulk_pool(threads: int, name: str, nice: int = NICE) -> ThreadPoolExecutor:
    """Up to so many threads, of a priority lower by `nice` than that of the caller."""
    return ThreadPoolExecutor(threads, thread_name_prefix=name, initializer=_stand_back, initargs=(nice,))


def _stand_back(nice: int) -> None:
    if sys.platform == "linux":  # where it is of a thread; elsewhere it would be of the whole process
        with contextlib.suppress(OSError):  # refused in a sandbox; a pool whose threads cannot begin is of no use
            os.nice(nice)
