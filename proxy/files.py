"""`/resolve/`: from a file's name at the Hub to the bytes of a blob."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Hashable
from dataclasses import dataclass
from functools import lru_cache

from aiohttp import web

from mesh.access import OriginAccess
from mesh.blob import Blob
from mesh.blobs import Blobs
from mesh.content import Digest
from mesh.errors import LocationRefused, MeshError, SourceFailed, StoreBusy, StoreFull, TooManyFiles
from mesh.fill import Reader
from mesh.outflow import Outflow
from mesh.transfer import Location
from mesh.whole import WholeResponse
from proxy import caching, hints, resumed
from proxy.catalog import Catalog
from proxy.hub import cors, errors
from proxy.hub.errors import HubError, OriginUnavailable
from proxy.hub.metadata import FileMetadata, disposition
from proxy.hub.urls import FileRoute
from proxy.hub.xet import PLAIN_HTTP_LIMIT, XetUse, is_hash, is_spoken
from proxy.locations import as_source
from proxy.ranges import Selection, select
from proxy.resolve import Client, ResolvedFile, Resolver
from proxy.visible import visible_base

# Seconds from a client's request to its first byte, or to an answer that tells it to come again. Clients give up after
# 10 s; finding out which file they mean is part of this time.
_FIRST_BYTE_SECONDS = 8.5
_FIRST_BYTE_OF_CROWD = 6.0  # the same when many nodes want the blob, so that our own answer may be seconds late as well
# Seconds until a client retries, when running downloads fill the store. They take a while; clients retry five times.
_ROOM_SECONDS = 10


@dataclass(frozen=True, slots=True)
class HubAccess:
    """One client's access to one file at the Hub, with the client's own token, which never leaves this node."""

    resolver: Resolver
    file: ResolvedFile
    client: Client

    @classmethod
    async def of_hint(cls, hint: bytes, resolver: Resolver, digest: Digest, size: int) -> HubAccess | None:
        """A seed's own access to a public file that another node was asked for.

        None if the Hub does not give this blob to an anonymous request.
        """
        route = hints.decode(hint)
        if route is None:
            return None
        file = await resolver.if_public(route, digest, size)
        return None if file is None else cls(resolver, file, Client())

    @property
    def key(self) -> Hashable:
        return self.file.repo, self.file.commit, self.file.path, self.client.token

    @property
    def hint(self) -> bytes:
        return self.resolver.hint(self.file)

    async def locate(self, refused: Location | None) -> Location:
        with as_source():
            return await self.resolver.locate(self.file, self.client, refused)


class Files:
    """Answers HEAD and GET for files of repositories."""

    def __init__(
        self, *, resolver: Resolver, catalog: Catalog, blobs: Blobs, outflow: Outflow, xet: XetUse = "auto"
    ) -> None:
        self._xet = xet
        self._resolver = resolver
        self._catalog = catalog
        self._blobs = blobs
        self._outflow = outflow

    async def handle(self, request: web.BaseRequest, route: FileRoute, client: Client) -> web.StreamResponse:
        """Answer a client. Raises HubError and OriginUnavailable when there is no file to answer with."""
        until = first_byte_by(self._blobs)
        is_reload, is_kept_only = caching.wish(request.headers)
        file = await self._resolver.file(route, client, is_reload=is_reload, is_kept_only=is_kept_only)
        selection = select(
            file.size,
            f'"{file.etag}"',
            range_=request.headers.get("Range") if request.method == "GET" else None,
            if_range=request.headers.get("If-Range"),
            if_match=request.headers.get("If-Match"),
            if_none_match=request.headers.get("If-None-Match"),
        )
        if selection.status == 206 and file.digest is not None:
            disproof = self._catalog.disproof(file.digest)
            selection = resumed.choose(selection, file.size, file.path, client, disproof, time.time())
        headers = _headers(file.commit, file.path, file.metadata) | self._xet_headers(request, file, route.prefix)
        if content_range := selection.content_range(file.size):
            headers["Content-Range"] = content_range
        if request.method == "HEAD":
            return self._head(request, file, client, selection, headers)
        if selection.status in (304, 412, 416) or file.metadata.is_empty:
            headers["Cache-Status"] = caching.STATUS["stale" if file.outcome == "stale" else "hit"]
            request["outcome"] = "hit"
            return WholeResponse(selection.status, headers, None if selection.status == 304 else b"")
        if is_kept_only and (file.digest is None or not self._blobs.holds(file.digest)):
            raise errors.not_kept()
        try:
            return await self._body(request, file, client, selection, headers, until)
        except HubError as error:
            if error.code != "RevisionNotFound" or file.commit == route.revision:
                raise
            self._resolver.forget(route)  # the branch was rewritten since: it exists, but means another commit now
            raise errors.come_again(f"{route.revision} of {file.repo} has just changed: try again", client) from error

    def _head(
        self,
        request: web.BaseRequest,
        file: ResolvedFile,
        client: Client,
        selection: Selection,
        headers: dict[str, str],
    ) -> WholeResponse:
        request["outcome"] = file.outcome
        headers["Cache-Status"] = caching.STATUS[file.outcome]
        if selection.status != 200:
            return WholeResponse(selection.status, headers)
        if file.size > PLAIN_HTTP_LIMIT and client.accepts_unknown_size and "X-Xet-Hash" not in headers:
            headers.pop("X-Linked-Size", None)
        else:
            headers["Content-Length"] = str(file.size)
        return WholeResponse(200, headers)

    def _xet_headers(self, request: web.BaseRequest, file: ResolvedFile, prefix: str) -> dict[str, str]:
        """Headers that lead a client to this node's Xet server (proxy/xet.py); none for most files."""
        xet_hash = file.metadata.xet_hash
        if not is_spoken(self._xet, file.size) or not file.size or not is_hash(xet_hash):
            return {}
        base = visible_base(request) + prefix
        return {
            "X-Xet-Hash": xet_hash,
            "Link": f'<{base}{file.repo.api_prefix}/xet-read-token/{file.commit}>; rel="xet-auth", '
            f'<{base}/-/xet/v1/reconstructions/{xet_hash}>; rel="xet-reconstruction-info"',
        }

    async def _body(
        self,
        request: web.BaseRequest,
        file: ResolvedFile,
        client: Client,
        selection: Selection,
        headers: dict[str, str],
        until: float,
    ) -> web.StreamResponse:
        is_whole = selection.status == 200 or selection.is_rest
        source = await self.open(file, client, selection.start, selection.stop, until, is_whole=is_whole)
        try:
            outcome = "hit" if source.is_here else "miss"
            request["outcome"] = "stale" if file.outcome == "stale" else outcome
            headers["Cache-Status"] = caching.STATUS[request["outcome"]]
            return await self._outflow.respond(
                request, selection.status, headers, source, selection.start, selection.stop
            )
        finally:
            source.close()

    async def open(
        self, file: ResolvedFile, client: Client, start: int, stop: int, until: float, *, is_whole: bool
    ) -> Blob | Reader:
        """A source for the bytes from `start` up to `stop`, whose first byte is available; the caller closes it.

        `until`: the time, by the loop's clock, at which the client is told to come again: see `first_byte_by`.

        Raises HubError or OriginUnavailable.
        """
        try:
            return await self._open(file, client, start, stop, until, is_whole=is_whole)
        except OriginUnavailable as error:
            if not is_refused(error):
                raise
            # What is known of the file is outdated: the Hub has to refuse this client itself, or let it in with its
            # token.
            now = await self._resolver.again(file, client, until)
            if now.is_public == file.is_public or now.metadata.digest != file.digest:
                raise
            return await self._open(now, client, start, stop, until, is_whole=is_whole)

    async def _open(
        self, file: ResolvedFile, client: Client, start: int, stop: int, until: float, *, is_whole: bool
    ) -> Blob | Reader:
        if file.digest is None:
            raise HubError(
                502, message=f"the origin's ETag of {file.path} is not a digest, so its bytes cannot be verified"
            )
        access = HubAccess(self._resolver, file, client) if self._resolver.may_ask else None
        wanted = Wanted(file.digest, file.size, file.path, is_public=self._resolver.may_share(file))
        return await open_blob(self._blobs, wanted, start, stop, access, client, until, is_whole=is_whole)


