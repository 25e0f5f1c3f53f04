"""One run of consecutive pieces on its way in, in a worker thread: received, written, hashed, journaled.

The event loop hears of whole pieces, and of visible bytes that a reader waits for; it never sees a byte.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

from blake3 import blake3

from mesh.errors import PieceCorrupt, SourceLate
from mesh.limiter import Limiter
from mesh.messages import ORIGIN
from mesh.transfer import Connections, Location, Transfer

if TYPE_CHECKING:
    from mesh.fill import Fill


@dataclass(slots=True)
class Begun:
    """A piece some of whose bytes are there: to be continued, never begun again, since readers may have them."""

    position: int  # in the blob
    hasher: blake3 | None  # of what is there; None for a piece that did not begin at its start


class _Enough(Exception):
    """The rest of the run was taken away."""


class Run:
    """Pieces `first` to `stop` (exclusive) of a fill from one source.

    `digests` are the BLAKE3 digests of pieces that are believed. `answered()` and `landed(run, piece, digest)`
    are called on the loop: when the first bytes come, and for each piece that is there; `received` with byte counts in
    the worker thread.
    """

    def __init__(
        self,
        fill: Fill,
        source: str,
        first: int,
        stop: int,
        *,
        begun: Begun | None = None,
        digests: Mapping[int, bytes],
        limiter: Limiter,
        received: Callable[[int], None],
        answered: Callable[[], None],
        landed: Callable[[Run, int, bytes], None],
    ) -> None:
        self.source = source
        self.first = first
        self.stop = stop
        self.piece = first  # the one that is arriving
        self.is_answered = False  # the source has begun to send what was asked for
        self.landed_bytes = 0  # kept by the loop's thread
        self.landed_at = time.monotonic()  # its last piece; at first, when it began
        self.on_begin: Callable[[], None] = lambda: None  # on the loop, when a thread has begun with it
        self.begun: Begun | None = begun  # of `piece`, once the run has ended before its end
        self._fill = fill
        self._partial = fill.partial
        self._digests = digests
        self._limiter = limiter
        self._received = received
        self._answered = answered
        self._landed = landed
        self._lock = Lock()  # between a piece's beginning here and its being taken away
        self._loop = asyncio.get_running_loop()
        self._transfer: Transfer | None = None
        self._is_cancelled = False
        start, self._stop = self._partial.pieces.span(first)  # where the arriving piece ends, or turns to its start
        # From the origin the piece that is waited for comes from there on first: a run of its own, in two stretches.
        self._turn = start + fill.begins[first] if self.is_origin and first in fill.begins else None
        self._position = begun.position if begun else self._turn or start
        self._hasher = begun.hasher if begun else blake3() if self._turn is None else None
        self._is_held = False  # the bytes that arrive are on disk already (only when a source knows no ranges)
        self.is_sequential = False

    @property
    def is_origin(self) -> bool:
        return self.source == ORIGIN

    @property
    def pieces(self) -> range:
        """What is still to come, the piece that is arriving included."""
        return range(self.piece, self.stop)

    @property
    def position(self) -> int:
        """How far it has come, in the blob."""
        return self._position

    def is_trusted(self, piece: int) -> bool:
        """Whether the bytes of a landed piece are beyond doubt by themselves."""
        return self.is_origin or piece in self._digests

    def shorten(self, stop: int) -> range:
        """Take the pieces from `stop` on away from the run, but not the one that is arriving; returns those taken."""
        with self._lock:
            taken = range(max(stop, self.piece + 1), self.stop)
            if taken:
                self.stop = taken.start
            return taken

    def cancel(self) -> None:
        """Break the transfer off; `execute` then raises SourceLate. What came stays."""
        self._is_cancelled = True
        if self._transfer is not None:
            self._transfer.cancel()

    def execute(self, connections: Connections, location: Location) -> None:
        """Bring the run in. Blocks: call it in a worker thread.

        Raises what `Transfer.run` and `Partial.write` raise, and PieceCorrupt.
        """
        self._loop.call_soon_threadsafe(self._began)
        if self.is_sequential:  # from the first byte, whatever we have: the only thing that this source can do
            self._turn, self.stop = None, self._partial.pieces.count
            self._begin(0)
        try:
            for start, stop in self._stretches():
                self._position, self._stop = start, min(stop, self._partial.pieces.span(self.piece)[1])
                self._transfer = Transfer(self.source, location, start, stop, self._partial.size)
                if self._is_cancelled:
                    raise SourceLate(self.source, "cancelled")
                self._transfer.run(connections, self._sink)
        except _Enough:
            pass
        finally:
            self.begun = Begun(self._position, self._hasher) if self._is_begun else None

    def _began(self) -> None:
        self.landed_at = time.monotonic()
        self.on_begin()

    def _stretches(self) -> Iterator[tuple[int, int]]:
        """What is asked for, one after the other: positions in the blob."""
        start, stop = self._partial.pieces.span(self.piece)
        if self._turn is None:
            yield self._position, self._partial.pieces.span(self.stop - 1)[1]
            return
        if self._turn <= self._position < stop:
            yield self._position, stop
        yield (self._position if self._position < self._turn else start), self._turn

    @property
    def _is_begun(self) -> bool:
        """Whether some of a piece is there. When all is, and could not be recorded, there is no rest to ask for."""
        if self.piece >= self.stop or self._is_held:
            return False
        if self._turn is not None:
            return self._position != self._turn
        return self._partial.pieces.span(self.piece)[0] < self._position < self._stop

    def _begin(self, piece: int) -> None:
        self.piece = piece
        self._position, self._stop = self._partial.pieces.span(piece)
        self._hasher = blake3()
        self._is_held = piece in self._partial.have

    def _sink(self, view: memoryview) -> None:
        if not self.is_answered:
            self.is_answered = True
            self._loop.call_soon_threadsafe(self._answered)
        self._limiter.take(len(view), lambda: self._is_cancelled)
        self._received(len(view))
        while view:
            part = view[: self._stop - self._position]
            view = view[len(part) :]
            self._keep(part)
            if self._position < self._stop or self._turn not in (None, self._stop):  # its start is still to come
                continue
            if not self._finish_piece():
                assert self._transfer is not None
                if self._position < self._transfer.stop:  # what follows belongs to another run now
                    raise _Enough
                break
        if self.is_origin and self._fill.has_waiting:
            self._fill.poke(self._loop)

    def _keep(self, part: memoryview) -> None:
        offset = self._position - self._partial.pieces.span(self.piece)[0]
        before = self._fill.begins.get(self.piece, 0) - offset
        if 0 < before < len(part):  # what has come of a piece from its midst on lies behind what has not
            self._keep(part[:before])
            part, offset = part[before:], offset + before
        if self.piece in self._partial.have:  # from somebody else: what counts already is never written over
            self._is_held = True
        if not self._is_held:
            # Bytes that readers have seen are never written again, even if the source sends them again.
            seen = self._fill.reached(self.piece, offset) - offset
            if seen < len(part):
                self._partial.write(self._position + seen, part[seen:])
            if self._hasher is not None:
                self._hasher.update(part)  # not before: what a full disk refuses comes again
        self._position += len(part)
        if self.is_origin and not self._is_held:
            self._fill.came(self.piece, offset, len(part))

    def _finish_piece(self) -> bool:
        """Record the piece that is complete and begin the next; False when there is none."""
        piece = self.piece
        if not self._is_held:
            digest = self._hasher.digest() if self._hasher is not None else self._partial.digest_of(piece)
            if not self.is_origin and self._digests.get(piece, digest) != digest:
                raise PieceCorrupt(self.source, f"sent wrong bytes for piece {piece} of {self._partial.digest}")
            self._partial.record(piece, digest, trusted=self.is_trusted(piece))
            self._loop.call_soon_threadsafe(self._landed, self, piece, digest)
        with self._lock:
            self.piece = piece + 1
            if self.piece >= self.stop:
                return False
            self._begin(self.piece)
            return True
