"""When a starving reader's next piece is requested from the origin, and when not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from mesh import rescue as module
from mesh.content import Digest
from mesh.fetcher import Fetcher
from mesh.fill import RESERVE, Fill, Reader
from mesh.house import House
from mesh.messages import ORIGIN, Task
from mesh.partial import Partial
from mesh.rescue import Rescue

MIB = 1 << 20


@dataclass(eq=False)
class Run:
    """A transfer from a peer."""

    piece: int
    position: int
    source: str = "peer"
    is_origin: bool = False
    landed_at: float = float("-inf")  # it began long ago
    is_cancelled: bool = False

    @property
    def pieces(self) -> range:
        return range(self.piece, self.piece + 1)

    def cancel(self) -> None:
        self.is_cancelled = True


@dataclass
class Transfers:
    """The part of a fetcher that a rescue uses."""

    can_fetch: bool = True
    last_landed: float = 0.0
    assigned_at: float = 0.0
    runs: set[Run] = field(default_factory=set)
    taken: list[int] = field(default_factory=list)
    received: Counter[str] = field(default_factory=Counter)

    def active(self) -> Iterator[tuple[int, str]]:
        yield from ((piece, ORIGIN) for piece in self.taken)

    def take(self, tasks: list[Task]) -> None:
        self.taken += [task.piece for task in tasks if task.sources == (ORIGIN,)]


class Case:
    """A reader of 16 pieces of 1 MiB, the first of which is there, and a clock."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.fill = Fill(Partial(path, Digest("sha256", "a" * 64), 16 * MIB))
        self.transfers = Transfers()
        self.doubted: list[Digest] = []
        self.exchange = SimpleNamespace(
            is_crowd=False, is_strained=False, doubt=self.doubted.append, tracker_of=lambda _: "tracker"
        )
        self.served_at = {"tracker": float("-inf")}  # when a peer last sent a piece of another blob
        others = SimpleNamespace(exchange=self.exchange, served_other_at=lambda peer, _: self.served_at[peer])
        house = cast("House", others)
        self.rescue = Rescue(house, self.fill, cast("Fetcher", self.transfers))
        self.land(0)
        self.reader: Reader = self.fill.reader(0, 16 * MIB, is_whole=True)
        self.reader.position = MIB - RESERVE

    def land(self, piece: int) -> None:
        self.fill.partial.add(piece, bytes(32), False)
        self.fill.added(piece)
        self.transfers.last_landed = self.now

    def look_until(self, end: float) -> None:
        while self.now < end:
            self.now += 0.5
            self.rescue.look()


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Case]:
    made = Case(tmp_path / "partial", monkeypatch)
    yield made
    made.reader.close()
    made.fill.partial.close()


async def test_nobody_is_rescued_too_soon_or_too_late(case: Case) -> None:
    case.look_until(5.5)
    assert case.transfers.taken == []
    case.look_until(7.0)
    assert case.transfers.taken == [1]


async def test_while_other_pieces_come_there_is_more_time(case: Case) -> None:
    for number in range(14):
        case.look_until(number + 1)
        case.land(number + 2)
    assert case.transfers.taken == []
    case.look_until(16.5)
    assert case.transfers.taken == [1]


async def test_so_there_is_while_several_share_a_slow_line_and_none_is_complete_yet(case: Case) -> None:
    while case.now < 14.5:
        case.transfers.received["a"] += MIB // 20
        case.transfers.received["b"] += MIB // 20
        case.look_until(case.now + 0.5)
    assert case.transfers.taken == []
    case.look_until(17.0)
    assert case.transfers.taken == [1]


async def test_a_tracker_that_sends_other_blobs_by_turns_has_more_time_but_not_for_ever(case: Case) -> None:
    starting = case.fill.reader(MIB, 16 * MIB, is_whole=False)
    for _ in range(2):
        case.look_until(case.now + 6.0)
        case.served_at["tracker"] = case.now
    assert case.transfers.taken == [1], "a client without a byte would give up"
    case.land(1)
    starting.close()
    for piece in (2, 3):
        case.reader.position = piece * MIB - RESERVE
        for _ in range(4):
            case.look_until(case.now + 4.0)
            case.served_at["tracker"] = case.now
        assert case.transfers.taken[1:] == list(range(2, piece + 1))
        case.land(piece)
    assert case.doubted == [case.fill.partial.digest]


async def test_a_drip_of_bytes_is_no_reason_to_wait(case: Case) -> None:
    while case.now < 7.0:
        case.transfers.received["a"] += 1000
        case.look_until(case.now + 0.5)
    assert case.transfers.taken == [1]


