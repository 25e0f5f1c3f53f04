"""A node's part in the mesh, put together: membership, trackers, and which node holds which blob."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import cast

import aiohttp
import msgspec
from aiohttp import web
from aiohttp.typedefs import Middleware

from mesh.auth import SENDER, Auth, guard
from mesh.content import Digest
from mesh.directory import Directory
from mesh.errors import Unavailable
from mesh.exchange import MeshExchange
from mesh.gossip import TARGET, Gossip
from mesh.hosts import as_written
from mesh.links import Links
from mesh.membership import Address, Change, Claim, Members, Role, State
from mesh.protocol import MAX_MESSAGE
from mesh.questions import Questions
from mesh.server import read_message
from mesh.store import Store
from mesh.tasks import Tasks
from mesh.tracker import Tracker
from mesh.turns import Turns
from mesh.wire import Decoder

log = logging.getLogger(__name__)

_HOLDINGS = "/mesh/holdings"
_BATCH = 500  # digests in one announcement
_REFRESH_SECONDS = 60.0  # until all blobs are announced again, give or take a fifth


class Announcement(msgspec.Struct, frozen=True):
    """The complete blobs of a node, and announced ones that are `gone`, among those whose tracker is the receiver."""

    node: str
    digests: tuple[str, ...]
    gone: tuple[str, ...] = ()  # absent in the messages of earlier versions


_decoder: Decoder[Announcement] = Decoder(Announcement)


class Mesh:
    """The conversation with other nodes. Belongs to the event loop's thread.

    `may_share` says which blobs other nodes may know of. All other blobs are handled as if there were no other nodes.
    """

    def __init__(
        self,
        *,
        node_id: str,
        auth: Auth,
        session: aiohttp.ClientSession,
        store: Store,
        tasks: Tasks,
        address: Address,
        role: Role,
        version: str,
        may_share: Callable[[Digest], bool],
    ) -> None:
        me = Claim(node_id, int(time.time()), State.ALIVE, address.host, address.port, role, version)
        self.node_id = node_id
        self.auth = auth
        self.members = Members(me, is_open=not auth.is_keyed)
        self.links = Links(self.members, auth, session)
        self.gossip = Gossip(self.members, self._ask_gossip, tasks, mesh_id=auth.mesh_id, is_open=not auth.is_keyed)
        self.links.gossip = self.gossip
        self.directory = Directory()
        self.tracker = Tracker(self._holders, self.directory.discard, store.manifest)
        self.exchange = MeshExchange(
            node_id,
            self.tracker,
            neighbours=self.links,
            is_seed=role == "seed",
            may_share=may_share,
        )
        self.questions = Questions(node_id, self.links, is_seed=role == "seed")
        self._is_seed = role == "seed"
        self._store = store
        self._tasks = tasks
        self._may_share = may_share
        self._must_announce = asyncio.Event()
        self._announced: dict[Digest, str] = {}  # and to which tracker
        self._gone: dict[Digest, str] = {}  # announced and no longer here, and the trackers that are to hear of it
        self.gossip.on_change(self._changed)
        self.exchange.on_news = self._told_anew
        store.on_gone = self._take_back

    def start(self, *, settle: float) -> None:
        """Start talking to other nodes. `settle` is how many seconds to wait for a first answer."""
        self.gossip.start(settle=settle)
        self._tasks.start(self._tick(), name="tracker")
        self._tasks.start(self._announce(), name="announce")

    async def leave(self) -> None:
        await self.gossip.leave()

    def is_seed(self, node: str) -> bool:
        if node == self.node_id:
            return self._is_seed
        neighbour = self.links.get(node)
        return neighbour is not None and neighbour.is_seed

    def is_from(self, request: web.Request, node: str) -> bool:
        """Whether a request surely is a node's own. Without a key, one from another address may be a stranger's."""
        member = self.members.get(node)
        return self.auth.is_keyed or (member is not None and as_written(request.remote) == member.address.host)

    def middleware(self) -> Middleware:
        """Middleware that admits only nodes that hold the key, if the mesh has one."""
        return cast("Middleware", guard(self.auth))

    def add_routes(self, app: web.Application) -> None:
        app.router.add_post(TARGET, self._answer_gossip)
        app.router.add_post(_HOLDINGS, self._take_holdings)
        self.questions.add_routes(app)

    # --- internals

    async def _ask_gossip(self, address: Address, body: bytes, node: str) -> bytes:
        return await self.links.ask_address(address, TARGET, body, node, MAX_MESSAGE)

    async def _answer_gossip(self, request: web.Request) -> web.Response:
        body = await read_message(request, MAX_MESSAGE)
        try:
            return web.Response(body=self.gossip.handle(body, request.remote, request.get(SENDER)))
        except ValueError as error:
            raise web.HTTPBadRequest(text=f"{error}\n") from error

    async def _take_holdings(self, request: web.Request) -> web.Response:
        try:
            announcement = _decoder.decode(await read_message(request))
            digests, gone = (
                [Digest.parse(text) for text in some[:_BATCH]] for some in (announcement.digests, announcement.gone)
            )
        except ValueError as error:
            raise web.HTTPBadRequest(text=f"{error}\n") from error
        if request.get(SENDER, announcement.node) != announcement.node or self.links.get(announcement.node) is None:
            raise web.HTTPForbidden(text="speak for yourself\n")
        if not self.is_from(request, announcement.node):
            gone = []
        changed = [self.tracker.changed_by(digest, announcement.node, is_holder=False) for digest in gone]
        changed += [self.tracker.changed_by(digest, announcement.node, is_holder=True) for digest in digests]
        if not self.tracker.announced.take(request.remote or "", time.monotonic(), sum(changed)):
            raise web.HTTPServiceUnavailable(text="busy\n")  # the node announces all its blobs again soon
        for digest in gone:
            self.directory.discard(announcement.node, digest)
            self.tracker.drop_holder(digest, announcement.node)
        self.directory.add(announcement.node, digests)
        for digest in digests:
            self.tracker.add_holder(digest, announcement.node)
        return web.Response()

    def _holders(self, digest: Digest) -> list[str]:
        return [self.node_id] * self._offers(digest) + self.directory.holders(digest)

    def _offers(self, digest: Digest) -> bool:
        """Whether this node can serve all of a blob to others."""
        return digest in self._store and self._may_share(digest)

    def _changed(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if change.parted:
                self.links.parted(change.member.node_id)
                self.directory.forget(change.member.node_id)
                self.tracker.forget(change.member.node_id)
            if change.parted or change.restarted:  # a tracker that comes back has lost what it was told
                node = change.member.node_id
                self._announced = {digest: told for digest, told in self._announced.items() if told != node}
            if change.parted or change.joined or change.restarted:
                self._must_announce.set()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            await self.exchange.tick()

    def _told_anew(self, digest: Digest) -> None:
        """Announce a blob, perhaps again: its tracker may have dropped this node as a holder since."""
        if self._offers(digest):  # nodes may wait for an answer of this tracker, and a small blob was never reported
            self.tracker.add_holder(digest, self.node_id)
        self._announced.pop(digest, None)
        self._must_announce.set()

    def _take_back(self, digest: Digest) -> None:
        """Have the tracker told that a blob is here no more: nodes that it sends here would ask in vain."""
        self.tracker.drop_holder(digest, self.node_id)
        if (told := self._announced.pop(digest, None)) is not None:
            self._gone[digest] = told
            self._must_announce.set()

    async def _announce(self) -> None:
        """Announce each blob here to its tracker: when the blob or the tracker is new, and every minute or so.

        Announced blobs that are here no more are taken back.
        """
        loop, refresh_at = asyncio.get_running_loop(), 0.0
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(refresh_at):
                    await self._must_announce.wait()
            if is_due := loop.time() >= refresh_at:
                refresh_at = loop.time() + _REFRESH_SECONDS * random.uniform(0.8, 1.2)
            self._must_announce.clear()
            await self._announce_changes(everything=is_due)
            await asyncio.sleep(0.05)  # blobs that complete together are announced together

    async def _announce_changes(self, *, everything: bool) -> None:
        taken_back, self._gone = self._gone, {}
        if not any(self.links.alive()):
            return  # a node that joins later is told then
        held: defaultdict[str, list[Digest]] = defaultdict(list)  # by tracker
        gone: defaultdict[str, list[Digest]] = defaultdict(list)
        for digest, tracker in taken_back.items():
            gone[tracker].append(digest)
        turns = Turns()  # there may be ten thousand blobs
        for digest, _, _ in list(self._store.blobs()):
            await turns.give()
            if not self._offers(digest):
                continue
            tracker = self.exchange.tracker_of(digest)
            if everything or self._announced.get(digest) != tracker:
                self._announced[digest] = tracker
                held[tracker].append(digest)
        for tracker in (held | gone).keys() - {self.node_id}:  # this node's own tracker looks into the store itself
            for start in range(0, max(len(held[tracker]), len(gone[tracker])), _BATCH):
                batch, rest = (some[tracker][start : start + _BATCH] for some in (held, gone))
                rest = [digest for digest in rest if digest not in self._store]  # fetched again meanwhile
                body = Announcement(self.node_id, tuple(map(str, batch)), tuple(map(str, rest)))
                try:
                    await self.links.ask(tracker, _HOLDINGS, msgspec.msgpack.encode(body))
                except Unavailable as error:  # nodes that are sent here for the rest are told that it is not here
                    log.debug("could not announce %d blobs: %s", len(batch), error)
                    for digest in batch:
                        self._announced.pop(digest, None)
