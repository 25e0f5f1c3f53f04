"""The ledger's guarantees, whatever happens in whatever order."""

import itertools
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from mesh.content import MAX_PIECE, PieceSet
from mesh.ledger import Ledger
from mesh.messages import HELD, MAX_TASKS, ORIGIN, Failure, Gain, Reason, Report
from mesh.policy import (
    CROWD,
    FEWEST_LEASES,
    HARD,
    HOPELESS,
    HOPELESS_OF_CROWD,
    LONGEST_LEASE,
    PATIENCE_OF_CROWD,
    SETTLE_SECONDS,
    first_room,
)

MIB = 1 << 20


def hello(node: str, count: int, *, slots: int = 8, held: int = 0, wants: bool = True, fetches: bool = True) -> Report:
    return Report(
        node=node,
        have=PieceSet(count, held).to_bytes(),
        wanted=((0, count),) if wants else (),
        slots=slots,
        can_fetch=fetches,
    )


def test_nodes_that_start_together_fetch_different_pieces() -> None:
    ledger = Ledger(64 * MIB)
    plans = {node: ledger.report(hello(node, 64), 0.0) for node in ("a", "b", "c")}
    leased = [task.piece for plan in plans.values() for task in plan.tasks]
    assert all(task.lease for plan in plans.values() for task in plan.tasks)
    assert len(leased) == len(set(leased)) == 3  # no node gets all the first leases: others will ask, too


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
    assert ledger.report(hello("a", 8), 0.3).tasks[0].lease


def test_what_a_reader_waits_for_comes_first_then_what_is_rare() -> None:
    ledger = Ledger(4 * MIB)
    ledger.report(hello("x", 4, held=0b1111, wants=False), 0.0)
    ledger.report(hello("y", 4, held=0b1101, wants=False), 0.0)
    ledger.report(hello("z", 4, held=0b0101, wants=False), 0.0)
    ledger.report(hello("b", 4, slots=0, fetches=False), 0.0)
    plan = ledger.report(replace(hello("a", 4, slots=3), urgent=((2, 3),)), 0.0)
    assert [task.piece for task in plan.tasks] == [2, 1, 0]
    assert plan.tasks[1].sources == ("x",)


def test_the_only_reader_has_everything_in_its_own_order() -> None:
    ledger = Ledger(64 * MIB)
    ledger.report(hello("x", 64, held=(1 << 64) - 1, wants=False), 0.0)
    ledger.report(hello("y", 64, held=(1 << 32) - 1, wants=False), 0.0)
    plan = ledger.report(replace(hello("a", 64, slots=12), urgent=((7, 9),)), 0.0)
    assert [task.piece for task in plan.tasks] == [7, 8, *(piece for piece in range(12) if piece not in (7, 8))]


def test_a_reader_has_what_many_hold_in_its_own_order() -> None:
    ledger = Ledger(4 * MIB)
    for name, held in (("x", 0b1111), ("y", 0b1011), ("z", 0b1001)):
        ledger.report(hello(name, 4, held=held, wants=False), 0.0)
    ledger.report(hello("b", 4, slots=0, fetches=False), 0.0)
    plan = ledger.report(replace(hello("a", 4, slots=4), urgent=((3, 4),)), 0.0)
    assert [task.piece for task in plan.tasks] == [3, 2, 0, 1], "of four nodes two are enough, and piece 2 has one"


def late_crowd(now: float) -> Ledger:
    """A crowd in which many hold piece 0, but each transfer of it takes three seconds: at `now` it is late."""
    ledger = Ledger(64 * MIB)
    for number in range(CROWD):
        ledger.report(hello(f"holder-{number}", 64, held=0b1, wants=False), now - 3.0)
    readers = [f"early-{number}" for number in range(4)]
    sources = [
        ledger.report(hello(name, 64, slots=1, fetches=False), now - 3.0).tasks[0].sources[0] for name in readers
    ]
    for name, source in zip(readers, sources, strict=True):
        ledger.report(Report(node=name, gained=(Gain(0, source),)), now)
    return ledger


