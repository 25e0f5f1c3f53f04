"""A blob that is arriving, as its readers see it: how far may each of them read on?

Any number of readers follow one fill, and the fill outlives them. Three rules keep wrong bytes from clients:

1. Bytes that a reader may have seen are never written again. What comes straight from the origin is visible
   as it arrives, each piece from where it is waited for on, and a broken transfer goes on at the byte it had
   reached; what comes from a peer is visible only as whole pieces, and once.
2. A reader of the whole blob gets all of it but a short tail; the tail follows when the digest of the whole
   has been proven. So does the tail of whichever piece completes the blob, for readers of ranges: clients that
   fetch a file as parallel ranges cannot finish a wrong one either.
3. A bare range can never be proven by itself. Its readers see only what came straight from the origin or was
   checked against a piece digest that we believe, until the whole blob is proven.

When the proof fails, every reader's connection breaks. When it holds, the rest is theirs at once: that the blob is then
flushed to disk is not for them to wait for.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING

from mesh.errors import MeshError
from mesh.proof import Proof

if TYPE_CHECKING:
    from mesh.partial import Partial

# Held back until the proof. Short, because a slow line must not leave a client without a byte for long.
TAIL = 64 << 10
# A reader of the whole blob may be this far ahead of the proof: so the wait for the tail stays short when a
# blob of 100 GB that is mostly on disk already has to be hashed again after a restart.
_AHEAD = 1 << 30
_WAKE_SECONDS = 0.005  # between two wakes for bytes of a piece that is arriving
# Clients give up after ten seconds without a byte, though the next piece may well be on its way. So a reader that gets
# on is kept a little behind what it may have, and while nothing comes it has a sip of that now and then.
RESERVE = 64 << 10
_FAR = 256 << 10  # bytes of a piece that would come before those that are waited for: seconds, on a slow line
_RESERVE_SHARE = 16  # of what the reader has had: on a slow line the first bytes must not be kept back for long
_SIPS = 64  # in the reserve: patience for minutes
_SIP_SECONDS = 4.0


class Fill:
    """What is visible of a partial blob, and who is waiting for what. Belongs to the event loop's thread.

    Only `progress` is written by worker threads: piece → how many of its bytes are visible, in the order in which they
    come: from where it begins (`begins`) to its end, then from its start.
    """

    def __init__(self, partial: Partial) -> None:
        self.partial = partial
        self.proof = Proof(partial.digest, partial.size, partial.fd)
        self.progress: dict[int, int] = {}
        self.begins: dict[int, int] = {}  # piece → an offset in it; those that come from their start on are left out
        self.readers: set[Reader] = set()
        self.was_read = bool(partial.unchecked)  # by whom an earlier process had is not known
        self.is_proven = False
        self.is_stored = False
        self.error: MeshError | None = None
        self._waiting: set[asyncio.Future[None]] = set()
        self._is_poked = False
        self._poked_at = float("-inf")  # when a poke last woke the readers, or will
        self._completed_by: int | None = None  # the piece whose tail is held back for readers of ranges
        self._note_last_missing()

    @property
    def is_over(self) -> bool:
        return self.is_stored or self.error is not None

    def reader(self, start: int, stop: int, *, is_whole: bool) -> Reader:
        """Follow the bytes from `start` up to `stop`. `is_whole`: the client means to have the whole blob.

        One that goes on far beyond the proof, as it had what is before from elsewhere, reads it as a range.
        """
        reader = Reader(self, start, stop, is_whole and start < self.proof.hashed + _AHEAD)
        self.readers.add(reader)
        self.was_read = True
        return reader

    def poke(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have `wake` called on the loop, soon; from any thread, as often as wanted: at most one call is under way."""
        if not self._is_poked:
            self._is_poked = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is waiting any more
                loop.call_soon_threadsafe(self._wake_soon, loop)

    def _wake_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        """At once after a pause; on a busy line rarely enough that each wake is worth its price."""
        now = loop.time()
        wait = self._poked_at + _WAKE_SECONDS - now
        self._poked_at = max(now, now + wait)
        if wait > 0:
            loop.call_later(wait, self.wake)
        else:
            self.wake()

    def wake(self) -> None:
        """Something became visible: let every waiting reader look again."""
        self._is_poked = False
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)
        self._waiting.clear()

    @property
    def has_waiting(self) -> bool:
        return bool(self._waiting)

    def added(self, piece: int) -> None:
        """A piece is on disk, checked as far as it can be by itself."""
        self.progress.pop(piece, None)
        self._note_last_missing()
        self.wake()

    def prove(self) -> None:
        """The whole is what its digest names: readers may have the rest of it, whatever comes after."""
        self.is_proven = True
        self.wake()

    def finish(self, error: MeshError | None) -> None:
        """The end: proven and stored for good (None), or broken for the reason given."""
        self.is_stored = error is None
        self.error = error
        self.wake()

    def begin(self, piece: int) -> bool:
        """Decide where a piece begins that the origin is to send; whether that is elsewhere than at its start.

        It is where somebody waits, as long as nobody waits for what comes before.
        """
        start, stop = self.partial.pieces.span(piece)
        if not self.progress.get(piece):
            waited = min((r.position for r in self.readers if start <= r.position < stop), default=start)
            self.begins.pop(piece, None)
            if waited - start >= _FAR:
                self.begins[piece] = waited - start
        return piece in self.begins

    def reached(self, piece: int, offset: int) -> int:
        """One past the last byte that has come of a piece, for who has all before `offset`. Offsets in the piece."""
        start, stop = self.partial.pieces.span(piece)
        begin, count = self.begins.get(piece, 0), self.progress.get(piece, 0)
        return max(offset, min(stop - start, begin + count) if offset >= begin else begin + count - (stop - start))

    def came(self, piece: int, offset: int, count: int) -> None:
        """So many bytes of a piece have come from `offset` on, all before where it begins or all behind. Any thread."""
        start, stop = self.partial.pieces.span(piece)
        before = (offset - self.begins.get(piece, 0)) % (stop - start)  # what comes before them
        if before <= self.progress.get(piece, 0) < before + count:
            self.progress[piece] = before + count

    def prefix(self) -> int:
        """How many bytes from the start of the blob are on disk without a gap, from the proof's place on."""
        pieces, have = self.partial.pieces, self.partial.have
        piece = self.proof.hashed // pieces.piece_size
        while piece in have:
            piece += 1
        return min(self.partial.size, piece * pieces.piece_size)

    def visible(self, start: int, stop: int, *, is_whole: bool) -> int:
        """One past the last byte, at most `stop`, that a reader at `start` may have now."""
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
                shown = self._held_back(piece, offset, last)
            elif piece in partial.have:
                break
            else:
                shown = self._held_back(piece, offset, first + self._shown(piece, offset))
            end = max(end, shown)
            if shown < last:
                break
            piece += 1
        return max(start, min(end, limit))

    def _shown(self, piece: int, offset: int) -> int:
        """`reached`, but for a piece's last byte: two could fill up at once, and neither be the last to come."""
        start, stop = self.partial.pieces.span(piece)
        begin = self.begins.get(piece, 0)
        last = begin if offset < begin else stop - start + bool(begin)
        return max(offset, min(last - 1, self.reached(piece, offset)))

    def _held_back(self, piece: int, offset: int, end: int) -> int:
        """`end`, but for what comes last of the piece that completes the blob, to who has all of it before `offset`."""
        begin = self.begins.get(piece, 0)
        if piece != self._completed_by or offset >= begin > 0:
            return end
        # Long unhashed stretches exist only where ranges alone were read; there the origin's word must do.
        if self.prefix() - self.proof.hashed > 2 * _AHEAD:
            return end
        start, stop = self.partial.pieces.span(piece)
        return min(end, (start + begin if begin else stop) - TAIL)

    def _note_last_missing(self) -> None:
        have = self.partial.have
        missing = have.bits ^ ((1 << have.count) - 1)
        if missing.bit_count() == 1:
            self._completed_by = missing.bit_length() - 1

    def changed(self) -> asyncio.Future[None]:
        """Done once something became visible after this call, or the fill has ended."""
        waiting = asyncio.get_running_loop().create_future()
        self._waiting.add(waiting)
        waiting.add_done_callback(self._waiting.discard)
        return waiting


