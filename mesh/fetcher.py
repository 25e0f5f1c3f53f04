"""Execution of the tracker's assignments for one blob: which transfers run now, and what happens when one fails.

Leases (pieces from the origin) are merged into runs of consecutive pieces, one request each. The first run goes alone
until the origin answers, so that an origin that cannot serve ranges is asked only once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from mesh.access import OriginAccess
from mesh.errors import (
    LocationRefused,
    MeshError,
    RangeIgnored,
    SourceDishonest,
    SourceFailed,
    StoreFull,
    StoreUnusable,
    Unavailable,
)
from mesh.intake import Begun, Run
from mesh.line import SMALL
from mesh.messages import ORIGIN, Failure, Gain, Reason, Task
from mesh.policy import QUICK
from mesh.streams import ORIGIN_STREAMS, PEER_RUN_BYTES, PEER_STREAMS, RUN_BYTES, SOURCE_STREAMS, URGENT_STREAMS
from mesh.watch import Watch
from mesh.ways import Ways

if TYPE_CHECKING:
    from mesh.fill import Fill
    from mesh.house import House
    from mesh.transfer import Location

log = logging.getLogger(__name__)

_MAX_FAILURES = 6  # in a row without a byte until the origin is given up: about six seconds
FIRST_SECONDS = 0.02  # seconds after its first byte in which the first run has the origin to itself


class Fetcher:
    """The transfers of one fill. Belongs to the event loop's thread.

    `changed` is called whenever there is something new to report. `gained` and `failed` collect the next report's
    entries; `origin_error` is set while the origin cannot be asked.
    """

    def __init__(self, house: House, fill: Fill, changed: Callable[[], None]) -> None:
        self.gained: list[Gain] = []
        self.failed: list[Failure] = []
        self.received: Counter[str] = Counter()  # bytes by source
        self.origin_error: SourceFailed | None = None
        self.runs: set[Run] = set()
        self.ways = Ways()
        # Monotonic times of the last landed piece, of the newest access to the origin, and of the last assignment.
        self.last_landed = self.access_at = self.assigned_at = time.monotonic()
        self._house = house
        self._fill = fill
        self._partial = fill.partial
        self._changed = changed
        self._leased: dict[int, Task] = {}  # waiting to be fetched from the origin, in this order
        self._offered: dict[int, Task] = {}  # waiting to be fetched from peers
        self._begun: dict[int, Begun] = {}  # pieces that a broken run from the origin left incomplete
        self._sources: dict[int, str] = {}  # of landed pieces
        self._quick: set[str] = set()  # peers whose last piece arrived within `policy.QUICK` seconds
        self._has_answered = self._is_closing = self._is_sequential = False
        self._failures = 0
        self._resume_at = 0.0

    # --- for the exchange with the tracker

    def add_access(self, access: OriginAccess) -> None:
        """Add a way to the origin, and try the origin again if it had been given up."""
        self.ways.add(access)
        self.origin_error = None
        self.access_at = time.monotonic()

    def source_of(self, piece: int) -> str:
        """Return the source of a landed piece; empty for one that was here before."""
        return self._sources.get(piece, "")

    @property
    def can_fetch(self) -> bool:
        return bool(self.ways) and self.origin_error is None

    @property
    def pending(self) -> int:
        """The number of pieces that are assigned and have not landed."""
        return len(self._leased) + len(self._offered) + sum(len(run.pieces) for run in self.runs)

    def active(self) -> Iterable[tuple[int, str]]:
        """Yield (piece, source) for each piece that is assigned and has not landed."""
        for run in self.runs:
            for piece in run.pieces:
                yield piece, run.source
        for piece in self._leased:
            yield piece, ORIGIN
        for piece, task in self._offered.items():
            yield piece, task.sources[0]

    def take(self, tasks: Iterable[Task]) -> None:
        """Take on tasks, and start as many transfers as there is room for."""
        coming = self._coming()
        is_all_coming = any(run.is_sequential for run in self.runs)
        for task in tasks:
            piece = task.piece
            if is_all_coming or piece in self._partial.have or piece in self._partial.unchecked:
                continue
            if task.lease and not self.can_fetch:  # the origin was given up while the plan was on its way
                self.failed.append(Failure(piece, ORIGIN, "refused"))
                self._changed()
            elif task.lease:  # never from origin and peer at once: one would overwrite bytes that the other has checked
                self._offered.pop(piece, None)
                self._leased[piece] = task  # if a peer is sending the piece now, kept for when that fails
            elif piece not in self._leased and piece not in coming:
                self._offered[piece] = task
        self.launch()

    def _coming(self) -> set[int]:
        return {piece for run in self.runs for piece in run.pieces}

    def _next_lease(self) -> int | None:
        return next((piece for coming in [self._coming()] for piece in self._leased if piece not in coming), None)

    def hurry(self, urgent: Sequence[int], late: Iterable[int]) -> None:
        """Put the pieces that readers wait for (`urgent`) first, and take `late` ones out of the ends of long runs."""
        waited = {reader.position // self._partial.pieces.piece_size for reader in self._fill.readers}
        for piece in late if self.can_fetch else ():
            for run in list(self.runs):  # a piece that no reader is at yet may stay if the run reaches it next
                if run.is_origin and not run.is_sequential and run.piece + (piece not in waited) < piece < run.stop:
                    for taken in run.shorten(piece):
                        self._leased.setdefault(taken, Task.lease_of(taken))
        self._leased, self._offered = ({p: t[p] for p in urgent if p in t} | t for t in (self._leased, self._offered))
        self.launch(urgent=any(piece in self._leased for piece in urgent))

    def launch(self, *, urgent: bool = False) -> None:
        """Start as many transfers as there is room for; for `urgent` leases, a few more."""
        if self._fill.is_over or self._is_closing:
            return
        may_fetch = self.can_fetch and time.monotonic() >= self._resume_at
        if self._is_sequential and self._leased and may_fetch and self.runs:
            for run in self.runs:  # a sequential run writes the whole file: start it when all others have ended
                if not run.is_origin:
                    run.cancel()
            return
        from_origin = sum(run.is_origin for run in self.runs)
        streams = ORIGIN_STREAMS + (URGENT_STREAMS if urgent else 0)
        while may_fetch and (first := self._next_lease()) is not None:
            if from_origin >= (streams if self._has_answered and not self._is_sequential else 1):
                break
            has_turn = not (self._fill.readers or self._is_sequential or self._partial.size <= SMALL)
            if has_turn and not self._house.line.take(self.launch):
                break
            self._start_origin_run(first, has_turn=has_turn)
            from_origin += 1
        if any(run.is_sequential for run in self.runs):
            return
        from_peers = len(self.runs) - from_origin
        while from_peers < PEER_STREAMS and self._start_peer_run():
            from_peers += 1

    async def close(self) -> None:
        """Cancel all transfers and wait until their threads no longer use the file."""
        self._is_closing = True
        self._house.line.leave(self.launch)
        self._leased.clear()
        self._offered.clear()
        while self.runs:
            for run in list(self.runs):
                run.cancel()
            await asyncio.sleep(0.01)

    # --- the origin

    def _start_origin_run(self, first: int, *, has_turn: bool) -> None:
        line, pieces, others = self._house.line, self._partial.pieces, self._coming() | set(self._begun)
        turns = not self._is_sequential and self._fill.begin(first)  # begins inside the piece: a run of one piece
        run_bytes = min(RUN_BYTES, line.run_bytes) if has_turn else RUN_BYTES
        longest = 1 if turns else max(1, min(-(-len(self._leased) // ORIGIN_STREAMS), run_bytes // pieces.piece_size))
        stop = first
        while stop in self._leased and stop - first < longest and (stop == first or stop not in others):
            del self._leased[stop]
            stop += 1
        run = self._run(ORIGIN, first, stop, {}, self._begun.pop(first, None))
        run.is_sequential, run.has_turn = self._is_sequential, has_turn
        task = self._house.tasks.start(self._fetch(run, self._from_origin), name=f"origin {first}-{stop}")
        if has_turn:
            task.add_done_callback(lambda _: line.give_back())

    async def _from_origin(self, run: Run) -> None:
        location = None
        try:
            async with self._house.origin_slots.one(self._partial.digest):
                location = await self.ways.locate()
                await self._in_thread(run, location)
            self._failures = 0
        except LocationRefused as error:
            await self.refused(location, error)
        except RangeIgnored:
            if run.is_sequential:
                raise  # cannot happen: the whole blob was requested
            log.info("%s: the origin knows no ranges; fetching it in order", self._partial.digest)
            self._is_sequential = True
        except SourceFailed as error:
            self._origin_failed(error, has_moved=run.is_answered)

    async def refused(self, location: Location | None, error: LocationRefused) -> None:
        """Handle the refusal of a location, or (None) that no way to the origin gives one any more."""
        try:
            if location is None:
                raise error
            if await self.ways.renew(location):
                self._origin_failed(error, has_moved=False)
        except LocationRefused as final:
            if not self.ways:
                self._give_up_origin(final)
        except SourceFailed as failure:
            self._origin_failed(failure, has_moved=False)

    def _origin_failed(self, error: SourceFailed, *, has_moved: bool) -> None:
        self._failures = 1 if has_moved else self._failures + 1
        pause = min(2.0, 0.05 * 4.0 ** (self._failures - 1))
        if error.retry_after is not None:
            pause = max(pause, error.retry_after)
        level = logging.INFO if self._failures == 1 else logging.WARNING
        log.log(level, "%s: %s; again in %.1f s", self._partial.digest, error, pause)
        if self._failures >= _MAX_FAILURES or pause > 8:
            self._give_up_origin(error)
            return
        self._resume_at = time.monotonic() + pause
        asyncio.get_running_loop().call_later(pause + 0.001, self.launch)

    def _give_up_origin(self, error: SourceFailed) -> None:
        self.origin_error = error
        self._failures = 0
        self.failed += [Failure(piece, ORIGIN, "refused") for piece in self._leased]
        self._leased.clear()
        self._changed()

    # --- peers

    def _start_peer_run(self) -> bool:
        """Start the first offered transfer whose source has a connection to spare; False when there is none."""
        pieces, busy = self._partial.pieces, Counter(run.source for run in self.runs)
        free = ((piece, task) for piece, task in self._offered.items() if busy[task.sources[0]] < self._streams(task))
        if (found := next(free, None)) is None:
            return False
        first, task = found
        longest = max(1, min(-(-len(self._offered) // SOURCE_STREAMS), PEER_RUN_BYTES // pieces.piece_size))
        tasks: list[Task] = []
        while (
            (following := self._offered.get(first + len(tasks)))
            and following.sources[0] == task.sources[0]
            and len(tasks) < longest
            and (not tasks or following.piece not in self._begun)
        ):
            tasks.append(self._offered.pop(following.piece))
        digests = {t.piece: t.digest for t in tasks if t.digest} if self._house.peers.is_keyed else {}
        before = self._begun.get(first)
        begun = Begun(before.position, before.hasher.copy()) if before and before.hasher else None
        run = self._run(task.sources[0], first, first + len(tasks), digests, begun)
        self._house.tasks.start(self._fetch(run, lambda run: self._from_peer(run, tasks)), name=f"peer {first}")
        return True

    def _streams(self, task: Task) -> int:
        """Return how many connections a source may have. In a crowd machines are the limit, so one is no faster."""
        return SOURCE_STREAMS if task.sources[0] in self._quick or self._house.exchange.is_crowd else 1

    async def _from_peer(self, run: Run, tasks: list[Task]) -> None:
        pieces, first = self._partial.pieces, tasks[0]
        watch = Watch(run, first.seconds, pieces.piece_size, is_only_source=len(first.sources) == 1)
        reason: Reason = "refused"
        try:
            stop = pieces.span(run.stop - 1)[1]
            location = self._house.peers.locate(run.source, self._partial.digest, run.position, stop)
            await self._in_thread(run, location)
        except SourceFailed as error:
            reason = error.failure
            if isinstance(error, SourceDishonest):
                self._house.blame(error)
            log.debug("%s: %s", self._partial.digest, error)
        except StoreFull:  # not the source's fault, and there may be room in a moment
            rest = (task for task in tasks if task.piece in run.pieces and task.piece not in self._leased)
            self._offered |= {task.piece: task for task in rest}
            raise
        finally:
            watch.close()
        by_piece = {task.piece: task for task in tasks}
        for piece in run.pieces:
            self.failed.append(Failure(piece, run.source, reason))
            task = by_piece[piece]
            if len(task.sources) > 1 and piece not in self._leased:  # try the next source without asking the tracker
                self._offered[piece] = Task(piece, task.sources[1:], task.digest, task.seconds)

    # --- both

    def _run(self, source: str, first: int, stop: int, digests: dict[int, bytes], begun: Begun | None) -> Run:
        is_origin, stats = source == ORIGIN, self._house.stats
        counter = "origin_received" if is_origin else "peer_received"

        def received(count: int) -> None:
            stats.add(counter, count)
            self.received[source] += count

        run = Run(
            self._fill,
            source,
            first,
            stop,
            begun=begun,
            digests=digests,
            limiter=self._house.origin_limiter if is_origin else self._house.peer_limiter,
            received=received,
            answered=self._answered,
            landed=self._landed,
        )
        self.runs.add(run)
        return run

    async def _fetch(self, run: Run, transfer: Callable[[Run], Awaitable[None]]) -> None:
        """Run a transfer: reserve room for its bytes, deal with its errors, and start the next ones."""
        store, pieces = self._house.store, self._partial.pieces
        reserved = sum(stop - start for start, stop in map(pieces.span, run.pieces))
        try:
            await store.reserve(self._partial, reserved)
        except (MeshError, OSError) as error:
            self.runs.discard(run)
            self._fill.finish(error if isinstance(error, MeshError) else StoreUnusable(f"no room can be made: {error}"))
            self._changed()
            return
        evicted = store.evicted_bytes
        try:
            await transfer(run)
        except StoreFull as error:
            # The disk is fuller than the budget says. Several runs notice at once; one eviction is enough for all.
            if store.evicted_bytes == evicted and not await store.evict(reserved):
                self._fill.finish(error)
        except MeshError as error:
            self._fill.finish(error)
        except Exception:  # a new attempt would fail in the same way at once
            self._fill.finish(Unavailable(f"{self._partial.digest}: fetching it failed; the log says why"))
            raise
        finally:
            self.runs.discard(run)
            store.release(self._partial, reserved - run.landed_bytes)
            if run.is_origin and not self._is_closing:
                self._put_back(run)
            self._changed()
            self.launch()

    def _put_back(self, run: Run) -> None:
        """Queue the missing pieces of an origin run first, to be continued from the byte that the run had reached."""
        if run.begun is not None:
            self._begun[run.piece] = run.begun
        pieces = range(self._partial.pieces.count) if run.is_sequential else run.pieces
        rest = [piece for piece in pieces if piece not in self._partial.have]
        if self.origin_error is not None:
            self.failed += [Failure(piece, ORIGIN, "refused") for piece in rest]
        else:
            again = {piece: Task.lease_of(piece) for piece in rest}
            self._leased = again | self._leased

    async def _in_thread(self, run: Run, location: Location) -> None:
        house = self._house
        connections = house.origin_connections if run.is_origin else house.peer_connections
        await asyncio.get_running_loop().run_in_executor(house.pool, run.execute, connections, location)

    def _answered(self) -> None:
        if not self._has_answered:
            self._has_answered = True
            # Not at once: the threads of more runs would delay the loop, which has to serve the waiting reader first.
            asyncio.get_running_loop().call_later(FIRST_SECONDS, self.launch)

    def _landed(self, run: Run, piece: int, digest: bytes) -> None:
        start, stop = self._partial.pieces.span(piece)
        run.landed_bytes += stop - start
        self.last_landed = time.monotonic()
        seconds, run.landed_at = self.last_landed - run.landed_at, self.last_landed
        (self._quick.add if seconds < QUICK else self._quick.discard)(run.source)
        if run.has_turn:
            self._house.line.landed(stop - start, seconds, self._house.stats.origin_received, run.landed_at)
        for pending in (self._begun, self._leased, self._offered):  # a sequential run brings pieces that wait here
            pending.pop(piece, None)
        if piece not in self._partial.have:
            self._partial.add(piece, digest, run.is_trusted(piece))
            self._sources[piece] = run.source
            if run.is_trusted(piece):
                self._house.resolve_doubt(self._partial.digest, piece, digest)
            if not run.is_origin:
                self._house.served(run.source, self._partial.digest)
            self._fill.added(piece)
            self.gained.append(Gain(piece, run.source, digest))
            self._changed()
