"""The members of the mesh and their states: alive, suspect, gone, left. Pure: no clock and no I/O.

The states are those of SWIM (Das, Gupta, Motivala 2002): a node that does not answer is suspected first, and gone if
it does not refute that in time. Only the node itself raises its incarnation, to refute claims of others about it.
Claims about one node are totally ordered and the greatest is kept, so all nodes come to agree, in whatever order and
however often claims arrive.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal, NamedTuple

import msgspec

from mesh.hosts import is_name
from mesh.messages import ORIGIN

MAX_CLAIMS = 1000  # in one message
MAX_MEMBERS = 2000  # kept by one node, gone ones included
MAX_INCARNATION = 1 << 53
MAX_HOST = 253  # characters
MAX_VERSION = 32  # characters
# For how long nodes that are gone are remembered: to try them again (a partition may last), and so that old gossip does
# not bring back a node that left. Others are told of them for less time, or nodes would refresh each other's memory.
KEPT_SECONDS = 3600.0
TOLD_SECONDS = 600.0
NODE_ID = re.compile(r"[0-9A-Za-z_-]{1,128}")
LOOPBACK = "127.0.0.1"
_MAX_CALM = 60.0  # longest time in seconds between two suspicions of the same node that start here

Role = Literal["peer", "seed"]


class Address(NamedTuple):
    """Address of a node: an IP address (without brackets) or a DNS name, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class State(IntEnum):
    """State of a node; the greatest takes precedence among claims of one incarnation."""

    ALIVE = 0
    SUSPECT = 1
    GONE = 2
    LEFT = 3


class Claim(msgspec.Struct, frozen=True, array_like=True, order=True):
    """What a node says about another, or about itself. Of two claims about the same node the greater one holds.

    An empty `host` stands for the host that the claim comes from.
    """

    node_id: str
    incarnation: int
    state: State
    host: str
    port: int
    role: Role
    version: str

    def check(self) -> None:
        """Raise ValueError if a field is out of bounds."""
        if not NODE_ID.fullmatch(self.node_id) or self.node_id == ORIGIN:
            raise ValueError("not a node id")
        if not 0 <= self.incarnation < MAX_INCARNATION:
            raise ValueError(f"incarnation {self.incarnation}")
        if len(self.host) > MAX_HOST or not self.host.isprintable() or set(self.host) & set(" /@?#[]%"):
            raise ValueError("not a host")
        if not 0 < self.port < 1 << 16:
            raise ValueError(f"port {self.port}")
        if len(self.version) > MAX_VERSION or not self.version.isprintable():
            raise ValueError("not a version")


@dataclass(frozen=True, slots=True)
class Member:
    """Another node, and how to reach it now."""

    node_id: str
    address: Address
    role: Role
    version: str
    incarnation: int
    state: State
    # It answers at an address that this node's operator named, so its metadata is believed. Never learned from others.
    named_seed: bool


@dataclass(frozen=True, slots=True)
class Change:
    """A member's new state. `was` is None if the member was not known before."""

    member: Member
    was: State | None
    counted: int = 0  # by how much the incarnation has grown

    @property
    def restarted(self) -> bool:
        """Whether the node runs in a new process: incarnations start at the time in seconds, a refutation adds one.

        A restart after only a second goes unnoticed; the process before it cannot have been told much.
        """
        return self.counted > 1

    @property
    def joined(self) -> bool:
        return self.member.state <= State.SUSPECT and (self.was is None or self.was >= State.GONE)

    @property
    def parted(self) -> bool:
        return self.member.state >= State.GONE and self.was is not None and self.was <= State.SUSPECT


@dataclass(slots=True)
class _Record:
    claim: Claim
    since: float  # when the current state began, or the suspicion was postponed
    grace: float  # seconds to refute a suspicion
    named: Address | None = None  # the explicitly named address at which the node answers
    reached: Address | None = None  # an address at which the node answered, whatever others claim
    accused: int = 0  # suspicions in a row that started here and were refuted
    calm_until: float = 0.0  # no new suspicion starts here before this time
    heard_at: float = float("-inf")  # when the node last sent this one any message
    member: Member | None = None  # cached until one of the fields changes


