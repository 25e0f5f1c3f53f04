"""How much of one piece has come from the origin, and what of that a reader may have. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Arrival:
    """A piece of `size` bytes on its way: first the bytes from `split` to its end, then those before `split`.

    All offsets are offsets in the piece. `count` is written by the thread that receives the piece.
    """

    size: int
    split: int = 0
    count: int = 0  # bytes that have come, in that order

    @property
    def end(self) -> int:
        """One past the last byte to come."""
        return self.split or self.size

    def came(self, offset: int, count: int) -> None:
        """Record that `count` bytes have come from `offset` on, all of them before `split` or all behind it."""
        before = (offset - self.split) % self.size  # bytes that come before these
        if before <= self.count < before + count:
            self.count = before + count

    def reached(self, offset: int) -> int:
        """Return one past the last byte that has come without a gap from `offset` on; `offset` if none has."""
        reached = self.split + self.count
        return max(offset, min(self.size, reached) if offset >= self.split else reached - self.size)

    def shown(self, offset: int) -> int:
        """As `reached`, without the last byte to come, which is shown once the piece is recorded as complete.

        Otherwise two pieces could fill up at once, and neither would be held back as the one that completes the blob.
        """
        reached = self.reached(offset)
        return max(offset, min(self.end - 1, reached)) if offset < self.end else reached
