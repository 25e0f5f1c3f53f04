"""How busy the links of a simulated swarm were over time: shows where the time goes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(slots=True)
class Moment:
    """What moved since the previous moment, and the state at this one. Shares are fractions of 1."""

    at: float  # seconds
    origin: float  # bytes
    peers: float  # bytes
    idle_up: float  # share of the nodes that hold something and send nothing
    idle_down: float  # share of the nodes that miss something and receive nothing
    pieces: int  # number of pieces that some node holds
    have: float  # share of the blob that the average node holds


def lines(moments: list[Moment], origin: float, uplinks: float) -> Iterator[str]:
    """Format a table. `origin` and `uplinks` are the capacities, of all uplinks together, in bytes per second."""
    yield "seconds  origin  uplinks  idle up  idle down  pieces in  have"
    before = 0.0
    for m in moments:
        seconds, before = m.at - before, m.at
        busy = f"{m.origin / seconds / origin:6.0%}  {m.peers / seconds / uplinks:7.0%}"
        yield f"{m.at:7.1f}  {busy}  {m.idle_up:7.0%}  {m.idle_down:9.0%}  {m.pieces:9}  {m.have:4.0%}"
