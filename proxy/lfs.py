"""`git lfs pull`: the Hub decides who may have which object, and the bytes come through this node.

Git itself passes through. In answers to batch requests for downloads, signed addresses are replaced by ours. Clients
come to those with their own credentials again, and the Hub's answer to them holds for as long as a grant.
"""

from __future__ import annotations

import time
from collections.abc import Hashable
from dataclasses import dataclass

from aiohttp import web

from mesh.blobs import Blobs
from mesh.bounded import Bounded
from mesh.outflow import Outflow
from mesh.transfer import Location
from proxy import bodies, caching, resumed
from proxy.catalog import Catalog, File
from proxy.files import Wanted, first_byte_by, is_refused, open_blob
from proxy.hub import errors, lfs
from proxy.hub.access import Grants, token_key
from proxy.hub.client import Client
from proxy.hub.errors import HubError, OriginUnavailable
from proxy.hub.lfs import BatchRoute, Missing, Object, ObjectRoute
from proxy.hub.metadata import FileMetadata
from proxy.hub.urls import OtherRoute
from proxy.locations import as_source, renew_at
from proxy.origin import Origin, Question
from proxy.passthrough import Passthrough
from proxy.ranges import select
from proxy.visible import visible_base

_MAX_QUESTION = 4 << 20
_MAX_KEPT = 5000


@dataclass(frozen=True, slots=True)
class _Said:
    object: Object
    at: float  # seconds since the epoch


@dataclass(frozen=True, slots=True)
class LfsAccess:
    """One client's access to one object in the Hub's storage."""

    lfs: Lfs
    route: ObjectRoute
    client: Client

    @property
    def key(self) -> Hashable:
        return self.route, self.client.token

    @property
    def hint(self) -> bytes:
        return b""  # a seed needs a commit and a path, which git does not tell

    async def locate(self, refused: Location | None) -> Location:
        with as_source():
            return _location(await self.lfs.find(self.route, self.client, refused))