class Reader:
    """One reader's place in a blob that is arriving. Close it when done, or the fill keeps working for it."""

    stamp = None  # what is arriving is ours alone

    def __init__(self, fill: Fill, start: int, stop: int, is_whole: bool) -> None:
        self._fill = fill
        # One of our own: a thread may still be sending when the fill is given up and its file closed.
        self.fd = os.dup(fill.partial.fd)
        self.start = self.position = start
        self.stop = stop
        self.is_whole = is_whole
        self._sipped = start  # one past the last byte that it may have of its reserve

    @property
    def is_here(self) -> bool:
        """Whether nothing has to come any more: what is left to do is to flush it to disk."""
        return self._fill.is_proven

    def ready(self, position: int) -> int:
        """One past the last byte to be sent now to somebody who has all bytes before `position`.

        All that it may have, but for the reserve when the rest is not there yet.
        """
        self.position = position
        if self._fill.error is not None and not self._fill.is_proven:
            return position
        end = self.frontier()
        if end < self.stop:
            end = max(position, min(end, max(self._sipped, end - self._reserve(end))))
        return end

    def frontier(self) -> int:
        """One past the last byte that it may have; `stop` when that is all."""
        return self._fill.visible(self.position, self.stop, is_whole=self.is_whole)

    @property
    def is_waiting(self) -> bool:
        """Whether it has had all but the reserve, so that it is not the client who takes its time."""
        end = self.frontier()
        return end < self.stop and end - self.position <= RESERVE

    async def wait(self, position: int) -> None:
        """Until there is something to send from `position` on.

        Raises the error that ended the fill; then no more bytes may be sent, whatever is on disk.
        """
        until = asyncio.get_running_loop().time() + _SIP_SECONDS
        while self.ready(position) == position:
            if self._fill.error is not None:
                raise self._fill.error
            changed = self._fill.changed()
            if self.ready(position) > position:  # by a worker thread, before it could see us waiting
                changed.cancel()
                return
            try:
                async with asyncio.timeout_at(until):
                    await changed
            except TimeoutError:
                self._sipped = position + max(1, self._reserve(self.frontier()) // _SIPS)
                until += _SIP_SECONDS

    def _reserve(self, end: int) -> int:
        """Bytes kept back from somebody who may have those before `end`."""
        return min(RESERVE, (end - self.start) // _RESERVE_SHARE)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            self._fill.readers.discard(self)
