"""The dashboard's view of a node, in small JSON sections so that only those that changed are sent again."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import msgspec

from mesh.stats import Stats
from proxy.admin.view import BlobView, DownloadView, NodeView, by_repository

_MAX_DOWNLOADS = 24  # shown as piece maps; further ones are only counted
_MAX_PEERS = 1000
_MAX_REPOS = 1000
_RECENT = 60.0  # seconds for which a failure stays a finding

Figures = Mapping[str, float]  # as returned by `Metrics.figures`


class Repository(msgspec.Struct, frozen=True):
    """See `RepositoryView`."""

    name: str
    size: int
    have: int
    files: int
    pinned: bool


class Notice(msgspec.Struct, frozen=True):
    """An observation about the node's health, and what to do about it."""

    level: Literal["note", "bad"]
    what: str
    cure: str = ""


class Failures:
    """Counts recent failures of the origin, from counters that only grow."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, float]] = deque()

    def recent(self, figures: Figures, now: float) -> int:
        """Failed requests (no answer, or 5xx) in about the last minute; `now` is in seconds, from any clock."""
        name = "hubmesh_origin_requests_total{"
        total = sum(
            count
            for key, count in figures.items()
            if key.startswith(name) and ('status="0"' in key or 'status="5' in key)
        )
        self._seen.append((now, total))
        while len(self._seen) > 1 and self._seen[0][0] < now - _RECENT:
            self._seen.popleft()
        return round(total - self._seen[0][1])


def traffic(stats: Stats) -> dict[str, int]:
    """Bytes of files since the node started."""
    return {
        "origin": stats.origin_received,
        "peers": stats.peer_received,
        "sent": stats.peer_sent,
        "clients": stats.client_sent,
    }


def node(view: NodeView) -> dict[str, object]:
    is_ready, reason = view.ready()
    usage = view.usage()
    return {
        "id": view.node_id,
        "version": view.version,
        "role": view.role,
        "ready": is_ready,
        "reason": "" if is_ready else reason,
        "used": usage.blob_bytes,
        "limit": usage.max_bytes,
    }


def peers(view: NodeView) -> list[tuple[str, str, str, bool]]:
    """(node id, address, role, whether it is alive) of each peer."""
    return [(peer.node_id, peer.address, peer.role, peer.is_alive) for peer in view.peers()[:_MAX_PEERS]]


def downloads(running: Sequence[DownloadView]) -> dict[str, object]:
    """The number of running downloads, and the latest of them."""
    shown = sorted(running, key=lambda download: -download.began_at)[:_MAX_DOWNLOADS]
    return {"count": len(running), "shown": [_download(download) for download in shown]}


def _download(download: DownloadView) -> dict[str, object]:
    return {
        "digest": download.digest,
        "name": "/".join(filter(None, (download.repo, download.path))) or download.digest,
        "size": download.size,
        "have": download.have,
        "readers": download.readers,
        "pieces": runs(download.pieces),
        "sources": len([source for source, count in download.sources.items() if source and count]),
    }


def runs(letters: str) -> str:
    """Run-length encoding, ``ooo.pp`` as ``3o1.2p``: thousands of pieces make a few hundred runs."""
    return "".join(f"{len(list(same))}{letter}" for letter, same in itertools.groupby(letters))


def repositories(blobs: Sequence[BlobView]) -> list[Repository]:
    """Repositories by name. Without the time of last use, which would change the section all the time."""
    return [
        Repository(held.repo, held.size, held.have, held.files, held.is_pinned)
        for held in by_repository(blobs)[:_MAX_REPOS]
    ]


def findings(view: NodeView, recent_failures: int) -> Iterator[Notice]:
    """Problems that the node can see by itself; `hubmesh doctor` looks further."""
    is_ready, reason = view.ready()
    if not is_ready:
        yield Notice("bad", f"not ready: {reason}", "wait a moment; if it stays so, read the log")
    if recent_failures:
        yield Notice(
            "bad",
            f"{recent_failures} requests to the origin failed in the last minute",
            "run `hubmesh doctor`: it checks the connection to the origin",
        )
    for source, count in sorted(view.stats.pieces_rejected.copy().items()):
        yield Notice("bad", f"{count} pieces from {source} were wrong and were dropped", "check its disk and memory")
    everybody = view.peers()
    gone = sum(not peer.is_alive for peer in everybody)
    if not everybody:
        yield Notice("note", "no other node is known: everything comes from the origin", "start one, or name a --seed")
    elif gone == len(everybody):
        yield Notice("bad", "no other node answers any more", "run `hubmesh doctor` on this node and on others")
    elif gone:
        yield Notice("note", f"{gone} of {len(everybody)} other nodes do not answer", "")
    usage = view.usage()
    if usage.max_bytes and usage.blob_bytes > 0.95 * usage.max_bytes:
        yield Notice(
            "note", "the store is full: the least recently used blobs are evicted", "start with a larger --max-size"
        )