def test_where_machines_are_the_limit_what_plenty_hold_is_not_waited_for_however_busy_they_are() -> None:
    ledger = late_crowd(3.0)
    ledger.report(hello("one", 64, held=0b10, wants=False), 3.0)
    for number in itertools.count():
        if not ledger.report(hello(f"busy-{number}", 64, fetches=False), 3.0).tasks:
            break
    assert number >= CROWD
    urgent = replace(hello("reader", 64, fetches=False), urgent=((0, 2),))
    assert [task.piece for task in ledger.report(urgent, 3.0).tasks] == [0], "piece 1 few have, who would be late"


def test_where_machines_are_the_limit_what_next_to_nobody_has_is_spread_before_readers_come_to_it() -> None:
    ledger = late_crowd(3.0)
    ledger.report(hello("origin-goer", 64, held=0b10, wants=False), 3.0)
    while ledger.report(hello(f"busy-{len(ledger)}", 64, slots=1, fetches=False), 3.0).tasks[0].piece == 1:
        pass  # until as many nodes are assigned it as may have it first
    ledger.report(hello("origin-goer", 64, held=0b110, wants=False), 3.0)  # as busy as before
    reader = replace(hello("reader", 64, fetches=False, slots=2), urgent=((0, 1),))
    assert [task.piece for task in ledger.report(reader, 3.0).tasks] == [2, 0]


def test_where_machines_are_the_limit_a_task_has_less_time_than_clients_wait() -> None:
    ledger = late_crowd(3.0)
    for name in ("x", "y"):
        ledger.report(hello(name, 64, held=0b10, wants=False), 3.0)
    plan = ledger.report(Report(node="early-0", wanted=((0, 64),), slots=1), 3.0)
    assert [(task.piece, task.seconds) for task in plan.tasks] == [(1, PATIENCE_OF_CROWD * 3.0)]


def test_a_source_is_not_sent_more_than_it_can_serve() -> None:
    ledger = Ledger(16 * MIB)
    ledger.report(hello("x", 16, held=(1 << 16) - 1, wants=False), 0.0)
    plans = [ledger.report(hello(f"n{i}", 16, fetches=False), 0.0) for i in range(6)]
    assert len(plans[0].tasks) == first_room(MIB)
    assert len(plans[1].tasks) > 0, "who has nothing to do does not wait for those who came first"
    assert sum(len(plan.tasks) for plan in plans) == first_room(MIB) * HARD
    done = plans[0].tasks[0]
    again = ledger.report(Report(node="n0", wanted=((0, 16),), slots=8, gained=(Gain(done.piece, "x"),)), 1.0)
    assert not again.tasks, "nor for those who have more"
    assert {"n3", "n4", "n5"} <= set(ledger.waiting(1 << done.piece))


def test_an_idle_line_is_used_before_a_busy_one_that_has_rarer_pieces() -> None:
    ledger = Ledger(64 * MIB)
    ledger.report(hello("x", 64, held=(1 << 32) - 1, wants=False), 0.0)
    assert ledger.report(hello("a", 64, slots=1, fetches=False), 0.0).tasks[0].sources == ("x",)
    for source in ("y1", "y2", "y3"):
        ledger.report(hello(source, 64, held=(1 << 64) - (1 << 32), wants=False), 0.0)
    plan = ledger.report(hello("b", 64, slots=1), 0.0)
    assert [(task.piece >= 32, task.sources[0][0]) for task in plan.tasks] == [(True, "y")]


def test_of_two_nodes_the_one_that_is_behind_has_more() -> None:
    def tasks(held: int) -> int:
        ledger = Ledger(64 * MIB)
        for source in range(8):
            ledger.report(hello(f"x{source}", 64, held=(1 << 64) - 1, wants=False), 0.0)
        ledger.report(hello("other", 64, held=(1 << 32) - 1, slots=0), 0.0)
        return len(ledger.report(hello("a", 64, held=held, slots=48), 0.0).tasks)

    assert tasks(0) > tasks((1 << 32) - 1) > tasks((1 << 48) - 1) > 0


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


