"""The other nodes as the exchange needs them: who is alive, and how to ask them something."""

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

# On a machine with more to do than it can a tracker of hundreds is late by many seconds. One that is dead shows long
# before, at its connection (mesh/dial.py) or to the membership.
_ANSWER_SECONDS = 30.0


class Links:
    """Signed, bounded conversations with live members. Failures are told to the membership."""

    def __init__(self, members: Members, auth: Auth, session: aiohttp.ClientSession) -> None:
        self._members = members
        self._auth = auth
        self._session = session
        self._known: tuple[Member, ...] = ()
        self._neighbours: dict[str, Neighbour] = {}
        self._limits: dict[str, set[asyncio.Timeout]] = {}  # of what is being asked, by node
        self._alive: tuple[Neighbour, ...] = ()
        self.gossip: Gossip | None = None  # it needs us to speak, and hears from us who did not answer

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
        except TimeoutError as error:  # it may just be busy: whether it lives, the membership finds out
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
        """POST a message to whoever is at an address. Raises OSError or NotAuthentic."""
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
        """A node is gone, or of no use: nobody need wait for its answers any more."""
        for time_limit in self._limits.pop(node, ()):
            if not time_limit.expired():
                time_limit.reschedule(asyncio.get_running_loop().time())

    def heard(self, node: str) -> None:
        """A node showed that it is alive."""
        self._members.heard(node, time.monotonic())

    def sign(self, target: str, node: str) -> dict[str, str]:
        return self._auth.sign("GET", target, to=node)
