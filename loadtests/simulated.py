"""A node of a simulated swarm: what it holds, what it was sent for, what it has to tell."""

from __future__ import annotations

from dataclasses import dataclass, field

from mesh.messages import Failure, Gain, Task


@dataclass(slots=True)
class Run:
    """Consecutive pieces from one source on one stream."""

    node: Node
    source: str
    tasks: list[Task]
    at: int = 0


@dataclass(slots=True)
class Node:
    number: int
    name: str
    is_seed: bool
    is_slow: bool
    joined_at: float
    have: int = 0
    leased: dict[int, Task] = field(default_factory=dict)
    offered: dict[int, Task] = field(default_factory=dict)
    running: dict[int, Run] = field(default_factory=dict)  # by flow
    gained: list[Gain] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    fetched: int = 0
    sent: int = 0
    received: int = 0
    is_new: bool = True
    is_alive: bool = True
    urgent: tuple[int, ...] = ()
    talks: int = 0
    has_news: bool = False
    reported_at: float = -1e9
    report_by: float = float("inf")
    done_at: float | None = None
