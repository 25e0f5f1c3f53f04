"""A fake node that implements only the view, for tests of the pages and commands around it."""

from __future__ import annotations

from collections.abc import Sequence

from mesh.stats import Stats
from proxy.admin.view import BlobView, DownloadView, PeerView, Preheat, Removed, UsageView


class PaperNode:
    """Implements NodeView and records what it was told to do."""

    def __init__(self) -> None:
        self.node_id = "node-a"
        self.version = "0.1.0"
        self.role = "peer"
        self.settings: tuple[str, ...] = ()
        self.stats = Stats()
        self.not_ready = ""
        self.told: list[object] = []
        self.error: Exception | None = None
        self.failing: str | None = None  # the repository that `error` applies to; all if None
        self.in_use = 0  # number of files that cannot be removed
        self.held = [
            BlobView(
                "sha256:" + "a" * 64, 1000, 1000, "models/acme/tiny", "model.safetensors", sources={"origin": 1000}
            ),
            BlobView("git-sha1:" + "b" * 40, 20, 20, "models/acme/tiny", "config.json"),
            BlobView("sha256:" + "c" * 64, 5000, 1000, "datasets/acme/rows", "data.parquet", is_pinned=True),
        ]

    def ready(self) -> tuple[bool, str]:
        return not self.not_ready, self.not_ready

    def usage(self) -> UsageView:
        return UsageView(blob_bytes=2020, max_bytes=10_000, evicted_bytes=30)

    def peers(self) -> Sequence[PeerView]:
        return [
            PeerView("node-b", "10.0.0.2:8091", "seed", is_alive=True, seen_seconds_ago=0.5),
            PeerView("node-c", "10.0.0.3:8091", "peer", is_alive=False, seen_seconds_ago=50),
        ]

    async def blobs(self, *, with_sources: bool = False) -> Sequence[BlobView]:
        return self.held

    def downloads(self) -> Sequence[DownloadView]:
        return [DownloadView("sha256:" + "c" * 64, 5000, 1000, "datasets/acme/rows", "data.parquet", 1.0, 1, "o-..")]

    async def pin(self, repo: str, revision: str | None) -> int:
        return self._do("pin", repo, revision)

    async def unpin(self, repo: str) -> int:
        return self._do("unpin", repo)

    async def remove(self, repo: str) -> Removed:
        return Removed(self._do("rm", repo), self.in_use)

    async def preheat(self, order: Preheat) -> int:
        return self._do("preheat", order)

    def _do(self, *what: object) -> int:
        if self.error is not None and self.failing in (None, what[-1]):
            raise self.error
        self.told.append(what)
        return len(self.told)
