"""One run of consecutive pieces on its way in, in a worker thread: received, written, hashed, journaled.

The event loop hears of whole pieces, and of visible bytes that a reader waits for; it never sees a byte.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blake3 import blake3

from mesh.errors import SourceFailed
from mesh.limiter import Limiter
from mesh.messages import ORIGIN
from mesh.transfer import Connections, Location, Transfer

if TYPE_CHECKING:
    from mesh.fill import Fill


class PieceCorrupt(SourceFailed):
    """A source sent a piece whose bytes are not those its digest names."""


@dataclass(slots=True)
class Begun:
    """A piece whose first bytes are there: to be continued, never begun again, since readers may have them."""

    position: int  # in the blob
    hasher: blake3


class _Enough(Exception):
    """The rest of the run was taken away."""


class Run:
    """Pieces `first` to `stop` (exclusive) of a fill from one source.

    `stop` may be lowered at any time by the loop's thread: the run then ends at that piece. `digests` are the
    BLAKE3 digests of pieces as far as they are believed. `landed(run, piece, digest)` is called on the loop for each
    piece that is there; `received` with byte counts in the worker thread.
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
        landed: Callable[[Run, int, bytes], None],
    ) -> None:
        self.source = source
        self.first = first
        self.stop = stop
        self.piece = first  # the one that is arriving
        self.is_answered = False  # the source has begun to send what was asked for
        self.begun: Begun | None = begun  # of `piece`, once the run has ended before its end
        self._fill = fill
        self._partial = fill.partial
        self._digests = digests
        self._limiter = limiter
        self._received = received
        self._landed = landed
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
        """What is still to come, the arriving piece included."""
        return range(self.piece, self.stop)

    def cancel(self) -> None:
        """Break the transfer off; `execute` then raises SourceFailed. What came stays."""
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
            raise SourceFailed(self.source, "cancelled")
        try:
            self._transfer.run(connections, self._sink)
        except _Enough:
            pass
        finally:
            is_begun = self.piece < pieces.count and self._position > pieces.span(self.piece)[0]
            self.begun = Begun(self._position, self._hasher) if is_begun and not self._is_held else None

    def _begin(self, piece: int) -> None:
        self.piece = piece
        start, self._piece_stop = self._partial.pieces.span(piece)
        self._position = start
        self._hasher = blake3()
        self._is_held = piece in self._partial.have

    def _sink(self, view: memoryview) -> None:
        self.is_answered = True
        self._limiter.take(len(view))
        self._received(len(view))
        while view:
            part = view[: self._piece_stop - self._position]
            view = view[len(part) :]
            self._keep(part)
            if self._position == self._piece_stop:
                self._finish_piece()
                if self.piece >= self.stop:
                    if view:
                        raise _Enough
                    break
        if self.is_origin and self._fill.has_waiting:
            self._fill.poke(self._loop)

    def _keep(self, part: memoryview) -> None:
        if not self._is_held:
            # Bytes that readers have seen are never written again, even by the same source.
            known = self._fill.progress.get(self.piece, 0) if self.is_sequential else 0
            ahead = self._partial.pieces.span(self.piece)[0] + known - self._position
            self._hasher.update(part)
            if ahead < len(part):
                self._partial.write(self._position + max(0, ahead), part[max(0, ahead) :])
        self._position += len(part)
        if self.is_origin and not self._is_held:
            shown = self._position - self._partial.pieces.span(self.piece)[0]
            if shown > self._fill.progress.get(self.piece, 0):
                self._fill.progress[self.piece] = shown

    def _finish_piece(self) -> None:
        piece = self.piece
        if not self._is_held:
            digest = self._hasher.digest()
            expected = self._digests.get(piece)
            if expected and digest != expected and not self.is_origin:
                raise PieceCorrupt(self.source, f"sent wrong bytes for piece {piece} of {self._partial.digest}")
            self._partial.record(piece, digest, trusted=self.is_origin or bool(expected))
            self._loop.call_soon_threadsafe(self._landed, self, piece, digest)
        if piece + 1 < self._partial.pieces.count:
            self._begin(piece + 1)
        else:
            self.piece = piece + 1