def test_an_unreachable_source_is_replaced_and_at_last_by_the_origin() -> None:
    ledger = Ledger(MIB)
    ledger.report(hello("x", 1, held=1, wants=False, fetches=False), 0.0)
    now, seen = 0.0, []
    ask = hello("a", 1)
    for _ in range(20):
        plan = ledger.report(ask, now)
        seen += [task.sources[0] for task in plan.tasks]
        if ORIGIN in seen:
            break
        ask = Report(node="a", wanted=((0, 1),), slots=8, can_fetch=True)
        if plan.tasks:
            ask = replace(ask, failed=(Failure(0, "x", "refused"),))
        now += 0.5
    assert seen == ["x", "x", "x", ORIGIN]
    assert ledger.report(hello("b", 1), now).tasks[0].sources == ("x",), "others may be able to reach it"


@pytest.mark.parametrize("others", [0, CROWD])
def test_a_source_that_says_that_it_lacks_a_piece_is_no_source_for_that_node_until_it_announces_it_again(
    others: int,
) -> None:
    """A client of the node that asked would wait for the back-off, for each small file that the source has evicted."""
    ledger = Ledger(MIB)
    ledger.hold("x", 0.0)
    for number in range(others):
        ledger.report(hello(str(number), 1, slots=0), 0.0)
    ask = Report(node="a", wanted=((0, 1),), slots=8, can_fetch=True)
    assert ledger.report(hello("a", 1), 0.0).tasks[0].sources == ("x",)
    assert ledger.report(replace(ask, failed=(Failure(0, "x", "missing"),)), 0.1).tasks[0].lease
    assert ledger.report(hello("b", 1), 0.1).tasks[0].sources == ("x",), "one voice takes it away from nobody else"
    ledger.report(replace(ask, failed=(Failure(0, ORIGIN, "refused"),), slots=0, can_fetch=False), 0.2)
    ledger.hold("x", 0.3, is_news=True)
    assert ledger.report(ask, 0.4).tasks[0].sources == ("x",)


@pytest.mark.parametrize(("others", "times"), [(3, HOPELESS), (CROWD, HOPELESS_OF_CROWD)])
def test_the_only_source_of_many_may_fail_each_of_them_more_often(others: int, times: int) -> None:
    """A seed that serves hundreds lets most of them wait; each would fetch its own copy of what only the seed has."""
    ledger = Ledger(MIB)
    ledger.report(hello("x", 1, held=1, wants=False, fetches=False), 0.0)
    for number in range(others):
        ledger.report(hello(str(number), 1, slots=0), 0.0)
    now, seen, ask = 0.0, [], hello("a", 1)
    while ORIGIN not in seen:
        plan = ledger.report(ask, now)
        seen += [task.sources[0] for task in plan.tasks]
        ask = Report(node="a", wanted=((0, 1),), slots=8, can_fetch=True)
        if plan.tasks:
            ask = replace(ask, failed=(Failure(0, "x", "timeout"),))
        now += 0.5
    assert seen == ["x"] * times + [ORIGIN]


@pytest.mark.parametrize(("reason", "last"), [("busy", False), ("timeout", False), ("refused", True)])
def test_one_delay_of_many_pieces_is_one_and_a_busy_source_is_still_there(reason: Reason, last: bool) -> None:
    """A seed that serves hundreds turns some away; each of those would go to the origin instead."""
    ledger = Ledger(8 * MIB)
    ledger.report(hello("x", 8, held=0xFF, wants=False, fetches=False), 0.0)
    ask = hello("a", 8)
    tasks = ledger.report(ask, 0.0).tasks
    assert len(tasks) > 2
    failed = tuple(Failure(task.piece, "x", reason) for task in tasks)
    plan = ledger.report(Report(node="a", wanted=((0, 8),), slots=8, can_fetch=True, failed=failed), 0.1)
    assert any(task.lease for task in plan.tasks) == last


