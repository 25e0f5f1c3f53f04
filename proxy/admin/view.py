"""The interface between the node and its own pages: what they show of it, and what they can ask it to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from mesh.stats import Stats


@dataclass(frozen=True, slots=True)
class PeerView:
    """A peer, as this node sees it."""

    node_id: str
    address: str  # HOST:PORT of its mesh port
    role: str
    is_alive: bool
    seen_seconds_ago: float


@dataclass(frozen=True, slots=True)
class BlobView:
    """A blob, complete or partial. `size` and `have` in bytes; `sources` maps sources to the bytes that they sent."""

    digest: str
    size: int
    have: int
    repo: str | None  # "models/owner/name"; None when the catalog has no name for it
    path: str | None
    is_pinned: bool = False
    used_at: float = 0.0  # seconds since the epoch
    sources: Mapping[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class RepositoryView:
    """The blobs of one repository that a node holds. `size` is their size in bytes, `have` how much of it is here."""

    repo: str  # "models/owner/name"; empty for blobs without a known name
    files: int = 0
    size: int = 0
    have: int = 0
    is_pinned: bool = False
    used_at: float = 0.0  # seconds since the epoch


def by_repository(blobs: Iterable[BlobView]) -> list[RepositoryView]:
    """Blobs summed up by repository, in the order of their names."""
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
    """A blob that is being fetched now."""

    digest: str
    size: int
    have: int
    repo: str | None
    path: str | None
    began_at: float  # seconds since the epoch
    readers: int
    # One letter for each piece: "." missing, "-" being fetched, "o" from the origin, "p" from a peer, "#" here before.
    pieces: str = ""
    sources: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class UsageView:
    """Disk usage in bytes: what blobs take, what they may take, what was evicted since the start."""

    blob_bytes: int
    max_bytes: int
    evicted_bytes: int


@dataclass(frozen=True, slots=True)
class Removed:
    """The result of removing a repository: bytes freed, and how many of its files stay."""

    freed: int
    in_use: int = 0  # being read or fetched
    pinned: int = 0  # shared with another repository that is pinned


@dataclass(frozen=True, slots=True)
class Preheat:
    """An order to fetch a repository before a client asks for it."""

    repo: str  # "models/owner/name"
    revision: str
    include: tuple[str, ...] = ()  # globs over paths; empty: all files
    exclude: tuple[str, ...] = ()
    nodes: int | None = 1  # how many nodes are to have it, this one first; None: all
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
    def settings(self) -> Sequence[str]:
        """The names of the settings that are not at their defaults: not their values, which may be private."""

    @property
    def stats(self) -> Stats: ...
    def ready(self) -> tuple[bool, str]:
        """Whether clients should be sent here, and if not, why."""

    def usage(self) -> UsageView: ...
    def peers(self) -> Sequence[PeerView]: ...
    def downloads(self) -> Sequence[DownloadView]: ...

    async def blobs(self, *, with_sources: bool = False) -> Sequence[BlobView]:
        """All blobs that are here. `sources` costs a disk access for each, so it is empty unless asked for."""

    async def pin(self, repo: str, revision: str | None) -> int:
        """Protect from eviction what is here of a repository (of all revisions if None); returns the number of files.

        Raises LookupError when nothing of it is here, and StoreUnusable when the pins cannot be written.
        """

    async def unpin(self, repo: str) -> int:
        """Remove all pins of a repository; returns how many files that freed for eviction.

        Raises LookupError when it is not pinned, and StoreUnusable when the pins cannot be written.
        """

    async def remove(self, repo: str) -> Removed:
        """Drop a repository and its pin, except files that are in use or that another pinned repository has.

        Files in use keep their pin. Raises LookupError when nothing of it is here, and StoreUnusable when a file cannot
        be removed or the pins cannot be written.
        """

    async def preheat(self, order: Preheat) -> int:
        """Start fetching a repository in the background; returns the number of files.

        Raises the same errors as a client's requests for its file list and for one of its files would, and StoreFull.
        """
