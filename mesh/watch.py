"""How long a peer may take with what it was asked for: the time that the tracker gave, as long as bytes come."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from mesh.policy import EXTENSIONS, SHORTEST

if TYPE_CHECKING:
    from mesh.intake import Run


class Watch:
    """Cancels a run when in `seconds` less comes than a piece, or than a part of it where `is_only_source`.

    There what came so far would be for nothing, and the origin the only other way. The time that a run waits for a
    thread of ours does not count: nobody has been asked yet.
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
