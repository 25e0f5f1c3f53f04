"""Access rights, as far as the Hub has told this node. Pure: `now` is an argument.

Holding a blob does not give the right to serve it. A file is open when the Hub gave it to an anonymous request. For any
other file the Hub is asked with the client's own token, and its verdict holds for minutes (a grant).

The Hub gates files, not repositories: anybody may read the info of a gated repository, and perhaps its card. So an info
proves nothing about files unless it says that there is no gate, and a card (README.md) proves nothing about other
files.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from mesh.bounded import Bounded
from proxy.hub import clock

# Seconds for which proof that a repository is open counts. It may be made private meanwhile, so it is checked again.
OPEN_SECONDS = 3600.0
# Seconds for which a refusal of anonymous requests counts. The repository may be opened, and asking again costs one
# request.
CLOSED_SECONDS = 300.0
_NOTE_SECONDS = 30.0  # seconds; a proof newer by less than this is not written to the catalog
_MAX_GRANTS = 10_000
EVERYBODY = "*"  # stands in place of a token's key: the scope of answers to anonymous requests
_CARDS = ("readme.md", ".gitattributes")


def token_key(token: str) -> str:
    """The key under which a token is remembered. The token itself is never stored."""
    return hashlib.sha256(f"hubmesh grant\0{token}".encode(errors="surrogatepass")).hexdigest()[:32]


def is_card(path: str) -> bool:
    return path.rpartition("/")[2].lower() in _CARDS


def says_open(info: Any) -> bool:
    """Whether an info answer to an anonymous request says that anybody may have the repository's files."""
    return (
        isinstance(info, dict)
        and info.get("private") is False
        and info.get("gated") is False
        and not info.get("disabled")
    )


