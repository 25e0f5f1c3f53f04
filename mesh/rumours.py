"""Rumours: claims about nodes that have not answered this node themselves. Pure.

In a mesh without a key anybody may claim that a node is at any host and port. So a node that is only heard of is no
peer, and is not passed on, until it has answered. A named seed is believed, because it passes on only what it has
found out itself; so most nodes never have to be tried.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from mesh.hosts import is_fit, is_local, is_name
from mesh.membership import Claim, Members, State
from mesh.quota import Quota

_MAX = 1000  # rumours kept
_PATIENCE = 3.0  # seconds in which a named seed may confirm a rumour before the address is tried
_AGAIN = (5.0, 15.0, 60.0, 300.0)  # seconds until an address that did not answer is tried again
_AT_ONCE = 4  # rumours returned by one call of `due`
_WAITS = 20  # postponements, when there are many rumours about one host, after which a rumour may give way to others
_TRIES_OF_HOST, _SECONDS_OF_HOST = 16, 4.0  # tries of one host at once, and seconds for each further one


@dataclass(slots=True)
class _Rumour:
    claim: Claim
    teller: str
    due_at: float
    tries: int = 0
    waits: int = 0  # postponements in favour of other rumours about the same host


class Rumours:
    """The rumours heard so far, and when to check them. Times are seconds on a monotonic clock."""

    def __init__(self, members: Members) -> None:
        self._members = members
        self._of: dict[str, _Rumour] = {}
        self._quota = Quota(_TRIES_OF_HOST, _SECONDS_OF_HOST)

    def __len__(self) -> int:
        return len(self._of)

    @property
    def is_fresh(self) -> bool:
        """Whether any rumour has not been checked yet."""
        return any(not rumour.tries for rumour in self._of.values())

    def sift(
        self,
        claims: Iterable[Claim],
        now: float,
        *,
        sender: str,
        teller: str,
        has_answered: bool = False,
        is_believed: bool = False,
        may_wait: bool = False,
    ) -> list[Claim]:
        """Return the claims of a message that hold, and keep the others, if plausible, to be checked.

        `sender` is the node that sent the message and `teller` its host. `has_answered`: the message answers a call of
        this node. `is_believed`: it is from a named seed. `may_wait`: there is a named seed to ask.
        """
        held = []
        for claim in claims:
            known = self._members.claim(claim.node_id)
            is_possible = is_fit(claim.host, teller)
            if claim.node_id == sender:
                holds = claim.host in ("", teller) or (is_possible and (has_answered or is_local(claim.host)))
            else:
                holds = is_believed and is_possible and not is_name(claim.host)  # a seed may have heard it of a liar
            if holds or claim.node_id == self._members.me.node_id:
                self._of.pop(claim.node_id, None)
                held.append(claim)
            elif known is not None and _place(claim) == _place(known):
                held.append(claim)
            elif known is not None and claim.state != State.ALIVE:  # the state may be true, the new address is not
                held.append(msgspec.structs.replace(claim, **_place(known)))
            elif claim.state <= State.SUSPECT and (known is None or claim > known) and is_possible:
                self._keep(claim, teller, now + _PATIENCE if may_wait and not is_believed else now)
        return held

    def due(self, now: float) -> list[tuple[Claim, str]]:
        """Return a few rumours to check now, each with the host that told it. They are then not due for a while."""
        due: list[tuple[Claim, str]] = []
        for rumour in sorted(self._of.values(), key=lambda rumour: rumour.due_at):
            if rumour.due_at > now or len(due) == _AT_ONCE:
                break
            if self._quota.take(rumour.claim.host, now):
                due.append((rumour.claim, rumour.teller))
                rumour.due_at = now + _AGAIN[min(rumour.tries, len(_AGAIN) - 1)]
                rumour.tries += 1
            else:
                rumour.due_at = now + _SECONDS_OF_HOST
                rumour.waits += 1
        return due

    def _keep(self, claim: Claim, teller: str, due_at: float) -> None:
        if (rumour := self._of.get(claim.node_id)) is not None:  # a new address does not make it due again sooner
            rumour.claim, rumour.teller = max((rumour.claim, rumour.teller), (claim, teller))
            if not rumour.tries:  # a named seed may have confirmed it
                rumour.due_at = min(rumour.due_at, due_at)
        elif len(self._of) < _MAX or self._make_room():
            self._of[claim.node_id] = _Rumour(claim, teller, due_at)

    def _make_room(self) -> bool:
        """Drop a rumour that was tried in vain, or is one of very many about its host. False if there is none."""
        for node_id, rumour in self._of.items():
            if rumour.tries >= len(_AGAIN) or rumour.waits >= _WAITS:
                del self._of[node_id]
                return True
        return False


def _place(claim: Claim) -> dict[str, object]:
    return {"host": claim.host, "port": claim.port, "role": claim.role, "version": claim.version}
