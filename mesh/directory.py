"""Which nodes hold which blobs completely, as they announced it to us as the tracker. Pure, and bounded."""

from __future__ import annotations

from collections.abc import Iterable

from mesh.content import Digest

_MAX_ENTRIES = 1 << 20


class Directory:
    """Holders by blob. Each node's part goes with the node."""

    def __init__(self, max_entries: int = _MAX_ENTRIES) -> None:
        self._max_entries = max_entries
        self._holders: dict[Digest, set[str]] = {}
        self._by_node: dict[str, set[Digest]] = {}
        self._entries = 0

    def holders(self, digest: Digest) -> list[str]:
        return sorted(self._holders.get(digest, ()))

    def add(self, node: str, digests: Iterable[Digest]) -> None:
        """A node holds these. What is beyond the limit is not kept: others then fetch those blobs from the origin."""
        held = self._by_node.setdefault(node, set())
        for digest in digests:
            if digest not in held and self._entries < self._max_entries:
                held.add(digest)
                self._holders.setdefault(digest, set()).add(node)
                self._entries += 1

    def discard(self, node: str, digest: Digest) -> None:
        """A node does not hold this (any more)."""
        held = self._by_node.get(node)
        if held is not None and digest in held:
            held.discard(digest)
            self._drop(node, digest)

    def forget(self, node: str) -> None:
        """A node is gone."""
        for digest in self._by_node.pop(node, ()):
            self._drop(node, digest)

    def _drop(self, node: str, digest: Digest) -> None:
        self._entries -= 1
        holders = self._holders[digest]
        holders.discard(node)
        if not holders:
            del self._holders[digest]
