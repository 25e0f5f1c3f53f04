"""A run: consecutive pieces received from one source by a worker thread, which writes, hashes and journals them.

The event loop is told of whole pieces, and of visible bytes while a reader waits; it never handles the bytes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

from blake3 import blake3

from mesh import stated
from mesh.errors import PieceCorrupt, SourceLate
from mesh.limiter import Limiter
from mesh.messages import ORIGIN
from mesh.transfer import Connections, Location, Transfer

if TYPE_CHECKING:
    from mesh.fill import Fill


@dataclass(slots=True)
class Begun:
    """A partly received piece. It is continued, never started over, since readers may have its bytes."""

    position: int  # of the next byte, in the blob
    hasher: blake3 | None  # has the bytes received so far; None for a piece that did not begin at its start


class _Enough(Exception):
    """The rest of the run was taken away by `Run.shorten`."""


class Run:
    """Pieces `first` to `stop` (exclusive) of a fill, from one source.

    `digests` are trusted BLAKE3 digests by piece. Called on the loop: `answered()` when the first bytes come, and
    `landed(run, piece, digest)` for each complete piece. Called in the worker thread: `received` with byte counts.
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
        self.piece = first  # the piece that is arriving
        self.is_answered = False  # the source has begun to send bytes
        self.landed_bytes = 0  # counted on the loop
        self.landed_at = time.monotonic()  # time of its last landed piece; before the first, when it began
        self.on_begin: Callable[[], None] = lambda: None  # called on the loop when a thread has started the run
        self.begun: Begun | None = begun  # state of `piece` when the run ended in the middle of it
        self._fill = fill
        self._partial = fill.partial
        self._digests = digests
        self._limiter = limiter
        self._received = received
        self._answered = answered
        self._landed = landed
        self._lock = Lock()  # around the start of a piece here and `shorten` on the loop
        self._loop = asyncio.get_running_loop()
        self._transfer: Transfer | None = None
        self._is_cancelled = False
        start, self._stop = self._partial.pieces.span(first)  # `_stop`: where the present stretch of the piece ends
        # The origin sends a piece from the byte that a reader waits for to its end, then from its start to that byte:
        # a run of one piece, in two stretches. `_split` is that byte.
        split = fill.arrival(first).split if self.is_origin else 0
        self._split = start + split if split else None
        self._position = begun.position if begun else self._split or start
        self._hasher = begun.hasher if begun else blake3() if self._split is None else None
        self._is_held = False  # the piece that arrives is complete on disk already (sequential runs only)
        self.is_sequential = False
        self.has_turn = False  # it holds a turn of `mesh.line`

    @property
    def is_origin(self) -> bool:
        return self.source == ORIGIN

    @property
    def pieces(self) -> range:
        """The pieces still to come, the arriving one included."""
        return range(self.piece, self.stop)

    @property
    def position(self) -> int:
        """The position in the blob of the next byte."""
        return self._position

    def is_trusted(self, piece: int) -> bool:
        """Return whether a landed piece can be trusted before the whole blob is proven."""
        return self.is_origin or piece in self._digests

    def shorten(self, stop: int) -> range:
        """Take the pieces from `stop` on away from the run, except the arriving one; returns those taken."""
        with self._lock:
            taken = range(max(stop, self.piece + 1), self.stop)
            if taken:
                self.stop = taken.start
            return taken

    def cancel(self) -> None:
        """Break the transfer off; `execute` then raises SourceLate. The bytes received so far are kept."""
        self._is_cancelled = True
        if self._transfer is not None:
            self._transfer.cancel()

    def execute(self, connections: Connections, location: Location) -> None:
        """Receive the run. Blocks: call it in a worker thread.

        Raises what `Transfer.run`, `Partial.write` and `Partial.record` raise, and PieceCorrupt.
        """
        self._loop.call_soon_threadsafe(self._began)
        if self.is_sequential:  # the source cannot serve ranges: the whole blob from its first byte, whatever is here
            self._split, self.stop = None, self._partial.pieces.count
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
        """Yield the ranges to request, one after the other, as positions in the blob."""
        start, stop = self._partial.pieces.span(self.piece)
        if self._split is None:
            yield self._position, self._partial.pieces.span(self.stop - 1)[1]
            return
        if self._split <= self._position < stop:
            yield self._position, stop
        yield (self._position if self._position < self._split else start), self._split

    @property
    def _is_begun(self) -> bool:
        """Whether the arriving piece is partly here. One that is all here but could not be recorded does not count."""
        if self.piece >= self.stop or self._is_held:
            return False
        if self._split is not None:
            return self._position != self._split
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
            if self._position < self._stop or self._split not in (None, self._stop):  # the second stretch is to come
                continue
            if not self._finish_piece():
                assert self._transfer is not None
                if self._position < self._transfer.stop:  # the following pieces belong to another run now
                    raise _Enough
                break
        if self.is_origin and self._fill.has_waiting:
            self._fill.poke(self._loop)

    def _keep(self, part: memoryview) -> None:
        offset = self._position - self._partial.pieces.span(self.piece)[0]
        arrival = self._fill.arrival(self.piece)
        before = arrival.split - offset
        if 0 < before < len(part):  # split at the byte where the piece began to come, as `Arrival.came` requires
            self._keep(part[:before])
            part, offset = part[before:], offset + before
        if self.piece in self._partial.have:  # complete from another source: checked bytes are never overwritten
            self._is_held = True
        if not self._is_held:
            # Bytes that readers have seen are never written again, even if the source sends them again.
            seen = arrival.reached(offset) - offset
            if seen < len(part):
                self._partial.write(self._position + seen, part[seen:])
            if self._hasher is not None:
                self._hasher.update(part)  # only after the write: bytes that a full disk refuses will come again
        self._position += len(part)
        if self.is_origin and not self._is_held:
            arrival.came(offset, len(part))

    def _stated(self, piece: int) -> bytes | None:
        """Return the digest that the source itself states for a piece. It may be a lie, as the bytes may be."""
        sent, pieces = self._transfer, self._partial.pieces
        return stated.read(pieces, sent.start, sent.stop, sent.stated).get(piece) if sent is not None else None

    def _finish_piece(self) -> bool:
        """Record the complete piece and begin the next; False when there is none."""
        piece = self.piece
        if not self._is_held:
            digest = self._hasher.digest() if self._hasher is not None else self._partial.digest_of(piece)
            if not self.is_origin and (self._digests.get(piece) or self._stated(piece) or digest) != digest:
                raise PieceCorrupt(self.source, self._partial.digest, piece)
            self._partial.record(piece, digest, trusted=self.is_trusted(piece))
            self._loop.call_soon_threadsafe(self._landed, self, piece, digest)
        with self._lock:
            self.piece = piece + 1
            if self.piece >= self.stop:
                return False
            self._begin(self.piece)
            return True
