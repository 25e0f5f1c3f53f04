"""`xet-read-token`: the first request for a file with a Xet hash. This node answers it if it can resolve the hash."""

from __future__ import annotations

import asyncio
import logging
import time
from urllib.parse import unquote, urljoin, urlsplit

import msgspec
from aiohttp import web

from mesh.bounded import Bounded
from proxy.api import Api
from proxy.catalog import Catalog, XetName
from proxy.decoding import decode
from proxy.hub import rewrite
from proxy.hub.access import is_card
from proxy.hub.client import Client
from proxy.hub.errors import HubError
from proxy.hub.urls import ApiRoute, FileRoute, OtherRoute, Repo, is_commit, parse
from proxy.hub.xet import XetUse, token_route
from proxy.passes import Passes
from proxy.resolve import Resolver
from proxy.visible import visible_base

log = logging.getLogger(__name__)

_MAX_WALKS = 1000  # commits remembered
_MAX_PAGES = 100  # of a tree
_WALK_SECONDS = 8.0


class XetTokens:
    """Answers token requests. A token is for a whole repository, so all of its hashes are learned first."""

    def __init__(self, *, use: XetUse, passes: Passes, api: Api, resolver: Resolver, catalog: Catalog) -> None:
        self._use = use
        self._passes = passes
        self._api = api
        self._resolver = resolver
        self._catalog = catalog
        # The path of a file with a Xet hash, for each commit that was walked; "" where there is none.
        self._walked: Bounded[tuple[Repo, str], str] = Bounded(_MAX_WALKS)

    async def answer(self, request: web.BaseRequest, route: OtherRoute, client: Client) -> web.Response | None:
        """A pass for a repository at a revision, which names this node as the server.

        None when the Hub is to answer: Xet is turned off, or the files of the repository are not known in time. Raises
        HubError for clients that may not read it, and OriginUnavailable.
        """
        asked = token_route(route)
        if self._use == "never" or asked is None or request.method != "GET":
            return None
        repo, revision = asked
        commit = await self._commit(repo, revision, client)
        try:
            path = await self._some_file(repo, commit, client)
        except HubError as error:
            if error.code != "RevisionNotFound" or is_commit(revision):
                raise
            commit = await self._commit(repo, revision, client, is_reload=True)  # the branch was rewritten since
            path = await self._some_file(repo, commit, client)
        if not path:
            return None
        await self._resolver.file(FileRoute(repo, commit, path), client)  # raises HubError if this client may not read
        token, until = self._passes.grant(client, repo, time.time())
        base = f"{visible_base(request)}{route.prefix}/-/xet"
        request["outcome"] = "hit"
        return web.Response(
            body=msgspec.json.encode({"accessToken": token, "exp": until, "casUrl": base}),
            content_type="application/json",
            headers={
                "X-Xet-Cas-Url": base,
                "X-Xet-Access-Token": token,
                "X-Xet-Token-Expiration": str(until),
                "Cache-Control": "no-store",
            },
        )

    async def _commit(self, repo: Repo, revision: str, client: Client, *, is_reload: bool = False) -> str:
        if is_commit(revision):
            return revision
        route = ApiRoute(repo, "revision", unquote(revision), f"{repo.api_prefix}/revision/{revision}", "")
        answer, _ = await self._api.ask(route, client, is_reload=is_reload)
        return answer.commit

    async def _some_file(self, repo: Repo, commit: str, client: Client) -> str:
        """Learn all Xet hashes of a commit, since a client may have any of them from an earlier listing.

        Returns the path of a file that has one; empty if there is none, or if listing them takes too long.
        """
        if (known := self._walked.get((repo, commit))) is not None:
            return known
        try:
            async with asyncio.timeout(_WALK_SECONDS):
                found = await self._walk(repo, commit, client)
        except TimeoutError:
            found = None
        if found is None:
            log.info("%s at %s has too many files to be served over Xet: the Hub does that", repo, commit)
            return ""
        self._walked[repo, commit] = found
        return found

    async def _walk(self, repo: Repo, commit: str, client: Client) -> str | None:
        target, found = f"{repo.api_prefix}/tree/{commit}?recursive=true&expand=false", ""
        for _ in range(_MAX_PAGES):
            route = parse(target)
            if not isinstance(route, ApiRoute) or route.kind != "tree" or route.repo != repo:
                return None
            answer, _ = await self._api.ask(route, client)
            for xet_hash, path in rewrite.xet_names(decode(answer.body)):
                self._catalog.set_xet_name(str(repo), xet_hash, XetName(commit, path), is_listed=True)
                if not found or is_card(found):
                    found = path
            following = rewrite.next_page(answer.headers.get("Link", ""))
            if following is None:
                return found
            parts = urlsplit(urljoin(target, following))
            target = f"{parts.path}?{parts.query}"
        return None
