"""A node of a simulated swarm: what it holds and was assigned, the transfer it begins next, what it has to report.

The queues and the number and length of streams are those of `mesh.fetcher` (`mesh.streams`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from mesh.content import Pieces
from mesh.messages import ORIGIN, Failure, Gain, Task
from mesh.policy import QUICK
from mesh.streams import ORIGIN_STREAMS, PEER_RUN_BYTES, PEER_STREAMS, RUN_BYTES, SOURCE_STREAMS, URGENT_STREAMS


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
    leased: dict[int, Task] = field(default_factory=dict)
    offered: dict[int, Task] = field(default_factory=dict)
    running: dict[int, Run] = field(default_factory=dict)  # by flow number
    quick: set[str] = field(default_factory=set)  # peers whose last piece arrived within QUICK
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

    @property
    def pending(self) -> int:
        """Number of pieces that are assigned and have not landed."""
        return len(self.leased) + len(self.offered) + sum(len(run.tasks) - run.at for run in self.running.values())

    def heads(self) -> tuple[int, ...]:
        """Return the first two pieces that the node's reader misses."""
        missing = ((1 << self.pieces.count) - 1) & ~self.have if not self.is_seed else 0
        first = missing & -missing
        second = (missing ^ first) & -(missing ^ first)
        return tuple(bit.bit_length() - 1 for bit in (first, second) if bit)

    def take(self, tasks: tuple[Task, ...]) -> None:
        coming = self._coming()
        for task in tasks:
            if self.have >> task.piece & 1:
                continue
            if task.lease:
                self.offered.pop(task.piece, None)
                self.leased[task.piece] = task
            elif task.piece not in self.leased and task.piece not in coming:
                self.offered[task.piece] = task

    def hurry(self, late: list[int]) -> None:
        """Put the reader's pieces first in the queues; take late ones off the ends of long runs from the origin."""
        for piece in late:
            for run in self.running.values():
                first, stop = run.tasks[run.at].piece, run.tasks[-1].piece + 1
                if run.source == ORIGIN and first + (piece != self.urgent[0]) < piece < stop:
                    keep = run.at + max(1, piece - first)
                    for task in run.tasks[keep:]:
                        self.leased.setdefault(task.piece, Task.lease_of(task.piece))
                    del run.tasks[keep:]
        self.leased, self.offered = ({p: t[p] for p in self.urgent if p in t} | t for t in (self.leased, self.offered))

    def next_run(self, now: float, *, is_crowd: bool, is_urgent: bool) -> Run | None:
        """Return the transfer to begin next; None without a task or a free stream."""
        busy = Counter(run.source for run in self.running.values())
        streams = ORIGIN_STREAMS + (URGENT_STREAMS if is_urgent else 0)
        tasks: list[Task] = []
        if self.leased and busy[ORIGIN] < (streams if self.has_answered else 1):
            tasks = self._origin_tasks()
        if not tasks and busy.total() - busy[ORIGIN] < PEER_STREAMS:
            tasks = self._peer_tasks(busy, is_crowd=is_crowd)
        return Run(self, tasks[0].sources[0], tasks, landed_at=now) if tasks else None

    def _origin_tasks(self) -> list[Task]:
        coming = self._coming()
        first = next((piece for piece in self.leased if piece not in coming), None)
        if first is None:
            return []
        longest = max(1, min(-(-len(self.leased) // ORIGIN_STREAMS), RUN_BYTES // self.pieces.piece_size))
        tasks = [self.leased.pop(first)]
        while (piece := first + len(tasks)) in self.leased and piece not in coming and len(tasks) < longest:
            tasks.append(self.leased.pop(piece))
        return tasks

    def _peer_tasks(self, busy: Counter[str], *, is_crowd: bool) -> list[Task]:
        def streams(source: str) -> int:
            return SOURCE_STREAMS if is_crowd or source in self.quick else 1

        free = (task for task in self.offered.values() if busy[task.sources[0]] < streams(task.sources[0]))
        if (first := next(free, None)) is None:
            return []
        longest = max(1, min(-(-len(self.offered) // SOURCE_STREAMS), PEER_RUN_BYTES // self.pieces.piece_size))
        tasks: list[Task] = []
        while (
            (task := self.offered.get(first.piece + len(tasks)))
            and task.sources[0] == first.sources[0]
            and len(tasks) < longest
        ):
            tasks.append(self.offered.pop(task.piece))
        return tasks

    def land(self, run: Run, now: float) -> None:
        """Record the arrival of the piece that a run was receiving."""
        piece = run.tasks[run.at].piece
        (self.quick.add if now - run.landed_at < QUICK else self.quick.discard)(run.source)
        run.landed_at = now
        run.at += 1
        self.leased.pop(piece, None)
        self.offered.pop(piece, None)
        if not self.have >> piece & 1:
            self.have |= 1 << piece
            self.gained.append(Gain(piece, run.source))

    def lose(self, run: Run, reason: str) -> None:
        """Record that a run from a peer broke off, and queue the rest of it from the next source of each piece."""
        for task in run.coming:
            self.failed.append(Failure(task.piece, run.source, reason))  # type: ignore[arg-type]
            if len(task.sources) > 1 and task.piece not in self.leased:
                self.offered[task.piece] = Task(task.piece, task.sources[1:], task.digest, task.seconds)

    def _coming(self) -> set[int]:
        return {task.piece for run in self.running.values() for task in run.coming}
