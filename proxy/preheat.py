"""Fetching a repository before clients ask for it: on this node, and on as many others as wanted.

An order to other nodes names a repository and globs, never a token. The receiver asks the Hub anonymously, so the order
reaches only what is public. Other files spread in a keyed mesh alone: once they are here, the other nodes are told
their digests and fetch the bytes from this node. Their clients still need the Hub's permission to read them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Container, Coroutine, Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Annotated, Any
from urllib.parse import quote

import msgspec
from aiohttp import web

from mesh.blobs import Blobs
from mesh.content import Digest
from mesh.errors import MeshError, StoreFull
from mesh.mesh import Mesh
from mesh.placement import ranked
from mesh.quota import Quota
from mesh.server import read_message
from mesh.tasks import Tasks
from mesh.wire import Decoder
from proxy.admin.view import Preheat
from proxy.api import Api
from proxy.decoding import decode
from proxy.files import HubAccess
from proxy.globs import chosen
from proxy.hub.access import is_card
from proxy.hub.errors import HubError, OriginUnavailable
from proxy.hub.urls import ApiRoute, FileRoute, Repo, parse
from proxy.resolve import Client, Resolver
from proxy.units import format_size
from proxy.version import VERSION

log = logging.getLogger(__name__)

_TARGET = "/mesh/preheat"
_MAX_MESSAGE = 96 << 10  # bytes; _MAX_GLOBS globs of the greatest length in the longest characters are less
_MAX_ORDERS = 8  # under way at a time, in an open mesh, where anybody may send them
_ORDERS_AT_ONCE = 64  # from one host in an open mesh; a script may order all repositories of a site
_ORDER_SECONDS = 4.0  # for each further one, since each causes a question to the Hub
_MAX_KEYED_ORDERS = 10_000  # under way at a time, in a keyed mesh, where each names a single blob
_FILES_AT_A_TIME = 4
_ASKED_AT_A_TIME = 32

_MAX_GLOBS = 32  # of each kind, in orders to other nodes; orders to this node alone may have more
_MAX_GLOB = 200  # characters

_Text = Annotated[str, msgspec.Meta(max_length=1000)]
_Glob = Annotated[str, msgspec.Meta(max_length=_MAX_GLOB)]
_Globs = Annotated[tuple[_Glob, ...], msgspec.Meta(max_length=_MAX_GLOBS)]


class Repository(msgspec.Struct, frozen=True, tag="repository"):
    """The matching files of a public repository."""

    repo: _Text  # "models/owner/name"
    revision: _Text
    include: _Globs = ()
    exclude: _Globs = ()


class HeldBlob(msgspec.Struct, frozen=True, tag="held"):
    """A blob (digest and size in bytes) that the sender has; accepted in a keyed mesh alone."""

    digest: _Text
    size: Annotated[int, msgspec.Meta(ge=1, le=1 << 50)]


class _Sibling(msgspec.Struct):
    rfilename: str
    size: int | None = None
    blobId: str | None = None
    lfs: dict[str, Any] | None = None

    @property
    def digest(self) -> Digest | None:
        sha256 = (self.lfs or {}).get("sha256")
        try:
            return Digest.parse(f"sha256:{sha256}" if sha256 else f"git-sha1:{self.blobId}")
        except ValueError:
            return None


class _Info(msgspec.Struct):
    """The part of the Hub's info on a revision that is needed here."""

    sha: str | None = None  # None for a repository without files
    siblings: tuple[_Sibling, ...] = ()
    private: bool | None = None
    gated: bool | str | None = None


_orders: Decoder[Repository | HeldBlob] = Decoder(Repository | HeldBlob)
_encode = msgspec.msgpack.Encoder().encode


