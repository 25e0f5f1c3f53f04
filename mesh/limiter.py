"""A limit on bytes per second that many threads share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

# How much may go at once after a pause. Small, so that a limit of 500 MB/s is one over 10 ms too.
_BURST_SECONDS = 0.01
_LONGEST_SLEEP = 0.1
# What one of many users has in its turn, while all others wait.
_PORTION_SECONDS = 0.05
_LEAST_PORTION = 64 << 10


class Limiter:
    """A token bucket. `rate` is in bytes per second; None limits nothing."""

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._lock = threading.Lock()
        self._free_at = 0.0

    def portion(self, most: int) -> int | None:
        """How many bytes one user should have in its turn, at most `most`; None without a limit."""
        if self._rate is None:
            return None
        return min(most, max(_LEAST_PORTION, int(self._rate * _PORTION_SECONDS)))

    def take(self, count: int, is_cancelled: Callable[[], bool] = lambda: False) -> None:
        """Wait (blocking this thread) until `count` more bytes are within the limit, or nobody wants them any more."""
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
                    self._free_at -= wait  # for those who stand behind
                return
            time.sleep(min(wait, _LONGEST_SLEEP))
