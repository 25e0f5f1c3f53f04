"""What strangers can do to a tracker: take a bounded share, and never one that this node's own clients need."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time

import pytest

from mesh import policy, tracker
from mesh.content import Digest, Pieces, PieceSet
from mesh.messages import ORIGIN, Failure, Gain, Plan, Report
from mesh.tracker import Tracker

MIB = 1 << 20
TIB = 1 << 40


def digest(number: int) -> Digest:
    return Digest("sha256", hashlib.sha256(b"%d" % number).hexdigest())


def announced(node: str, size: int = TIB, **more: object) -> Report:
    return Report(node, have=PieceSet(Pieces.of(size).count).to_bytes(), **more)  # type: ignore[arg-type]


async def test_what_strangers_wait_for_makes_room_for_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker, "_HOLD_SECONDS", 30.0)
    mine = Tracker()
    waits: dict[int, asyncio.Task[Plan]] = {}
    with contextlib.ExitStack() as stack:
        for number in range(100):
            waits[number] = asyncio.create_task(  # noqa: TID251
                mine.answer(digest(number), TIB, announced("stranger", wanted=((0, 1),), slots=1))
            )
            stack.callback(waits[number].cancel)
            await asyncio.sleep(0)
        refused = [wait for wait in waits.values() if wait.done() and wait.exception() is not None]
        assert refused, "as many as there is room for"
        mine.subscribe(digest(1000), 4 * MIB, lambda: None)
        assert mine.report(digest(1000), 4 * MIB, announced("me", 4 * MIB), is_ours=True) is not None
        mine.subscribe(digest(1001), TIB, lambda: None)
        oldest = await asyncio.wait_for(waits[0], 1.0)
        assert not oldest.tasks
        assert digest(0) not in mine
        assert digest(1000) in mine


async def test_a_swarm_that_strangers_have_filled_keeps_the_clock_going(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "MAX_NODES", 10)
    mine = Tracker(holders=lambda _: ["holder"])
    for number in range(20):
        with contextlib.suppress(ValueError):
            mine.report(digest(1), 4 * MIB, announced(f"n{number}", 4 * MIB))
    ledger = mine.ledger(digest(1))
    assert ledger is not None
    assert len(ledger) == 10
    ledger.forget("holder")
    mine.report(digest(1), 4 * MIB, announced("last", 4 * MIB))
    await mine.tick()
    mine.add_holder(digest(1), "another")
    assert len(ledger) == 10


async def test_what_nodes_that_come_and_go_leave_behind_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker, "_MAX_BITS", 20 * Pieces.of(TIB).count)
    mine = Tracker()
    for number in range(20):
        mine.report(digest(number % 2), TIB, announced(f"n{number}"))
    with pytest.raises(ValueError, match="as many nodes as it can"):
        mine.report(digest(0), TIB, announced("one more"))
    mine.report(digest(0), TIB, announced("me"), is_ours=True)
    for number in range(2):
        ledger = mine.ledger(digest(number))
        assert ledger is not None
        ledger.expire(time.monotonic() + 2 * policy.NODE_SECONDS)
        assert ledger.slots == 0, "nobody's place"
    mine.report(digest(0), TIB, announced("one more"))


async def test_when_a_holder_lets_go_of_a_blob_the_nodes_that_wait_for_it_may_fetch_it_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """But one that is fetching the blob again keeps what it has reported since: the word may come late."""
    monkeypatch.setattr(tracker, "_HOLD_SECONDS", 30.0)
    mine = Tracker()
    have = PieceSet(4, 0b1111).to_bytes()
    mine.report(digest(1), 4 * MIB, Report("holder", have=have))
    busy = tuple(Failure(piece, "holder", "busy") for piece in range(4))
    asker = announced("asker", 4 * MIB, failed=busy, wanted=((0, 4),), slots=4, can_fetch=True)
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(mine.answer(digest(1), 4 * MIB, asker))
        await asyncio.sleep(0)
        mine.drop_holder(digest(1), "holder")
        assert {task.sources for task in (await asyncio.wait_for(waiting, 5.0)).tasks} == {(ORIGIN,)}
    mine.report(digest(1), 4 * MIB, announced("holder", 4 * MIB, gained=(Gain(0, ORIGIN),)))
    mine.drop_holder(digest(1), "holder")
    ledger = mine.ledger(digest(1))
    assert ledger is not None
    assert ledger.held == 1


async def test_the_clock_of_hundreds_of_files_that_hundreds_of_nodes_hold_gives_way() -> None:
    mine = Tracker(holders=lambda _: [f"n{number}" for number in range(200)])
    for number in range(200):
        mine.report(digest(number), 4 * MIB, announced("me", 4 * MIB), is_ours=True)
    turns = 0
    async with asyncio.TaskGroup() as group:
        ticking = group.create_task(mine.tick())
        while not ticking.done():
            turns += 1
            await asyncio.sleep(0)
    assert turns > 3
