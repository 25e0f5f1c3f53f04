"""What the node's own pages need to know of it, and may ask it to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from mesh.stats import Stats


@dataclass(frozen=True, slots=True)
class PeerView:
    """Another node, as this one sees it."""

    node_id: str
    address: str  # HOST:PORT of its mesh port
    role: str
    is_alive: bool
    seen_seconds_ago: float


@dataclass(frozen=True, slots=True)
class BlobView:
    """A blob, complete or partial. Sizes in bytes; `sources` says who sent how many as it came in, when known."""

    digest: str
    size: int  # 0 when it is partial and nobody here knows how large it will be
    have: int
    repo: str | None  # "models/owner/name"; None when the catalog does not know who has it
    path: str | None
    is_pinned: bool = False
    used_at: float = 0.0  # seconds since the epoch
    sources: Mapping[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class RepositoryView:
    """What a node holds of one repository. Sizes in bytes: what its blobs have, and what of that is here."""

    repo: str  # "models/owner/name"; empty for blobs that nobody knows by name
    files: int = 0
    size: int = 0
    have: int = 0
    is_pinned: bool = False
    used_at: float = 0.0  # seconds since the epoch


def by_repository(blobs: Iterable[BlobView]) -> list[RepositoryView]:
    """Blobs summed up, by name."""
    sums: dict[str, RepositoryView] = {}
    for blob in blobs:
        repo = blob.repo or ""
        if (held := sums.get(repo)) is None:
            held = sums[repo] = RepositoryView(repo)
        held.files += 1
        held.size += blob.size
        held.have += blob.have
        held.is_pinned |= blob.is_pinned
        held.used_at = max(held.used_at, blob.used_at)
    return [sums[repo] for repo in sorted(sums)]


@dataclass(frozen=True, slots=True)
class DownloadView:
    """A blob that is arriving now."""

    digest: str
    size: int
    have: int
    repo: str | None
    path: str | None
    began_at: float  # seconds since the epoch
    readers: int
    # One letter a piece: "." missing, "-" under way, "o" from the origin, "p" from a peer, "#" was here before.
    pieces: str = ""
    sources: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class UsageView:
    """Bytes of disk: what blobs take, what they may take, what was evicted since the start."""

    blob_bytes: int
    max_bytes: int
    evicted_bytes: int


@dataclass(frozen=True, slots=True)
class Removed:
    """What came of removing a repository: bytes that are free now, and how many of its files stay."""

    freed: int
    in_use: int = 0  # somebody reads them, or they arrive just now
    pinned: int = 0  # a repository that is pinned has them too


@dataclass(frozen=True, slots=True)
class Preheat:
    """An order to bring in a repository before anybody asks for it."""

    repo: str  # "models/owner/name"
    revision: str
    include: tuple[str, ...] = ()  # globs over paths; empty: everything
    exclude: tuple[str, ...] = ()
    nodes: int | None = 1  # how many nodes shall have it, this one first; None: all
    token: str | None = field(default=None, repr=False)


class NodeView(Protocol):
    """A running node. Repositories are named as ``models/owner/name``."""

    @property
    def node_id(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def role(self) -> str: ...
    @property
    def stats(self) -> Stats: ...
    def ready(self) -> tuple[bool, str]:
        """Whether clients should be sent here, and if not, why."""

    def usage(self) -> UsageView: ...
    def peers(self) -> Sequence[PeerView]: ...
    def downloads(self) -> Sequence[DownloadView]: ...

    async def blobs(self, *, with_sources: bool = False) -> Sequence[BlobView]:
        """All that is here. `sources` takes a look at the disk for each, so it is empty unless it is asked for."""

    async def pin(self, repo: str, revision: str | None) -> int:
        """Protect from eviction what is here of a repository (of all revisions if None); how many files that is.

        Raises LookupError when nothing of it is here.
        """

    async def unpin(self, repo: str) -> int:
        """Take all pins of a repository back; how many files that freed for eviction. Raises LookupError."""

    async def remove(self, repo: str) -> Removed:
        """Drop a repository and its pin, but for files that are in use or that a pinned one has too.

        What is in use keeps its pin. Raises LookupError when nothing of it is here, and StoreUnusable when the disk
        refuses to let a file go.
        """

    async def preheat(self, order: Preheat) -> int:
        """Begin to bring a repository in; how many files it concerns. The rest happens in the background.

        Raises the same errors as a client's requests for its file list and for a file of it would, and StoreFull.
        """
