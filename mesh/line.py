"""Limits how many connections to the origin fetch blobs that only other nodes want, on a line that may be slow.

Other nodes get only whole pieces. If all blobs came over a slow line at once, no piece would be complete for many
seconds, and the nodes that wait would turn to the origin themselves. So blobs take turns, with as few connections in
all as bring in what the line can carry. A blob with a reader here needs no turn: a reader gets bytes as they come.
"""

from __future__ import annotations

from collections.abc import Callable

from mesh.content import MIN_PIECE

FEWEST = 1  # connections at once
MOST = 32
SMALL_BLOB = 256 << 10  # bytes of a blob that needs no turn: waiting for an answer takes most of its time
_QUICK = 0.5  # seconds for the smallest whole piece: below that, more connections keep nobody waiting
_RUN_SECONDS = 1.0  # time for which one turn may last, if that is more than one piece takes
_WINDOW = 1.0  # seconds, at least, over which a rate is measured
_KNOWN_SECONDS = 30.0  # until a measured rate is forgotten, and measured again
_AS_GOOD = 0.93  # part of the rate that makes fewer connections the better choice
_BETTER = 1.15  # times the rate that makes more connections the better choice


class Line:
    """Gives turns on the line to the origin, to each blob in its order. Belongs to the event loop's thread.

    One connection may be all that the line can carry, or a small part of that, where each has a rate limit of its own.
    So twice and half as many are tried now and then. Times are monotonic seconds, rates bytes per second.
    """

    def __init__(self) -> None:
        self.limit = FEWEST  # turns at once
        self.run_bytes = MIN_PIECE  # bytes that a turn may be for, if they are more than one piece
        self._used = 0
        self._waiting: dict[Callable[[], None], None] = {}  # in the order of their turns
        self._rates: dict[int, tuple[float, float]] = {}  # limit → the rate measured with it, and when
        self._began: tuple[float, int] | None = None  # of the present measurement: when, and bytes received by then
        self._landed = 0  # pieces since then

    def take(self, launch: Callable[[], None]) -> bool:
        """Take a turn, to be given back. If there is none now, `launch` is called when it may take one."""
        if self._used < self.limit and next(iter(self._waiting), launch) == launch:
            self._used += 1
            self._waiting.pop(launch, None)
            return True
        self._waiting.setdefault(launch)
        return False

    def give_back(self) -> None:
        self._used -= 1
        while self._waiting and self._used < self.limit:
            launch, before = next(iter(self._waiting)), self._used
            launch()
            if self._used == before:  # it needs no turn any more
                self.leave(launch)

    def leave(self, launch: Callable[[], None]) -> None:
        """Wait for no turn any more."""
        self._waiting.pop(launch, None)

    def landed(self, size: int, seconds: float, received: int, now: float) -> None:
        """Account for a piece of `size` bytes that took `seconds`. `received`: bytes from the origin in all so far."""
        self.run_bytes = int(size * _RUN_SECONDS / max(1e-3, seconds))
        if seconds * MIN_PIECE < _QUICK * min(size, MIN_PIECE):
            self.limit = min(MOST, self.limit + 1)
            self._rates.clear()
            self._began = None
        elif not self._waiting:  # the line is not in full use
            self._began = None
        elif self._began is None:
            self._began, self._landed = (now, received), 0
        else:
            self._landed += 1
            since, before = self._began
            if now - since >= _WINDOW and self._landed >= self.limit:
                self._rates = {limit: known for limit, known in self._rates.items() if now - known[1] < _KNOWN_SECONDS}
                self._rates[self.limit] = (received - before) / (now - since), now
                self.limit = self._best()
                self._began, self._landed = (now, received), 0

    def _best(self) -> int:
        """Return the number of connections to measure or to use next: the fewest that bring about the best rate."""
        rates = {limit: rate for limit, (rate, _) in self._rates.items()}
        fewer, more, rate = max(FEWEST, self.limit // 2), min(MOST, self.limit * 2), rates[self.limit]
        if rates.get(more, 0.0) > _BETTER * rate:
            return more
        if fewer < self.limit and rates.get(fewer, rate) >= _AS_GOOD * rate:
            return fewer
        is_rising = fewer == self.limit or rate > _BETTER * rates[fewer]
        return more if more not in rates and is_rising else self.limit
