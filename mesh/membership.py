"""Who is in the mesh: alive, suspect, gone. Pure: no clock and no I/O.

The states are those of SWIM (Das, Gupta, Motivala 2002): a node that does not answer is first suspected, and gone
when nothing refuted that in time. Only a node itself raises its incarnation, which it does to refute what others say
of it. Claims about a node are totally ordered, the greatest is kept, and so all nodes come to agree whatever way and
however often the claims travel.
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

from mesh.hosts import is_local
from mesh.messages import ORIGIN

MAX_CLAIMS = 1000  # in one message
MAX_MEMBERS = 2000  # that we keep, the gone included
MAX_INCARNATION = 1 << 53
MAX_HOST = 253  # characters
MAX_VERSION = 32
# How long we remember those who are gone: to try them again (a partition may last), and so that old gossip does not
# bring back a node that left. Others are told of them for a shorter time, or they would keep each other's memory fresh.
KEPT_SECONDS = 3600.0
TOLD_SECONDS = 600.0
NODE_ID = re.compile(r"[0-9A-Za-z_-]{1,128}")
LOOPBACK = "127.0.0.1"
_MAX_CALM = 60.0

Role = Literal["peer", "seed"]


class Address(NamedTuple):
    """Where a node's mesh port is: an IP address or a DNS name, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class State(IntEnum):
    """In the order of precedence among claims of one incarnation."""

    ALIVE = 0
    SUSPECT = 1
    GONE = 2
    LEFT = 3


class Claim(msgspec.Struct, frozen=True, array_like=True, order=True):
    """What one node says about another, or about itself. Of two about the same node the greater holds.

    An empty `host` is the host of whoever makes the claim.
    """

    node_id: str
    incarnation: int
    state: State
    host: str
    port: int
    role: Role
    version: str

    def check(self) -> None:
        """Raise ValueError if it could not have been said by a sane node."""
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


def as_heard(claim: Claim, teller: str) -> Claim | None:
    """A claim as it reads here, when the host `teller` made it; None when it means nothing here.

    A loopback address means the teller's own host, and is of use only if that is ours as well.
    """
    is_near = is_local(teller)
    if claim.host:
        return None if is_local(claim.host) and not is_near else claim
    if is_near:
        return claim
    # A link-local IPv6 address has a scope, which means nothing to others.
    return None if "%" in teller else msgspec.structs.replace(claim, host=teller)


@dataclass(frozen=True, slots=True)
class Member:
    """Another node, as it is to be spoken to now."""

    node_id: str
    address: Address
    role: Role
    version: str
    incarnation: int
    state: State
    # It answers at an address that was named explicitly here: what it says about metadata is believed. Never
    # learned from others.
    named_seed: bool