def first_byte_by(blobs: Blobs) -> float:
    """When, by the loop's clock, a client whose request comes now must have its first byte.

    If there is none by then, it must have an answer that tells it when to come again.
    """
    return asyncio.get_running_loop().time() + (_FIRST_BYTE_OF_CROWD if blobs.is_crowd else _FIRST_BYTE_SECONDS)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A blob that a client may have. `name` is for error messages."""

    digest: Digest
    size: int
    name: str
    is_public: bool


async def open_blob(
    blobs: Blobs,
    wanted: Wanted,
    start: int,
    stop: int,
    access: OriginAccess | None,
    client: Client,
    until: float,
    *,
    is_whole: bool,
) -> Blob | Reader:
    """A source for the bytes from `start` up to `stop`, whose first byte is available; the caller closes it.

    `until` is by the loop's clock. Raises HubError or OriginUnavailable.
    """
    source: Blob | Reader | None = None
    try:
        source = await blobs.read(
            wanted.digest, wanted.size, start, stop, access, is_whole=is_whole, is_public=wanted.is_public
        )
        if source.ready(start) <= start:
            async with asyncio.timeout_at(until):
                await source.wait(start)
    except BaseException as error:
        if source is not None:
            source.close()
        if isinstance(error, TimeoutError):
            raise errors.come_again(
                f"{wanted.name} is being fetched, but these bytes have not come yet: try again", client
            ) from error
        if isinstance(error, MeshError):
            raise _as_hub_error(error, wanted.name, client) from error
        raise
    return source


def is_refused(error: OriginUnavailable) -> bool:
    """Whether the Hub was asked for the location of the bytes and refused."""
    return isinstance(error.__cause__, LocationRefused)


def _as_hub_error(error: MeshError, name: str, client: Client) -> HubError | OriginUnavailable:
    if isinstance(error, StoreBusy):
        return errors.come_again(f"hubmesh has no room for {name} just now: {error}", client, _ROOM_SECONDS)
    if isinstance(error, TooManyFiles):
        return errors.come_again(f"hubmesh cannot serve {name} just now: {error}", client)
    if isinstance(error, StoreFull):
        return HubError(507, message=f"hubmesh has no room for {name}: {error}")
    retry_after = error.retry_after if isinstance(error, SourceFailed) else None
    return OriginUnavailable(f"{name}: {error}", retry_after=retry_after)


@lru_cache(1024)
def _headers(commit: str, path: str, metadata: FileMetadata) -> dict[str, str]:
    """The headers that are the same in every answer about a file. Cached: callers must not change them."""
    headers = {
        "ETag": f'"{metadata.etag}"',
        "X-Repo-Commit": commit,
        "Accept-Ranges": "bytes",
        "Content-Type": metadata.content_type or "application/octet-stream",
        "Content-Disposition": metadata.content_disposition or disposition(path),
        **cors.READABLE,
    }
    if metadata.digest is not None and metadata.digest.algorithm == "sha256":
        headers["X-Linked-Etag"] = f'"{metadata.etag}"'
        headers["X-Linked-Size"] = str(metadata.size)
    return headers
