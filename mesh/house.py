"""What all swarms of one node share."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from mesh.errors import PieceCorrupt
from mesh.limiter import Limiter
from mesh.slots import Slots
from mesh.threads import NICE_OF_PROOFS, bulk_pool
from mesh.transfer import Connections, Location

if TYPE_CHECKING:
    from mesh.content import Digest
    from mesh.errors import SourceFailed
    from mesh.messages import Plan, Report
    from mesh.stats import Stats
    from mesh.store import Store
    from mesh.tasks import Tasks

_THREADS = 64  # transfers at the same time, whatever they are for
_PROOFS = 8  # blobs that are being hashed at the same time
_ORIGIN_CONNECTIONS = 32
_OF_PEERS = 16  # threads that are left for pieces of peers, however many blobs come from the origin


class Exchange(Protocol):
    """The way to whoever tracks a blob, be it this node itself."""

    def is_alone(self, digest: Digest) -> bool:
        """Whether there is no other node that could have anything of this blob."""

    def is_wanted(self, digest: Digest) -> bool:
        """Whether others still miss something of a blob that is tracked here."""

    def tracker_of(self, digest: Digest) -> str:
        """The id of the node that a report goes to now."""

    def is_local(self, digest: Digest) -> bool:
        """Whether this node tracks the blob: then a report costs next to nothing."""

    def interval(self, digest: Digest) -> float:
        """Seconds to leave between two reports, however much there is to say."""

    def subscribe(self, digest: Digest, size: int, news: Callable[[], None]) -> Callable[[], None]:
        """Have `news` called when a new report may bring tasks at once; returns how to end that."""

    async def report(self, digest: Digest, size: int, report: Report, hint: bytes) -> Plan:
        """Tell the tracker what changed and learn what to do. It may wait a little until there is something.

        Raises Unavailable when no tracker answers.
        """

    @property
    def is_crowd(self) -> bool:
        """Whether so many nodes may want the same at once that it can take long until this one has a turn."""

    @property
    def is_strained(self) -> bool:
        """Whether this node is itself too slow to judge others."""

    def doubt(self, digest: Digest) -> None:
        """The tracker of this blob left readers without a byte, again."""

    async def resign(self, digest: Digest, size: int, fetched: int) -> None:
        """This node's part ends without the whole: nothing can be had here, and what it was sent for is free."""

    def ended(self, digest: Digest, *, is_complete: bool) -> None:
        """This node's part in the swarm has ended."""

    def announce(self, digest: Digest) -> None:
        """A blob is here, or may be shared, that was not before."""


class Peers(Protocol):
    """The other nodes, as sources of pieces."""

    @property
    def is_keyed(self) -> bool:
        """Whether piece digests that the tracker passes on can be believed: everybody in it holds the key."""

    def locate(self, node: str, digest: Digest, start: int, stop: int) -> Location:
        """Where a peer serves these bytes of a blob. Raises SourceFailed when the peer is not known (any more)."""

    def heard(self, node: str) -> None:
        """A peer delivered: it is alive, however slowly it answers."""

    def blame(self, node: str, error: SourceFailed) -> None:
        """A peer sent wrong bytes."""


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
    # Told of a blob when bytes that were here, and that clients may have been sent, turned out not to be it.
    # `is_trusted`: all of them were from sources beyond doubt, so that readers of ranges got some as well.
    disproved: Disproved = lambda digest, is_trusted: None
    # Told of a blob that has come in, and who sent how many bytes of it: node ids, and the origin.
    brought: Callable[[Digest, dict[str, int]], None] = lambda digest, sources: None
    # Pieces that were part of a failed proof and that nobody vouches for: their BLAKE3 digest and their source.
    doubted: dict[Digest, dict[int, tuple[bytes, str]]] = field(default_factory=dict)
    origin_connections: Connections = field(default_factory=Connections)
    peer_connections: Connections = field(default_factory=lambda: Connections(proxies=False))
    origin_limiter: Limiter = field(default_factory=lambda: Limiter(None))
    peer_limiter: Limiter = field(default_factory=lambda: Limiter(None))
    origin_slots: Slots = field(default_factory=lambda: Slots(_ORIGIN_CONNECTIONS, _THREADS - _OF_PEERS))  # by blob
    pool: ThreadPoolExecutor = field(default_factory=lambda: bulk_pool(_THREADS, "intake"))
    proofs: ThreadPoolExecutor = field(default_factory=lambda: bulk_pool(_PROOFS, "proof", NICE_OF_PROOFS))

    def resolve_doubt(self, digest: Digest, piece: int, blake3: bytes) -> None:
        """A piece is here from a source beyond doubt. If it was part of a failed proof: did its first source lie?"""
        doubted = self.doubted.get(digest)
        if doubted and piece in doubted:
            before, source = doubted.pop(piece)
            if before != blake3 and source:
                self.stats.reject(source)
                self.peers.blame(source, PieceCorrupt(source, f"sent wrong bytes for piece {piece}"))
            if not doubted:
                del self.doubted[digest]

    def close(self) -> None:
        self.origin_connections.close()
        self.peer_connections.close()
        self.pool.shutdown(wait=False, cancel_futures=True)
        self.proofs.shutdown(wait=False, cancel_futures=True)
