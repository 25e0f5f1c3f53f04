"""What other nodes know when the Hub cannot be asked, and the pauses that the Hub asked one of them for.

Nodes tell only what anybody may know, with the time at which the Hub said it, so a stale answer stays stale on any
node. A later refusal outweighs an answer, whichever node was refused; in an open mesh, refusals are told only for what
was once public. A node believes all nodes of a keyed mesh; in an open one, only the seeds named in its settings.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Annotated

import msgspec
from aiohttp import web

from mesh.errors import Unavailable
from mesh.mesh import Mesh
from mesh.placement import ranked
from mesh.server import read_message
from mesh.tasks import Tasks
from mesh.wire import Decoder
from proxy.catalog import ApiAnswer, Catalog, File, Ref
from proxy.hub.access import EVERYBODY
from proxy.hub.urls import is_commit
from proxy.origin import Origin

log = logging.getLogger(__name__)

_TARGET = "/mesh/hearsay"
_MAX_QUESTION = 64 << 10  # bytes
_MAX_ANSWER = 4 << 20  # bytes
_ASKED = 32  # nodes at once
_PATIENCE = 1.0  # seconds; clients have already waited for the Hub
_UNKNOWN_SECONDS = 10.0  # seconds for which nodes are not asked again for what none of them knew
_MAX_UNKNOWN = 2000

_Text = Annotated[str, msgspec.Meta(max_length=8192)]


class Lookup(msgspec.Struct, frozen=True, tag="lookup"):
    """A question about a revision: for the file at `path`, or for the answer to `question`.

    `query` is the normalised query of that question. An info asked for by branch also answers for its commit, and the
    other way round.
    """

    repo: _Text
    revision: _Text
    path: _Text = ""
    question: _Text = ""
    query: _Text | None = None


class Pause(msgspec.Struct, frozen=True, tag="pause"):
    """The Hub wants no requests that count against this quota for `seconds`; accepted in a keyed mesh alone.

    A quota is (token's key or empty, rate limit window).
    """

    asker: Annotated[str, msgspec.Meta(max_length=64)]
    window: Annotated[str, msgspec.Meta(max_length=16)]
    seconds: Annotated[float, msgspec.Meta(ge=0)]


class Known(msgspec.Struct, frozen=True):
    """What a node may tell anybody about a `Lookup`. Times are those at which the Hub said so.

    `closed_at` and `hidden_at` are as in `Publicness`: a refusal outweighs whatever is older, on any node.
    """

    ref: Ref | None = None
    file: File | None = None
    answer: ApiAnswer | None = None
    question: str = ""  # the key under which `answer` is kept
    closed_at: float = 0.0
    hidden_at: float = 0.0

    @property
    def is_something(self) -> bool:
        return bool(self.ref or self.file or self.answer)


_heard: Decoder[Lookup | Pause] = Decoder(Lookup | Pause)
_known: Decoder[Known] = Decoder(Known)


class Hearsay:
    """Asks peers and answers them. It stores what it learns as if the Hub had told this node at that time."""

    def __init__(self, mesh: Mesh, origin: Origin, catalog: Catalog, tasks: Tasks) -> None:
        self._mesh = mesh
        self._origin = origin
        self._catalog = catalog
        self._tasks = tasks
        self._unknown: dict[Lookup, float] = {}
        origin.on_pause = self._spread

    def add_routes(self, mesh_app: web.Application) -> None:
        mesh_app.router.add_post(_TARGET, self._handle)

    async def learn(self, lookup: Lookup) -> None:
        """Ask the other nodes and store what they know in the catalog."""
        now = time.monotonic()
        if not (others := self._believed(lookup.repo)) or self._unknown.get(lookup, 0.0) > now:
            return
        if not await self._origin.flights.join(("hearsay", lookup), lambda: self._ask(others, lookup)):
            if len(self._unknown) >= _MAX_UNKNOWN:
                self._unknown.clear()
            self._unknown[lookup] = now + _UNKNOWN_SECONDS

    # --- asking

    def _believed(self, repo: str) -> list[str]:
        alive = list(self._mesh.links.alive())
        if not self._mesh.auth.is_keyed:
            alive = [other for other in alive if other.is_named_seed]
        return ranked(repo, [other.node for other in alive])[:_ASKED]

    async def _ask(self, others: Sequence[str], lookup: Lookup) -> bool:
        body = msgspec.msgpack.encode(lookup)

        async def ask(node: str) -> Known:
            try:
                async with asyncio.timeout(_PATIENCE):
                    return _known.decode(await self._mesh.links.ask(node, _TARGET, body, _MAX_ANSWER))
            except (Unavailable, TimeoutError, msgspec.DecodeError) as error:
                log.debug("%s tells nothing of %s: %s", node, lookup.repo, error)
                return Known()

        told = await asyncio.gather(*map(ask, others))
        for known in told:
            await self._take(lookup, known)
        return any(known.is_something for known in told)

    async def _take(self, lookup: Lookup, known: Known) -> None:
        """Store what is newer than the entries here."""
        repo, now, commit = lookup.repo, time.time(), lookup.revision
        publicness = self._catalog.publicness(repo)
        closed_at = max(publicness.closed_at, min(now, known.closed_at))
        hidden_at = max(publicness.hidden_at, min(now, known.hidden_at))
        if (closed_at, hidden_at) != (publicness.closed_at, publicness.hidden_at):
            self._catalog.set_publicness(
                repo, msgspec.structs.replace(publicness, closed_at=closed_at, hidden_at=hidden_at)
            )
        if known.ref is not None and is_commit(known.ref.commit) and not is_commit(commit):
            self._catalog.set_ref(repo, lookup.revision, Ref(known.ref.commit, min(now, known.ref.said_at)))
            commit = known.ref.commit
        if known.file is not None and lookup.path and is_commit(commit):
            ours, open_at = self._catalog.file(repo, commit, lookup.path), min(now, known.file.open_at)
            if ours is None or ours.open_at < open_at:
                self._catalog.set_file(repo, commit, lookup.path, File(known.file.metadata, open_at))
        if known.answer is not None and known.question in _questions(lookup, known.answer.commit):
            older = self._catalog.answer(repo, EVERYBODY, known.question)
            answer = msgspec.structs.replace(known.answer, said_at=min(now, known.answer.said_at))
            if older is None or older.said_at < answer.said_at:
                await self._catalog.set_answer(repo, EVERYBODY, answer, known.question)

    # --- telling

    async def _handle(self, request: web.Request) -> web.Response:
        try:
            heard = _heard.decode(await read_message(request, _MAX_QUESTION))
        except msgspec.DecodeError as error:
            raise web.HTTPBadRequest(text=f"{error}\n") from error
        if isinstance(heard, Pause):
            if not self._mesh.auth.is_keyed:
                raise web.HTTPForbidden(text="pauses are accepted in a mesh with a key only\n")
            self._origin.pause((heard.asker, heard.window), heard.seconds)
            return web.Response()
        encoded = msgspec.msgpack.encode(await self._tell(heard))
        return web.Response(body=encoded if len(encoded) <= _MAX_ANSWER else msgspec.msgpack.encode(Known()))

    async def _tell(self, lookup: Lookup) -> Known:
        """What the Hub told this node in answers to anonymous requests, and has not taken back since."""
        repo, now = lookup.repo, time.time()
        publicness = self._catalog.publicness(repo)
        ref = None if is_commit(lookup.revision) else self._catalog.ref(repo, lookup.revision)
        commit = ref.commit if ref is not None else lookup.revision
        file = self._catalog.file(repo, commit, lookup.path) if lookup.path and is_commit(commit) else None
        if file is not None and not publicness.is_open(file.open_at, now, may_ask=False):
            file = None
        for question in _questions(lookup, commit) if lookup.question else ():
            answer = self._catalog.answer(repo, EVERYBODY, question)
            if answer is None or answer.said_at <= publicness.hidden_at:
                continue
            if (whole := await self._catalog.whole(answer)) is not None:
                return Known(ref, None, whole, question, publicness.closed_at, publicness.hidden_at)
        is_public = publicness.opened_at > max(publicness.closed_at, publicness.hidden_at, publicness.changed_at)
        may_tell = file is not None or is_public
        if not may_tell and not publicness.opened_at and not self._mesh.auth.is_keyed:
            return Known()  # for a repository that was never public, strangers must not learn that it was asked for
        return Known(ref if may_tell else None, file, closed_at=publicness.closed_at, hidden_at=publicness.hidden_at)

    # --- pauses

    def _spread(self, quota: tuple[str, str], seconds: float) -> None:
        if self._mesh.auth.is_keyed and (others := [other.node for other in self._mesh.links.alive()]):
            self._tasks.start(self._tell_all(others, Pause(*quota, seconds)), name="pause")

    async def _tell_all(self, others: Sequence[str], pause: Pause) -> None:
        body = msgspec.msgpack.encode(pause)
        for start in range(0, len(others), _ASKED):
            told = (self._mesh.links.ask(node, _TARGET, body) for node in others[start : start + _ASKED])
            await asyncio.gather(*told, return_exceptions=True)  # a node that misses it asks the Hub and is told there


def _questions(lookup: Lookup, commit: str) -> list[str]:
    """The catalog keys under which an answer to the lookup may be kept."""
    about_commit = [] if lookup.query is None or not is_commit(commit) else [f"{commit}\n{lookup.query}"]
    return [lookup.question, *about_commit]
