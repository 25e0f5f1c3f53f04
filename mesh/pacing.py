"""How often the nodes of a swarm may report, so that its tracker keeps up with them. Pure.

A tracker that leads hundreds of nodes, or shares its machine with other work, falls further and further behind if every
node reports every piece. Its load shows in how late its event loop is for a timer. The pause between two reports grows
by a factor and shrinks by a step, as TCP does with its rate (RFC 5681). All times are in seconds.
"""

from __future__ import annotations

LONGEST = 1.5  # longest pause: a client gives up after 10 s without a byte; its node must report several times before
PROBE = 0.05  # length of the timer that shows how late the event loop is

_LATE = 0.05  # lateness from which the pause grows
_FIRST = 0.1  # shortest pause, except none
_GROWTH = 1.5  # factor by which the pause grows
_STEP = 0.05  # by which the pause shrinks


class Pacing:
    """Adapts `pause`, the time that a node has to leave between two reports."""

    def __init__(self) -> None:
        self.pause = 0.0

    def observe(self, late: float) -> None:
        """Adapt to a tracker whose event loop was `late` seconds late for a timer."""
        if late > _LATE:
            self.pause = min(LONGEST, max(_FIRST, self.pause * _GROWTH))
        else:
            self.pause = max(0.0, self.pause - _STEP)
