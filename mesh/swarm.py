"""One node's part in the swarm of one blob: which pieces it wants, and its reports to the tracker.

The tracker decides which piece comes from where (`mesh.ledger`), `Fetcher` carries that out, `Fill` shows readers the
bytes that are there, and `Proving` checks them. A node without peers is its own tracker: the same conversation, with
shorter lists.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from mesh.access import OriginAccess
from mesh.content import PieceSet
from mesh.errors import MeshError, Unavailable
from mesh.fetcher import Fetcher
from mesh.fill import Fill, Reader
from mesh.messages import (
    MAX_FAILED,
    MAX_GAINED,
    MAX_TASKS,
    MAX_URGENT,
    ORIGIN,
    Plan,
    Report,
    Task,
    runs_of,
)
from mesh.pacing import LONGEST
from mesh.proving import Proving
from mesh.rescue import Rescue
from mesh.tasks import Tasks
from mesh.voucher import Voucher

if TYPE_CHECKING:
    from mesh.house import House
    from mesh.partial import Partial

log = logging.getLogger(__name__)

_IN_FLIGHT = 64 << 20  # bytes assigned to this node at a time
_MIN_TASKS = 8
_UNHURRIED = 1.0  # seconds for which minor news may wait to be reported together with more
_LATE_SECONDS = 1.0  # for which a reader's next piece may wait behind others in a run
_MANY = 8  # new pieces that are worth a report
_FEW = 2  # first pieces of the blob, which are reported without a pause
_PATIENCE = 5.0  # seconds without a piece after which a fill without a way to the origin gives up on its peers
_LINGER = 5.0  # seconds for which a fill without readers stays open


class Swarm:
    """This node's part in the swarm of one blob. Belongs to the event loop's thread.

    `run` lasts as long as the node takes part. `read` may be called until `is_over`.
    """

    def __init__(self, house: House, partial: Partial) -> None:
        self.fill = Fill(partial)
        self.fetcher = Fetcher(house, self.fill, self._notice)
        self.digest = partial.digest
        self.size = partial.size
        self.began_at = time.time()
        self.is_helping = False  # this node is a seed and fetches for others
        self._house = house
        self._partial = partial
        self._proving = Proving(house, self.fill, self.fetcher, self._notice)
        self._voucher = Voucher(house, self.fill, self.fetcher, self._proving.disprove)
        self._rescue = Rescue(house, self.fill, self.fetcher)
        self._is_wanted = False  # the whole blob is wanted, with or without readers
        self._news = asyncio.Event()
        self._tasks = Tasks()
        self._talks: set[asyncio.Task[None]] = set()
        self._must_sync = True
        self._has_moved = False
        self._next_talk = self._last_talk = 0.0
        self._pause = 0.0  # seconds that the tracker asks for between two reports
        self._told_gains = 0
        self._idle_since: float | None = None
        self._help_until = 0.0
        self._urgent: list[int] = []
        self._urgent_since: dict[int, float] = {}
        self._told_urgent: list[int] = []
        self._slots = max(_MIN_TASKS, min(MAX_TASKS - 16, _IN_FLIGHT // partial.pieces.piece_size))

    @property
    def is_over(self) -> bool:
        return self.fill.is_over

    def want(self, access: OriginAccess | None) -> None:
        """Fetch the whole blob."""
        self._is_wanted = True
        if access is not None:
            self.fetcher.add_access(access)
        self._notice()

    def help(self, access: OriginAccess) -> None:
        """Fetch from the origin what other nodes want, for as long as they want it."""
        self.is_helping = True
        self._help_until = time.monotonic() + _LINGER
        self.fetcher.add_access(access)
        self._notice()

    def read(self, start: int, stop: int, access: OriginAccess | None, *, is_whole: bool) -> Reader:
        """Return a reader of the bytes from `start` up to `stop`. If `is_whole`, the fill outlives the reader."""
        if is_whole:
            self._is_wanted = True
        if access is not None:
            self.fetcher.add_access(access)
        reader = self.fill.reader(start, stop, is_whole=is_whole)
        self._notice()
        return reader

    def holds(self, start: int, stop: int) -> bool:
        """Whether the bytes from `start` up to `stop` are here, checked as far as single pieces can be."""
        covered = self._partial.pieces.covering(start, stop)
        return 0 <= start < stop <= self.size and all(piece in self._partial.have for piece in covered)

    async def run(self) -> None:
        """Run until the blob is proven and stored, the fill has failed, or the blob is not wanted any more."""
        unsubscribe = self._house.exchange.subscribe(self.digest, self.size, self._notice)
        proving = self._begin(self._proving.prove(), "proof")
        if self._partial.unchecked:
            self._begin(self._proving.recheck(), "recheck")
        try:
            while not self.fill.is_over and not self._is_idle():
                self._fetch_doubted()
                self._voucher.look()
                self._rescue.look()
                self._hurry()
                self._talk()
                self._give_up_if_stuck()
                await self._wait()
        finally:
            unsubscribe()
            if self.fill.is_proven:  # a thread is flushing the blob, through a descriptor that is closed after this
                await asyncio.wait([proving])
            await self._tasks.close()
            await self.fetcher.close()
            if not self.fill.is_stored:
                await self._house.exchange.resign(self.digest, self.size, self.fetcher.received[ORIGIN])
            if not self.fill.is_over:
                self.fill.finish(Unavailable(f"{self.digest} is not being fetched any more"))

    # --- internals

    def _begin(self, work: Coroutine[Any, Any, None], what: str) -> asyncio.Task[None]:
        """Start a part of the work. If it fails in an unforeseen way, so does the fill: its readers would hang."""
        task = self._tasks.start(work, name=f"{what} {self.digest}")
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            if not self.fill.is_over:
                self.fill.finish(Unavailable(f"{self.digest}: fetching it failed; the log says why"))
            self._notice()

    def _notice(self) -> None:
        self._news.set()

    async def _wait(self) -> None:
        """Wait for news, or for the time of the next report."""
        now = time.monotonic()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, min(self._next_talk, now + 1.0) - now)):
                await self._news.wait()
        if len(self._talks) > 1:  # whatever there is to report, one of two reports has to be answered first
            await asyncio.wait(self._talks, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
        interval = self._house.exchange.interval(self.digest)
        if self._told_gains >= _FEW:  # a new swarm grows from the first pieces: no pause for them
            interval = max(interval, self._pause)
        pause = self._last_talk + interval - time.monotonic()
        await asyncio.sleep(max(0.0, pause))  # at least, let other tasks run

    def _is_idle(self) -> bool:
        now = time.monotonic()
        if self.is_helping and (now < self._help_until or self._house.exchange.is_wanted(self.digest)):
            return False
        if self._is_wanted or self.fill.readers or self.fill.is_proven:
            self._idle_since = None
            return False
        if self._idle_since is None:
            self._idle_since = now
        return now - self._idle_since > _LINGER

    def _give_up_if_stuck(self) -> None:
        fetcher = self.fetcher
        if fetcher.can_fetch or fetcher.pending or self._partial.unchecked or self._partial.have.complete:
            return
        is_alone = self._house.exchange.is_alone(self.digest)
        if is_alone or time.monotonic() - max(fetcher.last_landed, fetcher.access_at) > _PATIENCE:
            reason = str(fetcher.origin_error or "no peer has it, and there is no way to the origin")
            error = fetcher.origin_error or Unavailable(f"{self.digest}: {reason}")
            log.warning("%s cannot be brought in: %s", self.digest, reason)
            self.fill.finish(error)

    # --- wanted pieces

    def _wanted(self) -> PieceSet:
        """The pieces of interest that are neither here nor about to be read back from disk."""
        pieces, partial = self._partial.pieces, self._partial
        bits = 0
        if self._is_wanted:
            bits = (1 << pieces.count) - 1
        else:
            for reader in self.fill.readers:
                covered = pieces.covering(reader.position, reader.stop)
                bits |= (1 << covered.stop) - (1 << covered.start) if covered else 0
        return PieceSet(pieces.count, bits & ~partial.have.bits & ~partial.unchecked.bits)

    def _heads(self) -> list[int]:
        """The first two missing pieces of every reader."""
        pieces, have = self._partial.pieces, self._partial.have
        heads: dict[int, None] = {}
        for reader in self.fill.readers:
            missing = (piece for piece in pieces.covering(reader.position, reader.stop) if piece not in have)
            for piece, _ in zip(missing, range(2), strict=False):
                heads[piece] = None
        return [piece for piece in heads if piece not in self._partial.unchecked][:MAX_URGENT]

    def _hurry(self) -> None:
        """Put first the pieces that readers wait for, and take those that are late from the ends of long runs.

        Not at once: breaking a run off wastes what is in flight, and on a fast line the piece soon comes by itself.
        """
        urgent, now = self._heads(), time.monotonic()
        self._urgent_since = {piece: self._urgent_since.get(piece, now) for piece in urgent}
        late = [piece for piece, since in self._urgent_since.items() if now - since >= _LATE_SECONDS]
        if urgent != self._urgent or late:
            self._urgent = urgent
            self.fetcher.hurry(urgent, late)

    def _fetch_doubted(self) -> None:
        """Fetch pieces that were part of a failed proof from the origin, whatever peers offer."""
        doubted = self._house.doubted.get(self.digest)
        if doubted and self.fetcher.can_fetch:
            missing = [piece for piece in self._wanted() if piece in doubted]
            active = {piece for piece, _ in self.fetcher.active()}
            self.fetcher.take([Task.lease_of(piece) for piece in missing if piece not in active])

    # --- the conversation with the tracker

    def _talk(self) -> None:
        """Report if there is something to say, or if it is time for a report."""
        now = time.monotonic()
        has_news = self._news.is_set()
        self._news.clear()
        if len(self._talks) > 1 or (now < self._next_talk and not (has_news and self._is_worth_telling())):
            if has_news:  # it can wait a little, to be reported together with more
                self._next_talk = min(self._next_talk, self._last_talk + _UNHURRIED)
            return
        self._last_talk = now
        self._next_talk = now + 10.0
        self._told_urgent = self._urgent
        task = self._begin(self._exchange(), "exchange")
        self._talks.add(task)
        task.add_done_callback(self._talks.discard)

    def _is_worth_telling(self) -> bool:
        """Whether the news is worth a report now: the tracker may be busy with hundreds of nodes."""
        fetcher = self.fetcher
        if self._house.exchange.is_local(self.digest) or self._must_sync or fetcher.failed:
            return True
        if self._urgent != self._told_urgent:
            return True
        # Other nodes wait for pieces from the origin, and this node asks for tasks before it has done the last of them.
        gained = fetcher.gained
        return (
            len(gained) >= _MANY
            or any(gain.source == ORIGIN for gain in gained)
            or (2 * fetcher.pending <= self._slots and not self._talks)
        )

    async def _exchange(self) -> None:
        exchange, report = self._house.exchange, self._report()
        tracker = exchange.tracker_of(self.digest)
        try:
            plan = await exchange.report(self.digest, self.size, report, self.fetcher.ways.hint)
        except Unavailable as error:
            log.info("%s: no tracker: %s", self.digest, error)
            self._must_sync = self._has_moved = True
            has_other = exchange.tracker_of(self.digest) != tracker
            self._next_talk = time.monotonic() + (0.0 if has_other else 0.5)
            self._notice()
            return
        except MeshError as error:
            self.fill.finish(error)
            self._notice()
            return
        self._next_talk = min(self._next_talk, time.monotonic() + plan.retry_after)
        self._pause = min(plan.pause, LONGEST)  # in an open mesh the tracker may be hostile
        self._apply(plan)

    def _apply(self, plan: Plan) -> None:
        if plan.resync:
            self._must_sync = self._has_moved = True
            self._notice()
        if plan.tasks:
            self.fetcher.assigned_at = time.monotonic()
        if not self.fill.is_over:
            doubted = self._house.doubted.get(self.digest, {}) if self.fetcher.can_fetch else {}
            self.fetcher.take([self._task(task) for task in plan.tasks if task.piece not in doubted])

    def _task(self, task: Task) -> Task:
        """In an open mesh, fetch from the origin if only ranges are read: just the whole blob proves peers' bytes."""
        if task.lease or self._is_wanted or self._house.peers.is_keyed or not self.fetcher.can_fetch:
            return task
        return Task.lease_of(task.piece)

    def _report(self) -> Report:
        fetcher, partial = self.fetcher, self._partial
        gained, fetcher.gained = fetcher.gained[:MAX_GAINED], fetcher.gained[MAX_GAINED:]
        failed, fetcher.failed = fetcher.failed[:MAX_FAILED], fetcher.failed[MAX_FAILED:]
        self._told_gains += len(gained)
        have: bytes | None = None
        active: tuple[tuple[int, str], ...] = ()
        moved = False
        if self._must_sync:
            have = partial.have.to_bytes()
            active = tuple(fetcher.active())[:MAX_TASKS]
            gained = [self._proving.held(piece) for piece in partial.have]
            gained, fetcher.gained = gained[:MAX_GAINED], gained[MAX_GAINED:]
            moved = self._has_moved
            self._must_sync = self._has_moved = False
        return Report(
            node=self._house.node_id,
            have=have,
            active=active,
            moved=moved,
            gained=tuple(gained),
            failed=tuple(failed),
            urgent=runs_of(PieceSet.of(partial.pieces.count, self._urgent)),
            wanted=runs_of(self._wanted()),
            slots=max(0, self._slots - fetcher.pending),
            can_fetch=fetcher.can_fetch,
            fetched=fetcher.received[ORIGIN],
        )
