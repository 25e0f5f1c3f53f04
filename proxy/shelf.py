"""A cache in memory for answers that pass through and say that they may be kept."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

from proxy import caching
from proxy.caching import Fields, Stored

MAX_BODY = 1 << 20  # bytes; longer bodies pass through and are not kept
_MAX_SIZE = 8 << 20  # bytes of all answers together
_MAX_VARIANTS = 8  # answers for one address, by `Vary`


class Shelf:
    """Variants of answers by address; the least recently used address is dropped first."""

    def __init__(self, limit: int = _MAX_SIZE) -> None:
        self._limit = limit
        self._size = 0
        self._kept: OrderedDict[str, tuple[str, list[Stored]]] = OrderedDict()

    def has(self, key: str) -> bool:
        return key in self._kept

    def find(self, key: str, request: Fields) -> Stored | None:
        """The most recently kept variant that matches the request."""
        _, variants = self._kept.get(key, ("", []))
        found = next((stored for stored in variants if caching.matches(stored, request)), None)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def add(self, key: str, repo: str, stored: Stored) -> None:
        """Keep an answer in place of the variant for the same request. `repo`: what it is about, or empty."""
        _, variants = self._kept.get(key, ("", []))
        others = [other for other in variants if other.varied != stored.varied][: _MAX_VARIANTS - 1]
        self.drop(key)
        self._kept[key] = repo, [stored, *others]
        self._size += sum(each.size for each in self._kept[key][1])
        while self._size > self._limit:
            self.drop(next(iter(self._kept)))

    def drop(self, key: str) -> None:
        _, variants = self._kept.pop(key, ("", []))
        self._size -= sum(stored.size for stored in variants)

    def drop_repo(self, repo: str) -> None:
        for key in [key for key, (about, _) in self._kept.items() if about == repo]:
            self.drop(key)

    def doubt_repo(self, repo: str) -> None:
        """Have everything kept of a repository revalidated before it is used again, unless the origin is away."""
        for key, (about, variants) in self._kept.items():
            if about == repo:
                self._kept[key] = about, [replace(stored, is_doubtful=True) for stored in variants]
