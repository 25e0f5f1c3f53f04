"""What a node holds and did, as JSON, for people's tools, the dashboard and `hubmesh status`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from proxy.admin.metrics import Metrics
from proxy.admin.view import BlobView, DownloadView, NodeView, PeerView, UsageView


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The document at `/-/status`. `metrics` has the figures of `/-/metrics` under the same names."""

    node_id: str
    version: str
    role: str
    ready: bool
    reason: str  # why not ready; empty when it is
    usage: UsageView
    metrics: Mapping[str, float]
    peers: Sequence[PeerView]
    blobs: Sequence[BlobView]
    downloads: Sequence[DownloadView]


async def status_of(node: NodeView, metrics: Metrics) -> Status:
    """Everything about a node at this moment."""
    is_ready, reason = node.ready()
    return Status(
        node_id=node.node_id,
        version=node.version,
        role=node.role,
        ready=is_ready,
        reason="" if is_ready else reason,
        usage=node.usage(),
        metrics=metrics.figures(),
        peers=node.peers(),
        blobs=await node.blobs(with_sources=True),
        downloads=node.downloads(),
    )


def encode(status: Status) -> bytes:
    """JSON."""
    return msgspec.json.encode(status)


def decode(document: bytes) -> Status:
    """The other way round. Raises ValueError for anything that is not a status."""
    return msgspec.json.decode(document, type=Status)