class Preheater:
    """Carries orders out, passes them on to other nodes, and accepts theirs."""

    def __init__(self, *, api: Api, resolver: Resolver, blobs: Blobs, mesh: Mesh, tasks: Tasks) -> None:
        self._api = api
        self._resolver = resolver
        self._blobs = blobs
        self._mesh = mesh
        self._tasks = tasks
        self._taken = 0
        self._quota = Quota(_ORDERS_AT_ONCE, _ORDER_SECONDS)
        self._choosing = asyncio.Lock()
        self._joining = asyncio.Semaphore(_FILES_AT_A_TIME)

    def add_routes(self, mesh_app: web.Application) -> None:
        mesh_app.router.add_post(_TARGET, self._take)

    async def order(self, order: Preheat) -> int:
        """Start an order; returns the number of files.

        Raises HubError, OriginUnavailable and StoreFull when it cannot succeed, since the operator is still there to be
        told.
        """
        client = Client(order.token, f"hubmesh/{VERSION}")
        request = Repository(order.repo, order.revision, order.include, order.exclude)
        others = self._others(order)
        if others and not _can_travel(request):
            most = f"other nodes take {_MAX_GLOBS} globs of each kind, of {_MAX_GLOB} characters at most"
            raise HubError(400, message=f"{most}: give fewer or shorter ones, or leave --nodes out")
        try:
            info = await self._sized_info(request, client)
            if files := await _files(request, info):
                # A card proves nothing: the Hub also gives it to clients that may not have other files.
                await self._resolver.file(next((file for file in files if not is_card(file.path)), files[0]), client)
        except HubError as error:
            raise _with_advice(error, order) from error
        self._check_room({file.path for file in files}, info)
        is_open = not info.private and not info.gated
        landed: Callable[[HeldBlob], Coroutine[Any, Any, None]] | None = None
        if is_open and others:
            self._tasks.start(self._tell(others, request), name=f"preheat {order.repo} elsewhere")
        elif others and self._mesh.auth.is_keyed:
            landed = lambda held: self._tell(others, held)  # noqa: E731
        elif others:
            log.warning("%s is not public, and the mesh has no key: it is brought in here alone", order.repo)
        self._tasks.start(self._bring(files, client, landed), name=f"preheat {order.repo}")
        return len(files)

    # --- inside

    async def _info(self, order: Repository, client: Client, query: str = "") -> _Info:
        """The Hub's info on the repository of an order."""
        prefix = Repo.parse(order.repo).api_prefix
        route = parse(f"{prefix}/revision/{quote(order.revision, safe='')}{query}")
        if not isinstance(route, ApiRoute):
            raise HubError(400, message=f"{order.repo} at {order.revision!r} is not a possible name at the Hub")
        answer, _ = await self._api.ask(route, client)
        try:
            info: _Info = decode(answer.body, _Info)
        except msgspec.DecodeError as error:
            raise OriginUnavailable(f"the Hub's list of the files in {order.repo} is not valid: {error}") from error
        return info

    async def _sized_info(self, order: Repository, client: Client) -> _Info:
        """The info with the sizes of files, if they can be had."""
        try:
            return await self._info(order, client, "?blobs=true")
        except OriginUnavailable:  # the info without sizes may be known here
            return await self._info(order, client)

    def _check_room(self, paths: Container[str], info: _Info) -> None:
        """Raise StoreFull if the files cannot all be here at once."""
        sizes: dict[Digest, int] = {}
        largest = ("", 0)
        for sibling in info.siblings:
            if sibling.rfilename in paths and sibling.size and (digest := sibling.digest) is not None:
                sizes[digest] = sibling.size
                largest = max(largest, (sibling.rfilename, sibling.size), key=itemgetter(1))
        try:
            self._blobs.check_fit(sizes)
        except StoreFull as error:
            raise StoreFull(
                f"{error}. The largest file is {largest[0]}, {format_size(largest[1])}: leave files out (--exclude), "
                "make room (`hubmesh unpin`), or start the node with a larger --max-size"
            ) from error

    def _others(self, order: Preheat) -> list[str]:
        """The other nodes that take part: the same for each order for a repository, as long as they are alive."""
        alive = ranked(order.repo, [member.node_id for member in self._mesh.members.alive()])
        return alive if order.nodes is None else alive[: order.nodes - 1]

    async def _tell(self, nodes: Sequence[str], order: Repository | HeldBlob) -> None:
        body = _encode(order)

        async def tell(node: str) -> None:
            try:
                await self._mesh.links.ask(node, _TARGET, body)
            except MeshError as error:
                log.warning("a preheat order did not reach a peer: %s", error)

        await _some_at_a_time(map(tell, nodes), _ASKED_AT_A_TIME)

    async def _bring(
        self,
        files: Iterable[FileRoute],
        client: Client,
        landed: Callable[[HeldBlob], Coroutine[Any, Any, None]] | None = None,
    ) -> None:
        async def bring(route: FileRoute) -> None:
            try:
                file = await self._resolver.file(route, client)
                if file.digest is not None and file.size:
                    access = HubAccess(self._resolver, file, client)
                    await self._blobs.want(file.digest, file.size, access, is_public=self._resolver.may_share(file))
                    if landed is not None:
                        await landed(HeldBlob(str(file.digest), file.size))
            except (HubError, OriginUnavailable, MeshError) as error:
                log.warning("preheating %s: %s: %s", route.repo, route.path, error)

        await _some_at_a_time(map(bring, files), _FILES_AT_A_TIME)

    async def _take(self, request: web.Request) -> web.Response:
        """Accept an order of another node. Bounded, since anybody may send one to the port of an open mesh."""
        if not self._mesh.auth.is_keyed and not self._quota.take(request.remote or "", time.monotonic()):
            raise web.HTTPTooManyRequests(
                text="too many orders from this host\n", headers={"Retry-After": f"{_ORDER_SECONDS:.0f}"}
            )
        try:
            order = _orders.decode(await read_message(request, _MAX_MESSAGE))
            if isinstance(order, HeldBlob):
                if not self._mesh.auth.is_keyed:
                    raise web.HTTPForbidden(text="orders for blobs are accepted in a mesh with a key only\n")
                work = self._join(Digest.parse(order.digest), order.size)
            else:
                Repo.parse(order.repo)
                work = self._obey(order)
        except ValueError as error:
            raise web.HTTPBadRequest(text=f"{error}\n") from error
        if self._taken >= (_MAX_KEYED_ORDERS if self._mesh.auth.is_keyed else _MAX_ORDERS):
            work.close()
            raise web.HTTPServiceUnavailable(text="busy with other orders\n")
        self._taken += 1
        self._tasks.start(work, name="a peer's preheat").add_done_callback(self._done)
        return web.Response()

    def _done(self, _: object) -> None:
        self._taken -= 1

    async def _obey(self, order: Repository) -> None:
        anybody = Client(None, f"hubmesh/{VERSION}")
        try:
            info = await self._info(order, anybody)
            async with self._choosing:  # one at a time, else several would each take their share of the loop
                files = await _files(order, info)
        except (HubError, OriginUnavailable, LookupError, ValueError) as error:
            log.warning("a peer's order to preheat %s: %s", order.repo, error)
            return
        await self._bring(files, anybody)

    async def _join(self, digest: Digest, size: int) -> None:
        try:
            async with self._joining:
                await self._blobs.want(digest, size, None, is_public=False)
        except MeshError as error:
            log.warning("preheating %s from peers: %s", digest, error)


