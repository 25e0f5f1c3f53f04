"""The Hub's answers in the form in which one node passes them to others, and its cache of them. Pure."""

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
_MAX_BODY = 1 << 20  # bytes; longer ones are passed on but not kept
_OVERHEAD = 1000  # bytes of Python's overhead for each reply
_SWEEP_SECONDS = 5.0


class Reply(msgspec.Struct, frozen=True):
    """An answer of the Hub; with status 0 there was none, and `body` has the reason.

    `age`: seconds since the Hub gave it, at the time of this question. An age and not a time, because clocks differ.
    Header fields are bytes, so that those that are not UTF-8 arrive unchanged.
    """

    status: int
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""
    retry_after: float | None = None
    is_timeout: bool = False
    age: Annotated[float, msgspec.Meta(ge=0)] = 0.0

    @classmethod
    def of(cls, status: int, headers: CIMultiDict[str], body: bytes) -> Reply:
        """A reply from aiohttp's view of an answer, where bytes that are not UTF-8 are surrogates."""
        raw = ((name.encode(), value.encode(errors="surrogateescape")) for name, value in headers.items())
        return cls(status, tuple(raw), body)

    @property
    def fields(self) -> CIMultiDict[str]:
        """The headers in the form in which aiohttp gave them."""
        return CIMultiDict(
            (name.decode(errors="replace"), value.decode(errors="surrogateescape")) for name, value in self.headers
        )

    @property
    def is_refusal(self) -> bool:
        return self.status >= 400 and HubError.of(self.status, self.fields).is_refusal

    def life(self, longest: float, now: float) -> float:
        """For how many seconds from `now` it may be given to others; 0: not at all.

        `now` is when it came, in seconds since the epoch.
        """
        headers = tuple(self.fields.items())
        stored = Stored(self.status, "", headers, b"", now, now)
        if not self.status or {"no-store", "private", "no-cache"} & caching.directives(headers).keys():
            return 0.0
        if caching.states_lifetime(stored):
            longest = min(longest, caching.lifetime(stored) - caching.age(stored, now))
        if where := caching.field(headers, "location"):
            # The node that gets the address must have time to use it.
            longest = min(longest, (metadata.expiry(where, now) - now) / 2)
        return longest


@dataclass(frozen=True, slots=True)
class Kept:
    """A reply, and when its question was asked (monotonic seconds)."""

    asked_at: float
    reply: Reply


class Replies:
    """Replies by question, each kept for a limited time; the oldest are dropped first. Times are monotonic seconds."""

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
        """Keep a reply in place of the one under this key. The old one is dropped even if the new one is not kept."""
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
        """Drop expired replies: they take room from others, and memory even when there are no more questions."""
        if now - self._swept_at >= _SWEEP_SECONDS:
            self._swept_at = now
            for key in [key for key, (until, _, _) in self._kept.items() if until <= now]:
                self.drop(key)
