"""A fill: a blob that is arriving, and how far each of its readers may read.

Any number of readers follow one fill, and the fill outlives them. Three rules keep wrong bytes from clients:

1. Bytes that a reader may have seen are never written again. Bytes from the origin are visible as they arrive, each
   piece starting where a reader waits for it, and a broken transfer is continued at the byte it had reached. Bytes
   from a peer become visible only as whole pieces, and once.
2. A reader of the whole blob gets all of it except a short tail, which follows when the digest of the whole blob has
   been proven. For readers of ranges, the tail of the piece that completes the blob is held back in the same way:
   clients that fetch a file as parallel ranges cannot finish a wrong one either.
3. A bare range cannot be proven by itself. Until the whole blob is proven, its readers see only bytes that came from
   the origin or were checked against a trusted piece digest.

When the proof fails, every reader's connection breaks. When it succeeds, readers get the rest at once, without waiting
for the blob to be flushed to disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING

from mesh.arrival import Arrival
from mesh.descriptors import duplicate
from mesh.errors import MeshError
from mesh.proof import Proof

if TYPE_CHECKING:
    from mesh.partial import Partial

# Bytes at the end held back until the proof. Few, because on a slow line they must not keep a client waiting for long.
TAIL = 64 << 10
# Bytes that a reader of the whole blob may be ahead of the proof. This keeps the wait for the tail short when a blob of
# 100 GB that is mostly on disk has to be hashed again after a restart.
_AHEAD = 1 << 30
_WAKE_SECONDS = 0.005  # least seconds between two wakes for bytes of a piece that is arriving
# Bytes that a reader is kept behind what it may have while more is to come. Clients give up after 10 s without a byte,
# though the next piece may be on its way: while nothing arrives, the reader gets a sip of the reserve now and then.
RESERVE = 64 << 10
# A piece from the origin begins where a reader waits if that skips at least this many bytes: seconds on a slow line.
_FAR = 256 << 10
# The reserve is at most 1/16 of what the reader may have had, so that its first bytes are not kept back for long.
_RESERVE_SHARE = 16
_SIPS = 64  # sips in the reserve: enough for minutes
_SIP_SECONDS = 4.0  # seconds without a new byte until a reader gets a sip, and between two sips


class Fill:
    """The visible bytes of a partial blob, and its readers. Belongs to the event loop's thread.

    Worker threads call only `arrival` and `poke`, and write what `arrival` returns.
    """

    def __init__(self, partial: Partial) -> None:
        self.partial = partial
        self.proof = Proof(partial.digest, partial.size, partial.fd)
        self._arrivals: dict[int, Arrival] = {}  # kept after a piece has landed, for where its tail is
        self.readers: set[Reader] = set()
        self.was_read = bool(partial.unchecked)  # an earlier fill may have had readers
        self.was_read_in_ranges = self.was_read  # and those of ranges have been given bytes
        self.is_proven = False
        self.is_stored = False
        self.error: MeshError | None = None
        self._waiting: set[asyncio.Future[None]] = set()
        self._is_poked = False
        self._poked_at = float("-inf")  # when the last poke woke the readers, or will wake them
        self._completed_by: int | None = None  # the piece whose tail is held back for readers of ranges
        self._note_last_missing()

    @property
    def is_over(self) -> bool:
        return self.is_stored or self.error is not None

    def reader(self, start: int, stop: int, *, is_whole: bool) -> Reader:
        """Return a reader of the bytes from `start` up to `stop`. `is_whole`: the client wants the whole blob.

        A client that resumes far ahead of the proof, with the bytes before from elsewhere, gets a reader of a range.
        Raises TooManyFiles.
        """
        reader = Reader(self, start, stop, is_whole and start < self.proof.hashed + _AHEAD)
        self.readers.add(reader)
        self.was_read = True
        return reader

    def poke(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have `wake` called on the loop soon. For any thread, as often as wanted: one call at a time is pending."""
        if not self._is_poked:
            self._is_poked = True
            with contextlib.suppress(RuntimeError):  # the loop is closed, so no reader is waiting
                loop.call_soon_threadsafe(self._wake_soon, loop)

    def _wake_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wake the readers, at once after a pause, but at most once in _WAKE_SECONDS: each wake has its cost."""
        now = loop.time()
        wait = self._poked_at + _WAKE_SECONDS - now
        self._poked_at = max(now, now + wait)
        if wait > 0:
            loop.call_later(wait, self.wake)
        else:
            self.wake()

    def wake(self) -> None:
        """Let every waiting reader look again, because bytes became visible or the fill ended."""
        self._is_poked = False
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)
        self._waiting.clear()

    @property
    def has_waiting(self) -> bool:
        return bool(self._waiting)

    def added(self, piece: int) -> None:
        """Record that a piece is on disk and checked as far as a single piece can be."""
        self.arrival(piece).count = 0
        self._note_last_missing()
        self.wake()

    def prove(self) -> None:
        """Record that the whole blob matches its digest: readers may have the rest, even if storing it fails."""
        self.is_proven = True
        self.wake()

    def finish(self, error: MeshError | None) -> None:
        """End the fill: the blob is proven and stored (None), or `error` broke it."""
        self.is_stored = error is None
        self.error = error
        self.wake()

    def begin(self, piece: int) -> bool:
        """Decide at which byte the origin begins to send a piece; return whether that is other than its start.

        It is the lowest position of a reader in the piece, if that is at least _FAR in; fixed once bytes have come.
        """
        arrival = self.arrival(piece)
        if not arrival.count:
            start, stop = self.partial.pieces.span(piece)
            waited = min((r.position for r in self.readers if start <= r.position < stop), default=start)
            arrival.split = waited - start if waited - start >= _FAR else 0
        return arrival.split > 0

    def arrival(self, piece: int) -> Arrival:
        """Return how much of a piece has come from the origin. For any thread."""
        known = self._arrivals.get(piece)
        if known is None:
            start, stop = self.partial.pieces.span(piece)
            known = self._arrivals.setdefault(piece, Arrival(stop - start))
        return known

    def prefix(self) -> int:
        """Return the length of the gapless prefix on disk. The search starts where the proof has got to."""
        pieces, have = self.partial.pieces, self.partial.have
        piece = self.proof.hashed // pieces.piece_size
        while piece in have:
            piece += 1
        return min(self.partial.size, piece * pieces.piece_size)

    def visible(self, start: int, stop: int, *, is_whole: bool) -> int:
        """Return one past the last byte, at most `stop`, that a reader at `start` may have now."""
        if self.is_proven:
            return stop
        partial, pieces = self.partial, self.partial.pieces
        usable = partial.have if is_whole else partial.trusted
        limit = stop
        if is_whole:
            limit = min(limit, self.proof.hashed + _AHEAD, partial.size - TAIL)
        piece = start // pieces.piece_size
        end = start
        while end < limit:
            first, last = pieces.span(piece)
            offset = max(start, first) - first
            if piece in usable:
                shown = last
            elif piece in partial.have:
                break
            else:
                shown = first + self.arrival(piece).shown(offset)
            shown = self._held_back(piece, offset, shown)
            end = max(end, shown)
            if shown < last:
                break
            piece += 1
        return max(start, min(end, limit))

    def _held_back(self, piece: int, offset: int, end: int) -> int:
        """Return `end`, reduced by the tail that is held back if this piece completes the blob.

        The tail is the last bytes of the piece to come; a reader at an `offset` behind them is not affected.
        """
        if piece != self._completed_by or offset >= self.arrival(piece).end:
            return end
        # A long unhashed stretch exists only where just ranges were read; there the origin has to be trusted.
        if self.prefix() - self.proof.hashed > 2 * _AHEAD:
            return end
        return min(end, self.partial.pieces.span(piece)[0] + self.arrival(piece).end - TAIL)

    def _note_last_missing(self) -> None:
        have = self.partial.have
        missing = have.bits ^ ((1 << have.count) - 1)
        if missing.bit_count() == 1:
            self._completed_by = missing.bit_length() - 1

    def changed(self) -> asyncio.Future[None]:
        """Return a future that is done once bytes become visible after this call, or the fill ends."""
        waiting = asyncio.get_running_loop().create_future()
        self._waiting.add(waiting)
        waiting.add_done_callback(self._waiting.discard)
        return waiting


class Reader:
    """One reader's position in a fill. Close it when done, or the fill keeps working for it."""

    stamp = None  # no other program has the file of a partial blob

    def __init__(self, fill: Fill, start: int, stop: int, is_whole: bool) -> None:
        self._fill = fill
        # A descriptor of its own: a thread may still be sending when the fill ends and closes its file.
        self.fd = duplicate(fill.partial.fd)
        self.start = self.position = start
        self.stop = stop
        self.is_whole = is_whole
        # Whether the blob was complete and proven when the reader came, though perhaps not flushed to disk: it is a hit
        # if so, and a miss if the reader had to wait, however quickly a small blob arrives.
        self.is_here = fill.is_proven
        self._sipped = start  # one past the last byte that has been released from the reserve

    def ready(self, position: int) -> int:
        """Return one past the last byte to send now to a client that has all bytes before `position`.

        That is all it may have, less the reserve while the range is not complete.
        """
        self.position = position
        if self._fill.error is not None and not self._fill.is_proven:
            return position
        end = self.frontier()
        if end < self.stop:
            end = max(position, min(end, max(self._sipped, end - self._reserve(end))))
        if end > position and not self.is_whole:
            self._fill.was_read_in_ranges = True
        return end

    def frontier(self) -> int:
        """Return one past the last byte that the reader may have; `stop` when that is all."""
        return self._fill.visible(self.position, self.stop, is_whole=self.is_whole)

    @property
    def is_waiting(self) -> bool:
        """Whether the reader waits for bytes: it has all but the reserve, so the client is not what is slow."""
        end = self.frontier()
        return end < self.stop and end - self.position <= RESERVE

    async def wait(self, position: int) -> None:
        """Wait until there are bytes to send from `position` on.

        Raises the error that ended the fill; then no more bytes may be sent, whatever is on disk.
        """
        until = asyncio.get_running_loop().time() + _SIP_SECONDS
        while self.ready(position) == position:
            if self._fill.error is not None:
                raise self._fill.error
            changed = self._fill.changed()
            if self.ready(position) > position:  # a worker thread was faster, before it could see this reader wait
                changed.cancel()
                return
            try:
                async with asyncio.timeout_at(until):
                    await changed
            except TimeoutError:
                self._sipped = position + max(1, self._reserve(self.frontier()) // _SIPS)
                until += _SIP_SECONDS

    def _reserve(self, end: int) -> int:
        """Return how many bytes are kept back from a reader that may have those before `end`."""
        return min(RESERVE, (end - self.start) // _RESERVE_SHARE)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            self._fill.readers.discard(self)
