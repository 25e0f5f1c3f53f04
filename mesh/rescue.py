"""Readers that get no bytes: their next piece is fetched from the origin, whatever the tracker has assigned.

A tracker may hang or lie; a peer may send one byte a second. Other modules bound each of these delays, but their sum
can exceed the time that clients wait. This is the last resort, and at worst costs the origin one piece per node.
"""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING

from mesh.messages import ORIGIN, Task

if TYPE_CHECKING:
    from mesh.fetcher import Fetcher
    from mesh.fill import Fill, Reader
    from mesh.house import House
    from mesh.intake import Run

log = logging.getLogger(__name__)

# Times are in seconds.
# A reader waits this long without a byte before the origin is asked, if the node gets nothing else either. Clients give
# up after 10 s; the origin needs part of that to answer.
_STARVED = 5.5
_NOTHING = 3.0  # without a piece, or bytes enough for one soon: then no source serves this node
# The same for pieces of other blobs from the tracker of this one: a seed fetches blobs by turns over a slow line.
_NOTHING_FROM_TRACKER = 8.0
_NOTHING_OF_CROWD = 8.0  # the same in a crowd: hundreds of healthy nodes on few cores get a piece every three seconds
# The more nodes wait for one tracker, the likelier it is only busy, and the more the origin would send if all of them
# turned to the origin at once. A client without its first byte can be told to retry.
_FIRST_OF_CROWD = 15.0
_STARVED_OF_CROWD = 12.0
# While other pieces arrive, the whole swarm is slow, and all of its nodes would ask the origin. Clients that have their
# first byte stay that long, as they get small parts of the reserve (mesh/fill.py).
_LONGEST = 15.0
_LONGEST_OF_CROWD = 25.0
_LONGEST_WITHOUT_RESERVE = 7.0  # the same for a client without its first byte
_MANY = 2  # rescued pieces before the tracker is doubted: one may be chance, or on its way from the origin to a peer
_UNSERVED = 8.0  # without an assignment: then the tracker does nothing for this node
# The same in a crowd, or while the tracker sends pieces of other blobs. A node that leaves a busy tracker also leaves
# all other nodes, and fetches its own copy. Its readers are served without that.
_UNSERVED_OF_BUSY = 30.0
_PACE_SECONDS = 2.0  # shortest time over which a transfer's pace is measured: under a rate limit bytes come in bursts
_NEAR = 4.0  # a piece that a peer will have sent within this time comes soonest from that peer


class Rescue:
    """Rescues the readers of one fill. Belongs to the event loop's thread; call `look` every second or two."""

    def __init__(self, house: House, fill: Fill, fetcher: Fetcher) -> None:
        self._house = house
        self._fill = fill
        self._fetcher = fetcher
        self._waits: dict[Reader, tuple[int, float]] = {}  # reader → position at which it waits, and since when
        self._count = 0  # pieces rescued
        # Run → its position, and when that was taken: the last time, and the time before.
        self._places: dict[Run, tuple[int, float]] = {}
        self._former: dict[Run, tuple[int, float]] = {}
        self._placed_at = self._served_at = -math.inf
        self._received = 0

    def look(self) -> None:
        now = time.monotonic()
        idle = now - max(self._fetcher.last_landed, self._served_at)  # at first, since the fill began
        is_crowd = self._house.exchange.is_crowd
        if self._is_tracker_serving(now):
            idle = 0.0
        if is_crowd:
            # A node that is late for its own timers cannot tell whether nothing came or it has not looked.
            is_left_alone = idle >= _NOTHING_OF_CROWD and not self._house.exchange.is_strained
            longest = _STARVED_OF_CROWD if is_left_alone else _LONGEST_OF_CROWD
        else:
            longest = _STARVED if idle >= _NOTHING else _LONGEST
        waits: dict[Reader, tuple[int, float]] = {}
        for reader in self._fill.readers:
            if not reader.is_waiting:
                continue
            position = reader.frontier()
            before, since = self._waits.get(reader, (-1, now))
            waits[reader] = (position, since if before == position else now)
            if is_crowd and idle < _FIRST_OF_CROWD and position == reader.start:
                continue
            patience = longest if position > reader.start else min(longest, _LONGEST_WITHOUT_RESERVE)
            if before == position and now - since >= patience and self._fetcher.can_fetch:
                piece = position // self._fill.partial.pieces.piece_size
                is_late = now - since >= patience + _PACE_SECONDS
                if not self._is_near(piece, now, is_late=is_late):
                    self._fetch(piece, now - since)
        self._waits = waits
        if now - self._placed_at >= _PACE_SECONDS:
            self._former, self._places = self._places, {run: (run.position, now) for run in self._fetcher.runs}
            self._measure(now)
            self._placed_at = now

    def _is_tracker_serving(self, now: float) -> bool:
        """Whether the last piece from the blob's tracker to this node was of another blob, and came lately."""
        digest = self._fill.partial.digest
        tracker = self._house.exchange.tracker_of(digest)
        return now - self._house.served_other_at(tracker, digest) < _NOTHING_FROM_TRACKER

    def _measure(self, now: float) -> None:
        """Record whether bytes come fast enough for a piece to be complete soon: several may share a slow line."""
        before, self._received = self._received, self._fetcher.received.total()
        rate = (self._received - before) / (now - self._placed_at)
        if rate * _LONGEST >= self._fill.partial.pieces.piece_size:
            self._served_at = now

    def _is_near(self, piece: int, now: float, *, is_late: bool) -> bool:
        """Whether a peer will soon have sent a piece. A transfer that has just begun counts, unless `is_late`."""
        stop = self._fill.partial.pieces.span(piece)[1]
        for run in self._fetcher.runs:
            if run.piece == piece and not run.is_origin:
                if not is_late and now - run.landed_at < _PACE_SECONDS:
                    return True
                # The pace of a run that is not recorded yet is measured from the beginning of this piece.
                began = (self._fill.partial.pieces.span(piece)[0], run.landed_at)
                before, since = self._former.get(run) or self._places.get(run) or began
                rate = (run.position - before) / max(_PACE_SECONDS, now - since)
                return rate * _NEAR >= stop - run.position
        return False

    def _fetch(self, piece: int, seconds: float) -> None:
        partial = self._fill.partial
        if piece in partial.have or piece in partial.unchecked:
            return  # the reader waits for a proof
        under_way = [run for run in self._fetcher.runs if piece in run.pieces]
        for run in under_way:
            if not run.is_origin:
                log.info("%s: %s has not brought piece %d in %.0f s", partial.digest, run.source, piece, seconds)
                run.cancel()  # the origin is asked by a later `look`, once the run has left the file
        if not under_way and (piece, ORIGIN) not in self._fetcher.active():
            log.info("%s: a reader has waited %.0f s: asking the origin for piece %d", partial.digest, seconds, piece)
            self._count += 1
            now = time.monotonic()
            is_busy = self._house.exchange.is_crowd or self._is_tracker_serving(now)
            unserved = _UNSERVED_OF_BUSY if is_busy else _UNSERVED
            if self._count >= _MANY and now - self._fetcher.assigned_at >= unserved:
                self._house.exchange.doubt(partial.digest)
            self._fetcher.take([Task.lease_of(piece)])
