"""The index of pieces by node and of nodes by piece, and how rare each piece is. Pure.

Sets are integers (see mesh/bits.py): in a set of pieces, bit n is piece n; in a set of nodes, bit n is the node in
slot n.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mesh.bits import bits_in, members


class Tally:
    """A count for each piece, bit-sliced: one set holds bit k of every count, so all counts change in a few steps."""

    def __init__(self) -> None:
        self._levels: list[int] = []

    def more(self, pieces: int) -> None:
        """Add one to the count of each of these pieces; carries go from level to level."""
        for level, before in enumerate(self._levels):
            if not pieces:
                return
            self._levels[level] = before ^ pieces
            pieces &= before
        if pieces:
            self._levels.append(pieces)

    def fewer(self, pieces: int) -> None:
        """Subtract one from the count of each of these pieces; no count may be 0."""
        for level, before in enumerate(self._levels):
            if not pieces:
                return
            self._levels[level] = before ^ pieces
            pieces &= ~before

    def at_least(self, level: int) -> int:
        """Return the pieces whose count is 2 ** `level` or more."""
        pieces = 0
        for many in self._levels[level:]:
            pieces |= many
        return pieces

    def fewest_first(self, pieces: int) -> Iterator[int]:
        """Split a set of pieces into sets of equal counts, the lowest count first."""
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


class Group:
    """A set of nodes, and the pieces that they hold between them."""

    def __init__(self) -> None:
        self.slots = 0
        self._copies = Tally()

    @property
    def pieces(self) -> int:
        """The pieces that at least one node of the group holds."""
        return self._copies.at_least(0)

    def enter(self, slot: int, have: int) -> None:
        """Add the node in `slot`, which is not in the group and holds the pieces `have`."""
        self.slots |= 1 << slot
        self._copies.more(have)

    def leave(self, slot: int, have: int) -> None:
        """Remove the node in `slot`, which holds the pieces `have`."""
        self.slots &= ~(1 << slot)
        self._copies.fewer(have)

    def gain(self, slot: int, pieces: int) -> None:
        """Record that a node gained pieces; ignored for a node outside the group."""
        if self.slots >> slot & 1:
            self._copies.more(pieces)

    def lose(self, slot: int, pieces: int) -> None:
        """Record that a node lost pieces; ignored for a node outside the group."""
        if self.slots >> slot & 1:
            self._copies.fewer(pieces)


class Holdings:
    """The available pieces of a blob of `count` pieces, and their holders. Memory: two bits per node and piece.

    `groups` are kept up to date with the pieces that their nodes gain and lose.
    """

    def __init__(self, count: int, groups: Sequence[Group] = ()) -> None:
        self.held = 0  # pieces that at least one node holds
        self._groups = groups
        self._holders = [0] * count  # by piece: the set of slots
        self._have: dict[int, int] = {}  # by slot: the set of pieces
        self._copies = Tally()  # copies of each piece, those under way included

    def holders(self, piece: int) -> int:
        """Return the slots of the nodes that hold a piece."""
        return self._holders[piece]

    def have(self, slot: int) -> int:
        """Return the pieces that the node in `slot` can supply."""
        return self._have.get(slot, 0)

    def add(self, slot: int, pieces: int) -> None:
        """Record that the node in `slot` can supply these pieces too."""
        have = self._have.get(slot, 0)
        new = pieces & ~have
        self._have[slot] = have | new
        self.held |= new
        node = 1 << slot
        for piece in members(new):
            self._holders[piece] |= node
        self._copies.more(new)
        for group in self._groups:
            group.gain(slot, new)

    def remove(self, slot: int, pieces: int) -> None:
        """Record that the node in `slot` can supply these pieces no more, if it could at all."""
        have = self._have.pop(slot, 0)
        lost = have & pieces
        if kept := have ^ lost:
            self._have[slot] = kept
        others = ~(1 << slot)
        for piece in members(lost):
            self._holders[piece] &= others
        self.held &= ~bits_in(piece for piece in members(lost) if not self._holders[piece])
        self._copies.fewer(lost)
        for group in self._groups:
            group.lose(slot, lost)

    def held_beyond(self, slots: int) -> int:
        """Return the pieces that a node outside this set of nodes holds."""
        pieces = 0
        for slot, have in self._have.items():
            if not slots >> slot & 1:
                pieces |= have
                if pieces == self.held:
                    break
        return pieces

    def begin_copy(self, piece: int) -> None:
        """Count a copy that is under way, so that the piece is no longer as rare."""
        self._copies.more(1 << piece)

    def end_copy(self, piece: int) -> None:
        """End what `begin_copy` began: the copy has failed, or has arrived and is counted by `add`."""
        self._copies.fewer(1 << piece)

    def rarest_first(self, pieces: int) -> Iterator[int]:
        """Split a set of pieces into sets with equally many copies, fewest first."""
        return self._copies.fewest_first(pieces)

    def common(self, level: int) -> int:
        """Return the pieces of which there are 2 ** `level` copies or more."""
        return self._copies.at_least(level)
