"""The messages between a node and the tracker of a blob, and their bounds. Pure.

A node sends a `Report` and gets a `Plan`. A report carries what has changed since the last one; a report with `have`
carries the whole state and replaces what the tracker knew, so a node that missed an answer recovers with it. All piece
numbers refer to the one blob of the exchange. All times are durations in seconds, because two nodes' clocks differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mesh.content import PieceSet

if TYPE_CHECKING:
    from typing import Self

# Source of a piece that came from the origin. No node may have this id.
ORIGIN = "origin"
# Source of a piece that a node held before it joined the swarm.
HELD = ""

MAX_NAME = 128  # characters of a node id
MAX_RUNS = 64
MAX_URGENT = 64  # pieces
MAX_GAINED = 512
MAX_FAILED = 256
MAX_TASKS = 64  # live tasks of one node, and so of a plan
MAX_SOURCES = 3
MAX_DIGEST = 32  # bytes
MAX_SECONDS = 300.0  # for a task, or until the next report

Reason = Literal["timeout", "busy", "refused", "corrupt", "missing"]
Runs = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Gain:
    """A piece that the node now holds, checked against its digest if the digest was known."""

    piece: int
    source: str  # a node id, ORIGIN or HELD
    digest: bytes = b""  # BLAKE3 of the piece


@dataclass(frozen=True, slots=True)
class Failure:
    """A task that failed; one `Failure` for each source tried.

    Reasons: `timeout` no bytes, or too slow; `busy` the source said that it is busy; `refused` the source is
    unreachable or returned an error; `missing` the source does not hold the piece; `corrupt` wrong bytes.
    """

    piece: int
    source: str
    reason: Reason


@dataclass(frozen=True, slots=True)
class Report:
    """Node to tracker: what has changed at the node since the last report, and what it can take on now."""

    # Id of the reporting node. The tracker checks it against the signer of the request before the ledger sees it.
    node: str
    # PieceSet.to_bytes() of all pieces held, on first contact or when a plan asked for a resync. Replaces everything
    # that the tracker knew of the node, `active` included. None otherwise.
    have: bytes | None = None
    # With `have`: the (piece, source) pairs under way, so that a new tracker does not assign them again.
    active: tuple[tuple[int, str], ...] = ()
    # With `have`: sent because a plan asked for a resync, or the last tracker did not answer. If the tracker does not
    # know the node, another one led this swarm until now, and other nodes are about to announce themselves too.
    moved: bool = False
    # Newly held pieces. With `have` also pieces held before (source HELD), to report their digests.
    gained: tuple[Gain, ...] = ()
    failed: tuple[Failure, ...] = ()
    # Runs (start, stop) of pieces that this node's readers wait for now: their next pieces, not their whole ranges.
    urgent: Runs = ()
    # Runs (start, stop) of pieces of interest, in order. Empty for a node that only serves.
    wanted: Runs = ()
    # How many more tasks the node would take, beyond those it runs.
    slots: int = 0
    # The node may be sent to the origin for this blob now.
    can_fetch: bool = False
    # The node also fetches pieces that only others want. Set by the tracker from its membership, not by the sender.
    seed: bool = False
    # Another node may have sent this in the node's name. Set by the tracker, not by the sender.
    forgeable: bool = False
    # Bytes received from the origin so far. While this grows, leases stay alive, however slow the line.
    fetched: int = 0

    def check(self, count: int) -> None:
        """Raise ValueError if anything is out of bounds for a blob of `count` pieces. Linear in the report's size."""
        if not 0 < len(self.node) <= MAX_NAME or self.node == ORIGIN:
            raise ValueError("not a node id")
        if self.have is not None and len(self.have) != -(-count // 8):
            raise ValueError(f"{len(self.have)} bytes cannot be a set of {count} pieces")
        for name, items, limit in (
            ("active", self.active, MAX_TASKS),
            ("gained", self.gained, MAX_GAINED),
            ("failed", self.failed, MAX_FAILED),
            ("urgent", self.urgent, MAX_RUNS),
            ("wanted", self.wanted, MAX_RUNS),
        ):
            if len(items) > limit:
                raise ValueError(f"{len(items)} entries in {name}, at most {limit} are allowed")
        for piece, source in (
            *((gain.piece, gain.source) for gain in self.gained),
            *((failure.piece, failure.source) for failure in self.failed),
            *self.active,
        ):
            if not 0 <= piece < count:
                raise ValueError(f"piece {piece} of {count}")
            if len(source) > MAX_NAME:
                raise ValueError("not a node id")
        for start, stop in (*self.urgent, *self.wanted):
            if not 0 <= start < stop <= count:
                raise ValueError(f"run {start}-{stop} of {count} pieces")
        if sum(stop - start for start, stop in self.urgent) > MAX_URGENT:
            raise ValueError(f"more than {MAX_URGENT} urgent pieces")
        if any(len(gain.digest) > MAX_DIGEST for gain in self.gained):
            raise ValueError("not the digest of a piece")
        if self.slots < 0 or self.fetched < 0:
            raise ValueError("a count below zero")


@dataclass(frozen=True, slots=True)
class Task:
    """One piece to fetch now.

    `sources` are nodes that hold the piece, best first, or ORIGIN alone: then the task is a lease. The node starts with
    the first source and may turn to the next without asking. A task for a piece already held or under way is ignored.
    """

    piece: int
    sources: tuple[str, ...]
    digest: bytes  # of the piece; empty if not known
    # How long the node has for a task from a peer. Unused in a lease, which stands while bytes come from the origin.
    seconds: float

    @classmethod
    def lease_of(cls, piece: int) -> Self:
        """Return the task to fetch a piece from the origin."""
        return cls(piece, (ORIGIN,), b"", 0.0)

    @property
    def lease(self) -> bool:
        return self.sources == (ORIGIN,)


@dataclass(frozen=True, slots=True)
class Plan:
    """Tracker to node: what to do next. False when there is nothing to do for the moment."""

    tasks: tuple[Task, ...] = ()
    # Send a report with `have`: the tracker does not know this node, or not any more.
    resync: bool = False
    # Report again after this many seconds at the latest: a node that stays silent much longer is dropped.
    retry_after: float = 5.0
    # Leave this many seconds between two reports: the tracker is busy.
    pause: float = 0.0

    def __bool__(self) -> bool:
        return bool(self.tasks or self.resync)

    def check(self, count: int) -> None:
        """Raise ValueError if anything is out of bounds for a blob of `count` pieces."""
        if len(self.tasks) > MAX_TASKS:
            raise ValueError(f"{len(self.tasks)} tasks")
        if len({task.piece for task in self.tasks}) < len(self.tasks):
            raise ValueError("two tasks for one piece")
        if not (0 <= self.retry_after <= MAX_SECONDS and 0 <= self.pause <= MAX_SECONDS):
            raise ValueError(f"a pause of {max(self.retry_after, self.pause)} s")
        for task in self.tasks:
            if not 0 <= task.piece < count:
                raise ValueError(f"piece {task.piece} of {count}")
            if not 0 < len(task.sources) <= MAX_SOURCES or any(len(source) > MAX_NAME for source in task.sources):
                raise ValueError(f"{len(task.sources)} sources, or not node ids")
            if len(task.sources) > 1 and ORIGIN in task.sources:
                raise ValueError("a piece from the origin and from others")
            if len(task.digest) > MAX_DIGEST or not 0 <= task.seconds <= MAX_SECONDS:
                raise ValueError("not the digest of a piece, or no time for one")


def runs_of(pieces: PieceSet) -> Runs:
    """Convert a set to (start, stop) runs in order; only the first MAX_RUNS of them."""
    runs: list[tuple[int, int]] = []
    bits, offset = pieces.bits, 0
    while bits and len(runs) < MAX_RUNS:
        skipped = (bits & -bits).bit_length() - 1
        bits >>= skipped
        length = (~bits & (bits + 1)).bit_length() - 1
        runs.append((offset + skipped, offset + skipped + length))
        bits >>= length
        offset += skipped + length
    return tuple(runs)
