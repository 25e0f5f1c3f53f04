"""The identity of a blob, its digest, and the pieces in which it is exchanged. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from mesh.bits import members

if TYPE_CHECKING:
    from typing import Self

MIN_PIECE = 1 << 20  # bytes
MAX_PIECE = 16 << 20  # bytes
# Pieces per blob to aim for: enough that hundreds of nodes can each hold a different one early on, few enough that a
# report of all of them is a small message.
_TARGET_PIECES = 512

_HEX = {"sha256": re.compile(r"[0-9a-f]{64}\Z"), "git-sha1": re.compile(r"[0-9a-f]{40}\Z")}


class Hasher(Protocol):
    """The part of a hashlib object that is used here."""

    def update(self, data: bytes | bytearray | memoryview, /) -> None: ...
    def hexdigest(self) -> str: ...


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """The name of a blob: an algorithm and lower-case hex, which can be recomputed from the blob's bytes.

    `sha256` is the plain SHA-256 of the content (large files on the Hub); `git-sha1` is git's blob id, the SHA-1 of
    ``b"blob <size>\\0" + content`` (small files).

    Raises ValueError for anything else, so a Digest is always safe as a file name.
    """

    algorithm: Literal["sha256", "git-sha1"]
    hex: str

    def __post_init__(self) -> None:
        pattern = _HEX.get(self.algorithm)
        if pattern is None or not pattern.match(self.hex):
            raise ValueError(f"not a digest: {self.algorithm}:{self.hex[:80]}")

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse the form that `str` writes: ``sha256:<64 hex>`` or ``git-sha1:<40 hex>``. Raises ValueError."""
        algorithm, _, hexdigits = text.partition(":")
        return cls(algorithm, hexdigits)  # type: ignore[arg-type]  # __post_init__ refuses the rest

    def hasher(self, size: int) -> Hasher:
        """Return a new hash object for a blob of `size` bytes; once fed the blob, its hexdigest must equal `hex`."""
        if self.algorithm == "sha256":
            return hashlib.sha256()
        # git hashes a header first. SHA-1 is the Hub's choice for small files, not a security decision made here.
        return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


def piece_size(size: int) -> int:
    """Return the piece size, in bytes, of a blob of `size` bytes: a power of two from 1 to 16 MiB.

    It depends on the size alone, so that all nodes divide a blob alike without having to agree.
    """
    wanted = max(1, -(-size // _TARGET_PIECES))
    return min(MAX_PIECE, max(MIN_PIECE, 1 << (wanted - 1).bit_length()))


@dataclass(frozen=True, slots=True)
class Pieces:
    """The division of a blob of `size` bytes into pieces, numbered from 0. An empty blob has none."""

    size: int
    piece_size: int

    @classmethod
    def of(cls, size: int) -> Self:
        return cls(size, piece_size(size))

    @property
    def count(self) -> int:
        return -(-self.size // self.piece_size)

    def span(self, piece: int) -> tuple[int, int]:
        """Return the first byte of a piece and one past its last. Raises IndexError."""
        if not 0 <= piece < self.count:
            raise IndexError(f"piece {piece} of {self.count}")
        start = piece * self.piece_size
        return start, min(self.size, start + self.piece_size)

    def covering(self, start: int, stop: int) -> range:
        """Return the pieces that hold the bytes from `start` up to `stop`."""
        if start >= stop:
            return range(0)
        return range(start // self.piece_size, -(-min(stop, self.size) // self.piece_size))


class PieceSet:
    """A set of piece numbers below `count`, small in memory and on the wire (one bit each)."""

    __slots__ = ("_bits", "count")

    def __init__(self, count: int, bits: int = 0) -> None:
        if bits < 0 or bits >> count:
            raise ValueError(f"bits beyond the {count} pieces of the blob")
        self.count = count
        self._bits = bits

    @classmethod
    def of(cls, count: int, pieces: Iterable[int]) -> Self:
        """Return the set of these pieces; one that is named twice is in it once. Raises IndexError."""
        made = cls(count)
        for piece in pieces:
            made.add(piece)
        return made

    @classmethod
    def from_bytes(cls, count: int, data: bytes) -> Self:
        """Parse the result of `to_bytes`. Raises ValueError for a wrong length or stray bits."""
        if len(data) != -(-count // 8):
            raise ValueError(f"{len(data)} bytes cannot be a set of {count} pieces")
        return cls(count, int.from_bytes(data, "little"))

    def to_bytes(self) -> bytes:
        return self._bits.to_bytes(-(-self.count // 8), "little")

    def add(self, piece: int) -> None:
        if not 0 <= piece < self.count:
            raise IndexError(f"piece {piece} of {self.count}")
        self._bits |= 1 << piece

    def discard(self, piece: int) -> None:
        if piece in self:
            self._bits &= ~(1 << piece)

    def copy(self) -> PieceSet:
        return PieceSet(self.count, self._bits)

    @property
    def bits(self) -> int:
        """The set as an integer, for bulk set arithmetic: piece n is bit n."""
        return self._bits

    @property
    def complete(self) -> bool:
        return len(self) == self.count

    def __contains__(self, piece: int) -> bool:
        return piece >= 0 and bool(self._bits >> piece & 1)

    def __len__(self) -> int:
        return self._bits.bit_count()

    def __iter__(self) -> Iterator[int]:
        return members(self._bits)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PieceSet) and (self.count, self._bits) == (other.count, other._bits)

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        return f"PieceSet({len(self)} of {self.count})"
