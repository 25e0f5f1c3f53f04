"""From (repository, revision, path) to a commit, a digest and a size, for those who may know."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Literal, TypeVar, cast
from urllib.parse import urljoin, urlsplit

import msgspec

from mesh.content import Digest
from mesh.transfer import Location
from proxy.catalog import Catalog, File, Publicness, Ref
from proxy.hub import errors, metadata
from proxy.hub.access import Grants, token_key
from proxy.hub.errors import HubError, OriginUnavailable
from proxy.hub.freshness import NOT_PUBLIC_SECONDS, PUBLIC_SECONDS, Freshness
from proxy.hub.metadata import FileMetadata
from proxy.hub.urls import FileRoute, Repo, is_commit
from proxy.origin import Answer, Origin

log = logging.getLogger(__name__)

Outcome = Literal["hit", "miss", "stale"]
_HUB_VERSION = re.compile(r"\bhf_hub/(\d+)\.(\d+)")
_MAX_HOPS = 5
_MAX_LOCATIONS = 5000
_SOON = 60.0  # seconds: an address closer to its end is asked for anew

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True)
class Client:
    """Who asks: the token that came with the request, and the software."""

    token: str | None = dataclasses.field(default=None, repr=False)
    user_agent: str = ""

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> Client:
        scheme, _, token = headers.get("Authorization", "").partition(" ")
        return cls(
            token.strip() if scheme.lower() == "bearer" and token.strip() else None, headers.get("User-Agent", "")
        )

    @property
    def hub_version(self) -> tuple[int, int] | None:
        """Version of huggingface_hub, None for other software."""
        match = _HUB_VERSION.search(self.user_agent)
        return (int(match[1]), int(match[2])) if match else None

    @property
    def waits_on_429(self) -> bool:
        """Recent clients wait and try again on 429 and give up on 5xx; 0.x the other way round."""
        return (self.hub_version or (1, 0)) >= (1, 0)

    @property
    def accepts_unknown_size(self) -> bool:
        return (self.hub_version or (0, 0)) >= (1, 33)


@dataclasses.dataclass(frozen=True, slots=True)
class ResolvedFile:
    """A file of a commit that this client may read. `size` in bytes, `etag` bare.

    `is_public`: anybody may. `outcome`: known here, asked of the Hub just now, or the Hub could not be asked.
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


class Hint(msgspec.Struct, frozen=True):
    """What a seed needs to fetch a public file itself. No token, no signed address."""

    repo: str
    commit: str
    path: str


