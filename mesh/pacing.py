"""How often the nodes of a swarm may report, so that its tracker keeps up with them. Pure.

A tracker that leads hundreds of nodes, or that runs on a machine with other work to do, answers later and later when
each tells it of every piece. What it can bear is seen at its event loop: the time by which that is late for a timer.
Additive steps down, multiplicative ones up, as TCP does it for lines (RFC 5681). All times in seconds.
"""

from __future__ import annotations

LONGEST = 1.5  # a reader gives up after 10 s without a byte: its needs must be heard several times before
PROBE = 0.05  # a timer this long shows how late the loop is

_LATE = 0.05
_FIRST = 0.1
_GROWTH = 1.5
_STEP = 0.05


class Pacing:
    """`pause` is how long a node is to wait from one report to the next."""

    def __init__(self) -> None:
        self.pause = 0.0

    def observe(self, late: float) -> None:
        """The tracker's event loop was so late for a timer."""
        if late > _LATE:
            self.pause = min(LONGEST, max(_FIRST, self.pause * _GROWTH))
        else:
            self.pause = max(0.0, self.pause - _STEP)
