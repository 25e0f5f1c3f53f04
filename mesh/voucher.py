"""The origin's confirmation of pieces from peers without a key, when a reader of a range waits for them.

Without the key of a mesh, only the digest of the whole blob proves what peers send. A reader of the whole blob waits
for that; a reader of a range of a blob that is still arriving could wait for hours. So the piece is fetched again, from
the origin, and its BLAKE3 digest compared with that of the bytes here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from blake3 import blake3

from mesh.errors import LocationRefused, MeshError
from mesh.messages import ORIGIN
from mesh.transfer import Location, Transfer

if TYPE_CHECKING:
    from mesh.fetcher import Fetcher
    from mesh.fill import Fill
    from mesh.house import House

log = logging.getLogger(__name__)

_PAUSE = 1.0  # seconds after a failure


class Voucher:
    """Checks pieces of one fill, and calls `disproved` if the origin contradicts one. For the event loop's thread."""

    def __init__(self, house: House, fill: Fill, fetcher: Fetcher, disproved: Callable[[], None]) -> None:
        self._house = house
        self._fill = fill
        self._partial = fill.partial
        self._fetcher = fetcher
        self._disproved = disproved
        self._asked: set[int] = set()

    def look(self) -> None:
        """Begin to check the pieces that readers of ranges wait for."""
        partial = self._partial
        for reader in self._fill.readers:
            if reader.is_whole or not self._fetcher.can_fetch:
                continue
            end = reader.frontier()
            piece = end // partial.pieces.piece_size
            if (
                end < reader.stop
                and piece in partial.have
                and piece not in partial.trusted
                and piece not in self._asked
            ):
                self._asked.add(piece)
                self._house.tasks.start(self._ask(piece), name=f"vouch for {piece} of {partial.digest}")

    async def _ask(self, piece: int) -> None:
        location: Location | None = None
        try:
            async with self._house.origin_slots.one(self._partial.digest):
                location = await self._fetcher.ways.locate()
                digest = await self._hash(piece, location)
        except LocationRefused as error:
            await self._fetcher.refused(location, error)
            await asyncio.sleep(_PAUSE)
        except MeshError as error:
            log.info("%s: the origin does not vouch for piece %d yet: %s", self._partial.digest, piece, error)
            await asyncio.sleep(_PAUSE)
        else:
            if self._fill.is_over or piece not in self._partial.have:
                return
            if digest != self._partial.piece_digests[piece]:
                self._disproved()
                return
            self._partial.trusted.add(piece)
            self._fill.wake()
        finally:
            self._asked.discard(piece)

    async def _hash(self, piece: int, location: Location) -> bytes:
        """BLAKE3 digest of a piece as the origin has it. Raises what `Transfer.run` raises."""
        start, stop = self._partial.pieces.span(piece)
        hasher = blake3()

        def sink(view: memoryview) -> None:
            self._house.origin_limiter.take(len(view))
            self._house.stats.add("origin_received", len(view))
            hasher.update(view)

        transfer = Transfer(ORIGIN, location, start, stop, self._partial.size)
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._house.pool, transfer.run, self._house.origin_connections, sink)
        except asyncio.CancelledError:
            transfer.cancel()  # or its thread would receive the whole piece, and a node that stops would wait for it
            raise
        return hasher.digest()
