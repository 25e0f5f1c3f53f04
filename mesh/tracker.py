"""The ledgers of the blobs that this node tracks, and the nodes that wait for an answer from them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from mesh.bits import bits_in
from mesh.content import Digest, Pieces
from mesh.ledger import Ledger
from mesh.messages import Plan, Report
from mesh.pacing import PROBE, Pacing
from mesh.quota import Quota
from mesh.turns import Turns

_HOLD_SECONDS = 2.0  # longest time for which an answer waits until there is something to say
_WOKEN = 4  # waiting nodes answered when pieces are gained: as many as their holder can serve
_IDLE_SECONDS = 120.0  # without a report, after which a ledger is dropped
_MAX_LEDGERS = 2000
_MAX_PIECES = 1 << 20  # of all blobs together; each costs about 200 bytes once its digest is known
# Each announced piece takes time. Honest nodes announce a whole set only when they join a swarm, complete or leave it,
# or change its tracker: so many pieces at once for all nodes of a host, and per second after that.
_MOST_ANNOUNCED = 1 << 21
_ANNOUNCED_PER_SECOND = 1 << 16
_MAX_BITS = 1 << 29  # (node, piece) pairs of all ledgers together, which keep two bits for each


@dataclass(slots=True)
class _Tracked:
    ledger: Ledger
    size: int
    touched_at: float
    subscribers: set[Callable[[], None]] = field(default_factory=set)
    waiting: dict[str, asyncio.Future[Plan]] = field(default_factory=dict)


class Tracker:
    """Leads swarms. Belongs to the event loop's thread; call `tick` every second or so.

    `holders` returns the nodes known to hold all of a blob; `lost` is called for one that turns out not to. `digests`
    returns the piece digests of a blob that this node has. Without them, nodes that are sent to a holder with a bad
    disk or memory would find out only from the proof of the whole blob, and would have to start over.
    """

    def __init__(
        self,
        holders: Callable[[Digest], list[str]] = lambda _: [],
        lost: Callable[[str, Digest], None] = lambda _node, _digest: None,
        digests: Callable[[Digest, int], Mapping[int, bytes]] = lambda _digest, _size: {},
    ) -> None:
        self._holders = holders
        self._lost = lost
        self._digests = digests
        self._tracked: dict[Digest, _Tracked] = {}
        self._pacing = Pacing()
        self.announced = Quota(_MOST_ANNOUNCED, 1 / _ANNOUNCED_PER_SECOND)  # pieces by host
        self._is_probing = False

    def __contains__(self, digest: Digest) -> bool:
        return digest in self._tracked

    def ledger(self, digest: Digest) -> Ledger | None:
        tracked = self._tracked.get(digest)
        return tracked.ledger if tracked else None

    def subscribe(self, digest: Digest, size: int, news: Callable[[], None]) -> Callable[[], None]:
        """Have `news` called whenever a report from this node may bring it tasks; returns a function that ends that."""
        tracked = self._open(digest, size, is_ours=True)
        tracked.subscribers.add(news)
        return lambda: tracked.subscribers.discard(news)

    def report(
        self, digest: Digest, size: int, report: Report, *, is_alone: bool = False, is_ours: bool = False
    ) -> Plan:
        """Apply a report and answer at once. Raises ValueError when the report or this tracker's load is out of bounds.

        `is_ours`: the report is this node's own, and its size is known from the origin.
        """
        tracked = self._open(digest, size, is_ours=is_ours)
        ledger, now = tracked.ledger, time.monotonic()
        if not is_ours and report.node not in ledger and self._bits() + ledger.pieces.count > _MAX_BITS:
            raise ValueError("this tracker leads as many nodes as it can")
        tracked.touched_at = now
        ledger.is_alone = is_alone
        before = ledger.held
        self._probe()
        plan = self._paced(ledger.report(report, now))
        if report.have is not None and not ledger.have(report.node).complete:
            self._lost(report.node, digest)  # it dropped the blob it announced, and would count as a holder forever
        gained = (ledger.held & ~before) | bits_in(gain.piece for gain in report.gained)
        if gained or report.have is not None:
            self._wake(tracked, gained or ledger.held, report.node)
        if report.failed or report.have is not None:
            for news in tracked.subscribers:
                news()
        return plan

    async def answer(self, digest: Digest, size: int, report: Report) -> Plan:
        """Apply a report and answer when there is something to say, or after a short wait. Raises as `report` does.

        When a node reports again, its earlier report is answered at once.
        """
        plan = self.report(digest, size, report)
        tracked = self._tracked[digest]
        earlier = tracked.waiting.pop(report.node, None)
        if earlier is not None and not earlier.done():
            earlier.set_result(Plan())
        if plan or not report.slots or not report.wanted:
            return plan
        woken: asyncio.Future[Plan] = asyncio.get_running_loop().create_future()
        tracked.waiting[report.node] = woken
        try:
            await asyncio.wait([woken], timeout=_HOLD_SECONDS)
        finally:
            if tracked.waiting.get(report.node) is woken:
                del tracked.waiting[report.node]
        # If a newer report took its place, this one was answered with an empty plan: the newer one gets the tasks.
        return woken.result() if woken.done() else self._paced(tracked.ledger.plan(report.node, time.monotonic()))

    def expect_seed(self, digest: Digest, size: int) -> None:
        """Record that this node is a seed and about to join a swarm. Raises ValueError as `report` does."""
        self._open(digest, size).ledger.expects_seed = True

    def is_wanted(self, digest: Digest) -> bool:
        """Whether any node still misses a piece of a blob."""
        tracked = self._tracked.get(digest)
        return tracked is not None and tracked.ledger.is_wanted

    def changed_by(self, digest: Digest, node: str, *, is_holder: bool) -> int:
        """Number of pieces to change in the ledger, if there is one, when a node turns out to hold all or not."""
        tracked = self._tracked.get(digest)
        if tracked is None:
            return 0
        was_holder = node in tracked.ledger and tracked.ledger.have(node).complete
        return tracked.ledger.pieces.count if was_holder != is_holder else 0

    def add_holder(self, digest: Digest, node: str) -> None:
        """Record that a node has announced that it holds all of a blob."""
        tracked = self._tracked.get(digest)
        if tracked is not None:
            self._hold(tracked, node, time.monotonic(), is_news=True)
            self._wake(tracked, tracked.ledger.held, node)

    def drop_holder(self, digest: Digest, node: str) -> None:
        """Record that a node has said that it no longer holds a blob, all of which it held."""
        tracked = self._tracked.get(digest)
        if tracked is not None:
            tracked.ledger.drop(node)
            self._wake(tracked, (1 << tracked.ledger.pieces.count) - 1, node)  # what no node holds now may be leased

    def forget(self, node: str) -> None:
        """Remove a node that has left the mesh from all swarms."""
        for tracked in self._tracked.values():
            if node in tracked.ledger:
                tracked.ledger.forget(node)
                self._wake(tracked, tracked.ledger.held, "")
                for news in tracked.subscribers:
                    news()

    async def tick(self) -> None:
        """Expire silent nodes and old tasks, and drop ledgers that have not been used for long."""
        now, turns = time.monotonic(), Turns()  # hundreds of files, each with hundreds of nodes
        for digest, tracked in list(self._tracked.items()):
            await turns.give()
            if self._tracked.get(digest) is not tracked:
                continue
            self._add_holders(digest, tracked, now)
            for node in tracked.ledger.expire(now):
                self._lost(node, digest)
            if now - tracked.touched_at > _IDLE_SECONDS and not tracked.subscribers:
                del self._tracked[digest]

    def _open(self, digest: Digest, size: int, *, is_ours: bool = False) -> _Tracked:
        tracked = self._tracked.get(digest)
        if tracked is not None and tracked.size == size:
            return tracked
        # This node knows the size from the origin: a peer that reported another size first was wrong, or lied.
        if tracked is not None and (tracked.subscribers or not is_ours):
            raise ValueError(f"{digest} has {tracked.size} bytes here, not {size}")
        count = Pieces.of(size).count
        while len(self._tracked) >= _MAX_LEDGERS or count + self._led() > _MAX_PIECES:
            # Waiting reports may come from strangers. Ledgers that this node's own clients need take precedence.
            idle = [d for d, t in self._tracked.items() if not t.subscribers and (is_ours or not t.waiting)]
            if not idle:
                raise ValueError("this tracker leads as many swarms as it can")
            gone = self._tracked.pop(
                min(idle, key=lambda d: (bool(self._tracked[d].waiting), self._tracked[d].touched_at))
            )
            for waiting in gone.waiting.values():
                if not waiting.done():
                    waiting.set_result(Plan())
        now = time.monotonic()
        tracked = self._tracked[digest] = _Tracked(Ledger(size), size, now)
        tracked.ledger.digests.update(self._digests(digest, size))
        self._add_holders(digest, tracked, now)
        return tracked

    def _led(self) -> int:
        """Number of pieces of all blobs whose swarms this node leads."""
        return sum(tracked.ledger.pieces.count for tracked in self._tracked.values())

    def _bits(self) -> int:
        """Number of (node, piece) pairs of all ledgers, slots of nodes that have left included."""
        return sum(tracked.ledger.pieces.count * tracked.ledger.slots for tracked in self._tracked.values())

    def _add_holders(self, digest: Digest, tracked: _Tracked, now: float) -> None:
        for node in self._holders(digest):
            self._hold(tracked, node, now)

    def _hold(self, tracked: _Tracked, node: str, now: float, *, is_news: bool = False) -> None:
        with contextlib.suppress(ValueError):  # a swarm that is full can do without another holder
            tracked.ledger.hold(node, now, is_news=is_news)

    def _paced(self, plan: Plan) -> Plan:
        return dataclasses.replace(plan, pause=self._pacing.pause) if self._pacing.pause else plan

    def _probe(self) -> None:
        """Measure how late the event loop is, as long as reports come."""
        if not self._is_probing:
            self._is_probing = True
            loop = asyncio.get_running_loop()
            loop.call_later(PROBE, self._probed, time.monotonic() + PROBE)

    def _probed(self, due: float) -> None:
        self._is_probing = False
        self._pacing.observe(time.monotonic() - due)

    def _wake(self, tracked: _Tracked, gained: int, by: str) -> None:
        """Answer a few of the waiting nodes, if there is something for them now; the others keep waiting."""
        woken = 0
        for node in tracked.ledger.waiting(gained):
            waiting = tracked.waiting.get(node)
            if node != by and waiting is not None and not waiting.done():
                if plan := tracked.ledger.plan(node, time.monotonic()):
                    waiting.set_result(self._paced(plan))
                woken += 1
                if woken == _WOKEN:
                    break
        for news in tracked.subscribers:
            news()