def test_three_accusers_are_believed_but_nobody_who_accuses_everybody() -> None:
    ledger = Ledger(MIB)
    sources = [f"x{i}" for i in range(8)]
    for source in sources:
        ledger.report(hello(source, 1, held=1, wants=False, fetches=False), 0.0)
    corrupt = tuple(Failure(0, source, "corrupt") for source in sources)
    for liar in ("l1", "l2", "l3", "l4"):
        ledger.report(replace(hello(liar, 1, fetches=False), failed=corrupt), 0.0)
    assert ledger.held == 1
    for source in sources[1:]:
        ledger.forget(source)
    assert ledger.held == 1
    for node in ("a", "b", "c"):
        ledger.report(replace(hello(node, 1, fetches=False), failed=(Failure(0, "x0", "corrupt"),)), 1.0)
    assert ledger.held == 0
    assert ledger.report(hello("d", 1), 1.0).tasks[0].lease, "so it is fetched again"
    ledger.forget("a")
    assert ledger.held == 1


def test_a_digest_that_contradicts_several_sources_is_dropped() -> None:
    ledger = Ledger(MIB)
    ledger.report(replace(hello("liar", 1, held=1), gained=(Gain(0, HELD, b"wrong"),)), 0.0)
    for source in ("x", "y", "z"):
        ledger.report(hello(source, 1, held=1), 0.0)
    assert ledger.digests == {0: b"wrong"}
    failed = tuple(Failure(0, source, "corrupt") for source in ("x", "y", "z"))
    ledger.report(replace(hello("a", 1), failed=failed), 0.0)
    assert ledger.digests == {}


def test_who_is_said_to_miss_a_piece_announces_itself_anew_or_is_forgotten() -> None:
    ledger = Ledger(2 * MIB)
    ledger.report(hello("x", 2, held=0b11, wants=False), 0.0)
    ledger.report(hello("y", 2, held=0b11, wants=False), 0.0)
    missing = (Failure(0, "x", "missing"), Failure(0, "y", "missing"))
    ledger.report(replace(hello("a", 2, fetches=False), failed=missing), 11.0)
    assert ledger.held == 0b11, "hearsay takes nothing away"
    assert ledger.report(Report(node="x"), 11.1).resync
    assert not ledger.report(hello("x", 2, held=0b10, wants=False), 11.2).resync
    ledger.expire(17.0)
    assert "y" not in ledger
    assert ledger.held == 0b10


def test_a_report_cannot_take_a_piece_out_of_circulation() -> None:
    ledger = Ledger(MIB)
    ledger.report(replace(hello("a", 1, wants=False), active=((0, ORIGIN), (0, "x"), (0, ORIGIN))), 0.0)
    assert ledger.leases == {0: "a"}
    ledger.report(Report(node="a", failed=(Failure(0, ORIGIN, "refused"),)), 1.0)
    assert ledger.leases == {}
    assert ledger.report(hello("b", 1), 1.0).tasks[0].lease


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


def test_a_lease_is_not_kept_for_ever_by_claiming_progress() -> None:
    ledger = Ledger(MIB)
    ledger.report(hello("a", 1), 0.0)
    now = 0.0
    while ledger.leases:
        now += 10.0
        ledger.report(Report(node="a", wanted=((0, 1),), can_fetch=True, fetched=int(now) << 30), now)
        ledger.expire(now)
        assert now < 2 * LONGEST_LEASE
    assert now > LONGEST_LEASE


def test_no_more_is_leased_than_a_slow_origin_delivers_soon() -> None:
    def leases_at(rate: int) -> int:
        ledger = Ledger(64 * MIB)
        nodes = [f"n{i}" for i in range(16)]
        for node in nodes:
            ledger.report(hello(node, 64), 0.0)
        for second in range(1, 20):
            for node in nodes:
                fetched = second * rate // len(nodes)
                ledger.report(Report(node=node, wanted=((0, 64),), slots=4, can_fetch=True, fetched=fetched), second)
        return len(ledger.leases)

    assert leases_at(100_000) <= 8 + FEWEST_LEASES
    assert leases_at(100_000_000) == 64


def test_a_new_tracker_waits_for_announcements_before_it_leases() -> None:
    ledger = Ledger(2 * MIB)
    first = replace(hello("a", 2), moved=True)
    assert not ledger.report(first, 0.0).tasks
    ledger.report(replace(hello("b", 2, held=0b01), moved=True, active=((1, ORIGIN),)), 0.5)
    later = ledger.report(Report(node="a", wanted=((0, 2),), slots=8, can_fetch=True), 0.6 + SETTLE_SECONDS)
    assert [(task.piece, task.sources) for task in later.tasks] == [(0, ("b",))]
    assert ledger.leases == {1: "b"}


