"""A node of a simulated swarm: what it holds and was assigned, the transfer it begins next, what it has to report.

The queue of tasks is the real one (`mesh.queue`), and the number of streams is that of `mesh.fetcher`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from mesh.content import Pieces
from mesh.messages import ORIGIN, Failure, Gain, Task
from mesh.queue import Queue, must_leave
from mesh.streams import ORIGIN_STREAMS, PEER_STREAMS, URGENT_STREAMS


@dataclass(slots=True, eq=False)
class Run:
    """Consecutive pieces from one source on one stream."""

    node: Node
    source: str
    tasks: list[Task]
    at: int = 0
    landed_at: float = 0.0  # when the last piece landed; before that, when the run began
    asked: float = 0.0  # bytes of the pieces requested so far, including the one that is arriving
    seen: float = 0.0  # bytes that had arrived when the run was last checked for progress

    @property
    def coming(self) -> list[Task]:
        return self.tasks[self.at :]


@dataclass(slots=True, eq=False)
class Node:
    number: int
    name: str
    is_seed: bool
    is_slow: bool
    joined_at: float
    pieces: Pieces
    have: int = 0
    queue: Queue = field(init=False)
    running: dict[int, Run] = field(default_factory=dict)  # by flow number
    gained: list[Gain] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    fetched: int = 0
    sent: int = 0
    received: int = 0
    has_answered: bool = False  # the origin has answered this node
    is_new: bool = True
    is_alive: bool = True
    urgent: tuple[int, ...] = ()
    urgent_since: dict[int, float] = field(default_factory=dict)
    told_urgent: tuple[int, ...] = ()
    talks: int = 0
    has_news: bool = False
    reported_at: float = -1e9
    report_by: float = float("inf")
    done_at: float | None = None

    def __post_init__(self) -> None:
        self.queue = Queue(self.pieces.piece_size, ORIGIN_STREAMS)

    @property
    def pending(self) -> int:
        """Number of pieces that are assigned and have not landed."""
        return len(self.queue) + sum(len(run.tasks) - run.at for run in self.running.values())

    def heads(self) -> tuple[int, ...]:
        """Return the first two pieces that the node's reader misses."""
        missing = ((1 << self.pieces.count) - 1) & ~self.have if not self.is_seed else 0
        first = missing & -missing
        second = (missing ^ first) & -(missing ^ first)
        return tuple(bit.bit_length() - 1 for bit in (first, second) if bit)

    def take(self, tasks: tuple[Task, ...]) -> None:
        self.queue.take((task for task in tasks if not self.have >> task.piece & 1), self._coming())

    def hurry(self, late: list[int]) -> None:
        """Put the reader's pieces first in the queues; take late ones off the ends of long runs from the origin."""
        for piece in late:
            for run in self.running.values():
                first, stop = run.tasks[run.at].piece, run.tasks[-1].piece + 1
                if run.source == ORIGIN and must_leave(piece, range(first, stop), self.urgent[:1]):
                    self.queue.lease(range(piece, stop))
                    del run.tasks[run.at + piece - first :]
        self.queue.put_first(self.urgent)

    def next_run(self, now: float, *, is_crowd: bool, is_urgent: bool) -> Run | None:
        """Return the transfer to begin next; None without a task or a free stream."""
        busy = Counter(run.source for run in self.running.values())
        streams = ORIGIN_STREAMS + (URGENT_STREAMS if is_urgent else 0)
        tasks: list[Task] = []
        if busy[ORIGIN] < (streams if self.has_answered else 1):
            coming = self._coming()
            if (first := self.queue.next_lease(coming)) is not None:
                tasks = [Task.lease_of(piece) for piece in self.queue.origin_run(first, coming)]
        if not tasks and busy.total() - busy[ORIGIN] < PEER_STREAMS:
            tasks = self.queue.peer_run(busy, (), is_crowd=is_crowd)
        return Run(self, tasks[0].sources[0], tasks, landed_at=now) if tasks else None

    def land(self, run: Run, now: float) -> None:
        """Record the arrival of the piece that a run was receiving."""
        piece = run.tasks[run.at].piece
        self.queue.landed(piece, run.source, now - run.landed_at)
        run.landed_at = now
        run.at += 1
        if not self.have >> piece & 1:
            self.have |= 1 << piece
            self.gained.append(Gain(piece, run.source))

    def lose(self, run: Run, reason: str) -> None:
        """Record that a run from a peer broke off, and queue the rest of it from the next source of each piece."""
        for task in run.coming:
            self.failed.append(Failure(task.piece, run.source, reason))  # type: ignore[arg-type]
            self.queue.try_next(task)

    def _coming(self) -> set[int]:
        return {task.piece for run in self.running.values() for task in run.coming}
