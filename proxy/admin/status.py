"""The status document: what a node holds and has done, as JSON for scripts and `hubmesh status`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from proxy.admin.metrics import Metrics
from proxy.admin.view import BlobView, DownloadView, NodeView, PeerView, UsageView


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The document at `/-/status`. `metrics` has the values of `/-/metrics` under the same names."""

    node_id: str
    version: str
    role: str
    ready: bool
    reason: str  # why the node is not ready; empty when it is
    usage: UsageView
    metrics: Mapping[str, float]
    peers: Sequence[PeerView]
    blobs: Sequence[BlobView]
    downloads: Sequence[DownloadView]
    settings: Sequence[str] = ()  # those that were changed from their defaults, by the names of their flags


async def status_of(node: NodeView, metrics: Metrics) -> Status:
    """The status of a node at this moment."""
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
        settings=node.settings,
    )


def encode(status: Status) -> bytes:
    """The status as JSON."""
    return msgspec.json.encode(status)


def decode(document: bytes) -> Status:
    """The status in a JSON document. Raises ValueError when it is not a status."""
    return msgspec.json.decode(document, type=Status)
