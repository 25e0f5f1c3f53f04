"""Resolves (repository, revision, path) to a commit, a digest and a size, for clients that may know."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from typing import Literal
from urllib.parse import urljoin, urlsplit

import msgspec

from mesh.content import Digest
from mesh.transfer import Location
from proxy import hints
from proxy.catalog import Catalog, File, Ref
from proxy.hearsay import Hearsay, Lookup
from proxy.hub import errors, metadata, rewrite
from proxy.hub.access import Grants, is_card, token_key
from proxy.hub.client import Client
from proxy.hub.errors import HubError, OriginUnavailable
from proxy.hub.freshness import Freshness
from proxy.hub.metadata import FileMetadata
from proxy.hub.urls import FileRoute, Repo, is_commit, led_to
from proxy.listings import Listings
from proxy.locations import Locations
from proxy.origin import Answer, Origin
from proxy.refs import Refs
from proxy.version import VERSION

__all__ = ["Client", "Outcome", "ResolvedFile", "Resolver"]

log = logging.getLogger(__name__)

Outcome = Literal["hit", "miss", "stale"]
_MAX_HOPS = 5
_ANYBODY = Client(None, f"hubmesh/{VERSION}")
_HEARSAY_SECONDS = 0.4  # beyond `patience`: other nodes are near, and clients are about to give up


@dataclasses.dataclass(frozen=True, slots=True)
class ResolvedFile:
    """A file of a commit that this client may read. `size` is in bytes, `etag` is bare.

    `is_public`: anybody may read it. `outcome`: hit: known here; miss: the Hub was asked; stale: it could not be asked.
    """

    repo: Repo
    commit: str
    path: str
    metadata: FileMetadata
    is_public: bool
    outcome: Outcome

    @property
    def digest(self) -> Digest | None:
        return self.metadata.digest

    @property
    def size(self) -> int:
        return self.metadata.size

    @property
    def etag(self) -> str:
        return self.metadata.etag

    @property
    def at_commit(self) -> FileRoute:
        return FileRoute(self.repo, self.commit, self.path)


class Resolver:
    """Answers questions about files. Each is asked of the Hub once, however many clients wait for it.

    `patience`: seconds after which a client is told that there is no answer. Clients themselves give up after 10 s.
    """

    def __init__(
        self,
        *,
        origin: Origin,
        catalog: Catalog,
        listings: Listings,
        freshness: Freshness,
        grants: Grants,
        patience: float = 9.3,
    ) -> None:
        self._origin = origin
        self._catalog = catalog
        self._listings = listings
        self._refs = Refs(catalog, freshness)
        self._grants = grants
        self._patience = patience
        self._locations = Locations(origin.url)
        self.hearsay: Hearsay | None = None

    @property
    def may_ask(self) -> bool:
        """Whether the origin may be asked at all (not --offline)."""
        return not self._origin.is_offline

    async def file(
        self, route: FileRoute, client: Client, *, is_reload: bool = False, is_kept_only: bool = False
    ) -> ResolvedFile:
        """The file that a route names, if the client may read it.

        `is_reload`: ask the Hub what a branch or tag means now, however fresh its last word is. `is_kept_only`: never
        ask it.

        Raises HubError for what the Hub refuses, OriginUnavailable when the Hub would have to be asked and cannot be.
        """
        until = asyncio.get_running_loop().time() + self._patience
        is_news_wanted = is_reload and not is_commit(route.revision)
        commit = "" if is_news_wanted else self._refs.fresh(route)
        if commit and (known := self._known(route, commit, client, "hit")) is not None:
            return known
        if is_kept_only:
            raise errors.not_kept()
        at = FileRoute(route.repo, commit, route.path) if commit else route
        # A client that can have an older answer need not wait for the time-out that another one has just had.
        if self._origin.is_failing and (stale := await self._told(route, client, until)) is not None:
            self._origin.try_again(lambda: self._ask(at, client))
            return stale
        try:
            return await self._ask_in_time(at, client, until, is_reload=is_reload)
        except OriginUnavailable:
            if (stale := await self._told(route, client, until)) is not None:
                return stale
            raise
        except HubError as error:
            # A bare error may be from a filter in the Hub's place. It is passed on only if there is no older answer.
            if error.is_bare and (stale := await self._told(route, client, until)) is not None:
                return stale
            if error.code == "RevisionNotFound" and commit not in ("", route.revision):
                return await self._ask_in_time(route, client, until)  # the branch was rewritten since
            raise

    async def if_public(self, route: FileRoute, digest: Digest, size: int) -> ResolvedFile | None:
        """A file that anybody may read, if it is this blob; None if not, or if the Hub does not say so."""
        try:
            return await self.ask_public(route, digest, size)
        except OriginUnavailable as error:
            log.info("not known to be public: %s of %s: %s", route.path, route.repo, error)
            return None

    async def ask_public(self, route: FileRoute, digest: Digest, size: int) -> ResolvedFile | None:
        """Like `if_public`, but raises OriginUnavailable when the Hub does not answer."""
        try:
            file = await self.file(route, _ANYBODY)
        except HubError as error:
            log.info("not known to be public: %s of %s: %s", route.path, route.repo, error)
            return None
        if not file.is_public or (file.digest, file.size) != (digest, size):
            log.warning("%s of %s is not, for anybody, what it was said to be: %s", route.path, route.repo, digest)
            return None
        return file

    async def locate(self, file: ResolvedFile, client: Client, refused: Location | None = None) -> Location:
        """Where the bytes of a file are; one address serves many ranges until it expires.

        `refused` is the address that has just been rejected. Raises HubError and OriginUnavailable.
        """
        token = None if file.is_public else client.token
        if (location := self._locations.get(file.at_commit, token, time.time(), refused)) is not None:
            return location
        noted = self._catalog.file(str(file.repo), file.commit, file.path)
        known = noted.metadata if noted is not None and refused is None else None
        try:
            await self._ask_as(file.at_commit, token, client.user_agent, known, is_renewal=refused is not None)
        except OriginUnavailable as error:
            if token is not None or client.token is None or error.retry_after is None:
                raise
            token = client.token
            await self._ask_as(file.at_commit, token, client.user_agent, known, is_renewal=refused is not None)
        if (location := self._locations.get(file.at_commit, token, time.time(), refused)) is None:
            raise OriginUnavailable(f"{self._origin.host} did not say where the bytes of {file.path} are")
        return location

    async def again(self, file: ResolvedFile, client: Client, until: float) -> ResolvedFile:
        """The same file, asked of the Hub again for this client, whatever is known here. Raises as `file` does.

        `until` is by the loop's clock.
        """
        return await self._ask_in_time(file.at_commit, client, until)

    def may_share(self, file: ResolvedFile) -> bool:
        """Whether anybody may read a file now, as far as is known: its repository may have been closed since."""
        return file.is_public and not self._catalog.publicness(str(file.repo)).is_shut

    def forget(self, route: FileRoute) -> None:
        """Make the next client ask the Hub again what a branch or tag means."""
        self._catalog.forget_ref(str(route.repo), route.revision, time.time())

    def hint(self, file: ResolvedFile) -> bytes:
        """What a seed may be told so that it fetches this file for all nodes; empty if nothing."""
        if not file.is_public:
            return b""
        return hints.encode(file.at_commit)

    # --- what is known

    def _known(self, route: FileRoute, commit: str, client: Client, outcome: Outcome) -> ResolvedFile | None:
        """The file as the catalog has it, if this client may know; None when the Hub must be asked.

        Raises HubError for a file that this commit is known not to have.
        """
        repo = str(route.repo)
        known = self._catalog.file(repo, commit, route.path) or self._listed(repo, commit, route.path)
        if known is None or (known.metadata is not None and not known.metadata.is_provable):
            return None
        publicness, may_ask = self._catalog.publicness(repo), self.may_ask and outcome != "stale"
        is_open = publicness.is_open(known.open_at, time.time(), may_ask=may_ask)
        if not is_open and not self._grants.is_allowed(client.token, repo, time.monotonic()):
            return None
        if known.metadata is None:
            raise errors.entry_not_found(route.path, commit)
        if known.is_listed and may_ask and client.hub_version is None:
            return None  # clients other than huggingface_hub may use the Content-Type, which trees do not tell
        return ResolvedFile(route.repo, commit, route.path, known.metadata, is_open, outcome)

    def _listed(self, repo: str, commit: str, path: str) -> File | None:
        """A file that only a tree has told of, in a commit that the Hub said to be open."""
        listed = self._listings.find(repo, commit, path)
        if listed is None:
            return None
        file = File(*listed, is_listed=True)
        self._catalog.set_file(repo, commit, path, file)
        return file

    async def _told(self, route: FileRoute, client: Client, until: float) -> ResolvedFile | None:
        """The last known answer: given to this node, or to another node that it trusts."""
        stale = self._known(route, self._refs.last(route), client, "stale")
        if stale is not None or self.hearsay is None:
            return stale
        with contextlib.suppress(TimeoutError):  # the question goes on, and the next client finds its result
            async with asyncio.timeout_at(until + _HEARSAY_SECONDS):
                await self.hearsay.learn(Lookup(str(route.repo), route.revision, route.path))
        return self._known(route, self._refs.last(route), client, "stale")

    # --- asking the Hub

    async def _ask_in_time(
        self, route: FileRoute, client: Client, until: float, *, is_reload: bool = False
    ) -> ResolvedFile:
        """Ask the Hub; after `until` the question goes on without this client, and the next one finds its result."""
        try:
            async with asyncio.timeout_at(until):
                return await self._ask(route, client, is_reload=is_reload)
        except TimeoutError as error:
            raise OriginUnavailable(f"no answer from {self._origin.host} in time", is_timeout=True) from error

    async def _ask(self, route: FileRoute, client: Client, *, is_reload: bool = False) -> ResolvedFile:
        """Ask anonymously first: what an anonymous request gets, everybody may have, and one answer serves all."""
        publicness = self._catalog.publicness(str(route.repo))
        if client.token is None or not publicness.is_closed(time.time()):
            try:
                return await self._ask_as(route, None, client.user_agent, is_renewal=is_reload)
            except HubError as error:
                if client.token is None or not error.is_refusal:
                    raise
            except OriginUnavailable as error:
                # The anonymous quota is used up, but this client has its own.
                if client.token is None or error.retry_after is None:
                    raise
        return await self._ask_as(route, client.token, client.user_agent, is_renewal=is_reload)

    async def _ask_as(
        self,
        route: FileRoute,
        token: str | None,
        user_agent: str,
        known: FileMetadata | None = None,
        *,
        is_renewal: bool = False,
    ) -> ResolvedFile:
        repo = str(route.repo)
        changed_at = self._catalog.publicness(repo).changed_at  # do not join a question from before a write
        asker = token_key(token) if token else ""
        key = ("file", repo, route.revision, route.path, asker, changed_at, known, is_renewal)
        return await self._origin.flights.join(key, lambda: self._fetch(route, token, user_agent, known, is_renewal))

    async def _fetch(
        self, route: FileRoute, token: str | None, user_agent: str, known: FileMetadata | None, is_renewal: bool
    ) -> ResolvedFile:
        """Ask the Hub for a file's metadata, following redirects within the Hub.

        `known`: only the location of these bytes is wanted, so stop where the Hub confirms that it has them.
        `is_renewal`: an answer that another node got earlier will not do.
        """
        target, name, said_at = route.target, str(route.repo), time.time()
        wanted, commit = route.revision if is_commit(route.revision) else "", ""
        headers = {"Cache-Control": "no-cache"} if is_renewal else {}
        for _ in range(_MAX_HOPS):
            answer = await self._origin.ask(
                "HEAD", target, kind="metadata", token=token, user_agent=user_agent, headers=headers
            )
            said_at = min(said_at, answer.said_at)  # another node may have heard it earlier
            commit = commit or answer.headers.get("X-Repo-Commit", "")
            if answer.status >= 400:
                raise self._refusal(route, wanted or commit, answer, token, said_at)
            if commit and wanted and commit != wanted:
                raise OriginUnavailable(f"{self._origin.host} answered for commit {commit} instead of {wanted}")
            is_redirect, where = answer.status >= 300, answer.headers.get("Location", "")
            url = self._address(target, where) if is_redirect else self._origin.absolute(target)
            found = metadata.linked(answer.headers) if is_redirect else metadata.direct(answer.headers)
            if found is not None and found.contradicts_itself:
                raise OriginUnavailable(f"{self._origin.host} says that {route.path} is empty, contrary to its ETag")
            # Only the Hub names a commit; other servers may have a page at any address.
            if found is not None and is_commit(commit):
                self._catalog.led(name, rewrite.xet_repo(answer.headers.get("Link", "")), said_at)
                self._locations.keep(FileRoute(route.repo, commit, route.path), token, url, user_agent, said_at)
                self._note(route, commit, File(found), token, said_at)
                return ResolvedFile(route.repo, commit, route.path, found, self._may_all(route, token, said_at), "miss")
            if not is_redirect:
                raise OriginUnavailable(f"{self._origin.host} left out the commit, ETag or size: is --origin a Hub?")
            target = self._origin.follow(target, where)
            name = self._catalog.led(name, led_to(route, target), said_at)
            if known is not None and is_commit(commit) and metadata.named(target) == known.etag:
                url, at_commit = self._origin.absolute(target), FileRoute(route.repo, commit, route.path)
                self._locations.keep(at_commit, token, url, user_agent, said_at)
                return ResolvedFile(route.repo, commit, route.path, known, self._may_all(route, token, said_at), "miss")
        raise OriginUnavailable(f"{self._origin.host} sent {_MAX_HOPS} redirects in a row for {route.repo}")

    def _may_all(self, route: FileRoute, token: str | None, said_at: float) -> bool:
        """Whether an answer just given holds for everybody: it was anonymous, and no refusal has come meanwhile."""
        publicness = self._catalog.publicness(str(route.repo))
        return token is None and publicness.is_open(said_at, time.time(), may_ask=self.may_ask)

    def _address(self, target: str, where: str) -> str:
        """The absolute address of a redirect from `target`. Raises OriginUnavailable when it is not a valid one."""
        try:
            url = urljoin(self._origin.absolute(target), where)
            parts = urlsplit(url)
            if where and parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
                return url
        except ValueError:  # impossible brackets or port
            pass
        raise OriginUnavailable(f"{self._origin.host} sent a redirect without a valid address")

    def _refusal(self, route: FileRoute, commit: str, answer: Answer, token: str | None, said_at: float) -> HubError:
        error = HubError.of(answer.status, answer.headers, answer.body)
        repo = str(route.repo)
        if error.is_missing_entry and is_commit(commit):
            self._note(route, commit, File(None), token, said_at)
            return errors.entry_not_found(route.path, commit)
        if error.code == "RevisionNotFound" and not is_commit(route.revision):
            self._catalog.forget_ref(repo, route.revision, said_at)
        if error.is_refusal and not error.is_bare:
            if token is None:
                self._catalog.refused(repo, said_at, is_hidden=error.code != "GatedRepo")
            else:
                self._grants.revoke(token, repo, said_at)
        return error

    def _note(self, route: FileRoute, commit: str, file: File, token: str | None, said_at: float) -> None:
        """Keep the Hub's answer, and what it proves about who may read.

        A missing file proves nothing: the Hub may say so before it checks access.
        """
        repo = str(route.repo)
        proves = file.metadata is not None and not is_card(route.path)
        if token is None:
            file = msgspec.structs.replace(file, open_at=said_at)
            self._catalog.told(repo, said_at, is_open=proves)
        else:
            known = self._catalog.file(repo, commit, route.path)
            file = msgspec.structs.replace(file, open_at=known.open_at if known is not None else 0.0)
            if proves:
                self._grants.allow(token, repo, time.monotonic(), said_at)
        if file.metadata is None or file.metadata.is_provable:  # kept permanently, hence only what bytes can prove
            self._catalog.set_file(repo, commit, route.path, file)
        if not is_commit(route.revision):
            self._catalog.set_ref(repo, route.revision, Ref(commit, said_at))
