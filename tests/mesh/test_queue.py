"""What a node fetches next, from where, and how much of it at once."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mesh.messages import Task
from mesh.queue import PEER_RUN_BYTES, RUN_BYTES, SOURCE_STREAMS, Queue, must_leave

MIB = 1 << 20
COUNT = 24
STREAMS = 4
PEERS = ["a", "b", "c"]

pieces = st.integers(0, COUNT - 1)
offers = st.builds(lambda piece, sources: Task(piece, tuple(sources), b"", 1.0), pieces, st.permutations(PEERS))


def leased(*pieces: int, piece_size: int = MIB) -> Queue:
    queue = Queue(piece_size, STREAMS)
    queue.lease(pieces)
    return queue


class Node(RuleBasedStateMachine):
    """A node that begins, ends and loses runs in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.piece_size = 4 * MIB
        self.queue = Queue(self.piece_size, STREAMS)
        self.from_origin: list[list[int]] = []
        self.from_peers: list[list[Task]] = []
        self.owed: set[int] = set()  # leased, and not landed since
        self.half: set[int] = set()  # half-received

    def coming(self) -> set[int]:
        runs = [*self.from_origin, *([task.piece for task in run] for run in self.from_peers)]
        all_pieces = [piece for run in runs for piece in run]
        assert len(all_pieces) == len(set(all_pieces)), "two runs would write the same piece"
        return set(all_pieces)

    @rule(piece=pieces)
    def is_sent_to_the_origin(self, piece: int) -> None:
        self.queue.take([Task.lease_of(piece)], self.coming())
        self.owed.add(piece)

    @rule(tasks=st.lists(offers, max_size=12))
    def is_sent_to_peers(self, tasks: list[Task]) -> None:
        self.queue.take(tasks, self.coming())

    @rule(urgent=st.lists(pieces, unique=True, max_size=4))
    def is_in_a_hurry(self, urgent: list[int]) -> None:
        before, coming = list(self.queue.leased), self.coming()
        self.queue.put_first(urgent)
        assert sorted(before) == sorted(self.queue.leased)
        able = [piece for piece in urgent if piece in before and piece not in coming]
        assert not able or self.queue.next_lease(coming) == able[0]

    @rule(most_bytes=st.integers(0, 2 * RUN_BYTES))
    def begins_from_the_origin(self, most_bytes: int) -> None:
        coming, before = self.coming(), list(self.queue.leased)
        first = self.queue.next_lease(coming)
        assert first == next((piece for piece in before if piece not in coming), None)
        if first is None:
            return
        run = list(self.queue.origin_run(first, coming | self.half, most_bytes))
        assert run == list(range(first, run[-1] + 1))
        assert set(run) <= set(before)
        assert not self.half & set(run[1:])
        assert len(run) == 1 or len(run) * self.piece_size <= min(RUN_BYTES, most_bytes)
        assert set(self.queue.leased) == set(before) - set(run)
        self.half.discard(first)
        self.from_origin.append(run)

    @rule(is_crowd=st.booleans())
    def begins_from_a_peer(self, is_crowd: bool) -> None:
        busy = Counter(run[0].sources[0] for run in self.from_peers)
        before = dict(self.queue.offered)
        run = self.queue.peer_run(busy, self.half, is_crowd=is_crowd)
        if not run:
            assert all(busy[task.sources[0]] for task in before.values()), "a source without a connection was free"
            return
        assert [task.piece for task in run] == list(range(run[0].piece, run[0].piece + len(run)))
        assert len({task.sources[0] for task in run}) == 1
        assert busy[run[0].sources[0]] < SOURCE_STREAMS
        assert not self.half & {task.piece for task in run[1:]}
        assert len(run) * self.piece_size <= PEER_RUN_BYTES
        assert self.queue.offered.keys() == before.keys() - {task.piece for task in run}
        self.from_peers.append(run)

    @precondition(lambda self: self.from_origin)
    @rule(data=st.data(), is_half=st.booleans())
    def loses_the_origin(self, data: st.DataObject, is_half: bool) -> None:
        run = self.from_origin.pop(data.draw(st.integers(0, len(self.from_origin) - 1)))
        if is_half:
            self.half.add(run[0])
        self.queue.lease(run)
        self.queue.put_first(run)
        assert self.queue.next_lease(self.coming()) == run[0]

    @precondition(lambda self: self.from_origin)
    @rule(data=st.data(), piece=pieces, waited=st.sets(pieces))
    def takes_what_is_late_out_of_a_run(self, data: st.DataObject, piece: int, waited: set[int]) -> None:
        run = data.draw(st.sampled_from(self.from_origin))
        if must_leave(piece, range(run[0], run[-1] + 1), waited):
            self.queue.lease(run[run.index(piece) :])
            del run[run.index(piece) :]
            assert run, "the piece that is arriving stays"

    @precondition(lambda self: self.from_peers)
    @rule(data=st.data())
    def loses_a_peer(self, data: st.DataObject) -> None:
        run = self.from_peers.pop(data.draw(st.integers(0, len(self.from_peers) - 1)))
        for task in run:
            self.queue.try_next(task)
            is_queued = task.piece in self.queue.offered
            assert is_queued == (len(task.sources) > 1 and task.piece not in self.queue.leased)
            assert not is_queued or self.queue.offered[task.piece].sources == task.sources[1:]

    @precondition(lambda self: self.from_origin or self.from_peers)
    @rule(data=st.data(), seconds=st.sampled_from([0.1, 1.0]))
    def lands_a_piece(self, data: st.DataObject, seconds: float) -> None:
        runs = [*self.from_origin, *self.from_peers]
        run = data.draw(st.sampled_from(runs))
        first = run.pop(0)
        piece, source = (first.piece, first.sources[0]) if isinstance(first, Task) else (first, "origin")
        self.queue.landed(piece, source, seconds)
        self.owed.discard(piece)
        self.half.discard(piece)
        assert piece not in {piece for piece, _ in self.queue.waiting()}
        self.from_origin, self.from_peers = [r for r in self.from_origin if r], [r for r in self.from_peers if r]

    @invariant()
    def forgets_nothing_and_asks_nobody_twice(self) -> None:
        waiting = [piece for piece, _ in self.queue.waiting()]
        assert len(waiting) == len(set(waiting)) == len(self.queue)
        assert self.owed == set(self.queue.leased) | {piece for run in self.from_origin for piece in run}
        self.coming()


