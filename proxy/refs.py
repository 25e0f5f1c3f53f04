"""The commits that branches and tags mean, as the Hub last told."""

from __future__ import annotations

import time

from proxy.catalog import Catalog
from proxy.hub.freshness import Freshness
from proxy.hub.urls import ApiRoute, is_commit


class Refs:
    """Commits as the catalog has them; empty for what is not known."""

    def __init__(self, catalog: Catalog, freshness: Freshness) -> None:
        self._catalog = catalog
        self._freshness = freshness

    def fresh(self, route: ApiRoute) -> str:
        """The commit of a named revision if the Hub has told it recently, so that it need not be asked."""
        ref = self._catalog.ref(str(route.repo), route.revision or "main")
        return ref.commit if ref is not None and self._freshness.is_fresh(ref.said_at, time.time()) else ""

    def last(self, route: ApiRoute) -> str:
        """The commit that a question is about."""
        if route.revision is not None and is_commit(route.revision):
            return route.revision
        ref = self._catalog.ref(str(route.repo), route.revision or "main")
        return ref.commit if ref is not None else ""