async def _some_at_a_time(work: Iterator[Coroutine[Any, Any, None]], count: int) -> None:
    async def some() -> None:
        for one in work:
            await one

    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(some())


async def _files(order: Repository, info: _Info) -> list[FileRoute]:
    """The files that an order selects, at the commit of `info`."""
    repo = Repo.parse(order.repo)
    paths = await chosen((sibling.rfilename for sibling in info.siblings), order.include, order.exclude)
    return [FileRoute(repo, info.sha, path) for path in paths] if info.sha else []


def _with_advice(error: HubError, order: Preheat) -> HubError:
    """The Hub's error with advice for the operator; proxy.admin has the words for repositories that do not exist."""
    if not error.is_refusal or error.code == "RepoNotFound":
        return error
    who = "this token" if order.token else "anybody without a token"
    advice = (
        "use a token with access (--token, HF_TOKEN, `hf auth login`), ask for access on its page, or correct its name"
    )
    said = error.message.rstrip(".") or "no such repository, or no access to it"
    return HubError(error.status, message=f"the Hub does not let {who} read it ({error.status}: {said}): {advice}")


def _can_travel(order: Repository) -> bool:
    """Whether other nodes accept it."""
    globs = order.include + order.exclude
    return max(len(order.include), len(order.exclude)) <= _MAX_GLOBS and all(len(glob) <= _MAX_GLOB for glob in globs)
