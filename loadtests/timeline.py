"""How busy the lines of a simulated swarm were, from its beginning to its end: to see where time goes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(slots=True)
class Moment:
    """What has moved since the moment before, and what is where. Shares are of 1."""

    at: float  # seconds
    origin: float  # bytes
    peers: float  # bytes
    idle_up: float  # of the nodes: they hold something and send nothing
    idle_down: float  # of the nodes: they miss something and receive nothing
    pieces: int  # that some node holds
    have: float  # of the blob, by the average node


def lines(moments: list[Moment], origin: float, uplinks: float) -> Iterator[str]:
    """A table. `origin` and `uplinks` are what they could carry, all uplinks together, in bytes per second."""
    yield "seconds  origin  uplinks  idle up  idle down  pieces in  have"
    before = 0.0
    for m in moments:
        seconds, before = m.at - before, m.at
        busy = f"{m.origin / seconds / origin:6.0%}  {m.peers / seconds / uplinks:7.0%}"
        yield f"{m.at:7.1f}  {busy}  {m.idle_up:7.0%}  {m.idle_down:9.0%}  {m.pieces:9}  {m.have:4.0%}"