@dataclass(frozen=True, slots=True)
class Change:
    """What became of a member: `was` is None for one not known before."""

    member: Member
    was: State | None
    counted: int = 0  # incarnations from the one known before

    @property
    def restarted(self) -> bool:
        """Its process is another one, which counts from the second it began in; who refutes something goes one up.

        Not seen of one that ran for a second: it cannot have been told much.
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
    since: float  # when it came to the state it is in, or its suspicion was put off
    grace: float  # seconds that it has to refute
    named: Address | None = None  # the explicitly named address at which this node answers
    reached: Address | None = None  # an address that works, whatever others say
    accused: int = 0  # times in a row that we suspected it and it refuted
    calm_until: float = 0.0  # no new suspicion from us before
    heard_at: float = float("-inf")  # when it last spoke to us, of whatever
    member: Member | None = None  # what all this amounts to, until it changes


class Members:
    """All nodes that this one knows of. Times are seconds of any one clock that does not run backwards.

    `suspect_for` is how long a suspected node has to refute before it counts as gone.
    """

    def __init__(self, me: Claim, *, suspect_for: float = 2.5, rng: random.Random | None = None) -> None:
        me.check()
        self._me = me
        self._suspect_for = suspect_for
        self._rng = rng or random.Random()
        # Our own entry may have learned from others which host we are; what we say ourselves is `me`.
        self._own = me
        self._records: dict[str, _Record] = {}
        self._alive: tuple[Member, ...] | None = None
        self._marks = 0  # of all claims but our own: what `digest` needs, without looking at each of them again
        self._restless: set[str] = set()  # those who are not just alive: the passing of time changes them

    @property
    def me(self) -> Claim:
        """What this node says of itself."""
        return self._me

    def alive(self) -> tuple[Member, ...]:
        """The other nodes that are not gone, by id. Suspects are among them: most of them are just busy."""
        if self._alive is None:
            self._alive = tuple(
                self._member(record)
                for _, record in sorted(self._records.items())
                if record.claim.state <= State.SUSPECT
            )
        return self._alive

    def gone(self) -> tuple[Member, ...]:
        """Those that may come back: a partition may end, a machine may be switched on again."""
        restless = (self._records[node_id] for node_id in self._restless)
        return tuple(self._member(record) for record in restless if record.claim.state == State.GONE)

    def get(self, node_id: str) -> Member | None:
        record = self._records.get(node_id)
        return None if record is None else self._member(record)

    def claim(self, node_id: str) -> Claim | None:
        """What is believed of another node."""
        record = self._records.get(node_id)
        return None if record is None else record.claim

    def snapshot(self, now: float) -> tuple[Claim, ...]:
        """What to tell others: all of it if that fits into a message, else a random part."""
        told = (
            record.claim
            for record in self._records.values()
            if record.claim.state <= State.SUSPECT or now - record.since < TOLD_SECONDS
        )
        claims = [self._own, *told]
        return tuple(claims if len(claims) <= MAX_CLAIMS else self._rng.sample(claims, MAX_CLAIMS))

    def digest(self) -> bytes:
        """Eight bytes that are equal for two nodes exactly if they believe the same of all who are not gone."""
        return (self._marks ^ _mark(self._own)).to_bytes(8, "big")

    def merge(self, claims: Iterable[Claim], now: float) -> list[Change]:
        """Take in checked claims, from anybody, in any order, any number of times."""
        return [change for claim in claims if (change := self._take(self._as_hearsay(claim, now), now)) is not None]

    def knows(self, claim: Claim) -> bool:
        """Whether exactly this is known already."""
        record = self._records.get(claim.node_id)
        return record is not None and record.claim == claim

    def heard(self, node_id: str, now: float, address: Address | None = None) -> None:
        """A node spoke to us; `address` is where, if it was in answer to our call.

        That it is not suspect (any more) it says itself, in the next exchange; until then it is given time.
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
        """When a node last spoke to us; if it never did, when what we know of it was told. None for an unknown one."""
        record = self._records.get(node_id)
        return None if record is None else record.heard_at if record.heard_at > float("-inf") else record.since

    def was_heard(self, node_id: str, since: float) -> bool:
        """Whether a node has spoken to us since then."""
        record = self._records.get(node_id)
        return record is not None and record.heard_at > since

    def failed(self, node_id: str, now: float, *, is_refused: bool = False) -> list[Change]:
        """A call to a node failed; `is_refused` if its machine said that nobody listens there."""
        record = self._records.get(node_id)
        if record is None or record.claim.state != State.ALIVE:
            return []
        if record.reached is not None:
            tried, record.reached = record.reached, None
            self._touch(record)
            if tried != self._member(record).address:
                return []  # perhaps it can be reached where others say it is
        if now < record.calm_until:
            return []
        # If we alone cannot reach it, it refutes each time, and everybody hears of that: so ask less and less often.
        record.calm_until = now + min(_MAX_CALM, self._suspect_for * 2**record.accused)
        record.accused = min(record.accused + 1, 10)
        changes = self.merge([msgspec.structs.replace(record.claim, state=State.SUSPECT)], now)
        record.grace = self._suspect_for / 2 if is_refused else self._suspect_for
        return changes

    def tick(self, now: float, patience: float = 1.0) -> list[Change]:
        """Let time pass: suspicions that nobody refuted hold, those long gone are forgotten.

        `patience` stretches the time to refute, for when it is this node that is slow.
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
        """From now on this node says of itself that it left."""
        self._own = self._me = msgspec.structs.replace(self._me, state=State.LEFT)
        return self._me

    def name_seed(self, node_id: str, address: Address) -> list[Change]:
        """A node answered at an address that was named here as a seed's. Nobody else is at that address."""
        changes = []
        for other, record in self._records.items():
            named = address if other == node_id else None if record.named == address else record.named
            if record.named != named:
                record.named = named
                self._touch(record)
                changes.append(Change(self._member(record), record.claim.state))
        return changes

    def unname_seed(self, address: Address) -> list[Change]:
        """An address does not stand for a seed any more (its DNS name changed)."""
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

    def _as_hearsay(self, claim: Claim, now: float) -> Claim:
        """Who has just spoken to us is at most suspect, as whoever gave it up may have been behind a broken line.

        It hears of that and can refute it; if it does not, it is gone a little later.
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
            if counted := claim.incarnation - record.claim.incarnation:
                record.reached = None  # it may have moved
            self._marks ^= _mark(record.claim) ^ _mark(claim)
            record.claim = claim
        else:
            return None
        self._touch(record)
        if claim.state == State.ALIVE:
            self._restless.discard(claim.node_id)
        else:
            self._restless.add(claim.node_id)
        return Change(self._member(record), was, counted)

    def _take_own(self, claim: Claim) -> None:
        """Somebody speaks of us. We know better, and say it louder if need be."""
        if self._me.state == State.LEFT or claim <= self._own:
            return
        if not self._me.host and claim == msgspec.structs.replace(self._me, host=claim.host):
            self._own = claim  # they see which host we are
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
        """Forget a node that is gone, which has no mark."""
        del self._records[node_id]
        self._restless.discard(node_id)


def _mark(claim: Claim) -> int:
    """64 bits that stand for a claim; nothing for one about a node that is gone."""
    if claim.state > State.SUSPECT:
        return 0
    return int.from_bytes(hashlib.blake2b(msgspec.msgpack.encode(claim), digest_size=8).digest(), "big")
