"""Remembered times that the clock has not reached: they were noted while it was ahead, before it was set back. Pure.

Nothing tells what came first: what was noted then, or what has been noted since. So the choice is the safe one. What
was said counts as said long ago, before anything else: it may still be used, but is asked for again. A refusal or a
write counts as heard of just now: it is void after the next proof, and not before.

The result has to be kept in place of the remembered time. Otherwise that would count once the clock reaches it.
"""

from __future__ import annotations

LONG_AGO = 1.0  # seconds since the epoch; 0 means never
_SLACK = 2.0  # seconds by which a time may be ahead, since clocks are corrected in small steps all the time


def is_ahead(at: float, now: float) -> bool:
    return at > now + _SLACK


def said(at: float, now: float) -> float:
    """The time of something that was said, such as proof that a file is open."""
    return LONG_AGO if is_ahead(at, now) else at


def refused(at: float, now: float) -> float:
    """The time of something that makes void what was said before it: a refusal, a write, a doubt."""
    return now if is_ahead(at, now) else at
