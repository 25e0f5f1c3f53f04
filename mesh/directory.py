"""The directory of complete blobs: which nodes announced them to this node as their tracker. Pure, and bounded."""

from __future__ import annotations

from collections.abc import Iterable

from mesh.content import Digest

_MAX_ENTRIES = 1 << 20  # pairs of node and blob, of all nodes together
_MAX_OF_NODE = 100_000  # blobs of one node: more than the part of a large store that one tracker leads
_ROOM = 500  # entries dropped at a time to make room: the cost is in finding the node that has the most


class Directory:
    """Holders by blob. A node's entries are dropped when the node leaves."""

    def __init__(self, max_entries: int = _MAX_ENTRIES, max_of_node: int = _MAX_OF_NODE) -> None:
        self._max_entries = max_entries
        self._max_of_node = max_of_node
        self._holders: dict[Digest, set[str]] = {}
        self._by_node: dict[str, set[Digest]] = {}
        self._entries = 0

    def holders(self, digest: Digest) -> list[str]:
        return sorted(self._holders.get(digest, ()))

    def add(self, node: str, digests: Iterable[Digest]) -> None:
        """Record that a node holds these blobs.

        Entries beyond the limits are not kept: other nodes then fetch those blobs from the origin.
        """
        held = self._by_node.setdefault(node, set())
        for digest in digests:
            if digest in held:
                continue
            if len(held) >= self._max_of_node or not self._has_room(len(held)):
                return
            held.add(digest)
            self._holders.setdefault(digest, set()).add(node)
            self._entries += 1

    def discard(self, node: str, digest: Digest) -> None:
        """Record that a node does not hold a blob (any more)."""
        held = self._by_node.get(node)
        if held is not None and digest in held:
            held.discard(digest)
            self._drop(node, digest)

    def forget(self, node: str) -> None:
        """Drop all entries of a node that is gone."""
        for digest in self._by_node.pop(node, ()):
            self._drop(node, digest)

    def _has_room(self, count: int) -> bool:
        """Return whether a node with `count` entries may add one, dropping some of the largest node's if necessary.

        Otherwise the first node to announce a million invented blobs would keep all others out.
        """
        if self._entries < self._max_entries:
            return True
        most, held = max(self._by_node.items(), key=lambda item: len(item[1]))
        given_up = min(_ROOM, (len(held) - count) // 2)
        for _ in range(given_up):
            self._drop(most, held.pop())
        return given_up > 0

    def _drop(self, node: str, digest: Digest) -> None:
        self._entries -= 1
        holders = self._holders[digest]
        holders.discard(node)
        if not holders:
            del self._holders[digest]
