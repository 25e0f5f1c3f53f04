"""The exceptions of `mesh`, divided by who is at fault."""

from __future__ import annotations

from typing import ClassVar

from mesh.content import Digest
from mesh.messages import Reason


class MeshError(Exception):
    """Base of all exceptions that this package raises deliberately."""


class StoreFull(MeshError):
    """Local disk: there is no room for these bytes, and nothing left that may be evicted."""


class StoreBusy(StoreFull):
    """Local disk: the blobs that could be evicted for these bytes are in use now."""


class StoreInUse(MeshError):
    """Local disk: another process already uses this data directory."""


class StoreUnusable(MeshError):
    """Local disk: the data directory cannot be read or written."""


class TooManyFiles(StoreUnusable):
    """This process: it has as many files and connections open as it may. It may have room for more soon."""


class SourceFailed(MeshError):
    """A source (the origin or a peer) could not supply the requested bytes.

    `retry_after` is in seconds, set when the source named a time. `failure` is the reason reported to the tracker when
    the source is a peer.
    """

    failure: ClassVar[Reason] = "refused"

    def __init__(self, source: str, reason: str, retry_after: float | None = None) -> None:
        super().__init__(f"{source}: {reason}")
        self.source = source
        self.reason = reason
        self.retry_after = retry_after


class SourceLate(SourceFailed):
    """A source was silent, or its transfer was cancelled because it took too long."""

    failure = "timeout"


class SourceBusy(SourceFailed):
    """A source answered that it is overloaded (429, 503)."""

    failure = "busy"


class SourceDishonest(SourceFailed):
    """A source sent what an honest one would not: wrong bytes, or an answer that does not match the request."""

    failure = "corrupt"


class PieceCorrupt(SourceDishonest):
    """A source sent a piece of a blob whose bytes do not match the piece's digest."""

    def __init__(self, source: str, digest: Digest, piece: int) -> None:
        super().__init__(source, f"sent wrong bytes for piece {piece} of {digest}")
        self.digest = digest
        self.piece = piece


class LocationRefused(SourceFailed):
    """A location has expired or was refused (401, 403, 404, 410): ask for a new one."""


class NotHere(LocationRefused):
    """A source answered that it does not have the blob, or not these bytes of it (404, 410)."""

    failure = "missing"


class RangeIgnored(SourceFailed):
    """A source answers a range request with the whole blob."""


class SourceBanned(SourceFailed):
    """A peer is not asked now, because it sent wrong bytes before."""

    failure = "corrupt"


class BlobCorrupt(MeshError):
    """The bytes that arrived do not match the blob's digest."""


class Unavailable(MeshError):
    """No source can supply the bytes now, or a node gives no usable answer."""


class Refused(Unavailable):
    """A node answers a message with an HTTP status that is an error."""

    def __init__(self, node: str, status: int) -> None:
        super().__init__(f"{node} answers HTTP {status}")
        self.status = status


class Unreachable(Unavailable):
    """A node cannot be connected to, or the connection broke before it answered."""
