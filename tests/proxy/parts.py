"""The parts of a node that know the Hub, put together without a mesh, in front of a stand-in Hub."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from proxy.api import Api
from proxy.catalog import Catalog
from proxy.hub.access import Grants
from proxy.hub.freshness import Freshness
from proxy.hub.urls import ApiRoute, FileRoute, Repo, parse
from proxy.listings import Listings
from proxy.origin import Origin
from proxy.passthrough import Passthrough
from proxy.resolve import Client, ResolvedFile, Resolver

TINY = Repo("models", "acme/tiny")


@dataclass
class Figures:
    """Records the requests to the origin as (kind, status)."""

    requests: list[tuple[str, int]] = field(default_factory=list)

    def origin_request(self, kind: str, status: int, seconds: float) -> None:
        assert seconds >= 0
        self.requests.append((kind, status))


@dataclass
class Parts:
    figures: Figures
    origin: Origin
    catalog: Catalog
    resolver: Resolver
    api: Api
    passthrough: Passthrough

    async def file(
        self, path: str, token: str | None = None, *, repo: Repo = TINY, revision: str = "main"
    ) -> ResolvedFile:
        return await self.resolver.file(FileRoute(repo, revision, path), Client(token, "test/1; hf_hub/1.33.0"))

    async def ask(self, target: str, token: str | None = None, body: bytes = b"") -> tuple[int, bytes, str]:
        """Return (status, body, outcome)."""
        route = parse(target)
        assert isinstance(route, ApiRoute)
        answer, outcome = await self.api.ask(route, Client(token), body)
        return answer.status, answer.body, outcome


@asynccontextmanager
async def parts(
    url: str,
    root: Path,
    *,
    named: float = 60.0,
    grant_life: float = 300.0,
    offline: bool = False,
    answer_timeout: float = 5.0,
    silence: float = 20.0,
    patience: float = 9.0,
) -> AsyncIterator[Parts]:
    figures = Figures()
    origin = Origin(
        url,
        metrics=figures,
        offline=offline,
        connect_timeout=2.0,
        answer_timeout=answer_timeout,
        silence=silence,
    )
    catalog = Catalog(root / "catalog")
    known = {"origin": origin, "catalog": catalog, "listings": Listings()}
    known |= {"freshness": Freshness(named), "grants": Grants(grant_life)}
    try:
        yield Parts(
            figures,
            origin,
            catalog,
            Resolver(**known, patience=patience),
            Api(**known, patience=answer_timeout),
            Passthrough(origin=origin, catalog=catalog),
        )
    finally:
        await origin.close()
        await catalog.close()
