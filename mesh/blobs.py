"""All blobs of this node behind one interface, whether complete, arriving, or still to be fetched."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping

from mesh.access import OriginAccess
from mesh.adopt import Taken
from mesh.blob import Blob
from mesh.content import Digest, Pieces
from mesh.errors import MeshError, SourceFailed, StoreFull, StoreUnusable, Unavailable
from mesh.fill import Reader
from mesh.house import House
from mesh.proof import piece_digest
from mesh.stated import Manifests
from mesh.swarm import Swarm

log = logging.getLogger(__name__)

# Seconds a reader waits for the new proof of a blob in doubt. Clients give up after 10 s without a byte.
_PROOF_SECONDS = 5.0


class Blobs:
    """The only way to a blob's bytes. Belongs to the event loop's thread."""

    def __init__(self, house: House) -> None:
        self.manifests = Manifests(house.store.manifest)
        self._house = house
        self._swarms: dict[Digest, Swarm] = {}
        self._lives: dict[Digest, asyncio.Task[None]] = {}
        self._adopting: dict[Digest, asyncio.Event] = {}
        self._proofs: dict[Digest, asyncio.Task[None]] = {}
        self._is_closing = False

    @property
    def swarms(self) -> Mapping[Digest, Swarm]:
        """The swarms of the blobs that are arriving now."""
        return self._swarms

    @property
    def is_crowd(self) -> bool:
        """Whether so many nodes may want the same blob at once that this node can wait long for its turn."""
        return self._house.exchange.is_crowd

    async def read(
        self,
        digest: Digest,
        size: int,
        start: int,
        stop: int,
        access: OriginAccess | None,
        *,
        is_whole: bool,
        is_public: bool = True,
    ) -> Blob | Reader:
        """Open the bytes from `start` up to `stop` as a source for `Outflow`; close it when done.

        Returns a complete blob, or a reader that follows the bytes as they arrive. `access` is this client's way to
        the origin; None when the origin cannot be asked. `is_public`: anyone can get the blob from the origin.

        Raises StoreFull and StoreUnusable; SourceFailed while the blob is in doubt; Unavailable when the node is
        stopping, or knows the blob with another size.
        """
        if is_public:
            self.mark_public(digest)
        while True:
            blob = self._house.store.open(digest, size)
            if blob is not None:
                return blob
            if is_whole and digest not in self._swarms:
                self._house.store.check_fits(digest, size)
            swarm = await self._swarm(digest, size)
            if swarm is not None:
                return swarm.read(start, stop, access, is_whole=is_whole)

    def holds(self, digest: Digest) -> bool:
        """Whether a whole blob can be read without fetching any of its bytes."""
        swarm = self._swarms.get(digest)
        return digest in self._house.store or (swarm is not None and swarm.fill.is_proven)

    async def want(self, digest: Digest, size: int, access: OriginAccess | None, *, is_public: bool = True) -> None:
        """Fetch a whole blob without reading it; returns when it is complete.

        Raises as `read` does, or the error that ended the fill.
        """
        if is_public:
            self.mark_public(digest)
        while digest not in self._house.store:
            if digest not in self._swarms:
                self._house.store.check_fits(digest, size)
            swarm = await self._swarm(digest, size)
            if swarm is not None:
                swarm.want(access)
                while not swarm.is_over:
                    await swarm.fill.changed()
                if swarm.fill.error is not None:
                    raise swarm.fill.error
                return

    def check_fit(self, sizes: Mapping[Digest, int]) -> None:
        """Raise StoreFull if blobs of these sizes (bytes) cannot be held at the same time, whatever is evicted."""
        store = self._house.store
        if (total := sum(sizes.values())) > store.max_size:
            raise StoreFull(f"{total} bytes in all can never fit in --max-size {store.max_size}")
        if lacking := [digest for digest in sizes if digest not in store]:
            largest = max(lacking, key=sizes.__getitem__)  # checking each of many blobs would take long
            store.check_fits(largest, sizes[largest])

    def mark_public(self, digest: Digest) -> None:
        """Record that anyone can get this blob from the origin, so that it may be shared in an open mesh."""
        if not self._house.store.is_public(digest):
            self._house.store.mark_public(digest)
            if digest in self._house.store:
                self._house.exchange.announce(digest)

    async def help(self, digest: Digest, size: int, access: OriginAccess) -> None:
        """Fetch a blob for other nodes by joining its swarm. The caller knows that it is public and has this size."""
        self.mark_public(digest)
        if digest not in self._house.store and (swarm := await self._swarm(digest, size)) is not None:
            swarm.help(access)

    async def adopt(self, digest: Digest, size: int, taken: Taken) -> bool:
        """Make a proven file the blob, replacing what is here of it; False when that is in use, so try again later.

        Raises OSError.
        """
        if digest in self._swarms or digest in self._adopting:
            return False
        done = self._adopting[digest] = asyncio.Event()
        try:
            await self._house.store.adopt(digest, size, taken.staged, taken.pieces, taken.stamp)
        finally:
            del self._adopting[digest]
            done.set()
        self._house.exchange.announce(digest)
        return True

    async def prove_again(self, digest: Digest) -> None:
        """Prove a blob in doubt again. Raises SourceFailed when that takes longer than _PROOF_SECONDS."""
        await asyncio.wait([self.begin_proof(digest)], timeout=_PROOF_SECONDS)
        if digest in self._house.store.doubts:
            raise SourceFailed("disk", f"{digest} is read anew: something was done to its file", 2.0)

    def begin_proof(self, digest: Digest) -> asyncio.Task[None]:
        """Start to prove a blob in doubt, unless that is under way; returns the task."""
        if (proof := self._proofs.get(digest)) is None:
            self.manifests.forget(digest)
            proof = self._house.tasks.start(self._house.store.doubts.settle(digest), name=f"proof {digest}")
            self._proofs[digest] = proof
            proof.add_done_callback(lambda _: self._proofs.pop(digest))
        return proof

    async def check(self, digest: Digest, piece: int) -> None:
        """Read a piece of a complete blob again, and prove the blob anew if the piece is not as it was."""
        with contextlib.suppress(StoreUnusable):
            if (blob := self._house.store.open(digest)) is None:
                return
            with blob:
                known = self._house.store.manifest(digest, blob.size).get(piece)
                if known is None:
                    return
                span, loop = Pieces.of(blob.size).span(piece), asyncio.get_running_loop()
                try:
                    found = await loop.run_in_executor(self._house.proofs, piece_digest, blob.fd, *span)
                except OSError as error:
                    log.warning("cannot read piece %d of %s: %s", piece, digest, error)
                    found = b""
            if found != known:
                log.warning("piece %d of %s is not as it was when it was proven", piece, digest)
                self._house.store.doubts.add(digest)
                self.begin_proof(digest)

    async def settle_doubts(self) -> None:
        """Prove all blobs in doubt again, one after the other, before a reader has to wait for one."""
        async for digest in self._house.store.doubts:
            await asyncio.wait([self.begin_proof(digest)])

    async def close(self) -> None:
        """End all swarms. The pieces that have arrived are kept for the next start."""
        self._is_closing = True
        for life in list(self._lives.values()):
            life.cancel()
        await asyncio.gather(*self._lives.values(), return_exceptions=True)

    async def _swarm(self, digest: Digest, size: int) -> Swarm | None:
        """Return the live swarm of a blob, starting it if needed; None when the caller has to look at the store again.

        Raises Unavailable, SourceFailed, StoreFull and StoreUnusable.
        """
        if self._is_closing:
            raise Unavailable("the node is stopping")
        if (adopted := self._adopting.get(digest)) is not None:
            await adopted.wait()
            return None
        if digest in self._house.store.doubts:
            await self.prove_again(digest)
            return None
        swarm = self._swarms.get(digest)
        if swarm is not None and swarm.is_over:
            await asyncio.wait([self._lives[digest]])
            return None
        if swarm is None:
            try:
                partial = self._house.store.open_partial(digest, size)
            except StoreFull:
                if not await self._house.store.evict(Pieces.of(size).piece_size):
                    raise
                return None
            swarm = self._swarms[digest] = Swarm(self._house, partial)
            self._lives[digest] = self._house.tasks.start(self._live(swarm), name=f"swarm {digest}")
        elif swarm.size != size:
            raise Unavailable(f"{digest} is said to have {size} bytes here and {swarm.size} elsewhere")
        return swarm

    async def _live(self, swarm: Swarm) -> None:
        try:
            await swarm.run()
        except MeshError as error:  # the swarm could not start
            swarm.fill.finish(error)
        finally:
            if not swarm.fill.is_over:  # after an unexpected error, so that no reader is left waiting
                swarm.fill.finish(Unavailable(f"{swarm.digest}: fetching it failed; the log says why"))
            del self._swarms[swarm.digest], self._lives[swarm.digest]
            self._house.exchange.ended(swarm.digest, is_complete=swarm.fill.is_stored)
            self._house.store.close_partial(swarm.fill.partial)
