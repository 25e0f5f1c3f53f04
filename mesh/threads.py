"""Threads that move and hash bytes, at a lower priority than event loops.

A busy node has a dozen such threads runnable, and one event loop. At equal priority, where many nodes share a machine,
the loop that leads a swarm of hundreds would get a hundredth of the CPU time, while all other nodes wait for its
answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

log = logging.getLogger(__name__)

_T = TypeVar("_T")

NICE = 10  # a tenth of the event loop's weight (sched(7)); this costs nothing while a core is idle
# A third of the weight: a blob has one hashing thread, beside many that bring its bytes in. Bytes that are not hashed
# when the last of them arrive are hashed by one core while the others are idle.
NICE_OF_PROOFS = 5
# A third, too: where hundreds of nodes share a machine and wait for what one alone has, only its uploads end the wait.
NICE_OF_UPLOADS = 5
_OF_LIBUV = 4  # threads in its pool (docs.libuv.org/en/v1.x/threadpool.html)


class Pool(ThreadPoolExecutor):
    """A pool of up to `threads` threads that works on with those it has when the system gives it no more.

    `ThreadPoolExecutor` would raise, with the work already queued for the threads that there are: its caller takes it
    for failed, and closes the files that it is about to use. The first thread is started at once, so there is one.

    `nice`: by how much the nice value of its threads is raised. Raises OSError when not even one can be started.
    """

    def __init__(self, threads: int, name: str, nice: int = 0) -> None:
        super().__init__(threads, thread_name_prefix=name, initializer=_stand_back, initargs=(nice,))
        self._name = name
        self._is_short = False
        self.submit(int)

    def _adjust_thread_count(self) -> None:
        try:
            super()._adjust_thread_count()
        except RuntimeError as error:
            if not self._threads:
                raise _none_left(error) from error
            if not self._is_short:
                self._is_short = True
                log.warning("%s; %d do the work of the %s pool", error, len(self._threads), self._name)


async def start_resolver() -> None:
    """Start the threads in which uvloop looks up names: libuv aborts the process if it cannot start them later.

    Raises OSError when so many cannot be started.
    """
    may_end = threading.Event()
    rehearsal = [threading.Thread(target=may_end.wait) for _ in range(_OF_LIBUV)]
    try:
        for thread in rehearsal:
            thread.start()
    except RuntimeError as error:
        raise _none_left(error) from error
    finally:
        may_end.set()
        for thread in rehearsal:
            if thread.ident is not None:
                thread.join()
    await asyncio.get_running_loop().getaddrinfo("127.0.0.1", 0)


def _none_left(error: RuntimeError) -> OSError:
    return OSError(errno.EAGAIN, f"{error}: the limit on processes, tasks or memory is too low for a node")


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