class Resolver:
    """Answers for files. Everything is asked of the Hub once, however many clients wait for it."""

    def __init__(self, *, origin: Origin, catalog: Catalog, freshness: Freshness, grants: Grants) -> None:
        self._origin = origin
        self._catalog = catalog
        self._freshness = freshness
        self._grants = grants
        self._flights: dict[tuple[str, ...], asyncio.Task[object]] = {}
        self._locations: OrderedDict[tuple[str, str, str, str], Location] = OrderedDict()

    @property
    def may_ask(self) -> bool:
        """Whether the origin can be asked at all."""
        return not self._origin.is_offline

    async def file(self, route: FileRoute, client: Client) -> ResolvedFile:
        """Which file this is and whether the client may have it.

        Raises HubError for what the Hub refuses, OriginUnavailable when it would have to be asked and cannot be.
        """
        repo, ref = str(route.repo), None
        commit: str | None = route.revision if is_commit(route.revision) else None
        if commit is None:
            ref = self._catalog.ref(repo, route.revision)
            if ref is not None and self._freshness.is_fresh(ref.said_at, time.time()):
                commit = ref.commit
        if commit is not None and (known := self._known(route, commit, client, "hit")) is not None:
            return known
        asked = route if commit is None else dataclasses.replace(route, revision=commit)
        try:
            return await self._ask(asked, client)
        except OriginUnavailable:
            commit = commit or (ref.commit if ref is not None else None)
            if commit is not None and (stale := self._known(route, commit, client, "stale")) is not None:
                return stale
            raise

    async def locate(self, file: ResolvedFile, client: Client, refused: Location | None = None) -> Location:
        """Where the bytes of a file can be had; one address serves many ranges until it expires.

        `refused` is the address that was just turned down. Raises HubError and OriginUnavailable.
        """
        token = None if file.is_public else client.token
        key = self._location_key(file, token)
        location = self._locations.get(key)
        if location is not None and location is not refused and location.expires_at - time.time() > _SOON:
            return location
        self._locations.pop(key, None)
        await self._once(("locate", *key), lambda: self._fetch(file.at_commit, token, client.user_agent))
        location = self._locations.get(key)
        if location is None:
            raise OriginUnavailable(f"the Hub says nothing of where {file.path} is")
        return location

    def is_public(self, repo: Repo) -> bool:
        """Whether the Hub lately gave something of it to an anonymous request."""
        known = self._catalog.publicness(str(repo))
        return known is not None and known.is_public

    def hint(self, file: ResolvedFile) -> bytes:
        """What may be told to a seed so that it fetches this file for everyone; empty if nothing."""
        if not file.is_public:
            return b""
        return msgspec.msgpack.encode(Hint(str(file.repo), file.commit, file.path))

    def of_hint(self, hint: bytes) -> ResolvedFile | None:
        """The file that another node's hint speaks of, to be located as nobody; None for a bad hint.

        Its metadata stays unknown: the blob's digest and size come with the swarm, and the digest is proven.
        """
        try:
            said = msgspec.msgpack.decode(hint, type=Hint)
            repo = Repo.parse(said.repo)
        except (msgspec.DecodeError, ValueError):
            return None
        if not is_commit(said.commit) or not said.path or len(said.path) > 4096:
            return None
        return ResolvedFile(repo, said.commit, said.path, FileMetadata("", 0), is_public=True, outcome="hit")

    # --- what is known

    def _known(self, route: FileRoute, commit: str, client: Client, outcome: Outcome) -> ResolvedFile | None:
        """What the catalog has, if this client may know; None when the Hub must be asked.

        Raises HubError for a file that this commit is known not to have.
        """
        repo, now = str(route.repo), time.time()
        known = self._catalog.file(repo, commit, route.path)
        if known is None:
            return None
        publicness = self._catalog.publicness(repo)
        is_public = publicness is not None and publicness.is_public
        if is_public and publicness is not None and outcome == "hit" and self.may_ask:
            is_public = now - publicness.said_at < PUBLIC_SECONDS
        if not is_public and not self._grants.is_allowed(client.token, repo, time.monotonic()):
            return None
        if known.metadata is None:
            raise errors.entry_not_found(route.path, commit)
        return ResolvedFile(route.repo, commit, route.path, known.metadata, is_public, outcome)

    # --- asking the Hub

    async def _ask(self, route: FileRoute, client: Client) -> ResolvedFile:
        """Ask as nobody first: what nobody is refused, everybody may have, and one answer does for all."""
        repo, now = str(route.repo), time.time()
        publicness = self._catalog.publicness(repo)
        is_private = publicness is not None and not publicness.is_public
        if client.token and is_private and publicness is not None and now - publicness.said_at < NOT_PUBLIC_SECONDS:
            return await self._ask_as(route, client.token, client.user_agent)
        try:
            return await self._ask_as(route, None, client.user_agent)
        except HubError as error:
            if error.status not in (401, 403, 404) or error.code in ("EntryNotFound", "RevisionNotFound"):
                raise
            self._catalog.set_publicness(repo, Publicness(False, now))
            if not client.token:
                raise
            return await self._ask_as(route, client.token, client.user_agent)
        except OriginUnavailable as error:
            if not client.token or error.retry_after is None:
                raise
            # Nobody's quota is used up; this client has its own.
            return await self._ask_as(route, client.token, client.user_agent)

    async def _ask_as(self, route: FileRoute, token: str | None, user_agent: str) -> ResolvedFile:
        key = ("file", str(route.repo), route.revision, route.path, token_key(token) if token else "")
        file = await self._once(key, lambda: self._fetch(route, token, user_agent))
        return dataclasses.replace(file, repo=route.repo, path=route.path)

    async def _once(self, key: tuple[str, ...], work: Callable[[], Awaitable[T]]) -> T:
        """One flight for all who ask the same at the same time; it goes on when one of them leaves."""
        flight = self._flights.get(key)
        if flight is None:
            flight = asyncio.get_running_loop().create_task(_run(work), name="resolve")
            self._flights[key] = flight
            flight.add_done_callback(lambda _: self._flights.pop(key, None))
        return cast("T", await asyncio.shield(flight))  # the key fixes the type

    async def _fetch(self, route: FileRoute, token: str | None, user_agent: str) -> ResolvedFile:
        """Ask the Hub for a file's metadata, following it where it leads within the Hub."""
        target, commit, said_at, repo = route.target, "", time.time(), str(route.repo)
        for _ in range(_MAX_HOPS):
            answer = await self._origin.ask("HEAD", target, kind="metadata", token=token, user_agent=user_agent)
            commit = commit or answer.headers.get("X-Repo-Commit", "")
            address = self._origin.absolute(target)
            if answer.status in (301, 302, 303, 307, 308):
                where = answer.headers.get("Location", "")
                found = metadata.linked(answer.headers)
                if found is not None and commit:
                    self._keep_location(route, commit, token, urljoin(address, where), user_agent)
                    return self._keep(route, commit, found, token, said_at)
                target = self._follow(address, where)
                continue
            if answer.status == 200:
                found = metadata.direct(answer.headers)
                if found is None or not is_commit(commit):
                    raise OriginUnavailable(f"{self._origin.host} does not answer as a Hub would")
                self._keep_location(route, commit, token, address, user_agent)
                return self._keep(route, commit, found, token, said_at)
            raise self._refusal(route, answer, token, said_at)
        raise OriginUnavailable(f"{self._origin.host} sends us in circles for {repo}")

    def _follow(self, address: str, where: str) -> str:
        """The target on the Hub that a redirect names. Raises OriginUnavailable when it leads elsewhere."""
        url, hub = urljoin(address, where), urlsplit(self._origin.url)
        parts = urlsplit(url)
        if not where or (parts.scheme, parts.netloc) != (hub.scheme, hub.netloc):
            raise OriginUnavailable(f"{self._origin.host} redirects metadata to {parts.netloc or 'nowhere'}")
        path = parts.path.removeprefix(hub.path) if hub.path else parts.path
        return f"{path}?{parts.query}" if parts.query else path

    def _refusal(self, route: FileRoute, answer: Answer, token: str | None, said_at: float) -> Exception:
        if answer.status == 429:
            return OriginUnavailable(f"{self._origin.host} has had too many requests", retry_after=self._origin.pause)
        error = HubError.of(answer.status, answer.headers, answer.body)
        repo, commit = str(route.repo), answer.headers.get("X-Repo-Commit", "")
        if error.is_missing_entry and is_commit(commit):
            self._admit(repo, token, said_at)
            self._note_ref(route, commit, said_at)
            self._catalog.set_file(repo, commit, route.path, File(None))
            return errors.entry_not_found(route.path, commit)
        if token and error.status in (401, 403, 404):
            self._grants.revoke(token, repo)
        return error

    def _keep(
        self, route: FileRoute, commit: str, found: FileMetadata, token: str | None, said_at: float
    ) -> ResolvedFile:
        repo = str(route.repo)
        self._admit(repo, token, said_at)
        self._note_ref(route, commit, said_at)
        self._catalog.set_file(repo, commit, route.path, File(found))
        return ResolvedFile(route.repo, commit, route.path, found, token is None, "miss")

    def _admit(self, repo: str, token: str | None, said_at: float) -> None:
        """The Hub let this asker in."""
        if token is None:
            self._catalog.set_publicness(repo, Publicness(True, said_at))
        else:
            self._grants.allow(token, repo, time.monotonic())

    def _note_ref(self, route: FileRoute, commit: str, said_at: float) -> None:
        if not is_commit(route.revision):
            self._catalog.set_ref(str(route.repo), route.revision, Ref(commit, said_at))

    def _keep_location(self, route: FileRoute, commit: str, token: str | None, url: str, user_agent: str) -> None:
        """Remember where the bytes are. To the Hub itself the token goes along, to its storage never."""
        hub, parts = urlsplit(self._origin.url), urlsplit(url)
        if (parts.scheme, parts.netloc) == (hub.scheme, hub.netloc):
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            location = Location(url, headers | ({"User-Agent": user_agent} if user_agent else {}), time.time() + 300)
        else:
            location = Location(url, expires_at=metadata.expiry(url, time.time()))
        key = (str(route.repo), commit, route.path, token_key(token) if token else "")
        self._locations[key] = location
        self._locations.move_to_end(key)
        while len(self._locations) > _MAX_LOCATIONS:
            self._locations.popitem(last=False)

    def _location_key(self, file: ResolvedFile, token: str | None) -> tuple[str, str, str, str]:
        return str(file.repo), file.commit, file.path, token_key(token) if token else ""


async def _run(work: Callable[[], Awaitable[object]]) -> object:
    return await work()
