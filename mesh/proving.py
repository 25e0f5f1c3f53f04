"""The proof of one fill: pieces of an earlier process are read back, and the whole blob is hashed as it grows."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from mesh.content import PieceSet
from mesh.errors import BlobCorrupt, MeshError, StoreUnusable
from mesh.messages import HELD, ORIGIN, Failure, Gain

if TYPE_CHECKING:
    from mesh.fetcher import Fetcher
    from mesh.fill import Fill
    from mesh.house import House

log = logging.getLogger(__name__)

_PROOF_STEP = 64 << 20  # bytes hashed at a time


class Proving:
    """Checks the bytes of one fill. Belongs to the event loop's thread.

    `changed` is called whenever there is something new to report, or the fill has ended.
    """

    def __init__(self, house: House, fill: Fill, fetcher: Fetcher, changed: Callable[[], None]) -> None:
        self._house = house
        self._fill = fill
        self._partial = fill.partial
        self._digest = fill.partial.digest
        self._fetcher = fetcher
        self._changed = changed

    def held(self, piece: int) -> Gain:
        """Describe a piece held before, with its digest only if the piece is trusted: other nodes will believe it."""
        is_trusted = piece in self._partial.trusted
        return Gain(piece, HELD, self._partial.piece_digests[piece] if is_trusted else b"")

    async def recheck(self) -> None:
        """Read back the pieces of an earlier process before they count, those that readers wait for first."""
        partial = self._partial
        while partial.unchecked and not self._fill.is_over:
            heads = [partial.pieces.covering(r.position, r.stop) for r in self._fill.readers]
            piece = next((p for head in heads for p in head if p in partial.unchecked), next(iter(partial.unchecked)))
            if await asyncio.get_running_loop().run_in_executor(self._house.proofs, partial.recheck, piece):
                partial.accept(piece)
                self._fetcher.gained.append(self.held(piece))
                self._fill.added(piece)
            else:
                log.warning("piece %d of %s cannot be read back as it was; it is fetched again", piece, self._digest)
                partial.forget(piece)
                self._fetcher.failed.append(Failure(piece, ORIGIN, "refused"))  # ends a lease given meanwhile
            self._changed()

    async def prove(self) -> None:
        """Hash the prefix as it grows; then publish the blob, or break every reader's connection."""
        proof, fill, loop = self._fill.proof, self._fill, asyncio.get_running_loop()
        try:
            while not proof.is_complete:
                stop = min(fill.prefix(), proof.hashed + _PROOF_STEP)
                if stop == proof.hashed:
                    await fill.changed()
                    if fill.is_over:
                        return
                    continue
                await loop.run_in_executor(self._house.proofs, proof.extend, stop)
                fill.wake()
            if proof.holds():
                fill.prove()
                await self._house.store.commit(self._partial)
                fill.finish(None)
            else:
                self.disprove()
        except MeshError as error:
            fill.finish(error)
        except OSError as error:
            fill.finish(StoreUnusable(f"cannot read {self._partial.path}: {error}"))
        finally:
            self._changed()
        if fill.is_stored:  # whatever becomes of this call, the blob is there
            self._house.brought(self._digest, dict(self._fetcher.received))

    def disprove(self) -> None:
        """Drop the untrusted pieces, or all if all are trusted: the digest, or the origin for a piece, contradicts."""
        partial, house = self._partial, self._house
        doubted = PieceSet(partial.pieces.count, partial.have.bits & ~partial.trusted.bits)
        sources = ", ".join(sorted(self._fetcher.received)) or "an earlier run"
        log.error("%s: the bytes from %s do not match the digest; dropped", self._digest, sources)
        if doubted:
            house.doubted[self._digest] = {p: (partial.piece_digests[p], self._fetcher.source_of(p)) for p in doubted}
        # Before readers are disconnected: some will ask for the rest at once. Readers of ranges get only trusted bytes,
        # which are not what is wrong while there are others.
        if self._fill.was_read:
            house.disproved(self._digest, self._fill.was_read_in_ranges and not doubted)
        if not doubted:
            doubted = partial.have.copy()
            house.stats.reject(ORIGIN, len(doubted))
        self._fill.finish(BlobCorrupt(f"the bytes that arrived for {self._digest} are not what it names"))
        partial.drop_surely(doubted)
