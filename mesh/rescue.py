"""Readers that get nothing: what they wait for comes from the origin, whatever the tracker and the peers have in mind.

A tracker may hang, or lie; a peer may drip a byte a second. Each has its own limits elsewhere, and all of them together
can take longer than clients wait. This is the last resort, and costs the origin a piece a node at worst.
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

# Without a byte, for a reader that would take one. Clients give up after 10: the origin needs some of them to answer.
_STARVED = 5.5
_NOTHING = 3.0  # and without a piece of any kind, or bytes of one: then nobody does anything for this node
_NOTHING_OF_CROWD = 8.0  # hundreds on a machine with few cores get one every three seconds when all is well
# The more nodes wait for one tracker the likelier it is just busy, and the more the origin would send if all of them
# turned to it at once. Before its first byte a client can be told to come again.
_FIRST_OF_CROWD = 15.0
_STARVED_OF_CROWD = 12.0
# While other pieces come it is the swarm that is slow, and all of its nodes would ask. Clients stay, as they get sips
# of the reserve; but not before their first byte.
_LONGEST = 15.0
_LONGEST_OF_CROWD = 25.0
_LONGEST_WITHOUT_RESERVE = 7.0
_MANY = 2  # pieces rescued: then it is not chance, and not a piece that the origin is just sending to somebody else
_UNSERVED = 8.0  # without being sent for anything: then it is the tracker that does nothing for us
# Whoever leaves a tracker that is just busy leaves all others, too, and fetches a copy for itself. Its reader goes on.
_UNSERVED_OF_CROWD = 30.0
_LEASE_SECONDS = 60.0
_PACE_SECONDS = 2.0  # over which a transfer's pace is taken at the least: under a limit bytes come in bursts
_NEAR = 4.0  # a piece that will be here in so long comes soonest from where it is coming from


class Rescue:
    """Belongs to the event loop's thread. `look` is to be called every second or two."""

    def __init__(self, house: House, fill: Fill, fetcher: Fetcher) -> None:
        self._house = house
        self._fill = fill
        self._fetcher = fetcher
        self._waits: dict[Reader, tuple[int, float]] = {}  # where it waits, and since when
        self._count = 0
        # How far transfers had come, and when; of late, and some time before that.
        self._places: dict[Run, tuple[int, float]] = {}
        self._former: dict[Run, tuple[int, float]] = {}
        self._placed_at = self._served_at = -math.inf
        self._received = 0

    def look(self) -> None:
        now = time.monotonic()
        idle = now - max(self._fetcher.last_landed, self._served_at)  # or since the fill began
        is_crowd = self._house.exchange.is_crowd
        if is_crowd:
            # A node that is late itself does not know whether others do nothing for it, or whether it has not looked.
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

    def _measure(self, now: float) -> None:
        """Whether bytes come so fast that a piece is soon complete, though none may be now: several share a line."""
        before, self._received = self._received, self._fetcher.received.total()
        rate = (self._received - before) / (now - self._placed_at)
        if rate * _LONGEST >= self._fill.partial.pieces.piece_size:
            self._served_at = now

    def _is_near(self, piece: int, now: float, *, is_late: bool) -> bool:
        """Whether a peer sends a piece so fast that it is soon here; one that has just begun may, until it is late."""
        stop = self._fill.partial.pieces.span(piece)[1]
        for run in self._fetcher.runs:
            if run.piece == piece and not run.is_origin:
                if not is_late and now - run.landed_at < _PACE_SECONDS:
                    return True
                # One that has not been looked at yet has its pace since it began with this piece.
                began = (self._fill.partial.pieces.span(piece)[0], run.landed_at)
                before, since = self._former.get(run) or self._places.get(run) or began
                rate = (run.position - before) / max(_PACE_SECONDS, now - since)
                return rate * _NEAR >= stop - run.position
        return False

    def _fetch(self, piece: int, seconds: float) -> None:
        partial = self._fill.partial
        if piece in partial.have or piece in partial.unchecked:
            return  # it waits for a proof
        under_way = [run for run in self._fetcher.runs if piece in run.pieces]
        for run in under_way:
            if not run.is_origin:
                log.info("%s: %s has not brought piece %d in %.0f s", partial.digest, run.source, piece, seconds)
                run.cancel()  # we come again when it has left the file
        if not under_way and (piece, ORIGIN) not in self._fetcher.active():
            log.info("%s: a reader has waited %.0f s: asking the origin for piece %d", partial.digest, seconds, piece)
            self._count += 1
            unserved = _UNSERVED_OF_CROWD if self._house.exchange.is_crowd else _UNSERVED
            if self._count >= _MANY and time.monotonic() - self._fetcher.assigned_at >= unserved:
                self._house.exchange.doubt(partial.digest)
            self._fetcher.take([Task(piece, (ORIGIN,), b"", _LEASE_SECONDS)])
