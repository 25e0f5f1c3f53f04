"""The tasks of one node for one blob that wait for a connection, and what the next connection is for. Pure.

Leases (pieces from the origin) and tasks for peers wait apart, each in their order. A run is what one connection is
asked for: consecutive pieces from one source.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence

from mesh.messages import ORIGIN, Task
from mesh.policy import QUICK

RUN_BYTES = 64 << 20  # longest run from the origin
PEER_RUN_BYTES = 16 << 20  # longest run from a peer
SOURCE_STREAMS = 4  # connections to one quick peer; over a slow line pieces are complete sooner one after the other


class Queue:
    """Pieces to fetch from the origin (`leased`) and tasks for peers (`offered`). No piece is in both.

    The caller keeps the runs. Pieces that they are to bring are `coming` in the arguments below. A piece that is
    `apart` can be the first of a run, but never follows another one.
    """

    def __init__(self, piece_size: int, origin_streams: int) -> None:
        self.leased: dict[int, None] = {}  # in this order
        self.offered: dict[int, Task] = {}  # in this order
        self._piece_size = piece_size
        self._origin_streams = origin_streams
        self._quick: set[str] = set()  # sources whose last piece arrived within QUICK seconds

    def __len__(self) -> int:
        return len(self.leased) + len(self.offered)

    def waiting(self) -> Iterator[tuple[int, str]]:
        """Yield (piece, source) for each task."""
        yield from ((piece, ORIGIN) for piece in self.leased)
        yield from ((piece, task.sources[0]) for piece, task in self.offered.items())

    def take(self, tasks: Iterable[Task], coming: Container[int] = ()) -> None:
        """Add tasks. For one piece, a lease replaces a task for a peer."""
        for task in tasks:
            if task.lease:
                self.lease([task.piece])
            elif task.piece not in self.leased and task.piece not in coming:
                self.offered[task.piece] = task

    def lease(self, pieces: Iterable[int]) -> None:
        """Add leases. If a peer is sending a piece now, its lease is kept for when that fails."""
        for piece in pieces:  # never from origin and peer at once: one would overwrite bytes that the other has checked
            self.offered.pop(piece, None)
            self.leased[piece] = None

    def try_next(self, task: Task) -> None:
        """Have a piece whose source failed fetched from the next one, without asking the tracker, if there is one."""
        if len(task.sources) > 1:
            self.take([Task(task.piece, task.sources[1:], task.digest, task.seconds)])

    def put_first(self, pieces: Sequence[int]) -> None:
        """Move those of the pieces that wait here to the front, in the order given."""
        self.leased = dict.fromkeys(piece for piece in pieces if piece in self.leased) | self.leased
        self.offered = {piece: self.offered[piece] for piece in pieces if piece in self.offered} | self.offered

    def landed(self, piece: int, source: str, seconds: float) -> None:
        """Account for a piece that a source has sent within `seconds`."""
        self.leased.pop(piece, None)
        self.offered.pop(piece, None)
        (self._quick.add if seconds < QUICK else self._quick.discard)(source)

    def clear(self) -> None:
        self.leased.clear()
        self.offered.clear()

    def next_lease(self, coming: Container[int]) -> int | None:
        """Return the first leased piece that is not coming, without removing it; None if there is none."""
        return next((piece for piece in self.leased if piece not in coming), None)

    def origin_run(self, first: int, apart: Container[int], most_bytes: int = RUN_BYTES) -> range:
        """Remove and return a run of leases that begins with the piece `first`."""
        share = -(-len(self.leased) // self._origin_streams)
        most = min(RUN_BYTES, most_bytes) // self._piece_size
        run = _run(first, min(share, most), lambda piece: piece in self.leased and piece not in apart)
        for piece in run:
            del self.leased[piece]
        return run

    def peer_run(self, busy: Counter[str], apart: Container[int], *, is_crowd: bool) -> list[Task]:
        """Remove and return a run from the first peer that may have another connection; empty if there is none.

        `busy` counts the connections to each source. In a crowd machines are the limit, so one for each is no faster.
        """

        def is_free(source: str) -> bool:
            return busy[source] < (SOURCE_STREAMS if is_crowd or source in self._quick else 1)

        first = next((task for task in self.offered.values() if is_free(task.sources[0])), None)
        if first is None:
            return []
        source = first.sources[0]

        def continues(piece: int) -> bool:
            task = self.offered.get(piece)
            return task is not None and task.sources[0] == source and piece not in apart

        share = -(-len(self.offered) // SOURCE_STREAMS)
        run = _run(first.piece, min(share, PEER_RUN_BYTES // self._piece_size), continues)
        return [self.offered.pop(piece) for piece in run]


def _run(first: int, most: int, continues: Callable[[int], bool]) -> range:
    """Return the run of at most `most` pieces from `first` on; it has the first one in any case."""
    stop = first + 1
    while stop - first < most and continues(stop):
        stop += 1
    return range(first, stop)


def must_leave(piece: int, run: range, waited: Container[int]) -> bool:
    """Return whether a late piece has to leave a run from the origin, with all behind it, to get a connection sooner.

    `run`: the pieces still to come, the arriving one included. A piece at which no reader is yet (`waited`) may stay if
    the run reaches it next.
    """
    return run.start + (piece not in waited) < piece < run.stop
