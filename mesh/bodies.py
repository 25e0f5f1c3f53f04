"""The bodies of requests to the mesh port, and how many bytes of them may be in memory at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from types import TracebackType
from typing import TYPE_CHECKING

from aiohttp import web

from mesh.quota import network

if TYPE_CHECKING:
    from typing import Self

_ROOM = 32 << 20  # bytes of all bodies together
# Bytes of a body that needs no room, as one for each possible connection (mesh/door.py) is 16 MiB. So a peer on the
# host of a flood, or behind the same NAT, can still ask whether this node is alive.
_SMALL = 4 << 10
_SECONDS = 20.0  # that a body, half a megabyte at most, may take to arrive


class Room:
    """Bytes that hosts share: each may take a quarter of what the others leave free. Pure.

    So there is always room for one more host, and the more hosts there are, the less each of them gets.
    """

    def __init__(self, size: int = _ROOM) -> None:
        self._size = size
        self._of: Counter[str] = Counter()  # network → bytes

    @property
    def taken(self) -> int:
        return self._of.total()

    def take(self, host: str, size: int) -> bool:
        """Take bytes for a host; False when it has no room left."""
        mine = network(host)
        held = self._of.get(mine, 0)
        if 4 * (held + size) > self._size - (self.taken - held):
            return False
        self._of[mine] = held + size
        return True

    def give(self, host: str, size: int) -> None:
        """Give back bytes that `take` took."""
        mine = network(host)
        self._of[mine] -= size
        if not self._of[mine]:
            del self._of[mine]


class Body:
    """The body of one request. A context that holds its room for as long as the request is being answered."""

    def __init__(self, request: web.Request, room: Room) -> None:
        self._request = request
        self._room = room
        self._host = request.remote or ""
        self._held = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._shrink(0)

    async def read(self) -> bytes:
        """Return the whole body; b"" without one. Raises HTTP 503 without room for it, and 408 when it does not come.

        Without room the answer comes at once: a body that waits would fill the connection's buffer meanwhile.
        """
        request = self._request
        if not request.can_read_body:
            return b""
        limit = request.client_max_size  # of a longer body no more is read: it gets 413
        size = limit if request.content_length is None else min(request.content_length, limit)
        if size > _SMALL:
            if not self._room.take(self._host, size):
                raise web.HTTPServiceUnavailable(text="busy\n")
            self._held = size
        try:
            async with asyncio.timeout(_SECONDS):
                body = await request.read()
        except TimeoutError:
            raise web.HTTPRequestTimeout(text="too slow\n", headers={"Connection": "close"}) from None
        self._shrink(len(body))
        return body

    def _shrink(self, size: int) -> None:
        if size < self._held:
            self._room.give(self._host, self._held - size)
            self._held = size
