"""What the ledger guarantees for any history: one live lease per piece, bounded plans, and every node is served."""

import random
from functools import reduce
from operator import or_

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mesh.bits import members
from mesh.content import PieceSet
from mesh.ledger import Ledger
from mesh.messages import MAX_SOURCES, MAX_TASKS, ORIGIN, Failure, Gain, Plan, Report
from mesh.policy import LEASE_SECONDS

MIB = 1 << 20
SLOTS = 6


class Peer:
    """A node that does as it is told."""

    def __init__(self, name: str, held: int, *, can_fetch: bool, seed: bool, forgeable: bool) -> None:
        self.name, self.held, self.can_fetch, self.seed, self.forgeable = name, held, can_fetch, seed, forgeable
        self.tasks: dict[int, tuple[str, ...]] = {}
        self.leased_until: dict[int, float] = {}
        self.is_known = False
        self.is_slandered = False  # it was said to lack pieces that it may hold
        self.has_moved = False
        self.fetched = 0


class Swarm(RuleBasedStateMachine):
    """Peers join, work, fail, die, restart, lose answers and trackers in any order, with a liar among them."""

    @initialize(count=st.integers(1, 20), seed=st.integers(0, 2**32), can_fetch=st.booleans())
    def begin(self, count: int, seed: int, can_fetch: bool) -> None:
        self.count = count
        self.full = (1 << count) - 1
        self.random = random.Random(seed)
        self.now = 0.0
        self.ledger = Ledger(count * MIB)
        self.peers: dict[str, Peer] = {}
        self.joined = 0
        self.join(0, can_fetch, False, False)

    def pick(self) -> Peer:
        return self.random.choice(list(self.peers.values()))

    def talk(self, peer: Peer, *gained: Gain, failed: tuple[Failure, ...] = ()) -> Plan:
        is_new = not peer.is_known
        report = Report(
            node=peer.name,
            have=PieceSet(self.count, peer.held).to_bytes() if is_new else None,
            forgeable=peer.forgeable,
            active=tuple((piece, sources[0]) for piece, sources in peer.tasks.items()) if is_new else (),
            moved=is_new and peer.has_moved,
            gained=gained,
            failed=failed,
            urgent=() if peer.seed else tuple((p, p + 1) for p in list(members(self.full & ~peer.held))[:2]),
            wanted=() if peer.seed else ((0, self.count),),
            slots=SLOTS - len(peer.tasks),
            can_fetch=peer.can_fetch,
            seed=peer.seed,
            fetched=peer.fetched,
        )
        if is_new:
            # Leases that this ledger does not know of, it may give to other peers.
            peer.leased_until = {}
        plan = self.ledger.report(report, self.now)
        for piece in peer.tasks:
            if self.ledger.leases.get(piece) == peer.name:
                peer.leased_until.setdefault(piece, self.now + LEASE_SECONDS)
        peer.is_known, peer.has_moved = not plan.resync, False
        assert len(plan.tasks) <= MAX_TASKS
        for task in plan.tasks:
            if peer.held >> task.piece & 1:
                assert peer.is_slandered, "a piece it has"
                continue
            assert 0 < len(task.sources) <= MAX_SOURCES
            assert peer.name not in task.sources
            assert task.lease or task.seconds > 0
            if task.lease:
                for other in self.peers.values():
                    assert other.leased_until.get(task.piece, -1.0) < self.now or other is peer, "leased twice"
                peer.leased_until[task.piece] = self.now + LEASE_SECONDS
            peer.tasks.setdefault(task.piece, task.sources)
        return plan

    def step(self, peer: Peer) -> None:
        """Carry out one task. It fails if the source is dead or does not hold the piece."""
        if not peer.tasks:
            self.talk(peer)
            return
        piece = self.random.choice(list(peer.tasks))
        source = peer.tasks.pop(piece)[0]
        peer.leased_until.pop(piece, None)
        server = self.peers.get(source)
        if source == ORIGIN or (server is not None and server.held >> piece & 1):
            peer.held |= 1 << piece
            peer.fetched += MIB if source == ORIGIN else 0
            self.talk(peer, Gain(piece, source))
        else:
            self.talk(peer, failed=(Failure(piece, source, "refused" if server is None else "missing"),))

    @rule(held=st.integers(0, 2**20 - 1), can_fetch=st.booleans(), seed=st.booleans(), is_behind_nat=st.booleans())
    def join(self, held: int, can_fetch: bool, seed: bool, is_behind_nat: bool) -> None:
        if len(self.peers) < 8:
            self.joined += 1
            forgeable = (
                is_behind_nat and can_fetch
            )  # otherwise a node has to find another tracker when it loses a piece
            peer = Peer(f"n{self.joined}", held & self.full, can_fetch=can_fetch, seed=seed, forgeable=forgeable)
            self.peers[peer.name] = peer

    @rule(steps=st.integers(1, 30))
    def work(self, steps: int) -> None:
        for _ in range(steps):
            self.now += 0.05
            self.step(self.pick())

    @rule(source_fails=st.booleans())
    def fail(self, source_fails: bool) -> None:
        peer = self.pick()
        failed = []
        for piece in list(peer.tasks)[:3]:
            source = peer.tasks.pop(piece)[0]
            peer.leased_until.pop(piece, None)
            failed.append(Failure(piece, source, "refused" if source_fails else "timeout"))
        self.talk(peer, failed=tuple(failed))

    @precondition(lambda self: len(self.peers) > 1)
    @rule(is_noticed=st.booleans())
    def die(self, is_noticed: bool) -> None:
        peer = self.pick()
        del self.peers[peer.name]
        if is_noticed:
            self.ledger.forget(peer.name)

    @rule()
    def forget_one_that_lives(self) -> None:
        peer = self.pick()
        self.ledger.forget(peer.name)
        peer.leased_until = {}

    @rule()
    def restart(self) -> None:
        """Transfers in progress are lost, pieces on disk are not."""
        peer = self.pick()
        peer.tasks, peer.leased_until, peer.is_known, peer.fetched = {}, {}, False, 0

    @rule()
    def lose_a_piece(self) -> None:
        peer = self.pick()
        peer.held &= peer.held - 1
        peer.is_known = False

    @rule()
    def lose_an_answer(self) -> None:
        """The plan never arrives, and the node starts over."""
        peer = self.pick()
        before = dict(peer.tasks)
        self.talk(peer)
        peer.tasks, peer.is_known = before, False

    @rule(seconds=st.sampled_from([0.5, 2.0, 12.0, 25.0, 40.0]))
    def wait(self, seconds: float) -> None:
        self.pass_time(seconds)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.ledger.expire(self.now)
        for peer in self.peers.values():
            if peer.name not in self.ledger:  # silent for too long: its leases may be given to others
                peer.leased_until = {}

    @rule()
    def lose_the_tracker(self) -> None:
        self.ledger = Ledger(self.count * MIB)
        for peer in self.peers.values():
            peer.is_known, peer.has_moved, peer.leased_until = False, True, {}

    @rule(reason=st.sampled_from(["corrupt", "missing", "timeout"]))
    def lie(self, reason: str) -> None:
        """Accuse every peer, without having asked any."""
        failed = tuple(Failure(piece, name, reason) for name in self.peers for piece in range(min(4, self.count)))  # type: ignore[arg-type]
        have = PieceSet(self.count).to_bytes()
        self.ledger.report(Report(node="liar", have=have, failed=failed, fetched=1 << 60), self.now)

    @precondition(lambda self: any(peer.name in self.ledger for peer in self.peers.values()))
    @rule()
    def forge(self) -> None:
        """Say in a peer's name that it holds nothing."""
        peer = self.random.choice([peer for peer in self.peers.values() if peer.name in self.ledger])
        before = self.ledger.held
        nothing = PieceSet(self.count).to_bytes()
        self.ledger.report(Report(node=peer.name, have=nothing, forgeable=True), self.now)
        assert self.ledger.held == before
        peer.leased_until, peer.is_slandered = {}, True

    @invariant()
    def leases_belong_to_the_living(self) -> None:
        for node in self.ledger.leases.values():
            assert node in self.ledger

    @invariant()
    def groups_know_what_their_nodes_hold(self) -> None:
        books = self.ledger._books
        for group in (books.open, books.spare, books.idle):
            held = (books.holdings.have(slot) for slot in members(group.slots))
            assert group.pieces == reduce(or_, held, 0)

    def teardown(self) -> None:
        """From here on nothing goes wrong: every peer gets everything that any of them can supply."""
        if not hasattr(self, "peers"):
            return
        supply = 0
        for peer in self.peers.values():
            supply |= self.full if peer.can_fetch else peer.held
        for _ in range(3000):
            self.pass_time(0.1)
            for peer in self.peers.values():
                self.step(peer)
            if all(not supply & ~peer.held or peer.seed for peer in self.peers.values()):
                return
        raise AssertionError({name: f"{peer.held:b} of {supply:b}" for name, peer in self.peers.items()})


TestSwarm = Swarm.TestCase
TestSwarm.settings = settings(max_examples=60, stateful_step_count=25)