async def test_but_not_for_who_has_no_reserve_as_it_has_had_nothing(case: Case) -> None:
    starting = case.fill.reader(MIB, 16 * MIB, is_whole=False)
    for number in range(8):
        case.look_until(number + 1)
        case.land(number + 2)
    assert case.transfers.taken == [1]
    starting.close()


async def test_many_nodes_do_not_turn_to_the_origin_at_once(case: Case) -> None:
    case.exchange.is_crowd = True
    case.look_until(12.0)
    assert case.transfers.taken == []
    case.look_until(13.5)
    assert case.transfers.taken == [1]


async def test_among_many_a_node_that_is_late_itself_gives_the_others_more_time(case: Case) -> None:
    case.exchange.is_crowd = case.exchange.is_strained = True
    case.look_until(25.0)
    assert case.transfers.taken == []
    case.look_until(26.5)
    assert case.transfers.taken == [1]


async def test_among_many_a_piece_every_few_seconds_is_how_it_should_be(case: Case) -> None:
    case.exchange.is_crowd = True
    for number in range(6):
        case.look_until(4.0 * (number + 1))
        case.land(number + 2)
    assert case.transfers.taken == []
    case.look_until(26.5)
    assert case.transfers.taken == [1]


async def test_among_many_a_tracker_has_more_time_before_a_node_leaves_it_and_them(case: Case) -> None:
    case.exchange.is_crowd = True
    for piece in (1, 2):
        case.look_until(case.now + 13.5)
        case.land(piece)
        case.reader.position = (piece + 1) * MIB - RESERVE
    assert case.transfers.taken == [1, 2]
    assert case.doubted == []
    case.look_until(case.now + 13.5)
    assert case.transfers.taken == [1, 2, 3]
    assert case.doubted == [case.fill.partial.digest]


async def test_a_client_that_takes_its_time_is_not_starving(case: Case) -> None:
    case.reader.position = 0
    case.look_until(30.0)
    assert case.transfers.taken == []


async def test_a_piece_that_is_nearly_there_is_waited_for_and_a_drip_is_broken_off(case: Case) -> None:
    quick, drip = Run(1, MIB), Run(1, MIB)
    case.transfers.runs = {quick}
    for _ in range(15):  # an eighth of a MiB per second
        quick.position += MIB // 16
        case.look_until(case.now + 0.5)
    assert not quick.is_cancelled
    case.transfers.runs = {drip}
    for _ in range(15):
        drip.position += 10
        case.look_until(case.now + 0.5)
    assert drip.is_cancelled
    assert case.transfers.taken == [], "not before it has left the file"
    case.transfers.runs = set()
    case.look_until(case.now + 1)
    assert case.transfers.taken == [1]


async def test_a_pace_is_not_taken_between_two_bursts(case: Case) -> None:
    """The loop checks on every event, and under a rate limit half a MiB arrives at once."""
    bursts = Run(1, MIB)
    case.transfers.runs = {bursts}
    while case.now < 7.5:
        case.now += 0.05
        bursts.position = MIB + int(case.now) * MIB // 8
        case.rescue.look()
    assert not bursts.is_cancelled


async def test_a_transfer_that_has_just_begun_has_a_chance_but_not_for_ever(case: Case) -> None:
    case.look_until(5.0)
    for _ in range(4):
        case.transfers.runs = {Run(1, MIB, landed_at=case.now)}
        case.look_until(case.now + 0.5)
    assert not any(run.is_cancelled for run in case.transfers.runs)
    for _ in range(4):
        case.transfers.runs = {Run(1, MIB, landed_at=case.now)}
        case.look_until(case.now + 0.5)
    assert all(run.is_cancelled for run in case.transfers.runs)


async def test_a_tracker_that_does_nothing_for_us_is_doubted_and_a_busy_one_is_not(case: Case) -> None:
    case.look_until(7.0)
    for piece in (1, 2):
        case.land(piece)
        case.transfers.assigned_at = case.now
        case.reader.position = (piece + 1) * MIB - RESERVE
        case.look_until(case.now + 7.5)
    assert case.transfers.taken == [1, 2, 3]
    assert case.doubted == []
    case.land(3)
    case.reader.position = 4 * MIB - RESERVE
    case.look_until(case.now + 8.0)
    assert case.transfers.taken == [1, 2, 3, 4]
    assert case.doubted == [case.fill.partial.digest]


async def test_what_is_almost_here_is_not_cut_off_because_nobody_has_looked_at_it_yet(case: Case) -> None:
    case.look_until(5.5)
    case.transfers.runs = {Run(1, MIB + 1_000_000, landed_at=3.9)}
    case.look_until(6.0)
    assert case.transfers.taken == []