class Members:
    """All nodes that this one knows of. Times are seconds on one monotonic clock.

    `suspect_for` is how long a suspected node has to refute before it counts as gone. `is_open`: anybody may be a
    member, so a claimed DNS name is no address: a node stays where it was reached until it is reached elsewhere.
    """

    def __init__(
        self, me: Claim, *, suspect_for: float = 2.5, rng: random.Random | None = None, is_open: bool = False
    ) -> None:
        me.check()
        self._is_open = is_open
        self._me = me
        self._suspect_for = suspect_for
        self._rng = rng or random.Random()
        # Like `_me`, but with the host that others see, once they have reported it.
        self._own = me
        self._records: dict[str, _Record] = {}
        self._alive: tuple[Member, ...] | None = None
        self._marks = 0  # XOR of the marks of all claims but our own, for `digest`
        self._restless: set[str] = set()  # nodes that are not ALIVE: their state changes with time

    @property
    def me(self) -> Claim:
        """What this node claims about itself."""
        return self._me

    def alive(self) -> tuple[Member, ...]:
        """The other nodes that are not gone, sorted by id. Includes suspects, most of which are only busy."""
        if self._alive is None:
            self._alive = tuple(
                self._member(record)
                for _, record in sorted(self._records.items())
                if record.claim.state <= State.SUSPECT
            )
        return self._alive

    def gone(self) -> tuple[Member, ...]:
        """Nodes that may come back: a partition may end, or a machine be switched on again."""
        restless = (self._records[node_id] for node_id in self._restless)
        return tuple(self._member(record) for record in restless if record.claim.state == State.GONE)

    def get(self, node_id: str) -> Member | None:
        record = self._records.get(node_id)
        return None if record is None else self._member(record)

    def claim(self, node_id: str) -> Claim | None:
        """The claim that is believed about another node."""
        record = self._records.get(node_id)
        return None if record is None else record.claim

    def snapshot(self, now: float) -> tuple[Claim, ...]:
        """The claims to send to others: all of them if they fit into a message, else a random sample."""
        told = (
            record.claim
            for record in self._records.values()
            if record.claim.state <= State.SUSPECT or now - record.since < TOLD_SECONDS
        )
        claims = [self._own, *told]
        return tuple(claims if len(claims) <= MAX_CLAIMS else self._rng.sample(claims, MAX_CLAIMS))

    def held_against(self, said: Claim) -> tuple[Claim, ...]:
        """The claim that a node is gone, if it outranks what the node says itself: it has to hear that to refute it.

        The claim may be too old for `snapshot`, when the node was away and its clock has gone back.
        """
        record = self._records.get(said.node_id)
        if record is None or record.claim.state < State.GONE or record.claim.incarnation < said.incarnation:
            return ()
        return (record.claim,)

    def digest(self) -> bytes:
        """Eight bytes that are equal on two nodes if and only if they believe the same of all nodes not gone."""
        return (self._marks ^ _mark(self._own)).to_bytes(8, "big")

    def merge(self, claims: Iterable[Claim], now: float) -> list[Change]:
        """Merge checked claims, from any node, in any order, any number of times. Returns what has changed."""
        return [change for claim in claims if (change := self._take(self._as_hearsay(claim, now), now)) is not None]

    def knows(self, claim: Claim) -> bool:
        """Whether exactly this claim is known already."""
        record = self._records.get(claim.node_id)
        return record is not None and record.claim == claim

    def heard(self, node_id: str, now: float, address: Address | None = None) -> None:
        """Record that a node sent this one a message. `address` is where it answered, if the message was an answer.

        A suspect node stays suspect until it refutes that itself in the next exchange, but has the full time for it.
        """
        if (record := self._records.get(node_id)) is None:
            return
        record.heard_at = now
        if record.claim.state == State.SUSPECT:
            record.since = now
        if address is not None:
            record.accused = 0
            if record.reached != address:
                record.reached = address
                self._touch(record)

    def seen_at(self, node_id: str) -> float | None:
        """When a node last sent a message; if it never did, when its state was learned. None for an unknown node."""
        record = self._records.get(node_id)
        return None if record is None else record.heard_at if record.heard_at > float("-inf") else record.since

    def was_heard(self, node_id: str, since: float) -> bool:
        """Whether a node has sent this one a message after `since`."""
        record = self._records.get(node_id)
        return record is not None and record.heard_at > since

    def failed(self, node_id: str, now: float, *, is_refused: bool = False) -> list[Change]:
        """Suspect a node after a failed call to it. `is_refused`: its machine refused the connection."""
        record = self._records.get(node_id)
        if record is None or record.claim.state != State.ALIVE:
            return []
        if record.reached is not None and not self._is_pinned(record):
            tried, record.reached = record.reached, None
            self._touch(record)
            if tried != self._member(record).address:
                return []  # it may be reachable at the address that others know
        if now < record.calm_until:
            return []
        # If only this node cannot reach it, it refutes each suspicion and all nodes hear of that: suspect it ever less.
        record.calm_until = now + min(_MAX_CALM, self._suspect_for * 2**record.accused)
        record.accused = min(record.accused + 1, 10)
        changes = self.merge([msgspec.structs.replace(record.claim, state=State.SUSPECT)], now)
        record.grace = self._suspect_for / 2 if is_refused else self._suspect_for
        return changes

    def tick(self, now: float, patience: float = 1.0) -> list[Change]:
        """Declare suspects gone that did not refute in time, and forget nodes that have been gone for long.

        `patience` multiplies the time to refute, for when this node itself is slow.
        """
        changes = []
        for node_id in list(self._restless):
            record = self._records[node_id]
            age = now - record.since
            if record.claim.state == State.SUSPECT and age >= record.grace * patience:
                gone = self._take(msgspec.structs.replace(record.claim, state=State.GONE), now)
                changes += [gone] if gone else []
            elif record.claim.state >= State.GONE and age >= KEPT_SECONDS:
                self._drop(node_id)
        return changes

    def leave(self) -> Claim:
        """Return this node's claim that it has left, the only one about itself from now on."""
        self._own = self._me = msgspec.structs.replace(self._me, state=State.LEFT)
        return self._me

    def name_seed(self, node_id: str, address: Address) -> list[Change]:
        """Record that a node, and no other one, answers at an address that the operator named as a seed's."""
        changes = []
        for other, record in self._records.items():
            named = address if other == node_id else None if record.named == address else record.named
            if record.named != named:
                record.named = named
                self._touch(record)
                changes.append(Change(self._member(record), record.claim.state))
        return changes

    def unname_seed(self, address: Address) -> list[Change]:
        """Record that an address is not a seed's any more (its DNS name changed)."""
        return self.name_seed("", address)

    def _touch(self, record: _Record) -> None:
        record.member = self._alive = None

    def _member(self, record: _Record) -> Member:
        if record.member is None:
            claim = record.claim
            record.member = Member(
                claim.node_id,
                record.named or record.reached or Address(claim.host or LOOPBACK, claim.port),
                claim.role,
                claim.version,
                claim.incarnation,
                claim.state,
                record.named is not None,
            )
        return record.member

    def _is_pinned(self, record: _Record) -> bool:
        return self._is_open and is_name(record.claim.host)

    def _as_hearsay(self, claim: Claim, now: float) -> Claim:
        """Weaken a claim that a node is gone to a suspicion if the node has just sent this one a message.

        The claimant may have been behind a broken line. The suspect can refute it; otherwise it is gone a little later.
        """
        record = self._records.get(claim.node_id)
        if claim.state != State.GONE or record is None or record.claim.state > State.SUSPECT:
            return claim
        has_spoken = now - record.heard_at < self._suspect_for
        return msgspec.structs.replace(claim, state=State.SUSPECT) if has_spoken else claim

    def _take(self, claim: Claim, now: float) -> Change | None:
        if claim.node_id == self._me.node_id:
            self._take_own(claim)
            return None
        record, counted = self._records.get(claim.node_id), 0
        if record is None:
            if not self._make_room():
                return None
            record = self._records[claim.node_id] = _Record(claim, now, self._suspect_for)
            was = None
            self._marks ^= _mark(claim)
        elif claim > record.claim:
            was = record.claim.state
            if was != claim.state:
                record.since, record.grace = now, self._suspect_for
            counted = claim.incarnation - record.claim.incarnation
            self._marks ^= _mark(record.claim) ^ _mark(claim)
            record.claim = claim
            if counted and not self._is_pinned(record):
                record.reached = None  # the node may have moved
        else:
            return None
        self._touch(record)
        if claim.state == State.ALIVE:
            self._restless.discard(claim.node_id)
        else:
            self._restless.add(claim.node_id)
        return Change(self._member(record), was, counted)

    def _take_own(self, claim: Claim) -> None:
        """Handle a claim about this node, and refute it with a higher incarnation if it is wrong."""
        if self._me.state == State.LEFT or claim <= self._own:
            return
        if not self._me.host and claim == msgspec.structs.replace(self._me, host=claim.host):
            self._own = claim  # others see this node's host
        elif claim.incarnation + 1 < MAX_INCARNATION:
            self._me = msgspec.structs.replace(self._me, incarnation=claim.incarnation + 1)
            self._own = msgspec.structs.replace(self._own, incarnation=claim.incarnation + 1)

    def _make_room(self) -> bool:
        if len(self._records) < MAX_MEMBERS - 1:
            return True
        gone = [node_id for node_id in self._restless if self._records[node_id].claim.state >= State.GONE]
        if not gone:
            return False
        self._drop(min(gone, key=lambda node_id: self._records[node_id].since))
        return True

    def _drop(self, node_id: str) -> None:
        """Forget a node that is gone. Such a node has no mark."""
        del self._records[node_id]
        self._restless.discard(node_id)


def _mark(claim: Claim) -> int:
    """Hash a claim to 64 bits; 0 for a claim that a node is gone or has left."""
    if claim.state > State.SUSPECT:
        return 0
    return int.from_bytes(hashlib.blake2b(msgspec.msgpack.encode(claim), digest_size=8).digest(), "big")
