"""For how long an answer of the Hub counts as true. Pure.

Content under a commit never changes. What a branch or tag means is asked again after a while. When the Hub cannot be
asked, its last answer is served and marked as stale.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qsl

from proxy.hub.urls import ApiRoute, is_commit

# Query parameters of a commit's info that add nothing to the answer that both matters and changes.
_STEADY_QUERIES = {"blobs"}


@dataclass(frozen=True, slots=True)
class Freshness:
    """`named` is for how many seconds the Hub's answer about a named revision is fresh."""

    named: float = 60.0

    def is_fresh(self, said_at: float, now: float) -> bool:
        return 0 <= now - said_at < self.named


def is_immutable(route: ApiRoute) -> bool:
    """Whether the part of the answer that matters can never change.

    A commit's info also carries likes and downloads, which do change, but a client that names a commit wants its files.
    """
    if route.revision is None or not is_commit(route.revision):
        return False
    if route.kind == "revision":
        return {name for name, _ in parse_qsl(route.query, keep_blank_values=True)} <= _STEADY_QUERIES
    return route.kind in ("tree", "paths-info")
