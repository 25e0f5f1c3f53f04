"""The time limit of a transfer from a peer: the time that the tracker gave, extended as long as bytes come."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from mesh.policy import EXTENSIONS, SHORTEST

if TYPE_CHECKING:
    from mesh.intake import Run


class Watch:
    """Cancels a run if less than a piece arrives within `seconds`, or less than a fifth of one if `is_only_source`.

    The bytes of an only source would be wasted, and the origin the only other way. The time for which a run waits for a
    thread does not count: the peer has not been asked yet.
    """

    def __init__(self, run: Run, seconds: float, piece_size: int, *, is_only_source: bool) -> None:
        self._run = run
        self._seconds = max(SHORTEST, seconds)
        self._least = piece_size // EXTENSIONS if is_only_source else piece_size
        self._position = run.position
        self._timer: asyncio.TimerHandle | None = None
        run.on_begin = self._wait

    def close(self) -> None:
        self._run.on_begin = lambda: None
        if self._timer is not None:
            self._timer.cancel()

    def _wait(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._look)

    def _look(self) -> None:
        position = self._run.position
        if position - self._position < self._least:
            self._run.cancel()
        else:
            self._position = position
            self._wait()
