"""Questions that one node asks the origin for all: each has an owner, whose answer serves every node.

Like groupcache, a node finds the owner, asks it, and falls back to finding the answer itself. The caller defines what
a question means; here it is bytes with a key.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from aiohttp import web

from mesh.bounded import Bounded
from mesh.errors import Unavailable
from mesh.exchange import MAX_MESSAGE, Neighbours
from mesh.placement import ranked
from mesh.server import read_message

log = logging.getLogger(__name__)

_TARGET = "/mesh/questions"
_MAX_ANSWER = 4 << 20  # bytes
_DOWN_SECONDS = 5.0  # for which an owner that did not answer is not asked
_PASSED_OVER_SECONDS = 30.0  # for which an owner that could not find an answer is not asked
_SLOW_SECONDS = 10.0  # after which an owner that is alive has not failed: the question takes the origin that long
_UNANSWERED_SECONDS = 300.0  # for which a question is not asked of others that got no answer from its owner
_MAX_UNANSWERED = 256
_DOUBT_SECONDS = 2.0  # without an answer before the owner is asked whether it is alive: clients wait 10 s in all
_HERE_SECONDS = 1.0  # for the owner to say that it is alive

# Answers a question for other nodes; returns None when it will not.
Answerer = Callable[[bytes], Awaitable[bytes | None]]


class Questions:
    """Asks the owners of questions, and answers as an owner.

    In a keyed mesh all nodes are owners, or only the seeds if there are any. In an open mesh a node believes only the
    seeds that its operator named.
    """

    def __init__(self, node_id: str, neighbours: Neighbours, *, is_seed: bool) -> None:
        self._node_id = node_id
        self._neighbours = neighbours
        self._is_seed = is_seed
        self._down_until: dict[str, float] = {}
        self._unanswered: Bounded[str, float] = Bounded(_MAX_UNANSWERED)  # by key: until when
        self.answerer: Answerer | None = None

    def add_routes(self, app: web.Application) -> None:
        app.router.add_post(_TARGET, self._handle)

    @property
    def is_alone(self) -> bool:
        """Whether no other node owns any questions of this one."""
        return not any(owner != self._node_id for owner in self._owners())

    async def ask(self, key: str, question: bytes) -> tuple[str, bytes] | None:
        """Ask the owner of `key`; returns its id and its answer. None when this node has to find the answer itself."""
        now = time.monotonic()
        if len(question) > MAX_MESSAGE or self._unanswered.get(key, 0.0) > now:
            return None
        for owner in ranked(key, self._owners())[:2]:
            if owner == self._node_id:
                return None
            if self._down_until.get(owner, 0.0) > now:
                continue
            try:
                answer = await self._ask(owner, question)
            except Unavailable as error:
                log.debug("no answer from the owner: %s", error)
                if time.monotonic() - now < _SLOW_SECONDS:
                    self._leave_out(owner, _DOWN_SECONDS)
                    continue
                answer = b""
            if answer:
                return owner, answer
            self.unanswered(key)
            break
        return None

    def unanswered(self, key: str) -> None:
        """Have this node find an answer itself for a while: the owner's is too large, or takes it too long.

        Asking again would have the owner fetch the answer each time in vain.
        """
        self._unanswered[key] = time.monotonic() + _UNANSWERED_SECONDS

    async def _ask(self, owner: str, question: bytes) -> bytes:
        """Ask one owner. Raises Unavailable, also when it hangs: an owner waiting for the origin says it is alive."""
        asking = asyncio.get_running_loop().create_task(self._neighbours.ask(owner, _TARGET, question, _MAX_ANSWER))
        try:
            await asyncio.wait({asking}, timeout=_DOUBT_SECONDS)
            if not asking.done() and not self._neighbours.is_strained:
                is_here = await self._neighbours.answers(owner, _HERE_SECONDS)
                if not is_here and not asking.done():
                    raise Unavailable(f"{owner} is silent")
            return await asking
        finally:
            asking.cancel()

    def pass_over(self, owner: str) -> None:
        """Skip an owner that answers but cannot find out what others can: the next one is asked for a while."""
        log.info("%s does not find out what it is asked; it is passed over for %.0f s", owner, _PASSED_OVER_SECONDS)
        self._leave_out(owner, _PASSED_OVER_SECONDS)

    def _leave_out(self, owner: str, seconds: float) -> None:
        now = time.monotonic()
        self._down_until = {node: until for node, until in self._down_until.items() if until > now}  # nodes come and go
        self._down_until[owner] = now + seconds

    def _owners(self) -> list[str]:
        others = list(self._neighbours.alive())
        if not self._neighbours.is_keyed:
            return [] if self._is_seed else [other.node for other in others if other.is_named_seed]
        seeds = [other.node for other in others if other.is_seed] + ([self._node_id] if self._is_seed else [])
        return seeds or [self._node_id, *(other.node for other in others)]

    async def _handle(self, request: web.Request) -> web.Response:
        if self.answerer is None or not (self._neighbours.is_keyed or self._is_seed):
            raise web.HTTPNotFound(text="this node answers for nobody else\n")
        answer = await self.answerer(await read_message(request))
        return web.Response(body=answer if answer is not None and len(answer) <= _MAX_ANSWER else b"")
