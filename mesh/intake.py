"""One run of consecutive pieces on its way in, in a worker thread: received, written, hashed, journaled.

The event loop hears of whole pieces, and of visible bytes that a reader waits for; it never sees a byte.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
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
    """A piece whose first bytes are there: to be continued, never begun again, since readers may have them."""

    position: int  # in the blob
    hasher: blake3


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
        self._position = begun.position if begun else self._partial.pieces.span(first)[0]
        self._piece_stop = self._partial.pieces.span(first)[1]
        self._hasher = begun.hasher if begun else blake3()
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
        pieces = self._partial.pieces
        start, stop = self._position, pieces.span(self.stop - 1)[1]
        if self.is_sequential:
            # From the first byte, whatever we have: the only thing that this source can do.
            start, self.piece, self.stop = 0, 0, pieces.count
            stop = self._partial.size
            self._begin(0)
        self._transfer = Transfer(self.source, location, start, stop, self._partial.size)
        if self._is_cancelled:
            raise SourceLate(self.source, "cancelled")
        try:
            self._transfer.run(connections, self._sink)
        except _Enough:
            pass
        finally:
            # One that is there to its end and could not be recorded is fetched anew: it has no rest to ask for.
            is_begun = self.piece < self.stop and pieces.span(self.piece)[0] < self._position < self._piece_stop
            self.begun = Begun(self._position, self._hasher) if is_begun and not self._is_held else None

    def _begin(self, piece: int) -> None:
        self.piece = piece
        start, self._piece_stop = self._partial.pieces.span(piece)
        self._position = start
        self._hasher = blake3()
        self._is_held = piece in self._partial.have

    def _sink(self, view: memoryview) -> None:
        if not self.is_answered:
            self.is_answered = True
            self._loop.call_soon_threadsafe(self._answered)
        self._limiter.take(len(view), lambda: self._is_cancelled)
        self._received(len(view))
        while view:
            part = view[: self._piece_stop - self._position]
            view = view[len(part) :]
            self._keep(part)
            if self._position == self._piece_stop and not self._finish_piece():
                assert self._transfer is not None
                if self._position < self._transfer.stop:  # what follows belongs to another run now
                    raise _Enough
                break
        if self.is_origin and self._fill.has_waiting:
            self._fill.poke(self._loop)

    def _keep(self, part: memoryview) -> None:
        start = self._partial.pieces.span(self.piece)[0]
        if self.piece in self._partial.have:  # from somebody else: what counts already is never written over
            self._is_held = True
        if not self._is_held:
            # Bytes that readers have seen are never written again, even if the source sends them again.
            seen = max(0, start + self._fill.progress.get(self.piece, 0) - self._position)
            if seen < len(part):
                self._partial.write(self._position + seen, part[seen:])
            self._hasher.update(part)  # not before: what a full disk refuses comes again
        self._position += len(part)
        if self.is_origin and not self._is_held:
            self._fill.progress[self.piece] = max(self._position - start, self._fill.progress.get(self.piece, 0))

    def _finish_piece(self) -> bool:
        """Record the piece that is complete and begin the next; False when there is none."""
        piece = self.piece
        if not self._is_held:
            digest = self._hasher.digest()
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
