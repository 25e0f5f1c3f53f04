"""The other nodes as `mesh.exchange.Neighbours`: which of them are live, and how to send them a message."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import aiohttp

from mesh.ask import ask
from mesh.auth import Auth, NotAuthentic
from mesh.errors import Unavailable, Unreachable
from mesh.exchange import MAX_MESSAGE, Neighbour
from mesh.gossip import Gossip
from mesh.membership import Address, Member, Members

# Seconds to wait for an answer. The tracker of hundreds of nodes on an overloaded machine is late by many seconds. A
# dead node is detected long before, by its connection (mesh/dial.py) or by the membership.
_ANSWER_SECONDS = 30.0


class Links:
    """Signed and bounded messages to live members. Failures are reported to the membership.

    Implements `mesh.exchange.Neighbours`. Belongs to the event loop's thread.
    """

    def __init__(self, members: Members, auth: Auth, session: aiohttp.ClientSession) -> None:
        self._members = members
        self._auth = auth
        self._session = session
        self._known: tuple[Member, ...] = ()
        self._neighbours: dict[str, Neighbour] = {}
        self._limits: dict[str, set[asyncio.Timeout]] = {}  # time limits of unanswered messages, by node
        self._alive: tuple[Neighbour, ...] = ()
        self.gossip: Gossip | None = None  # set later, as gossip itself sends through this; told of failures

    @property
    def is_keyed(self) -> bool:
        return self._auth.is_keyed

    @property
    def is_strained(self) -> bool:
        return self.gossip is not None and self.gossip.is_strained

    def alive(self) -> Sequence[Neighbour]:
        known = self._members.alive()
        if known is not self._known:
            self._known = known
            self._neighbours = {
                m.node_id: Neighbour(m.node_id, f"{self._auth.scheme}://{m.address}", m.role == "seed", m.named_seed)
                for m in known
            }
            self._alive = tuple(self._neighbours.values())
        return self._alive

    def get(self, node: str) -> Neighbour | None:
        self.alive()
        return self._neighbours.get(node)

    async def ask(self, node: str, target: str, body: bytes, limit: int = MAX_MESSAGE) -> bytes:
        member = self._members.get(node)
        if member is None or self.get(node) is None:
            raise Unavailable(f"{node} is not a live node")
        try:
            async with asyncio.timeout(_ANSWER_SECONDS) as time_limit:
                asked = self._limits.setdefault(node, set())
                asked.add(time_limit)
                try:
                    answer = await self.ask_address(member.address, target, body, node, limit)
                finally:
                    asked.discard(time_limit)
        except TimeoutError as error:  # it may just be busy: the membership finds out whether it is alive
            raise Unavailable(f"{node} did not answer in time") from error
        except NotAuthentic as error:
            raise Unavailable(f"{node}: {error}") from error
        except OSError as error:
            if self.gossip is not None:
                self.gossip.failed(node, error)
            raise Unreachable(f"{node}: {error}") from error
        self._members.heard(node, time.monotonic())
        return answer

    async def ask_address(
        self, address: Address, target: str, body: bytes, node: str, limit: int = MAX_MESSAGE
    ) -> bytes:
        """POST a message to the node at an address, whether or not it is a member. Raises as `mesh.ask.ask`."""
        return await ask(self._session, self._auth, address, target, body, limit=limit, to=node)

    async def answers(self, node: str, seconds: float) -> bool:
        return self.gossip is not None and await self.gossip.answers(node, seconds)

    async def is_reachable(self, node: str, seconds: float) -> bool:
        if (member := self._members.get(node)) is None:
            return False
        try:
            async with asyncio.timeout(seconds):
                _, writer = await asyncio.open_connection(*member.address)
        except OSError:  # TimeoutError is one
            return False
        writer.close()
        return True

    def parted(self, node: str) -> None:
        """End all waiting for answers of a node that is gone or of no use."""
        for time_limit in self._limits.pop(node, ()):
            if not time_limit.expired():
                time_limit.reschedule(asyncio.get_running_loop().time())

    def heard(self, node: str) -> None:
        """Record that a node showed that it is alive."""
        self._members.heard(node, time.monotonic())

    def sign(self, target: str, node: str) -> dict[str, str]:
        return self._auth.sign("GET", target, to=node)
