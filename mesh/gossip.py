"""Gossip keeps the member lists of all nodes the same: about once a second, each node asks another what it knows.

Both sides send a digest of their list; the lists themselves travel only when the digests differ. A node that does not
answer is suspected, and suspicions spread like everything else (see mesh/membership.py). A node that is itself slow is
slow to accuse others, after Dadgar, Phillips and Currey, "Lifeguard: SWIM-ing with situational awareness" (2017).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence

from mesh.discovery.dns import find
from mesh.errors import MeshError
from mesh.hosts import as_written, is_name
from mesh.membership import LOOPBACK, MAX_CLAIMS, Address, Change, Claim, Member, Members, State
from mesh.protocol import Foreign, Message, as_heard, decode, encode
from mesh.rumours import Rumours
from mesh.tasks import Tasks

log = logging.getLogger(__name__)

# Seconds by which an incarnation may be ahead of this node's clock. Incarnations count from the epoch second in which
# the node started, so an honest one is ahead by a clock error at most; a node whose clock shows 1970 must still believe
# others. So wide a bound is harmless: it moves with the clock, and a claim at the bound can be refuted a second later.
MAX_AHEAD = 1 << 32
TARGET = "/mesh/gossip"
_INTERVAL = 1.0  # seconds between two rounds
_PATIENCE = 2.5  # seconds to wait for an answer: a node that moves 500 MB/s is busy
# The same among many nodes: machines are more often overloaded, and a swarm that wrongly takes its tracker for dead
# fetches everything again. Longer than a connection takes to show that a machine is gone.
_PATIENCE_OF_MANY = 5.0
_HUNG_SECONDS = 15.0  # seconds, among many nodes, until a silent process on a live machine counts as hung
_JOIN_PATIENCE = 5.0  # seconds to wait when joining: many nodes may join at once, and no node is accused
_MAX_STRAIN = 4  # highest strain; patience grows to 1 + strain times its usual length
_LATE = 0.3  # seconds: an event loop whose timer fires this late cannot judge the speed of others
_STRAIN_SECONDS = 10.0  # seconds from when a node was last late until it may judge others again
_SETTLE = 2.0  # seconds without any answer after which the node goes on alone
_MAX_SETTLE = 5.0  # seconds without agreement after which the node goes on anyway
_MANY = 50  # live nodes above which rounds become rarer
_RAREST = 4.0  # the most by which the interval between rounds is multiplied for this
_MANY_WITH_NEWS = 100  # the same two limits while there is news to spread
_RAREST_WITH_NEWS = 3.0
_HASTE = 0.3  # part of the usual interval between rounds while there is news
_NEWS_ROUNDS = 2.0  # usual intervals for which a change counts as news
_TOLD = 8  # peers told when this node leaves

# POSTs a message to TARGET at an address, where the node with the given id is expected ("" if not known), and returns
# the answer. Raises OSError or MeshError.
Ask = Callable[[Address, bytes, str], Awaitable[bytes]]


class Gossip:
    """Runs the exchange for one node. Belongs to the event loop's thread.

    Messages with another `mesh_id`, made from the key, are refused. `is_open`: membership is not restricted, so what a
    node says of another is a rumour until that one has answered.
    """

    def __init__(
        self,
        members: Members,
        ask: Ask,
        tasks: Tasks,
        *,
        mesh_id: str = "",
        is_open: bool = False,
        interval: float = _INTERVAL,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.members = members
        # Set with the first answer after which this node and a peer agree, or after the settling time.
        self.ready = asyncio.Event()
        self._ask = ask
        self._tasks = tasks
        self._mesh_id = mesh_id
        self._rumours = Rumours(members) if is_open else None
        self._interval = interval
        self._clock = clock
        self._wall = wall
        self._callbacks: list[Callable[[Sequence[Change]], None]] = []
        self._seeds: set[Address] = set()  # addresses of named seeds
        self._turn: list[str] = []  # live nodes still to be asked; refilled and shuffled when empty
        self._gone_turn: list[str] = []  # the same for nodes that are gone
        self._accused: set[str] = set()  # nodes found silent: asked in each round until they answer or are gone
        self._silent_since: dict[str, float] = {}  # nodes that timed out and have not spoken to this node since
        self._strain = 0  # how overloaded this node seems, from 0 to _MAX_STRAIN
        self._late_at = float("-inf")
        self._news_at = self._told_at = float("-inf")
        self._has_met = False
        self._is_doubled = False
        self._has_met_foreign = False

    def start(self, *, settle: float = _SETTLE) -> None:
        """Start. `settle` is how many seconds `ready` waits for a first answer (0 if none can come)."""
        self._tasks.start(self._rounds(), name="gossip")
        self._tasks.start(self._settle(settle), name="gossip settle")

    def on_change(self, callback: Callable[[Sequence[Change]], None]) -> None:
        """Have `callback` called with the members' changes, on the event loop."""
        self._callbacks.append(callback)

    async def leave(self) -> None:
        """Tell some peers that this node leaves; they tell the others. Takes one second at most."""
        self.members.leave()
        alive = self.members.alive()
        told = random.sample(alive, min(_TOLD, len(alive)))
        message = self._message(with_claims=False)
        asking = asyncio.gather(*(self._ask(m.address, message, m.node_id) for m in told), return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await asking

    def handle(self, body: bytes, remote: str | None, signed_by: str | None = None) -> bytes:
        """Return the answer to a peer's message. Raises ValueError if the message is invalid.

        `remote` is the host it came from, `signed_by` its signer's node id in a mesh with a key.
        """
        message = self._decode(body)
        if signed_by is not None and signed_by != message.sender.node_id:
            raise ValueError(f"{signed_by} sends a message as {message.sender.node_id}")
        sender = message.sender
        if sender.node_id == self.members.me.node_id:
            self._meet_own(sender, remote)
        else:
            self._take(message, as_written(remote))
            self.members.heard(sender.node_id, self._clock())
        with_claims = message.digest != self.members.digest() and self._may_tell()
        return self._message(with_claims=with_claims, to=sender)

    async def join(self, address: Address, *, named_seed: bool = False) -> str:
        """Exchange with the node at an address, and return its node id, which may be this node's own.

        Raises OSError, MeshError or ValueError.
        """
        if named_seed:
            self._seeds.add(address)
        return await self._exchange(address, "", _JOIN_PATIENCE)

    def unname_seed(self, address: Address) -> None:
        """Stop treating the node at an address as a named seed."""
        self._seeds.discard(address)
        self._tell(self.members.unname_seed(address))

    @property
    def is_strained(self) -> bool:
        """Whether this node was recently too late for its own timers to judge the speed of others."""
        return self._clock() - self._late_at < _STRAIN_SECONDS

    def failed(self, node_id: str, error: OSError) -> None:
        """Report that another part of this node could not reach a peer."""
        self._accuse(node_id, error)

    async def answers(self, node_id: str, patience: float) -> bool:
        """Return whether a peer answers within `patience` seconds."""
        member = self.members.get(node_id)
        try:
            return member is not None and await self._exchange(member.address, node_id, patience) == node_id
        except (OSError, MeshError, ValueError):  # TimeoutError is an OSError
            return False

    async def _settle(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        if self._has_met:
            await asyncio.sleep(_MAX_SETTLE - seconds)
        self.ready.set()

    async def _rounds(self) -> None:
        asked_at, step = self._clock(), self._interval / 4
        while True:
            before = self._clock()
            await asyncio.sleep(step * random.uniform(0.8, 1.2))
            now = self._clock()
            if now - before - step > _LATE:  # this node is slow: its timers say nothing about other nodes
                self._late_at = now
                self._strain = min(_MAX_STRAIN, self._strain + 1)
            self._tell(self.members.tick(now, 1.0 + self._strain))
            for claim, teller in () if self._rumours is None else self._rumours.due(now):
                self._tasks.start(self._look_into(claim, teller), name=f"rumour of {claim.node_id}")
            if now - asked_at >= self._pause(now):
                asked_at = now
                for member in self._chosen():
                    self._tasks.start(self._probe(member), name=f"gossip with {member.node_id}")

    @property
    def _has_many(self) -> bool:
        return len(self.members.alive()) > _MANY

    def _pause(self, now: float) -> float:
        # On an overloaded machine, rounds only add to the load.
        strain = 1.0 + self._strain / 2
        count = len(self.members.alive())
        if now - self._news_at < _NEWS_ROUNDS * self._interval:
            rarity = min(_RAREST_WITH_NEWS, max(1.0, count / _MANY_WITH_NEWS))
            haste = min(0.9, _HASTE * rarity) if not self._strain else 0.9  # among many nodes there is always news
        else:
            rarity, haste = min(_RAREST, max(1.0, count / _MANY)), 0.9
        return self._interval * rarity * strain * haste

    def _chosen(self) -> list[Member]:
        """Return the nodes to ask now: the next in turn (two while few), all accused, one gone; for rumours, a seed."""
        alive = {member.node_id: member for member in self.members.alive()}
        gone = {member.node_id: member for member in self.members.gone()}
        self._accused.intersection_update(alive)
        self._silent_since = {node_id: since for node_id, since in self._silent_since.items() if node_id in alive}
        chosen = {node_id: alive[node_id] for node_id in self._accused}
        for _ in range(2 if len(alive) <= 16 else 1):
            if (node_id := _next(self._turn, alive)) is not None:
                chosen[node_id] = alive[node_id]
        if (node_id := _next(self._gone_turn, gone)) is not None:
            chosen[node_id] = gone[node_id]
        if self._rumours is not None and self._rumours.is_fresh and (named := self._named(alive.values())):
            member = random.choice(named)
            chosen[member.node_id] = member
        return list(chosen.values())

    def _named(self, among: Iterable[Member]) -> list[Member]:
        return [member for member in among if member.named_seed]

    async def _look_into(self, claim: Claim, teller: str) -> None:
        """Look into a rumour: exchange with the address that it names, where the node answers if it exists."""
        address = Address(claim.host or LOOPBACK, claim.port)
        try:
            if (found := await find(address, teller)) is not None:
                await self._exchange(found, claim.node_id, _PATIENCE)
        except (OSError, MeshError, ValueError) as error:
            log.debug("nobody is at %s, where %s was said to be: %s", address, claim.node_id, error)

    async def _probe(self, member: Member) -> None:
        asked_at = self._clock()
        try:
            expected = "" if member.named_seed else member.node_id
            patience = (_PATIENCE_OF_MANY if self._has_many else _PATIENCE) * (1 + self._strain)
            answered = await self._reach(member, expected, patience)
        except TimeoutError as error:
            self._strain = min(_MAX_STRAIN, self._strain + 1)  # this node may be what is slow
            hung_after = _HUNG_SECONDS if self._has_many else 0.0
            silent_since = self._silent_since.setdefault(member.node_id, asked_at)
            if self.members.was_heard(member.node_id, silent_since):  # it is alive, only busy with other things
                del self._silent_since[member.node_id]
            elif self._late_at < asked_at and self._clock() - silent_since >= hung_after:
                self._accuse(member.node_id, error)
            else:
                self._accused.add(member.node_id)
        except (OSError, MeshError, ValueError) as error:
            log.debug("no exchange with %s: %s", member.node_id, error)
            self._accuse(member.node_id, error)
        else:
            self._silent_since.pop(member.node_id, None)
            if answered == member.node_id:
                self._accused.discard(answered)
            elif not member.named_seed:  # another node has its address now; a named seed is whichever node answers
                self._accuse(member.node_id, OSError())
            if self._late_at < asked_at:
                self._strain = max(0, self._strain - 1)

    async def _reach(self, member: Member, expected: str, patience: float) -> str:
        """Exchange with a member at its address, or else, in an open mesh, where the name that it claims leads now."""
        try:
            return await self._exchange(member.address, expected, patience)
        except (OSError, MeshError, ValueError):
            claim = self.members.claim(member.node_id)
            if self._rumours is None or member.named_seed or claim is None or not is_name(claim.host):
                raise
            with contextlib.suppress(OSError):  # the first error says more than one of DNS
                found = await find(Address(claim.host, claim.port), member.address.host)
                if found is not None and found != member.address:
                    return await self._exchange(found, expected, patience)
            raise

    async def _exchange(self, address: Address, expected: str, patience: float) -> str:
        me = self.members.me
        # Not wait_for(): before Python 3.12 it may swallow a cancellation, and the task of a removed seed would go on.
        async with asyncio.timeout(patience):
            answer = await self._ask(address, self._message(with_claims=False), expected)
        message = self._decode(answer)
        node_id = message.sender.node_id
        if node_id == me.node_id:
            if message.sender != me:  # compared with `me` as it was sent: it may have changed meanwhile
                self._meet_own(message.sender, address.host)
            return node_id
        self._take(message, as_written(address.host), address)
        self.members.heard(node_id, self._clock(), address)
        if address in self._seeds:  # looked up now: it may have been unnamed during the exchange
            self._tell(self.members.name_seed(node_id, address))
        if message.digest != self.members.digest() and self._may_tell():  # this node knows something the peer does not
            async with asyncio.timeout(patience):
                answer = await self._ask(address, self._message(with_claims=True, to=message.sender), node_id)
            message = self._decode(answer)
            if message.sender.node_id == node_id:
                self._take(message, as_written(address.host), address)
        self._has_met = True
        if message.digest == self.members.digest():
            self.ready.set()
        return node_id

    def _may_tell(self) -> bool:
        """Return whether to send the whole list: under strain only now and then, as long lists are most of the work."""
        now = self._clock()
        if self._strain and now - self._told_at < self._strain * self._interval:
            return False
        self._told_at = now
        return True

    def _accuse(self, node_id: str, error: Exception) -> None:
        self._accused.add(node_id)
        is_refused = isinstance(error, ConnectionRefusedError)
        self._tell(self.members.failed(node_id, self._clock(), is_refused=is_refused))

    def _take(self, message: Message, teller: str, called: Address | None = None) -> None:
        before = self.members.me.incarnation
        # Most claims are known already, and checking them again would be most of the work.
        told = [claim for claim in (message.sender, *message.claims) if not self.members.knows(claim)]
        for claim in told:
            claim.check()
        # An incredible claim is ignored, and the message's other claims count: the sender's clock may just be fast.
        read = (as_heard(claim, teller) for claim in told if _is_credible(claim, self._wall()))
        heard = [claim for claim in read if claim is not None]
        if self._rumours is not None:
            heard = self._rumours.sift(
                heard,
                self._clock(),
                sender=message.sender.node_id,
                teller=teller,
                has_answered=called is not None,
                is_believed=called in self._seeds,
                may_wait=bool(self._named(self.members.alive())),
            )
            if self._rumours.is_fresh:
                self._news_at = self._clock()
        self._tell(self.members.merge(heard, self._clock()))
        if self.members.me.incarnation > before:  # some node took this one for suspect or gone, and it refuted that
            self._strain = min(_MAX_STRAIN, self._strain + 1)

    def _meet_own(self, sender: Claim, remote: str | None) -> None:
        # A node that calls itself, as when it is among its own seeds, receives exactly its own claim.
        if sender != self.members.me and not self._is_doubled:
            self._is_doubled = True
            log.error(
                "another node, at %s port %d, has our node id: was the data directory copied? Neither sees the other: "
                "delete the file node-id in one of them, and start it again",
                remote,
                sender.port,
            )

    def _tell(self, changes: Sequence[Change]) -> None:
        if not changes:
            return
        self._news_at = self._clock()
        for change in changes:
            if change.joined or change.parted or change.member.state == State.SUSPECT != change.was:
                verb = "joined" if change.joined else f"is {change.member.state.name.lower()}"
                level = logging.DEBUG if change.member.state == State.SUSPECT else logging.INFO
                log.log(level, "peer %s at %s %s", change.member.node_id, change.member.address, verb)
        for callback in self._callbacks:
            callback(changes)

    def _message(self, *, with_claims: bool, to: Claim | None = None) -> bytes:
        """Encode a message. `to` is what its receiver says about itself, where it has spoken first."""
        claims = self.members.snapshot(self._clock()) if with_claims else ()
        if to is not None:
            claims = (*self.members.held_against(to), *claims)[:MAX_CLAIMS]
        return encode(Message(self._mesh_id, self.members.me, self.members.digest(), claims))

    def _decode(self, data: bytes) -> Message:
        try:
            return decode(data, self._mesh_id)
        except Foreign as error:
            if not self._has_met_foreign:
                log.warning("ignoring nodes of another mesh: they have %s", error)
            self._has_met_foreign = True
            raise


def _is_credible(claim: Claim, now: float) -> bool:
    """Return whether a node can have reached this incarnation; `now` is in seconds since the epoch.

    A claim near MAX_INCARNATION could not be refuted: any node could banish another for as long as members are kept.
    Claims about this node are tested as well: to refute one, it would have to take an incarnation that others ignore.
    """
    return claim.incarnation <= now + MAX_AHEAD


def _next(turn: list[str], among: dict[str, Member]) -> str | None:
    """Return the next node in turn that is still in `among`; each comes once before any comes again."""
    if not among:
        return None
    while turn:
        if (node_id := turn.pop()) in among:
            return node_id
    turn += among
    random.shuffle(turn)
    return turn.pop()
