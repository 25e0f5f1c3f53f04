"""The node as a Xet server, for files that clients take over Xet alone: the bytes come as all bytes do.

A client asks the Hub for a token to read a repository: we answer with a pass and name ourselves as the server. With it
the client asks how a file is put together, and is sent to xorbs under addresses that carry a pass for this one file.
Each request is checked as one for the file itself is: by its repository, and by the token that the pass was given to.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import quote, unquote, urljoin, urlsplit

import msgspec
from aiohttp import web

from mesh.blob import Blob
from mesh.blobs import Blobs
from mesh.errors import MeshError
from mesh.fill import Reader
from mesh.stats import Stats
from proxy.api import Api, visible_base
from proxy.catalog import Catalog, XetName
from proxy.files import Files
from proxy.hub import errors, rewrite
from proxy.hub.access import is_card, token_key
from proxy.hub.errors import HubError, OriginUnavailable
from proxy.hub.urls import ApiRoute, FileRoute, OtherRoute, Repo, is_commit, parse
from proxy.hub.xet import (
    Pass,
    Span,
    XetUse,
    Xorb,
    is_hash,
    is_pass,
    read_pass,
    reconstruction,
    token_route,
    write_pass,
)
from proxy.ranges import Selection, select
from proxy.resolve import Client, ResolvedFile, Resolver

log = logging.getLogger(__name__)

_PASS_SECONDS = 900
# An address is used later than it was given out: clients fetch what they asked about as they find room for it.
_ADDRESS_SECONDS = 3600
_MAX_HOLDERS = 10_000
_MAX_WALKS = 1000
_MAX_PAGES = 100
_WALK_SECONDS = 8.0
_BATCH = 32  # chunks read and sent at once
_STALL_SECONDS = 300.0  # clients may pause a download; a dead one is dropped after this long

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Xet:
    """Tokens, reconstructions and xorbs. `key` signs passes; `fallback` answers what is not for us."""

    def __init__(
        self,
        *,
        use: XetUse,
        key: bytes,
        files: Files,
        blobs: Blobs,
        resolver: Resolver,
        api: Api,
        catalog: Catalog,
        stats: Stats,
    ) -> None:
        self._use = use
        self._key = key
        self._files = files
        self._blobs = blobs
        self._resolver = resolver
        self._api = api
        self._catalog = catalog
        self._stats = stats
        # The tokens that passes were given to: they are in no pass, and not on disk.
        self._holders: OrderedDict[str, str] = OrderedDict()
        # A file of each commit that was looked through, or "" where Xet knows none.
        self._walked: OrderedDict[tuple[Repo, str], str] = OrderedDict()

    def add_routes(self, app: web.Application, fallback: Handler) -> None:
        """Also below one leading segment, for clients whose HF_ENDPOINT has a path."""
        for base in ("/-/xet", "/{prefix}/-/xet"):
            app.router.add_get(f"{base}/v1/reconstructions/{{hash}}", self._guarded(self._reconstruction))
            app.router.add_get(f"{base}/xorbs/{{hash}}/{{number:\\d{{1,9}}}}", self._guarded(self._xorb))
            app.router.add_route("*", f"{base}/{{rest:.*}}", _nothing)

        async def report(request: web.Request) -> web.StreamResponse:
            """How a download went, which clients tell the server's host; what was told with our pass ends here."""
            if not is_pass(Client.of(request.headers).token or ""):
                return await fallback(request)
            request["route"] = "xet"
            return web.Response(status=204)

        app.router.add_post("/v1/telemetry", report)

    # --- tokens

    async def token(self, request: web.Request, route: OtherRoute, client: Client) -> web.Response | None:
        """A pass for a repository at a revision, with ourselves as the server.

        None when the Hub is to answer: we do not speak Xet, or what the repository holds is not known in time. Raises
        HubError for who may not read it, and OriginUnavailable.
        """
        asked = token_route(route)
        if self._use == "never" or asked is None or request.method != "GET":
            return None
        repo, revision = asked
        commit = await self._commit(repo, revision, client)
        path = await self._some_file(repo, commit, client)
        if not path:
            return None
        await self._resolver.file(FileRoute(repo, commit, path), client)  # may this client read at all?
        now = int(time.time())
        until = now + _PASS_SECONDS
        token = write_pass(self._key, Pass(self._hold(client), str(repo), now, until))
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

    async def _commit(self, repo: Repo, revision: str, client: Client) -> str:
        if is_commit(revision):
            return revision
        route = ApiRoute(repo, "revision", unquote(revision), f"{repo.api_prefix}/revision/{revision}", "")
        answer, _ = await self._api.ask(route, client)
        return answer.commit

    async def _some_file(self, repo: Repo, commit: str, client: Client) -> str:
        """Learn the Xet hashes of a commit: any may be asked for, a client can have them from another day.

        The path of a file that has one; empty if there is none, or if it takes too long to see them all.
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
        if len(self._walked) > _MAX_WALKS:
            self._walked.popitem(last=False)
        return found

    async def _walk(self, repo: Repo, commit: str, client: Client) -> str | None:
        target, found = f"{repo.api_prefix}/tree/{commit}?recursive=true&expand=false", ""
        for _ in range(_MAX_PAGES):
            route = parse(target)
            if not isinstance(route, ApiRoute) or route.kind != "tree" or route.repo != repo:
                return None
            answer, _ = await self._api.ask(route, client)
            for xet_hash, path in rewrite.xet_names(msgspec.json.decode(answer.body)):
                self._catalog.set_xet_name(str(repo), xet_hash, XetName(commit, path))
                if not found or is_card(found):
                    found = path
            following = rewrite.next_page(answer.headers.get("Link", ""))
            if following is None:
                return found
            parts = urlsplit(urljoin(target, following))
            target = f"{parts.path}?{parts.query}"
        return None

    # --- who holds a pass

    def _hold(self, client: Client) -> str:
        if client.token is None:
            return ""
        holder = token_key(client.token)
        self._holders[holder] = client.token
        self._holders.move_to_end(holder)
        if len(self._holders) > _MAX_HOLDERS:
            self._holders.popitem(last=False)
        return holder

    def _client(self, request: web.Request, granted: Pass | None) -> Client | None:
        """Whom a pass was given to; None for a bad pass, and for a token that we do not remember after a restart."""
        if granted is None or (granted.holder and granted.holder not in self._holders):
            return None
        token = self._holders[granted.holder] if granted.holder else None
        return Client(token, request.headers.get("User-Agent", ""))

    async def _file(self, granted: Pass, xet_hash: str, client: Client) -> ResolvedFile:
        """The file that a hash names, if the client may have it now. Raises HubError and OriginUnavailable."""
        name = self._catalog.xet_name(granted.repo, xet_hash) if is_hash(xet_hash) else None
        if name is None:
            raise HubError(404, code="EntryNotFound", message=f"{granted.repo} has no file that Xet calls {xet_hash}")
        file = await self._resolver.file(FileRoute(Repo.parse(granted.repo), name.commit, name.path), client)
        if file.digest is None or not file.size:
            raise HubError(404, code="EntryNotFound", message=f"{name.path} is nothing for Xet")
        return file

    def _is_void(self, granted: Pass, file: ResolvedFile) -> bool:
        """Whether its client may have got wrong bytes before: no right ones must then complete the file."""
        return file.digest is not None and granted.since <= self._blobs.disproved_at(file.digest)

    # --- what clients of a Xet server ask

    def _guarded(self, answer: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            request["route"] = "xet"
            try:
                return await answer(request)
            except (HubError, OriginUnavailable) as error:
                request["outcome"] = "error"
                return errors.respond(error, Client.of(request.headers))

        return handle

    async def _reconstruction(self, request: web.Request) -> web.StreamResponse:
        xet_hash, now = request.match_info["hash"].lower(), time.time()
        granted = read_pass(self._key, Client.of(request.headers).token or "", now)
        client = self._client(request, granted)
        if granted is None or client is None or granted.file:
            raise HubError(401, message="no pass of this node, or one whose time is over")
        file = await self._file(granted, xet_hash, client)
        if self._is_void(granted, file):
            raise HubError(401, message=f"some bytes of {file.path} were wrong: begin again with a new token")
        selection = _select(request, file.size, xet_hash)
        if selection.status == 416:
            return web.Response(status=416, headers={"Content-Range": f"bytes */{file.size}"})
        one = Pass(granted.holder, granted.repo, granted.since, int(now) + _ADDRESS_SECONDS, xet_hash)
        prefix = f"/{quote(request.match_info['prefix'])}" if "prefix" in request.match_info else ""
        signature = write_pass(self._key, one)
        url = f"{visible_base(request)}{prefix}/-/xet/xorbs/{xet_hash}/"
        said = reconstruction(
            file.etag, file.size, selection.start, selection.stop, lambda xorb: f"{url}{xorb}?signature={signature}"
        )
        request["outcome"] = "hit"
        return web.Response(
            body=msgspec.json.encode(said), content_type="application/json", headers={"Cache-Control": "no-store"}
        )

    async def _xorb(self, request: web.Request) -> web.StreamResponse:
        xet_hash, number = request.match_info["hash"], int(request.match_info["number"])
        granted = read_pass(self._key, request.query.get("signature", ""), time.time())
        client = self._client(request, granted)
        if granted is None or client is None or granted.file != xet_hash:
            raise HubError(403, message="no address of this node, or one whose time is over")  # clients ask anew
        file = await self._file(granted, xet_hash, client)
        try:
            xorb = Xorb(file.size, number)
        except IndexError as error:
            raise HubError(404, code="EntryNotFound", message=str(error)) from error
        selection = _select(request, xorb.stored_size, f"{xet_hash}-{number}")
        headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        if content_range := selection.content_range(xorb.stored_size):
            headers["Content-Range"] = content_range
        if selection.status == 416:
            return web.Response(status=416, headers=headers)
        spans = list(xorb.spans(selection.start, selection.stop))
        source = await self._files.open(file, client, spans[0].start, spans[-1].stop, is_whole=False)
        try:
            if self._is_void(granted, file):  # what was wrong has ended before a new source could be opened
                raise HubError(403, message=f"some bytes of {file.path} were wrong: begin again")
            request["outcome"] = "hit" if isinstance(source, Blob) else "miss"
            response = web.StreamResponse(status=selection.status, headers=headers)
            response.content_length = selection.stop - selection.start
            await response.prepare(request)
            try:
                await self._send(response, source, spans)
            except (ConnectionError, TimeoutError, MeshError, OSError) as error:
                log.info("%s: broken off: %s", file.path, error)
                if request.transport is not None:
                    request.transport.close()  # the client must not take this for the end
            return response
        finally:
            source.close()

    async def _send(self, response: web.StreamResponse, source: Blob | Reader, spans: list[Span]) -> None:
        """Send what is there, up to so many chunks at once, and wait for the rest."""
        while spans:
            ready = source.ready(spans[0].start)
            while ready < spans[0].stop:
                await source.wait(ready)
                ready = source.ready(ready)
            count = next((n for n, span in enumerate(spans[:_BATCH]) if span.stop > ready), len(spans[:_BATCH]))
            batch, spans = spans[:count], spans[count:]
            body = await asyncio.to_thread(_read, source.fd, batch)
            if source.stamp is not None:
                source.stamp.check(source.fd)
            async with asyncio.timeout(_STALL_SECONDS):
                await response.write(body)
            self._stats.add("client_sent", len(body))


def load_key(data_dir: Path) -> bytes:
    """The secret that signs passes, made at the first start: who downloads does not notice a restart."""
    file = data_dir / "xet-key"
    try:
        if len(key := file.read_bytes()) == 32:
            return key
    except FileNotFoundError:
        pass
    key = secrets.token_bytes(32)
    temporary = file.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    temporary.touch(0o600, exist_ok=False)
    temporary.write_bytes(key)
    temporary.replace(file)
    return key


async def _nothing(request: web.Request) -> web.StreamResponse:
    """Newer ways to ask, which clients try first."""
    request["route"] = "xet"
    return web.Response(status=404, text="not here\n")


def _select(request: web.Request, size: int, etag: str) -> Selection:
    return select(size, f'"{etag}"', range_=request.headers.get("Range"))


def _read(fd: int, spans: list[Span]) -> bytearray:
    """Headers and bytes, each where it belongs."""
    body = bytearray(sum(len(span.header) + span.stop - span.start for span in spans))
    view, place, parts = memoryview(body), 0, []
    for span in spans:
        body[place : place + len(span.header)] = span.header
        place += len(span.header)
        if span.stop > span.start:
            parts.append(view[place : place + span.stop - span.start])
        place += span.stop - span.start
    position, stop = spans[0].start, spans[-1].stop
    while position < stop:
        count = os.preadv(fd, parts, position)
        if not count:
            raise OSError("the file is shorter than it was")
        position += count
        while parts and count >= len(parts[0]):
            count -= len(parts.pop(0))
        if count:
            parts[0] = parts[0][count:]
    return body