TestNode = Node.TestCase
TestNode.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def test_leases_are_shared_out_among_the_streams() -> None:
    queue, runs = leased(*range(10)), []
    while (first := queue.next_lease(())) is not None:
        runs.append(queue.origin_run(first, ()))
    assert [len(run) for run in runs] == [3, 2, 2, 1, 1, 1]
    assert leased(*range(400)).origin_run(0, ()) == range(64), "RUN_BYTES"
    assert leased(*range(400)).origin_run(0, (), 5 * MIB) == range(5)
    assert leased(*range(400)).origin_run(0, (), 2 * RUN_BYTES) == range(64)
    assert leased(*range(400), piece_size=16 * MIB).origin_run(0, (), MIB) == range(1)


def test_a_half_received_piece_is_the_first_of_its_run() -> None:
    queue = leased(*range(12))
    assert queue.origin_run(0, {2}) == range(2)
    assert queue.origin_run(2, {2}) == range(2, 5)
    queue.take(Task(piece, ("a",), b"", 1.0) for piece in range(12, 24))
    runs = [queue.peer_run(Counter(), {14}, is_crowd=False) for _ in range(2)]
    assert [[task.piece for task in run] for run in runs] == [[12, 13], [14, 15, 16]]


def test_a_lease_whose_piece_is_coming_from_a_peer_waits_until_that_fails() -> None:
    queue = Queue(MIB, STREAMS)
    queue.take([Task(0, ("a", "b"), b"", 1.0), Task(1, ("a",), b"", 1.0)])
    (task,) = queue.peer_run(Counter(), (), is_crowd=False)
    queue.lease(range(3))
    assert queue.next_lease({0}) == 1
    assert not queue.peer_run(Counter(), (), is_crowd=False), "the lease of piece 1 took the place of its task"
    queue.try_next(task)
    assert not queue.offered
    assert queue.next_lease(()) == 0


def test_what_an_origin_without_ranges_brings_waits_no_more() -> None:
    queue = leased(0, 1)
    queue.take([Task(2, ("a",), b"", 1.0)])
    for piece in range(3):
        queue.landed(piece, "origin", 1.0)
    assert not queue


def test_a_quick_peer_gets_more_connections_than_others_unless_there_is_a_crowd() -> None:
    def streams(*, is_crowd: bool) -> int:
        queue.offered.clear()
        queue.take(Task(piece, ("a",), b"", 1.0) for piece in range(20))
        busy = Counter[str]()
        while queue.peer_run(busy, (), is_crowd=is_crowd):
            busy["a"] += 1
        return busy["a"]

    queue = Queue(MIB, STREAMS)
    assert (streams(is_crowd=False), streams(is_crowd=True)) == (1, SOURCE_STREAMS)
    queue.landed(99, "a", 0.1)
    assert streams(is_crowd=False) == SOURCE_STREAMS
    queue.landed(99, "a", 1.0)
    assert streams(is_crowd=False) == 1


def test_a_late_piece_stays_in_a_run_that_is_at_it_or_reaches_it_next() -> None:
    run = range(4, 8)
    assert [piece for piece in range(10) if must_leave(piece, run, ())] == [6, 7]
    assert [piece for piece in range(10) if must_leave(piece, run, [5])] == [5, 6, 7]
