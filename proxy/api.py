"""Answers about repositories (info, revision, tree, paths-info, refs), kept for as long as they are true."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal
from urllib.parse import quote

import msgspec
from aiohttp import web

from mesh.turns import Turns
from proxy import caching
from proxy.answers import as_stored, is_coherent, is_page, kept_headers, may_keep
from proxy.catalog import ApiAnswer, Catalog, KeptAnswer, Ref, XetName
from proxy.decoding import decode
from proxy.hearsay import Hearsay, Lookup
from proxy.hub import documents, errors, metadata, rewrite
from proxy.hub.access import EVERYBODY, OPEN_SECONDS, Grants, says_open, token_key
from proxy.hub.client import Client
from proxy.hub.errors import HubError, OriginUnavailable
from proxy.hub.freshness import Freshness, is_immutable
from proxy.hub.questions import FORM, normal, question_at
from proxy.hub.questions import question as key_of
from proxy.hub.urls import ApiRoute, is_commit, led_to, own_name
from proxy.hub.xet import XetUse
from proxy.large import work_on
from proxy.listings import Listings
from proxy.origin import Answer, Origin
from proxy.refs import Refs
from proxy.shown import respond
from proxy.waiting import in_time

log = logging.getLogger(__name__)

MAX_QUESTION = 4 << 20  # bytes of a paths-info body: room for some ten thousand paths
_MAX_HOPS = 3
_REDIRECTS = (301, 302, 307, 308)

Outcome = Literal["hit", "miss", "stale"]


class Api:
    """A consistent view of repositories: at any moment a branch means the same commit for files, trees and infos.

    `patience`: seconds after which a client gets an older answer, if there is one. Some clients give up after 10 s.
    """

    def __init__(
        self,
        *,
        origin: Origin,
        catalog: Catalog,
        listings: Listings,
        freshness: Freshness,
        grants: Grants,
        xet: XetUse = "auto",
        patience: float = 8.0,
    ) -> None:
        self._origin = origin
        self._xet = xet
        self._catalog = catalog
        self._listings = listings
        self._freshness = freshness
        self._grants = grants
        self._refs = Refs(catalog, freshness)
        self._patience = patience
        self.hearsay: Hearsay | None = None

    async def handle(
        self, request: web.BaseRequest, route: ApiRoute, client: Client, body: bytes = b""
    ) -> web.StreamResponse:
        """Answer a client. Raises HubError and OriginUnavailable."""
        fields = request.headers
        is_reload, is_kept_only = caching.wish(fields)
        answer, outcome = await self.ask(
            route,
            client,
            body,
            fields.get("Content-Type", FORM),
            is_reload=is_reload,
            is_kept_only=is_kept_only,
        )
        request["outcome"] = outcome
        shown = await work_on(answer.body, self.shown)
        return respond(request, route, answer, outcome, client.token, self._origin.url, shown)

    def shown(self, body: bytes) -> bytes:
        """The body without the Xet hashes of files that clients are not to fetch over Xet. Raises OriginUnavailable."""
        if self._xet == "always" or not rewrite.mentions_xet(body):
            return body
        try:
            return msgspec.json.encode(rewrite.strip_xet(decode(body), self._xet))
        except msgspec.DecodeError as error:
            raise OriginUnavailable(f"{self._origin.host} sent invalid JSON: is --origin a Hub?") from error

    async def ask(
        self,
        route: ApiRoute,
        client: Client,
        body: bytes = b"",
        content_type: str = FORM,
        *,
        is_reload: bool = False,
        is_kept_only: bool = False,
    ) -> tuple[ApiAnswer, Outcome]:
        """The answer to a question, from here or from the Hub: `is_reload` always asks the Hub, `is_kept_only` never.

        Raises HubError and OriginUnavailable.
        """
        until = asyncio.get_running_loop().time() + self._patience
        how = {"is_reload": is_reload, "is_kept_only": is_kept_only}
        if route.kind not in ("tree", "paths-info") or route.revision is None or is_commit(route.revision):
            return await self._ask(route, client, body, content_type, until, **how)
        commit, is_stale = await self._commit(route, client, until, **how)
        if not commit:
            return await self._ask(route, client, body, content_type, until, **how)
        try:
            answer, outcome = await self._ask(route.at(commit), client, body, content_type, until, **how)
        except HubError as error:
            if error.code != "RevisionNotFound" or is_reload or is_kept_only:
                raise
            commit, is_stale = await self._commit(route, client, until, is_reload=True)  # the branch was rewritten
            at = route.at(commit) if commit else route
            answer, outcome = await self._ask(at, client, body, content_type, until)
        return answer, "stale" if is_stale else outcome

    async def _ask(
        self,
        route: ApiRoute,
        client: Client,
        body: bytes,
        content_type: str,
        until: float,
        *,
        is_reload: bool = False,
        is_kept_only: bool = False,
    ) -> tuple[ApiAnswer, Outcome]:
        """Answer a question which, if it is about files (tree, paths-info), names a commit if there is one."""
        question = key_of(route, body, content_type)
        if not is_reload and (known := await self._catalog.whole(self._known(route, question, client))) is not None:
            return known, "hit"
        if is_kept_only:
            raise errors.not_kept()
        ask = partial(self._asked, route, question, client, body, content_type, is_reload=is_reload)
        told = partial(self._told, route, question, client)
        if self._origin.is_failing and (stale := await told()) is not None:
            self._origin.try_again(ask)
            return stale, "stale"
        try:
            answer, is_new = await in_time(ask(), until, told)
            return answer, "miss" if is_new else "stale"
        except OriginUnavailable:
            if (stale := await told()) is not None:
                return stale, "stale"
            raise

    async def _told(self, route: ApiRoute, question: str, client: Client) -> ApiAnswer | None:
        """The last known answer: given to this node, or to another node that it trusts."""
        stale = await self._catalog.whole(self._stale(route, question, client))
        if stale is None and self.hearsay is not None:
            query = normal(route.query) if route.kind in ("info", "revision") else None
            lookup = Lookup(str(route.repo), route.revision or "main", question=question, query=query)
            await self.hearsay.learn(lookup)
            stale = await self._catalog.whole(self._stale(route, question, client))
        return stale

    async def _commit(
        self, route: ApiRoute, client: Client, until: float, *, is_reload: bool, is_kept_only: bool = False
    ) -> tuple[str, bool]:
        """The commit that a named revision means now, the same for all questions; and whether that is stale.

        The commit is empty when the Hub names none, as for a repository without commits.
        """
        assert route.revision is not None
        last = self._refs.last(route)
        if not is_reload and (commit := self._refs.fresh(route)):
            return commit, False
        target = f"{route.repo.api_prefix}/revision/{quote(route.revision, safe='')}"
        info = ApiRoute(route.repo, "revision", route.revision, target, "")

        async def ask() -> tuple[str, bool]:
            how = {"is_reload": is_reload, "is_kept_only": is_kept_only}
            answer, outcome = await self._ask(info, client, b"", FORM, until, **how)
            return (last, True) if outcome == "stale" and last else (answer.commit, outcome == "stale")

        async def told() -> tuple[str, bool] | None:
            if not self._refs.last(route):  # other nodes may know the commit without an answer to the question
                await self._told(info, key_of(info, b"", FORM), client)
            return (commit, True) if (commit := self._refs.last(route)) else None

        try:
            return (await in_time(ask(), until, told))[0]
        except OriginUnavailable:
            if (stale := await told()) is not None:
                return stale
            raise

    # --- what is known

    def _known(self, route: ApiRoute, question: str, client: Client) -> KeptAnswer | None:
        now, immutable = time.time(), is_immutable(route)
        commit = self._refs.last(route)
        doubted_at = self._catalog.doubted_at(str(route.repo))
        for answer, is_own in self._kept(route, question, client, commit):
            is_fresh = self._freshness.is_fresh(answer.said_at, now)
            if immutable:  # it may have been made private since; answers for one token were checked by `_kept`
                is_fresh = is_own or self._origin.is_offline or 0 <= now - answer.said_at < OPEN_SECONDS
            is_fresh = is_fresh and answer.said_at > doubted_at
            if is_fresh and not caching.has_ended(as_stored(answer), now) and is_coherent(answer, commit):
                return answer
        return None

    def _stale(self, route: ApiRoute, question: str, client: Client) -> KeptAnswer | None:
        """The best of the earlier answers, if possible one about the commit that files come from."""
        commit = self._refs.last(route)
        kept = (answer for answer, _ in self._kept(route, question, client, commit))
        answers = [answer for answer in kept if not caching.must_be_fresh(as_stored(answer))]
        return next((answer for answer in answers if is_coherent(answer, commit)), answers[0] if answers else None)

    def _kept(self, route: ApiRoute, question: str, client: Client, commit: str) -> Iterator[tuple[KeptAnswer, bool]]:
        """The kept answers that this client may see, each with whether it was kept for the client's token alone."""
        repo, now = str(route.repo), time.time()
        hidden_at = self._catalog.publicness(repo).hidden_at
        is_info = bool(commit) and route.kind in ("info", "revision")
        questions = [question, question_at(route, commit)] if is_info else [question]
        for kept in questions:
            answer = self._catalog.answer(repo, EVERYBODY, kept)
            if answer is not None and answer.said_at > hidden_at:
                yield answer, False
            if client.token is None:
                continue
            answer = self._catalog.answer(repo, token_key(client.token), kept)
            if answer is None or answer.said_at <= self._grants.refused_at(client.token, repo):
                continue
            if 0 <= now - answer.said_at < self._grants.life or self._grants.is_allowed(
                client.token, repo, time.monotonic()
            ):
                yield answer, True

    # --- asking the Hub

    async def _asked(
        self, route: ApiRoute, question: str, client: Client, body: bytes, content_type: str, *, is_reload: bool
    ) -> ApiAnswer:
        """Ask the Hub; for a named revision, about the commit that files come from as long as that is fresh.

        Clients load some files before they ask for the info, and both have to be of one commit.
        """
        is_named = route.kind in ("info", "revision") and not is_commit(route.revision or "")
        if is_named and not is_reload and (commit := self._refs.fresh(route)):
            at = route.at(commit)
            try:
                return await self._fetch(at, key_of(at, b"", ""), client, b"", "", is_reload=False)
            except HubError as error:
                if error.code != "RevisionNotFound":  # the branch was rewritten since
                    raise
        return await self._fetch(route, question, client, body, content_type, is_reload=is_reload)

    async def _fetch(
        self, route: ApiRoute, question: str, client: Client, body: bytes, content_type: str, *, is_reload: bool
    ) -> ApiAnswer:
        """Ask anonymously first; use the client's token only for what is refused to an anonymous request."""
        repo = str(route.repo)
        publicness = self._catalog.publicness(repo)

        async def ask_as(token: str | None) -> ApiAnswer:
            headers = {"Content-Type": content_type} if body else {}
            if is_reload:
                headers["Cache-Control"] = "no-cache"
            scope = token_key(token) if token else EVERYBODY
            key = ("api", repo, scope, question, publicness.changed_at, is_reload)
            return await self._origin.flights.join(
                key, lambda: self._ask_hub(route, question, token, client.user_agent, body, headers)
            )

        if client.token is None or not publicness.is_hidden(time.time()):
            try:
                return await ask_as(None)
            except HubError as error:
                if client.token is None or not error.is_refusal:
                    raise
            except OriginUnavailable as error:
                if client.token is None or error.retry_after is None:
                    raise
        return await ask_as(client.token)

    async def _ask_hub(
        self, route: ApiRoute, question: str, token: str | None, user_agent: str, body: bytes, headers: dict[str, str]
    ) -> ApiAnswer:
        said_at, target, name, is_info = time.time(), route.target, str(route.repo), route.kind in ("info", "revision")
        method, scope = "POST" if route.kind == "paths-info" else "GET", token_key(token) if token else EVERYBODY
        known = await self._catalog.whole(self._catalog.answer(name, scope, question))
        if known is not None and not body and "ETag" in known.headers:
            headers["If-None-Match"] = known.headers["ETag"]
        for _ in range(_MAX_HOPS):
            answer = await self._origin.ask(
                method, target, kind="api", token=token, user_agent=user_agent, headers=headers, body=body or None
            )
            said_at = min(said_at, answer.said_at)  # another node may have heard it earlier
            if answer.status not in _REDIRECTS:
                break
            target = self._origin.follow(target, answer.headers.get("Location", ""))  # renamed
            name = self._catalog.led(name, led_to(route, target), said_at)
        else:
            raise OriginUnavailable(f"{self._origin.host} sent {_MAX_HOPS} redirects in a row for {route.repo}")
        if answer.status == 304 and known is not None:
            if is_info:  # the Hub has just confirmed what it says of the gate
                self._learn(route, known.commit, await work_on(known.body, documents.info), token, said_at)
            return await self._remember(route, question, msgspec.structs.replace(known, said_at=said_at), token)
        if answer.status >= 400:
            error = HubError.of(answer.status, answer.headers, answer.body)
            if error.is_missing_entry and is_immutable(route):
                return await self._keep(route, question, answer, None, token, said_at)
            self._note_refusal(str(route.repo), error, token, said_at)
            raise error
        try:
            document = await work_on(answer.body, documents.info if is_info else decode)
        except msgspec.DecodeError as error:
            # What looks like `owner/name` may be an old id and a verb that is not known here.
            if route.kind != "info" or "/" not in route.repo.id or is_page(answer.headers):
                raise OriginUnavailable(f"{self._origin.host} sent invalid JSON: is --origin a Hub?") from error
            document = None
        if is_info and (own := own_name(route.repo, document)):
            self._catalog.called(name, own, said_at)
        return await self._keep(route, question, answer, document, token, said_at)

    def _note_refusal(self, repo: str, error: HubError, token: str | None, said_at: float) -> None:
        if error.is_refusal and token is not None:
            self._grants.revoke(token, repo, said_at)
        elif error.is_refusal and error.code != "GatedRepo":
            self._catalog.refused(repo, said_at, is_closed=False, is_hidden=True)

    async def _keep(
        self, route: ApiRoute, question: str, answer: Answer, document: Any, token: str | None, said_at: float
    ) -> ApiAnswer:
        """Keep an answer for those who may see it, and what it says about the revision."""
        commit = ""
        if route.kind in ("info", "revision") and isinstance(document, dict):
            sha = document.get("sha")
            commit = sha if isinstance(sha, str) and is_commit(sha) else ""
        at = commit or (route.revision if is_commit(route.revision or "") else None)
        if at:
            turns = Turns()
            for xet_hash, path in await work_on(answer.body, documents.xet_names):
                await turns.give()
                self._catalog.set_xet_name(str(route.repo), xet_hash, XetName(at, path), is_listed=True)
        headers = kept_headers(answer.headers)
        kept = ApiAnswer(answer.status, headers, answer.body, said_at, commit)
        if route.kind == "info" and not (isinstance(document, dict) and "id" in document):
            return kept  # not about a single repository, although its path looks like it
        if not may_keep(kept, token):
            return kept
        self._learn(route, commit, document, token, said_at)
        return await self._remember(route, question, kept, token)

    def _learn(self, route: ApiRoute, commit: str, document: Any, token: str | None, said_at: float) -> None:
        """Keep what an answer implies about files and about who may read them."""
        repo = str(route.repo)
        is_open = bool(commit) and token is None and says_open(document)
        if token is None:
            self._catalog.told(repo, said_at, is_open=is_open)
        if route.kind in ("info", "revision") and isinstance(document, dict):
            is_hidden = document.get("private") is True
            if is_hidden or document.get("gated") or document.get("disabled"):  # whatever token it was said to
                self._catalog.closed(repo, said_at, is_hidden=is_hidden)
        if route.kind in ("tree", "paths-info") and isinstance(document, list) and is_commit(route.revision or ""):
            files = map(metadata.listed, rewrite.entries(document))
            self._listings.add(repo, route.revision or "", filter(None, files))
        elif is_open:
            self._listings.open(repo, commit, said_at)

    async def _remember(self, route: ApiRoute, question: str, kept: ApiAnswer, token: str | None) -> ApiAnswer:
        repo, scope = str(route.repo), token_key(token) if token else EVERYBODY
        also = (question_at(route, kept.commit),) if kept.commit else ()
        await self._catalog.set_answer(repo, scope, kept, question, *also)
        if kept.commit and not is_commit(route.revision or ""):
            self._catalog.set_ref(repo, route.revision or "main", Ref(kept.commit, kept.said_at))
        return kept
