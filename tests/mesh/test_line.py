"""The turns on the line to the origin: fair, none lost, and as few at once as bring in what the line can carry."""

from __future__ import annotations

import heapq
from itertools import count

from mesh.line import FEWEST, MOST, Line

MIB = 1 << 20


class Blob:
    """Fetches one piece per turn, for ever."""

    def __init__(self, line: Line, begun: list[Blob]) -> None:
        self._line = line
        self._begun = begun
        self.is_over = False

    def launch(self) -> None:
        while not self.is_over and self._line.take(self.launch):
            self._begun.append(self)


def run(line: Line, piece: int, rate: float, of_connection: float, seconds: float) -> list[int]:
    """Fetch eight blobs over a line of `rate` bytes per second. Returns for each piece, in order, whose it was."""
    begun: list[Blob] = []
    blobs = [Blob(line, begun) for _ in range(8)]
    for blob in blobs:
        blob.launch()
    now, received, landed = 0.0, 0.0, list[int]()
    transfers: list[tuple[float, int, Blob, float]] = []  # (bytes of a connection at its end, …, begun at)
    each, number = 0.0, count()  # bytes that a connection open from the start would have had
    while now < seconds:
        for blob in begun:
            heapq.heappush(transfers, (each + piece, next(number), blob, now))
        begun.clear()
        end, _, blob, since = heapq.heappop(transfers)
        pace = min(of_connection, rate / (len(transfers) + 1))
        now += (end - each) / pace
        received += (end - each) * (len(transfers) + 1)
        each = end
        line.landed(piece, now - since, int(received), now)
        landed.append(blobs.index(blob))
        blob.launch()
        line.give_back()
    return landed


def test_on_a_slow_line_whole_pieces_come_one_after_the_other_of_each_blob_in_turn() -> None:
    line = Line()
    landed = run(line, MIB, MIB, MIB, 300.0)
    assert line.limit <= 2 * FEWEST
    assert len(landed) >= 290, "all of the line is in use"
    assert set(landed[:9]) == set(range(8)), "the first asked for its second turn before the others were there"
    counts = [landed.count(blob) for blob in range(8)]
    assert max(counts) - min(counts) <= 3


def test_connections_with_a_limit_each_are_used_until_the_line_is_full() -> None:
    line = Line()
    landed = run(line, 16 * MIB, 100 * MIB, 5 * MIB, 300.0)
    assert line.limit >= 16
    assert len(landed) * 16 * MIB >= 0.8 * 300 * 100 * MIB


def test_on_a_fast_line_nobody_waits_for_a_turn_for_long() -> None:
    line = Line()
    run(line, MIB, 1000 * MIB, 1000 * MIB, 1.0)
    assert line.limit == MOST


def test_a_turn_that_is_not_wanted_any_more_goes_to_the_next() -> None:
    line, begun = Line(), list[Blob]()
    blobs = [Blob(line, begun) for _ in range(3)]
    for blob in blobs:
        blob.launch()
    blobs[0].is_over = blobs[1].is_over = True
    line.give_back()
    assert begun == [blobs[0], blobs[2]]
    blobs[2].is_over = True
    line.give_back()
    assert line.take(blobs[0].launch)
