"""The commits that branches and tags mean, as the Hub last told."""

from __future__ import annotations

import time

from proxy.catalog import Catalog, Ref
from proxy.hub.freshness import Freshness
from proxy.hub.urls import ApiRoute, FileRoute, is_commit


class Refs:
    """Commits as the catalog has them; empty for what is not known."""

    def __init__(self, catalog: Catalog, freshness: Freshness) -> None:
        self._catalog = catalog
        self._freshness = freshness

    def fresh(self, route: ApiRoute | FileRoute) -> str:
        """The commit of a revision if the Hub need not be asked: it told so recently, or the revision is a commit."""
        if route.revision is not None and is_commit(route.revision):
            return route.revision
        ref = self._ref(route)
        return ref.commit if ref is not None and self._freshness.is_fresh(ref.said_at, time.time()) else ""

    def last(self, route: ApiRoute | FileRoute) -> str:
        """The commit of a revision when the Hub was last asked."""
        if route.revision is not None and is_commit(route.revision):
            return route.revision
        ref = self._ref(route)
        return ref.commit if ref is not None else ""

    def _ref(self, route: ApiRoute | FileRoute) -> Ref | None:
        return self._catalog.ref(str(route.repo), route.revision or "main")