class Lfs:
    """Answers batch requests, and HEAD and GET for objects."""

    def __init__(
        self,
        *,
        origin: Origin,
        catalog: Catalog,
        grants: Grants,
        passthrough: Passthrough,
        blobs: Blobs,
        outflow: Outflow,
    ) -> None:
        self._origin = origin
        self._catalog = catalog
        self._grants = grants
        self._passthrough = passthrough
        self._blobs = blobs
        self._outflow = outflow
        self._said: Bounded[tuple[str, str, str], _Said] = Bounded(_MAX_KEPT)

    async def batch(self, request: web.BaseRequest, route: OtherRoute, about: BatchRoute) -> web.StreamResponse:
        """Answer a batch request. Uploads, and bodies that are no batch request, pass through unchanged.

        Raises HubError and OriginUnavailable.
        """
        body = await bodies.read(request, _MAX_QUESTION)
        if not isinstance(body, bytes):
            raise HubError(
                413, message=f"a batch request of more than {_MAX_QUESTION} bytes: ask for fewer objects at a time"
            )
        asked = lfs.over_http(body)
        client, now = lfs.client_of(request.headers), time.time()
        if asked is None or client is None:
            return await self._passthrough.handle(request, route, body=body)
        visible = visible_base(request) + route.prefix

        def address(found: Object) -> str:
            return visible + lfs.object_target(about.repo, found.digest, found.size)

        def change(answer: bytes) -> bytes:
            for found in lfs.objects(answer, now).values():
                if isinstance(found, Object):
                    self._keep(str(about.repo), client, found, now)
            return lfs.through_us(answer, address, request.headers.get("Authorization", ""))

        response = await self._passthrough.handle(request, route, body=asked, change=change)
        if response.status in (401, 403, 404):
            self._refused(str(about.repo), client, now, is_bare=errors.is_bare(response.headers))
        return response

    async def object(self, request: web.BaseRequest, route: ObjectRoute) -> web.StreamResponse:
        """Answer with the bytes of an object.

        Raises HubError for what the Hub refuses, OriginUnavailable when it cannot be asked.
        """
        client, until = lfs.client_of(request.headers) or Client(), first_byte_by(self._blobs)
        found = await self.find(route, client)
        etag = f'"{found.digest.hex}"'
        selection = select(
            found.size,
            etag,
            range_=request.headers.get("Range") if request.method == "GET" else None,
            if_range=request.headers.get("If-Range"),
            if_match=request.headers.get("If-Match"),
            if_none_match=request.headers.get("If-None-Match"),
        )
        selection = resumed.anew(selection, found.size, self._catalog.disproof(found.digest), time.time())
        headers = {"ETag": etag, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        if content_range := selection.content_range(found.size):
            headers["Content-Range"] = content_range
        request["outcome"] = "hit"
        if request.method == "HEAD" and selection.status == 200:
            headers["Content-Length"] = str(found.size)
        if request.method == "HEAD" or selection.status in (304, 412, 416) or not found.size:
            return web.Response(status=selection.status, headers=headers)
        wanted = Wanted(found.digest, found.size, found.digest.hex, is_public=self._is_public(route))
        access = None if self._origin.is_offline else LfsAccess(self, route, client)
        is_whole = selection.status == 200 or selection.is_rest
        try:
            source = await open_blob(
                self._blobs, wanted, selection.start, selection.stop, access, client, until, is_whole=is_whole
            )
        except OriginUnavailable as error:
            if is_refused(error):
                await self.find(route, client)  # raises the Hub's own refusal, if there is one
            raise
        try:
            request["outcome"] = outcome = "hit" if source.is_here else "miss"
            headers["Cache-Status"] = caching.STATUS[outcome]
            return await self._outflow.respond(
                request, selection.status, headers, source, selection.start, selection.stop
            )
        finally:
            source.close()

    async def find(self, route: ObjectRoute, client: Client, refused: Location | None = None) -> Object:
        """The Hub's answer about an object for this client, new or kept; `refused` is an address that no longer works.

        Raises HubError and OriginUnavailable.
        """
        repo = str(route.repo)
        said = self._said.get((repo, route.digest.hex, _key(client)))
        if said is not None and self._holds(repo, said, client) and _location(said.object) != refused:
            return said.object
        key = ("lfs", repo, route.digest, _key(client))
        return await self._origin.flights.join(key, lambda: self._ask(route, client))

    # --- inside

    async def _ask(self, route: ObjectRoute, client: Client) -> Object:
        repo, said_at = str(route.repo), time.time()
        question = Question(
            "POST",
            f"{route.repo.file_prefix}.git/info/lfs/objects/batch",
            "metadata",
            client.user_agent,
            {"Accept": lfs.MEDIA_TYPE, "Content-Type": lfs.MEDIA_TYPE},
            lfs.question(route.digest, route.size),
        )
        answer = await self._origin.ask_directly(question, client.token)
        if answer.status != 200:
            error = HubError.of(answer.status, answer.headers, answer.body)
            if error.is_refusal:
                self._refused(repo, client, said_at, is_bare=error.is_bare)
            raise error
        found = lfs.objects(answer.body, said_at).get(route.digest)
        if isinstance(found, Missing):
            self._said.pop((repo, route.digest.hex, _key(client)), None)
            raise HubError(found.status if 400 <= found.status < 500 else 502, message=found.message)
        if found is None:
            raise OriginUnavailable(f"{self._origin.host} did not say where the bytes of {route.digest.hex} are")
        self._keep(repo, client, found, said_at)
        return found

    def _keep(self, repo: str, client: Client, found: Object, now: float) -> None:
        self._said[repo, found.digest.hex, _key(client)] = _Said(found, now)
        path = f".git/lfs/objects/{found.digest.hex}"
        # So that the blob can be listed, pinned and removed, and is no longer shared when its repository is closed.
        if self._catalog.file(repo, "lfs", path) is None:
            file = File(FileMetadata(found.digest.hex, found.size))
            self._catalog.set_file(repo, "lfs", path, file, is_name=self._catalog.blob_name(found.digest) is None)

    def _holds(self, repo: str, said: _Said, client: Client) -> bool:
        """Whether the Hub's answer to this client still holds, and the address that came with it."""
        now, publicness = time.time(), self._catalog.publicness(repo)
        voided_at = publicness.changed_at
        if client.token is None:
            voided_at = max(voided_at, publicness.closed_at, publicness.hidden_at)
        else:
            voided_at = max(voided_at, self._grants.refused_at(client.token, repo))
        until = min(renew_at(said.object.expires_at, said.at), said.at + self._grants.life)
        return said.at > voided_at and now < until

    def _refused(self, repo: str, client: Client, said_at: float, *, is_bare: bool) -> None:
        """The Hub refused this client: its earlier answers are void, here and for files by name."""
        for key in [key for key in self._said if key[0] == repo and key[2] == _key(client)]:
            del self._said[key]
        if client.token is not None:
            self._grants.revoke(client.token, repo, said_at)
        elif not is_bare:
            self._catalog.refused(repo, said_at, is_hidden=False)  # LFS does not tell hidden from closed

    def _is_public(self, route: ObjectRoute) -> bool:
        """Whether anybody may have the object: only if the Hub gave this very object to an anonymous request.

        Other open files of its repository prove nothing, since it may have been pushed behind a gate later.
        """
        said = self._said.get((str(route.repo), route.digest.hex, ""))
        return said is not None and self._holds(str(route.repo), said, Client())


def _key(client: Client) -> str:
    return token_key(client.token) if client.token else ""


def _location(found: Object) -> Location:
    return Location(found.url, found.headers, found.expires_at)
