"""How long what the Hub said stays true. Pure.

Whatever lies under a commit never changes. A branch or tag is asked again after a while; when the Hub cannot be asked,
what it said last is better than nothing, and said to be stale.
"""

from __future__ import annotations

from dataclasses import dataclass

from proxy.hub.urls import ApiRoute, is_commit

# A repository that was public may be made private: asked again after this many seconds.
PUBLIC_SECONDS = 3600.0
# One that was not may be opened; asking costs one request.
NOT_PUBLIC_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Freshness:
    """`named` is how many seconds the Hub's word on a named revision is good for."""

    named: float = 60.0

    def is_fresh(self, said_at: float, now: float) -> bool:
        return 0 <= now - said_at < self.named


def is_immutable(route: ApiRoute) -> bool:
    """Whether the answer is true for ever. Repository info carries likes and downloads even under a commit."""
    return route.kind in ("tree", "paths-info") and route.revision is not None and is_commit(route.revision)