def test_a_node_that_has_to_announce_itself_again_holds_no_lease_up() -> None:
    ledger = Ledger(4 * MIB)
    asker = Report(node="asker", wanted=((1, 4),), slots=8, can_fetch=True)
    for report in (hello("holder", 4, held=0b1111), hello("asker", 4, slots=0), Report(node="holder")):
        ledger.report(report, 0.0)
    ledger.report(replace(asker, failed=(Failure(0, "holder", "missing"),), slots=0), 15.0)
    assert ledger.report(Report(node="holder"), 15.1).resync
    ledger.report(replace(hello("holder", 4, held=0b0001), moved=True), 15.2)  # as after any resync
    assert any(task.lease for task in ledger.report(asker, 15.3).tasks)


def test_who_says_again_and_again_that_it_was_led_by_another_keeps_nobody_from_the_origin() -> None:
    ledger = Ledger(64 * MIB)
    ledger.report(hello("a", 64), 0.0)
    leases = [0, 0]
    for second in range(60):
        ledger.report(replace(hello(f"liar {second}", 64), slots=0, can_fetch=False, moved=True), second)
        plan = ledger.report(replace(hello("a", 64), slots=4), second + 0.5)  # a new node each time, without tasks
        leases[bool(plan.tasks)] += 1
    assert leases[1] >= 50


def test_that_a_holder_is_still_there_is_no_news() -> None:
    ledger = Ledger(2 * MIB)
    ledger.hold("x", 0.0)
    failed = tuple(Failure(piece, "x", "corrupt") for piece in range(2))
    assert not ledger.report(replace(hello("a", 2), failed=failed, can_fetch=False), 0.0).tasks
    assert list(ledger.waiting(0b11)) == ["a"]
    ledger.hold("x", 15.0)
    assert list(ledger.waiting(0)) == []
    ledger.expire(25.0)
    assert "x" in ledger


def test_piece_digests_travel_with_tasks() -> None:
    ledger = Ledger(MIB)
    ledger.report(replace(hello("x", 1, held=1), gained=(Gain(0, HELD, b"d" * 32),)), 0.0)
    assert ledger.report(hello("a", 1), 0.0).tasks[0].digest == b"d" * 32


def test_digests_are_believed_of_who_went_to_the_origin() -> None:
    ledger = Ledger(MIB)
    ledger.report(replace(hello("x", 1), gained=(Gain(0, "liar", b"unchecked"),)), 0.0)
    assert ledger.digests == {}
    ledger.report(replace(hello("y", 1), gained=(Gain(0, HELD, b"held"),)), 0.0)
    ledger.report(replace(hello("z", 1), gained=(Gain(0, ORIGIN, b"fetched"),)), 0.0)
    ledger.report(replace(hello("v", 1), gained=(Gain(0, ORIGIN, b"later"),)), 0.0)
    assert ledger.digests == {0: b"fetched"}


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


def test_plans_and_swarms_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(512 * MIB)
    ledger.is_alone = True
    assert len(ledger.report(hello("a", 512, slots=1 << 40), 0.0).tasks) == MAX_TASKS
    monkeypatch.setattr("mesh.policy.MAX_NODES", 2)
    ledger.report(hello("b", 512), 0.0)
    with pytest.raises(ValueError, match="has 2 nodes already"):
        ledger.report(hello("c", 512), 0.0)
    ledger.forget("a")
    ledger.report(hello("c", 512), 0.0)


def test_a_slow_line_is_one_failure_however_many_pieces_it_was_to_bring() -> None:
    """Otherwise the origin would be asked for everything that a slow source is just sending."""
    ledger = Ledger(4 * MIB)
    ledger.report(hello("holder", 4, held=0b1111, wants=False), 0.0)
    tasks = ledger.report(hello("a", 4), 0.0).tasks
    assert {task.sources for task in tasks} == {("holder",)}
    late = tuple(Failure(task.piece, "holder", "timeout") for task in tasks)
    assert len(late) >= 3
    report = Report(node="a", failed=late, wanted=((0, 4),), slots=8, can_fetch=True)
    assert not any(task.lease for task in ledger.report(report, 3.0).tasks)
    again = ledger.report(replace(report, failed=()), 10.0).tasks
    assert {task.sources for task in again} == {("holder",)}


