"""What the Hub answered, as it goes from the node that asked to all others, and as that node keeps it a while. Pure."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Annotated

import msgspec
from multidict import CIMultiDict

from proxy import caching
from proxy.caching import Stored
from proxy.hub import metadata
from proxy.hub.errors import HubError

_MAX_KEPT = 2000
_MAX_BYTES = 16 << 20  # of all replies together
_MAX_BODY = 1 << 20
_OVERHEAD = 1000  # bytes: what Python needs for a reply besides its own
_SWEEP_SECONDS = 5.0


class Reply(msgspec.Struct, frozen=True):
    """What the Hub answered; status 0 when it did not, with the reason in `body`.

    `age`: for how many seconds it had been under way or kept when its question came. Not a time, since clocks differ.
    Headers are bytes: what is not UTF-8 in them has to arrive as it was.
    """

    status: int
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""
    retry_after: float | None = None
    is_timeout: bool = False
    age: Annotated[float, msgspec.Meta(ge=0)] = 0.0

    @classmethod
    def of(cls, status: int, headers: CIMultiDict[str], body: bytes) -> Reply:
        """What aiohttp could not read as UTF-8, it left in the text as surrogates."""
        raw = ((name.encode(), value.encode(errors="surrogateescape")) for name, value in headers.items())
        return cls(status, tuple(raw), body)

    @property
    def fields(self) -> CIMultiDict[str]:
        """The headers as they came to whoever asked."""
        return CIMultiDict(
            (name.decode(errors="replace"), value.decode(errors="surrogateescape")) for name, value in self.headers
        )

    @property
    def is_refusal(self) -> bool:
        return self.status >= 400 and HubError.of(self.status, self.fields).is_refusal

    def life(self, longest: float, now: float) -> float:
        """For how many seconds from `now` (since the epoch), which it came at, it may be given to others; 0: not."""
        headers = tuple(self.fields.items())
        stored = Stored(self.status, "", headers, b"", now, now)
        if not self.status or {"no-store", "private", "no-cache"} & caching.directives(headers).keys():
            return 0.0
        if caching.has_ended(stored, math.inf):  # it says how long it holds
            longest = min(longest, caching.lifetime(stored) - caching.age(stored, now))
        if where := caching.field(headers, "location"):
            # Whoever gets the address has to have something of its life.
            longest = min(longest, (metadata.expiry(where, now) - now) / 2)
        return longest


@dataclass(frozen=True, slots=True)
class Kept:
    """A reply, and when its question was asked (monotonic seconds)."""

    asked_at: float
    reply: Reply


class Replies:
    """Replies by what was asked, each for a while; the oldest go first. Times are monotonic seconds."""

    def __init__(self, max_bytes: int = _MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[str, tuple[float, int, Kept]] = OrderedDict()
        self._swept_at = -math.inf
        self.size = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: str, now: float) -> Kept | None:
        self._sweep(now)
        until, _, kept = self._kept.get(key, (now, 0, None))
        return kept if now < until else None

    def keep(self, key: str, kept: Kept, seconds: float, now: float) -> None:
        """Put it in the place of what was kept under this key, be it only to drop that."""
        self._sweep(now)
        self.drop(key)
        reply = kept.reply
        if seconds <= 0 or len(reply.body) > _MAX_BODY:
            return
        headers = sum(len(name) + len(value) + 150 for name, value in reply.headers)
        size = len(key) + len(reply.body) + headers + _OVERHEAD
        self._kept[key] = (now + seconds, size, kept)
        self.size += size
        while self.size > self._max_bytes or len(self._kept) > _MAX_KEPT:
            self.drop(next(iter(self._kept)))

    def drop(self, key: str) -> None:
        _, size, _ = self._kept.pop(key, (0.0, 0, None))
        self.size -= size

    def _sweep(self, now: float) -> None:
        """What is over takes the room of what is not, and memory when nobody asks any more."""
        if now - self._swept_at >= _SWEEP_SECONDS:
            self._swept_at = now
            for key in [key for key, (until, _, _) in self._kept.items() if until <= now]:
                self.drop(key)
