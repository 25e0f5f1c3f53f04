"""The parts of a node that all its swarms share, and the interfaces through which swarms reach other nodes."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from mesh.bounded import Bounded
from mesh.errors import PieceCorrupt, SourceDishonest
from mesh.limiter import Limiter
from mesh.line import Line
from mesh.slots import Slots
from mesh.threads import NICE, NICE_OF_PROOFS, Pool
from mesh.transfer import Connections, Location

if TYPE_CHECKING:
    from mesh.content import Digest
    from mesh.errors import SourceFailed
    from mesh.messages import Plan, Report
    from mesh.stats import Stats
    from mesh.store import Store
    from mesh.tasks import Tasks

log = logging.getLogger(__name__)

_THREADS = 64  # concurrent transfers, each in a thread of its own
_PROOFS = 8  # blobs that are proven concurrently
_ORIGIN_CONNECTIONS = 32  # used concurrently; a blob that has none may go beyond this
_MAX_SERVED = 64  # peers of which it is known when they last sent a piece
_MAX_SUSPECTS = 256  # peers; in an open mesh a node may use any number of names
_OF_PEERS = 16  # threads reserved for transfers from peers, however many blobs come from the origin


class Exchange(Protocol):
    """The way to the tracker of a blob, which may be this node itself."""

    def is_alone(self, digest: Digest) -> bool:
        """Return whether no other node can hold a piece of this blob."""

    def is_wanted(self, digest: Digest) -> bool:
        """Return whether other nodes still lack pieces of a blob that is tracked here."""

    def tracker_of(self, digest: Digest) -> str:
        """Return the id of the node that a report goes to now."""

    def is_local(self, digest: Digest) -> bool:
        """Return whether this node tracks the blob, so that a report costs next to nothing."""

    def interval(self, digest: Digest) -> float:
        """Return the seconds to leave between two reports, however much there is to say."""

    def subscribe(self, digest: Digest, size: int, news: Callable[[], None]) -> Callable[[], None]:
        """Have `news` called when a new report may bring tasks at once; returns a function that ends this.

        Raises Unavailable when this node cannot track the blob.
        """

    async def report(self, digest: Digest, size: int, report: Report, hint: bytes) -> Plan:
        """Tell the tracker what changed and return its plan. It may wait a little until it has tasks to give.

        Raises Unavailable when the tracker gives no usable answer.
        """

    @property
    def is_crowd(self) -> bool:
        """Whether so many nodes may want the same blob at once that this node can wait long for its turn."""

    @property
    def is_strained(self) -> bool:
        """Whether this node is itself too slow to judge others."""

    def doubt(self, digest: Digest) -> None:
        """Report that the tracker of this blob leaves readers without a byte."""

    async def resign(self, digest: Digest, size: int, fetched: int) -> None:
        """Leave the swarm without the whole blob: this node offers no piece any more, and gives its tasks up."""

    def ended(self, digest: Digest, *, is_complete: bool) -> None:
        """Record that this node's part in the swarm has ended."""

    def announce(self, digest: Digest) -> None:
        """Have the tracker told of a blob that is newly complete here, or may newly be shared."""


class Peers(Protocol):
    """The other nodes, as sources of pieces."""

    @property
    def is_keyed(self) -> bool:
        """Whether membership is restricted, so that piece digests passed on by the tracker can be believed."""

    def locate(self, node: str, digest: Digest) -> Location:
        """Return where a peer serves a blob.

        Raises SourceFailed when the peer is not known (any more), SourceBanned after it sent wrong bytes.
        """

    def heard(self, node: str) -> None:
        """Record that a peer delivered a piece: it is alive, however slowly it answers."""

    def blame(self, node: str, error: SourceFailed) -> None:
        """Stop using a peer for a while, because it sent wrong bytes."""

    async def complain(self, error: PieceCorrupt) -> None:
        """Tell a peer which piece it sent was wrong. Failures are ignored."""


Disproved = Callable[["Digest", bool], None]


