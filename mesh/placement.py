"""Which node is responsible for a key: rendezvous hashing (Thaler and Ravishankar, 1998). Pure.

Every node computes the same order from the same list of nodes. When a node leaves, only its keys move.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from hashlib import blake2b


def ranked(key: str, nodes: Iterable[str]) -> list[str]:
    """Sort the nodes by their responsibility for `key`, the responsible one first."""
    return sorted(nodes, key=lambda node: (_weight(key, node), node), reverse=True)


@lru_cache(8192)
def _weight(key: str, node: str) -> bytes:
    return blake2b(f"{key}\0{node}".encode(), digest_size=8).digest()