class Publicness(msgspec.Struct, frozen=True):
    """When the Hub last told an anonymous request something about a repository, in seconds since the epoch; 0: never.

    `opened_at`: it gave a file, or said that there is no gate. `closed_at`: it refused a file. `hidden_at`: it did not
    admit that the repository exists. `changed_at`: a client wrote to it through this node, so everything said before
    may be outdated. `shown_at`: it admitted again that a hidden repository exists.
    """

    opened_at: float = 0.0
    closed_at: float = 0.0
    hidden_at: float = 0.0
    changed_at: float = 0.0
    shown_at: float = 0.0

    def by(self, now: float) -> Publicness:
        """The same, without times that the clock has not reached: see `proxy.hub.clock`."""
        if not clock.is_ahead(max(self.opened_at, self.closed_at, self.hidden_at, self.changed_at, self.shown_at), now):
            return self
        return Publicness(
            clock.said(self.opened_at, now),
            clock.refused(self.closed_at, now),
            clock.refused(self.hidden_at, now),
            clock.refused(self.changed_at, now),
            clock.said(self.shown_at, now),
        )

    def is_open(self, open_at: float, now: float, *, may_ask: bool) -> bool:
        """Whether anybody may have a file that the Hub gave to an anonymous request at `open_at`.

        Later proof for another file counts as well, as long as nothing has been refused since `open_at`. When the Hub
        cannot be asked (not `may_ask`), its last word holds without a time limit.
        """
        open_at = clock.said(open_at, now)
        if open_at <= max(self.closed_at, self.hidden_at, self.changed_at):
            return False
        return not may_ask or now - max(open_at, self.opened_at) < OPEN_SECONDS

    @property
    def is_shut(self) -> bool:
        """Whether the Hub's last word was a refusal, however long ago."""
        return max(self.closed_at, self.hidden_at) > max(self.opened_at, self.changed_at)

    def is_closed(self, now: float) -> bool:
        """Whether an anonymous request for a file would most likely be refused."""
        return self.is_shut and now - max(self.closed_at, self.hidden_at) < CLOSED_SECONDS

    def is_hidden(self, now: float) -> bool:
        """Whether any anonymous request about the repository would most likely be refused."""
        known_at = max(self.opened_at, self.changed_at, self.shown_at)
        return self.hidden_at > known_at and now - self.hidden_at < CLOSED_SECONDS

    def closed(self, said_at: float, *, is_hidden: bool) -> Publicness:
        """The state after the Hub said, to any client, that files are gated; `is_hidden`: that it is private.

        What is closed already keeps its earlier time. So what the Hub has given to anonymous requests since then, such
        as the card of a gated repository, stays open.
        """
        closed_at, hidden_at, opened_at = self.closed_at, self.hidden_at, max(self.opened_at, self.changed_at)
        if max(closed_at, hidden_at) <= opened_at:
            closed_at = max(closed_at, said_at)
        if is_hidden and hidden_at <= max(opened_at, self.shown_at):
            hidden_at = max(hidden_at, said_at)
        return msgspec.structs.replace(self, closed_at=closed_at, hidden_at=hidden_at)

    def refused(self, said_at: float, *, is_closed: bool, is_hidden: bool) -> Publicness:
        """The state after an anonymous request was refused: see `Catalog.refused`."""
        return msgspec.structs.replace(
            self,
            closed_at=max(self.closed_at, said_at) if is_closed else self.closed_at,
            hidden_at=max(self.hidden_at, said_at) if is_hidden else self.hidden_at,
        )

    def written(self, now: float) -> Publicness:
        """The state after a write: what was said before is void."""
        return msgspec.structs.replace(self, changed_at=max(self.changed_at, now))

    def heeding(self, other: Publicness) -> Publicness:
        """The same, with refusals and writes that were heard of under another name of the repository.

        Proof of openness is left out: the name may have been given to a new repository.
        """
        return msgspec.structs.replace(
            self,
            closed_at=max(self.closed_at, other.closed_at),
            hidden_at=max(self.hidden_at, other.hidden_at),
            changed_at=max(self.changed_at, other.changed_at),
        )

    def told(self, said_at: float, *, is_open: bool) -> Publicness:
        """The state after an answer to an anonymous request.

        `is_open`: the answer was a file, or said that anybody may have all files.
        """
        told = self
        if is_open and (self.is_closed(said_at) or said_at - self.opened_at > _NOTE_SECONDS):
            told = msgspec.structs.replace(told, opened_at=said_at)
        if told.is_hidden(said_at):  # no longer hidden: the next client is to be asked for anonymously again
            told = msgspec.structs.replace(told, shown_at=said_at)
        return told


class Grants:
    """Recent verdicts of the Hub that a token may read a repository's files. Bounded; the oldest are dropped first.

    `life` is in seconds.
    """

    def __init__(self, life: float, limit: int = _MAX_GRANTS) -> None:
        self.life = life
        self._until: Bounded[tuple[str, str], float] = Bounded(limit)
        self._refused_at: Bounded[tuple[str, str], float] = Bounded(limit)

    def allow(self, token: str, repo: str, now: float, said_at: float) -> None:
        """Note that the Hub gave this token a file.

        `said_at` is when the Hub was asked (seconds since the epoch); `now` is the caller's clock, the same as for
        `is_allowed`. Answers can overtake each other, so one to a question asked before the last refusal is ignored.
        """
        key = (token_key(token), repo)
        if said_at <= self._refused_at.get(key, 0.0):
            return
        self._until[key] = now + self.life

    def revoke(self, token: str, repo: str, said_at: float) -> None:
        """Note that the Hub refused this token at `said_at` (seconds since the epoch): its earlier grant is void."""
        key = (token_key(token), repo)
        self._until.pop(key, None)
        self._refused_at[key] = max(said_at, self._refused_at.get(key, 0.0))

    def refused_at(self, token: str, repo: str) -> float:
        """When the Hub last refused this token, in seconds since the epoch; 0: never."""
        return self._refused_at.get((token_key(token), repo), 0.0)

    def is_allowed(self, token: str | None, repo: str, now: float) -> bool:
        return token is not None and self._until.get((token_key(token), repo), now) > now
