"""How long what the Hub said stays true. Pure.

Whatever lies under a commit never changes. A branch or tag is asked again after a while; when the Hub cannot be asked,
what it said last is better than nothing, and said to be stale.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qsl

from proxy.hub.urls import ApiRoute, is_commit

# What may be asked about a commit's info without anything in the answer that matters and changes.
_STEADY_QUERIES = {"blobs"}


@dataclass(frozen=True, slots=True)
class Freshness:
    """`named` is how many seconds the Hub's word on a named revision is good for."""

    named: float = 60.0

    def is_fresh(self, said_at: float, now: float) -> bool:
        return 0 <= now - said_at < self.named


def is_immutable(route: ApiRoute) -> bool:
    """Whether what matters in the answer is true for ever.

    A commit's info carries likes and downloads too; who asks for a commit is after its files.
    """
    if route.revision is None or not is_commit(route.revision):
        return False
    if route.kind == "revision":
        return {name for name, _ in parse_qsl(route.query, keep_blank_values=True)} <= _STEADY_QUERIES
    return route.kind in ("tree", "paths-info")
