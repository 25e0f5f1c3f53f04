"""What can go wrong with a blob, split by who is at fault."""

from __future__ import annotations

from typing import ClassVar

from mesh.messages import Reason


class MeshError(Exception):
    """Base of everything this package raises on purpose."""


class StoreFull(MeshError):
    """Our disk: there is no room for these bytes, and nothing left that may be evicted."""


class StoreBusy(StoreFull):
    """Our disk: what could make room for these bytes is in use just now."""


class StoreInUse(MeshError):
    """Our disk: another process already works in this data directory."""


class StoreUnusable(MeshError):
    """Our disk: the data directory cannot be read or written."""


class SourceFailed(MeshError):
    """A source (the origin or a peer) could not give the bytes it was asked for.

    `retry_after` is in seconds, when the source itself named a time. `failure` is what the tracker is told of a peer.
    """

    failure: ClassVar[Reason] = "refused"

    def __init__(self, source: str, reason: str, retry_after: float | None = None) -> None:
        super().__init__(f"{source}: {reason}")
        self.source = source
        self.reason = reason
        self.retry_after = retry_after


class SourceLate(SourceFailed):
    """A source kept silent, or was broken off because it took too long."""

    failure = "timeout"


class SourceBusy(SourceFailed):
    """A source has too much to do, and says so (429, 503)."""

    failure = "busy"


class SourceDishonest(SourceFailed):
    """A source sent what none would that means well: wrong bytes, or an answer that is not to what it was asked."""

    failure = "corrupt"


class PieceCorrupt(SourceDishonest):
    """A source sent a piece whose bytes are not those its digest names."""


class LocationRefused(SourceFailed):
    """The address has expired or was refused (401, 403, 404, 410): ask for a new one."""

    failure = "missing"


class RangeIgnored(SourceFailed):
    """The source answers every request with the whole blob."""


class SourceBanned(SourceFailed):
    """A peer that sent wrong bytes before is not asked again for a while."""

    failure = "corrupt"


class BlobCorrupt(MeshError):
    """The bytes that arrived are not the blob that was named: its digest does not match."""


class Unavailable(MeshError):
    """No source can supply the bytes now, or a node gives no useful answer."""


class Unreachable(Unavailable):
    """Nobody listens where a node should be."""
