"""The ledger's promises, whatever happens in whatever order."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.content import PieceSet
from mesh.ledger import Ledger
from mesh.messages import HELD, MAX_TASKS, ORIGIN, Failure, Gain, Plan, Report, Task
from mesh.policy import FEWEST_UPLOADS, HARD, NODE_SECONDS, SETTLE_SECONDS

MIB = 1 << 20


def hello(node: str, count: int, *, slots: int = 8, held: int = 0, wants: bool = True, fetches: bool = True) -> Report:
    return Report(
        node=node,
        have=PieceSet(count, held).to_bytes(),
        wanted=((0, count),) if wants else (),
        slots=slots,
        can_fetch=fetches,
    )


class World:
    """Nodes that do as they are told, some of which die, fail or come back; and a check after every step."""

    def __init__(self, count: int, seed: int) -> None:
        self.count = count
        self.random = random.Random(seed)
        self.now = 0.0
        self.ledger = Ledger(count * MIB)
        self.have: dict[str, set[int]] = {}
        self.tasks: dict[str, dict[int, Task]] = {}
        self.synced: set[str] = set()
        self.moved = False

    def join(self, node: str, held: set[int]) -> None:
        self.have[node] = held
        self.tasks[node] = {}
        self.synced.discard(node)

    def talk(self, node: str, **changes: object) -> Plan:
        have = None if node in self.synced else PieceSet(self.count, sum(1 << p for p in self.have[node])).to_bytes()
        active = () if have is None else tuple((p, t.sources[0]) for p, t in self.tasks[node].items())
        report = Report(
            node=node,
            have=have,
            active=active,
            moved=self.moved and have is not None,
            wanted=((0, self.count),),
            slots=max(0, 6 - len(self.tasks[node])),
            can_fetch=True,
        )
        plan = self.ledger.report(replace(report, **changes), self.now)
        self.synced.add(node)
        if plan.resync:
            self.synced.discard(node)
        for task in plan.tasks:
            assert task.piece not in self.have[node], "a piece it has"
            self.tasks[node].setdefault(task.piece, task)
        assert len(plan.tasks) <= MAX_TASKS
        return plan

    def work(self, node: str) -> None:
        """Carry out one task; a source that does not hold the piece (any more) fails it."""
        if not self.tasks[node]:
            self.talk(node)
            return
        piece = self.random.choice(list(self.tasks[node]))
        task = self.tasks[node].pop(piece)
        source = task.sources[0]
        if source == ORIGIN or piece in self.have.get(source, ()):
            self.have[node].add(piece)
            self.talk(node, gained=(Gain(piece, source),))
        else:
            self.talk(node, failed=(Failure(piece, source, "refused"),))

    def die(self, node: str) -> None:
        del self.have[node], self.tasks[node]
        self.synced.discard(node)

    def lose_tracker(self) -> None:
        self.ledger = Ledger(self.count * MIB)
        self.synced.clear()
        self.moved = True


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 24),
    seed=st.integers(0, 2**32),
    steps=st.lists(st.sampled_from(["work"] * 12 + ["join", "die", "take-over", "wait", "return"]), max_size=80),
)
def test_every_piece_reaches_everyone_and_is_leased_to_one(count: int, seed: int, steps: list[str]) -> None:
    world = World(count, seed)
    world.join("n0", set())
    for number, step in enumerate(steps, start=1):
        world.now += 0.05
        nodes = list(world.have)
        if step == "join" and len(nodes) < 8:
            held = {p for p in range(count) if world.random.random() < 0.3}
            world.join(f"n{number}", held)
        elif step == "die" and len(nodes) > 1:
            world.die(world.random.choice(nodes))
        elif step == "take-over":
            world.lose_tracker()
        elif step == "wait":
            world.now += world.random.choice([1.0, 10.0, NODE_SECONDS + 1])
            world.ledger.expire(world.now)
        elif step == "return":
            node = world.random.choice(nodes)  # it restarted and forgot what it was doing
            world.join(node, world.have[node])
        else:
            world.work(world.random.choice(nodes))
        check(world)
    for _ in range(60 * count * len(world.have)):
        world.now += 0.05
        world.ledger.expire(world.now)
        for node in list(world.have):
            world.work(node)
        check(world)
        if all(len(held) == count for held in world.have.values()):
            return
    pytest.fail(f"never finished: { {n: len(h) for n, h in world.have.items()} } of {count}")


def check(world: World) -> None:
    """One live lease a piece, and no lease for a piece that somebody holds."""
    leases = world.ledger.leases
    for piece, node in leases.items():
        holders = [other for other in world.ledger.leases.items() if other[0] == piece]
        assert holders == [(piece, node)]
        assert node in world.ledger


def test_nodes_that_start_together_fetch_different_pieces() -> None:
    ledger = Ledger(64 * MIB)
    plans = {node: ledger.report(hello(node, 64), 0.0) for node in ("a", "b", "c")}
    leased = [task.piece for plan in plans.values() for task in plan.tasks]
    assert all(task.lease for plan in plans.values() for task in plan.tasks)
    assert len(leased) == len(set(leased)) == 8  # as many as are leased at first, to all together


def test_a_node_that_is_alone_gets_all_it_asks_for_at_once() -> None:
    ledger = Ledger(64 * MIB)
    ledger.is_alone = True
    plan = ledger.report(hello("a", 64, slots=48), 0.0)
    assert [task.piece for task in plan.tasks] == list(range(48))


def test_only_seeds_go_out_while_there_is_one_that_can() -> None:
    ledger = Ledger(8 * MIB)
    seed = Report(node="seed", have=bytes(1), slots=8, can_fetch=True, seed=True)
    assert not ledger.report(seed, 0.0).tasks  # nobody wants anything
    assert not ledger.report(hello("a", 8), 0.0).tasks
    plan = ledger.report(replace(seed, have=None), 0.1)
    assert {task.piece for task in plan.tasks} == set(range(8))
    assert all(task.lease for task in plan.tasks)
    ledger.report(replace(seed, have=bytes(1), can_fetch=False), 0.2)
    assert len(ledger.report(hello("a", 8), 0.3).tasks) == 8


def test_what_a_reader_waits_for_comes_first_then_what_is_rare() -> None:
    ledger = Ledger(4 * MIB)
    ledger.report(hello("x", 4, held=0b1111, wants=False), 0.0)
    ledger.report(hello("y", 4, held=0b0111, wants=False), 0.0)
    ledger.report(hello("z", 4, held=0b0101, wants=False), 0.0)
    plan = ledger.report(replace(hello("a", 4, slots=3), urgent=((2, 3),)), 0.0)
    assert [task.piece for task in plan.tasks] == [2, 3, 1]
    assert set(plan.tasks[2].sources) <= {"x", "y"}


def test_a_source_is_not_sent_more_than_it_can_serve() -> None:
    ledger = Ledger(16 * MIB)
    ledger.report(hello("x", 16, held=(1 << 16) - 1, wants=False), 0.0)
    plans = [ledger.report(hello(f"n{i}", 16, fetches=False), 0.0) for i in range(4)]
    assert len(plans[0].tasks) == FEWEST_UPLOADS
    assert len(plans[1].tasks) > 0, "who has nothing to do does not wait for those who came first"
    assert sum(len(plan.tasks) for plan in plans) == FEWEST_UPLOADS * HARD
    done = plans[0].tasks[0]
    again = ledger.report(Report(node="n0", wanted=((0, 16),), slots=8, gained=(Gain(done.piece, "x"),)), 1.0)
    assert len(again.tasks) == 1
    assert {"n2", "n3"} <= set(ledger.waiting(1 << done.piece))


def test_a_failed_source_is_left_alone_for_a_while_and_a_liar_for_ever() -> None:
    ledger = Ledger(MIB)
    ledger.report(hello("x", 1, held=1, wants=False), 0.0)
    first = ledger.report(hello("a", 1, fetches=False), 0.0)
    assert first.tasks[0].sources == ("x",)
    failed = Report(node="a", wanted=((0, 1),), slots=8, failed=(Failure(0, "x", "timeout"),))
    assert not ledger.report(failed, 0.1).tasks
    assert ledger.report(replace(failed, failed=()), 5.0).tasks
    assert not ledger.report(replace(failed, failed=(Failure(0, "x", "corrupt"),)), 5.1).tasks
    assert not ledger.report(replace(failed, failed=()), 15.0).tasks
    assert ledger.report(hello("b", 1, fetches=False), 15.0).tasks, "one accuser alone convinces nobody"


def test_leases_live_while_bytes_come_and_end_when_they_do_not() -> None:
    ledger = Ledger(MIB)
    ledger.report(hello("a", 1), 0.0)
    assert ledger.leases == {0: "a"}
    for second in range(10, 200, 10):
        ledger.report(Report(node="a", wanted=((0, 1),), can_fetch=True, fetched=second), float(second))
        ledger.expire(float(second))
        assert ledger.leases == {0: "a"}
    for second in range(200, 300, 10):
        ledger.report(Report(node="a", wanted=((0, 1),), can_fetch=True, fetched=190), float(second))
        ledger.expire(float(second))
    assert ledger.leases == {}
    assert ledger.report(hello("b", 1), 300.0).tasks[0].lease


def test_a_new_tracker_waits_for_announcements_before_it_leases() -> None:
    ledger = Ledger(2 * MIB)
    first = replace(hello("a", 2), moved=True)
    assert not ledger.report(first, 0.0).tasks
    ledger.report(replace(hello("b", 2, held=0b01), moved=True, active=((1, ORIGIN),)), 0.5)
    later = ledger.report(Report(node="a", wanted=((0, 2),), slots=8, can_fetch=True), 0.6 + SETTLE_SECONDS)
    assert [(task.piece, task.sources) for task in later.tasks] == [(0, ("b",))]
    assert ledger.leases == {1: "b"}


def test_piece_digests_travel_with_tasks() -> None:
    ledger = Ledger(MIB)
    ledger.report(replace(hello("x", 1, held=1), gained=(Gain(0, HELD, b"d" * 32),)), 0.0)
    assert ledger.report(hello("a", 1), 0.0).tasks[0].digest == b"d" * 32


@pytest.mark.parametrize(
    "report",
    [
        hello(ORIGIN, 3),
        hello("", 3),
        hello("a", 17),
        replace(hello("a", 3), wanted=((0, 4),)),
        replace(hello("a", 3), wanted=((2, 2),)),
        replace(hello("a", 3), gained=(Gain(3, "b"),)),
        replace(hello("a", 3), gained=(Gain(1, "b", b"x" * 65),)),
        replace(hello("a", 3), failed=tuple(Failure(0, "b", "timeout") for _ in range(300))),
        replace(hello("a", 3), slots=-1),
    ],
)
def test_messages_out_of_bounds_are_refused(report: Report) -> None:
    ledger = Ledger(3 * MIB)
    with pytest.raises(ValueError, match=r"."):
        ledger.report(report, 0.0)
    assert len(ledger) == 0
