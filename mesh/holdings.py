"""Who holds which piece, both ways round, and how rare each piece is. Pure.

Sets are integers: in a set of pieces, piece n is bit n; in a set of nodes, the node with slot n is bit n.
"""

from __future__ import annotations

from collections.abc import Iterator


class Holdings:
    """What can be had from whom, of a blob of `count` pieces. Memory: two bits for each node and piece."""

    def __init__(self, count: int) -> None:
        self.held = 0  # pieces that somebody holds
        self._holders = [0] * count  # by piece, the set of slots
        self._have: dict[int, int] = {}  # by slot, the set of pieces
        # How many copies of each piece there are or are under way, bit-sliced: bit k of every count is in _levels[k].
        self._levels: list[int] = []

    def holders(self, piece: int) -> int:
        """The slots of those who hold a piece."""
        return self._holders[piece]

    def add(self, slot: int, pieces: int) -> None:
        """The node in `slot` can supply these pieces (as well)."""
        have = self._have.get(slot, 0)
        new = pieces & ~have
        self._have[slot] = have | new
        self.held |= new
        for piece in members(new):
            self._holders[piece] |= 1 << slot
        self._tally(new, more=True)

    def remove(self, slot: int) -> None:
        """Nothing can be had from the node in `slot` any more."""
        lost = self._have.pop(slot, 0)
        for piece in members(lost):
            self._holders[piece] &= ~(1 << slot)
            if not self._holders[piece]:
                self.held &= ~(1 << piece)
        self._tally(lost, more=False)

    def begin_copy(self, piece: int) -> None:
        """A copy is under way, and counts when we ask how rare a piece is."""
        self._tally(1 << piece, more=True)

    def end_copy(self, piece: int) -> None:
        """A copy that had begun has arrived (and is to be added), or has failed."""
        self._tally(1 << piece, more=False)

    def rarest_first(self, pieces: int) -> Iterator[int]:
        """Split a set of pieces into sets of equally many copies, fewest first."""
        parts = [(pieces, len(self._levels))]
        while parts:
            part, level = parts.pop()
            if part and not level:
                yield part
            elif part:
                level -= 1
                many = part & self._levels[level]
                parts.append((many, level))
                parts.append((part ^ many, level))

    def common(self, level: int) -> int:
        """Pieces of which there are 2 ** `level` copies or more."""
        pieces = 0
        for many in self._levels[level:]:
            pieces |= many
        return pieces

    def _tally(self, pieces: int, *, more: bool) -> None:
        """Add one to the count of each of these pieces, or take one away: a carry goes from level to level."""
        for level, before in enumerate(self._levels):
            if not pieces:
                return
            self._levels[level] = before ^ pieces
            pieces &= before if more else ~before
        if pieces and more:
            self._levels.append(pieces)


def members(bits: int) -> Iterator[int]:
    """The numbers in a set, in order."""
    while bits:
        low = bits & -bits
        yield low.bit_length() - 1
        bits ^= low


def members_from(bits: int, start: int) -> Iterator[int]:
    """The numbers in a set, in order from `start` on and then from 0."""
    later = bits >> start
    while later:
        low = later & -later
        yield start + low.bit_length() - 1
        later ^= low
    yield from members(bits & ((1 << start) - 1))


def first_from(bits: int, start: int) -> int:
    """The first of `members_from`, for a set that is not empty."""
    later = bits >> start
    if later:
        return start + (later & -later).bit_length() - 1
    return (bits & -bits).bit_length() - 1