@pytest.mark.parametrize("is_late", [False, True], ids=["failures first", "announcement first"])
def test_who_let_go_of_a_blob_and_says_so_is_a_source_again_for_what_it_brings(is_late: bool) -> None:
    """Nodes were sent to the holder while it was still believed to hold everything."""
    ledger = Ledger(4 * MIB)
    ledger.hold("holder", 0.0)
    tasks = ledger.report(hello("a", 4), 20.0).tasks
    failed = tuple(Failure(task.piece, "holder", "missing") for task in tasks)
    assert len(failed) >= 3
    steps: list[Report] = [Report(node="a", failed=failed, slots=0), hello("holder", 4)]
    for report in reversed(steps) if is_late else steps:
        ledger.report(report, 20.1)
    brought = Report(node="holder", gained=(Gain(0, ORIGIN),), wanted=((1, 4),), slots=8, can_fetch=True)
    ledger.report(brought, 20.2)
    again = ledger.report(Report(node="a", wanted=((0, 1),), slots=8, can_fetch=True), 20.3).tasks
    assert [task.sources for task in again] == [("holder",)]


def test_a_report_that_may_be_another_s_takes_no_piece_away_but_its_node_gets_what_it_says_it_lacks() -> None:
    ledger = Ledger(4 * MIB)
    ledger.hold("holder", 0.0)
    tasks = ledger.report(replace(hello("holder", 4), forgeable=True), 1.0).tasks
    assert [task.sources for task in tasks] == [(ORIGIN,)]
    others = ledger.report(hello("a", 4, slots=4), 1.1).tasks
    assert {task.sources for task in others} == {("holder",)}
    ledger.report(hello("holder", 4), 1.2)
    assert not ledger.held


def test_one_voice_does_not_expel_a_holder_that_has_no_say_and_its_own_word_clears_it() -> None:
    ledger = Ledger(4 * MIB)
    missing = Failure(0, "holder", "missing")
    ledger.hold("holder", 20.0)
    ledger.report(replace(hello("a", 4), failed=(missing,)), 20.0)
    assert ledger.expire(26.0) == []
    ledger.hold("holder", 27.0)
    for name in ("a", "b", "c"):
        ledger.report(replace(hello(name, 4), failed=(missing,)), 27.0)
    ledger.hold("holder", 28.0, is_news=True)
    assert ledger.expire(33.0) == []
    assert ledger.held == 0b1111
    for name in ("a", "b", "c"):
        ledger.report(replace(hello(name, 4), failed=(missing,)), 40.0)
    assert ledger.expire(46.0) == ["holder"], "three say so, and it says nothing"


def flip(ledger: Ledger, count: int) -> None:
    for held in ((1 << count) - 1, 0):
        ledger.report(hello("a", count, held=held, wants=False), 0.0)


def need_others(ledger: Ledger, count: int) -> None:
    """Ask for all pieces, of which the only holder has failed too often."""
    ledger.report(hello("holder", count, held=(1 << count) - 1, wants=False), 0.0)
    failed = (Failure(0, "holder", "refused"),) * HOPELESS
    assert ledger.report(replace(hello("a", count), failed=failed), 0.0).tasks[0].lease


@pytest.mark.parametrize("step", [flip, need_others])
def test_the_time_for_a_report_is_linear_in_the_pieces_of_a_blob(step: Callable[[Ledger, int], None]) -> None:
    """Anybody may send one for the largest blob, and all of this node's other work waits meanwhile."""

    def seconds(count: int) -> float:
        ledger, began = Ledger(count * MAX_PIECE), time.process_time()
        step(ledger, count)
        return time.process_time() - began

    few, many = (min(seconds(count) for _ in range(3)) for count in (1 << 12, 1 << 16))
    assert many < 48 * few  # 16 times as many pieces
