"""What a tracker keeps of one blob's swarm, and what it decides: who fetches which piece from where. Pure.

No I/O and no clock: `now` is seconds on any clock that does not go back. The same code leads real swarms and simulated
ones. Sets of pieces are integers (piece n is bit n), so a decision costs a few operations on whole sets.

The rules:

1. A piece that nobody holds is fetched from the origin by one node at a time: its lease. Leases go to seeds while
   there are seeds that can fetch, else to those who ask, a few at first and more as they deliver.
2. A piece that somebody holds comes from whoever will be done first: fewest uploads outstanding for its measured
   speed. A source has only a few uploads at a time; who gets none waits, and soon there are more holders.
3. First what a reader waits for, then what is rarest.
4. Nothing lasts for ever: leases end when the origin's bytes stop coming, tasks and nodes when nothing is heard.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from zlib import crc32

from mesh.content import Pieces, PieceSet
from mesh.messages import HELD, MAX_SOURCES, MAX_TASKS, ORIGIN, Failure, Plan, Report, Runs, Task

LEASE_SECONDS = 30.0  # without a byte from the origin
NODE_SECONDS = 20.0  # without a report
SETTLE_SECONDS = 1.0  # for announcements after a change of tracker, before new leases
RETRY_SECONDS = 5.0
UPLOADS = 4  # outstanding for one source
FIRST_LEASES = 4  # pieces that a newcomer among several is sent for; each one it delivers adds two
_CANDIDATES = 48  # sources compared for one plan
_BACK_OFF = 2.0  # seconds that a source which failed a node is not offered to it
_STRIKES = 3  # failures in a row after which it never is again
_ACCUSERS = 3  # this many nodes must have had wrong bytes from a source before nobody is sent to it
_SLOWEST = 60.0  # seconds for a piece, at most, until a task counts as failed
_SPEED_SHARE = 0.3  # of a new measurement in the running mean


@dataclass(slots=True)
class _Assignment:
    source: str
    since: float
    until: float


@dataclass(slots=True)
class _Node:
    have: int = 0
    wanted: int = 0
    urgent: int = 0
    slots: int = 0
    can_fetch: bool = False
    seed: bool = False
    fetched: int = 0
    delivered: int = 0  # pieces from the origin
    heard_at: float = 0.0
    outstanding: int = 0  # uploads that others were sent here for
    seconds: float = 0.0  # per piece, measured by those who were served; 0 until known
    tasks: dict[int, _Assignment] = field(default_factory=dict)
    avoid: dict[str, float] = field(default_factory=dict)  # source → until when
    strikes: dict[str, int] = field(default_factory=dict)  # source → failures in a row
    accusers: set[str] = field(default_factory=set)


class Ledger:
    """The swarm of one blob of `size` bytes.

    `is_alone`: there is no other node in the mesh, so nobody to share the first leases with.
    """

    def __init__(self, size: int, *, seed: int = 0) -> None:
        self.pieces = Pieces.of(size)
        self.digests: dict[int, bytes] = {}  # BLAKE3 by piece, as told by whoever brought it first
        self.is_alone = False
        self.expects_seed = False  # one is about to report: leases wait for it
        self._nodes: dict[str, _Node] = {}
        self._leases: dict[int, str] = {}  # piece → node
        self._leased = 0  # the same as a set
        self._counts: list[int] = []  # how often each piece is held, bit-sliced: _counts[k] has bit k of the count
        self._settled_at = 0.0
        self._random = random.Random(seed)

    # --- what can be asked

    def __contains__(self, node: str) -> bool:
        return node in self._nodes

    def __len__(self) -> int:
        return len(self._nodes)

    @property
    def held(self) -> int:
        """Pieces that somebody holds."""
        held = 0
        for level in self._counts:
            held |= level
        return held

    @property
    def leases(self) -> dict[int, str]:
        """Which node is to fetch which piece from the origin."""
        return dict(self._leases)

    def have(self, node: str) -> PieceSet:
        return PieceSet(self.pieces.count, self._nodes[node].have)

    @property
    def is_wanted(self) -> bool:
        """Whether somebody still misses something."""
        return any(node.wanted & ~node.have for node in self._nodes.values())

    def waiting(self, gained: int) -> Iterator[str]:
        """Nodes that could use one of the pieces in `gained`."""
        for name, node in self._nodes.items():
            if node.slots > len(node.tasks) and node.wanted & ~node.have & gained:
                yield name

    # --- what happens

    def report(self, report: Report, now: float) -> Plan:
        """Take a report in and decide what its sender does next.

        Raises ValueError when the report is out of bounds.
        """
        report.check(self.pieces.count)
        node = self._nodes.get(report.node)
        if node is None and report.have is None:
            return Plan(resync=True, retry_after=0.0)
        if node is None or report.have is not None:
            node = self._enter(report, now)
        node.heard_at = now
        node.wanted, node.urgent = _bits(report.wanted), _bits(report.urgent)
        node.can_fetch, node.seed = report.can_fetch, report.seed
        if node.seed:
            self.expects_seed = False
        for failure in report.failed:
            self._failed(report.node, node, failure, now)
        for gain in report.gained:
            self._gained(node, gain.piece, gain.source, gain.digest, now)
        if report.fetched > node.fetched:
            for assignment in node.tasks.values():
                if assignment.source == ORIGIN:
                    assignment.until = now + LEASE_SECONDS
        node.fetched = report.fetched
        # The node counts its free slots without the tasks that it was sent; those it has not seen are in ours.
        node.slots = min(MAX_TASKS, report.slots + len(node.tasks))
        return self.plan(report.node, now)

    def plan(self, name: str, now: float) -> Plan:
        """Decide what a node does next, from what it last reported."""
        node = self._nodes.get(name)
        if node is None:
            return Plan(resync=True, retry_after=0.0)
        tasks: list[Task] = []
        free = node.slots - len(node.tasks)
        if free > 0:
            tasks += self._from_peers(name, node, free, now)
            tasks += self._from_origin(name, node, free - len(tasks), now)
        return Plan(tuple(tasks), retry_after=self._retry_after(node))

    def hold(self, name: str, now: float) -> None:
        """A node is known to hold all of it, and to be alive, without having reported."""
        node = self._nodes.get(name)
        full = (1 << self.pieces.count) - 1
        if node is None:
            node = self._nodes[name] = _Node()
        if node.have != full:
            self._count(full & ~node.have, +1)
            node.have = full
            for piece in list(node.tasks):
                self._end_task(node, piece)
        node.heard_at = now

    def expire(self, now: float) -> None:
        """Let go of nodes that fell silent, and of leases and tasks that ran out."""
        for name in [name for name, node in self._nodes.items() if now - node.heard_at > NODE_SECONDS]:
            self.forget(name)
        for node in self._nodes.values():
            for piece in [piece for piece, task in node.tasks.items() if now > task.until]:
                self._end_task(node, piece)

    def forget(self, name: str) -> None:
        """A node is gone, with all that it held and was to do."""
        node = self._nodes.pop(name, None)
        if node is None:
            return
        for piece in list(node.tasks):
            self._end_task(node, piece)
        self._count(node.have, -1)

    # --- inside: keeping the books

    def _enter(self, report: Report, now: float) -> _Node:
        """First contact, or everything anew."""
        before = self._nodes.get(report.node)
        self.forget(report.node)
        node = self._nodes[report.node] = _Node(heard_at=now)
        if before is not None:
            node.seconds, node.accusers, node.delivered = before.seconds, before.accusers, before.delivered
        if report.moved:
            self._settled_at = max(self._settled_at, now + SETTLE_SECONDS)
        assert report.have is not None
        node.have = PieceSet.from_bytes(self.pieces.count, report.have).bits
        self._count(node.have, +1)
        for piece, source in report.active:
            if source != ORIGIN:
                self._assign(node, piece, source, now, _SLOWEST)
            elif piece not in self._leases:
                self._lease(report.node, node, piece, now)
        return node

    def _gained(self, node: _Node, piece: int, source: str, digest: bytes, now: float) -> None:
        task = self._end_task(node, piece)
        if digest and (source in (ORIGIN, HELD) or piece not in self.digests):
            self.digests.setdefault(piece, digest)
        if source == ORIGIN:
            node.delivered += 1
        else:
            node.strikes.pop(source, None)
        if task is not None and (server := self._nodes.get(source)) is not None and task.source == source:
            took = max(1e-4, now - task.since)
            server.seconds += (took - server.seconds) * (_SPEED_SHARE if server.seconds else 1.0)
        if not node.have >> piece & 1:
            node.have |= 1 << piece
            self._count(1 << piece, +1)

    def _failed(self, name: str, node: _Node, failure: Failure, now: float) -> None:
        task = node.tasks.get(failure.piece)
        if task is not None and task.source == failure.source:
            self._end_task(node, failure.piece)
        server = self._nodes.get(failure.source)
        if server is None:
            return
        if failure.reason == "corrupt":
            node.avoid[failure.source] = float("inf")
            server.accusers.add(name)
        elif failure.reason == "missing":
            if server.have >> failure.piece & 1:
                server.have &= ~(1 << failure.piece)
                self._count(1 << failure.piece, -1)
        else:
            strikes = node.strikes[failure.source] = node.strikes.get(failure.source, 0) + 1
            node.avoid[failure.source] = now + _BACK_OFF if strikes < _STRIKES else float("inf")
            server.seconds = min(_SLOWEST, server.seconds * 2)

    def _assign(self, node: _Node, piece: int, source: str, now: float, seconds: float) -> None:
        node.tasks[piece] = _Assignment(source, now, now + seconds)
        if (server := self._nodes.get(source)) is not None:
            server.outstanding += 1

    def _lease(self, name: str, node: _Node, piece: int, now: float) -> None:
        self._leases[piece] = name
        self._leased |= 1 << piece
        self._assign(node, piece, ORIGIN, now, LEASE_SECONDS)

    def _end_task(self, node: _Node, piece: int) -> _Assignment | None:
        task = node.tasks.pop(piece, None)
        if task is None:
            return None
        if task.source == ORIGIN:
            if self._leases.pop(piece, None) is not None:
                self._leased &= ~(1 << piece)
        elif (server := self._nodes.get(task.source)) is not None:
            server.outstanding = max(0, server.outstanding - 1)
        return task

    def _count(self, bits: int, step: int) -> None:
        """Add one to (or take one from) the count of holders of each piece in `bits`."""
        level = 0
        while bits:
            if level == len(self._counts):
                self._counts.append(0)
            before = self._counts[level]
            self._counts[level] = before ^ bits
            bits &= before if step > 0 else ~before  # carry, or borrow
            level += 1

    # --- inside: deciding

    def _from_peers(self, name: str, node: _Node, free: int, now: float) -> list[Task]:
        missing = (node.wanted | node.urgent) & ~node.have & ~_keys(node.tasks) & self.held
        if not missing:
            return []
        candidates = self._candidates(name, node, missing, now)
        tasks: list[Task] = []
        for piece in self._in_order(missing, node.urgent & missing, name):
            if len(tasks) >= free or not candidates:
                break
            holders = sorted((c for c in candidates if c[1].have >> piece & 1), key=_cost)[:MAX_SOURCES]
            if not holders:
                continue
            source, server = holders[0]
            seconds = min(_SLOWEST, max(2.0, 6.0 * server.seconds * (server.outstanding + 1)))
            self._assign(node, piece, source, now, seconds * len(holders) + 5.0)
            tasks.append(Task(piece, tuple(h[0] for h in holders), self.digests.get(piece, b""), seconds))
            if server.outstanding >= UPLOADS:
                candidates.remove(holders[0])
        return tasks

    def _candidates(self, name: str, node: _Node, missing: int, now: float) -> list[tuple[str, _Node]]:
        """Some nodes that hold something of it and can take another upload."""
        names = list(self._nodes)
        if len(names) > 4 * _CANDIDATES:
            names = self._random.sample(names, 4 * _CANDIDATES)
        found = [
            (other, server)
            for other in names
            if (server := self._nodes[other]).have & missing
            and other != name
            and server.outstanding < UPLOADS
            and node.avoid.get(other, 0.0) <= now
            and len(server.accusers) < _ACCUSERS
        ]
        return self._random.sample(found, _CANDIDATES) if len(found) > _CANDIDATES else found

    def _in_order(self, missing: int, urgent: int, name: str) -> Iterator[int]:
        """What readers wait for, then the rest from rare to common; equals from another start for each node."""
        yield from PieceSet(self.pieces.count, urgent)
        rest = missing & ~urgent
        start = crc32(name.encode()) % self.pieces.count
        for bits in self._by_rarity(rest):
            low = bits & ((1 << start) - 1)
            yield from PieceSet(self.pieces.count, bits ^ low)
            yield from PieceSet(self.pieces.count, low)

    def _by_rarity(self, bits: int) -> Iterator[int]:
        """Split a set by the number of holders, rarest first; above three all are common."""
        ones, twos = (*self._counts, 0, 0)[:2]
        more = 0
        for level in self._counts[2:]:
            more |= level
        yield from (
            part
            for part in (
                bits & ones & ~twos & ~more,
                bits & ~ones & twos & ~more,
                bits & ones & twos & ~more,
                bits & more,
            )
            if part
        )

    def _from_origin(self, name: str, node: _Node, free: int, now: float) -> list[Task]:
        if free <= 0 or not node.can_fetch or now < self._settled_at:
            return []
        seeds = [n for n in self._nodes.values() if n.seed and n.can_fetch]
        if (seeds or self.expects_seed) and not node.seed:
            return []
        wanted, urgent = node.wanted, node.urgent
        if node.seed:
            for other in self._nodes.values():
                wanted |= other.wanted & ~other.have
                urgent |= other.urgent & ~other.have
        missing = (wanted | urgent) & ~node.have & ~self._usable(name, node) & ~self._leased & ~_keys(node.tasks)
        if not self.is_alone and not seeds:
            leased = sum(task.source == ORIGIN for task in node.tasks.values())
            free = min(free, FIRST_LEASES + 2 * node.delivered - leased)
        tasks: list[Task] = []
        for part in (urgent & missing, missing & ~urgent):
            for piece in PieceSet(self.pieces.count, part):
                if len(tasks) >= free:
                    return tasks
                self._lease(name, node, piece, now)
                tasks.append(Task(piece, (ORIGIN,), b"", LEASE_SECONDS))
        return tasks

    def _usable(self, name: str, node: _Node) -> int:
        """Pieces that somebody holds who has not turned out to be of no use to this node."""
        useless = {source for source, until in node.avoid.items() if until == float("inf")}
        useless |= {other for other, server in self._nodes.items() if len(server.accusers) >= _ACCUSERS}
        if not useless:
            return self.held
        usable = 0
        for other, server in self._nodes.items():
            if other != name and other not in useless:
                usable |= server.have
        return usable

    def _retry_after(self, node: _Node) -> float:
        if not node.wanted & ~node.have and not node.seed:
            return RETRY_SECONDS
        return RETRY_SECONDS if node.tasks else 1.0


def _cost(candidate: tuple[str, _Node]) -> float:
    """When this source would be done with one more upload, as far as is known."""
    server = candidate[1]
    return (server.seconds or 0.01) * (server.outstanding + 1)


def _bits(runs: Runs) -> int:
    bits = 0
    for start, stop in runs:
        bits |= (1 << stop) - (1 << start)
    return bits


def _keys(tasks: dict[int, _Assignment]) -> int:
    bits = 0
    for piece in tasks:
        bits |= 1 << piece
    return bits
