"""Who may read what, as far as the Hub told us. Pure: `now` is seconds on any clock.

Holding a blob is no permission to hand it out. A repository counts as public only when the Hub gave something of it to
an anonymous request; for all others the Hub is asked with the client's own token, and its word is good for minutes.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict

_MAX_GRANTS = 10_000


def token_key(token: str) -> str:
    """What we remember of a token: never the token itself."""
    return hashlib.sha256(f"hubmesh grant\0{token}".encode()).hexdigest()[:32]


class Grants:
    """The Hub's recent verdicts: this token may read this repository. Bounded; the oldest go first."""

    def __init__(self, life: float, limit: int = _MAX_GRANTS) -> None:
        self._life = life
        self._limit = limit
        self._until: OrderedDict[tuple[str, str], float] = OrderedDict()

    def allow(self, token: str, repo: str, now: float) -> None:
        key = (token_key(token), repo)
        self._until[key] = now + self._life
        self._until.move_to_end(key)
        while len(self._until) > self._limit:
            self._until.popitem(last=False)

    def revoke(self, token: str, repo: str) -> None:
        self._until.pop((token_key(token), repo), None)

    def is_allowed(self, token: str | None, repo: str, now: float) -> bool:
        return token is not None and self._until.get((token_key(token), repo), now) > now
