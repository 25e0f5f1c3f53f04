"""Who may read what, as far as the Hub told us. Pure: `now` is an argument.

Holding a blob is no permission to hand it out. A file is open when the Hub gave it to an anonymous request; for all
others the Hub is asked with the client's own token, and its word is good for minutes.

Gates stand before files, not before repositories: of a gated one anybody may read the info, and perhaps its card. So
the info proves nothing about the files, unless it says that there is no gate, and a card (README.md) nothing about
other files.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Any

import msgspec

# A repository that was public may be made private: asked again after this many seconds.
OPEN_SECONDS = 3600.0
# One that was not may be opened; asking costs one request.
CLOSED_SECONDS = 300.0
_NOTE_SECONDS = 30.0  # a proof that is newer by less is not worth a write
_MAX_GRANTS = 10_000
EVERYBODY = "*"  # who may see what was said to nobody in particular; stands where a token's key would
_CARDS = ("readme.md", ".gitattributes")


def token_key(token: str) -> str:
    """What we remember of a token: never the token itself."""
    return hashlib.sha256(f"hubmesh grant\0{token}".encode(errors="surrogatepass")).hexdigest()[:32]


def is_card(path: str) -> bool:
    return path.rpartition("/")[2].lower() in _CARDS


def says_open(info: Any) -> bool:
    """Whether an info answer, given to nobody in particular, says that anybody may have the repository's files."""
    return (
        isinstance(info, dict)
        and info.get("private") is False
        and info.get("gated") is False
        and not info.get("disabled")
    )


class Publicness(msgspec.Struct, frozen=True):
    """When (seconds since the epoch; 0 for never) the Hub last told an anonymous request something of a repository.

    `opened_at`: it gave a file, or said that there is no gate. `closed_at`: it refused a file. `hidden_at`: it did not
    know the repository at all. `changed_at`: somebody wrote to it through us, and all that was told before may have
    changed. `shown_at`: after it had been hidden, it was not.
    """

    opened_at: float = 0.0
    closed_at: float = 0.0
    hidden_at: float = 0.0
    changed_at: float = 0.0
    shown_at: float = 0.0

    def is_open(self, open_at: float, now: float, *, may_ask: bool) -> bool:
        """Whether anybody may have a file that the Hub gave to an anonymous request at `open_at`.

        Another file's later proof does as well, as long as nothing was refused since this one's. When the Hub cannot
        be asked, the last word holds.
        """
        if open_at <= max(self.closed_at, self.hidden_at, self.changed_at):
            return False
        return not may_ask or now - max(open_at, self.opened_at) < OPEN_SECONDS

    @property
    def is_shut(self) -> bool:
        """Whether the last word was a refusal, however long ago."""
        return max(self.closed_at, self.hidden_at) > max(self.opened_at, self.changed_at)

    def is_closed(self, now: float) -> bool:
        """Whether an anonymous request for a file would most likely be refused."""
        return self.is_shut and now - max(self.closed_at, self.hidden_at) < CLOSED_SECONDS

    def is_hidden(self, now: float) -> bool:
        """Whether an anonymous request for anything would most likely be refused."""
        known_at = max(self.opened_at, self.changed_at, self.shown_at)
        return self.hidden_at > known_at and now - self.hidden_at < CLOSED_SECONDS

    def told(self, said_at: float, *, is_open: bool) -> Publicness:
        """After an answer to an anonymous request; `is_open`: it gave a file, or said that anybody may have all."""
        told = self
        if is_open and (self.is_closed(said_at) or said_at - self.opened_at > _NOTE_SECONDS):
            told = msgspec.structs.replace(told, opened_at=said_at)
        if told.is_hidden(said_at):  # not any more: whoever comes next is to ask as nobody again
            told = msgspec.structs.replace(told, shown_at=said_at)
        return told


class Grants:
    """The Hub's recent verdicts: this token may read this repository's files. Bounded; the oldest go first."""

    def __init__(self, life: float, limit: int = _MAX_GRANTS) -> None:
        self.life = life
        self._limit = limit
        self._until: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._refused_at: OrderedDict[tuple[str, str], float] = OrderedDict()

    def allow(self, token: str, repo: str, now: float, said_at: float) -> None:
        """The Hub gave a file when it was asked at `said_at` (seconds since the epoch); `now` is by the grants' clock.

        Answers overtake each other: one to a question from before the last refusal lets nobody in any more.
        """
        key = (token_key(token), repo)
        if said_at <= self._refused_at.get(key, 0.0):
            return
        self._until[key] = now + self.life
        self._until.move_to_end(key)
        while len(self._until) > self._limit:
            self._until.popitem(last=False)

    def revoke(self, token: str, repo: str, said_at: float) -> None:
        """The Hub refused at `said_at` (seconds since the epoch): what it told this token before is void."""
        key = (token_key(token), repo)
        self._until.pop(key, None)
        self._refused_at[key] = max(said_at, self._refused_at.get(key, 0.0))
        self._refused_at.move_to_end(key)
        while len(self._refused_at) > self._limit:
            self._refused_at.popitem(last=False)

    def refused_at(self, token: str, repo: str) -> float:
        """When the Hub last refused, in seconds since the epoch; 0 for never."""
        return self._refused_at.get((token_key(token), repo), 0.0)

    def is_allowed(self, token: str | None, repo: str, now: float) -> bool:
        return token is not None and self._until.get((token_key(token), repo), now) > now