@dataclass(slots=True)
class House:
    """The parts of a node that move bytes. Times are seconds, rates bytes per second."""

    node_id: str
    store: Store
    stats: Stats
    tasks: Tasks
    exchange: Exchange
    peers: Peers
    # Called when the bytes of a blob fail its proof and clients may have received some of them.
    # `of_ranges`: readers of ranges may have received some as well.
    disproved: Disproved = lambda digest, of_ranges: None
    # Called when a blob is complete, with the bytes received from each source: node ids, and the origin.
    brought: Callable[[Digest, dict[str, int]], None] = lambda digest, sources: None
    # By blob: the untrusted pieces that were part of a failed proof, each with its BLAKE3 digest and its source.
    doubted: dict[Digest, dict[int, tuple[bytes, str]]] = field(default_factory=dict)
    # By peer: the last blob of which it sent a wrong piece that it may only have passed on.
    suspects: dict[str, Digest] = field(default_factory=lambda: Bounded(_MAX_SUSPECTS))
    origin_connections: Connections = field(default_factory=Connections)
    peer_connections: Connections = field(default_factory=lambda: Connections(proxies=False))
    origin_limiter: Limiter = field(default_factory=lambda: Limiter(None))
    peer_limiter: Limiter = field(default_factory=lambda: Limiter(None))
    origin_slots: Slots = field(default_factory=lambda: Slots(_ORIGIN_CONNECTIONS, _THREADS - _OF_PEERS))  # by blob
    line: Line = field(default_factory=Line)
    pool: Pool = field(default_factory=lambda: Pool(_THREADS, "intake", NICE))
    proofs: Pool = field(default_factory=lambda: Pool(_PROOFS, "proof", NICE_OF_PROOFS))

    # By peer: when it last sent a piece, and of which blob.
    _served: dict[str, tuple[float, Digest]] = field(default_factory=lambda: Bounded(_MAX_SERVED))

    def served(self, peer: str, digest: Digest) -> None:
        """Record that a peer delivered a piece of a blob."""
        self.peers.heard(peer)
        self._served[peer] = time.monotonic(), digest

    def served_other_at(self, peer: str, digest: Digest) -> float:
        """Return the monotonic time of a peer's last piece, if that was of another blob than `digest`; else -inf."""
        at, last = self._served.get(peer, (-math.inf, digest))
        return at if last != digest else -math.inf

    def resolve_doubt(self, digest: Digest, piece: int, blake3: bytes) -> None:
        """Suspect the source of a piece in a failed proof if a trusted source has now sent different bytes for it."""
        doubted = self.doubted.get(digest)
        if doubted and piece in doubted:
            before, source = doubted.pop(piece)
            if before != blake3 and source:
                self._suspect(PieceCorrupt(source, digest, piece))
            if not doubted:
                del self.doubted[digest]

    def _suspect(self, error: PieceCorrupt) -> None:
        """Blame a source for a wrong piece only at the second blob: it may just have passed the first one on."""
        before = self.suspects.get(error.source)
        if before == error.digest:  # more pieces of the same failed proof
            self.stats.reject(error.source)
            return
        self.suspects[error.source] = error.digest
        if before is not None:
            self.blame(error)
            return
        self.stats.reject(error.source)
        log.warning(
            "what %s sent for piece %d of %s was wrong, perhaps already at its source; it is asked again",
            error.source,
            error.piece,
            error.digest,
        )
        self._complain(error)

    def blame(self, error: SourceDishonest) -> None:
        """Stop using a peer for a while. If a piece was wrong, have the peer check its own copy of that piece."""
        self.stats.reject(error.source)
        self.peers.blame(error.source, error)
        if isinstance(error, PieceCorrupt):
            self._complain(error)

    def _complain(self, error: PieceCorrupt) -> None:
        self.tasks.start(self.peers.complain(error), name=f"complaint about {error.source}")

    def close(self) -> None:
        self.origin_connections.close()
        self.peer_connections.close()
        self.pool.shutdown(wait=False, cancel_futures=True)
        self.proofs.shutdown(wait=False, cancel_futures=True)
