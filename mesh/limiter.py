"""A rate limit in bytes per second, shared by many threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

# Seconds' worth of bytes that may pass at once after a pause. Few, so that a limit holds even over 10 ms.
_BURST_SECONDS = 0.01
_LONGEST_SLEEP = 0.1  # seconds between two looks at `is_cancelled`
# Seconds' worth of bytes that one of many users gets in its turn, while the others wait.
_PORTION_SECONDS = 0.05
_LEAST_PORTION = 64 << 10  # bytes in a turn at the least


class Limiter:
    """A token bucket, safe to use from any thread. `rate` is in bytes per second; None means no limit."""

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._lock = threading.Lock()
        self._free_at = 0.0

    def portion(self, most: int) -> int | None:
        """Return how many bytes, at most `most`, one user should get in its turn; None without a limit."""
        if self._rate is None:
            return None
        return min(most, max(_LEAST_PORTION, int(self._rate * _PORTION_SECONDS)))

    def take(self, count: int, is_cancelled: Callable[[], bool] = lambda: False) -> None:
        """Block this thread until `count` more bytes are within the limit, or until `is_cancelled()`."""
        if self._rate is None or count <= 0:
            return
        with self._lock:
            start = max(self._free_at, time.monotonic() - _BURST_SECONDS)
            self._free_at = start + count / self._rate
            wait = self._free_at - time.monotonic()
        until = time.monotonic() + wait
        while (wait := until - time.monotonic()) > 0:
            if is_cancelled():
                with self._lock:
                    self._free_at -= wait  # give the unused time to later callers
                return
            time.sleep(min(wait, _LONGEST_SLEEP))
