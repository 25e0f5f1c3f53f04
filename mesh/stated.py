"""The digests that a node states with the pieces it sends: bytes that its disk or memory spoiled do not match them.

A node learns the BLAKE3 digest of each piece when the piece arrives, long before a bit of it may flip on disk. What it
states proves nothing: a liar states the digests of its lies. But bytes that differ from what their sender states are
wrong or badly stored, the sender alone is at fault, and no other node gets them. So a statement is only ever a reason
to refuse bytes, with or without the key of a mesh. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache

from mesh.bounded import Bounded
from mesh.content import Digest, Pieces

HEADER = "Piece-Digests"  # of an answer with a range of a blob: those of its first whole pieces, in hexadecimal
_MOST = 64  # pieces whose digests are stated with one range; no node requests more at once
_LIST = re.compile(r"[0-9a-f]{64}(?:,[0-9a-f]{64})*\Z")
_LENGTH = 32  # bytes of a digest
_UNKNOWN = bytes(_LENGTH)
_MAX_BLOBS = 16  # whose digests are kept in memory: for the largest blob 2 MiB, usually a tenth of that


def state(pieces: Pieces, start: int, stop: int, digest_of: Callable[[int], bytes]) -> dict[str, str]:
    """Return the header that states the digests of the whole pieces from `start` up to `stop`, in bytes.

    `digest_of` returns nothing for a piece whose digest is not known: the statement ends before that.
    """
    known: list[str] = []
    for piece in _whole(pieces, start, stop):
        if not (digest := digest_of(piece)):
            break
        known.append(digest.hex())
    return {HEADER: ",".join(known)} if known else {}


def read(pieces: Pieces, start: int, stop: int, text: str) -> dict[int, bytes]:
    """Return piece → digest, as stated in the header with the bytes from `start` up to `stop`; {} for nonsense."""
    return dict(zip(_whole(pieces, start, stop), _digests(text), strict=False))


@lru_cache(64)  # a receiver looks at the same statement after each of its pieces
def _digests(text: str) -> tuple[bytes, ...]:
    return tuple(map(bytes.fromhex, text.split(","))) if _LIST.match(text) else ()


def _whole(pieces: Pieces, start: int, stop: int) -> range:
    first = -(-start // pieces.piece_size)
    last = pieces.count if stop >= pieces.size else stop // pieces.piece_size
    return range(first, min(last, first + _MOST))


class Manifests:
    """The piece digests of the complete blobs that were sent last. `load` reads those of a blob of a given size."""

    def __init__(self, load: Callable[[Digest, int], Mapping[int, bytes]]) -> None:
        self._load = load
        self._kept: Bounded[Digest, bytes] = Bounded(_MAX_BLOBS)  # one digest after the other

    def digest_of(self, digest: Digest, size: int, piece: int) -> bytes:
        """Return the BLAKE3 digest of a piece; empty if it is not known."""
        kept = self._kept.get(digest)
        if kept is None:
            known = self._load(digest, size)
            kept = b"".join(known.get(number, _UNKNOWN) for number in range(Pieces.of(size).count))
            self._kept[digest] = kept
        found = kept[piece * _LENGTH : (piece + 1) * _LENGTH]
        return b"" if found == _UNKNOWN else found

    def forget(self, digest: Digest) -> None:
        """Read the digests of a blob anew the next time."""
        self._kept.pop(digest, None)
