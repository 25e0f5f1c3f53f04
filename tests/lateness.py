"""Measures, while a test runs, how much a busy machine delays everything."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Self

_STEP_SECONDS = 0.05


class Lateness:
    """A context manager: `seconds` is how late, in total, a thread was scheduled while it was active."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._measure)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _measure(self) -> None:
        due = time.monotonic() + _STEP_SECONDS
        while not self._over.wait(_STEP_SECONDS):
            now = time.monotonic()
            self.seconds += max(0.0, now - due)
            due = now + _STEP_SECONDS
