"""Answers about repositories (info, revision, tree, paths-info, refs), kept as long as they are true."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from typing import Literal
from urllib.parse import parse_qsl, quote, urlencode

from aiohttp import web

from proxy.catalog import ApiAnswer, Catalog, Publicness, Ref
from proxy.hub import rewrite
from proxy.hub.access import Grants, token_key
from proxy.hub.errors import HubError, OriginUnavailable
from proxy.hub.freshness import PUBLIC_SECONDS, Freshness, is_immutable
from proxy.hub.urls import ApiRoute, is_commit
from proxy.origin import Answer, Origin
from proxy.resolve import Client

log = logging.getLogger(__name__)

EVERYBODY = "*"
_KEPT_HEADERS = ("Content-Type", "Link", "X-Repo-Commit", "X-Error-Code", "X-Error-Message", "X-Total-Count")
_FORM = "application/x-www-form-urlencoded"
_MAX_QUESTION = 1 << 20  # bytes of a paths-info body that is worth a place in the catalog

Outcome = Literal["hit", "miss", "stale"]


class Api:
    """One view of a repository: what a branch means is the same for files, trees and info at any moment."""

    def __init__(self, *, origin: Origin, catalog: Catalog, freshness: Freshness, grants: Grants) -> None:
        self._origin = origin
        self._catalog = catalog
        self._freshness = freshness
        self._grants = grants
        self._flights: dict[tuple[str, ...], asyncio.Task[ApiAnswer]] = {}

    async def handle(self, request: web.Request, route: ApiRoute, client: Client) -> web.StreamResponse:
        """Raises HubError and OriginUnavailable."""
        body = await request.read() if request.method == "POST" else b""
        answer, outcome = await self.ask(route, client, body, request.headers.get("Content-Type", _FORM))
        request["outcome"] = outcome
        headers = {name: value for name, value in answer.headers.items() if name != "Link"}
        if link := answer.headers.get("Link"):
            visible = visible_base(request) + route.prefix
            if rewritten := rewrite.link(link, self._origin.url, visible, without_xet=True):
                headers["Link"] = rewritten
        headers["Cache-Status"] = {
            "hit": "hubmesh; hit",
            "miss": "hubmesh; fwd=uri-miss; stored",
            "stale": "hubmesh; fwd=stale; detail=origin-unavailable",
        }[outcome]
        return web.Response(status=answer.status, headers=headers, body=answer.body)

    async def ask(
        self, route: ApiRoute, client: Client, body: bytes = b"", content_type: str = _FORM
    ) -> tuple[ApiAnswer, Outcome]:
        """The answer to a question, from here or from the Hub."""
        if route.kind in ("tree", "paths-info") and route.revision is not None and not is_commit(route.revision):
            route = route.at(await self._commit(route, client))
        question = _question(route, body)
        if (known := self._known(route, question, client)) is not None:
            return known, "hit"
        try:
            return await self._fetch(route, question, client, body, content_type), "miss"
        except OriginUnavailable:
            if (stale := self._stale(route, question, client)) is not None:
                return stale, "stale"
            raise

    async def _commit(self, route: ApiRoute, client: Client) -> str:
        """What a named revision means now, for this question as for all others."""
        assert route.revision is not None
        ref = self._catalog.ref(str(route.repo), route.revision)
        if ref is not None and self._freshness.is_fresh(ref.said_at, time.time()):
            return ref.commit
        target = f"{route.repo.api_prefix}/revision/{quote(route.revision, safe='')}"
        asked = ApiRoute(route.repo, "revision", route.revision, target, "")
        answer, _ = await self.ask(asked, client)
        if answer.status != 200:
            raise HubError.of(answer.status, answer.headers, answer.body)
        sha = json.loads(answer.body).get("sha")
        if not isinstance(sha, str) or not is_commit(sha):
            raise OriginUnavailable(f"{self._origin.host} names no commit for {route.repo}")
        return sha

    # --- what is known

    def _known(self, route: ApiRoute, question: str, client: Client) -> ApiAnswer | None:
        repo, now = str(route.repo), time.time()
        immutable = is_immutable(route)
        answer = self._catalog.answer(repo, EVERYBODY, question)
        if answer is not None and (
            not self._origin_is_asked(answer, immutable, now) and self._is_coherent(route, answer)
        ):
            return answer
        if client.token and self._grants.is_allowed(client.token, repo, time.monotonic()):
            answer = self._catalog.answer(repo, token_key(client.token), question)
            if answer is not None and (immutable or self._freshness.is_fresh(answer.said_at, now)):
                return answer if self._is_coherent(route, answer) else None
        return None

    def _origin_is_asked(self, answer: ApiAnswer, immutable: bool, now: float) -> bool:
        if self._origin.is_offline:
            return False
        if immutable:
            return now - answer.said_at >= PUBLIC_SECONDS  # it may have been made private
        return not self._freshness.is_fresh(answer.said_at, now)

    def _is_coherent(self, route: ApiRoute, answer: ApiAnswer) -> bool:
        """Whether the commit it speaks of is the one that files of this revision come from now."""
        if route.kind not in ("info", "revision"):
            return True
        ref = self._catalog.ref(str(route.repo), route.revision or "main")
        sha = answer.headers.get("X-Repo-Commit", "")
        return ref is None or not sha or is_commit(route.revision or "") or ref.commit == sha

    def _stale(self, route: ApiRoute, question: str, client: Client) -> ApiAnswer | None:
        repo = str(route.repo)
        answer = self._catalog.answer(repo, EVERYBODY, question)
        if answer is None and client.token and self._grants.is_allowed(client.token, repo, time.monotonic()):
            answer = self._catalog.answer(repo, token_key(client.token), question)
        return answer

    # --- asking the Hub

    async def _fetch(self, route: ApiRoute, question: str, client: Client, body: bytes, content_type: str) -> ApiAnswer:
        """Ask as nobody first; only what nobody may know is asked for with the token."""
        repo = str(route.repo)
        publicness = self._catalog.publicness(repo)
        try:
            if not (client.token and publicness is not None and not publicness.is_public):
                return await self._once(route, question, None, client.user_agent, body, content_type)
        except HubError as error:
            if not client.token or error.status not in (401, 403, 404) or error.code in ("EntryNotFound",):
                raise
        except OriginUnavailable as error:
            if not client.token or error.retry_after is None:
                raise
        answer = await self._once(route, question, client.token, client.user_agent, body, content_type)
        if client.token:
            self._grants.allow(client.token, repo, time.monotonic())
        return answer

    async def _once(
        self, route: ApiRoute, question: str, token: str | None, user_agent: str, body: bytes, content_type: str
    ) -> ApiAnswer:
        scope = token_key(token) if token else EVERYBODY
        key = (str(route.repo), scope, question)
        flight = self._flights.get(key)
        if flight is None:
            work = self._ask_hub(route, question, scope, token, user_agent, body, content_type)
            flight = self._flights[key] = asyncio.get_running_loop().create_task(work, name="api")
            flight.add_done_callback(lambda _: self._flights.pop(key, None))
        return await asyncio.shield(flight)

    async def _ask_hub(
        self,
        route: ApiRoute,
        question: str,
        scope: str,
        token: str | None,
        user_agent: str,
        body: bytes,
        content_type: str,
    ) -> ApiAnswer:
        said_at, repo = time.time(), str(route.repo)
        method = "POST" if route.kind == "paths-info" else "GET"
        target = route.target
        for _ in range(3):
            answer = await self._origin.ask(
                method,
                target,
                kind="api",
                token=token,
                user_agent=user_agent,
                headers={"Content-Type": content_type} if body else None,
                body=body or None,
            )
            moved = answer.headers.get("Location", "")
            if answer.status not in (301, 302, 307, 308) or not moved.startswith("/"):
                break
            target = moved  # renamed
        if answer.status == 429:
            raise OriginUnavailable(f"{self._origin.host} has had too many requests", retry_after=self._origin.pause)
        kept = _keep(route, answer, said_at)
        error = None if answer.status == 200 else HubError.of(answer.status, answer.headers, answer.body)
        if error is None or (error.is_missing_entry and is_immutable(route)):
            self._catalog.set_answer(repo, scope, question, kept)
            self._note(route, kept, scope, said_at)
            return kept
        raise error

    def _note(self, route: ApiRoute, kept: ApiAnswer, scope: str, said_at: float) -> None:
        """What else the answer tells: which commit a revision is."""
        repo, sha = str(route.repo), kept.headers.get("X-Repo-Commit", "")
        if route.kind in ("info", "revision") and sha and not is_commit(route.revision or ""):
            self._catalog.set_ref(repo, route.revision or "main", Ref(sha, said_at))
        known = self._catalog.publicness(repo)
        if scope != EVERYBODY and (known is None or said_at - known.said_at > PUBLIC_SECONDS):
            self._catalog.set_publicness(repo, Publicness(False, said_at))


def visible_base(request: web.Request) -> str:
    """Scheme and host under which the client sees this node, through whatever stands between."""
    scheme = request.headers.get("X-Forwarded-Proto", request.scheme).partition(",")[0].strip()
    host = request.headers.get("X-Forwarded-Host", request.host).partition(",")[0].strip()
    return f"{scheme}://{host}{request.headers.get('X-Forwarded-Prefix', '').rstrip('/')}"


def _keep(route: ApiRoute, answer: Answer, said_at: float) -> ApiAnswer:
    headers = {name: answer.headers[name] for name in _KEPT_HEADERS if name in answer.headers}
    body = answer.body
    if answer.status == 200 and route.kind in ("tree", "paths-info") and b"xetHash" in body:
        body = json.dumps(rewrite.strip_xet(json.loads(body)), separators=(",", ":")).encode()
    if answer.status == 200 and route.kind in ("info", "revision"):
        sha = _sha(body)
        if sha:
            headers["X-Repo-Commit"] = sha
    return ApiAnswer(answer.status, headers, body, said_at)


def _sha(body: bytes) -> str:
    try:
        document = json.loads(body)
    except ValueError:
        return ""
    sha = document.get("sha") if isinstance(document, dict) else None
    return sha if isinstance(sha, str) and is_commit(sha) else ""


def _question(route: ApiRoute, body: bytes) -> str:
    """What makes two questions the same: `recursive=True` and `recursive=true`, in any order."""
    path = route.target.partition("?")[0].rstrip("/")
    return "\n".join((path, _normal(route.query), _normal(body[:_MAX_QUESTION].decode(errors="replace"))))


def _normal(query: str) -> str:
    pairs = [(name, value.lower() if value in ("True", "False") else value) for name, value in parse_qsl(query, True)]
    return urlencode(sorted(pairs))
